"""One tree of exceptions: catch `DataplaneError` and nothing of ours escapes."""

from typing import NamedTuple


class DataplaneError(Exception):
    """Base of everything this package raises on purpose."""


class Fault(NamedTuple):
    """One thing wrong with a document, and where. Lines count from 1; 0: the file as a whole."""

    file: str
    line: int
    path: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        hint = f" ({self.fix})" if self.fix else ""
        return f"{place} {self.path}: {self.message}{hint}"


class DocumentError(DataplaneError):
    """A document that cannot be used; carries all of its faults, one line of text each."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


class EngineError(DataplaneError):
    """The C engine refused a call.

    `status` is the value in status.def; `what` and `index` name the rejected object, if it was one.
    """

    def __init__(self, status: int, message: str, what: str = "", index: int = -1) -> None:
        super().__init__(status, message, what, index)
        self.status = status
        self.message = message
        self.what = what
        self.index = index

    def __str__(self) -> str:
        where = f"{self.what}[{self.index}]: " if self.what else ""
        return f"{where}{self.message} (status {self.status})"


class BusyError(DataplaneError):
    """A second thread entered an engine that was already at work."""


class StaleError(DataplaneError):
    """A change was made of a generation that holds no more."""


class MissingError(DataplaneError):
    """There is no object of that name."""


class NoNodeError(DataplaneError):
    """No node answers on its control socket."""


class PortError(DataplaneError):
    """A port could not be opened, or stopped working."""


class StorageError(DataplaneError):
    """The disk takes no more, so nothing is changed."""


class PacketError(DataplaneError, ValueError):
    """A packet in words that cannot be read or built."""
