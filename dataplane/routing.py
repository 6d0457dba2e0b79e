"""Routing: who lives where: adjacencies, provider addresses and routes of a network."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane.address import IP, Prefix, ip16, prefix16
from dataplane.ids import AdjacencyName, Ids
from dataplane.memo import Memo
from dataplane.model import Network, Node, RemoteSubnet
from dataplane.rows import NO_ADDRESS, Adjacencies, NetworkRow, RouteKind, RouteTable, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNDERLAY_MAC = b"\x02\x00"


class Ways(NamedTuple):
    """Remote subnets as columns of equal length."""

    vtep: tuple[AdjacencyName, ...]
    prefix: "NDArray[np.uint8]"  # [n, 16]
    length: "NDArray[np.uint8]"
    flags: "NDArray[np.uint16]"  # enum dp_route_flag


class Vteps(NamedTuple):
    """The VTEPs behind which remote subnets are: each one once, and by subnet its place."""

    names: tuple[AdjacencyName, ...]
    addresses: tuple[bytes, ...]
    way: "NDArray[np.uint32]"


def ways_of(network: Network, memo: Memo) -> Ways:
    return memo.spliced(
        ("ways", network.name, network.vni),
        network.remote_subnets,
        lambda subnets: _make_ways(network.vni, subnets),
        _splice,
    )


def _make_ways(vni: int, subnets: Sequence[RemoteSubnet]) -> Ways:
    import numpy as np

    prefix, length = _columns([s.prefix for s in subnets])
    flags = np.array([s.dsr for s in subnets], np.uint16)
    names = tuple([AdjacencyName.of(vni, s.provider_address, s.dr_mac) for s in subnets])
    return Ways(names, prefix, length, flags)


def _splice(old: Ways, head: int, new: Ways, tail: int) -> Ways:
    import numpy as np

    last = len(old.vtep) - tail

    def column(a: "NDArray[Any]", b: "NDArray[Any]") -> "NDArray[Any]":
        return np.concatenate([a[:head], b, a[last:]])

    return Ways(
        old.vtep[:head] + new.vtep + old.vtep[last:],
        column(old.prefix, new.prefix),
        column(old.length, new.length),
        column(old.flags, new.flags),
    )


def vteps_of(network: Network, memo: Memo) -> Vteps:
    source = network.vni, network.remote_subnets
    return memo(("vteps", network.name), source, lambda: _make_vteps(ways_of(network, memo)))


def _make_vteps(ways: Ways) -> Vteps:
    import numpy as np

    places: dict[AdjacencyName, int] = {}
    way = [places.setdefault(name, len(places)) for name in ways.vtep]
    addresses = tuple(dict.fromkeys([name[3:19] for name in places]))
    return Vteps(tuple(places), addresses, np.array(way, np.uint32))


def _columns(prefixes: Sequence[Prefix]) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]":
    """Addresses [n, 16] and lengths [n]."""
    import numpy as np

    spans = [prefix16(p) for p in prefixes]
    octets = np.frombuffer(b"".join([s[0] for s in spans]), np.uint8)
    return octets.reshape(-1, 16), np.array([s[1] for s in spans], np.uint8)


def mtu_of(network: Network) -> int:
    assert isinstance(network.mtu, int)
    return network.mtu


def adjacencies_of(network: Network, ids: Ids, memo: Memo) -> Adjacencies:
    source = network.vni, network.remote_subnets, network.mtu
    return memo(
        ("adjacencies", network.name), source, lambda: _make_adjacencies(network, ids, memo)
    )


def _make_adjacencies(network: Network, ids: Ids, memo: Memo) -> Adjacencies:
    import numpy as np

    names = vteps_of(network, memo).names
    octets = np.frombuffer(b"".join(names), np.uint8).reshape(-1, 25)  # VNI, address, MAC
    remote, inner = octets[:, 3:19], octets[:, 19:]
    outer = np.empty((len(names), 6), np.uint8)
    outer[:, :2], outer[:, 2:] = list(UNDERLAY_MAC), remote[:, -4:]
    numbers = np.array([ids.adjacencies[name] for name in names], np.uint32)
    return Adjacencies(network.vni, mtu_of(network), numbers, remote, inner, outer)


def domain_of(network: Network, node: Node) -> tuple[Network, ...]:
    """The network and those it may route into, itself first."""
    if network.routing_domain is None:
        return (network,)
    same = [n for n in node.networks if n.routing_domain == network.routing_domain]
    return (network, *(n for n in same if n is not network))


def vips_of(network: Network) -> Iterator[IP]:
    """What load balancers and port mappings of the network are met under."""
    for balancer in network.load_balancers:
        yield from balancer.vips
    for endpoint in network.endpoints:
        yield from (m.vip for m in endpoint.port_mappings if m.vip is not None)


def _routes(network: Network, node: Node, ids: Ids, memo: Memo) -> RouteTable:
    domain = domain_of(network, node)
    ends = tuple(
        (ip16(a), ids.ports[f"{n.name}/{e.name}"])
        for n in domain
        for e in n.endpoints
        for a in e.addresses
    )
    host = node.host_port.peer if node.host_port and network.host_route else None
    vips = tuple(dict.fromkeys(ip16(v) for n in domain for v in vips_of(n)))
    remotes = tuple((n.vni, n.prefixes, n.remote_subnets) for n in domain)
    source = ends, network.gateways, host, vips, remotes
    return memo(
        ("routes", network.name),
        source,
        lambda: _make_routes(domain, _few(network, ends, host, vips), ids, memo),
    )


_Route = tuple[bytes, int, int, int]  # prefix, length, kind, target


def _few(
    network: Network, ends: tuple[tuple[bytes, int], ...], host: IP | None, vips: tuple[bytes, ...]
) -> list[_Route]:
    """Single addresses. Whoever comes first has it."""
    few = {octets: (octets, 128, RouteKind.ENDPOINT, port) for octets, port in ends}
    if host is not None:
        few.setdefault(ip16(host), (ip16(host), 128, RouteKind.HOST, 0))
    for octets in map(ip16, network.gateways):
        few.setdefault(octets, (octets, 128, RouteKind.GATEWAY, 0))
    for octets in vips:
        few.setdefault(octets, (octets, 128, RouteKind.VIP, 0))
    return list(few.values())


def _make_routes(
    domain: tuple[Network, ...], few: list[_Route], ids: Ids, memo: Memo
) -> RouteTable:
    """A prefix that something more particular claims as a whole is left to it."""
    import numpy as np

    ways = [ways_of(n, memo) for n in domain]
    vteps = [vteps_of(n, memo) for n in domain]
    claimed = {(row[0], 128) for row in few}
    subnets = dict.fromkeys(prefix16(p) for n in domain for p in n.prefixes)
    few = few + [
        (octets, length, RouteKind.SUBNET, 0)
        for octets, length in subnets
        if (octets, length) not in claimed and not any(_among((octets, length), w) for w in ways)
    ]
    numbers = [adjacencies_of(n, ids, memo).id[v.way] for n, v in zip(domain, vteps, strict=True)]
    remotes = sum(len(w.length) for w in ways)
    own = np.frombuffer(b"".join([row[0] for row in few]), np.uint8).reshape(-1, 16)
    columns = (
        np.concatenate([own, *(w.prefix for w in ways)]),
        np.concatenate([np.array([row[1] for row in few], np.uint8), *(w.length for w in ways)]),
        np.array([row[2] for row in few] + [RouteKind.REMOTE] * remotes, np.uint8),
        np.concatenate([np.array([row[3] for row in few], np.uint32), *numbers]),
        np.concatenate([np.zeros(len(few), np.uint16), *(w.flags for w in ways)]),
    )
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.tobytes())
    return RouteTable(digest.digest(), *columns)


def _among(prefix: Span, ways: Ways) -> bool:
    import numpy as np

    same = ways.length == prefix[1]
    return bool((ways.prefix[same] == np.frombuffer(prefix[0], np.uint8)).all(axis=1).any())


def network_row(network: Network, node: Node, ids: Ids, memo: Memo) -> NetworkRow:
    assert network.dr_mac is not None
    domain = domain_of(network, node)
    return NetworkRow(
        vni=network.vni,
        mtu=mtu_of(network),
        dr_mac=network.dr_mac.packed,
        gateway4=of_version(network.gateways, 4),
        gateway6=of_version(network.gateways, 6),
        vteps=_allowed(tuple(vteps_of(n, memo).addresses for n in domain)),
        routes=_routes(network, node, ids, memo),
        domain=_domain_number(network, node),
        max_flows=network.max_flows,
        wire=network.wire,
    )


def _allowed(of_networks: tuple[tuple[bytes, ...], ...]) -> tuple[bytes, ...]:
    if len(of_networks) == 1:
        return of_networks[0]
    return tuple(dict.fromkeys(chain.from_iterable(of_networks)))


def _domain_number(network: Network, node: Node) -> int:
    if network.routing_domain is None:
        return 0
    names = dict.fromkeys(n.routing_domain for n in node.networks if n.routing_domain is not None)
    return 1 + list(names).index(network.routing_domain)


def of_version(addresses: Iterable[IP], version: int) -> bytes:
    return next((ip16(a) for a in addresses if a.version == version), NO_ADDRESS)
