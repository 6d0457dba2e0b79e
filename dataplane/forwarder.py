"""The forwarder: an engine, its ports, and the C loop that moves frames between them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

from dataplane._engine import ffi, lib
from dataplane.errors import BusyError, DataplaneError
from dataplane.ports import Port
from dataplane.reasons import check

# ns of C before Python looks again: for signals and conditions; and where `stop` alone ends it
_SLICE, _LONG_SLICE = 50_000_000, 3_600_000_000_000


class _Engine(Protocol):
    """What the forwarder wants of an engine.

    `handle`: the `struct dp_engine *`; `port_id`: the id of a port by name, or PortError;
    `exclusive`: keeps other threads from being that worker, or BusyError.
    """

    @property
    def handle(self) -> Any: ...
    def port_id(self, name: str) -> int: ...
    def exclusive(self, worker: int = 0) -> contextlib.AbstractContextManager[None]: ...


class Forwarder:
    """Moves frames between ports until told to stop; policies may be committed meanwhile.

    `ports` maps the engine's port names (`underlay`, `host`, `NETWORK/ENDPOINT`) or port ids to
    open ports, which stay the caller's: they are closed after the forwarder. One thread at a time
    forwards, a second one gets BusyError; `stop`, `pause`, `silence` and `stats` are for all
    threads.
    `busy_poll_us`: how long it looks for frames before it sleeps, for shorter round trips; 0: only
    while packets come one by one, each within 0.1 ms.
    `workers`: threads that forward, as many as the engine has or fewer; ports of as many queues
    give each of them a share of the flows.
    """

    def __init__(
        self,
        engine: _Engine,
        ports: Mapping[str | int, Port] | Mapping[str, Port],
        *,
        busy_poll_us: int = 0,
        workers: int = 1,
    ) -> None:
        self._engine = engine
        self._ports: dict[str | int, tuple[int, Port]] = {}
        self._stopping = False
        self._runner = threading.Lock()  # held by whoever forwards
        self._turn = threading.Lock()  # held while it does, given up for a pause
        self._open = threading.Event()  # cleared: a pause is wanted
        self._open.set()
        self._loops: list[Any] = []
        self._read = threading.Lock()  # held by whoever reads them from outside, or destroys them
        try:
            for worker in range(workers):
                self._loops.append(_new_loop(engine, worker, busy_poll_us))
            for name, port in ports.items():
                self.add(name, port)
        except BaseException:
            self.close()
            raise

    def add(self, name: str | int, port: Port) -> None:
        """One more port; only while nothing runs, or in a `pause`."""
        port_id = name if isinstance(name, int) else self._engine.port_id(name)
        for queue, loop in enumerate(self._loops):
            port.join(loop, port_id, queue)
        self._ports[name] = port_id, port  # the port is held as long as C has its descriptors

    def fileno(self) -> int:
        """Readable when `step` has something to do: for callers with a loop of their own."""
        self._check_single()
        return int(lib.dp_loop_fd(self._loop(0)))

    def step(self, wait_ns: int = 0) -> bool:
        """One turn, waiting up to `wait_ns` for frames. False: stopped. Raises BusyError."""
        self._check_single()
        with self._alone(), self._turn, self._engine.exclusive():
            stopped = self._call(lib.dp_loop_step, 0, wait_ns) and self._stopping
        if stopped:
            self._stopping = False
        return not stopped

    def _check_single(self) -> None:
        if len(self._loops) > 1:
            raise ValueError(f"a forwarder of {len(self._loops)} workers is run, not stepped")

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
                with self._turn, self._engine.exclusive(), self._others():
                    while self._open.is_set() and not ended():
                        left = span if end is None else int((end - time.monotonic()) * 1e9)
                        self._call(lib.dp_loop_run, 0, max(0, min(span, left)))
            self._stopping = False

    @contextlib.contextmanager
    def _others(self) -> Iterator[None]:
        """The workers beside the first one, each on a thread; errors are raised at the end."""
        over = threading.Event()

        def work(worker: int) -> None:
            with self._engine.exclusive(worker), self._or_stop():
                while not over.is_set():
                    self._call(lib.dp_loop_run, worker, _LONG_SLICE)

        with ThreadPoolExecutor(len(self._loops) or 1, "worker") as pool:
            running = [pool.submit(work, worker) for worker in range(1, len(self._loops))]
            try:
                yield
            finally:
                over.set()
                for loop in self._loops[1:]:
                    lib.dp_loop_stop(loop)
        for each in running:
            each.result()

    @contextlib.contextmanager
    def _or_stop(self) -> Iterator[None]:
        """Who cannot go on ends `run`: its queues would be served by nobody."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _call(self, function: Callable[[Any, int], int], worker: int, ns: int) -> bool:
        """True: something wrote to the stop descriptor."""
        return check(function(self._loop(worker), ns)) != 0

    def _loop(self, worker: int) -> Any:
        _ = self._engine.handle  # raises if the engine was closed
        if not self._loops:
            raise DataplaneError("the forwarder is closed")
        return self._loops[worker]

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
        self._wake()

    def _wake(self) -> None:
        for loop in self._loops[:1]:
            lib.dp_loop_stop(loop)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside the block nothing is forwarded, so that another thread may list flows or trace."""
        self._open.clear()
        self._wake()
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
        with self._read:
            for name, (port_id, _) in self._ports.items():
                sums = dict.fromkeys(dir(counters), 0)
                for loop in self._loops:
                    check(lib.dp_loop_counters(loop, port_id, counters))
                    sums = {field: n + int(getattr(counters, field)) for field, n in sums.items()}
                result[str(name)] = sums
        return result

    def silence(self) -> float:
        """Seconds since each of its workers has ended a turn; 0, if it is closed. One that forwards
        does so every 0.1 s, whether frames come or not."""
        with self._read:
            turned = min(map(lib.dp_loop_turned_ns, self._loops), default=None)
        return 0.0 if turned is None else max(0.0, time.monotonic() - turned / 1e9)

    def close(self) -> None:
        """Again is harmless. Raises BusyError while another thread forwards."""
        with self._alone(), self._read:
            while self._loops:
                lib.dp_loop_destroy(self._loops.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _new_loop(engine: _Engine, worker: int, busy_poll_us: int) -> Any:
    error = ffi.new("struct dp_error *")
    made = lib.dp_loop_create(engine.handle, worker, error)
    check(error.status, error)
    lib.dp_loop_busy_poll(made, busy_poll_us * 1000)
    return made
