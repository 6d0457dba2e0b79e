"""Super-frames, plainly: one packet after the other, each rule a line.

Cutting: tcp_gso_segment, __udp_gso_segment and inet_gso_segment of Linux. Joining:
inet_gro_receive, tcp_gro_receive and udp_gro_receive_segment.
"""

from dataclasses import dataclass, field

from tests.reference.checksum import checksum, fold, pseudo_header, words
from tests.reference.verdict import Drop
from tests.reference.wire import ETHERNET, IP4, TCP, UDP, Packet, parse, unmapped

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << n for n in range(8))
UDP_MOST, LONGEST = 64, 65_535


@dataclass
class Joined:
    """A frame and the sizes of the payloads in it; more than one: a super-frame."""

    first: bytes  # as it came
    payloads: list[bytes]
    ends: int = 0  # FIN and PSH of the last one
    ids: list[int] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """With a partial checksum, if it is of many."""
        if len(self.payloads) == 1:
            return self.first
        packet = _packet(self.first)
        data = packet.data[: ETHERNET + packet.headers_len]
        if packet.flow.proto == TCP:
            data[packet.l4 + 13] |= self.ends
        whole = _sized(packet, data, b"".join(self.payloads))
        at = packet.check_at
        assert at is not None
        ends = unmapped(packet.flow.src), unmapped(packet.flow.dst)
        pseudo = pseudo_header(*ends, packet.flow.proto, len(whole) - packet.l4)
        whole[at : at + 2] = fold(sum(words(pseudo))).to_bytes(2)
        return bytes(whole)


def _packet(frame: bytes) -> Packet:
    packet = parse(frame)
    assert isinstance(packet, Packet)
    return packet


def _sized(packet: Packet, headers: bytearray, payload: bytes) -> bytearray:
    """Headers and payload, all lengths right, and the IPv4 header's checksum."""
    data = headers + payload
    if packet.version == 4:
        data[16:18] = (len(data) - ETHERNET).to_bytes(2)
        data[24:26] = bytes(2)
        data[24:26] = checksum(bytes(data[ETHERNET : packet.l4])).to_bytes(2)
    else:
        data[18:20] = (len(data) - ETHERNET - 40).to_bytes(2)
    if packet.flow.proto == UDP:
        data[packet.l4 + 4 : packet.l4 + 6] = (len(data) - packet.l4).to_bytes(2)
    return data


def cut(frame: bytes, size: int) -> list[bytes]:
    """The packets of a super-frame."""
    packet = _packet(frame)
    head = ETHERNET + packet.headers_len
    payload = frame[head:]
    starts = range(0, len(payload), size)
    return [_segment(packet, head, payload[at : at + size], at, i) for i, at in enumerate(starts)]


def _segment(packet: Packet, head: int, payload: bytes, at: int, i: int) -> bytes:
    headers = bytearray(packet.data[:head])
    l4, tcp = packet.l4, packet.flow.proto == TCP
    if packet.version == 4:
        ident = int.from_bytes(headers[18:20]) + i
        headers[18:20] = (ident & 0xFFFF).to_bytes(2)
    if tcp:
        seq = int.from_bytes(headers[l4 + 4 : l4 + 8]) + at
        headers[l4 + 4 : l4 + 8] = (seq & 0xFFFFFFFF).to_bytes(4)
        headers[l4 + 13] &= 0xFF if at + len(payload) + head == len(packet.data) else ~(FIN | PSH)
        headers[l4 + 13] &= 0xFF if i == 0 else ~CWR
    data = _sized(packet, headers, payload)
    return summed(packet, data)


def summed(packet: Packet, data: bytearray) -> bytes:
    """With a right transport checksum."""
    at = packet.check_at
    assert at is not None
    data[at : at + 2] = bytes(2)
    ends = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    pseudo = pseudo_header(*ends, packet.flow.proto, len(data) - packet.l4)
    found = checksum(pseudo + bytes(data[packet.l4 :]))
    found = found or (0xFFFF if packet.flow.proto == UDP else 0)
    data[at : at + 2] = found.to_bytes(2)
    return bytes(data)


