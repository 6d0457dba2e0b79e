"""Merging: a policy that names some objects, laid over one that stands. Pure.

Networks are known by name; in them endpoints, ACLs and load balancers by name, remote and direct
subnets by prefix. What is named is as the upper policy says, whole; what it does not name stays.
"""

from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace

from dataplane.model import Network, Node

Item = TypeVar("Item")


def merge(lower: Node, upper: Node) -> Node:
    """Of two policies of one node. Its host port and overlay stay, unless `upper` has them."""
    return replace(
        upper,
        host_port=upper.host_port or lower.host_port,
        flannel=upper.flannel or lower.flannel,
        icmp_rate=upper.icmp_rate or lower.icmp_rate,
        networks=_over(lower.networks, upper.networks, lambda n: n.name, _network),
    )


def _network(lower: Network, upper: Network) -> Network:
    return replace(
        upper,
        endpoints=_over(lower.endpoints, upper.endpoints, lambda e: e.name),
        remote_subnets=_over(lower.remote_subnets, upper.remote_subnets, lambda r: r.prefix),
        direct_subnets=_over(lower.direct_subnets, upper.direct_subnets, lambda d: d.prefix),
        acls=_over(lower.acls, upper.acls, lambda acl: acl.name),
        load_balancers=_over(lower.load_balancers, upper.load_balancers, lambda b: b.name),
    )


def _later(lower: Item, upper: Item) -> Item:
    return upper


def _over(
    lower: tuple[Item, ...],
    upper: tuple[Item, ...],
    key: Callable[[Item], object],
    both: Callable[[Item, Item], Item] = _later,
) -> tuple[Item, ...]:
    """In the order of `lower`, what is new behind it."""
    fresh = {key(item): item for item in upper}
    kept = tuple(both(i, fresh.pop(key(i))) if key(i) in fresh else i for i in lower)
    return kept + tuple(fresh.values())
