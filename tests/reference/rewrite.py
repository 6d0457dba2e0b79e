"""What is done to each packet of a flow, in order (semantics 6)."""

from collections.abc import Iterator

from tests.reference.checksum import checksum
from tests.reference.edit import edit
from tests.reference.flows import Pair, Way
from tests.reference.guard import Arrival
from tests.reference.nat import has_port
from tests.reference.outer import Inside, encapsulate, sets_df
from tests.reference.site import HOST, UNDERLAY, Site
from tests.reference.verdict import Drop
from tests.reference.wire import ETHERNET, ICMP, TCP, UDP, FlowId, Packet, unmapped

SYN = 0x02
ECN_TABLE = (  # inner after decapsulation, [inner][outer]; None: drop (RFC 6040 section 4.2)
    # Not-ECT, ECT(1), ECT(0), CE
    (0, 0, 0, None),
    (1, 1, 1, 3),
    (2, 1, 2, 3),
    (3, 3, 3, 3),
)


def check(arrival: Arrival, way: Way) -> None:
    """TTL, then size, then ECN; nothing has been changed yet."""
    packet = arrival.packet
    assert isinstance(packet, Packet)
    if hops(arrival) and packet.data[packet.ttl_at] <= 1:
        raise Drop("ttl_expired")
    if way.mtu is not None and packet.first_len > way.mtu:
        if packet.dont_fragment or packet.size:
            raise Drop("too_big", mtu=way.mtu)
        raise Drop("needs_fragmentation")
    if arrival.outer is not None and ECN_TABLE[packet.ecn][arrival.outer.ecn] is None:
        raise Drop("ecn_ce_on_not_ect")


def hops(arrival: Arrival) -> bool:
    """Whether a router is passed: from the underlay, the sending side has counted the hop."""
    return arrival.outer is None and not arrival.switched


def rewrite(site: Site, arrival: Arrival, way: Way, leaves_as: FlowId) -> None:
    """All changes of the inner frame; those of checksums by difference."""
    packet = arrival.packet
    assert isinstance(packet, Packet)
    _clamp_mss(packet, way.mss_mtu - (40 if packet.version == 4 else 60))
    if leaves_as != packet.flow:
        _translate(packet, leaves_as)
    hop(site, arrival, way)


def hop(site: Site, arrival: Arrival, way: Way) -> None:
    """The router's part: ECN, TTL, MAC addresses."""
    packet = arrival.packet
    assert isinstance(packet, Packet)
    if arrival.outer is not None:
        assert arrival.network is not None
        uniform = arrival.network.wire.dscp_decap == "copy"
        dscp = (arrival.outer.tos if uniform else packet.tos) & 0xFC
        _set_tos(packet, dscp | (ECN_TABLE[packet.ecn][arrival.outer.ecn] or 0))
    if hops(arrival):
        ttl = packet.data[packet.ttl_at] - 1
        edit(packet.data, packet.ttl_at, bytes([ttl]), packet.ip_check_at)
    if not arrival.switched:
        packet.data[0:12] = _macs(site, arrival, way)


def _macs(site: Site, arrival: Arrival, way: Way) -> bytes:
    """Destination and source."""
    if way.egress == HOST:
        assert site.host
        return site.host.peer_mac + site.host.mac
    if way.receiver:
        return way.receiver.mac + site.networks[way.receiver.vni].dr_mac
    assert way.adjacency
    return way.adjacency.dr_mac + site.networks[way.adjacency.vni].dr_mac


def _set_tos(packet: Packet, tos: int) -> None:
    at = ETHERNET + 1
    if packet.version == 4:
        edit(packet.data, at, bytes([tos]), packet.ip_check_at)
    else:
        packet.data[at - 1 : at + 1] = bytes(
            [0x60 | tos >> 4, (tos & 15) << 4 | packet.data[at] & 15]
        )


