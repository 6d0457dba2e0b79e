"""A `PacketSpec` to an Ethernet frame, and a frame to a VXLAN packet, with right checksums."""

from struct import pack, unpack

from dataplane.address import IP, Mac, ip_from16
from dataplane.errors import PacketError
from dataplane.packet_spec import FLAGS, ND_FLAGS, PacketSpec

BROADCAST = Mac("ff:ff:ff:ff:ff:ff")
_SOLICITED_NODE = b"\xff\x02" + bytes(9) + b"\x01\xff"  # and three octets (RFC 4291 §2.7.1)
_FRAGMENT = 44
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(src: IP, dst: IP, proto: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum besides themselves (RFC 9293 §3.1, RFC 8200 §8.1)."""
    if src.version == 4:
        return src.packed + dst.packed + pack("!BBH", 0, proto, length)
    return src.packed + dst.packed + pack("!II", length, proto)


def build(spec: PacketSpec, smac: Mac | str, dmac: Mac | str) -> bytes:
    """The frame. MACs of the spec go before the arguments; an ARP request is broadcast."""
    source = spec.smac or Mac(smac)
    if spec.kind == "arp":
        target = spec.dmac or (BROADCAST if spec.proto == 1 else Mac(dmac))
        return ethernet(source, target, 0x0806, _arp(spec, source, target), spec.vlan)
    if spec.kind == "nd":
        return _nd(spec, source, spec.dmac or Mac(dmac))
    body = _ip(spec, _payload(spec) if spec.later_fragment else _transport(spec))
    kind = _ETHERTYPE[spec.src.version]
    return ethernet(source, spec.dmac or Mac(dmac), kind, body, spec.vlan)


def ethernet(smac: Mac, dmac: Mac, ethertype: int, body: bytes, vlan: int | None = None) -> bytes:
    """An Ethernet frame without FCS, unpadded."""
    tag = b"" if vlan is None else pack("!HH", 0x8100, vlan)
    return dmac.packed + smac.packed + tag + pack("!H", ethertype) + body


def vxlan(
    inner: bytes,
    *,
    src: IP,
    dst: IP,
    vni: int,
    smac: Mac | str,
    dmac: Mac | str,
    sport: int = 49152,
    dport: int = 4789,
    ttl: int = 64,
    tos: int = 0,
) -> bytes:
    """The frame in VXLAN (RFC 7348 §5). The UDP checksum is zero over IPv4, computed over IPv6."""
    header = pack("!II", 0x08000000, vni << 8)
    length = 8 + len(header) + len(inner)
    datagram = pack("!HHHH", sport, dport, length, 0) + header + inner
    if src.version == 6:
        datagram = _with_checksum(datagram, 6, pseudo_header(src, dst, 17, length))
    outer = PacketSpec(
        kind="udp", src=src, dst=dst, proto=17, ttl=ttl, tos=tos, df=src.version == 4
    )
    return ethernet(Mac(smac), Mac(dmac), _ETHERTYPE[src.version], _ip(outer, datagram))


def _arp(spec: PacketSpec, source: Mac, target: Mac) -> bytes:
    head = pack("!HHBBH", 1, 0x0800, 6, 4, spec.proto)
    known = bytes(6) if spec.proto == 1 else target.packed
    return head + (spec.is_at or source).packed + spec.src.packed + known + spec.dst.packed


def _nd(spec: PacketSpec, source: Mac, peer: Mac) -> bytes:
    """RFC 4861 §4.3, §4.4. A question without a sender is a probe for duplicates."""
    asks = spec.proto == 1
    target = spec.dst.packed if asks else spec.src.packed
    to = ip_from16(_SOLICITED_NODE + target[13:]) if asks else spec.dst
    flags = sum(0x20 << ND_FLAGS.index(flag) for flag in spec.flags)
    message = pack("!BBHB3x16s", 135 if asks else 136, 0, 0, flags, target)
    if not (asks and spec.src.is_unspecified):
        message += pack("!BB", 1 if asks else 2, 1) + (spec.is_at or source).packed
    pseudo = pseudo_header(spec.src, to, 58, len(message))
    packet = PacketSpec(kind="ip", src=spec.src, dst=to, proto=58, ttl=255)
    if to.is_multicast and spec.dmac is None:
        peer = Mac.from_bytes(b"\x33\x33" + to.packed[-4:])
    body = _ip(packet, _with_checksum(message, 2, pseudo))
    return ethernet(source, peer, _ETHERTYPE[6], body, spec.vlan)


def _ip(spec: PacketSpec, body: bytes) -> bytes:
    if spec.src.version == 6:
        return _ip6(spec, body)
    fragment = spec.df << 14 | spec.mf << 13 | (spec.frag or 0) >> 3
    total = 20 + len(body)
    if total > 65535:
        raise PacketError(f"{total} bytes are too many for an IPv4 packet (65535)")
    head = pack("!BBHHHBBH", 0x45, spec.tos, total, spec.ipid, fragment, spec.ttl, spec.proto, 0)
    return _with_checksum(head + spec.src.packed + spec.dst.packed, 10) + body


def _ip6(spec: PacketSpec, body: bytes) -> bytes:
    proto = spec.proto
    if spec.frag is not None or spec.mf:
        body = pack("!BBHI", proto, 0, (spec.frag or 0) | spec.mf, spec.ipid) + body
        proto = _FRAGMENT
    if len(body) > 65535:
        raise PacketError(f"{len(body)} bytes are too many for an IPv6 payload (65535)")
    head = pack("!IHBB", 6 << 28 | spec.tos << 20, len(body), proto, spec.ttl)
    return head + spec.src.packed + spec.dst.packed + body


def _transport(spec: PacketSpec) -> bytes:
    payload = _payload(spec)
    if spec.kind == "tcp":
        segment, field = _tcp(spec) + payload, 16
    elif spec.kind == "udp":
        segment, field = pack("!HHHH", spec.sport, spec.dport, 8 + len(payload), 0) + payload, 6
    elif spec.kind in ("icmp", "icmp6"):
        head = pack("!BBHHH", spec.icmp_type, spec.icmp_code, 0, spec.id, spec.seq)
        segment, field = head + payload, 2
    else:
        return payload
    pseudo = pseudo_header(spec.src, spec.dst, spec.proto, len(segment))
    sealed = _with_checksum(segment, field, b"" if spec.kind == "icmp" else pseudo)
    if spec.kind == "udp" and sealed[6:8] == b"\0\0":
        return sealed[:6] + b"\xff\xff" + sealed[8:]
    return sealed


def _tcp(spec: PacketSpec) -> bytes:
    options = b"" if spec.mss is None else pack("!BBH", 2, 4, spec.mss)
    flags = sum(1 << FLAGS.index(flag) for flag in spec.flags)
    offset = (20 + len(options)) // 4 << 4
    head = pack(
        "!HHIIBBHHH", spec.sport, spec.dport, 1, "ack" in spec.flags, offset, flags, 65535, 0, 0
    )
    return head + options


def _payload(spec: PacketSpec) -> bytes:
    """Counts up, so that a byte out of place shows."""
    return (bytes(range(256)) * (spec.length // 256 + 1))[: spec.length]


def _with_checksum(octets: bytes, at: int, before: bytes = b"") -> bytes:
    return octets[:at] + pack("!H", checksum(before + octets)) + octets[at + 2 :]
