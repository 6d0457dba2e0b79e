"""Outer headers: VXLAN over UDP over IPv4 or IPv6 (RFC 7348 section 5), taken off and put on."""

from typing import NamedTuple

from dataplane.model import Wire
from tests.reference.checksum import checksum, pseudo_header
from tests.reference.site import Adjacency, Underlay
from tests.reference.verdict import Drop
from tests.reference.wire import (
    ETHERNET,
    FRAGMENT,
    IP4,
    IP6,
    MAPPED,
    UDP,
    ip4_lengths,
    ip6_length,
    unmapped,
)


class Outer(NamedTuple):
    src: bytes  # 16 bytes
    tos: int
    vni: int
    inner: bytes
    reserved: bool  # a reserved bit of the VXLAN header is set
    zero6: bool  # IPv6 without UDP checksum

    @property
    def ecn(self) -> int:
        return self.tos & 3


def decapsulate(frame: bytes, port: Underlay, checked: bool, joined: bool = False) -> Outer:
    """`checked`: whoever received the frame has verified the outer checksums. `joined`: it stands
    for many, and the outer lengths are those of the first."""
    if len(frame) < ETHERNET:
        raise Drop("short_ethernet")
    ethertype, ip, zero6 = int.from_bytes(frame[12:14]), frame[ETHERNET:], False
    if ethertype == IP4:
        src, tos, payload = _outer_ip4(ip, port, checked, joined)
    elif ethertype == IP6:
        src, tos, payload = _outer_ip6(ip, port, checked, joined)
        zero6 = not checked and ip[46:48] == b"\0\0"
    else:
        raise Drop("outer_not_vxlan")
    if len(payload) < 8 or not payload[0] & 0x08:
        raise Drop("no_vni_flag")
    reserved = payload[0] != 0x08 or payload[1:4] != bytes(3) or payload[7] != 0
    return Outer(src, tos, int.from_bytes(payload[4:7]), payload[8:], reserved, zero6)


def _outer_ip4(ip: bytes, port: Underlay, checked: bool, joined: bool) -> tuple[bytes, int, bytes]:
    header, total = ip4_lengths(ip, "outer_malformed")
    if not checked and checksum(ip[:header]) != 0:
        raise Drop("outer_checksum")
    if int.from_bytes(ip[6:8]) & 0x3FFF:
        raise Drop("outer_fragment")
    src, dst = ip[12:16], ip[16:20]
    if ip[9] != UDP or MAPPED + dst != port.ip4:
        raise Drop("outer_not_vxlan")
    udp = ip[header:] if joined else ip[header:total]
    return MAPPED + src, ip[1], _outer_udp(src, dst, udp, port, checked, joined)


def _outer_ip6(ip: bytes, port: Underlay, checked: bool, joined: bool) -> tuple[bytes, int, bytes]:
    total = ip6_length(ip, "outer_malformed")
    src, dst = ip[8:24], ip[24:40]
    if ip[6] == FRAGMENT:
        raise Drop("outer_fragment")
    if ip[6] != UDP or dst != port.ip6:
        raise Drop("outer_not_vxlan")
    return (
        src,
        int.from_bytes(ip[0:2]) >> 4 & 0xFF,
        _outer_udp(src, dst, ip[40:] if joined else ip[40:total], port, checked, joined),
    )


def _outer_udp(
    src: bytes, dst: bytes, udp: bytes, port: Underlay, checked: bool, joined: bool
) -> bytes:
    """The UDP payload; `src` and `dst` as they stand in the IP header."""
    if len(udp) < 8:
        raise Drop("outer_malformed")
    if int.from_bytes(udp[2:4]) != port.udp_port:
        raise Drop("outer_not_vxlan")
    length = int.from_bytes(udp[4:6])
    if length < 8 or length > len(udp):
        raise Drop("outer_malformed")
    whole = pseudo_header(src, dst, UDP, length) + udp[:length]
    if not checked and udp[6:8] != b"\0\0" and checksum(whole) != 0:
        raise Drop("outer_checksum")
    return udp[8:] if joined else udp[8:length]


def check_wire(outer: Outer, wire: Wire) -> None:
    """What the standards leave to the network."""
    if outer.zero6 and not wire.udp6_zero_rx:
        raise Drop("udp6_zero_checksum")
    if outer.reserved and wire.strict:
        raise Drop("vxlan_reserved_bits")


class Inside(NamedTuple):
    """What the outer headers are made from. `on_wire`: the frame with its checksum complete, as the
    outer checksum covers it. `joined`: it stands for many, the first of `length` bytes."""

    frame: bytes
    on_wire: bytes
    tos: int
    dont_fragment: bool
    length: int
    joined: bool


def encapsulate(inside: Inside, sport: int, way: Adjacency, port: Underlay, next_id: int) -> bytes:
    """`next_id`: of the outer IPv4 packet where its DF is clear."""
    vxlan = b"\x08\0\0\0" + way.vni.to_bytes(3) + b"\0"
    payload = vxlan + inside.frame
    length = 8 + len(vxlan) + inside.length
    udp = sport.to_bytes(2) + port.udp_port.to_bytes(2) + length.to_bytes(2)
    dst = unmapped(way.remote)
    own = port.ip4 if len(dst) == 4 else port.ip6
    assert own is not None, "a remote subnet of a family the underlay lacks"
    src = unmapped(own)
    tos = _outer_tos(inside.tos, way.wire)
    if len(dst) == 4:
        ident = None if sets_df(inside, way) else next_id
        ethertype, ip = IP4, _ip4_header(src, dst, tos, way.wire.ttl, ident, length)
    else:
        ethertype, ip = IP6, _ip6_header(src, dst, tos, way.wire.ttl, length)
    if not inside.joined and (len(dst) == 16 or way.wire.udp_checksum == "full"):
        whole = pseudo_header(src, dst, UDP, length) + udp + b"\0\0" + vxlan + inside.on_wire
        udp += (checksum(whole) or 0xFFFF).to_bytes(2)
    else:
        udp += b"\0\0"
    return way.outer_mac + port.mac + ethertype.to_bytes(2) + ip + udp + payload


def sets_df(inside: Inside, way: Adjacency) -> bool:
    """Of the outer packet; an IPv6 one is never fragmented on its way."""
    if len(unmapped(way.remote)) == 16:
        return True
    return {"set": True, "clear": False, "inherit": inside.dont_fragment}[way.wire.df]


def _outer_tos(inner: int, wire: Wire) -> int:
    if wire.dscp == "copy":
        return inner
    dscp = 0 if wire.dscp == "zero" else int(wire.dscp)
    return dscp << 2 | inner & 3


def _ip4_header(
    src: bytes, dst: bytes, tos: int, ttl: int, ident: int | None, length: int
) -> bytes:
    """`ident` None: DF."""
    fragment = b"\0\0\x40\0" if ident is None else ident.to_bytes(2) + b"\0\0"
    front = bytes([0x45, tos]) + (20 + length).to_bytes(2) + fragment + bytes([ttl, UDP])
    return front + checksum(front + src + dst).to_bytes(2) + src + dst


def _ip6_header(src: bytes, dst: bytes, tos: int, ttl: int, length: int) -> bytes:
    front = bytes([0x60 | tos >> 4, (tos & 15) << 4, 0, 0])
    return front + length.to_bytes(2) + bytes([UDP, ttl]) + src + dst
