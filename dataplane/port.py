"""What all ports of the operating system are."""

from types import TracebackType
from typing import Any, Protocol, Self


class Port(Protocol):
    """What a forwarder can move frames through."""

    def join(self, loop: Any, port_id: int, queue: int = 0) -> None:
        """Adds the port to a C loop (`struct dp_loop *`), with the queue of that number.

        If it has not so many the loop only sends through it.
        """

    def close(self) -> None: ...


class Owner:
    """Closes what it owns once, and works in a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
