"""Flow state that forgery cannot move: what of TCP is believed, and for how long a flow stays."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import Batch, DocumentError, Engine, Timers, Verdict
from dataplane._engine import lib
from dataplane.address import Mac, Vni
from dataplane.flows import Flow
from dataplane.model import Endpoint, HostPort, Network, Node, OutboundNat, Tap, Underlay
from tests.reference import build
from tests.reference.wire import TCP

SECOND = 10**9
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
DR, WEB_MAC, DB_MAC = (Mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
PEER, OURS = Mac("02:01:a9:fe:01:02"), Mac("02:01:a9:fe:01:01")
WEB, DB = (ip_address(f"10.0.1.{n}") for n in (2, 3))
OUTSIDE, LINK = ip_address("203.0.113.9"), ip_address("169.254.1.1")
REACH = 1 << 22  # how far a segment out of order may lie
ISNS = [0, 1_000_000, 2**32 - 1, 2**32 - 60, 2**31 - 5]


def node(**fields: object) -> Node:
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"),),
        dr_mac=DR,
        endpoints=(
            Endpoint(name="web", addresses=(WEB,), mac=WEB_MAC),
            Endpoint(name="db", addresses=(DB,), mac=DB_MAC),
        ),
        outbound_nat=OutboundNat(),
    )
    host = HostPort(address=LINK, peer=ip_address("169.254.1.2"), tap=Tap(name="h"))
    under = Underlay(address=ip_address("192.0.2.1"))
    return Node(name="a", underlay=under, host_port=host, networks=(blue,), **fields)


class Talk:
    """A TCP connection from web: to db beside it, or through NAT to the outside.

    `next` are the sequence numbers to come, of web and of its peer; `say` uses and advances them.
    """

    def __init__(self, isns: tuple[int, int] = (1000, 5000), *, nat: bool = False) -> None:
        self.engine = Engine(max_flows=64, max_bindings=64)
        self.engine.commit(node())
        self.nat, self.next, self.now = nat, [*isns], SECOND
        self.binding = 0

    def forge(
        self, side: int, flags: int, seq: int, ack: int = 0, data: bytes = b"", gso_size: int = 0
    ) -> None:
        """A segment of that side with any numbers: forwarded whatever it says."""
        ports = (40000, 80) if side == 0 else (80, self.binding if self.nat else 40000)
        ends = [WEB, OUTSIDE if self.nat else DB]
        if side:
            ends = [ends[1], LINK if self.nat else WEB]
        src, dst = (end.packed for end in ends)
        segment = build.tcp(*ports, flags, b"", data, seq, ack)
        packet = build.ip(src, dst, TCP, build.summed(src, dst, TCP, segment))
        macs = [(DR, WEB_MAC), (OURS, PEER) if self.nat else (DR, DB_MAC)][side]
        frame = build.ethernet(macs[0].packed, macs[1].packed, 0x0800, packet)
        flags = lib.DP_CSUM_PARTIAL if gso_size else 0
        port = ("web", "host" if self.nat else "db")[side]
        batch = Batch(1, 1 << 17).load([frame], port, flags)
        batch.frames["gso_size"], batch.frames["gso_type"] = gso_size, gso_size > 0
        result = self.engine.process(batch, now=self.now)
        assert result.verdict_of(0) is Verdict.FORWARD
        if self.nat and not self.binding:
            self.binding = int.from_bytes(result.frame(0)[34:36])

    def say(self, side: int, flags: int, data: bytes = b"") -> None:
        """The next segment of that side, acknowledging all of the other's."""
        self.forge(side, flags, self.next[side], self.next[1 - side], data)
        self.next[side] += len(data) + bool(flags & SYN) + bool(flags & FIN)

    def open(self) -> "Talk":
        self.say(0, SYN)
        self.say(1, SYN | ACK)
        self.say(0, ACK)
        return self

    @property
    def flow(self) -> Flow:
        (flow,) = self.engine.flows()
        return flow

    @property
    def state(self) -> str:
        flow = self.flow
        if flow.half_open:
            return "half-open"
        return "closing" if flow.closing else "established"

    def is_kept(self, seconds: float) -> bool:
        """Whether the flow is still there after so long a silence. It is gone afterwards, if so."""
        self.engine.expire(now=self.flow.last_ns + int(seconds * SECOND))
        return bool(self.engine.flows())


