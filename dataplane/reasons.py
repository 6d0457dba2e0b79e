"""What the engine answers with, as types: verdicts, drop reasons and statuses, all named by C."""

from enum import IntEnum
from typing import Any

from dataplane._engine import ffi, lib
from dataplane.errors import BusyError, EngineError


def text(chars: Any) -> str:
    """A C string of names.c."""
    found = ffi.string(chars) if chars else b""
    assert isinstance(found, bytes)
    return found.decode()


class Verdict(IntEnum):
    """What became of a frame."""

    FORWARD = lib.DP_FORWARD
    DROP = lib.DP_DROP
    ANSWER = lib.DP_ANSWER
    HELD = lib.DP_HELD

    def __str__(self) -> str:
        return self.name.lower()


class Reason(IntEnum):
    """Why a frame was dropped: the list of reason.def, in capitals. NONE is 0."""

    _ignore_ = "number"

    for number in range(lib.dp_reason_count()):
        vars()[text(lib.dp_reason_name(number)).upper()] = number

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def layer(self) -> str:
        """Where it is decided."""
        return text(lib.dp_reason_layer(self.value))

    @property
    def sentence(self) -> str:
        """What it means."""
        return text(lib.dp_reason_text(self.value))


REASON_NAMES = frozenset(map(str, Reason))


def check(status: int, error: Any = None) -> int:
    """Passes a status of success (zero or a count) on; raises BusyError or EngineError for others.

    `error`: a `struct dp_error *` that C may have filled.
    """
    if status >= 0:
        return status
    if text(lib.dp_status_name(status)) == "EBUSY":
        raise BusyError("another thread is inside this engine")
    if error is None or not error.what:
        raise EngineError(status, text(lib.dp_status_text(status)))
    raise EngineError(status, text(error.why), text(error.what), error.index)
