"""Well-formed frames from fields, and the frame that answers one. Addresses are 4 or 16 bytes."""

from tests.reference.checksum import checksum, pseudo_header
from tests.reference.tcp import segment_of
from tests.reference.verdict import Drop
from tests.reference.wire import (
    ARP,
    ETHERNET,
    ICMP,
    ICMP6,
    IP4,
    IP6,
    TCP,
    UDP,
    Packet,
    mirrored,
    parse,
    unmapped,
)

BROADCAST_MAC = b"\xff" * 6
ACK = 0x10


def ethernet(dst: bytes, src: bytes, kind: int, payload: bytes) -> bytes:
    return dst + src + kind.to_bytes(2) + payload


def arp(opcode: int, sha: bytes, spa: bytes, tpa: bytes) -> bytes:
    """A whole frame, broadcast."""
    body = b"\0\1\x08\0\6\4" + opcode.to_bytes(2) + sha + spa + bytes(6) + tpa
    return ethernet(BROADCAST_MAC, sha, ARP, body)


def ip(
    src: bytes,
    dst: bytes,
    proto: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    fragment: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    """`fragment`: IPv4 flags and offset as on the wire. `options`: IPv4 options, or IPv6 extension
    headers, whose own type is then `proto`."""
    if len(src) == 16:
        front = b"\x60\0\0\0" + (len(options) + len(payload)).to_bytes(2) + bytes([proto, ttl])
        front = bytes([0x60 | tos >> 4, (tos & 15) << 4]) + front[2:]
        return front + src + dst + options + payload
    size = 20 + len(options)
    front = bytes([0x40 | size // 4, tos]) + (size + len(payload)).to_bytes(2)
    front += b"\0\1" + fragment.to_bytes(2) + bytes([ttl, proto])
    check = checksum(front + src + dst + options)
    return front + check.to_bytes(2) + src + dst + options + payload


def summed(src: bytes, dst: bytes, proto: int, segment: bytes) -> bytes:
    """The segment with its checksum made anew, if its protocol is one we know."""
    offset = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}.get(proto)
    if offset is None or len(segment) < offset + 2:
        return segment
    zeroed = segment[:offset] + b"\0\0" + segment[offset + 2 :]
    pseudo = b"" if proto == ICMP else pseudo_header(src, dst, proto, len(segment))
    check = checksum(pseudo + zeroed)
    if proto == UDP:
        check = check or 0xFFFF
    return zeroed[:offset] + check.to_bytes(2) + zeroed[offset + 2 :]


def tcp(
    sport: int,
    dport: int,
    flags: int,
    options: bytes = b"",
    data: bytes = b"",
    seq: int = 0,
    ack: int = 0,
) -> bytes:
    """Without checksum; `options` a multiple of 4 bytes. Numbers wrap."""
    ports = sport.to_bytes(2) + dport.to_bytes(2)
    numbers = (seq % 2**32).to_bytes(4) + (ack % 2**32).to_bytes(4)
    return ports + numbers + bytes([(20 + len(options)) << 2, flags]) + bytes(6) + options + data


def udp(sport: int, dport: int, data: bytes = b"") -> bytes:
    return sport.to_bytes(2) + dport.to_bytes(2) + (8 + len(data)).to_bytes(2) + b"\0\0" + data


def icmp(kind: int, code: int, ident: int, data: bytes = b"") -> bytes:
    """`data` follows the sequence number 1."""
    return bytes([kind, code, 0, 0]) + ident.to_bytes(2) + b"\0\1" + data


def ip_type(packet: bytes) -> int:
    return IP4 if packet[0] >> 4 == 4 else IP6


def vxlan(src: bytes, dst: bytes, port: int, vni: int, inner: bytes, tos: int = 0) -> bytes:
    """A whole frame from the underlay, without UDP checksum over IPv4."""
    payload = b"\x08\0\0\0" + vni.to_bytes(3) + b"\0" + inner
    segment = udp(50000, port, payload)
    if len(src) == 16:
        segment = summed(src, dst, UDP, segment)
    packet = ip(src, dst, UDP, segment, tos=tos)
    return ethernet(bytes(6), bytes(6), ip_type(packet), packet)


def part(frame: bytes, begin: int, end: int, ident: int) -> bytes:
    """The fragment with bytes `begin` to `end` of what follows the IP header."""
    version = frame[ETHERNET] >> 4
    head = (frame[ETHERNET] & 15) * 4 if version == 4 else 40
    header, payload = frame[ETHERNET : ETHERNET + head], frame[ETHERNET + head :]
    more = end < len(payload)
    if version == 6:
        field = (begin | more).to_bytes(2)
        piece = bytes([header[6], 0]) + field + ident.to_bytes(4) + payload[begin:end]
        return frame[:ETHERNET] + header[:4] + len(piece).to_bytes(2) + b"\x2c" + header[7:] + piece
    total = (head + len(payload[begin:end])).to_bytes(2)
    place = (begin // 8 | more << 13).to_bytes(2)
    blank = header[:2] + total + ident.to_bytes(2) + place + header[8:10] + b"\0\0" + header[12:]
    header = blank[:10] + checksum(blank).to_bytes(2) + blank[12:]
    return frame[:ETHERNET] + header + payload[begin:end]


def reply_to(frame: bytes, tcp_flags: int = ACK, skew: int = 0, ack_skew: int = 0) -> bytes | None:
    """The receiver's answer: everything mirrored, checksums made anew. None: there is none.

    TCP goes on with the number that was acknowledged to it, and acknowledges what it got; each is
    off by its skew.
    """
    packet = parse(frame)
    if not isinstance(packet, Packet) or packet.fragment:
        return None
    flow = packet.flow.reply()
    segment = bytearray(packet.data[packet.l4 :])
    if flow.proto in (TCP, UDP):
        segment[0:4] = segment[2:4] + segment[0:2]
        if flow.proto == TCP:
            came = segment_of(packet)
            segment[4:8] = (((came.ack or 0) + skew) % 2**32).to_bytes(4)
            segment[8:12] = ((came.end + ack_skew) % 2**32).to_bytes(4)
            segment[13] = tcp_flags
    elif packet.check_at is not None:
        segment[0:2] = mirrored(flow.proto, packet.flow.dport).to_bytes(2)
    src, dst = unmapped(flow.src), unmapped(flow.dst)
    answer = ip(src, dst, flow.proto, summed(src, dst, flow.proto, bytes(segment)))
    return frame[6:12] + frame[0:6] + frame[12:ETHERNET] + answer


def next_after(frame: bytes, tcp_flags: int = ACK, skew: int = 0) -> bytes | None:
    """The segment that the sender sends after this one, `skew` bytes off. None: it is no TCP."""
    try:
        packet = parse(frame)
    except Drop:
        return None
    if not isinstance(packet, Packet) or packet.fragment or packet.flow.proto != TCP:
        return None
    segment = bytearray(packet.data[packet.l4 :])
    segment[4:8] = ((segment_of(packet).end + skew) % 2**32).to_bytes(4)
    segment[13] = tcp_flags
    src, dst = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    return frame[:ETHERNET] + ip(src, dst, TCP, summed(src, dst, TCP, bytes(segment)))


def error_about(frame: bytes) -> bytes | None:
    """The receiver's ICMP port unreachable, quoting what it got. None: not about this."""
    packet = parse(frame)
    if not isinstance(packet, Packet) or packet.later:
        return None
    src, dst = unmapped(packet.flow.dst), unmapped(packet.flow.src)
    proto, kind, code = (ICMP, 3, 3) if packet.version == 4 else (ICMP6, 1, 4)
    message = bytes([kind, code]) + bytes(6) + bytes(packet.data[ETHERNET:])[:500]
    answer = ip(src, dst, proto, summed(src, dst, proto, message), fragment=0)
    return frame[6:12] + frame[0:6] + frame[12:ETHERNET] + answer
