"""Room in the flow table and among NAT bindings: who gives way when there is none, and quotas."""

import resource
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from dataplane import Batch, DocumentError, Engine, Reason, Verdict
from dataplane.address import Mac, Vni
from dataplane.engine import Outcome
from dataplane.model import (
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    RemoteSubnet,
    Tap,
    Underlay,
)
from tests.reference import build
from tests.reference.wire import TCP, UDP

MILLISECOND, SECOND = 10**6, 10**9
SYN, ACK = 0x02, 0x10
DR, PEER_DR, HOST_MAC, PEER_MAC = (
    Mac(m)
    for m in ("02:00:00:00:0d:01", "02:00:00:00:0d:02", "02:01:a9:fe:01:01", "02:01:a9:fe:01:02")
)
MACS = {"a": Mac("02:00:00:00:00:0a"), "b": Mac("02:00:00:00:00:0b")}
ADDRESSES = {"a": ip_address("10.0.1.2"), "b": ip_address("10.0.1.3")}
REMOTE, OUTSIDE, LINK = (ip_address(a) for a in ("10.2.0.9", "203.0.113.9", "169.254.1.1"))
VNIS = {"red": 100, "blue": 200}
OURS, PEER = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def network(name: str, *, a: int = 0, b: int = 0, **fields: object) -> Network:
    """Its endpoints a and b may have begun so many flows."""
    remote = RemoteSubnet(prefix=ip_network("10.2.0.0/16"), provider_address=PEER, dr_mac=PEER_DR)
    quotas = {"a": a, "b": b}
    return Network(
        name=name,
        vni=Vni(VNIS[name]),
        prefixes=(ip_network("10.0.1.0/24"),),
        dr_mac=DR,
        remote_subnets=(remote,),
        endpoints=tuple(
            Endpoint(
                name=e,
                addresses=(ADDRESSES[e],),
                mac=MACS[e],
                tap=Tap(name=f"{e}-{name}"),
                max_flows=quotas[e],
            )
            for e in ADDRESSES
        ),
        **fields,
    )


def node(*networks: Network) -> Node:
    host = HostPort(address=LINK, peer=ip_address("169.254.1.2"), tap=Tap(name="h"))
    return Node(name="n", underlay=Underlay(address=OURS), host_port=host, networks=networks)


def udp(n: int, src: str = "a", dst: object = REMOTE) -> bytes:
    """The n-th flow of an endpoint."""
    ends = ADDRESSES[src].packed, dst.packed
    packet = build.ip(*ends, UDP, build.summed(*ends, UDP, build.udp(1000 + n, 53, b"ask")))
    return build.ethernet(DR.packed, MACS[src].packed, 0x0800, packet)


def answered(n: int, src: str = "a", vni: int = 100) -> bytes:
    """What the remote one says to it, in the underlay."""
    return build.vxlan(PEER.packed, OURS.packed, 4789, vni, reply(udp(n, src)))


def unasked(n: int, dst: str = "a", vni: int = 100) -> bytes:
    """The n-th flow that the remote one begins."""
    ends = REMOTE.packed, ADDRESSES[dst].packed
    packet = build.ip(*ends, UDP, build.udp(2000 + n, 7))
    inner = build.ethernet(DR.packed, PEER_DR.packed, 0x0800, packet)
    return build.vxlan(PEER.packed, OURS.packed, 4789, vni, inner)


def reply(frame: bytes) -> bytes:
    answer = build.reply_to(frame)
    assert answer is not None
    return DR.packed + PEER_DR.packed + answer[12:]


class Site:
    """An engine that is asked flow by flow."""

    def __init__(self, policy: Node, max_flows: int = 64, max_bindings: int = 64) -> None:
        self.engine = Engine(max_flows=max_flows, max_bindings=max_bindings)
        self.engine.commit(policy)
        self.now = SECOND

    def ask(self, n: int, src: str = "a", name: str = "red", dst: object = REMOTE) -> str:
        """`ok`, or the reason of the drop."""
        return self.told(self.engine.process_one(udp(n, src, dst), f"{name}/{src}", now=self.now))

    def stand(self, n: int, src: str = "a", name: str = "red") -> None:
        """A flow whose both sides are seen."""
        assert self.ask(n, src, name) == "ok"
        answer = answered(n, src, VNIS[name])
        assert self.told(self.engine.process_one(answer, "underlay", now=self.now)) == "ok"

    @staticmethod
    def told(outcome: Outcome) -> str:
        return "ok" if outcome.verdict is Verdict.FORWARD else str(outcome.reason)

    @property
    def evicted(self) -> int:
        return self.engine.stats().totals["evicted"]

    def held(self) -> list[tuple[str, int]]:
        """Endpoint and number of the flows that are left."""
        return sorted((f.in_port, f.sport - 1000) for f in self.engine.flows())


