"""Where a frame came in, and what is checked before its flow is looked up (semantics 1-3)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference import answer, nd
from tests.reference.checksum import checksum, fold, pseudo_header, words
from tests.reference.outer import Outer, check_wire, decapsulate
from tests.reference.site import HOST, UNDERLAY, Endpoint, Network, Site
from tests.reference.verdict import Drop
from tests.reference.wire import TCP, UDP, Arp, FlowId, Packet, is_mapped, parse, unmapped

CSUM_PARTIAL, CSUM_UNKNOWN, OUTER_CHECKED = 1, 2, 4
BROADCAST4 = b"\xff\xff\xff\xff"


TCP4, TCP6, USO, ECN = 1, 4, 5, 0x80  # virtio 1.2 section 5.1.6
LONGEST_HEADERS = 192  # of a super-frame


class Gso(NamedTuple):
    """What the descriptor of a super-frame says of it."""

    kind: int = 0
    size: int = 0


@dataclass
class Arrival:
    """A frame at its ingress port; exactly one of endpoint, outer and neither (host port)."""

    port: str
    packet: Packet | Arp
    network: Network | None  # None: host port
    endpoint: Endpoint | None = None
    outer: Outer | None = None

    @property
    def dmac(self) -> bytes:
        return bytes(self._frame[0:6])

    @property
    def smac(self) -> bytes:
        return bytes(self._frame[6:12])

    @property
    def _frame(self) -> bytes | bytearray:
        return self.packet.frame if isinstance(self.packet, Arp) else self.packet.data

    @property
    def vni(self) -> int:
        return self.network.vni if self.network else 0

    @property
    def switched(self) -> bool:
        """Addressed straight to a neighbour, not to the distributed router."""
        return self.network is not None and self.dmac != self.network.dr_mac


def receive(site: Site, frame: bytes, port: str, flags: int, gso: Gso) -> Arrival:
    arrival = _receive(site, frame, port, flags, gso)
    checked = arrival.outer is None or bool(flags & OUTER_CHECKED)
    if gso.kind:
        _unfold(arrival.packet, gso, checked)
    elif arrival.outer is not None and checked and flags & CSUM_UNKNOWN:
        assert arrival.network is not None
        _unfold_unsized(arrival.packet, arrival.network.mtu)
    return arrival


def packets_of(arrival: Arrival | None) -> int:
    """That it stands for on the wire."""
    packet = arrival.packet if arrival else None
    return packet.count if isinstance(packet, Packet) else 1


def _unfold(packet: Packet | Arp, gso: Gso, checked: bool) -> None:
    """Whether the headers bear the descriptor out (semantics: dp.h, struct dp_frame)."""
    if isinstance(packet, Arp) or packet.fragment or not packet.partial or not checked:
        raise Drop("bad_gso")
    tcp = TCP4 if packet.version == 4 else TCP6
    kinds = {TCP: (tcp, tcp | ECN), UDP: (USO,)}.get(packet.flow.proto, ())
    if gso.kind not in kinds or gso.size == 0:
        raise Drop("bad_gso")
    length = int.from_bytes(packet.data[packet.l4 + 4 : packet.l4 + 6])
    if gso.kind == USO and length != len(packet.data) - packet.l4:
        raise Drop("bad_gso")
    if packet.payload_len <= gso.size:
        return
    if 14 + packet.headers_len > LONGEST_HEADERS:
        raise Drop("bad_gso")
    packet.size = gso.size


def _unfold_unsized(packet: Packet | Arp, mtu: int) -> None:
    """TCP that a kernel peer handed over before it was cut, without telling how."""
    if isinstance(packet, Arp) or packet.fragment or packet.flow.proto != TCP:
        return
    longest = 14 + packet.headers_len <= LONGEST_HEADERS
    if packet.ip_len <= mtu or packet.headers_len >= mtu or not longest:
        return
    ends = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    pseudo = pseudo_header(*ends, TCP, len(packet.data) - packet.l4)
    if not packet.partial:
        if checksum(pseudo + bytes(packet.data[packet.l4 :])) != 0:
            return
        at = packet.l4 + 16
        packet.data[at : at + 2] = fold(sum(words(pseudo))).to_bytes(2)
        packet.partial = True
    packet.size = mtu - packet.headers_len


def _receive(site: Site, frame: bytes, port: str, flags: int, gso: Gso) -> Arrival:
    if port == UNDERLAY:
        outer = decapsulate(frame, site.underlay, bool(flags & OUTER_CHECKED), gso.kind != 0)
        network = site.networks.get(outer.vni)
        if network is None:
            raise Drop("unknown_vni")
        check_wire(outer, network.wire)
        if outer.src not in network.vteps:
            raise Drop("unknown_vtep")
        return Arrival(port, _parse(outer.inner, flags), network, outer=outer)
    if port == HOST and site.host is not None:
        return Arrival(port, _parse(frame, flags), None)
    endpoint = site.endpoints.get(port)
    if endpoint is None:
        raise Drop("port_not_configured")
    network = site.networks[endpoint.vni]
    if network.wire.inner_vlan == "strip":
        frame = untagged(frame)
    return Arrival(port, _parse(frame, flags), network, endpoint=endpoint)


def untagged(frame: bytes) -> bytes:
    """Without its outermost tag, if that is of 802.1Q."""
    tagged = frame[12:14] == b"\x81\x00" and len(frame) >= 18
    return frame[:12] + frame[16:] if tagged else frame


def _parse(frame: bytes, flags: int) -> Packet | Arp:
    return parse(frame, bool(flags & CSUM_UNKNOWN), bool(flags & CSUM_PARTIAL))


def check_frame(site: Site, arrival: Arrival) -> bytes | None:
    """MACs and what is answered without a flow. The answer, or None: the frame goes on."""
    if arrival.endpoint is not None:
        return _check_endpoint(arrival, arrival.endpoint)
    if arrival.outer is not None:
        _check_underlay(arrival)
        return None
    return _check_host(site, arrival)


def _check_endpoint(arrival: Arrival, endpoint: Endpoint) -> bytes | None:
    assert arrival.network is not None
    if arrival.smac != endpoint.mac:
        raise Drop("guard_mac")
    if isinstance(arrival.packet, Arp):
        return _answer_arp(arrival.packet, arrival.network, endpoint)
    if arrival.packet.is_nd:
        return nd.from_endpoint(arrival.packet, arrival.network, endpoint)
    if is_multicast_mac(arrival.dmac):
        raise Drop("multicast")
    return None


def _answer_arp(arp: Arp, network: Network, endpoint: Endpoint) -> bytes:
    own_sender = arp.spa in endpoint.addresses or arp.spa[12:] == bytes(4)
    if arp.opcode != 1 or arp.sha != endpoint.mac or not own_sender:
        raise Drop("guard_arp")
    if arp.tpa in endpoint.addresses:
        raise Drop("arp_announcement")
    route = network.route(arp.tpa)
    if route is None or route.kind == "subnet":
        raise Drop("arp_unknown_target")
    return answer.arp(arp, route.endpoint.mac if route.endpoint else network.dr_mac)


def _check_underlay(arrival: Arrival) -> None:
    if isinstance(arrival.packet, Arp):
        raise Drop("guard_arp")
    if arrival.packet.is_nd:
        raise Drop("guard_nd")
    if is_multicast_mac(arrival.dmac):
        raise Drop("multicast")


def _check_host(site: Site, arrival: Arrival) -> bytes | None:
    host, packet = site.host, arrival.packet
    assert host is not None
    if isinstance(packet, Arp):
        if packet.opcode != 1 or packet.tpa != host.address:
            raise Drop("arp_unknown_target")
        return answer.arp(packet, host.mac)
    if packet.is_nd:
        return nd.from_host(packet, host.address, host.mac)
    if is_multicast_mac(arrival.dmac):
        raise Drop("multicast")
    if arrival.dmac != host.mac:
        raise Drop("not_our_mac")
    if is_multicast(packet.flow.dst):
        raise Drop("multicast")
    if packet.flow.dst != host.address or not packet.flow.is_echo_request:
        return None
    if packet.fragment:
        raise Drop("to_gateway")
    return answer.echo(packet, host.mac)


def gateway_echo(arrival: Arrival) -> bytes | None:
    """The distributed router answers ping, and nothing else."""
    packet, network, endpoint = arrival.packet, arrival.network, arrival.endpoint
    assert isinstance(packet, Packet) and network and endpoint
    check_source(endpoint, packet.flow)
    route = network.route(packet.flow.dst)
    if route is None or route.kind != "gateway" or arrival.switched or not answer.is_echo(packet):
        return None
    return answer.echo(packet, network.dr_mac)


def check_source(endpoint: Endpoint, flow: FlowId) -> None:
    """An endpoint sends as itself, to one receiver, and is no DHCP server."""
    if is_multicast(flow.dst):
        raise Drop("multicast")
    if flow.src not in endpoint.addresses:
        raise Drop("guard_ip")
    dhcp = 67 if is_mapped(flow.src) else 547
    if flow.proto == UDP and flow.sport == dhcp:
        raise Drop("guard_dhcp")


def is_multicast_mac(mac: bytes) -> bool:
    return bool(mac[0] & 1)


def is_multicast(address: bytes) -> bool:
    if is_mapped(address):
        return 224 <= address[12] < 240 or address[12:] == BROADCAST4
    return address[0] == 0xFF
