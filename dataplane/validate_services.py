"""Load balancers, port mappings, routing domains and host routes that contradict one another."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping

from dataplane.address import IP
from dataplane.memo import Memo
from dataplane.model import LoadBalancer, Network, Node, PortMapping
from dataplane.tree import Complaint, Path, path_text
from dataplane.validate_values import named, taken, unicast

_MOST_BACKENDS = 5000


def network_services(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """What can be said of one network."""
    names = memo.counted((*path, "names"), network.load_balancers, None, lambda b: (b.name,))
    if _any_twice(names):
        yield from taken("load balancer", ((b.name, at) for b, at in _placed(network, path)))
    if _any_twice(*_keys(network, path, memo)):
        yield from taken("VIP and port", _met_in(network, path))
    yield from _balancers(network, node, path, memo)
    for i, endpoint in enumerate(network.endpoints):
        for j, mapping in enumerate(endpoint.port_mappings):
            where = (*path, "endpoints", i, "port_mappings", j)
            yield from _mapping(mapping, endpoint.addresses, node, where)
    if network.host_route and node.host_port is None:
        yield Complaint((*path, "host_route"), "the node has no host port", "add host_port")


def _placed(network: Network, path: Path) -> Iterator[tuple[LoadBalancer, Path]]:
    for i, balancer in enumerate(network.load_balancers):
        yield balancer, (*path, "load_balancers", i)


def _balancers(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """Those that were sound before are not looked at again."""
    addresses = tuple(a for e in network.endpoints for a in e.addresses)
    owned = {*addresses, *network.gateways}
    sound = memo.each(
        (*path, "load_balancers"),
        network.load_balancers,
        (node.host_port, addresses, network.gateways),
        lambda balancer: not any(_balancer(balancer, node, owned, path, memo)),
    )
    if not all(sound):
        for balancer, place in _placed(network, path):
            yield from _balancer(balancer, node, owned, place, memo)


def host_services(node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """What networks of one node must agree on: the host port, routing domains, host routes."""
    if node.host_port is not None and _any_twice(*_keys_at_host(node, path, memo)):
        met = [item for i, n in enumerate(node.networks) for item in _met_at_host(n, node, i, path)]
        yield from taken("VIP and port at the host port", met)
    for i, network in enumerate(node.networks):
        for j, other in enumerate(node.networks[:i]):
            together = network.routing_domain is not None and (
                network.routing_domain == other.routing_domain
            )
            if together and node.host_port is None:
                yield from _met_twice(network, other, (*path, "networks"), (i, j))
            reason = f"of routing domain {network.routing_domain}" if together else "the host"
            if together or (network.host_route and other.host_route):
                yield from _apart(network, other, (*path, "networks", i), j, reason)


def _met_twice(
    network: Network, other: Network, path: Path, places: tuple[int, int]
) -> Iterator[Complaint]:
    """Where there is no host port to meet them at."""
    i, j = places
    known = dict(_met_in(other, (*path, j)))
    for key, at in _met_in(network, (*path, i)):
        if key in known:
            yield Complaint(at, f"VIP and port {key} is taken", f"also at {path_text(known[key])}")


def _apart(
    network: Network, other: Network, path: Path, place: int, reason: str
) -> Iterator[Complaint]:
    for i, prefix in enumerate(network.prefixes):
        for taken_by in other.prefixes:
            if prefix.version == taken_by.version and prefix.overlaps(taken_by):
                message = f"{prefix} overlaps {taken_by} of networks[{place}]"
                fix = f"routes {reason} would not tell them apart"
                yield Complaint((*path, "prefixes", i), message, fix)


def _met_in(network: Network, path: Path) -> Iterator[tuple[Hashable, Path]]:
    for i, balancer in enumerate(network.load_balancers):
        for j, key in enumerate(_keys_of(balancer)):
            yield key, (*path, "load_balancers", i, "vips", j)
    for i, endpoint in enumerate(network.endpoints):
        for j, mapping in enumerate(endpoint.port_mappings):
            yield _key_of(mapping), (*path, "endpoints", i, "port_mappings", j)


def _met_at_host(
    network: Network, node: Node, place: int, path: Path
) -> Iterator[tuple[Hashable, Path]]:
    if node.host_port is None:
        return
    where = (*path, "networks", place)
    for key, at in _met_in(network, where):
        yield _key_at(node.host_port.address, str(key)), at
    for i, balancer in enumerate(network.load_balancers):
        if balancer.node_port is not None:
            at = (*where, "load_balancers", i, "node_port")
            yield _node_port_key(balancer), at


def _keys_of(balancer: LoadBalancer) -> tuple[str, ...]:
    return tuple(f"{balancer.protocol} {vip}:{balancer.port}" for vip in balancer.vips)


def _key_of(mapping: PortMapping) -> str:
    return f"{mapping.protocol} {mapping.vip or 'host'}:{mapping.port}"


def _key_at(host: IP, key: str) -> str:
    return key.replace(f" {host}:", " host:")


def _node_port_key(balancer: LoadBalancer) -> str:
    return f"{balancer.protocol} host:{balancer.node_port}"


def _keys(network: Network, path: Path, memo: Memo) -> Iterator[Mapping[str, int]]:
    """How often `_met_in` says each."""
    yield memo.counted((*path, "keys"), network.load_balancers, None, _keys_of)
    yield Counter(_key_of(m) for endpoint in network.endpoints for m in endpoint.port_mappings)


def _keys_at_host(node: Node, path: Path, memo: Memo) -> Iterator[Mapping[str, int]]:
    """How often `_met_at_host` says each."""
    assert node.host_port is not None
    host = node.host_port.address

    def at_host(balancer: LoadBalancer) -> tuple[str, ...]:
        own = () if balancer.node_port is None else (_node_port_key(balancer),)
        return (*(_key_at(host, key) for key in _keys_of(balancer)), *own)

    for i, network in enumerate(node.networks):
        where = (*path, "networks", i, "keys at host")
        yield memo.counted(where, network.load_balancers, host, at_host)
        mappings = (m for endpoint in network.endpoints for m in endpoint.port_mappings)
        yield Counter(_key_at(host, _key_of(mapping)) for mapping in mappings)


def _any_twice(*counts: Mapping[str, int]) -> bool:
    some = list(filter(None, counts))
    unlike = len(some[0]) if len(some) == 1 else len(set().union(*some))
    return unlike < sum(sum(each.values()) for each in some)


def _balancer(
    balancer: LoadBalancer, node: Node, owned: set[IP], path: Path, memo: Memo
) -> Iterator[Complaint]:
    yield from named(balancer.name, path)
    for key in ("port", "target_port", "node_port"):
        yield from _port(getattr(balancer, key), (*path, key))
    if not balancer.vips and balancer.node_port is None:
        yield Complaint(path, "neither vips nor a node_port: no client can meet it", "add one")
    if balancer.node_port is not None and node.host_port is None:
        yield Complaint((*path, "node_port"), "the node has no host port", "add host_port")
    if balancer.source_vip is not None:
        yield from _vip(balancer.source_vip, owned, (*path, "source_vip"))
    for i, vip in enumerate(balancer.vips):
        yield from _vip(vip, owned, (*path, "vips", i))
    versions: set[int] = {v.version for v in balancer.vips}
    if balancer.node_port is not None and node.host_port is not None:
        versions.add(node.host_port.address.version)
    shared, port = balancer.backends, balancer.target_port or balancer.port
    if not memo(  # many balancers may have the same backends
        ("backends", id(shared), port, frozenset(versions)),
        shared,
        lambda: not any(_backends(balancer, versions, path)),
    ):
        yield from _backends(balancer, versions, path)


def _backends(balancer: LoadBalancer, versions: set[int], path: Path) -> Iterator[Complaint]:
    if len(balancer.backends) > _MOST_BACKENDS:
        yield Complaint((*path, "backends"), f"more than {_MOST_BACKENDS} backends")
    default = balancer.target_port or balancer.port
    places = (
        ((b.address, b.port or default), (*path, "backends", i))
        for i, b in enumerate(balancer.backends)
    )
    yield from taken("backend", places)
    for i, backend in enumerate(balancer.backends):
        where = (*path, "backends", i)
        yield from unicast(backend.address, where)
        yield from _port(backend.port, (*where, "port"))
        if versions and backend.address.version not in versions:
            yield Complaint(where, f"{backend.address} is of another IP version than every VIP")


def _vip(vip: IP, owned: set[IP], path: Path) -> Iterator[Complaint]:
    yield from unicast(vip, path)
    if vip in owned:
        yield Complaint(path, f"{vip} is the address of an endpoint or gateway", "a free one")


def _mapping(
    mapping: PortMapping, addresses: tuple[IP, ...], node: Node, path: Path
) -> Iterator[Complaint]:
    for key in ("port", "target_port"):
        yield from _port(getattr(mapping, key), (*path, key))
    if node.host_port is None:
        yield Complaint(path, "the node has no host port to map a port of", "add host_port")
        return
    outside = mapping.vip or node.host_port.address
    if mapping.vip is not None:
        yield from unicast(mapping.vip, (*path, "vip"))
    if all(a.version != outside.version for a in addresses):
        yield Complaint(path, f"the endpoint has no address of the IP version of {outside}")


def _port(port: int | None, path: Path) -> Iterator[Complaint]:
    if port is not None and not 1 <= port <= 65535:
        yield Complaint(path, f"{port} is not a port (1-65535)")
