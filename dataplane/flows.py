"""Flows: the unified flow table, as seen at one moment."""

from collections.abc import Sequence
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


SIDES = ("src", "dst", "new_src", "new_dst")
PLAIN = ("vni", "sport", "dport", "new_sport", "new_dport", "generation")
NUMBERS = (
    *PLAIN,
    *("proto", "in_port", "out_port", "adjacency", "rule", "state", "packets", "bytes", "last_ns"),
)


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
    """By columns: there may be 100,000 of them."""
    numbers = (records[name].tolist() for name in NUMBERS)
    sides = (_addresses(records[name].tobytes()) for name in SIDES)
    rows = zip(zip(*sides, strict=True), zip(*numbers, strict=True), strict=True)
    return [_flow(dict(zip(SIDES, ends, strict=True)), row, ids) for ends, row in rows]


def _addresses(octets: bytes) -> list[IP]:
    return [ip_from16(octets[i : i + 16]) for i in range(0, len(octets), 16)]


def _flow(values: dict[str, Any], row: Sequence[Any], ids: Ids) -> Flow:
    """`row`: the values of NUMBERS."""
    *numbers, protocol, in_port, out_port, adjacency, rule, state, packets, octets, last = row
    values.update(zip(PLAIN, numbers, strict=True))
    peer = ids.adjacency_names.get(adjacency)
    return Flow(
        **values,
        protocol=protocol,
        in_port=ids.port_names.get(in_port, f"port {in_port}"),
        out_port=ids.port_names.get(out_port, f"port {out_port}"),
        provider=peer.provider if peer else None,
        rule=ids.rule_names.get(rule),
        replied=bool(state & 2),
        half_open=state & 3 != 3,
        closing=bool(state & 4),
        packets=(packets[0], packets[1]),
        bytes=(octets[0], octets[1]),
        last_ns=max(last),
    )
