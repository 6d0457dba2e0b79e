"""Snapshots: a whole policy as `struct dp_policy`, and what C makes of it.

Numbers become places, slices go into shared arrays. C copies all it is given.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgspec.structs import asdict

from dataplane._engine import ffi, lib
from dataplane.ids import UNDERLAY_PORT
from dataplane.model import Fallback, IcmpRate, Timers, Wire
from dataplane.reasons import check
from dataplane.records import dtype, joined, raw, records
from dataplane.rows import Adjacencies, EndpointRow, Pool, ServiceRow, Tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = TypeVar("Item")

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


def append(to: list[Item], items: Sequence[Item]) -> tuple[int, int]:
    """Adds the items; their span."""
    span = len(to), len(items)
    to.extend(items)
    return span


def array_of(name: str, array: "NDArray[np.void]") -> tuple[Any, int]:
    """Pointer and length, as C takes them; the array outlives the call by being held here."""
    if not len(array):
        return ffi.NULL, 0
    return ffi.from_buffer(f"struct {name}[]", array), len(array)


def idle_seconds(timers: Timers) -> tuple[int, ...]:
    """As `struct dp_timers`."""
    fields = ffi.typeof("struct dp_timers").fields
    return tuple(getattr(timers, name) or 0 for name, _ in fields)


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


@cache
def _fallback(actions: tuple[Fallback, ...]) -> bytes:
    return bytes(ACTIONS[action] for action in actions)


class Policy:
    """Rows with places for numbers, and slices of shared arrays."""

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
        services: "NDArray[np.void]",
        places: dict[int, int],
    ) -> None:
        """`places`: of networks, by VNI."""
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
        self.place = places
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
        self.services = services

    def _endpoint(self, row: EndpointRow) -> tuple[Any, ...]:
        return (
            self.place[row.vni],
            row.port,
            row.mac,
            append(self.addresses, row.addresses),
            [append(self.groups, [self.of_group[g.id] for g in groups]) for groups in row.groups],
            _fallback(row.fallback),
            0,
            self.stamps[row.port],
            row.max_flows,
        )

    def fill(self) -> "Filled":
        """All but adjacencies."""
        filled = Filled(ffi.new("struct dp_policy *", {"generation": self.generation}))
        filled.policy.timers = ffi.new("struct dp_timers *", idle_seconds(self.timers))[0]
        filled.policy.icmp = self.icmp_rate
        filled.put("ports", records("dp_port", self.ports))
        filled.put("networks", records("dp_network", self.networks))
        filled.put("endpoints", records("dp_endpoint", self.endpoints))
        filled.put("pools", records("dp_pool", [tuple(pool) for pool in self.pools]))
        filled.put("services", self.services)
        filled.hold("addrs", ffi.new("uint8_t[]", b"".join(self.addresses)), len(self.addresses))
        filled.point("groups", self.groups)
        filled.point("routes", self.of_network)
        filled.point("balances", list(self.balances.values()))
        return filled


STRUCTS = {
    "ports": "dp_port",
    "networks": "dp_network",
    "endpoints": "dp_endpoint",
    "pools": "dp_pool",
    "services": "dp_service",
    "adjacencies": "dp_adjacency",
    "groups": "dp_group *",
    "routes": "dp_routes *",
    "balances": "dp_balance *",
}


class Filled:
    """A `struct dp_policy`, and the arrays that it points into."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.arrays: dict[str, NDArray[np.void]] = {}
        self._held: dict[str, Any] = {}

    def put(self, field: str, array: "NDArray[np.void]") -> None:
        self.arrays[field] = array
        self.hold(field, *array_of(STRUCTS[field], array))

    def point(self, field: str, items: list[Any]) -> None:
        self.hold(field, ffi.new(f"struct {STRUCTS[field]}[]", items), len(items))

    def hold(self, field: str, pointer: Any, n: int) -> None:
        self._held[field] = pointer
        setattr(self.policy, field, pointer)
        setattr(self.policy, f"n_{field}", n)

    def edited(self, generation: int, stamps: dict[int, int], of_network: list[Any]) -> "Filled":
        """With other stamps and routes."""
        new = Filled(ffi.new("struct dp_policy *", self.policy[0]))
        new.arrays, new._held = dict(self.arrays), dict(self._held)
        new.policy.generation = generation
        for field, number in (("ports", "id"), ("endpoints", "port")):
            array = self.arrays[field].copy()
            array["stamp"] = [stamps.get(port, 0) for port in array[number].tolist()]
            new.put(field, array)
        new.point("routes", of_network)
        return new

    def snapshot(self, adjacencies: "NDArray[np.void]", ids: list[int] | None, base: Any) -> Any:
        """A `struct dp_snapshot *` that releases itself.

        `ids`: of the adjacencies, ascending; None: 0, 1, … `base`: the snapshot that has all the
        others, or NULL. Raises EngineError.
        """
        pointer, n = array_of("dp_adjacency", adjacencies)
        policy = ffi.new("struct dp_policy *", self.policy[0])
        policy.base, policy.adjacencies, policy.n_adjacencies = base, pointer, n
        if ids is not None:
            policy.adjacency_ids = given = ffi.new("uint32_t[]", ids)  # noqa: F841 (keeps it)
        error = ffi.new("struct dp_error *")
        snapshot = lib.dp_snapshot_create(policy, error)
        check(error.status, error)
        return ffi.gc(snapshot, lib.dp_snapshot_release)


