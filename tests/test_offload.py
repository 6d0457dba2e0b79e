"""Super-frames cut and joined: against the plain twin, and rule by rule against Linux's GRO."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.errors import EngineError
from dataplane.offload import ECN, TCP4, TCP6, Super, cut, join
from dataplane.offload import UDP as USO
from tests.reference import build, offload
from tests.reference.offload import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG
from tests.reference.wire import ETHERNET, IP4, IP6, TCP, UDP

MACS = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
V4 = bytes([10, 1, 1, 2]), bytes([10, 1, 2, 2])
V6 = bytes.fromhex("fd000001" + "00" * 11 + "02"), bytes.fromhex("fd000002" + "00" * 11 + "02")
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))
OPTIONS = [b"", TIMESTAMPS, TIMESTAMPS + b"\1\1\5\x0a" + bytes(8)]
DF = 0x4000


def frame(
    data: bytes,
    *,
    version: int = 4,
    proto: int = TCP,
    flags: int = ACK,
    seq: int = 1000,
    ack: int = 77,
    options: bytes = b"",
    ident: int = 0,
    fragment: int = DF,
    ttl: int = 64,
    tos: int = 0,
    sport: int = 40000,
) -> bytes:
    """A whole packet with right checksums."""
    ends = V4 if version == 4 else V6
    if proto == TCP:
        segment = build.tcp(sport, 80, flags, options, data, seq, ack)
    else:
        segment = build.udp(sport, 80, data)
    segment = build.summed(*ends, proto, segment)
    packet = bytearray(build.ip(*ends, proto, segment, ttl=ttl, tos=tos, fragment=fragment))
    if version == 4:
        packet[4:6], packet[10:12] = ident.to_bytes(2), bytes(2)
        packet[10:12] = offload.checksum(bytes(packet[:20])).to_bytes(2)
    return build.ethernet(*MACS, IP4 if version == 4 else IP6, bytes(packet))


def as_super(data: bytes, size: int) -> Super:
    """The frame said to be a super-frame, its checksum made partial."""
    packet = offload._packet(data)
    whole = offload.Joined(data, [b"", data[ETHERNET + packet.headers_len :]])
    tcp = packet.flow.proto == TCP
    kind = (TCP4 if packet.version == 4 else TCP6) if tcp else USO
    kind |= ECN if tcp and packet.data[packet.l4 + 13] & CWR else 0
    return Super(whole.data, kind, size, packet.l4, 16 if tcp else 6)


@st.composite
def supers(draw: st.DrawFn, most: int = 6000) -> Super:
    """Of TCP or UDP, of any size, id, options and flags that a host's kernel may send so."""
    proto = draw(st.sampled_from([TCP, TCP, UDP]))
    size = draw(st.integers(1, 1500) if most < 20_000 else st.integers(400, 1500))
    count = draw(st.integers(2, min(offload.UDP_MOST, most // size) if most // size > 2 else 2))
    last = draw(st.integers(1, size) | st.just(size))
    length = (count - 1) * size + last
    seed = draw(st.integers(0, 255))
    flags = draw(st.sets(st.sampled_from([PSH, FIN, ECE, CWR])).map(sum))
    data = bytes((seed + 7 * i + i // 251) & 0xFF for i in range(length))
    return as_super(
        frame(
            data,
            version=draw(st.sampled_from([4, 6])),
            proto=proto,
            flags=ACK | flags,
            seq=draw(st.integers(0, 2**32 - 1) | st.integers(2**32 - 5000, 2**32 - 1)),
            ack=draw(st.integers(0, 2**32 - 1)),
            options=draw(st.sampled_from(OPTIONS)),
            ident=draw(st.integers(0, 65_535) | st.integers(65_500, 65_535)),
            fragment=draw(st.sampled_from([DF, 0])),
            ttl=draw(st.integers(2, 255)),
            tos=draw(st.integers(0, 255)),
        ),
        size,
    )


ordinary = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=300,
)


@ordinary
@given(supers())
def test_a_super_frame_is_cut_as_the_twin_cuts_it(whole: Super) -> None:
    assert cut(whole) == offload.cut(whole.data, whole.size)


@ordinary
@given(supers())
def test_what_was_cut_is_joined_to_what_it_was(whole: Super) -> None:
    assert join(cut(whole)) == [whole]


@ordinary
@given(supers(), st.sampled_from([8, 50, 70]))
def test_outer_bytes_stand_before_each_packet(whole: Super, outer: int) -> None:
    front = bytes(range(outer))
    wrapped = Super(front + whole.data, whole.kind, whole.size, whole.start, whole.field, outer)
    packets = cut(wrapped)
    assert packets == [front + packet for packet in cut(whole)]
    assert join(packets, outer) == [wrapped]


def test_the_longest_packet() -> None:
    whole = as_super(frame(bytes(65_535 - 40)), 1400)
    assert join(cut(whole)) == [whole]
    packets = [*cut(whole), frame(bytes(1), seq=1000 + 65_495, ident=47)]
    assert join(packets) == [whole, Super(packets[-1])]


# ---- the rules of joining ----------------------------------------------------------------------


FIRST = {"data": b"a" * 100, "seq": 1000, "ident": 7}
NEXT = {"data": b"b" * 100, "seq": 1100, "ident": 8}


def pair(change: dict[str, object], first: dict[str, object] | None = None) -> list[bytes]:
    return [frame(**{**FIRST, **(first or {})}), frame(**{**NEXT, **change})]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flags": ACK | PSH},
        {"flags": ACK | FIN},
        {"data": b"b"},
        {"ident": 7},
    ],
    ids=str,
)
def test_what_follows_is_joined(change: dict[str, object]) -> None:
    packets = pair(change)
    joined = join(packets)
    assert [s.size for s in joined] == [100]
    assert joined[0].data[54:] == packets[0][54:] + packets[1][54:]
    assert joined[0].data[47] == packets[0][47] | packets[1][47]


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 1101},
        {"seq": 1000},
        {"ack": 78},
        {"flags": ACK | ECE},
        {"flags": ACK | CWR},
        {"flags": ACK | URG},
        {"flags": ACK | SYN},
        {"flags": ACK | RST},
        {"flags": 0},
        {"options": TIMESTAMPS},
        {"data": b"b" * 101},
        {"data": b""},
        {"ident": 9},
        {"fragment": 0},
        {"ttl": 63},
        {"tos": 1},
        {"tos": 3},
        {"sport": 40001},
        {"version": 6},
        {"proto": UDP},
    ],
    ids=str,
)
def test_what_does_not_follow_is_not(change: dict[str, object]) -> None:
    packets = pair(change)
    assert join(packets) == [Super(packet) for packet in packets]


