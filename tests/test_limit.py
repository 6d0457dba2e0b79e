"""ICMP errors are few, whatever comes in; everything else goes on as before."""

from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.address import Mac, Vni
from dataplane.batch import Batch
from dataplane.defaults import endpoint_mac
from dataplane.document import loads
from dataplane.engine import Engine
from dataplane.errors import DocumentError, EngineError
from dataplane.model import Endpoint, IcmpRate, Network, Node, RemoteSubnet, Underlay
from dataplane.packet import build, parse
from dataplane.reasons import Reason, Verdict
from tests.reference.limit import Limit

SECOND = 10**9
KEY = bytes(range(32))
DR, PEER = Mac("02:00:00:00:00:01"), Mac("02:00:00:00:00:02")
NAMES = [f"e{n}" for n in range(2, 22)]


def node(rate: IcmpRate | None = None) -> Node:
    remote = RemoteSubnet(
        prefix=ip_network("10.2.0.0/16"), provider_address=ip_address("192.0.2.2"), dr_mac=PEER
    )
    ends = tuple(
        Endpoint(name=f"e{n}", addresses=(ip_address(f"10.0.1.{n}"),)) for n in range(2, 22)
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"),),
        dr_mac=DR,
        remote_subnets=(remote,),
        endpoints=ends,
    )
    return Node(
        name="a",
        underlay=Underlay(address=ip_address("192.0.2.1")),
        icmp_rate=rate,
        networks=(blue,),
    )


def frame(text: str, name: str = "e2") -> bytes:
    endpoint = next(e for e in node().networks[0].endpoints if e.name == name)
    return build(parse(text), endpoint_mac(endpoint), DR)


def expired(name: str = "e2") -> bytes:
    return frame(f"udp 10.0.1.{name[1:]}:1000 > 10.2.0.9:2000 ttl 1", name)


def flood(engine: Engine, names: list[str], rate: int, seconds: float) -> list[int]:
    """When errors were sent: each endpoint sends `rate` packets of TTL 1 a second."""
    frames = {name: expired(name) for name in names}
    good = frame("udp 10.0.1.2:1001 > 10.2.0.9:2000")
    batch, sent = Batch(capacity=len(names) + 1), []
    for step in range(int(rate * seconds)):
        now = SECOND + step * SECOND // rate
        batch.clear()
        for name, octets in (*frames.items(), ("e2", good)):
            batch.add([octets], name)
        result = engine.process(batch, now=now)
        assert result.verdict_of(len(names)) is Verdict.FORWARD
        for i in range(len(names)):
            assert result.reason_of(i) is Reason.TTL_EXPIRED
            if result.port_of(i) is not None:
                sent.append(now)
    return sent


def most_in_a_second(times: list[int]) -> int:
    first = most = 0
    for last, now in enumerate(times):
        while now - times[first] >= SECOND:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.conformance("R3", "R4", "T10")
@pytest.mark.parametrize(
    ("given", "rate"),
    [(None, IcmpRate()), (IcmpRate(port=20, port_burst=5), IcmpRate(port=20, port_burst=5))],
)
def test_a_flood_of_one_port(given: IcmpRate | None, rate: IcmpRate) -> None:
    with Engine(key=KEY) as engine:
        engine.commit(node(given))
        sent = flood(engine, ["e2"], 2000, 5)
        totals = engine.stats().totals
    assert most_in_a_second(sent) <= rate.port_burst + rate.port * 21 // 20
    later = [now for now in sent if now >= 2 * SECOND]
    assert most_in_a_second(later) <= rate.port * 21 // 20
    assert len(sent) >= rate.port * 4.5
    assert totals["originated"] == len(sent)
    assert totals["icmp_limited"] == 10_000 - len(sent)
    assert totals["dropped"] == 10_000 and totals["forwarded"] == 10_000


@pytest.mark.conformance("R3", "R4", "T10")
def test_a_flood_of_all_ports() -> None:
    with Engine(key=KEY) as engine:
        engine.commit(node())
        sent = flood(engine, NAMES, 500, 4)
    assert most_in_a_second(sent) <= 200 + 1050
    assert most_in_a_second([now for now in sent if now >= 2 * SECOND]) <= 1050
    assert len(sent) >= 3500


