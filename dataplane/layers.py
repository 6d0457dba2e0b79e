"""Layers: tables of rules as the C objects of one generation.

Groups and route tables are immutable in C, so those whose content did not change are shared with
the generation before. Ownership: `ffi.gc` releases what Python holds, the snapshot keeps references
of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import asdict

from dataplane._engine import ffi, lib
from dataplane.address import Span
from dataplane.errors import EngineError
from dataplane.ids import UNDERLAY_PORT
from dataplane.model import IcmpRate, Timers, Wire
from dataplane.reasons import check
from dataplane.records import dtype, raw, records
from dataplane.rows import (
    BACKEND,
    Adjacencies,
    EndpointRow,
    Group,
    Pool,
    Range,
    RouteKind,
    RouteTable,
    Rule,
    ServiceRow,
    Tables,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = TypeVar("Item")

LAYERS = {
    "guard": lib.DP_LAYER_GUARD,
    "acl": lib.DP_LAYER_ACL,
    "lb": lib.DP_LAYER_LB,
    "nat": lib.DP_LAYER_NAT,
    "vnet": lib.DP_LAYER_VNET,
    "underlay": lib.DP_LAYER_UNDERLAY,
}
ACTIONS = {
    "allow": lib.DP_ALLOW,
    "block": lib.DP_BLOCK,
    "pass": lib.DP_PASS,
    "reject": lib.DP_REJECT,
    "snat": lib.DP_SNAT,
}
DF = {"set": 0, "clear": lib.DP_WIRE_DF_CLEAR, "inherit": lib.DP_WIRE_DF_INHERIT}
DSCP = {"zero": 0, "copy": lib.DP_DSCP_COPY}
PORT_KINDS = {
    "endpoint": lib.DP_PORT_ENDPOINT,
    "underlay": lib.DP_PORT_UNDERLAY,
    "host": lib.DP_PORT_HOST,
}

assert (RouteKind.ENDPOINT, RouteKind.REMOTE, RouteKind.GATEWAY) == (
    lib.DP_TO_ENDPOINT,
    lib.DP_TO_REMOTE,
    lib.DP_TO_GATEWAY,
)
assert (RouteKind.SUBNET, RouteKind.VIP, RouteKind.HOST) == (
    lib.DP_TO_SUBNET,
    lib.DP_TO_VIP,
    lib.DP_TO_HOST,
)
assert BACKEND.size == ffi.sizeof("struct dp_backend")


@dataclass(frozen=True, slots=True)
class Built:
    """One generation in C. The dictionaries hold what the next one may share."""

    snapshot: Any  # struct dp_snapshot *
    groups: dict[int, tuple[Group, tuple[int, ...], Any]]  # by id; with its pools' places
    routes: dict[tuple[bytes, bytes], Any]  # by digest of the routes, and of the endpoints' places
    balances: dict[bytes, Any]


NOTHING = Built(snapshot=None, groups={}, routes={}, balances={})


def build(tables: Tables, generation: int, stamps: dict[int, int], known: Built = NOTHING) -> Built:
    """The snapshot of the tables; `stamps` by port id. Raises EngineError."""
    try:
        return _build(tables, generation, stamps, known)
    except OverflowError as overflow:
        raise EngineError(-1, f"a number of the policy is out of range: {overflow}") from overflow


def _build(tables: Tables, generation: int, stamps: dict[int, int], known: Built) -> Built:
    pools = _places(_all_pools(tables))
    groups = {g.id: _group(g, pools, known.groups.get(g.id)) for g in _all_groups(tables)}
    places = _endpoint_places(tables)
    routes: dict[tuple[bytes, bytes], Any] = {}
    of_network = []
    for network in tables.networks:
        target = _targets(network.routes, places)
        route_key = (
            network.routes.digest,
            target[network.routes.kind == RouteKind.ENDPOINT].tobytes(),
        )
        routes[route_key] = known.routes.get(route_key) or _make_routes(network.routes, target)
        of_network.append(routes[route_key])
    of_group = {number: made for number, (_, _, made) in groups.items()}
    balances = {row.backends: known.balances.get(row.backends) for row in tables.services}
    for backends, made in balances.items():
        if made is None:
            balances[backends] = _make_balance(backends)
    policy = _Policy(
        tables,
        generation=generation,
        stamps=stamps,
        pools=pools,
        of_group=of_group,
        of_network=of_network,
        balances=balances,
    )
    return Built(policy.snapshot(), groups, routes, balances)


def _all_groups(tables: Tables) -> Iterator[Group]:
    """Each group once, though a network's is part of each of its endpoints."""
    seen: set[int] = set()
    for endpoint in tables.endpoints:
        for groups in endpoint.groups:
            for group in groups:
                if group.id not in seen:
                    seen.add(group.id)
                    yield group


def _all_pools(tables: Tables) -> Iterator[Pool]:
    for group in _all_groups(tables):
        yield from (rule.pool for rule in group.rules if rule.pool is not None)
    yield from (row.pool for row in tables.services if row.pool is not None)