# ---- services ----------------------------------------------------------------------------------


_REFERS = {"network": "vni", "pool": "pool", "balance": "backends"}  # fields of C and of rows


class Services(NamedTuple):
    """Those of one generation as rows, and as `struct dp_service`."""

    rows: tuple[ServiceRow, ...]
    array: "NDArray[np.void]"
    places: dict[str, dict[Any, int]]  # by field: of what rows refer to


def services(
    tables: Tables,
    networks: Mapping[int, int],
    pools: Mapping[Pool, int],
    balances: Iterable[bytes],
    known: Services | None,
) -> Services:
    """With the places of what they refer to. First and last rows that are the same objects as in
    `known` are copied from there. Raises OverflowError."""
    import numpy as np

    rows = tables.services
    head, tail = tables.memo.ends(known.rows, rows) if known is not None else (0, 0)
    array = records("dp_service", [_service(row) for row in rows[head : len(rows) - tail]])
    if known is not None:
        array = joined(known.array[:head], array, known.array[len(known.array) - tail :])
    places: dict[str, dict[Any, int]] = {
        "network": dict(networks),
        "pool": {**pools, None: lib.DP_NONE},
        "balance": {backends: i for i, backends in enumerate(balances)},
    }
    for field, of in places.items():
        same = known is not None and known.places[field] == of
        new = slice(head, len(rows) - tail) if same else slice(None)
        found = map(of.__getitem__, map(attrgetter(_REFERS[field]), rows[new]))
        array[field][new] = np.fromiter(found, np.uint32)
    return Services(rows, array, places)


def _service(row: ServiceRow) -> tuple[Any, ...]:
    """Without places."""
    met_at = PORT_KINDS[row.met_at]
    own = row.address, row.port, row.proto, met_at, row.affinity, row.flags, b"\0\0"
    return *own, 0, row.rule, 0, 0


# ---- adjacencies -------------------------------------------------------------------------------


def all_adjacencies(tables: tuple[Adjacencies, ...], places: dict[int, int]) -> "NDArray[np.void]":
    """By id; ids that are not in use become holes. `places`: of networks, by VNI."""
    import numpy as np

    last = max((int(a.id.max()) for a in tables if len(a.id)), default=-1)
    array = np.zeros(last + 1, dtype("dp_adjacency"))
    array["port"] = lib.DP_PORT_NONE
    for a in tables:
        array["network"][a.id] = places[a.vni]
        array["port"][a.id] = UNDERLAY_PORT
        array["mtu"][a.id] = a.mtu
        for field in ("remote", "dr_mac", "outer_mac"):
            array[field][a.id] = raw(getattr(a, field))
    return array