@pytest.fixture(params=[False, True], ids=["local", "nat"])
def talk(request: pytest.FixtureRequest) -> Iterator[Talk]:
    made = Talk(nat=request.param)
    yield made
    made.engine.close()


# ---- the timers --------------------------------------------------------------------------------


@pytest.mark.conformance("N2", "N4", "T19")
@pytest.mark.parametrize(
    ("segments", "state", "seconds"),
    [
        ([(0, SYN)], "half-open", 30),
        ([(0, ACK)], "half-open", 30),
        ([(0, SYN), (1, SYN | ACK)], "established", 7440),
        ([(0, ACK), (1, ACK)], "established", 7440),
        ([(0, SYN), (1, SYN | ACK), (0, FIN | ACK)], "closing", 240),
        ([(0, SYN), (1, SYN | ACK), (1, FIN | ACK)], "closing", 240),
        ([(0, FIN | ACK), (1, FIN | ACK)], "closing", 240),
        ([(0, SYN), (1, SYN | ACK), (0, ACK), (1, FIN | ACK)], "closing", 240),
        ([(0, SYN), (1, SYN | ACK), (0, RST | ACK)], "closing", 240),
        ([(0, SYN), (1, RST | ACK)], "closing", 240),
    ],
)
def test_a_flow_stays_for_its_time_and_no_longer(
    talk: Talk, segments: list[tuple[int, int]], state: str, seconds: int
) -> None:
    for side, flags in segments:
        talk.say(side, flags)
    assert talk.state == state
    assert talk.is_kept(seconds)
    assert not talk.is_kept(seconds + 0.001)


@pytest.mark.conformance("N2", "T19")
def test_each_segment_makes_the_time_anew_and_a_syn_of_a_half_open_flow_too(talk: Talk) -> None:
    for _ in range(5):
        talk.forge(0, SYN, 1000)
        talk.now += 29 * SECOND
        talk.engine.expire(now=talk.now)
    talk.open()
    for side in (0, 1) * 3:
        talk.now += 7400 * SECOND
        talk.say(side, ACK, b"still here")
    assert talk.state == "established"


def test_timers_of_the_policy_come_before_those_of_the_engine() -> None:
    with Engine(timers=Timers(tcp_half_open=7, udp=100)) as engine:
        talk = Talk()
        talk.engine.close()
        talk.engine = engine
        for timers, seconds in ((Timers(), 7), (Timers(tcp_half_open=2), 2), (Timers(udp=9), 7)):
            engine.commit(node(timers=timers))
            talk.forge(0, SYN, 1000)
            assert talk.is_kept(seconds) and not talk.is_kept(seconds + 1)
            talk.now += 60 * SECOND


@pytest.mark.parametrize("seconds", [0, -1, (1 << 31) + 1])
def test_impossible_timers_are_refused(seconds: int) -> None:
    with Engine() as engine, pytest.raises(DocumentError, match=r"tcp_half_open.*not a possible"):
        engine.commit(node(timers=Timers(tcp_half_open=seconds)))


def test_a_change_of_timers_is_told() -> None:
    with Engine() as engine:
        engine.commit(node())
        assert "tcp_half_open 5 s" in engine.plan(node(timers=Timers(tcp_half_open=5))).text()


# ---- resets ------------------------------------------------------------------------------------


AROUND = [-(1 << 31), -REACH, -65536, -1461, -2, -1, 0, 1, 2, 1460, 65535, REACH, (1 << 31) - 1]