def join(frames: list[bytes]) -> list[Joined]:
    """What is received at once, joined where it follows on."""
    out: list[Joined] = []
    latest: dict[object, Joined] = {}  # by flow: what its next packet may be joined to
    for frame in frames:
        packet = _plain(frame)
        if packet is None:
            out.append(Joined(frame, [b""]))
            if _is_fragment(frame):
                latest.clear()
            continue
        flow = packet.flow
        head = ETHERNET + packet.headers_len
        payload = bytes(packet.data[head:])
        before = latest.pop(flow, None)
        if before is not None and _continues(before, packet, payload):
            before.payloads.append(payload)
            before.ids.append(_ident(packet))
            before.ends |= _flags(packet) & (FIN | PSH)
            joined = before
        else:
            joined = Joined(frame, [payload], ids=[_ident(packet)])
            out.append(joined)
        ended = len(payload) < len(joined.payloads[0]) or _flags(packet) & (FIN | PSH)
        if not ended and _may_begin(packet, payload):
            latest[flow] = joined
    return out


def _is_fragment(frame: bytes) -> bool:
    if frame[12:14] == IP4.to_bytes(2):
        return len(frame) >= 34 and bool(int.from_bytes(frame[20:22]) & 0x3FFF)
    return frame[12:14] == b"\x86\xdd" and len(frame) >= 54 and frame[20] == 44


def _plain(frame: bytes) -> Packet | None:
    """TCP or UDP behind IP without options or extensions, and nothing behind them."""
    try:
        packet = parse(frame)
    except Drop:
        return None
    if not isinstance(packet, Packet) or packet.fragment or packet.flow.proto not in (TCP, UDP):
        return None
    plain = packet.l4 == ETHERNET + (20 if packet.version == 4 else 40)
    return packet if plain and len(packet.data) == len(frame) else None


def _flags(packet: Packet) -> int:
    return packet.data[packet.l4 + 13] if packet.flow.proto == TCP else 0


def _ident(packet: Packet) -> int:
    return int.from_bytes(packet.data[18:20]) if packet.version == 4 else 0


def _may_begin(packet: Packet, payload: bytes) -> bool:
    if packet.flow.proto == UDP:
        return _may_be_joined(packet, payload)
    return bool(payload) and not _flags(packet) & (SYN | RST | URG)


def _may_be_joined(packet: Packet, payload: bytes) -> bool:
    l4 = packet.l4
    if packet.flow.proto == UDP:
        whole = int.from_bytes(packet.data[l4 + 4 : l4 + 6]) == len(packet.data) - l4
        return bool(payload) and whole and packet.data[l4 + 6 : l4 + 8] != b"\0\0"
    return bool(payload) and not _flags(packet) & (SYN | RST | URG | CWR)


def _continues(before: Joined, packet: Packet, payload: bytes) -> bool:
    first = _packet(before.first)
    sent = sum(map(len, before.payloads))
    return (
        _may_be_joined(packet, payload)
        and len(payload) <= len(before.payloads[0])
        and packet.data[:ETHERNET] == first.data[:ETHERNET]
        and _same_ip(first, packet)
        and _ids_follow(before, packet)
        and (packet.flow.proto == UDP or _same_tcp(first, packet, sent))
        and (packet.flow.proto == TCP or len(before.payloads) < UDP_MOST)
        and first.headers_len + sent + len(payload) <= LONGEST
        and _is_right(first)
        and _is_right(packet)
    )


def _same_ip(a: Packet, b: Packet) -> bool:
    x, y = a.data[ETHERNET:], b.data[ETHERNET:]
    if a.version == 4:
        return x[:2] == y[:2] and x[6:10] == y[6:10]
    return x[:4] == y[:4] and x[7] == y[7]


def _ids_follow(before: Joined, packet: Packet) -> bool:
    """Counting up, or all the same under DF."""
    if packet.version == 6:
        return True
    ids = [*before.ids, _ident(packet)]
    if packet.dont_fragment and len(set(ids)) == 1:
        return True
    return ids == [(ids[0] + i) & 0xFFFF for i in range(len(ids))]


def _same_tcp(first: Packet, packet: Packet, sent: int) -> bool:
    a, b = first.data[first.l4 :], packet.data[packet.l4 :]
    head = (a[12] >> 4) * 4
    seq = (int.from_bytes(a[4:8]) + sent) & 0xFFFFFFFF
    return (
        seq == int.from_bytes(b[4:8])
        and a[8:13] == b[8:13]
        and not (a[13] ^ b[13]) & ~(CWR | FIN | PSH)
        and a[14:16] == b[14:16]
        and a[18:head] == b[18:head]
    )


def _is_right(packet: Packet) -> bool:
    """Its checksum, complete or the pseudo-header's alone."""
    at = packet.check_at
    assert at is not None
    ends = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    pseudo = pseudo_header(*ends, packet.flow.proto, len(packet.data) - packet.l4)
    partial = int.from_bytes(packet.data[at : at + 2]) == fold(sum(words(pseudo)))
    return partial or checksum(pseudo + bytes(packet.data[packet.l4 :])) == 0
