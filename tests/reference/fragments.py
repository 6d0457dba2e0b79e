"""Datagrams in pieces: what is known of them, who waits for what, and how a router cuts one.

The rules: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722, RFC 6946; shared room as in
fragment.h.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.reference.checksum import checksum
from tests.reference.guard import Arrival
from tests.reference.site import UNDERLAY
from tests.reference.verdict import Drop
from tests.reference.wire import ETHERNET, FlowId, Packet, Part

MOST_GAPS = 16
LARGEST = 9728  # of a frame that can wait, outer headers included
SECOND = 1_000_000_000


class Held(Exception):
    """The frame waits for its datagram's first fragment."""


class Ready(NamedTuple):
    """A frame that comes out with another one; `flow` is that of its datagram."""

    frame: bytes
    port: str
    flags: int
    flow: FlowId


class Waiting(NamedTuple):
    frame: bytes
    port: str
    flags: int


class Place(NamedTuple):
    """Where a datagram comes in."""

    port: str
    vni: int


@dataclass
class Datagram:
    since: int
    place: Place
    flow: FlowId | None = None  # of the first fragment
    seen: set[int] = field(default_factory=set)  # units of 8 bytes
    end: int | None = None
    dead: bool = False
    waiting: list[Waiting] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.flow is not None and self.seen == set(range(self.end or 0))


class Fragments:
    def __init__(self, max_datagrams: int, max_kept: int) -> None:
        self.max_datagrams, self.max_kept = max_datagrams, max_kept
        self.datagrams: dict[tuple[object, ...], Datagram] = {}
        self.queue: list[Ready] = []

    @property
    def held(self) -> int:
        return sum(len(d.waiting) for d in self.datagrams.values()) + len(self.queue)

    def expire(self, now: int, seconds: int) -> int:
        """Returns how many that waited are given up."""
        late = [k for k, d in self.datagrams.items() if now - d.since > seconds * SECOND]
        return sum(len(self.datagrams.pop(key).waiting) for key in late)

    def judge(self, arrival: Arrival, arrived: bytes, flags: int, now: int) -> None:
        """Gives the packet the flow of its datagram. Raises Drop or Held."""
        packet = arrival.packet
        assert isinstance(packet, Packet) and packet.part
        part, place = packet.part, Place(arrival.port, arrival.vni)
        key = _key(arrival, packet, part)
        if key not in self.datagrams and not self._may_begin(place):
            raise Drop("fragment_room")
        d = self.datagrams.get(key, Datagram(now, place))
        if d.dead:
            raise Drop("fragment_overlap")
        waits = packet.later and d.flow is None
        if waits and not self._may_wait(place, len(arrived)):
            raise Drop("fragment_room")
        _see(d, part)
        self.datagrams[key] = d
        if waits:
            d.waiting.append(Waiting(arrived, arrival.port, flags))
            raise Held
        if d.flow is None:
            d.flow = packet.flow
            self.queue += [Ready(w.frame, w.port, w.flags, d.flow) for w in d.waiting]
            d.waiting = []
        take_flow(packet, d.flow)
        if d.complete:
            del self.datagrams[key]

    def _may_begin(self, place: Place) -> bool:
        others = [d.place for d in self.datagrams.values()]
        return len(others) < self.max_datagrams and _fair(others, place, self.max_datagrams)

    def _may_wait(self, place: Place, size: int) -> bool:
        others = [d.place for d in self.datagrams.values() for _ in d.waiting]
        return size <= LARGEST and self.held < self.max_kept and _fair(others, place, self.max_kept)


def _fair(others: list[Place], place: Place, most: int) -> bool:
    """A quarter is the most for an endpoint or the host; tunnels share with their network."""
    same = 1 if place.port == UNDERLAY else 0
    return sum(other[same] == place[same] for other in others) < (most + 3) // 4


def _key(arrival: Arrival, packet: Packet, part: Part) -> tuple[object, ...]:
    """Of IPv6 the first fragment alone says what the datagram is."""
    flow, outer = packet.flow, arrival.outer
    proto = flow.proto if packet.version == 4 else None
    return arrival.port, arrival.vni, outer and outer.src, flow.src, flow.dst, proto, part.ident


def _see(d: Datagram, part: Part) -> None:
    """Raises Drop where the part does not fit to what was seen."""
    units = set(range(part.at, part.at + (part.size + 7) // 8))
    end = max(units) + 1
    reach = max(d.seen, default=-1) + 1
    if d.end is not None:
        agrees = end == d.end if part.last else end <= d.end
    else:
        agrees = not part.last or end >= reach
    if not agrees or (units & d.seen and not units <= d.seen):
        d.dead, d.waiting = True, []
        raise Drop("fragment_overlap")
    if units <= d.seen:
        raise Drop("fragment_overlap")
    if len(_runs(d.seen | units)) > MOST_GAPS:
        raise Drop("fragment_room")
    d.seen |= units
    d.end = end if part.last else d.end


def _runs(units: set[int]) -> list[int]:
    """Where each run of adjacent units begins."""
    return sorted(u for u in units if u - 1 not in units)


def take_flow(packet: Packet, flow: FlowId) -> None:
    """As the first fragment says."""
    packet.flow = packet.flow._replace(proto=flow.proto, sport=flow.sport, dport=flow.dport)


# ---- cutting -------------------------------------------------------------------------------


def pieces(data: bytes, mtu: int) -> list[bytes]:
    """The IPv4 frame in frames of at most `mtu` bytes of IP each; empty where it cannot be cut."""
    if mtu < 68 or ETHERNET + mtu > LARGEST:
        return []
    header, payload = _header(data), data[ETHERNET + _length(data) :]
    field = int.from_bytes(header[6:8])
    offset, more = field & 0x1FFF, field & 0x2000
    out, at = [], 0
    while at < len(payload):
        head = header if not out else _copied(header)
        size = (mtu - len(head)) & ~7
        rest = at + size < len(payload) or more
        out.append(
            data[:ETHERNET]
            + _finished(head, len(payload[at : at + size]), (offset + at // 8) | (rest and 0x2000))
            + payload[at : at + size]
        )
        at += size
    return out


def _length(data: bytes) -> int:
    return (data[ETHERNET] & 15) * 4


def _header(data: bytes) -> bytes:
    return data[ETHERNET : ETHERNET + _length(data)]


def _copied(header: bytes) -> bytes:
    """With the options that every fragment has."""
    kept = b"".join(option for option in _options(header[20:]) if option[0] & 0x80)
    kept += bytes(-len(kept) % 4)
    return bytes([0x40 | 5 + len(kept) // 4]) + header[1:20] + kept


def _options(octets: bytes) -> Iterator[bytes]:
    while octets and octets[0]:
        size = 1 if octets[0] == 1 else octets[1]
        yield octets[:size]
        octets = octets[size:]


def _finished(header: bytes, size: int, field: int) -> bytes:
    total = (len(header) + size).to_bytes(2)
    blank = header[:2] + total + header[4:6] + field.to_bytes(2) + header[8:10] + b"\0\0"
    blank += header[12:]
    return blank[:10] + checksum(blank).to_bytes(2) + blank[12:]
