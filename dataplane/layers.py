"""Layers: tables of rules as the C objects of one generation.

Groups and route tables are immutable in C, so those whose content did not change are shared with
the generation before. Ownership: `ffi.gc` releases what Python holds, the snapshot keeps references
of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from dataplane._engine import ffi, lib
from dataplane.address import Span, prefix16
from dataplane.errors import EngineError
from dataplane.ids import UNDERLAY_PORT
from dataplane.model import RemoteSubnet
from dataplane.reasons import check
from dataplane.records import dtype, raw, records
from dataplane.remotes import RouteEdit, Step
from dataplane.routing import UNDERLAY_MAC
from dataplane.rows import (
    BACKEND,
    NO_ADDRESS,
    NO_MAC,
    Group,
    Pool,
    Range,
    RouteKind,
    RouteTable,
    Rule,
    Tables,
)
from dataplane.snapshot import (
    ACTIONS,
    Filled,
    Policy,
    Services,
    all_adjacencies,
    append,
    array_of,
    services,
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

assert (RouteKind.ENDPOINT, RouteKind.REMOTE, RouteKind.GATEWAY) == (
    lib.DP_TO_ENDPOINT,
    lib.DP_TO_REMOTE,
    lib.DP_TO_GATEWAY,
)
assert (RouteKind.SUBNET, RouteKind.VIP, RouteKind.HOST, RouteKind.DIRECT) == (
    lib.DP_TO_SUBNET,
    lib.DP_TO_VIP,
    lib.DP_TO_HOST,
    lib.DP_TO_DIRECT,
)
assert BACKEND.size == ffi.sizeof("struct dp_backend")


@dataclass(frozen=True, slots=True)
class Built:
    """One generation in C. The dictionaries hold what the next one may share."""

    snapshot: Any  # struct dp_snapshot *
    groups: dict[int, tuple[Group, tuple[int, ...], Any]]  # by id; with its pools' places
    routes: dict[tuple[bytes, bytes], Any]  # by digest of the routes, and of the endpoints' places
    balances: dict[bytes, Any]
    services: Services | None
    of_network: dict[int, Any]  # routes, by VNI
    filled: Filled | None  # what the snapshot was made of, without adjacencies


NOTHING = Built(None, groups={}, routes={}, balances={}, services=None, of_network={}, filled=None)


def build(tables: Tables, generation: int, stamps: dict[int, int], known: Built = NOTHING) -> Built:
    """The snapshot of the tables; `stamps` by port id. Raises EngineError."""
    try:
        return _build(tables, generation, stamps, known)
    except OverflowError as overflow:
        raise EngineError(-1, f"a number of the policy is out of range: {overflow}") from overflow


def _build(tables: Tables, generation: int, stamps: dict[int, int], known: Built) -> Built:
    all_groups = tuple(_all_groups(tables))
    pools = _places(_all_pools(tables, all_groups))
    groups = {g.id: _group(g, pools, known.groups.get(g.id)) for g in all_groups}
    ends, places = _endpoint_places(tables), _places(n.vni for n in tables.networks)
    routes: dict[tuple[bytes, bytes], Any] = {}
    of_network = {}
    for network in tables.networks:
        key = _route_key(network.routes, ends)
        if key not in routes:
            routes[key] = known.routes.get(key) or _make_routes(network.routes, ends)
        of_network[network.vni] = routes[key]
    balances = {
        backends: known.balances.get(backends) or _make_balance(backends)
        for backends in _of_services(tables, "backends")
    }
    met = services(tables, places, pools, balances, known.services)
    filled = Policy(
        tables,
        generation=generation,
        stamps=stamps,
        pools=pools,
        of_group={number: made for number, (_, _, made) in groups.items()},
        of_network=list(of_network.values()),
        balances=balances,
        services=met.array,
        places=places,
    ).fill()
    adjacencies = all_adjacencies(tables.adjacencies, places)
    snapshot = filled.snapshot(adjacencies, None, ffi.NULL)
    return Built(snapshot, groups, routes, balances, met, of_network, filled)


# ---- edits -------------------------------------------------------------------------------------


def edit(step: Step, generation: int, stamps: dict[int, int], known: Built) -> Built:
    """The generation after `known`, all of which it shares but what the step changes."""
    assert known.filled is not None
    of_network = dict(known.of_network)
    for change in step.routes:
        of_network[change.vni] = _edit_routes(of_network[change.vni], change)
    filled = known.filled.edited(generation, stamps, list(of_network.values()))
    rows = _adjacency_rows(step, _places(of_network))
    adjacencies = records("dp_adjacency", [rows[number] for number in sorted(rows)])
    snapshot = filled.snapshot(adjacencies, sorted(rows), known.snapshot)
    return replace(known, snapshot=snapshot, routes={}, of_network=of_network, filled=filled)


def uses(known: Built, vni: int, adjacency: int) -> int:
    """How many routes of the network lead to the adjacency."""
    found: int = lib.dp_routes_uses(known.of_network[vni], adjacency)
    return found


def named(known: Built, tables: Tables) -> Built:
    """With the routes under the names by which tables, that say the same, will ask for them."""
    ends = _endpoint_places(tables)
    routes = {_route_key(n.routes, ends): known.of_network[n.vni] for n in tables.networks}
    return replace(known, routes=routes)


def _edit_routes(base: Any, change: RouteEdit) -> Any:
    gone = records("dp_route", [_remote_route(subnet, 0) for subnet in change.gone])
    come = records("dp_route", [_remote_route(*pair) for pair in change.come])
    error = ffi.new("struct dp_error *")
    made = lib.dp_routes_edit(base, *array_of("dp_route", gone), *array_of("dp_route", come), error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_routes_release)


def _remote_route(subnet: RemoteSubnet, adjacency: int) -> tuple[bytes, int, int, int, int]:
    return (*prefix16(subnet.prefix), RouteKind.REMOTE, int(subnet.dsr), adjacency)


def _adjacency_rows(step: Step, places: dict[int, int]) -> dict[int, tuple[Any, ...]]:
    rows: dict[int, tuple[Any, ...]] = {
        number: (0, lib.DP_PORT_NONE, 0, NO_ADDRESS, NO_MAC, NO_MAC) for _, number in step.gone
    }
    for new in step.new:
        remote, outer = new.name.address, UNDERLAY_MAC + new.name.address[-4:]
        rows[new.id] = (places[new.vni], UNDERLAY_PORT, new.mtu, remote, new.name.dr_mac, outer)
    return rows


# ---- parts -------------------------------------------------------------------------------------


def _all_groups(tables: Tables) -> Iterator[Group]:
    """Each group once, though a network's is part of each of its endpoints."""
    seen: set[int] = set()
    for endpoint in tables.endpoints:
        for groups in endpoint.groups:
            for group in groups:
                if group.id not in seen:
                    seen.add(group.id)
                    yield group


