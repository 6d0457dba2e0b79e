"""What the dataplane says itself: ARP replies, echo replies, ICMP errors."""

from tests.reference.checksum import checksum, pseudo_header
from tests.reference.edit import edit
from tests.reference.related import is_icmp_error
from tests.reference.wire import (
    ECHO_REPLY,
    ETHERNET,
    ICMP,
    ICMP6,
    IP4,
    IP6,
    TCP,
    Arp,
    Packet,
    unmapped,
)

TTL = 64
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
LIMIT4, LIMIT6 = 576, 1280  # largest ICMP error (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4)


def arp(request: Arp, mac: bytes) -> bytes:
    """Opcode 2; the requester becomes the target (RFC 826). The frame keeps its length."""
    frame = request.frame
    requester = frame[22:32]
    reply = frame[14:20] + b"\0\2" + mac + frame[38:42] + requester
    return frame[6:12] + mac + frame[12:14] + reply + frame[42:]


def is_echo(packet: Packet) -> bool:
    return packet.flow.is_echo_request and not packet.fragment


def echo(packet: Packet, mac: bytes) -> bytes:
    """The same packet back, MAC and IP addresses swapped."""
    data, at = packet.data, ETHERNET + (12 if packet.version == 4 else 8)
    size = 4 if packet.version == 4 else 16
    data[0:12] = data[6:12] + mac
    data[at : at + 2 * size] = data[at + size : at + 2 * size] + data[at : at + size]
    edit(data, packet.ttl_at, bytes([TTL]), packet.ip_check_at)
    edit(data, packet.l4, bytes([ECHO_REPLY[packet.flow.proto]]), packet.l4 + 2)
    if data[packet.l4 + 2 : packet.l4 + 4] == b"\0\0":
        data[packet.l4 + 2 : packet.l4 + 4] = b"\xff\xff"  # right for all zeros, as right else
    return bytes(data)


def reset(packet: Packet) -> bytes | None:
    """What the destination would send if nothing listened there (RFC 9293 section 3.10.7.1)."""
    segment = packet.data[packet.l4 :]
    flags = segment[13]
    ends = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    whole = pseudo_header(*ends, TCP, len(segment)) + bytes(segment)
    if flags & RST or not (packet.partial or checksum(whole) == 0):
        return None
    length = len(segment) - (segment[12] >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
    if flags & ACK:
        seq, ack, control = bytes(segment[8:12]), bytes(4), RST
    else:
        ack = ((int.from_bytes(segment[4:8]) + length) % (1 << 32)).to_bytes(4)
        seq, control = bytes(4), RST | ACK
    ports = bytes(segment[2:4] + segment[0:2])
    front, rest = ports + seq + ack + bytes([5 << 4, control, 0, 0]), b"\0\0"
    ends = ends[1], ends[0]
    check = checksum(pseudo_header(*ends, TCP, 20) + front + b"\0\0" + rest)
    tcp = front + check.to_bytes(2) + rest
    if packet.version == 4:
        front = b"\x45\0\0\x28\0\0\x40\0" + bytes([TTL, TCP])
        ip = front + checksum(front + ends[0] + ends[1]).to_bytes(2)
    else:
        ip = b"\x60\0\0\0\0\x14" + bytes([TCP, TTL])
    frame = packet.data
    return bytes(frame[6:12] + frame[0:6] + frame[12:14]) + ip + ends[0] + ends[1] + tcp


KINDS = {  # IPv4 and IPv6: type and code
    "acl_reject": (b"\x03\x0d", b"\x01\x01"),
    "nat_exhausted": (b"\x03\x0d", b"\x01\x01"),
    "nat_table_full": (b"\x03\x0d", b"\x01\x01"),
    "lb_no_backend": (b"\x03\x03", b"\x01\x04"),
    "ttl_expired": (b"\x0b\x00", b"\x03\x00"),
    "too_big": (b"\x03\x04", b"\x02\x00"),
}


def error(packet: Packet, reason: str, mtu: int, src: bytes, mac: bytes) -> bytes | None:
    """An ICMP error to the sender, quoting its packet as it came; None where none may be sent."""
    if packet.later or is_icmp_error(packet.flow):
        return None
    kind = KINDS[reason][0 if packet.version == 4 else 1]
    make = _error4 if packet.version == 4 else _error6
    quote = bytes(packet.data[ETHERNET:])
    ip = make(kind, mtu.to_bytes(4), unmapped(src), unmapped(packet.flow.src), quote)
    ethertype = (IP4 if packet.version == 4 else IP6).to_bytes(2)
    return bytes(packet.data[6:12]) + mac + ethertype + ip


def _error4(kind: bytes, rest: bytes, src: bytes, dst: bytes, quote: bytes) -> bytes:
    body = rest + quote[: LIMIT4 - 28]
    icmp = kind + checksum(kind + b"\0\0" + body).to_bytes(2) + body
    front = b"\x45\0" + (20 + len(icmp)).to_bytes(2) + b"\0\0\0\0" + bytes([TTL, ICMP])
    return front + checksum(front + src + dst).to_bytes(2) + src + dst + icmp


def _error6(kind: bytes, rest: bytes, src: bytes, dst: bytes, quote: bytes) -> bytes:
    body = rest + quote[: LIMIT6 - 48]
    pseudo = pseudo_header(src, dst, ICMP6, 4 + len(body))
    icmp = kind + checksum(pseudo + kind + b"\0\0" + body).to_bytes(2) + body
    front = b"\x60\0\0\0" + len(icmp).to_bytes(2) + bytes([ICMP6, TTL])
    return front + src + dst + icmp
