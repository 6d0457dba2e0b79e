"""Observation: what passes an engine at chosen points, as records that are taken when convenient.

Nothing waits for whoever looks: records that find no room are counted as lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane._engine import ffi, lib
from dataplane.errors import DataplaneError
from dataplane.flows import Flow, named
from dataplane.ids import Ids
from dataplane.reasons import Reason, check
from dataplane.records import dtype

POINTS = {
    "rx": lib.DP_AT_RX,
    "drop": lib.DP_AT_DROP,
    "new": lib.DP_AT_NEW,
    "tx": lib.DP_AT_TX,
    "encap": lib.DP_AT_ENCAP,
    "decap": lib.DP_AT_DECAP,
    "end": lib.DP_AT_END,
}
POINT_NAMES = {number: name for name, number in POINTS.items()}
SNAP = 1 << 18  # bytes of a frame, more than any has
CHUNK = 1 << 20  # bytes taken at once


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame at one point, or a flow that ended. Ports and rules by name; `now_ns` is the
    engine's time. `frame` may be cut short, `length` is all of it."""

    point: str
    now_ns: int
    in_port: str | None
    out_port: str | None
    reason: Reason
    rule: str | None
    generation: int
    length: int
    packets: int
    frame: bytes
    flow: Flow | None = None


def mask(points: Iterable[str]) -> int:
    """Raises DataplaneError."""
    number = 0
    for point in points:
        if point not in POINTS:
            raise DataplaneError(f"no point {point!r}; there are: {', '.join(POINTS)}")
        number |= POINTS[point]
    return number


class Reader:
    """Takes an engine's records. One thread at a time."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._room = bytearray(CHUNK)
        self._header = ffi.sizeof("struct dp_seen")

    def take(self, ids: Any) -> tuple[list[Seen], int]:
        """What was seen since, up to a megabyte of it, and how many records were lost.

        `ids`: names and numbers of a generation.
        """
        lost = ffi.new("uint64_t *")
        out = ffi.from_buffer("uint8_t[]", self._room)
        size = check(lib.dp_seen(self._engine, out, len(self._room), lost))
        records, at = [], 0
        while at < size:
            record = ffi.cast("struct dp_seen *", out + at)
            start = at + self._header
            records.append((record, bytes(self._room[start : start + record.snap])))
            at += record.size
        flows = _flows(records, ids)
        found = [
            _seen(record, octets, ids(record.generation), flows.get(place))
            for place, (record, octets) in enumerate(records)
        ]
        return found, int(lost[0])


def _seen(record: Any, octets: bytes, ids: Ids, flow: Flow | None) -> Seen:
    return Seen(
        point=POINT_NAMES[record.point],
        now_ns=record.now_ns,
        in_port=ids.port_names.get(record.in_port),
        out_port=ids.port_names.get(record.egress),
        reason=Reason(record.reason),
        rule=ids.rule_names.get(record.rule),
        generation=record.generation,
        length=record.len,
        packets=record.packets,
        frame=b"" if record.point == lib.DP_AT_END else octets,
        flow=flow,
    )


def _flows(records: Sequence[tuple[Any, bytes]], ids: Any) -> dict[int, Flow]:
    """Those that ended, by the place of their record; not what a snap length has cut."""
    size = ffi.sizeof("struct dp_flow_info")
    ended: dict[int, list[int]] = {}  # by generation
    for place, (record, octets) in enumerate(records):
        if record.point == lib.DP_AT_END and len(octets) >= size:
            ended.setdefault(record.generation, []).append(place)
    if not ended:
        return {}
    import numpy as np

    found: dict[int, Flow] = {}
    for generation, places in ended.items():
        octets = b"".join(records[place][1][:size] for place in places)
        flows = named(np.frombuffer(octets, dtype("dp_flow_info")), ids(generation))
        found.update(zip(places, flows, strict=True))
    return found
