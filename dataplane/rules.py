"""Rules: the policy model as tables of ports, networks, endpoints, adjacencies, groups and routes.

Pure: no C object is made here. Rows refer to each other by stable numbers (`dataplane.ids`), never
by their place, so that a row changes only when what it says changes. Addresses are 16 bytes, IPv4
v4-mapped; prefix lengths count those 128 bits.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dataplane.address import IP, Mac, Prefix, ip16, prefix16
from dataplane.defaults import HOST_MTU
from dataplane.ids import (
    FIRST_ENDPOINT_PORT,
    HOST,
    HOST_PORT,
    UNDERLAY,
    UNDERLAY_PORT,
    AdjacencyName,
    GroupName,
    Ids,
    RuleName,
    allot,
)
from dataplane.model import (
    Acl,
    Direction,
    Endpoint,
    Fallback,
    HostPort,
    Network,
    Node,
    PortRange,
    RemoteSubnet,
    Underlay,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Made = TypeVar("Made")
Span = tuple[bytes, int]  # prefix
Range = tuple[int, int]  # both ends included

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
DIRECTIONS: tuple[Direction, ...] = ("out", "in")  # in the engine's order
NAT_RULES = ("nat-exceptions", "nat")  # in the order they are evaluated
NO_ADDRESS = bytes(16)
NO_MAC = bytes(6)
UNDERLAY_MAC, HOST_MAC = b"\x02\x00", b"\x02\x01"


# ---- rows --------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """Outside address and ports of a source NAT."""

    address: bytes
    first: int
    last: int


class Rule(NamedTuple):
    """Empty conditions match anything. `action` adds `snat` to the model's."""

    id: int
    priority: int
    action: str
    terminating: bool = False
    stateful: bool = False
    idle: int = 0  # seconds
    pool: Pool | None = None
    src: tuple[Span, ...] = ()
    dst: tuple[Span, ...] = ()
    sport: tuple[Range, ...] = ()
    dport: tuple[Range, ...] = ()
    protocol: tuple[Range, ...] = ()


class Group(NamedTuple):
    id: int
    layer: str
    rules: tuple[Rule, ...]


class PortRow(NamedTuple):
    id: int
    kind: str  # endpoint, underlay, host
    mtu: int  # bytes of the largest IP packet
    udp_port: int = 0
    mac: bytes = NO_MAC
    peer_mac: bytes = NO_MAC
    ip4: bytes = NO_ADDRESS
    ip6: bytes = NO_ADDRESS


