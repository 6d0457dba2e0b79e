"""Remote subnets that contradict one another, or the node they are written for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dataplane import defaults
from dataplane.address import IP, Mac, Prefix, Span, ip16, prefix16
from dataplane.memo import Memo, same_ends
from dataplane.model import Network, Node, RemoteSubnet, Underlay
from dataplane.tree import Complaint, Path
from dataplane.validate_values import station, taken, unicast
from dataplane.vips import vip_spans


class Sound(NamedTuple):
    """Remote subnets that nothing is wrong with, and what more of them must not contradict."""

    underlay: Underlay | None
    subnets: tuple[RemoteSubnet, ...]
    by_prefix: dict[Span, RemoteSubnet]
    dr_macs: dict[IP, Mac]  # of all, and maybe of some that are gone


Owners = tuple[tuple[str, Mapping[Span, object]], ...]  # the first of them has it

DIRECT = "direct subnet"  # the owner of one
NOTHING = Sound(None, (), {}, {})


def remote_subnets(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """Those that were sound before are not looked at again, unless others contradict them."""
    sound = memo.kept(path, NOTHING)
    if sound.underlay != node.underlay:
        sound = NOTHING
    complaints, found = _judge(sound, network.remote_subnets, node.underlay, path)
    if complaints and sound is not NOTHING:
        complaints, found = _judge(NOTHING, network.remote_subnets, node.underlay, path)
    if not complaints:
        memo.keep(path, found)
    yield from complaints
    yield from _stolen(network, node, found, path, memo)
    yield from _shared(network, node, path, memo)


def _judge(
    sound: Sound, subnets: tuple[RemoteSubnet, ...], underlay: Underlay, path: Path
) -> tuple[list[Complaint], Sound]:
    head, tail = same_ends(sound.subnets, subnets)
    fresh = subnets[head : len(subnets) - tail]
    gone = sound.subnets[head : len(sound.subnets) - tail]
    by_prefix = dict(sound.by_prefix)
    for subnet in gone:
        del by_prefix[prefix16(subnet.prefix)]
    by_prefix.update((prefix16(s.prefix), s) for s in fresh)
    found = Sound(underlay, subnets, by_prefix, dict(sound.dr_macs))
    complaints: list[Complaint] = []
    if len(by_prefix) != len(subnets):
        places = ((s.prefix, (*path, i)) for i, s in enumerate(subnets))
        complaints += taken("remote subnet", places)
    for i, subnet in enumerate(fresh, head):
        via, mac = subnet.provider_address, subnet.dr_mac
        known = found.dr_macs.setdefault(via, mac)
        if known is mac:
            complaints += vtep(subnet, underlay, (*path, i))
        elif known != mac:
            message = f"{via} has the DR MAC {known} in an earlier remote subnet, {mac} here"
            fix = "one DR MAC a VTEP and network"
            complaints.append(Complaint((*path, i, "dr_mac"), message, fix))
    return complaints, found


def vtep(subnet: RemoteSubnet, underlay: Underlay, path: Path) -> Iterator[Complaint]:
    """What is wrong with where it leads."""
    yield from provider(subnet.provider_address, underlay, (*path, "provider_address"))
    yield from station(subnet.dr_mac, (*path, "dr_mac"))


def provider(address: IP, underlay: Underlay, path: Path) -> Iterator[Complaint]:
    """What is wrong with the address of another node."""
    own = [a for a in (underlay.address, underlay.address6) if a is not None]
    yield from unicast(address, path, loopback=True)
    if address in own:
        yield Complaint(path, f"{address} is this node's own underlay address")
    if all(address.version != a.version for a in own):
        key = "address6" if address.version == 6 else "address"
        message = f"{address} cannot be reached: the underlay has no IPv{address.version} address"
        yield Complaint(path, message, f"set underlay.{key}")


def _stolen(
    network: Network, node: Node, found: Sound, path: Path, memo: Memo
) -> Iterator[Complaint]:
    owners = local_owners(network, node, memo)
    if all(found.by_prefix.keys().isdisjoint(spans.keys()) for _, spans in owners):
        return
    for i, subnet in enumerate(network.remote_subnets):
        whose = owner_of(subnet.prefix, owners)
        if whose:
            message = f"{subnet.prefix} is the address of a local {whose}"
            yield Complaint((*path, i, "prefix"), message)


def local_owners(network: Network, node: Node, memo: Memo) -> Owners:
    """Who has an address here that no remote subnet of the network may be."""
    owners: list[tuple[str, Iterable[Span]]] = [
        ("gateway", ((ip16(a), 128) for a in defaults.gateways(network)))
    ]
    if network.host_route and node.host_port is not None:
        owners.append(("host subnet", map(prefix16, network.host_subnets)))
        owners.append(("host", [(ip16(node.host_port.peer), 128)]))
    domain = (network, *_domain(network, node))
    own = [(whose, dict.fromkeys(spans)) for whose, spans in owners]
    ends = (("endpoint", _endpoint_spans(n, memo)) for n in domain)
    vips = (("VIP", vip_spans(n, memo)) for n in domain)
    direct = dict.fromkeys(prefix16(s.prefix) for s in network.direct_subnets)
    return *own, *ends, *vips, (DIRECT, direct)


def _endpoint_spans(network: Network, memo: Memo) -> Mapping[Span, int]:
    return memo.counted(
        ("endpoint spans", network.name),
        network.endpoints,
        None,
        lambda endpoint: ((ip16(a), 128) for a in endpoint.addresses),
    )


def owner_of(prefix: Prefix, owners: Owners) -> str | None:
    span = prefix16(prefix)
    return next((whose for whose, spans in owners if span in spans), None)


def _domain(network: Network, node: Node) -> Iterator[Network]:
    """The other networks that it routes into."""
    domain = network.routing_domain
    if domain is not None:
        yield from (n for n in node.networks if n.routing_domain == domain and n is not network)


def _shared(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """Remote subnets that an earlier network of the domain has, too."""
    for other in _domain(network, node):
        if other is next(n for n in node.networks if n is other or n is network):
            twice = _prefixes(network, memo) & _prefixes(other, memo)
            for i, subnet in enumerate(network.remote_subnets if twice else ()):
                if subnet.prefix in twice:
                    message = f"{subnet.prefix} is a remote subnet of {other.name}"
                    fix = f"both are of routing domain {network.routing_domain}"
                    yield Complaint((*path, i, "prefix"), message, fix)


def _prefixes(network: Network, memo: Memo) -> frozenset[Prefix]:
    subnets = network.remote_subnets
    return memo(("prefixes", network.name), subnets, lambda: frozenset(s.prefix for s in subnets))
