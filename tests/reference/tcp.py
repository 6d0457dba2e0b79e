"""What a TCP segment says of its flow, and whether it is believed (RFC 9293, RFC 5961)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference.wire import Packet

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
INITIATOR, RESPONDER, CLOSING = 1, 2, 4
BOTH = INITIATOR | RESPONDER
SIDES = (INITIATOR, RESPONDER)
REACH = 1 << 22  # bytes that may be on their way


@dataclass
class Side:
    """`next`: what it will send next; `ack`: the highest it acknowledged. None: not known."""

    next: int | None = None
    ack: int | None = None

    def begin(self, segment: "Segment") -> None:
        self.next, self.ack = segment.end, segment.ack


class Segment(NamedTuple):
    seq: int
    end: int
    ack: int | None
    fin: bool
    rst: bool
    opening: bool  # SYN without ACK


def segment_of(packet: Packet) -> Segment:
    tcp = packet.data[packet.l4 :]
    flags = tcp[13]
    seq = int.from_bytes(tcp[4:8])
    length = len(tcp) - (tcp[12] >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
    return Segment(
        seq,
        (seq + length) % 2**32,
        int.from_bytes(tcp[8:12]) if flags & ACK else None,
        bool(flags & FIN),
        bool(flags & RST),
        flags & (SYN | ACK) == SYN,
    )


def steps(start: int, end: int) -> int:
    """From one sequence number to another, forwards or backwards, whichever is shorter."""
    return (end - start + 2**31) % 2**32 - 2**31


def judge(state: int, half: int, sides: list[Side], s: Segment, rested: bool) -> int | None:
    """The flow's state after the segment; None: it is not believed. Moves `sides` on.

    `rested`: the flow was silent for longer than a closing one may be.
    """
    own, peer, me = sides[half], sides[1 - half], SIDES[half]
    both = state & BOTH == BOTH
    if state == 0:
        own.begin(s)
        return me
    if s.rst:
        if not _resets(state, own, peer, me, s):
            return None
        if not state & me:
            own.begin(s)
        return state | me | CLOSING
    if s.opening and (rested or state & CLOSING):
        own.begin(s)
        return me
    last = not both or own.next in (s.seq, s.end)  # nothing comes after a FIN
    if both:
        if s.opening:
            return None
        if s.fin and not last:
            return None
        _follow(own, peer, s)
    elif state & me:
        own.begin(s)
        return state
    else:
        if not _acknowledges(s, peer):
            return None
        own.begin(s)
    state |= me
    if not s.fin:
        return state
    return state | CLOSING if last else None


def _resets(state: int, own: Side, peer: Side, me: int, s: Segment) -> bool:
    if state & BOTH == BOTH:
        return s.seq in (own.next, peer.ack)
    if state & me:
        return False  # no one is there to believe it
    return s.seq == peer.ack or (s.ack is not None and s.ack == peer.next)


def _acknowledges(s: Segment, peer: Side) -> bool:
    assert peer.next is not None
    return s.ack is not None and (peer.next - s.ack) % 2**32 < REACH


def _near(known: int, told: int) -> bool:
    return -REACH <= steps(known, told) < REACH


def _follow(own: Side, peer: Side, s: Segment) -> None:
    """Both sides are seen. The next segment moves its side on; so does one that left a hole."""
    assert own.next is not None and peer.next is not None
    if s.seq != own.next:
        if s.ack is None or not _near(own.next, s.seq) or not _near(peer.next, s.ack):
            return
        if steps(own.next, s.end) <= 0:
            return
    own.next = s.end
    if s.ack is not None and (own.ack is None or steps(own.ack, s.ack) > 0):
        own.ack = s.ack
