"""Outer headers: VXLAN over UDP over IPv4 or IPv6 (RFC 7348 section 5), taken off and put on."""

from typing import NamedTuple

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
    ecn: int
    vni: int
    inner: bytes


def decapsulate(frame: bytes, port: Underlay, checked: bool) -> Outer:
    """`checked`: whoever received the frame has verified the outer checksums."""
    if len(frame) < ETHERNET:
        raise Drop("short_ethernet")
    ethertype, ip = int.from_bytes(frame[12:14]), frame[ETHERNET:]
    if ethertype == IP4:
        src, ecn, payload = _outer_ip4(ip, port, checked)
    elif ethertype == IP6:
        src, ecn, payload = _outer_ip6(ip, port, checked)
    else:
        raise Drop("outer_not_vxlan")
    if len(payload) < 8 or not payload[0] & 0x08:
        raise Drop("no_vni_flag")
    return Outer(src, ecn, int.from_bytes(payload[4:7]), payload[8:])


def _outer_ip4(ip: bytes, port: Underlay, checked: bool) -> tuple[bytes, int, bytes]:
    header, total = ip4_lengths(ip, "outer_malformed")
    if not checked and checksum(ip[:header]) != 0:
        raise Drop("outer_checksum")
    if int.from_bytes(ip[6:8]) & 0x3FFF:
        raise Drop("outer_fragment")
    src, dst = ip[12:16], ip[16:20]
    if ip[9] != UDP or MAPPED + dst != port.ip4:
        raise Drop("outer_not_vxlan")
    return MAPPED + src, ip[1] & 3, _outer_udp(src, dst, ip[header:total], port, checked)


def _outer_ip6(ip: bytes, port: Underlay, checked: bool) -> tuple[bytes, int, bytes]:
    total = ip6_length(ip, "outer_malformed")
    src, dst = ip[8:24], ip[24:40]
    if ip[6] == FRAGMENT:
        raise Drop("outer_fragment")
    if ip[6] != UDP or dst != port.ip6:
        raise Drop("outer_not_vxlan")
    return src, ip[1] >> 4 & 3, _outer_udp(src, dst, ip[40:total], port, checked)


def _outer_udp(src: bytes, dst: bytes, udp: bytes, port: Underlay, checked: bool) -> bytes:
    """The UDP payload; `src` and `dst` as they stand in the IP header."""
    if len(udp) < 8:
        raise Drop("outer_malformed")
    if int.from_bytes(udp[2:4]) != port.udp_port:
        raise Drop("outer_not_vxlan")
    length = int.from_bytes(udp[4:6])
    if length < 8 or length > len(udp):
        raise Drop("outer_malformed")
    if not checked and udp[6:8] == b"\0\0" and len(src) == 16:
        raise Drop("udp6_zero_checksum")
    whole = pseudo_header(src, dst, UDP, length) + udp[:length]
    if not checked and udp[6:8] != b"\0\0" and checksum(whole) != 0:
        raise Drop("outer_checksum")
    return udp[8:length]


def encapsulate(
    inner: bytes, on_wire: bytes, ecn: int, sport: int, way: Adjacency, port: Underlay
) -> bytes:
    """`on_wire`: the inner frame with its checksum complete, as the outer checksum covers it."""
    vxlan = b"\x08\0\0\0" + way.vni.to_bytes(3) + b"\0"
    payload = vxlan + inner
    length = 8 + len(payload)
    udp = sport.to_bytes(2) + port.udp_port.to_bytes(2) + length.to_bytes(2)
    dst = unmapped(way.remote)
    own = port.ip4 if len(dst) == 4 else port.ip6
    assert own is not None, "a remote subnet of a family the underlay lacks"
    src = unmapped(own)
    if len(dst) == 4:
        ethertype, ip = IP4, _ip4_header(src, dst, ecn, length)
        udp += b"\0\0"
    else:
        ethertype, ip = IP6, _ip6_header(src, dst, ecn, length)
        whole = pseudo_header(src, dst, UDP, length) + udp + b"\0\0" + vxlan + on_wire
        udp += (checksum(whole) or 0xFFFF).to_bytes(2)
    return way.outer_mac + port.mac + ethertype.to_bytes(2) + ip + udp + payload


def _ip4_header(src: bytes, dst: bytes, ecn: int, length: int) -> bytes:
    front = bytes([0x45, ecn]) + (20 + length).to_bytes(2) + b"\0\0\x40\0" + bytes([64, UDP])
    return front + checksum(front + src + dst).to_bytes(2) + src + dst


def _ip6_header(src: bytes, dst: bytes, ecn: int, length: int) -> bytes:
    return bytes([0x60, ecn << 4, 0, 0]) + length.to_bytes(2) + bytes([UDP, 64]) + src + dst
