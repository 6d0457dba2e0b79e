"""The inner frame: from bytes to fields, each length a claim that is checked (semantics 2)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference.checksum import checksum, fold, pseudo_header, words
from tests.reference.verdict import Drop

ETHERNET = 14
ARP, IP4, IP6 = 0x0806, 0x0800, 0x86DD
VLANS = (0x8100, 0x88A8, 0x9100)
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
MAPPED = b"\0" * 10 + b"\xff\xff"
ECHO_REQUEST = {ICMP: 8, ICMP6: 128}
ECHO_REPLY = {ICMP: 0, ICMP6: 129}


class FlowId(NamedTuple):
    """Addresses are 16 bytes. ICMP: dport is type and code, sport the echo id."""

    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int

    def reply(self) -> "FlowId":
        """Of the packets that come back."""
        if self.is_icmp:
            return self._replace(src=self.dst, dst=self.src, dport=mirrored(self.proto, self.dport))
        return FlowId(self.dst, self.src, self.proto, self.dport, self.sport)

    @property
    def is_icmp(self) -> bool:
        """ICMP of the packet's own family."""
        return self.proto == (ICMP if is_mapped(self.src) else ICMP6)

    @property
    def is_echo_request(self) -> bool:
        return self.is_icmp and self.dport == ECHO_REQUEST[self.proto] << 8

    @property
    def is_echo(self) -> bool:
        """Request or reply: its id is a port in all but name."""
        reply = self.is_icmp and self.dport == ECHO_REPLY[self.proto] << 8
        return reply or self.is_echo_request


def mirrored(proto: int, dport: int) -> int:
    """ICMP type and code of the answer: request and reply change places."""
    request, reply = ECHO_REQUEST[proto] << 8, ECHO_REPLY[proto] << 8
    return {request: reply, reply: request}.get(dport, dport)


@dataclass
class Arp:
    frame: bytes

    opcode = property(lambda self: self._int(20, 2))
    sha = property(lambda self: self.frame[22:28])
    spa = property(lambda self: MAPPED + self.frame[28:32])
    tpa = property(lambda self: MAPPED + self.frame[38:42])

    def _int(self, at: int, size: int) -> int:
        return int.from_bytes(self.frame[at : at + size])


class Part(NamedTuple):
    """Of a datagram: `at` in units of 8 bytes, `size` in bytes."""

    ident: int
    at: int
    size: int
    last: bool


