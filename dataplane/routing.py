"""Routing: who lives where: adjacencies and routes of a network."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane.address import IP, Prefix, Span, ip16, prefix16
from dataplane.ids import AdjacencyName, Ids
from dataplane.memo import Memo
from dataplane.model import Network, Node, RemoteSubnet
from dataplane.rows import NO_ADDRESS, Adjacencies, NetworkRow, RouteKind, RouteTable
from dataplane.vips import vip_spans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNDERLAY_MAC = b"\x02\x00"


class Ways(NamedTuple):
    """Remote subnets as columns of equal length, and the VTEPs that they are behind."""

    names: tuple[AdjacencyName, ...]  # of VTEPs, each once
    places: dict[AdjacencyName, int]  # of those, among them
    way: "NDArray[np.uint32]"  # by subnet: the place of its VTEP
    prefix: "NDArray[np.uint8]"  # [n, 16]
    length: "NDArray[np.uint8]"
    flags: "NDArray[np.uint16]"  # enum dp_route_flag


def ways_of(network: Network, memo: Memo) -> Ways:
    return memo.spliced(
        ("ways", network.name, network.vni),
        network.remote_subnets,
        lambda subnets: _make_ways(network.vni, subnets),
        _splice,
    )


def _make_ways(vni: int, subnets: Sequence[RemoteSubnet]) -> Ways:
    import numpy as np

    named = [AdjacencyName.of(vni, s.provider_address, s.dr_mac) for s in subnets]
    places: dict[AdjacencyName, int] = {}
    way = np.array([places.setdefault(name, len(places)) for name in named], np.uint32)
    flags = np.array([s.dsr for s in subnets], np.uint16)
    columns = _columns([s.prefix for s in subnets])
    return Ways(tuple(places), places, way, *columns, flags)


def _splice(old: Ways, head: int, new: Ways, tail: int) -> Ways:
    import numpy as np

    names, places = old[:2]
    fresh = [n for n in new.names if n not in places]
    if fresh:
        names = (*names, *fresh)
        places = places | {n: len(places) + i for i, n in enumerate(fresh)}
    way = np.array([places[n] for n in new.names], np.uint32)[new.way]
    return _without_gaps(
        Ways(
            names,
            places,
            _column(old.way, head, way, tail),
            _column(old.prefix, head, new.prefix, tail),
            _column(old.length, head, new.length, tail),
            _column(old.flags, head, new.flags, tail),
        )
    )


def _without_gaps(ways: Ways) -> Ways:
    """Without the VTEPs that no subnet is behind any more."""
    import numpy as np

    used = np.bincount(ways.way, minlength=len(ways.names)) > 0
    if used.all():
        return ways
    names = tuple(compress(ways.names, used))
    return ways._replace(
        names=names,
        places=dict(zip(names, range(len(names)), strict=True)),
        way=(np.cumsum(used, dtype=np.uint32) - np.uint32(1))[ways.way],
    )


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
    mtu = mtu_of(network)

    def make(names: tuple[AdjacencyName, ...]) -> Adjacencies:
        return Adjacencies(network.vni, mtu, *_adjacency_columns(names, ids))

    def splice(old: Adjacencies, head: int, new: Adjacencies, tail: int) -> Adjacencies:
        columns = zip(old.columns, new.columns, strict=True)
        return Adjacencies(network.vni, mtu, *(_column(o, head, n, tail) for o, n in columns))

    key = "adjacencies", network.name, network.vni, mtu, ids.lineage
    return memo.spliced(key, ways_of(network, memo).names, make, splice)


def _adjacency_columns(
    names: tuple[AdjacencyName, ...], ids: Ids
) -> "tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]":
    """Numbers, addresses, routers' MACs and next hops' MACs."""
    import numpy as np

    octets = np.frombuffer(b"".join(names), np.uint8).reshape(-1, 25)  # VNI, address, MAC
    remote, inner = octets[:, 3:19], octets[:, 19:]
    outer = np.empty((len(names), 6), np.uint8)
    outer[:, :2], outer[:, 2:] = list(UNDERLAY_MAC), remote[:, -4:]
    numbers = np.array([ids.adjacencies[name] for name in names], np.uint32)
    return numbers, remote, inner, outer


def _column(old: "NDArray[Any]", head: int, new: "NDArray[Any]", tail: int) -> "NDArray[Any]":
    """With new items between as many first and last ones of the old."""
    import numpy as np

    return np.concatenate([old[:head], new, old[len(old) - tail :]])


def domain_of(network: Network, node: Node) -> tuple[Network, ...]:
    """The network and those it may route into, itself first."""
    if network.routing_domain is None:
        return (network,)
    same = [n for n in node.networks if n.routing_domain == network.routing_domain]
    return (network, *(n for n in same if n is not network))


def _routes(network: Network, node: Node, ids: Ids, memo: Memo) -> RouteTable:
    domain = domain_of(network, node)
    ends = tuple(chain.from_iterable(_ends(n, ids, memo) for n in domain))
    host = tuple(_by_host(network, node))
    vips = tuple(vip_spans(n, memo) for n in domain)
    remotes = tuple((n.vni, n.prefixes, n.remote_subnets) for n in domain)
    source = ends, network.gateways, host, vips, remotes, ids.lineage
    return memo(
        ("routes", network.name),
        source,
        lambda: _make_routes(domain, _few(network, ends, host), ids, memo),
    )


def _ends(network: Network, ids: Ids, memo: Memo) -> tuple[tuple[bytes, int], ...]:
    """Addresses of endpoints, and their ports."""
    name = network.name
    return memo(
        ("ends", name),
        (network.endpoints, ids.ports),
        lambda: tuple(
            (ip16(a), ids.ports[f"{name}/{e.name}"]) for e in network.endpoints for a in e.addresses
        ),
    )


_Target = tuple[int, int]  # kind, target


def _by_host(network: Network, node: Node) -> Iterator[tuple[Span, _Target]]:
    """What lives behind the host, or further on."""
    if node.host_port is not None and network.host_route:
        yield (ip16(node.host_port.peer), 128), (RouteKind.HOST, 0)
        for prefix in network.host_subnets:
            yield prefix16(prefix), (RouteKind.HOST, 0)
        for subnet in network.direct_subnets:
            yield prefix16(subnet.prefix), (RouteKind.DIRECT, 0)


def _few(
    network: Network,
    ends: tuple[tuple[bytes, int], ...],
    host: tuple[tuple[Span, _Target], ...],
) -> dict[Span, _Target]:
    """Single addresses, and what the host leads to. Whoever comes last has it."""
    few = {(ip16(gateway), 128): (RouteKind.GATEWAY, 0) for gateway in network.gateways}
    few |= reversed(host)
    return few | {(octets, 128): (RouteKind.ENDPOINT, port) for octets, port in ends}


def _make_routes(
    domain: tuple[Network, ...], few: dict[Span, _Target], ids: Ids, memo: Memo
) -> RouteTable:
    """A prefix that something more particular claims as a whole is left to it."""
    import numpy as np

    ways = [ways_of(n, memo) for n in domain]
    vips = _vips(domain, few, memo)
    subnets = dict.fromkeys(prefix16(p) for n in domain for p in n.prefixes)
    few = few | {
        subnet: (RouteKind.SUBNET, 0)
        for subnet in subnets
        if subnet not in few and subnet not in vips and not any(_among(subnet, w) for w in ways)
    }
    numbers = [adjacencies_of(n, ids, memo).id[w.way] for n, w in zip(domain, ways, strict=True)]
    remotes = sum(len(w.length) for w in ways)
    kinds, targets = zip(*few.values(), strict=True) if few else ((), ())
    own, met = (
        np.frombuffer(b"".join(map(itemgetter(0), spans)), np.uint8).reshape(-1, 16)
        for spans in (few, vips)
    )
    lengths = _octets(length for _, length in few), _all(len(met), 128)
    to = _octets(kinds), _all(len(met), RouteKind.VIP), _all(remotes, RouteKind.REMOTE)
    columns = (
        np.concatenate([own, met, *(w.prefix for w in ways)]),
        np.concatenate([*lengths, *(w.length for w in ways)]),
        np.concatenate(to),
        np.concatenate([np.array(targets, np.uint32), np.zeros(len(met), np.uint32), *numbers]),
        np.concatenate([np.zeros(len(few) + len(met), np.uint16), *(w.flags for w in ways)]),
    )
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.tobytes())
    return RouteTable(digest.digest(), *columns)


def _vips(domain: tuple[Network, ...], few: dict[Span, _Target], memo: Memo) -> Mapping[Span, int]:
    """Those of the domain that nobody else has, as keys."""
    vips = vip_spans(domain[0], memo)
    for network in domain[1:]:
        vips = {**vips, **vip_spans(network, memo)}
    if taken := vips.keys() & few.keys():
        return {span: n for span, n in vips.items() if span not in taken}
    return vips


def _all(n: int, value: int) -> "NDArray[np.uint8]":
    import numpy as np

    return np.full(n, value, np.uint8)


def _octets(numbers: Iterable[int]) -> "NDArray[np.uint8]":
    import numpy as np

    return np.frombuffer(bytes(numbers), np.uint8)


def _among(prefix: Span, ways: Ways) -> bool:
    import numpy as np

    same = ways.length == prefix[1]
    return bool((ways.prefix[same] == np.frombuffer(prefix[0], np.uint8)).all(axis=1).any())


def network_row(network: Network, node: Node, ids: Ids, memo: Memo) -> NetworkRow:
    assert network.dr_mac is not None
    return NetworkRow(
        vni=network.vni,
        mtu=mtu_of(network),
        dr_mac=network.dr_mac.packed,
        gateway4=of_version(network.gateways, 4),
        gateway6=of_version(network.gateways, 6),
        routes=_routes(network, node, ids, memo),
        domain=_domain_number(network, node),
        max_flows=network.max_flows,
        wire=network.wire,
    )


def _domain_number(network: Network, node: Node) -> int:
    if network.routing_domain is None:
        return 0
    names = dict.fromkeys(n.routing_domain for n in node.networks if n.routing_domain is not None)
    return 1 + list(names).index(network.routing_domain)


def of_version(addresses: Iterable[IP], version: int) -> bytes:
    return next((ip16(a) for a in addresses if a.version == version), NO_ADDRESS)