def with_data_under_way(isn: int, side: int) -> tuple[Talk, set[int]]:
    """The peer has acknowledged 40 bytes of the side's 100; and the numbers that reset then."""
    talk = Talk((isn, isn + 777)).open()
    start = talk.next[side]
    talk.say(side, ACK, bytes(40))
    talk.say(1 - side, ACK)
    talk.say(side, ACK, bytes(60))
    return talk, {(start + 40) % 2**32, (start + 100) % 2**32}


@pytest.mark.conformance("N5", "T9")
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("isn", ISNS)
def test_a_reset_must_have_the_number_that_is_waited_for(isn: int, side: int) -> None:
    for off in AROUND:
        for base in (40, 100):
            talk, exact = with_data_under_way(isn, side)
            talk.now += 100 * SECOND
            before = talk.flow.last_ns
            seq = (isn + 777 * side + 1 + base + off) % 2**32
            talk.forge(side, RST, seq)
            hit = seq in exact
            assert (talk.state, talk.flow.last_ns) == (
                ("closing", talk.now) if hit else ("established", before)
            )
            talk.engine.close()


@pytest.mark.conformance("N5", "T9")
def test_a_refused_connection_is_kept_by_no_guess(talk: Talk) -> None:
    """Of the side that refused it, the reset is all that was heard: its number counts, not zero."""
    talk.say(0, SYN)
    talk.forge(1, RST | ACK, 77777, talk.next[0])
    assert talk.state == "closing"
    before = talk.flow.last_ns
    talk.now += SECOND
    talk.forge(1, RST, 0)
    assert talk.flow.last_ns == before


@pytest.mark.conformance("N5", "T9")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 1),
    st.lists(
        st.tuples(
            st.sampled_from([RST, RST | ACK, FIN | ACK, SYN, FIN, SYN | RST]),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
        ),
        max_size=60,
    ),
)
def test_who_does_not_know_the_numbers_moves_nothing(
    isn: int, side: int, forged: list[tuple[int, int, int]]
) -> None:
    talk, exact = with_data_under_way(isn, side)
    before = talk.flow.last_ns
    talk.now += SECOND
    for flags, seq, ack in forged:
        if seq not in exact and (seq + 1) % 2**32 not in exact:
            talk.forge(side, flags, seq, ack)
    assert (talk.state, talk.flow.last_ns) == ("established", before)
    talk.engine.close()


@pytest.mark.conformance("N5", "T9")
def test_forged_data_does_not_tell_a_reset_where_to_aim(talk: Talk) -> None:
    """Whoever could move the numbers with one segment could hit them with the next."""
    talk.open()
    for side in (0, 1):
        mine, theirs = talk.next[side], talk.next[1 - side]
        for off in (REACH, 1 << 24, 1 << 31, (1 << 32) - REACH - 5000):
            talk.forge(side, ACK, mine + off, theirs, b"far")
            talk.forge(side, RST, mine + off + 3)
        for off in (1, 5000, REACH - 4):
            for ack in (theirs + REACH, theirs + (1 << 31), theirs - REACH - 1):
                talk.forge(side, ACK, mine + off, ack, b"near")
                talk.forge(side, RST, mine + off + 4)
                talk.forge(1 - side, RST, ack)
            talk.forge(side, SYN, mine + off, theirs)
            talk.forge(side, RST, mine + off + 1)
    assert talk.state == "established"
    talk.say(1, RST)
    assert talk.state == "closing"


@pytest.mark.conformance("N5")
def test_a_challenged_peer_resets_for_good(talk: Talk) -> None:
    """RFC 5961 section 3.2: after a reset that missed, the exact one follows the challenge."""
    talk.open()
    talk.forge(1, RST, talk.next[1] + 500)
    assert talk.state == "established"
    talk.say(0, ACK)
    talk.say(1, RST)
    assert talk.state == "closing"


@pytest.mark.conformance("N2")
def test_a_refused_connection_is_closing_only_if_the_refusal_knows_the_syn(talk: Talk) -> None:
    talk.say(0, SYN)
    for ack in (0, 1000, 1002, 1001 + REACH):
        talk.forge(1, RST | ACK, 0, ack)
        assert talk.state == "half-open"
    talk.forge(1, RST, 1001)
    assert talk.state == "half-open"
    talk.forge(1, RST | ACK, 0, 1001)
    assert talk.state == "closing"


