"""Flows and NAT bindings as bytes, for the process that comes after this one on the same host.

A header says the format; bytes of another one are refused, and flows then begin anew. Times are
those of the engine's clock, so they only make sense to a process that reads the same.
"""

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane._engine import ffi, lib
from dataplane.errors import DataplaneError
from dataplane.reasons import check
from dataplane.records import dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"dpflows\0"
CHUNK = 1024
_HEADER = struct.Struct("<8sIIIIQQ")  # magic, format, sizes of both records, zero, their numbers


class Saved(NamedTuple):
    """Records of `struct dp_saved_flow` and `dp_saved_binding`, and the latters' places."""

    flows: "NDArray[np.void]"
    bindings: "NDArray[np.void]"
    places: "NDArray[np.uint32]"

    def to_bytes(self) -> bytes:
        return b"".join(
            (
                _header(len(self.flows), len(self.bindings)),
                self.bindings.tobytes(),
                self.places.tobytes(),
                self.flows.tobytes(),
            )
        )

    @classmethod
    def from_bytes(cls, octets: bytes) -> "Saved":
        """Raises DataplaneError where they are of another format, or not all there."""
        import numpy as np

        if len(octets) < _HEADER.size:
            raise DataplaneError("saved flows are cut short")
        *_, n_flows, n_bindings = _HEADER.unpack_from(octets)
        if octets[: _HEADER.size] != _header(n_flows, n_bindings):
            raise DataplaneError("saved flows are of another format")
        parts, at = [], _HEADER.size
        kinds = (dtype("dp_saved_binding"), np.dtype(np.uint32), dtype("dp_saved_flow"))
        for kind, count in zip(kinds, (n_bindings, n_bindings, n_flows), strict=True):
            if len(octets) - at < count * kind.itemsize:
                raise DataplaneError("saved flows are cut short")
            parts.append(np.frombuffer(octets, kind, count, at))
            at += count * kind.itemsize
        bindings, places, flows = parts
        return cls(flows, bindings, places)


def _header(n_flows: int, n_bindings: int) -> bytes:
    sizes = dtype("dp_saved_flow").itemsize, dtype("dp_saved_binding").itemsize
    return _HEADER.pack(MAGIC, lib.DP_SAVED, *sizes, 0, n_flows, n_bindings)


def read(engine: Any) -> Saved:
    """Of a `struct dp_engine *`."""
    import numpy as np

    flows: list[NDArray[np.void]] = []
    bindings: list[NDArray[np.void]] = []
    places: list[NDArray[np.uint32]] = []
    cursor, count = ffi.new("uint32_t *"), CHUNK
    while count == CHUNK:
        part = np.zeros(CHUNK, dtype("dp_saved_flow"))
        out = ffi.from_buffer("struct dp_saved_flow[]", part)
        count = check(lib.dp_save_flows(engine, cursor, out, CHUNK))
        flows.append(part[:count])
    cursor, count = ffi.new("uint32_t *"), CHUNK
    while count == CHUNK:
        part, where = np.zeros(CHUNK, dtype("dp_saved_binding")), np.zeros(CHUNK, np.uint32)
        out = ffi.from_buffer("struct dp_saved_binding[]", part)
        at = ffi.from_buffer("uint32_t[]", where)
        count = check(lib.dp_save_bindings(engine, cursor, out, at, CHUNK))
        bindings.append(part[:count])
        places.append(where[:count])
    return Saved(np.concatenate(flows), np.concatenate(bindings), np.concatenate(places))


def write(engine: Any, saved: Saved, now_ns: int) -> int:
    """Into a `struct dp_engine *`; returns how many flows came in."""
    return check(
        lib.dp_restore(
            engine,
            ffi.from_buffer("struct dp_saved_binding[]", saved.bindings),
            ffi.from_buffer("uint32_t[]", saved.places),
            len(saved.bindings),
            ffi.from_buffer("struct dp_saved_flow[]", saved.flows),
            len(saved.flows),
            now_ns,
        )
    )
