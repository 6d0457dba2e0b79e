"""The forwarder: an engine, its ports, and the C loop that moves frames between them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from dataplane._engine import ffi, lib
from dataplane.errors import BusyError
from dataplane.ports import Port
from dataplane.reasons import check

# ns of C before Python looks again: for signals and conditions; and where `stop` alone ends it
_SLICE, _LONG_SLICE = 50_000_000, 3_600_000_000_000


class _Engine(Protocol):
    """What the forwarder wants of an engine.

    `handle`: the `struct dp_engine *`; `port_id`: the id of a port by name, or PortError;
    `exclusive`: keeps other threads out of the packet's way, or BusyError.
    """

    @property
    def handle(self) -> Any: ...
    def port_id(self, name: str) -> int: ...
    def exclusive(self) -> contextlib.AbstractContextManager[None]: ...


class Forwarder:
    """Moves frames between ports until told to stop; policies may be committed meanwhile.

    `ports` maps the engine's port names (`underlay`, `host`, `NETWORK/ENDPOINT`) or port ids to
    open ports, which stay the caller's: they are closed after the forwarder. One thread at a time
    forwards, a second one gets BusyError; `stop`, `pause` and `stats` are for all threads.
    `busy_poll_us`: how long it looks for frames before it sleeps, for shorter round trips.
    """

    def __init__(
        self,
        engine: _Engine,
        ports: Mapping[str | int, Port] | Mapping[str, Port],
        *,
        busy_poll_us: int = 0,
    ) -> None:
        self._engine = engine
        self._ports: dict[str | int, tuple[int, Port]] = {}
        self._stopping = False
        self._runner = threading.Lock()  # held by whoever forwards
        self._turn = threading.Lock()  # held while it does, given up for a pause
        self._open = threading.Event()  # cleared: a pause is wanted
        self._open.set()
        error = ffi.new("struct dp_error *")
        self._loop = lib.dp_loop_create(engine.handle, error)
        check(error.status, error)
        lib.dp_loop_busy_poll(self._loop, busy_poll_us * 1000)
        try:
            for name, port in ports.items():
                self.add(name, port)
        except BaseException:
            self.close()
            raise

    def add(self, name: str | int, port: Port) -> None:
        """One more port; only while nothing runs, or in a `pause`."""
        port_id = name if isinstance(name, int) else self._engine.port_id(name)
        port.join(self._loop, port_id)
        self._ports[name] = port_id, port  # the port is held as long as C has its descriptors

    def fileno(self) -> int:
        """Readable when `step` has something to do: for callers with a loop of their own."""
        return int(lib.dp_loop_fd(self._loop))

    def step(self, wait_ns: int = 0) -> bool:
        """One turn, waiting up to `wait_ns` for frames. False: stopped. Raises BusyError."""
        with self._alone(), self._turn, self._engine.exclusive():
            stopped = self._call(lib.dp_loop_step, wait_ns) and self._stopping
        if stopped:
            self._stopping = False
        return not stopped

    def run(self, until: Callable[[], bool] | None = None, timeout: float | None = None) -> None:
        """Forwards until `stop()`, `until()` or `timeout` seconds. Raises BusyError.

        In the main thread signals are handled, and `until` is asked, at least every 50 ms. Another
        thread without `until` stays in C, whatever the rest of Python does with its lock.
        """
        end = None if timeout is None else time.monotonic() + timeout
        alone = until is None and threading.current_thread() is not threading.main_thread()
        span = _LONG_SLICE if alone else _SLICE

        def ended() -> bool:
            late = end is not None and time.monotonic() >= end
            return late or self._stopping or (until is not None and until())

        with self._alone():
            while not ended():
                self._open.wait()
                with self._turn, self._engine.exclusive():
                    while self._open.is_set() and not ended():
                        left = span if end is None else int((end - time.monotonic()) * 1e9)
                        self._call(lib.dp_loop_run, max(0, min(span, left)))
            self._stopping = False

    def _call(self, function: Callable[[Any, int], int], ns: int) -> bool:
        """True: something wrote to the stop descriptor."""
        _ = self._engine.handle  # raises if the engine was closed
        return check(function(self._loop, ns)) != 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._runner.acquire(blocking=False):
            raise BusyError("another thread is inside this forwarder")
        try:
            yield
        finally:
            self._runner.release()

    def stop(self) -> None:
        """Ends `run`, the next one if none is under way; from any thread or signal handler."""
        self._stopping = True
        lib.dp_loop_stop(self._loop)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside the block nothing is forwarded, so that another thread may list flows or trace."""
        self._open.clear()
        lib.dp_loop_stop(self._loop)
        try:
            with self._turn:
                yield
        finally:
            self._open.set()

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
            self._stopping = False
        if failed:
            raise failed[0]

    def stats(self) -> dict[str, dict[str, int]]:
        """I/O counters by port name: frames, system calls, errors, super-frames."""
        counters = ffi.new("struct dp_io_counters *")
        result = {}
        for name, (port_id, _) in self._ports.items():
            if lib.dp_loop_counters(self._loop, port_id, counters) == 0:
                fields = dir(counters)
                result[str(name)] = {field: int(getattr(counters, field)) for field in fields}
        return result

    def close(self) -> None:
        """Again is harmless. Raises BusyError while another thread forwards."""
        with self._alone():
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