@dataclass(frozen=True, slots=True, eq=False)
class Adjacencies:
    """The VTEPs of one network as columns of equal length."""

    vni: int
    mtu: int
    id: "NDArray[np.uint32]"
    remote: "NDArray[np.uint8]"  # [n, 16]
    dr_mac: "NDArray[np.uint8]"  # [n, 6]
    outer_mac: "NDArray[np.uint8]"  # [n, 6]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Longest-prefix routes as columns of equal length; equal when their bytes are.

    `kind` is a value of `RouteKind`, `target` a port id, an adjacency id, or 0.
    """

    digest: bytes
    prefix: "NDArray[np.uint8]" = field(compare=False, repr=False)  # [n, 16]
    length: "NDArray[np.uint8]" = field(compare=False, repr=False)  # [n]
    kind: "NDArray[np.uint8]" = field(compare=False, repr=False)
    target: "NDArray[np.uint32]" = field(compare=False, repr=False)


class NetworkRow(NamedTuple):
    vni: int
    mtu: int
    dr_mac: bytes
    gateway4: bytes
    gateway6: bytes
    vteps: tuple[bytes, ...]
    routes: RouteTable


class EndpointRow(NamedTuple):
    vni: int
    port: int
    mac: bytes
    addresses: tuple[bytes, ...]
    groups: tuple[tuple[Group, ...], ...]  # by direction
    fallback: tuple[Fallback, ...]  # by direction


@dataclass(frozen=True, slots=True)
class Tables:
    """A whole policy. `endpoints` are in order of their ports."""

    ids: Ids
    ports: tuple[PortRow, ...]
    networks: tuple[NetworkRow, ...]
    endpoints: tuple[EndpointRow, ...]
    adjacencies: tuple[Adjacencies, ...]  # by network
    memo: "Memo" = field(compare=False, repr=False)


class RouteKind:
    """As `enum dp_route_kind`."""

    ENDPOINT, REMOTE, GATEWAY, SUBNET = range(4)


class Memo:
    """Results kept from one compilation to the next while what they are made of is equal.

    Frozen models share what they do not change, so the comparison mostly meets identical objects.
    """

    def __init__(self, old: "Memo | None" = None) -> None:
        self._old: dict[Hashable, tuple[Any, Any]] = old._new if old else {}
        self._new: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, key: Hashable, source: object, make: Callable[[], Made]) -> Made:
        kept = self._new.get(key) or self._old.get(key)
        value: Made = kept[1] if kept is not None and kept[0] == source else make()
        self._new[key] = source, value
        return value


# ---- a node ------------------------------------------------------------------------------------


def compile_node(node: Node, old: Tables | None = None) -> Tables:
    """The tables of a node whose defaults are filled in (`dataplane.defaults.resolve`).

    With the tables of the generation before, numbers are kept and unchanged parts are shared.
    """
    memo = Memo(old.memo if old else None)
    ids = _number(node, old.ids if old else Ids(), memo)
    networks = tuple(_network(n, ids, memo) for n in node.networks)
    endpoints = [_endpoint(e, n, ids, memo) for n in node.networks for e in n.endpoints]
    return Tables(
        ids=ids,
        ports=tuple(_ports(node, ids)),
        networks=networks,
        endpoints=tuple(sorted(endpoints, key=lambda row: row.port)),
        adjacencies=tuple(_adjacencies(n, ids, memo) for n in node.networks),
        memo=memo,
    )


def stamps(
    new: Tables, old: Tables | None, known: dict[int, int], generation: int
) -> dict[int, int]:
    """By port id: the generation that last changed what the endpoint may do, or how.

    `known` are the stamps of `old`. A changed underlay or host port touches every endpoint.
    """
    if old is None or _common(new) != _common(old):
        return {row.port: generation for row in new.endpoints}
    before = {row.port: (row, old_network) for row, old_network in _with_network(old)}
    return {
        row.port: known[row.port] if before.get(row.port) == (row, network) else generation
        for row, network in _with_network(new)
    }


def _common(tables: Tables) -> list[PortRow]:
    return [p for p in tables.ports if p.kind != "endpoint"]


def _with_network(tables: Tables) -> Iterator[tuple[EndpointRow, NetworkRow]]:
    networks = {n.vni: n for n in tables.networks}
    return ((row, networks[row.vni]) for row in tables.endpoints)


# ---- numbers -----------------------------------------------------------------------------------


def _number(node: Node, old: Ids, memo: Memo) -> Ids:
    fixed = {UNDERLAY: UNDERLAY_PORT} | ({HOST: HOST_PORT} if node.host_port is not None else {})
    ends = [f"{n.name}/{e.name}" for n in node.networks for e in n.endpoints]
    ways = (_ways(n, memo).names for n in node.networks)
    return Ids(
        ports=allot(fixed | dict(old.ports), [*fixed, *ends], FIRST_ENDPOINT_PORT),
        groups=allot(old.groups, _group_names(node)),
        rules=allot(old.rules, _rule_names(node)),
        adjacencies=allot(old.adjacencies, (name for names in ways for name in names)),
    )


def _group_names(node: Node) -> Iterator[GroupName]:
    for n in node.networks:
        for direction in DIRECTIONS:
            yield GroupName(n.name, None, "acl", direction)
            for e in n.endpoints:
                yield GroupName(n.name, e.name, "acl", direction)
        for e in n.endpoints:
            yield GroupName(n.name, e.name, "nat", "out")


def _rule_names(node: Node) -> Iterator[RuleName]:
    for n in node.networks:
        yield from (RuleName(n.name, None, "acl", acl.name) for acl in n.acls)
        for e in n.endpoints:
            yield from (RuleName(n.name, e.name, "acl", acl.name) for acl in e.acls)
            if e.outbound_nat is not None:
                yield from (RuleName(n.name, e.name, "nat", rule) for rule in NAT_RULES)


# ---- ports -------------------------------------------------------------------------------------


def underlay_mac(address: IP) -> Mac:
    """Of a VTEP: 02:00 and the last four octets of its provider address."""
    return Mac.from_bytes(UNDERLAY_MAC + address.packed[-4:])


def host_mac(address: IP) -> Mac:
    """Of a side of the host link: 02:01 and the last four octets of its address."""
    return Mac.from_bytes(HOST_MAC + address.packed[-4:])


def _ports(node: Node, ids: Ids) -> Iterator[PortRow]:
    yield _underlay_port(node.underlay)
    if node.host_port is not None:
        yield _host_port(node.host_port)
    for network in node.networks:
        for e in network.endpoints:
            mtu = e.tap.mtu if e.tap else None
            yield PortRow(ids.ports[f"{network.name}/{e.name}"], "endpoint", mtu or _mtu(network))


def _underlay_port(underlay: Underlay) -> PortRow:
    addresses = [a for a in (underlay.address, underlay.address6) if a is not None]
    return PortRow(
        UNDERLAY_PORT,
        "underlay",
        underlay.mtu,
        underlay.port,
        mac=underlay_mac(underlay.address).packed,
        ip4=_of_version(addresses, 4),
        ip6=_of_version(addresses, 6),
    )


def _host_port(host: HostPort) -> PortRow:
    return PortRow(
        HOST_PORT,
        "host",
        host.tap.mtu or HOST_MTU,
        mac=host_mac(host.address).packed,
        peer_mac=host_mac(host.peer).packed,
        ip4=_of_version([host.address], 4),
        ip6=_of_version([host.address], 6),
    )


def _of_version(addresses: Iterable[IP], version: int) -> bytes:
    return next((ip16(a) for a in addresses if a.version == version), NO_ADDRESS)


# ---- networks, adjacencies, routes -------------------------------------------------------------


class _Ways(NamedTuple):
    """Remote subnets in bulk: each one's way is a place in `names`."""

    names: list[AdjacencyName]
    vteps: tuple[bytes, ...]
    way: "NDArray[np.uint32]"
    prefix: "NDArray[np.uint8]"
    length: "NDArray[np.uint8]"