def _all_pools(tables: Tables, groups: tuple[Group, ...]) -> Iterator[Pool]:
    rules = chain.from_iterable(group.rules for group in groups)
    return filter(None, chain(map(attrgetter("pool"), rules), _of_services(tables, "pool")))


def _of_services(tables: Tables, field: str) -> Mapping[Any, int]:
    """What they have in the field; many have the same, and few change."""
    return tables.memo.counted(
        field, tables.services, None, lambda service: (getattr(service, field),)
    )


def _places(items: Iterable[Item]) -> dict[Item, int]:
    return {item: place for place, item in enumerate(dict.fromkeys(items))}


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
    span = records("dp_range", ranges)
    error = ffi.new("struct dp_error *")
    made = lib.dp_group_create(
        LAYERS[group.layer],
        group.id,
        *array_of("dp_rule", rules),
        *array_of("dp_prefix", _prefixes(prefixes)),
        *array_of("dp_range", span),
        error,
    )
    check(error.status, error)
    return ffi.gc(made, lib.dp_group_release)


def _prefixes(spans: list[Span]) -> "NDArray[np.void]":
    import numpy as np

    array = np.zeros(len(spans), dtype("dp_prefix"))
    octets = np.frombuffer(b"".join([octets for octets, _ in spans]), np.uint8)
    array["addr"] = raw(octets.reshape(-1, 16))
    array["len"] = np.frombuffer(bytes([length for _, length in spans]), np.uint8)
    return array


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
        append(prefixes, rule.src),
        append(prefixes, rule.dst),
        append(ranges, rule.sport),
        append(ranges, rule.dport),
        append(ranges, rule.protocol),
    )


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


def _route_key(table: RouteTable, ends: "NDArray[np.uint32]") -> tuple[bytes, bytes]:
    return table.digest, _targets(table, ends)[table.kind == RouteKind.ENDPOINT].tobytes()


def _make_routes(table: RouteTable, ends: "NDArray[np.uint32]") -> Any:
    import numpy as np

    array = np.zeros(len(table.length), dtype("dp_route"))
    array["prefix"] = raw(table.prefix)
    array["len"] = table.length
    array["kind"] = table.kind
    array["target"] = _targets(table, ends)
    array["flags"] = table.flags
    error = ffi.new("struct dp_error *")
    made = lib.dp_routes_create(*array_of("dp_route", array), error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_routes_release)


# ---- services ----------------------------------------------------------------------------------


def _make_balance(backends: bytes) -> Any:
    error = ffi.new("struct dp_error *")
    array = ffi.from_buffer("struct dp_backend[]", backends) if backends else ffi.NULL
    made = lib.dp_balance_create(array, len(backends) // BACKEND.size, error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_balance_release)
