"""Remote subnets that contradict one another, or the node they are written for."""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane import defaults
from dataplane.address import IP, Mac, Prefix, Span, ip16, prefix16
from dataplane.memo import Memo, same_ends
from dataplane.model import Network, Node, RemoteSubnet, Underlay
from dataplane.tree import Complaint, Path
from dataplane.validate_values import station, taken, unicast
from dataplane.vips import vip_spans


class _Sound(NamedTuple):
    """Remote subnets that nothing is wrong with, and what more of them must not contradict."""

    underlay: Underlay | None
    subnets: tuple[RemoteSubnet, ...]
    prefixes: set[Span]
    dr_macs: dict[IP, Mac]


_NOTHING = _Sound(None, (), set(), {})


def remote_subnets(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """Those that were sound before are not looked at again, unless others contradict them."""
    sound = memo.kept(path, _NOTHING)
    if sound.underlay != node.underlay:
        sound = _NOTHING
    complaints, found = _judge(sound, network.remote_subnets, node.underlay, path)
    if complaints and sound is not _NOTHING:
        complaints, found = _judge(_NOTHING, network.remote_subnets, node.underlay, path)
    if not complaints:
        memo.keep(path, found)
    yield from complaints
    yield from _stolen(network, node, found.prefixes, path, memo)
    yield from _shared(network, node, path, memo)


def _judge(
    sound: _Sound, subnets: tuple[RemoteSubnet, ...], underlay: Underlay, path: Path
) -> tuple[list[Complaint], _Sound]:
    head, tail = same_ends(sound.subnets, subnets)
    fresh = subnets[head : len(subnets) - tail]
    gone = sound.subnets[head : len(sound.subnets) - tail]
    prefixes = sound.prefixes.difference([prefix16(s.prefix) for s in gone])
    prefixes.update([prefix16(s.prefix) for s in fresh])
    found = _Sound(underlay, subnets, prefixes, dict(sound.dr_macs))
    complaints: list[Complaint] = []
    if len(prefixes) != len(subnets):
        places = ((s.prefix, (*path, i)) for i, s in enumerate(subnets))
        complaints += taken("remote subnet", places)
    own = [a for a in (underlay.address, underlay.address6) if a is not None]
    for i, subnet in enumerate(fresh, head):
        provider, mac = subnet.provider_address, subnet.dr_mac
        known = found.dr_macs.setdefault(provider, mac)
        if known is mac:
            complaints += _provider(provider, own, (*path, i, "provider_address"))
            complaints += station(mac, (*path, i, "dr_mac"))
        elif known != mac:
            message = f"{provider} has the DR MAC {known} in an earlier remote subnet, {mac} here"
            fix = "one DR MAC a VTEP and network"
            complaints.append(Complaint((*path, i, "dr_mac"), message, fix))
    return complaints, found


def _provider(provider: IP, own: list[IP], path: Path) -> Iterator[Complaint]:
    yield from unicast(provider, path, loopback=True)
    if provider in own:
        yield Complaint(path, f"{provider} is this node's own underlay address")
    if all(provider.version != a.version for a in own):
        key = "address6" if provider.version == 6 else "address"
        message = f"{provider} cannot be reached: the underlay has no IPv{provider.version} address"
        yield Complaint(path, message, f"set underlay.{key}")


def _stolen(
    network: Network, node: Node, prefixes: set[Span], path: Path, memo: Memo
) -> Iterator[Complaint]:
    taken_by: dict[Span, str] = {}
    for other in (network, *_domain(network, node)):
        taken_by |= dict.fromkeys(vip_spans(other, memo), "VIP")
        taken_by |= {(ip16(a), 128): "endpoint" for e in other.endpoints for a in e.addresses}
    if network.host_route and node.host_port is not None:
        taken_by[ip16(node.host_port.peer), 128] = "host"
    taken_by |= {(ip16(a), 128): "gateway" for a in defaults.gateways(network)}
    if prefixes.isdisjoint(taken_by):
        return
    for i, subnet in enumerate(network.remote_subnets):
        whose = taken_by.get(prefix16(subnet.prefix))
        if whose:
            message = f"{subnet.prefix} is the address of a local {whose}"
            yield Complaint((*path, i, "prefix"), message)


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