@pytest.mark.parametrize("flags", [PSH, FIN, SYN, RST, URG])
def test_what_has_ended_is_not_continued(flags: int) -> None:
    packets = pair({"flags": ACK | flags & ~(PSH | FIN)}, {"flags": ACK | flags})
    assert join(packets) == [Super(packet) for packet in packets]


def test_an_answer_to_congestion_begins_a_super_frame() -> None:
    joined = join(pair({}, {"flags": ACK | CWR}))
    assert [(s.kind, s.size) for s in joined] == [(TCP4 | ECN, 100)]


def test_equal_ids_without_df_do_not_follow() -> None:
    packets = pair({"ident": 7, "fragment": 0}, {"fragment": 0})
    assert join(packets) == [Super(packet) for packet in packets]


def test_ids_count_or_stand_but_not_both() -> None:
    more = frame(b"c" * 100, seq=1200, ident=8)
    assert [len(s.data) for s in join([*pair({"ident": 7}), more])] == [254, 154]
    more = frame(b"c" * 100, seq=1200, ident=7)
    assert [len(s.data) for s in join([*pair({"ident": 7}), more])] == [354]


def test_a_shorter_packet_is_the_last() -> None:
    packets = [*pair({"data": b"b" * 99}), frame(b"c" * 99, seq=1199, ident=9)]
    assert [len(s.data) for s in join(packets)] == [253, 153]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_wrong_checksum_goes_alone(proto: int, place: int) -> None:
    packets = pair({"proto": proto}, {"proto": proto})
    packets[place] = packets[place][:-1] + b"\0"
    assert join(packets) == [Super(packet) for packet in packets]


def test_a_wrong_header_checksum_goes_alone() -> None:
    packets = pair({})
    packets[1] = packets[1][:24] + b"\0\0" + packets[1][26:]
    assert join(packets) == [Super(packet) for packet in packets]


def test_a_checksum_that_was_left_out_is_not_made_up() -> None:
    packets = [p[:40] + b"\0\0" + p[42:] for p in pair({"proto": UDP}, {"proto": UDP})]
    assert join(packets) == [Super(packet) for packet in packets]


