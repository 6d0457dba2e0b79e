"""Flows: the unified flow table, as seen at one moment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataplane._engine import ffi, lib
from dataplane.address import IP, ip_from16
from dataplane.ids import Ids
from dataplane.reasons import check
from dataplane.records import dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 1024  # while these are copied nobody adds a flow: a few hundred microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A pair of flows. Addresses and ports as the initiator sent them, and as they leave.

    For ICMP `dport` is type << 8 | code and `sport` the echo id. Counters are those of initiator
    and responder.
    """

    vni: int
    protocol: int
    src: IP
    sport: int
    dst: IP
    dport: int
    new_src: IP
    new_sport: int
    new_dst: IP
    new_dport: int
    in_port: str
    out_port: str
    provider: IP | None  # the VTEP it goes to or comes from
    rule: str | None
    generation: int
    replied: bool
    half_open: bool  # one of the two sides was not seen yet
    closing: bool
    packets: tuple[int, int]
    bytes: tuple[int, int]
    last_ns: int

    @property
    def translated(self) -> bool:
        return (self.src, self.sport) != (self.new_src, self.new_sport)


def read(engine: Any) -> "NDArray[np.void]":
    """All pairs as records of `struct dp_flow_info`."""
    import numpy as np

    cursor = ffi.new("uint32_t *")
    parts = []
    count = CHUNK
    while count == CHUNK:
        part = np.zeros(CHUNK, dtype("dp_flow_info"))
        out = ffi.from_buffer("struct dp_flow_info[]", part)
        count = check(lib.dp_flows(engine, cursor, out, CHUNK))
        parts.append(part[:count])
    return np.concatenate(parts)


def named(records: "NDArray[np.void]", ids: Ids) -> list[Flow]:
    return [_flow(record, ids) for record in records]


def _flow(record: Any, ids: Ids) -> Flow:
    adjacency = ids.adjacency_names.get(int(record["adjacency"]))
    in_port, out_port = int(record["in_port"]), int(record["out_port"])
    state = int(record["state"])
    first, second = record["packets"].tolist(), record["bytes"].tolist()
    values: dict[str, Any] = {
        n: ip_from16(record[n].tobytes()) for n in ("src", "dst", "new_src", "new_dst")
    }
    for n in ("vni", "sport", "dport", "new_sport", "new_dport", "generation", "last_ns"):
        values[n] = int(record[n])
    return Flow(
        **values,
        protocol=int(record["proto"]),
        in_port=ids.port_names.get(in_port, f"port {in_port}"),
        out_port=ids.port_names.get(out_port, f"port {out_port}"),
        provider=adjacency.provider if adjacency else None,
        rule=ids.rule_names.get(int(record["rule"])),
        replied=bool(state & 2),
        half_open=state & 3 != 3,
        closing=bool(state & 4),
        packets=(first[0], first[1]),
        bytes=(second[0], second[1]),
    )
