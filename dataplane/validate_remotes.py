"""Remote subnets that contradict one another, or the node they are written for."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import NamedTuple

from dataplane import defaults
from dataplane.address import IP, Mac, Prefix
from dataplane.memo import Memo, same_ends
from dataplane.model import Network, Node, RemoteSubnet, Underlay
from dataplane.tree import Complaint, Path
from dataplane.validate_values import station, taken, unicast


class _Sound(NamedTuple):
    """Remote subnets that nothing is wrong with, and what more of them must not contradict."""

    underlay: Underlay | None
    subnets: tuple[RemoteSubnet, ...]
    prefixes: set[Prefix]
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
    yield from _stolen(network, found.prefixes, path)


def _judge(
    sound: _Sound, subnets: tuple[RemoteSubnet, ...], underlay: Underlay, path: Path
) -> tuple[list[Complaint], _Sound]:
    head, tail = same_ends(sound.subnets, subnets)
    fresh = subnets[head : len(subnets) - tail]
    gone = sound.subnets[head : len(sound.subnets) - tail]
    prefixes = sound.prefixes.difference([s.prefix for s in gone])
    prefixes.update([s.prefix for s in fresh])
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


def _stolen(network: Network, prefixes: set[Prefix], path: Path) -> Iterator[Complaint]:
    own = dict.fromkeys(defaults.gateways(network), "gateway")
    own |= {a: "endpoint" for e in network.endpoints for a in e.addresses}
    taken_by = {ip_network(a): whose for a, whose in own.items()}
    if prefixes.isdisjoint(taken_by):
        return
    for i, subnet in enumerate(network.remote_subnets):
        if subnet.prefix in taken_by:
            message = f"{subnet.prefix} is the address of a local {taken_by[subnet.prefix]}"
            yield Complaint((*path, i, "prefix"), message)