# ---- a full table ------------------------------------------------------------------------------


@pytest.mark.conformance("T7")
def test_a_half_open_flow_gives_way_and_no_other() -> None:
    site = Site(node(network("red")), max_flows=4)
    for n in range(3):
        site.stand(n)
    for n in range(3, 20):
        assert site.ask(n) == "ok"
        assert site.held() == [("red/a", 0), ("red/a", 1), ("red/a", 2), ("red/a", n)]
    assert site.evicted == 16
    site.stand(19)
    assert site.ask(20) == "flow_table_full" and site.evicted == 16
    assert [site.ask(n) for n in (0, 1, 2, 19)] == ["ok"] * 4


@pytest.mark.conformance("T7")
def test_the_oldest_half_open_flow_goes_first() -> None:
    """So that a handshake has as long as the table takes to fill."""
    site = Site(node(network("red")), max_flows=8)
    for n in range(100):
        assert site.ask(n) == "ok"
        if n >= 8:
            assert len(site.held()) == 8 and ("red/a", n - 7) in site.held()


@pytest.mark.conformance("T7")
def test_a_denied_packet_evicts_no_one() -> None:
    site = Site(node(network("red")), max_flows=1)
    site.ask(0)
    assert site.ask(1, dst=ip_address("10.0.1.99")) == "no_such_endpoint"
    assert site.held() == [("red/a", 0)]


def test_the_search_for_room_is_bounded() -> None:
    """64 looks a new flow: among many that stand, the few that may go are found over time."""
    site = Site(node(network("red")), max_flows=1024)
    for n in range(1023):
        site.stand(n)
    assert site.ask(2000) == "ok"
    told = [site.ask(n) for n in range(2001, 2040)]
    assert set(told) == {"ok", "flow_table_full"}
    assert told.count("ok") >= 39 // 16  # once around in 16 searches


def test_a_trace_foretells_and_evicts_no_one() -> None:
    site = Site(node(network("red", a=2)), max_flows=3)
    site.stand(0)
    site.ask(1)
    site.ask(0, "b")
    before = site.held()
    for n, src in ((5, "a"), (5, "b")):
        assert site.engine.trace(udp(n, src), f"red/{src}").verdict is Verdict.FORWARD
        assert site.held() == before and site.evicted == 0
    site.stand(1)
    assert site.engine.trace(udp(5), "red/a").reason is Reason.FLOW_QUOTA


# ---- a flood -----------------------------------------------------------------------------------

TABLE, STANDING, VECTOR = 4096, 256, 256


