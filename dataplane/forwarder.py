"""The forwarder: an engine, its ports, and the C loop that moves frames between them."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from dataplane._engine import ffi, lib
from dataplane.errors import PortError
from dataplane.ports import Port
from dataplane.reasons import check, text

_SLICE = 50_000_000  # ns of C before Python looks at signals and conditions again


class _Engine(Protocol):
    """What the forwarder wants of an engine: its C handle, and the id of a port by name."""

    @property
    def handle(self) -> Any: ...
    def port_id(self, name: str) -> int: ...


class Forwarder:
    """Moves frames between ports until told to stop; policies may be committed meanwhile.

    `ports` maps the engine's port names (`underlay`, `host`, `NETWORK/ENDPOINT`) to open ports,
    which stay the caller's: they are closed after the forwarder. One thread runs it at a time.
    """

    def __init__(self, engine: _Engine, ports: Mapping[str, Port]) -> None:
        self._engine = engine
        self._names = {name: engine.port_id(name) for name in ports}
        self._ports = dict(ports)
        self._stopping = False
        error = ffi.new("struct dp_error *")
        self._loop = lib.dp_loop_create(engine.handle, error)
        check(error.status, error)
        try:
            for name, port in ports.items():
                port.join(self._loop, self._names[name])
        except BaseException:
            self.close()
            raise

    def add(self, name: str, port: Port) -> None:
        """One more port; only while nothing runs."""
        self._names[name] = self._engine.port_id(name)
        self._ports[name] = port
        port.join(self._loop, self._names[name])

    def fileno(self) -> int:
        """Readable when `step` has something to do: for callers with a loop of their own."""
        return int(lib.dp_loop_fd(self._loop))

    def step(self, wait_ns: int = 0) -> bool:
        """One turn, waiting up to `wait_ns` for frames. False: stopped."""
        status = int(lib.dp_loop_run(self._loop, wait_ns))
        if status < 0:
            raise PortError(f"the loop failed: {text(lib.dp_status_text(status))}")
        return status == 0

    def run(self, until: Callable[[], bool] = lambda: False, timeout: float | None = None) -> None:
        """Forwards until `stop()`, `until()` or `timeout` seconds; signals are seen in between."""
        import time

        end = None if timeout is None else time.monotonic() + timeout
        self._stopping = False
        while not self._stopping and not until():
            left = _SLICE if end is None else min(_SLICE, int((end - time.monotonic()) * 1e9))
            if left < 0 or not self.step(left):
                return

    def stop(self) -> None:
        """Ends `run`, from any thread or signal handler."""
        self._stopping = True
        lib.dp_loop_stop(self._loop)

    @contextlib.contextmanager
    def background(self) -> Iterator[threading.Thread]:
        """Runs on a thread of its own; its errors are raised here at the end."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, name="forwarder", daemon=True)
        thread.start()
        try:
            yield thread
        finally:
            self.stop()
            thread.join()
        if failed:
            raise failed[0]

    def stats(self) -> dict[str, dict[str, int]]:
        """I/O counters by port name: frames, system calls, errors, super-frames."""
        counters = ffi.new("struct dp_io_counters *")
        result = {}
        for name, port_id in self._names.items():
            if lib.dp_loop_counters(self._loop, port_id, counters) == 0:
                fields = dir(counters)
                result[name] = {field: int(getattr(counters, field)) for field in fields}
        return result

    def close(self) -> None:
        loop, self._loop = self._loop, ffi.NULL
        if loop != ffi.NULL:
            lib.dp_loop_destroy(loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