# ---- FIN, SYN, and who is seen -----------------------------------------------------------------


@pytest.mark.conformance("N5", "T9")
@pytest.mark.parametrize("isn", ISNS)
def test_a_fin_must_follow_what_its_side_has_sent(isn: int) -> None:
    for off in (-(1 << 31), -REACH, -200, -2, 1, 2, 1460, REACH, (1 << 31) - 1):
        talk = Talk((isn, 7)).open()
        talk.say(0, ACK, bytes(100))
        talk.forge(0, FIN, talk.next[0] + off, talk.next[1] + 1)
        assert talk.state == "established", off
        talk.say(0, FIN | ACK)
        assert talk.state == "closing"
        talk.engine.close()


@pytest.mark.conformance("N2", "T9")
def test_a_syn_does_not_reset_what_stands(talk: Talk) -> None:
    talk.open()
    for side in (0, 1):
        for seq in (0, talk.next[side], talk.next[side] + 1):
            talk.forge(side, SYN, seq)
    assert talk.state == "established"
    talk.say(0, ACK, b"goes on")
    talk.say(1, FIN | ACK)
    assert talk.state == "closing"


@pytest.mark.conformance("N2")
@pytest.mark.parametrize("end", ["reset", "finished", "silence"])
def test_a_syn_begins_anew_what_was_over(talk: Talk, end: str) -> None:
    talk.open()
    if end == "silence":
        talk.now += 240 * SECOND
        talk.forge(0, SYN, 77)
        assert talk.state == "established"
        talk.now += 1
    else:
        talk.say(1, RST if end == "reset" else FIN | ACK)
    talk.next = [77, 99]
    talk.say(0, SYN)
    assert talk.state == "half-open"
    talk.forge(1, SYN | ACK, 99, 4711)
    assert talk.state == "half-open"
    talk.say(1, SYN | ACK)
    assert talk.state == "established"


@pytest.mark.conformance("N2")
def test_simultaneous_open(talk: Talk) -> None:
    talk.forge(0, SYN, 1000)
    talk.forge(1, SYN, 5000)
    assert talk.state == "half-open"
    talk.forge(0, SYN | ACK, 1000, 5001)
    talk.forge(1, SYN | ACK, 5000, 1001)
    assert talk.state == "established"
    talk.next = [1001, 5001]
    talk.say(1, RST)
    assert talk.state == "closing"


@pytest.mark.conformance("N2", "N5", "T7")
def test_only_an_answer_ends_being_half_open(talk: Talk) -> None:
    talk.say(0, SYN)
    for flags, ack in ((ACK, 1 << 31), (SYN | ACK, 1002), (SYN | ACK, 1001 - REACH), (SYN, 1001)):
        before = talk.flow.last_ns
        talk.now += SECOND
        talk.forge(1, flags, 4711, ack)
        assert (talk.state, talk.flow.last_ns) == ("half-open", before)
    talk.say(1, SYN | ACK)
    assert talk.state == "established"


@pytest.mark.conformance("N4")
def test_a_flow_may_be_picked_up_in_the_middle(talk: Talk) -> None:
    """As Linux with tcp_loose: after a restart of ours connections go on."""
    talk.say(0, ACK, b"in the middle")
    assert talk.state == "half-open"
    talk.say(1, ACK, b"of a long talk")
    assert talk.state == "established"
    talk.say(0, FIN | ACK)
    assert talk.state == "closing"


@pytest.mark.conformance("T9")
def test_a_forged_segment_of_a_half_open_flow_is_healed_by_the_next(talk: Talk) -> None:
    talk.say(0, SYN)
    talk.forge(0, SYN, 1 << 30)
    talk.forge(0, RST, (1 << 30) + 1)
    talk.forge(0, FIN | ACK, (1 << 30) + 1, 1)
    talk.say(1, SYN | ACK)
    assert talk.state == "half-open"
    talk.say(0, ACK)
    talk.say(1, ACK, b"welcome")
    assert talk.state == "established"


