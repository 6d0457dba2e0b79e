"""C structs as numpy records: the layout is asked of the compiled engine, never written twice.

Byte arrays (addresses, MACs) become fixed-length raw fields that take and give `bytes`.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from dataplane._engine import ffi

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@cache
def dtype(name: str) -> "np.dtype[np.void]":
    """The record type of `struct NAME`."""
    return _struct(ffi.typeof(f"struct {name}"))


def records(name: str, rows: "Sequence[tuple[Any, ...]]") -> "NDArray[np.void]":
    """An array of `struct NAME`, a tuple of all fields for each. Raises OverflowError."""
    import numpy as np

    return np.array(rows, dtype(name)) if rows else np.empty(0, dtype(name))


def joined(*parts: "NDArray[np.void]") -> "NDArray[np.void]":
    """One after another, as bytes: field by field, as numpy does it, takes twenty times as long."""
    import numpy as np

    kind = parts[0].dtype
    return np.concatenate([part.view(f"V{kind.itemsize}") for part in parts]).view(kind)


def raw(octets: "NDArray[np.uint8]") -> "NDArray[np.void]":
    """Bytes [n, width] as a column for a raw field of that width."""
    import numpy as np

    return np.ascontiguousarray(octets).view(f"V{octets.shape[1]}")[:, 0]


def _struct(ctype: Any) -> "np.dtype[np.void]":
    import numpy as np

    fields = [(name, f) for name, f in ctype.fields if not name.startswith("_")]
    return np.dtype(
        {
            "names": [name for name, _ in fields],
            "formats": [_format(f.type) for _, f in fields],
            "offsets": [f.offset for _, f in fields],
            "itemsize": ffi.sizeof(ctype),
        }
    )


def _format(ctype: Any) -> Any:
    import numpy as np

    if ctype.kind == "array":
        octets = ctype.item.cname == "uint8_t"
        return f"V{ctype.length}" if octets else (_format(ctype.item), (ctype.length,))
    if ctype.kind == "struct":
        return _struct(ctype)
    signed = int(ffi.cast(ctype, -1)) < 0
    return np.dtype(f"{'i' if signed else 'u'}{ffi.sizeof(ctype)}")
