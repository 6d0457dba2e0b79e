"""Neighbour discovery (RFC 4861): what is discarded, who may say what, and what is answered."""

from tests.reference.build import ethernet, ip, summed
from tests.reference.checksum import checksum, pseudo_header
from tests.reference.site import Endpoint, Network
from tests.reference.verdict import Drop
from tests.reference.wire import ETHERNET, ICMP6, IP6, MAPPED, Packet

ROUTER_SOLICIT, ROUTER_ADVERT, SOLICIT, ADVERT, REDIRECT = range(133, 138)
ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
SOURCE_MAC, TARGET_MAC = 1, 2
UNSPECIFIED, LOOPBACK = bytes(16), bytes(15) + b"\1"
ALL_NODES, ALL_NODES_MAC = b"\xff\x02" + bytes(13) + b"\1", b"\x33\x33\0\0\0\1"
HOPS = 255


def from_endpoint(packet: Packet, network: Network, endpoint: Endpoint) -> bytes:
    """The answer; what is not answered is a Drop."""
    kind = packet.data[packet.l4]
    if kind == ROUTER_SOLICIT:
        raise Drop("nd_router_solicit")
    if kind in (ROUTER_ADVERT, REDIRECT):
        raise Drop("guard_ra")
    macs = _check(packet)
    true = all(mac == endpoint.mac for mac in macs)
    src, target = packet.flow.src, _target(packet)
    own = _own(src, endpoint, network)
    if kind == ADVERT:
        good = own and _own(target, endpoint, network) and macs and true
        raise Drop("nd_announcement" if good else "guard_nd")
    if not true or not (own or src == UNSPECIFIED):
        raise Drop("guard_nd")
    if target in endpoint.addresses:
        raise Drop("nd_announcement")
    return _advertise(packet, *_known(target, network))


def from_host(packet: Packet, address: bytes, mac: bytes) -> bytes:
    """The host port answers for its own address, if that is an IPv6 one."""
    if packet.data[packet.l4] != SOLICIT:
        raise Drop("nd_unknown_target")
    _check(packet)
    if _target(packet) != address:
        raise Drop("nd_unknown_target")
    return _advertise(packet, mac, ROUTER | OVERRIDE)


def _known(target: bytes, network: Network) -> tuple[bytes, int]:
    """Whose MAC is told, and with which flags."""
    route = network.route(target)
    if target == link_local(network.dr_mac) or (route and route.kind == "gateway"):
        return network.dr_mac, ROUTER | OVERRIDE
    if _is_link_local(target) or route is None or route.kind == "subnet":
        raise Drop("nd_unknown_target")
    return (route.endpoint.mac if route.endpoint else network.dr_mac), 0


# ---- RFC 4861 sections 7.1.1 and 7.1.2 -----------------------------------------------------------


def _check(packet: Packet) -> list[bytes]:
    """Raises bad_nd; returns the MACs its sender tells of itself."""
    kind, code, flags = (packet.data[packet.l4 + i] for i in (0, 1, 4))
    message, src, dst = bytes(packet.data[packet.l4 :]), packet.flow.src, packet.flow.dst
    bad = Drop("bad_nd")
    if packet.l4 != ETHERNET + 40 or packet.data[packet.ttl_at] != HOPS or code != 0:
        raise bad
    if len(message) < 24 or checksum(pseudo_header(src, dst, ICMP6, len(message)) + message):
        raise bad
    target = _target(packet)
    if target[0] == 0xFF or target in (UNSPECIFIED, LOOPBACK) or target.startswith(MAPPED):
        raise bad
    options = _options(message[24:])
    macs = [mac for of, mac in options if of == (SOURCE_MAC if kind == SOLICIT else TARGET_MAC)]
    if kind == ADVERT and flags & SOLICITED and dst[0] == 0xFF:
        raise bad
    if kind == SOLICIT and src == UNSPECIFIED and (macs or dst != solicited_node(target)):
        raise bad
    return macs


def _options(data: bytes) -> list[tuple[int, bytes]]:
    """Type and content of each."""
    found = []
    while data:
        size = data[1] * 8 if len(data) > 1 else 0
        if size == 0 or size > len(data) or (data[0] in (SOURCE_MAC, TARGET_MAC) and size != 8):
            raise Drop("bad_nd")
        found.append((data[0], data[2:size]))
        data = data[size:]
    return found


def _target(packet: Packet) -> bytes:
    return bytes(packet.data[packet.l4 + 8 : packet.l4 + 24])


# ---- addresses -----------------------------------------------------------------------------------


def _own(address: bytes, endpoint: Endpoint, network: Network) -> bool:
    free = _is_link_local(address) and address != link_local(network.dr_mac)
    return address in endpoint.addresses or free


def _is_link_local(address: bytes) -> bool:
    return int.from_bytes(address[:2]) >> 6 == 0xFE80 >> 6


def link_local(mac: bytes) -> bytes:
    """fe80:: and the modified EUI-64."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def solicited_node(address: bytes) -> bytes:
    return b"\xff\x02" + bytes(9) + b"\1\xff" + address[13:]


# ---- the answer ----------------------------------------------------------------------------------


def _advertise(packet: Packet, mac: bytes, flags: int) -> bytes:
    asker, asker_mac, target = packet.flow.src, bytes(packet.data[6:12]), _target(packet)
    if asker == UNSPECIFIED:
        asker, asker_mac = ALL_NODES, ALL_NODES_MAC
    else:
        flags |= SOLICITED
    message = message_of(ADVERT, target, [(TARGET_MAC, mac)], flags)
    answer = ip(target, asker, ICMP6, summed(target, asker, ICMP6, message), ttl=HOPS)
    return ethernet(asker_mac, mac, IP6, answer)


def message_of(kind: int, target: bytes, macs: list[tuple[int, bytes]], flags: int = 0) -> bytes:
    """Without its checksum. `macs`: option type and Ethernet address."""
    options = b"".join(bytes([of, 1]) + mac for of, mac in macs)
    return bytes([kind, 0, 0, 0, flags, 0, 0, 0]) + target + options