# ---- what is counted ---------------------------------------------------------------------------


@pytest.mark.conformance("N5")
def test_a_super_frame_counts_whole(talk: Talk) -> None:
    talk.open()
    talk.forge(0, ACK, talk.next[0], talk.next[1], bytes(40_000), gso_size=1000)
    talk.forge(0, RST, talk.next[0] + 1000)
    assert talk.state == "established"
    talk.forge(0, RST, talk.next[0] + 40_000)
    assert talk.state == "closing"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from([0, 1, 1200]),
            st.sampled_from(["passes", "passes", "lost before us", "twice"]),
        ),
        max_size=40,
    ),
    st.booleans(),
)
@pytest.mark.conformance("N2", "N5")
def test_loss_and_reordering_do_not_keep_a_flow_from_closing(
    isns: tuple[int, int], events: list[tuple[int, int, str]], first: bool
) -> None:
    """The numbers follow any real conversation, so that its end is believed."""
    talk = Talk(isns).open()
    missing: tuple[list[int], list[int]] = [], []  # where the holes of each side's bytes are
    sizes: dict[tuple[int, int], int] = {}

    def send(side: int, seq: int) -> None:
        ack = min(missing[1 - side], default=talk.next[1 - side])
        talk.forge(side, ACK, seq, ack, bytes(sizes[side, seq]))

    for side, size, fate in events:
        seq = talk.next[side]
        sizes[side, seq] = size
        talk.next[side] += size
        if fate == "lost before us" and size:
            missing[side].append(seq)
        else:
            for _ in range(1 + (fate == "twice")):
                send(side, seq)
    for side in (0, 1) if first else (1, 0):
        while missing[side]:
            send(side, missing[side][0])
            del missing[side][0]
    assert talk.state == "established"
    talk.say(0, FIN | ACK)
    assert talk.state == "closing"
    talk.engine.close()


# ---- ICMP --------------------------------------------------------------------------------------


@pytest.mark.conformance("N2", "N3", "N5", "T9")
@pytest.mark.parametrize("kind", [(3, 1), (3, 3), (3, 4), (4, 0), (5, 1), (11, 0), (12, 0)])
@pytest.mark.parametrize("quotes", ["the flow", "another port"])
def test_icmp_errors_move_no_state(talk: Talk, kind: tuple[int, int], quotes: str) -> None:
    talk.open()
    before = talk.flow
    talk.now += 100 * SECOND
    src, dst = (OUTSIDE, LINK) if talk.nat else (DB, WEB)
    port = (talk.binding if talk.nat else 40000) + (quotes != "the flow")
    head = build.tcp(port, 80, RST, seq=before.packets[0])[:8]
    quote = build.ip(dst.packed, src.packed, TCP, head)
    message = bytes([*kind, 0, 0]) + bytes(4) + quote
    error = build.ip(src.packed, dst.packed, 1, build.summed(src.packed, dst.packed, 1, message))
    macs = (OURS, PEER) if talk.nat else (DR, DB_MAC)
    frame = build.ethernet(macs[0].packed, macs[1].packed, 0x0800, error)
    talk.engine.process_one(frame, "host" if talk.nat else "db", now=talk.now)
    assert before in talk.engine.flows()
    assert all(flow.protocol == 1 for flow in talk.engine.flows() if flow != before)


def test_the_policy_may_change_under_a_connection() -> None:
    """What is known of the numbers outlives a re-simulation."""
    talk = Talk(nat=True).open()
    blue = replace(node().networks[0], mtu=1400)
    talk.engine.commit(replace(node(), networks=(blue,)))
    talk.forge(1, RST, talk.next[1] + 1)
    assert talk.state == "established"
    assert talk.engine.stats().totals["reconciled"] == 1
    talk.say(1, RST)
    assert talk.state == "closing"
