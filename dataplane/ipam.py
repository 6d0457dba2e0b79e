"""IPAM: addresses for endpoints that name none, out of their network's pool, or its prefixes.

A free address is one that no endpoint has, no gateway, no service, and that lies behind no other
node. What was released is given again last, the longest released first, so that whoever still
remembers an address does not meet somebody else there at once.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import chain
from types import MappingProxyType

from msgspec.structs import replace

from dataplane.address import IP, Prefix
from dataplane.defaults import gateways
from dataplane.errors import DataplaneError, DocumentError, Fault
from dataplane.model import Document, Endpoint, Network, Node, vips_of
from dataplane.shares import Shares

MOST = 4096  # released addresses of a network that are remembered

Released = Mapping[str, tuple[str, ...]]  # by network, the longest released first
Given = Mapping[tuple[str, str], tuple[IP, ...]]  # by network and endpoint
NONE: Released = MappingProxyType({})


class ExhaustedError(DataplaneError):
    """No address of the network is free."""


class Pool:
    """The free addresses of one network, given one after the other."""

    def __init__(self, network: Network, released: Iterable[str] = ()) -> None:
        self._network = network
        self._taken = {*_taken(network)}
        far = [r.prefix for r in network.remote_subnets]
        far += [d.prefix for d in network.direct_subnets]
        self._far = {version: _Spans(p for p in far if p.version == version) for version in (4, 6)}
        self._released = [ip_address(text) for text in released]
        self._waiting = {*self._released}
        families = dict.fromkeys(int(prefix.version) for prefix in network.prefixes)
        self._fresh = {version: self._all(version) for version in families}

    def keep(self, addresses: Iterable[IP]) -> None:
        """They are somebody's."""
        self._taken.update(addresses)

    def is_free(self, address: IP) -> bool:
        """In the network, whether in its pool or not."""
        return self._is_free(address, self._network.prefixes)

    def take(self) -> tuple[IP, ...]:
        """One of each family that the network has prefixes of. Raises ExhaustedError."""
        if not self._fresh:
            name = self._network.name
            raise ExhaustedError(f"network {name} has no prefixes to take addresses of")
        return tuple(map(self._one, self._fresh))

    def _one(self, version: int) -> IP:
        own = self._ranges(version)
        fresh = (address for address in self._fresh[version] if address not in self._waiting)
        for address in chain(fresh, self._released):
            if self._is_free(address, own):
                self._taken.add(address)
                return address
        raise ExhaustedError(f"network {self._network.name}: no IPv{version} address is free")

    def _is_free(self, address: IP, ranges: Iterable[Prefix]) -> bool:
        return (
            address not in self._taken
            and any(_is_host(address, prefix) for prefix in ranges)
            and self._far[address.version].end_of(int(address)) is None
        )

    def _ranges(self, version: int) -> list[Prefix]:
        pool = [prefix for prefix in self._network.pool if prefix.version == version]
        return pool or [p for p in self._network.prefixes if p.version == version]

    def _all(self, version: int) -> Iterator[IP]:
        return _hosts(self._ranges(version), self._far[version])


