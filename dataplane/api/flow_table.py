"""The flow table as a resource: filtered, sorted, summed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dataplane.address import ip_from16
from dataplane.api import filters
from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.flows import Flow, named
from dataplane.trace import ICMP, PROTOCOL_NAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Resource = dict[str, Any]
MOST = 100_000  # flows told at once
SUMS = ("pair", "src", "dst", "proto", "vni", "endpoint", "peer")


def listed(engine: Engine, conditions: Iterable[filters.Condition], limit: int) -> Resource:
    """Those of the most packets first, and how many there are in all."""
    import numpy as np

    records = engine.flow_records()
    ids, now = engine.ids, engine.clock.now_ns()
    found = records[filters.matching(records, conditions, ids)]
    order = np.argsort(-found["packets"].sum(axis=1).astype(np.int64), kind="stable")
    flows = named(found[order[: min(limit, MOST)]], ids)
    return {
        "items": [told(flow, now) for flow in flows],
        "shown": len(flows),
        "matched": len(found),
        "flows": len(records),
        "generation": engine.generation,
    }


def summed(
    engine: Engine, conditions: Iterable[filters.Condition], by: str, limit: int
) -> Resource:
    """Flows, packets and bytes of each pair, side, protocol, VNI, endpoint or peer, most bytes
    first. Raises DataplaneError."""
    import numpy as np

    if by not in SUMS:
        raise DataplaneError(f"flows cannot be summed by {by!r}, but by: {', '.join(SUMS)}")
    records = engine.flow_records()
    found = records[filters.matching(records, conditions, engine.ids)]
    keys = _keys(found, by)
    unique, place = np.unique(keys, axis=0, return_inverse=True)
    place = place.reshape(-1)
    totals = [
        np.bincount(place, weights=weights, minlength=len(unique)).astype(np.int64)
        for weights in (None, found["packets"].sum(axis=1), found["bytes"].sum(axis=1))
    ]
    order = np.argsort(-totals[2], kind="stable")[: min(limit, MOST)]
    items = [
        {
            "name": _key_text(engine, by, unique[i]),
            **dict(zip(("flows", "packets", "bytes"), (int(t[i]) for t in totals), strict=True)),
        }
        for i in order.tolist()
    ]
    return {"items": items, "shown": len(items), "matched": len(unique), "flows": len(records)}


def _keys(found: "NDArray[np.void]", by: str) -> "NDArray[Any]":
    import numpy as np

    if by == "pair":
        sides = [filters.octets_of(found, name) for name in ("src", "dst")]
        return np.concatenate(sides, axis=1)
    column = {"endpoint": "in_port", "peer": "adjacency"}.get(by, by)
    keys: NDArray[Any] = found[column]
    return keys


def _key_text(engine: Engine, by: str, key: Any) -> str:
    if by in ("pair", "src", "dst"):
        octets = key.tobytes()
        sides = [ip_from16(octets[i : i + 16]) for i in range(0, len(octets), 16)]
        return " > ".join(map(str, sides))
    number = int(key)
    if by == "proto":
        return PROTOCOL_NAMES.get(number, str(number))
    if by == "endpoint":
        return engine.ids.port_names.get(number, f"port {number}")
    if by == "peer":
        return str(engine.ids.adjacency_names.get(number, "none"))
    return str(number)


def told(flow: Flow, now: int) -> Resource:
    """A flow as plain values, at that time of the engine."""
    state = "closing" if flow.closing else "new" if flow.half_open else "est"
    return {
        "vni": flow.vni,
        "protocol": PROTOCOL_NAMES.get(flow.protocol, str(flow.protocol)),
        "src": str(flow.src),
        "sport": flow.sport,
        "dst": str(flow.dst),
        "dport": flow.dport,
        "state": state,
        "in_port": flow.in_port,
        "out_port": flow.out_port,
        "provider": str(flow.provider) if flow.provider else None,
        "action": _action(flow),
        "rule": flow.rule,
        "generation": flow.generation,
        "packets": sum(flow.packets),
        "bytes": sum(flow.bytes),
        "sent": {"packets": flow.packets[0], "bytes": flow.bytes[0]},
        "answered": {"packets": flow.packets[1], "bytes": flow.bytes[1]},
        "idle": round(max(now - flow.last_ns, 0) / 1e9, 3),
    }


def _action(flow: Flow) -> str:
    """The header transposition of the initiator's packets, in words."""
    told = []
    has_ports = flow.protocol not in ICMP
    for word, old, new in (
        ("snat", (flow.src, flow.sport), (flow.new_src, flow.new_sport)),
        ("dnat", (flow.dst, flow.dport), (flow.new_dst, flow.new_dport)),
    ):
        if old != new:
            host = f"[{new[0]}]" if new[0].version == 6 else str(new[0])
            told.append(f"{word}({host}:{new[1]})" if has_ports else f"{word}({new[0]})")
    if flow.out_port == "underlay":
        told.append(f"encap({flow.provider})")
    elif flow.in_port == "underlay":
        told.append("decap")
    return " ".join([*told, f"> {flow.out_port}"])
