"""What lies behind the host, or is reached by its routes, and contradicts the rest of the node."""

from collections.abc import Iterator

from dataplane.address import Prefix, host_prefix, is_within
from dataplane.memo import Memo
from dataplane.model import Network, Node
from dataplane.tree import Complaint, Path
from dataplane.validate_remotes import DIRECT, local_owners, owner_of, provider
from dataplane.validate_values import inside, taken


def host_subnets(network: Network, node: Node, path: Path) -> Iterator[Complaint]:
    if network.host_subnets and not network.host_route:
        yield _not_routed((*path, "host_subnets"))
    for i, subnet in enumerate(network.host_subnets):
        place = (*path, "host_subnets", i)
        if node.host_port and subnet.version != node.host_port.address.version:
            yield Complaint(place, f"{subnet} is not of the IP version of the host port")
        for j, other in enumerate(network.host_subnets[:i]):
            if subnet.version == other.version and subnet.overlaps(other):
                yield Complaint(place, f"{subnet} overlaps {other}", f"see host_subnets[{j}]")


def direct_subnets(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    if not network.direct_subnets:
        return
    if not network.host_route:
        yield _not_routed((*path, "direct_subnets"))
    if network.routing_domain is not None:
        yield Complaint((*path, "direct_subnets"), "a network of a routing domain has none")
    version = node.host_port.address.version if node.host_port is not None else None
    places = [(*path, "direct_subnets", i) for i in range(len(network.direct_subnets))]
    prefixes = [subnet.prefix for subnet in network.direct_subnets]
    yield from taken("direct subnet", zip(prefixes, places, strict=True))
    owners = local_owners(network, node, memo)
    for place, (prefix, via) in zip(
        places, ((s.prefix, s.provider_address) for s in network.direct_subnets), strict=True
    ):
        at = (*place, "prefix")
        if version not in (None, prefix.version):
            yield Complaint(at, f"{prefix} is not of the IP version of the host port")
        if via.version != prefix.version:
            message = f"{via} is not of the IP version of {prefix}"
            yield Complaint((*place, "provider_address"), message)
        yield from provider(via, node.underlay, (*place, "provider_address"))
        for address in dict.fromkeys((prefix.network_address, prefix.broadcast_address)):
            yield from inside(address, network, at)
        owner = owner_of(prefix, owners) or DIRECT
        if prefix in network.prefixes:
            yield Complaint(at, f"{prefix} is the whole network", "a part of it for each node")
        elif owner != DIRECT:
            yield Complaint(at, f"{prefix} is the address of a local {owner}")
        else:
            yield from _inside(prefix, network, at)


def _inside(direct: Prefix, network: Network, path: Path) -> Iterator[Complaint]:
    """What is elsewhere to the engine, which goes by the longest prefix, but not to the host."""
    spans: list[tuple[str, Prefix]] = [
        *(("remote subnet", s.prefix) for s in network.remote_subnets),
        *(("host subnet", subnet) for subnet in network.host_subnets),
        *(("endpoint", host_prefix(a)) for e in network.endpoints for a in e.addresses),
    ]
    for what, prefix in spans:
        if is_within(prefix, direct):
            yield Complaint(path, f"the {what} {prefix} lies in it, where the host has no route")
            return


def _not_routed(path: Path) -> Complaint:
    return Complaint(path, "the host is not routed to", "host_route: true")