@dataclass
class Packet:
    """An IP packet in its Ethernet frame; offsets count from the start of the frame."""

    data: bytearray  # cut at the end of the IP packet
    version: int
    flow: FlowId
    l4: int  # of the transport header
    part: Part | None  # None: a whole datagram
    partial: bool = False
    size: int = 0  # payload of each packet that a super-frame stands for; 0: it is one packet

    @property
    def fragment(self) -> bool:
        return self.part is not None

    @property
    def later(self) -> bool:
        """A fragment without transport header."""
        return self.part is not None and self.part.at > 0

    @property
    def is_nd(self) -> bool:
        """Neighbour discovery (RFC 4861): ICMPv6 types 133 to 137, as far as this piece tells."""
        known = self.flow.proto == ICMP6 and self.version == 6 and not self.later
        return known and 133 <= self.data[self.l4] <= 137

    @property
    def ip_len(self) -> int:
        return len(self.data) - ETHERNET

    @property
    def ttl_at(self) -> int:
        return ETHERNET + (8 if self.version == 4 else 7)

    @property
    def ip_check_at(self) -> int | None:
        return ETHERNET + 10 if self.version == 4 else None

    @property
    def tos(self) -> int:
        at = ETHERNET + 1
        return (
            self.data[at]
            if self.version == 4
            else int.from_bytes(self.data[at - 1 : at + 1]) >> 4 & 0xFF
        )

    @property
    def ecn(self) -> int:
        return self.tos & 3

    @property
    def dont_fragment(self) -> bool:
        return self.version == 6 or bool(self.data[ETHERNET + 6] & 0x40)

    @property
    def check_at(self) -> int | None:
        """Of the transport checksum, where this packet carries one we know."""
        offsets = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
        known = self.flow.proto in (TCP, UDP) or self.flow.is_icmp
        return self.l4 + offsets[self.flow.proto] if known and not self.later else None

    @property
    def headers_len(self) -> int:
        """IP and transport headers: what each segment of a super-frame repeats."""
        transport = 8 if self.flow.proto == UDP and not self.later else 0
        if self.flow.proto == TCP and not self.later:
            transport = self.data[self.l4 + 12] >> 2 & 60
        return self.l4 - ETHERNET + transport

    @property
    def payload_len(self) -> int:
        return self.ip_len - self.headers_len

    @property
    def count(self) -> int:
        """Packets on the wire."""
        return -(-self.payload_len // self.size) if self.size else 1

    @property
    def first_len(self) -> int:
        """Of the first of them, as an IP packet."""
        return self.headers_len + self.size if self.size else self.ip_len


def parse(frame: bytes, checksum_unknown: bool = False, partial: bool = False) -> Arp | Packet:
    if len(frame) < ETHERNET:
        raise Drop("short_ethernet")
    ethertype = int.from_bytes(frame[12:14])
    if ethertype in VLANS:
        raise Drop("vlan_tagged")
    if ethertype == ARP:
        if len(frame) < ETHERNET + 28 or frame[14:20] != b"\x00\x01\x08\x00\x06\x04":
            raise Drop("bad_arp")
        return Arp(frame)
    if ethertype not in (IP4, IP6):
        raise Drop("not_ip")
    packet = _parse_ip4(frame) if ethertype == IP4 else _parse_ip6(frame)
    if packet.flow.proto in (TCP, UDP) and not packet.fragment:
        packet.partial = partial or (checksum_unknown and _looks_partial(packet))
    return packet


def _looks_partial(packet: Packet) -> bool:
    assert packet.check_at is not None
    length = len(packet.data) - packet.l4
    pseudo = pseudo_header(
        unmapped(packet.flow.src), unmapped(packet.flow.dst), packet.flow.proto, length
    )
    field = packet.data[packet.check_at : packet.check_at + 2]
    return int.from_bytes(field) == fold(sum(words(pseudo)))


def is_mapped(address: bytes) -> bool:
    """An IPv4 address in 16 bytes."""
    return address.startswith(MAPPED)


def unmapped(address: bytes) -> bytes:
    return address[12:] if address.startswith(MAPPED) else address


# ---- IPv4 ----------------------------------------------------------------------------------


def ip4_lengths(ip: bytes, reason: str) -> tuple[int, int]:
    """Header length and total length (RFC 1812 section 5.2.2)."""
    if len(ip) < 20 or ip[0] >> 4 != 4:
        raise Drop(reason)
    header, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4])
    if header < 20 or total < header or total > len(ip):
        raise Drop(reason)
    return header, total


def _parse_ip4(frame: bytes) -> Packet:
    header, total = ip4_lengths(frame[ETHERNET:], "bad_ip4")
    ip = frame[ETHERNET : ETHERNET + total]
    if checksum(ip[:header]) != 0:
        raise Drop("bad_ip4_checksum")
    _check_options(ip[20:header])
    src, dst = ip[12:16], ip[16:20]
    if src[0] in (0, 127) or src[0] >= 224:
        raise Drop("bad_address")
    if dst[0] in (0, 127) or (dst[0] >= 240 and dst != b"\xff\xff\xff\xff"):
        raise Drop("bad_address")
    more = bool(ip[6] & 0x20)
    offset = int.from_bytes(ip[6:8]) & 0x1FFF
    part = part_of(ip[9], Part(int.from_bytes(ip[4:6]), offset, total - header, not more))
    ends = ETHERNET + header, ETHERNET + total
    return _finish(frame, 4, MAPPED + src, MAPPED + dst, ip[9], *ends, part)


def _check_options(options: bytes) -> None:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            raise Drop("bad_ip4")
        if options[at] in (131, 137):
            raise Drop("source_route")
        at += length


# ---- IPv6 ----------------------------------------------------------------------------------


def ip6_length(ip: bytes, reason: str) -> int:
    if len(ip) < 40 or ip[0] >> 4 != 6:
        raise Drop(reason)
    total = 40 + int.from_bytes(ip[4:6])
    if total > len(ip):
        raise Drop(reason)
    return total