def _ways(network: Network, memo: Memo) -> _Ways:
    source = network.vni, network.remote_subnets
    return memo(("ways", network.name), source, lambda: _make_ways(*source))


def _make_ways(vni: int, subnets: Sequence[RemoteSubnet]) -> _Ways:
    import numpy as np

    places: dict[tuple[IP, Mac], int] = {}
    way = [places.setdefault((s.provider_address, s.dr_mac), len(places)) for s in subnets]
    prefix, length = _columns([s.prefix for s in subnets])
    names = [AdjacencyName(vni, provider, mac) for provider, mac in places]
    vteps = tuple(dict.fromkeys([ip16(name.provider) for name in names]))
    return _Ways(names, vteps, np.array(way, np.uint32), prefix, length)


def _columns(prefixes: Sequence[Prefix]) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]":
    """Addresses [n, 16] and lengths [n]."""
    import numpy as np

    spans = [prefix16(p) for p in prefixes]
    octets = np.frombuffer(b"".join([s[0] for s in spans]), np.uint8)
    return octets.reshape(-1, 16), np.array([s[1] for s in spans], np.uint8)


def _network(network: Network, ids: Ids, memo: Memo) -> NetworkRow:
    assert network.dr_mac is not None
    return NetworkRow(
        vni=network.vni,
        mtu=_mtu(network),
        dr_mac=network.dr_mac.packed,
        gateway4=_of_version(network.gateways, 4),
        gateway6=_of_version(network.gateways, 6),
        vteps=_ways(network, memo).vteps,
        routes=_routes(network, ids, memo),
    )


def _mtu(network: Network) -> int:
    assert isinstance(network.mtu, int)
    return network.mtu


def _adjacencies(network: Network, ids: Ids, memo: Memo) -> Adjacencies:
    source = network.vni, network.remote_subnets, network.mtu
    return memo(
        ("adjacencies", network.name), source, lambda: _make_adjacencies(network, ids, memo)
    )