def test_what_is_padded_goes_alone() -> None:
    packets = pair({})
    packets[0] += bytes(4)
    assert join(packets) == [Super(packet) for packet in packets]


@pytest.mark.parametrize("between", [{"data": b""}, {"ack": 99, "seq": 1100}, {"flags": RST}])
def test_nothing_is_joined_across_another_of_its_flow(between: dict[str, object]) -> None:
    first, last = pair({})
    middle = frame(**{**NEXT, **between})  # type: ignore[arg-type]
    assert join([first, middle, last]) == [Super(first), Super(middle), Super(last)]


def test_flows_are_joined_beside_each_other() -> None:
    other = pair({"sport": 41000}, {"sport": 41000})
    mixed = [packet for both in zip(pair({}), other, strict=True) for packet in both]
    assert [s.data for s in join(mixed)] == [join(pair({}))[0].data, join(other)[0].data]


def test_nothing_is_joined_across_a_fragment() -> None:
    first, last = pair({})
    middle = frame(b"x" * 64, proto=UDP, fragment=0x2000, sport=9)
    assert join([first, middle, last]) == [Super(first), Super(middle), Super(last)]


def test_64_datagrams_at_most() -> None:
    packets = [frame(b"data", proto=UDP, ident=i) for i in range(70)]
    assert [len(s.data) for s in join(packets)] == [42 + 64 * 4, 42 + 6 * 4]


Change = Callable[[bytes], bytes]


@st.composite
def arrivals(draw: st.DrawFn) -> list[bytes]:
    """Packets of a few flows, mostly in order, now and then damaged, lost, twice, or swapped."""
    streams = [cut(draw(supers(most=2000))) for _ in range(draw(st.integers(1, 3)))]
    packets: list[bytes] = []
    while any(streams) and len(packets) < 60:
        stream = draw(st.sampled_from([s for s in streams if s]))
        packets.append(stream.pop(0))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(packets) - 1))
        kind = draw(st.sampled_from(["flip", "lose", "twice", "swap", "grow", "cut"]))
        packet = packets[at]
        if kind == "flip" and packet:
            byte = draw(st.integers(0, min(90, len(packet) - 1)))
            packet = (
                packet[:byte]
                + bytes([packet[byte] ^ 1 << draw(st.integers(0, 7))])
                + (packet[byte + 1 :])
            )
            packets[at] = packet
        elif kind == "lose" and len(packets) > 1:
            del packets[at]
        elif kind == "twice":
            packets.insert(at, packet)
        elif kind == "swap":
            packets[at], packets[at - 1] = packets[at - 1], packets[at]
        elif kind == "grow":
            packets[at] = packet + b"\0"
        else:
            packets[at] = packet[: draw(st.integers(0, len(packet)))]
    return packets


@ordinary
@given(arrivals())
def test_packets_are_joined_as_the_twin_joins_them(packets: list[bytes]) -> None:
    assert [s.data for s in join(packets)] == [j.data for j in offload.join(packets)]


@ordinary
@given(arrivals())
def test_what_was_joined_is_cut_to_what_came(packets: list[bytes]) -> None:
    """Every packet once; equal but for ids under DF, which say nothing then (RFC 6864)."""
    out = [p for s in join(packets) for p in (cut(s) if s.size else [s.data])]
    assert sorted(map(_without_id, out)) == sorted(map(_without_id, packets))


def _without_id(packet: bytes) -> bytes:
    if packet[12:14] != b"\x08\0" or len(packet) < 34 or not packet[20] & 0x40:
        return packet
    return packet[:18] + bytes(2) + packet[20:24] + bytes(2) + packet[26:]


# ---- callers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        Super(frame(b"data")),
        Super(frame(b"data"), TCP4, 2, 500, 16),
        Super(frame(b"data"), TCP4, 2, 10, 16),
        Super(frame(b"data"), TCP4, 2, 34, 16, outer=71),
        Super(b"", TCP4, 2, 34, 16),
        Super(frame(b"data", version=6), TCP6, 2, 34, 16),
    ],
    ids=range(6),
)
def test_what_is_no_super_frame_is_not_cut(bad: Super) -> None:
    with pytest.raises(EngineError):
        cut(bad)


def test_too_many_are_not_joined() -> None:
    with pytest.raises(EngineError):
        join([frame(b"data")] * 129)