def _places(items: Iterable[Item]) -> dict[Item, int]:
    places: dict[Item, int] = {}
    for item in items:
        places.setdefault(item, len(places))
    return places


# ---- groups ------------------------------------------------------------------------------------


def _group(
    group: Group, pools: dict[Pool, int], known: tuple[Group, tuple[int, ...], Any] | None
) -> tuple[Group, tuple[int, ...], Any]:
    places = tuple(pools[r.pool] for r in group.rules if r.pool is not None)
    if known is not None and known[:2] == (group, places):
        return known
    return group, places, _make_group(group, places)


def _make_group(group: Group, pools: tuple[int, ...]) -> Any:
    prefixes: list[Span] = []
    ranges: list[Range] = []
    place = iter(pools)
    rows = [
        _rule_row(rule, next(place) if rule.pool is not None else 0, prefixes, ranges)
        for rule in group.rules
    ]
    rules = records("dp_rule", rows)
    prefix = records("dp_prefix", [(octets, length, b"\0\0\0") for octets, length in prefixes])
    span = records("dp_range", ranges)
    error = ffi.new("struct dp_error *")
    made = lib.dp_group_create(
        LAYERS[group.layer],
        group.id,
        *_array("dp_rule", rules),
        *_array("dp_prefix", prefix),
        *_array("dp_range", span),
        error,
    )
    check(error.status, error)
    return ffi.gc(made, lib.dp_group_release)


def _rule_row(rule: Rule, pool: int, prefixes: list[Span], ranges: list[Range]) -> tuple[Any, ...]:
    flags = (lib.DP_TERMINATING if rule.terminating else 0) | (
        lib.DP_STATEFUL if rule.stateful else 0
    )
    return (
        rule.id,
        rule.priority,
        ACTIONS[rule.action],
        flags,
        rule.idle,
        pool,
        _append(prefixes, rule.src),
        _append(prefixes, rule.dst),
        _append(ranges, rule.sport),
        _append(ranges, rule.dport),
        _append(ranges, rule.protocol),
    )


def _append(to: list[Item], items: Sequence[Item]) -> tuple[int, int]:
    """Adds the items; their span."""
    span = len(to), len(items)
    to.extend(items)
    return span


def _array(name: str, array: "NDArray[np.void]") -> tuple[Any, int]:
    """Pointer and length, as C takes them; the array outlives the call by being held here."""
    if not len(array):
        return ffi.NULL, 0
    return ffi.from_buffer(f"struct {name}[]", array), len(array)


# ---- routes ------------------------------------------------------------------------------------


def _endpoint_places(tables: Tables) -> "NDArray[np.uint32]":
    """Index of the endpoint, by port id."""
    import numpy as np

    last = max((row.port for row in tables.endpoints), default=0)
    places = np.zeros(last + 1, np.uint32)
    places[[row.port for row in tables.endpoints]] = range(len(tables.endpoints))
    return places


def _targets(table: RouteTable, places: "NDArray[np.uint32]") -> "NDArray[np.uint32]":
    """The routes' targets, with endpoints by their places instead of their ports."""
    target = table.target.copy()
    ends = table.kind == RouteKind.ENDPOINT
    target[ends] = places[table.target[ends]]
    return target


def _make_routes(table: RouteTable, target: "NDArray[np.uint32]") -> Any:
    import numpy as np

    array = np.zeros(len(table.length), dtype("dp_route"))
    array["prefix"] = raw(table.prefix)
    array["len"] = table.length
    array["kind"] = table.kind
    array["target"] = target
    array["flags"] = table.flags
    error = ffi.new("struct dp_error *")
    made = lib.dp_routes_create(*_array("dp_route", array), error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_routes_release)


# ---- services ----------------------------------------------------------------------------------