def _make_adjacencies(network: Network, ids: Ids, memo: Memo) -> Adjacencies:
    import numpy as np

    names = _ways(network, memo).names
    octets = np.frombuffer(b"".join([ip16(n.provider) for n in names]), np.uint8).reshape(-1, 16)
    outer = np.empty((len(names), 6), np.uint8)
    outer[:, :2], outer[:, 2:] = list(UNDERLAY_MAC), octets[:, -4:]
    macs: dict[Mac, bytes] = {n.dr_mac: n.dr_mac.packed for n in names}
    inner = np.frombuffer(b"".join([macs[n.dr_mac] for n in names]), np.uint8).reshape(-1, 6)
    numbers = np.array([ids.adjacencies[name] for name in names], np.uint32)
    return Adjacencies(network.vni, _mtu(network), numbers, octets, inner, outer)


def _routes(network: Network, ids: Ids, memo: Memo) -> RouteTable:
    ends = tuple(
        (ip16(a), ids.ports[f"{network.name}/{e.name}"])
        for e in network.endpoints
        for a in e.addresses
    )
    ways, numbers = _ways(network, memo), _adjacencies(network, ids, memo).id
    source = ends, network.gateways, network.prefixes, network.vni, network.remote_subnets
    return memo(
        ("routes", network.name), source, lambda: _make_routes(network, ends, ways, numbers)
    )


def _make_routes(
    network: Network,
    ends: tuple[tuple[bytes, int], ...],
    ways: _Ways,
    adjacency: "NDArray[np.uint32]",
) -> RouteTable:
    """A prefix that something more particular claims as a whole is left to it."""
    import numpy as np

    gateways = [ip16(g) for g in network.gateways]
    claimed = {(octets, 128) for octets in [*gateways, *(a for a, _ in ends)]}
    subnets = [p for p in map(prefix16, network.prefixes) if p not in claimed]
    subnets = [p for p in dict.fromkeys(subnets) if not _among(p, ways)]
    few = [
        *((octets, 128, RouteKind.ENDPOINT, port) for octets, port in ends),
        *((octets, 128, RouteKind.GATEWAY, 0) for octets in gateways),
        *((octets, length, RouteKind.SUBNET, 0) for octets, length in subnets),
    ]
    own = np.frombuffer(b"".join([row[0] for row in few]), np.uint8).reshape(-1, 16)
    columns = (
        np.concatenate([own, ways.prefix]),
        np.concatenate([np.array([row[1] for row in few], np.uint8), ways.length]),
        np.array([row[2] for row in few] + [RouteKind.REMOTE] * len(ways.way), np.uint8),
        np.concatenate([np.array([row[3] for row in few], np.uint32), adjacency[ways.way]]),
    )
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.tobytes())
    return RouteTable(digest.digest(), *columns)


def _among(prefix: Span, ways: _Ways) -> bool:
    import numpy as np

    same = ways.length == prefix[1]
    return bool((ways.prefix[same] == np.frombuffer(prefix[0], np.uint8)).all(axis=1).any())


# ---- endpoints and their groups ----------------------------------------------------------------


def _endpoint(e: Endpoint, network: Network, ids: Ids, memo: Memo) -> EndpointRow:
    assert e.mac is not None and e.default_in is not None and e.default_out is not None
    nat = _nat_group(e, network, ids, memo)
    groups = tuple(
        (
            *_acl_group(network.acls, GroupName(network.name, None, "acl", direction), ids, memo),
            *_acl_group(e.acls, GroupName(network.name, e.name, "acl", direction), ids, memo),
            *(nat if direction == "out" else ()),
        )
        for direction in DIRECTIONS
    )
    return EndpointRow(
        vni=network.vni,
        port=ids.ports[f"{network.name}/{e.name}"],
        mac=e.mac.packed,
        addresses=tuple(map(ip16, e.addresses)),
        groups=groups,
        fallback=(e.default_out, e.default_in),
    )


def _acl_group(acls: tuple[Acl, ...], name: GroupName, ids: Ids, memo: Memo) -> tuple[Group, ...]:
    """One group, or none where no rule is of the direction."""
    return memo(name, acls, lambda: _make_acl_group(acls, name, ids))