def _parse_ip6(frame: bytes) -> Packet:
    total = ip6_length(frame[ETHERNET:], "bad_ip6")
    ip = frame[ETHERNET : ETHERNET + total]
    src, dst = ip[8:24], ip[24:40]
    loopback = b"\0" * 15 + b"\1"
    if src[0] == 0xFF or src == loopback or src.startswith(MAPPED):
        raise Drop("bad_address")
    if dst in (bytes(16), loopback) or dst.startswith(MAPPED):
        raise Drop("bad_address")
    proto, at, part = _walk_extensions(ip)
    packet = _finish(frame, 6, src, dst, proto, ETHERNET + at, ETHERNET + total, part)
    if src == bytes(16) and not packet.is_nd and dst[0] != 0xFF:
        raise Drop("bad_address")  # who has no address yet asks for it, and reports its groups
    return packet


def _walk_extensions(ip: bytes) -> tuple[int, int, Part | None]:
    """Upper protocol, where it starts, and which part of a datagram it is."""
    proto, at, part = ip[6], 40, None
    for count in range(9):
        if proto not in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION):
            break
        if count == 8 or (proto == HOP_BY_HOP and count > 0) or at + 8 > len(ip):
            raise Drop("bad_extension")
        size = {FRAGMENT: 8, AH: (ip[at + 1] + 2) * 4}.get(proto, (ip[at + 1] + 1) * 8)
        if proto == ROUTING and ip[at + 2] == 0:
            raise Drop("source_route")
        if at + size > len(ip):
            raise Drop("bad_extension")
        if proto == FRAGMENT:
            place, ident = int.from_bytes(ip[at + 2 : at + 4]), int.from_bytes(ip[at + 4 : at + 8])
            here = Part(ident, place >> 3, len(ip) - at - size, not place & 1)
            found = part_of(ip[at], here)
            if found and part:
                raise Drop("bad_fragment")  # in two datagrams at once
            part = part or found
        proto, at = ip[at], at + size
        if part and part.at:
            break
    if proto == HOP_BY_HOP:
        raise Drop("bad_extension")
    return proto, at, part


# ---- both ----------------------------------------------------------------------------------


def part_of(proto: int, part: Part) -> Part | None:
    """None: all of a datagram (RFC 6946). Raises Drop (RFC 791, RFC 3128, RFC 8200)."""
    if part.at == 0 and part.last:
        return None
    if part.at * 8 + part.size > 65535 or (proto == TCP and part.at == 1):
        raise Drop("bad_fragment")
    if part.size == 0 or (part.size % 8 and not part.last):
        raise Drop("bad_fragment")
    return part


def _finish(
    frame: bytes,
    version: int,
    src: bytes,
    dst: bytes,
    proto: int,
    l4: int,
    end: int,
    part: Part | None,
) -> Packet:
    """The transport header."""
    later, first = part is not None and part.at > 0, part is not None and part.at == 0
    sport = dport = 0
    if not later:
        reason = "bad_fragment" if first else "bad_transport"
        sport, dport = _ports(frame[l4:end], proto, version, first, reason)
    flow = FlowId(src, dst, proto, sport, dport)
    return Packet(bytearray(frame[:end]), version, flow, l4, part)


def _ports(l4: bytes, proto: int, version: int, first: bool, reason: str) -> tuple[int, int]:
    if proto == TCP:
        if len(l4) < 20 or not 20 <= (l4[12] >> 4) * 4 <= len(l4):
            raise Drop(reason)
        return int.from_bytes(l4[0:2]), int.from_bytes(l4[2:4])
    if proto == UDP:
        if len(l4) < 8:
            raise Drop(reason)
        length = int.from_bytes(l4[4:6])
        if length < 8 or (not first and length > len(l4)):
            raise Drop(reason)
        return int.from_bytes(l4[0:2]), int.from_bytes(l4[2:4])
    if proto == (ICMP if version == 4 else ICMP6):
        if len(l4) < 8:
            raise Drop(reason)
        dport = int.from_bytes(l4[0:2])
        echo = dport in (ECHO_REQUEST[proto] << 8, ECHO_REPLY[proto] << 8)
        return int.from_bytes(l4[4:6]) if echo else 0, dport
    return 0, 0