class _Spans:
    """Prefixes of one family as spans of numbers, sorted, that do not overlap."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        spans = ((int(p.network_address), int(p.broadcast_address)) for p in prefixes)
        for first, last in sorted(spans, key=lambda span: (span[0], -span[1])):
            if self.end_of(first) is None:  # of two that overlap, the wider one came first
                self._firsts.append(first)
                self._lasts.append(last)

    def end_of(self, number: int) -> int | None:
        """The last number of the span that it is in."""
        i = bisect_right(self._firsts, number) - 1
        return self._lasts[i] if i >= 0 and number <= self._lasts[i] else None


def assigned(network: Network, released: Iterable[str] = ()) -> tuple[IP, ...]:
    """One free address of each family that the network has prefixes of. Raises ExhaustedError."""
    return Pool(network, released).take()


def completed(node: Node, before: Node | None = None, released: Released = NONE) -> Node:
    """The node with addresses for all endpoints; the same object where none lacks them.

    An endpoint that had some in `before` keeps them while they are free. Raises DocumentError.
    """
    given = missing(node, before, released)
    return filled(node, given) if given else node


def completed_document(document: Document) -> Document:
    """All its nodes, as `completed`. Raises DocumentError."""
    node = completed(document.node) if document.node is not None else None
    return replace(document, node=node, nodes=tuple(map(completed, document.nodes)))


def missing(node: Node, before: Node | None, released: Released) -> Given:
    """Addresses for the endpoints that name none. Raises DocumentError."""
    old = {n.name: n for n in before.networks} if before else {}
    found: dict[tuple[str, str], tuple[IP, ...]] = {}
    faults = []
    for i, network in enumerate(node.networks):
        lacking = [(j, e) for j, e in enumerate(network.endpoints) if not e.addresses]
        if not lacking:
            continue
        pool = Pool(network, released.get(network.name, ()))
        held = old[network.name].endpoints if network.name in old else ()
        addresses = {e.name: e.addresses for e in held}
        for _, endpoint in lacking:
            kept = addresses.get(endpoint.name, ())
            if kept and all(map(pool.is_free, kept)):
                pool.keep(kept)
                found[network.name, endpoint.name] = kept
        for j, endpoint in lacking:
            try:
                key = network.name, endpoint.name
                found[key] = found.get(key) or pool.take()
            except ExhaustedError as error:
                path = f"$.networks[{i}].endpoints[{j}].addresses"
                fix = "name its addresses, or give the network a larger prefix or pool"
                faults.append(Fault(f"node {node.name}", 0, path, str(error), fix))
    if faults:
        raise DocumentError(tuple(faults))
    return found


def filled(node: Node, given: Given) -> Node:
    """The node whose endpoints without addresses have those that are given."""
    return replace(
        node,
        networks=tuple(
            replace(n, endpoints=filled_endpoints(n.endpoints, n.name, given))
            if any(not e.addresses for e in n.endpoints)
            else n
            for n in node.networks
        ),
    )


def filled_endpoints(
    endpoints: tuple[Endpoint, ...], network: str, given: Given
) -> tuple[Endpoint, ...]:
    return tuple(
        e if e.addresses else replace(e, addresses=given.get((network, e.name), ()))
        for e in endpoints
    )


def filled_shares(shares: Shares, given: Given) -> Shares:
    """As `filled`, for what front doors have."""
    return {
        origin: replace(
            share,
            networks=tuple(
                replace(n, endpoints=filled_endpoints(n.endpoints, n.name, given))
                for n in share.networks
            ),
            parts=tuple(
                replace(p, endpoints=filled_endpoints(p.endpoints, p.network, given))
                for p in share.parts
            ),
        )
        for origin, share in shares.items()
    }


def after(released: Released, before: Node | None, now: Node) -> Released:
    """What is released once a policy takes the place of another."""
    gone = {n.name: n.endpoints for n in before.networks} if before else {}
    found: dict[str, tuple[str, ...]] = {}
    for network in now.networks:
        name, ends = network.name, network.endpoints
        if gone.get(name, ends) is ends and name not in released:
            continue
        own = _addresses(ends)
        old = [text for text in released.get(name, ()) if text not in own]
        fresh = [text for text in _addresses(gone.get(name, ())) if text not in own]
        if old or fresh:
            found[name] = tuple(dict.fromkeys([*old, *fresh]))[-MOST:]
    return found


def _taken(network: Network) -> Iterator[IP]:
    yield from gateways(network)
    yield from vips_of(network)
    yield from (b.source_vip for b in network.load_balancers if b.source_vip is not None)
    for endpoint in network.endpoints:
        yield from endpoint.addresses


def _hosts(own: Iterable[Prefix], far: _Spans) -> Iterator[IP]:
    """Host addresses in their order; what lies behind another node is stepped over whole."""
    for prefix in own:
        number, end = _bounds(prefix)
        while number <= end:
            behind = far.end_of(number)
            if behind is None:
                yield type(prefix.network_address)(number)
            number = (number if behind is None else behind) + 1


def _bounds(prefix: Prefix) -> tuple[int, int]:
    """Its first and last host address."""
    hosts = prefix.num_addresses > 2
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    return first + hosts, last - (hosts and prefix.version == 4)


def _is_host(address: IP, prefix: Prefix) -> bool:
    first, last = _bounds(prefix)
    return address.version == prefix.version and first <= int(address) <= last


def _addresses(endpoints: Iterable[Endpoint]) -> dict[str, None]:
    return {str(address): None for endpoint in endpoints for address in endpoint.addresses}