def _make_acl_group(acls: tuple[Acl, ...], name: GroupName, ids: Ids) -> tuple[Group, ...]:
    rules = tuple(
        _acl_rule(acl, ids.rules[RuleName(name.network, name.endpoint, name.layer, acl.name)])
        for acl in acls
        if acl.direction == name.direction
    )
    return (Group(ids.groups[name], name.layer, rules),) if rules else ()


def _acl_rule(acl: Acl, number: int) -> Rule:
    """`local` and `remote` become source and destination by direction."""
    local, remote = _spans(acl.local), _spans(acl.remote)
    local_ports, remote_ports = _ranges(acl.local_ports), _ranges(acl.remote_ports)
    out = acl.direction == "out"
    icmp = _icmp_ranges(acl)
    return Rule(
        id=number,
        priority=acl.priority,
        action=acl.action,
        terminating=acl.terminating,
        stateful=acl.stateful,
        idle=acl.idle,
        src=local if out else remote,
        dst=remote if out else local,
        sport=local_ports if out else remote_ports,
        dport=icmp or (remote_ports if out else local_ports),
        protocol=_protocols(acl),
    )


def _icmp_ranges(acl: Acl) -> tuple[Range, ...]:
    """ICMP's destination port is type << 8 | code; a code of any type takes a range for each."""
    kind, code = acl.icmp_type, acl.icmp_code
    if kind is None and code is None:
        return ()
    kinds = range(256) if kind is None else (kind,)
    return tuple((k << 8 | (code or 0), k << 8 | (255 if code is None else code)) for k in kinds)


def _protocols(acl: Acl) -> tuple[Range, ...]:
    if acl.protocol == "any":
        return ()
    number = acl.protocol if isinstance(acl.protocol, int) else PROTOCOLS[acl.protocol]
    return ((number, number),)


def _spans(prefixes: tuple[Prefix, ...]) -> tuple[Span, ...]:
    return tuple(map(prefix16, prefixes))


def _ranges(ports: tuple[PortRange, ...]) -> tuple[Range, ...]:
    return tuple((p.first, p.last) for p in ports)


def _nat_group(e: Endpoint, network: Network, ids: Ids, memo: Memo) -> tuple[Group, ...]:
    """What stays untranslated first, then the translation; none without an outside address."""
    nat = e.outbound_nat
    if nat is None or nat.vip is None:
        return ()
    pool = Pool(ip16(nat.vip), nat.ports.first, nat.ports.last)
    inside = tuple((ip16(a), 128) for a in e.addresses if a.version == nat.vip.version)
    keep = _inner_prefixes(network, memo), _spans(nat.exceptions)
    name = GroupName(network.name, e.name, "nat", "out")
    numbers = [
        ids.rules[RuleName(name.network, name.endpoint, name.layer, rule)] for rule in NAT_RULES
    ]
    rules = (
        Rule(numbers[0], 0, "allow", True, dst=keep[0] + keep[1]),
        Rule(numbers[1], 1, "snat", True, pool=pool, src=inside, dst=_spans(nat.destinations)),
    )
    group = Group(ids.groups[name], name.layer, rules)
    return (group,) if inside else ()


def _inner_prefixes(network: Network, memo: Memo) -> tuple[Span, ...]:
    """The network's prefixes, and those remote subnets that lie outside of all of them."""
    source = network.prefixes, network.remote_subnets
    ways = _ways(network, memo)
    return memo(
        ("inner", network.name), source, lambda: _make_inner(_spans(network.prefixes), ways)
    )


def _make_inner(prefixes: tuple[Span, ...], ways: _Ways) -> tuple[Span, ...]:
    import numpy as np

    outside = np.ones(len(ways.length), np.bool_)
    for octets, length in prefixes:
        mask = np.frombuffer(((1 << 128) - (1 << 128 - length)).to_bytes(16), np.uint8)
        under = ((ways.prefix & mask) == np.frombuffer(octets, np.uint8)).all(axis=1)
        outside &= ~(under & (ways.length >= length))
    rest = zip(ways.prefix[outside], ways.length[outside].tolist(), strict=True)
    return prefixes + tuple((octets.tobytes(), length) for octets, length in rest)