def spray(kind: bytes, numbers: np.ndarray) -> np.ndarray:
    """Frames [n, bytes] of the kind, each of another flow: source and destination ports differ."""
    frames = np.tile(np.frombuffer(kind, np.uint8), (len(numbers), 1))
    ports = np.stack([1024 + numbers % 60_000, 1 + numbers // 60_000], 1).astype(">u2")
    frames[:, 34:38] = ports.view(np.uint8)
    return frames


def syn(src: str) -> bytes:
    ends = ADDRESSES[src].packed, REMOTE.packed
    packet = build.ip(*ends, TCP, build.tcp(1, 2, SYN))
    return build.ethernet(DR.packed, MACS[src].packed, 0x0800, packet)


def numbered(side: int, flow: int, number: int) -> bytes:
    """A segment of an established connection that carries its own number."""
    ends = [ADDRESSES["b"].packed, REMOTE.packed]
    ports = [30_000 + flow, 443]
    at = 1 + 4 * number
    first, second = (ends, ports) if side == 0 else (ends[::-1], ports[::-1])
    data = number.to_bytes(4)
    segment = build.tcp(*second, ACK, b"", data, at, at)
    packet = build.ip(*first, TCP, build.summed(*first, TCP, segment))
    if side == 0:
        return build.ethernet(DR.packed, MACS["b"].packed, 0x0800, packet)
    inner = build.ethernet(DR.packed, PEER_DR.packed, 0x0800, packet)
    return build.vxlan(PEER.packed, OURS.packed, 4789, VNIS["red"], inner)


def resident() -> int:
    """Bytes of memory in use by this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Flood:
    """SYNs from red/a as fast as they go, while red/b's connections go on, packet by packet."""

    def __init__(self, policy: Node) -> None:
        self.engine = Engine(max_flows=TABLE, max_bindings=16)
        self.engine.commit(policy)
        self.batch = Batch(VECTOR, 512)
        self.now, self.sent, self.number, self.fresh = SECOND, 0, 0, STANDING

    def exchange(self) -> None:
        """Each standing connection sends a numbered packet in both directions; none is lost."""
        for side, port in ((0, "red/b"), (1, "underlay")):
            frames = [numbered(side, flow, self.number) for flow in range(STANDING)]
            result = self.engine.process(self.batch.load(frames, port), now=self.now)
            assert (result.verdict == Verdict.FORWARD).all()
            tails = {bytes(result.frame(i))[-4:] for i in range(STANDING)}
            assert tails == {self.number.to_bytes(4)}
        self.number += 1

    def pour(self, vectors: int) -> np.ndarray:
        """Verdicts of so many vectors of SYNs, each of a new flow."""
        verdicts = []
        for _ in range(vectors):
            frames = spray(syn("a"), np.arange(self.sent, self.sent + VECTOR))
            self.sent += VECTOR
            result = self.engine.process(self.batch.load(map(bytes, frames), "red/a"), now=self.now)
            verdicts.append(result.verdict.copy())
            self.now += MILLISECOND
        return np.concatenate(verdicts)

    def newcomers(self, n: int) -> list[bool]:
        """Whether new flows of red/b are let in, and answered."""
        told = []
        for _ in range(n):
            self.now += MILLISECOND
            outcomes = [
                self.engine.process_one(numbered(side, self.fresh, 0), port, now=self.now)
                for side, port in ((0, "red/b"), (1, "underlay"))
            ]
            self.fresh += 1
            told.append(all(o.verdict is Verdict.FORWARD for o in outcomes))
        return told


@pytest.fixture(params=["no quota", "quota"])
def flood(request: pytest.FixtureRequest) -> Iterator[Flood]:
    """Without a quota newcomers push the flood's oldest out; with one it never fills the table."""
    made = Flood(node(network("red", a=0 if request.param == "no quota" else 1000)))
    yield made
    made.engine.close()


@pytest.mark.conformance("T7")
def test_a_syn_flood_of_ten_tables_costs_no_established_packet(flood: Flood) -> None:
    flood.exchange()
    flood.pour(TABLE // VECTOR)  # full, and all that Python needs is there
    before = resident()
    for _ in range(10):  # with a quota, searches pass over what others have left free
        verdicts = flood.pour(TABLE // VECTOR)
        flood.exchange()
        assert (verdicts == Verdict.FORWARD).mean() > 0.9
        assert all(flood.newcomers(10))
    assert flood.sent >= 10 * TABLE
    assert resident() - before < 1 << 20
    start = flood.now
    assert all(flood.newcomers(100)) and flood.now - start < SECOND
    flood.exchange()
    totals = flood.engine.stats().totals
    assert totals["flows"] <= TABLE and totals["evicted"] > 8 * TABLE
    flood.now += 31 * SECOND
    flood.engine.expire(now=flood.now)
    assert flood.engine.stats().totals["flows"] == STANDING + 200


@pytest.mark.conformance("T7", "N4")
def test_table_full_of_established_flows_refuses_and_recovers_by_time() -> None:
    site = Site(node(network("red")), max_flows=16)
    for n in range(16):
        site.stand(n)
    assert site.ask(99) == "flow_table_full"
    site.now += 301 * SECOND
    assert site.engine.expire(now=site.now) == 16
    assert site.ask(99) == "ok"


# ---- quotas ------------------------------------------------------------------------------------


@pytest.mark.conformance("T7")
def test_an_endpoint_has_its_share_and_no_more() -> None:
    site = Site(node(network("red", a=2)))
    site.stand(0)
    assert [site.ask(n) for n in (1, 2, 3)] == ["ok"] * 3
    assert site.held() == [("red/a", 0), ("red/a", 3)]
    site.stand(3)
    assert site.ask(4) == "flow_quota"
    assert [site.ask(n, "b") for n in range(10)] == ["ok"] * 10
    site.engine.expire(now=site.now + 301 * SECOND)
    site.now += 301 * SECOND
    assert site.ask(4) == "ok"


@pytest.mark.conformance("T7")
def test_one_tenant_cannot_take_the_share_of_another() -> None:
    site = Site(node(network("red", max_flows=40), network("blue")), max_flows=64)
    for n in range(8):
        site.stand(n, "a", "blue")
    for n in range(100):
        assert site.ask(n, "a") == site.ask(n, "b") == "ok"
    counts = [sum(port.startswith(name) for port, _ in site.held()) for name in VNIS]
    assert counts == [40, 8]
    assert [site.ask(100 + n, "b", "blue") for n in range(16)] == ["ok"] * 16
    assert site.evicted == 160


@pytest.mark.conformance("T7")
def test_flows_begun_from_afar_count_for_the_network_only() -> None:
    site = Site(node(network("red", a=1, max_flows=3)))
    for n in range(3):
        outcome = site.engine.process_one(unasked(n), "underlay", now=site.now)
        assert site.told(outcome) == "ok"
    site.stand(0, "b")
    assert len(site.held()) == 3 and site.evicted == 1
    assert site.ask(0, "a") == "ok"
    assert len(site.held()) == 3 and site.evicted == 2


def test_a_smaller_quota_ends_no_flow() -> None:
    site = Site(node(network("red")))
    for n in range(5):
        site.stand(n)
    site.engine.commit(node(network("red", a=2)))
    assert [site.ask(n) for n in (0, 4, 5)] == ["ok", "ok", "flow_quota"]
    site.engine.commit(node(network("red", a=6)))
    assert site.ask(5) == "ok"


def test_quotas_count_right_over_flush_and_removal() -> None:
    site = Site(node(network("red", a=1, max_flows=1), network("blue", a=1)))
    for _ in range(3):
        site.stand(0)
        site.stand(0, name="blue")
        assert site.ask(1) == site.ask(1, name="blue") == site.ask(0, "b") == "flow_quota"
        site.engine.flush()


@pytest.mark.conformance("T8")
def test_an_endpoint_holds_no_more_bindings_than_its_nat_allows() -> None:
    nat = OutboundNat(max_ports=2)
    site = Site(node(network("red", outbound_nat=nat), network("blue", outbound_nat=nat)))
    assert [site.ask(n, dst=OUTSIDE) for n in range(3)] == ["ok", "ok", "nat_quota"]
    assert site.ask(0, dst=ip_address("203.0.113.10")) == "ok"  # endpoint independent: none new
    for src, name in (("b", "red"), ("a", "blue")):
        assert [site.ask(n, src, name, OUTSIDE) for n in range(3)] == ["ok", "ok", "nat_quota"]
    site.now += 301 * SECOND
    site.engine.expire(now=site.now)  # the flows; then the bindings are idle but not swept
    assert site.ask(2, dst=OUTSIDE) == "ok"


def test_an_idle_binding_makes_room_before_it_is_swept() -> None:
    site = Site(node(network("red", outbound_nat=OutboundNat(max_ports=1))))
    assert site.ask(0, dst=OUTSIDE) == "ok"
    site.engine.expire(now=site.now + 301 * SECOND)
    assert site.engine.stats().totals["bindings"] == 0
    site.now += 700 * SECOND
    assert site.ask(1, dst=OUTSIDE) == "ok"
    assert site.ask(2, dst=OUTSIDE) == "nat_quota"


@pytest.mark.parametrize(
    "wrong",
    [
        replace(network("red"), max_flows=-1),
        network("red", a=1 << 32),
        network("red", outbound_nat=OutboundNat(max_ports=-1)),
    ],
)
def test_impossible_quotas_are_refused(wrong: Network) -> None:
    with Engine() as engine, pytest.raises(DocumentError, match=r"not a possible quota"):
        engine.commit(node(wrong))


def test_a_trace_finds_another_to_give_way_than_the_flow_that_is_idle() -> None:
    """A flow that begins anew has left already; a lower quota may ask for one more."""
    site = Site(node(network("red")))
    assert [site.ask(n) for n in range(2)] == ["ok", "ok"]
    site.engine.commit(node(replace(network("red"), max_flows=1)))
    late = site.now + 301 * SECOND
    assert site.engine.trace(udp(0), "red/a", now=late).verdict is Verdict.FORWARD
    assert site.engine.process_one(udp(0), "red/a", now=late).verdict is Verdict.FORWARD


@pytest.mark.conformance("T7", "T8")
def test_an_evicted_flow_takes_its_binding_with_it_unless_another_stands_on_it() -> None:
    site = Site(node(network("red", outbound_nat=OutboundNat())), max_flows=4)
    for n in range(50):
        assert site.ask(n, dst=OUTSIDE) == "ok"
    totals = site.engine.stats().totals
    assert (totals["flows"], totals["bindings"], totals["evicted"]) == (4, 4, 46)
    site.engine.flush()
    for last in range(10, 20):  # flows of one binding: it stays while the last of them gives way
        assert site.ask(0, dst=ip_address(f"203.0.113.{last}")) == "ok"
        assert site.engine.stats().totals["bindings"] == 1