def test_one_port_does_not_use_up_what_others_may_send() -> None:
    with Engine(key=KEY) as engine:
        engine.commit(node())
        flood(engine, ["e2"], 2000, 2)
        got = engine.process_one(expired("e3"), "e3", now=3 * SECOND)
        assert got.port == "blue/e3"


def test_answers_are_not_limited() -> None:
    ping = frame("icmp 10.0.1.2 > 10.0.1.1 echo id 1 seq 1")
    arp = frame("arp who-has 10.0.1.1 tell 10.0.1.2")
    with Engine(icmp_rate=IcmpRate(port=1, port_burst=1, all=1, all_burst=1)) as engine:
        engine.commit(node())
        for _ in range(100):
            assert engine.process_one(ping, "e2").verdict is Verdict.ANSWER
            assert engine.process_one(arp, "e2").verdict is Verdict.ANSWER
        assert engine.stats().totals["icmp_limited"] == 0


def test_a_trace_owes_nothing() -> None:
    with Engine(icmp_rate=IcmpRate(port=1, port_burst=1), key=KEY) as engine:
        engine.commit(node())
        for _ in range(3):
            assert engine.trace(expired(), "e2").egress == "blue/e2"
        assert engine.process_one(expired(), "e2").port == "blue/e2"
        assert engine.trace(expired(), "e2").egress is None
        assert engine.process_one(expired(), "e2").port is None


def test_the_policy_has_the_last_word() -> None:
    with Engine(icmp_rate=IcmpRate(port_burst=1)) as engine:
        engine.commit(node())
        assert engine.process_one(expired(), "e2").port
        assert engine.process_one(expired(), "e2").port is None
        engine.commit(node(IcmpRate(port_burst=3)))
        assert engine.process_one(expired(), "e2").port
        assert "icmp 100/s of 1000/s" in engine.plan(replace(node(IcmpRate()), name="b")).text()


# ---- the buckets themselves --------------------------------------------------------------------

events = st.lists(
    st.tuples(
        st.sampled_from(["e2", "e3"]), st.integers(0, SECOND // 5) | st.integers(0, 3 * SECOND)
    ),
    max_size=60,
)
rates = st.builds(
    IcmpRate,
    port=st.integers(1, 30),
    port_burst=st.integers(1, 5),
    all=st.integers(1, 30),
    all_burst=st.integers(1, 5),
)


@settings(deadline=None, max_examples=100)
@given(rates, events, st.binary(min_size=32, max_size=32))
def test_the_buckets_are_as_limit_h_says(
    rate: IcmpRate, events: list[tuple[str, int]], key: bytes
) -> None:
    limit, now = Limit(key), 0
    with Engine(key=key, max_flows=16, max_bindings=0, max_ports=64, icmp_rate=rate) as engine:
        engine.commit(node())
        for name, step in events:
            now += step
            got = engine.process_one(expired(name), name, now=now).port is not None
            assert got == limit.take(rate, engine.port_id(name), now)


def instants(key: bytes) -> list[int]:
    """Milliseconds at which one error more is sent in a flood."""
    with Engine(key=key, icmp_rate=IcmpRate(port=20, port_burst=1)) as engine:
        engine.commit(node())
        times = range(1000, 3000)
        return [ms for ms in times if engine.process_one(expired(), "e2", now=ms * 1_000_000).port]


@pytest.mark.conformance("T10")
def test_nobody_can_foretell_the_next_error() -> None:
    """Two keys, two sequences; the gaps between errors are of many lengths."""
    one, other = instants(KEY), instants(KEY[::-1])
    assert one == instants(KEY)
    assert one != other
    assert len({later - now for now, later in pairwise(one)}) > 15


# ---- arguments ---------------------------------------------------------------------------------


def test_rates_are_checked() -> None:
    with pytest.raises(EngineError, match="rate or burst"):
        Engine(icmp_rate=IcmpRate(port=1_000_001))
    with pytest.raises(DocumentError) as caught:
        loads("node: {name: a, underlay: {address: 192.0.2.1}, icmp_rate: {port: 0, all: 1000001}}")
    assert [(f.path, f.message) for f in caught.value.faults] == [
        ("$.node.icmp_rate.port", "0 is not a possible number of ICMP errors (1-1000000)"),
        ("$.node.icmp_rate.all", "1000001 is not a possible number of ICMP errors (1-1000000)"),
    ]