def _clamp_mss(packet: Packet, limit: int) -> None:
    """Lowers the first MSS option of a SYN; options after one of bad length are not looked at."""
    if packet.flow.proto != TCP or packet.later or not packet.data[packet.l4 + 13] & SYN:
        return
    at, end = packet.l4 + 20, packet.l4 + (packet.data[packet.l4 + 12] >> 4) * 4
    while at + 1 < end and packet.data[at] != 0:
        if packet.data[at] == 1:
            at += 1
            continue
        kind, length = packet.data[at], packet.data[at + 1]
        if length < 2 or at + length > end:
            return
        if kind == 2 and length == 4:
            if int.from_bytes(packet.data[at + 2 : at + 4]) > limit:
                check_at = None if packet.partial else packet.check_at
                edit(packet.data, at + 2, limit.to_bytes(2), check_at)
            return
        at += length


def _translate(packet: Packet, new: FlowId) -> None:
    """Addresses, then ports or echo id; the transport checksum follows (RFC 1624, RFC 768)."""
    data, old, check_at = packet.data, packet.flow, packet.check_at
    src_at = ETHERNET + (12 if packet.version == 4 else 8)
    addresses = unmapped(new.src) + unmapped(new.dst)
    if packet.partial:
        _translate_partial(packet, addresses, src_at)
        check_at = None
    elif old.proto == UDP and packet.version == 4 and not packet.later and _is_zero(packet):
        check_at = None
    pseudo_check = None if old.proto == ICMP or not has_port(old) else check_at
    if not packet.partial:
        edit(data, src_at, addresses, packet.ip_check_at, pseudo_check)
    if not has_port(old) or packet.later:
        return
    if old.proto in (TCP, UDP):
        edit(data, packet.l4, new.sport.to_bytes(2) + new.dport.to_bytes(2), check_at)
    else:
        edit(data, packet.l4 + 4, new.sport.to_bytes(2), check_at)
    if old.proto == UDP and check_at is not None and _is_zero(packet):
        data[check_at : check_at + 2] = b"\xff\xff"


def _translate_partial(packet: Packet, addresses: bytes, src_at: int) -> None:
    """The field holds the pseudo-header's sum itself: adjusted as the complement of a checksum."""
    check_at = packet.check_at
    assert check_at is not None
    _complement(packet.data, check_at)
    edit(packet.data, src_at, addresses, packet.ip_check_at, check_at)
    _complement(packet.data, check_at)


def _complement(data: bytearray, at: int) -> None:
    data[at : at + 2] = bytes(b ^ 0xFF for b in data[at : at + 2])


def _is_zero(packet: Packet) -> bool:
    assert packet.check_at is not None
    return packet.data[packet.check_at : packet.check_at + 2] == b"\0\0"


def outgoing(
    site: Site, packet: Packet, pair: Pair, half: int, way: Way, ids: Iterator[int]
) -> bytes:
    """The frame as it leaves: encapsulated towards a remote subnet. `ids`: of outer packets."""
    frame = bytes(packet.data)
    if way.egress != UNDERLAY:
        return frame
    assert way.adjacency
    sport = pair.entropy[half]
    assert sport is not None
    on_wire = completed(packet) if packet.partial else frame
    length = ETHERNET + packet.first_len
    joined = packet.size > 0
    inside = Inside(frame, on_wire, packet.tos, packet.dont_fragment, length, joined)
    ident = 0 if sets_df(inside, way.adjacency) else next(ids)
    return encapsulate(inside, sport, way.adjacency, site.underlay, ident)


def completed(packet: Packet) -> bytes:
    """As the device will send it: the sum that stands in the field is part of what is summed."""
    data = bytearray(packet.data)
    assert packet.check_at is not None
    sum_of_all = checksum(bytes(data[packet.l4 :]))
    data[packet.check_at : packet.check_at + 2] = (sum_of_all or 0xFFFF).to_bytes(2)
    return bytes(data)