def _make_balance(backends: bytes) -> Any:
    error = ffi.new("struct dp_error *")
    array = ffi.from_buffer("struct dp_backend[]", backends) if backends else ffi.NULL
    made = lib.dp_balance_create(array, len(backends) // BACKEND.size, error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_balance_release)


def idle_seconds(timers: Timers) -> tuple[int, ...]:
    """As `struct dp_timers`."""
    fields = ffi.typeof("struct dp_timers").fields
    return tuple(getattr(timers, name) or 0 for name, _ in fields)


# ---- snapshot ----------------------------------------------------------------------------------


def icmp_rate(rate: IcmpRate | None) -> dict[str, int]:
    """As `struct dp_icmp_rate`."""
    return {} if rate is None else asdict(rate)


def _wire(wire: Wire) -> tuple[int, int, int]:
    """Outer TTL, DSCP, and flags."""
    chosen = {
        lib.DP_WIRE_UDP_CHECKSUM: wire.udp_checksum == "full",
        lib.DP_WIRE_STRICT: wire.strict,
        lib.DP_WIRE_UDP6_ZERO_RX: wire.udp6_zero_rx,
        lib.DP_WIRE_VLAN_STRIP: wire.inner_vlan == "strip",
        lib.DP_WIRE_DSCP_BACK: wire.dscp_decap == "copy",
    }
    dscp = wire.dscp if isinstance(wire.dscp, int) else DSCP[wire.dscp]
    return wire.ttl, dscp, DF[wire.df] | sum(flag for flag, on in chosen.items() if on)


class _Policy:
    """Rows become `struct dp_policy`: numbers become places, slices go into shared arrays."""

    def __init__(
        self,
        tables: Tables,
        *,
        generation: int,
        stamps: dict[int, int],
        pools: dict[Pool, int],
        of_group: dict[int, Any],
        of_network: list[Any],
        balances: dict[bytes, Any],
    ) -> None:
        self.generation = generation
        self.timers = tables.timers
        self.pools = pools
        self.stamps = stamps
        self.of_group = of_group
        self.of_network = of_network
        self.balances = balances
        self.addresses: list[bytes] = []
        self.groups: list[Any] = []
        self.icmp_rate = icmp_rate(tables.icmp_rate)
        self.place = {n.vni: i for i, n in enumerate(tables.networks)}
        self.ports = [
            (p.id, PORT_KINDS[p.kind], 0, *p[2:], stamps.get(p.id, 0)) for p in tables.ports
        ]
        self.networks = [
            (
                n.vni,
                n.mtu,
                n.dr_mac,
                i,
                n.domain,
                *_wire(n.wire),
                n.gateway4,
                n.gateway6,
                n.max_flows,
            )
            for i, n in enumerate(tables.networks)
        ]
        self.endpoints = [self._endpoint(row) for row in tables.endpoints]
        self.adjacencies = self._adjacencies(tables.adjacencies)
        of_balance = {backends: i for i, backends in enumerate(balances)}
        self.services = [self._service(row, of_balance) for row in tables.services]

    def _service(self, row: ServiceRow, of_balance: dict[Any, int]) -> tuple[Any, ...]:
        return (
            row.address,
            row.port,
            row.proto,
            PORT_KINDS[row.met_at],
            row.affinity,
            row.flags,
            b"\0\0",
            self.place[row.vni],
            row.rule,
            lib.DP_NONE if row.pool is None else self.pools[row.pool],
            of_balance[row.backends],
        )

    def _endpoint(self, row: EndpointRow) -> tuple[Any, ...]:
        return (
            self.place[row.vni],
            row.port,
            row.mac,
            _append(self.addresses, row.addresses),
            [_append(self.groups, [self.of_group[g.id] for g in groups]) for groups in row.groups],
            bytes(ACTIONS[action] for action in row.fallback),
            0,
            self.stamps[row.port],
            row.max_flows,
        )

    def _adjacencies(self, tables: tuple[Adjacencies, ...]) -> "NDArray[np.void]":
        """By id; ids that are not in use become holes."""
        import numpy as np

        last = max((int(a.id.max()) for a in tables if len(a.id)), default=-1)
        array = np.zeros(last + 1, dtype("dp_adjacency"))
        array["port"] = lib.DP_PORT_NONE
        for a in tables:
            array["network"][a.id] = self.place[a.vni]
            array["port"][a.id] = UNDERLAY_PORT
            array["mtu"][a.id] = a.mtu
            for field in ("remote", "dr_mac", "outer_mac"):
                array[field][a.id] = raw(getattr(a, field))
        return array

    def snapshot(self) -> Any:
        """A `struct dp_snapshot *` that releases itself. C copies all it is given."""
        policy = ffi.new("struct dp_policy *", {"generation": self.generation})
        policy.timers = ffi.new("struct dp_timers *", idle_seconds(self.timers))[0]
        policy.icmp = self.icmp_rate
        arrays: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
            "ports": ("dp_port", self.ports),
            "networks": ("dp_network", self.networks),
            "endpoints": ("dp_endpoint", self.endpoints),
            "pools": ("dp_pool", [tuple(pool) for pool in self.pools]),
            "services": ("dp_service", self.services),
        }
        made = {field: (struct, records(struct, rows)) for field, (struct, rows) in arrays.items()}
        made["adjacencies"] = "dp_adjacency", self.adjacencies
        held = []
        for field, (struct, array) in made.items():
            pointer, count = _array(struct, array)
            held.append(pointer)
            setattr(policy, field, pointer)
            setattr(policy, f"n_{field}", count)
        for field, ctype, items in (
            ("addrs", "uint8_t[]", b"".join(self.addresses)),
            ("groups", "struct dp_group *[]", self.groups),
            ("routes", "struct dp_routes *[]", self.of_network),
            ("balances", "struct dp_balance *[]", list(self.balances.values())),
        ):
            held.append(ffi.new(ctype, items))
            setattr(policy, field, held[-1])
        policy.n_addrs = len(self.addresses)
        policy.n_groups, policy.n_routes = len(self.groups), len(self.of_network)
        policy.n_balances = len(self.balances)
        error = ffi.new("struct dp_error *")
        snapshot = lib.dp_snapshot_create(policy, error)
        check(error.status, error)
        return ffi.gc(snapshot, lib.dp_snapshot_release)
