"""`dataplane run`: one node's engine between real ports, until a signal ends it.

SIGHUP reads the policy again, SIGUSR1 tells the counters, SIGINT and SIGTERM end it.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataplane import report
from dataplane.document import load
from dataplane.engine import Engine, Limits, choose
from dataplane.errors import DataplaneError, DocumentError, Fault, PortError
from dataplane.forwarder import Forwarder
from dataplane.host_nat import HostTable, forward, needs_host
from dataplane.model import Document, Node
from dataplane.node_ports import NodePorts
from dataplane.reasons import REASON_NAMES

STOPS = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (signal.SIGHUP, signal.SIGUSR1, *STOPS)
PATIENCE = 0.5  # seconds between looks at the forwarding thread

log = logging.getLogger("dataplane")


class _Stopped(BaseException):
    """A signal came that ends the process; args[0] is its number."""


class Tuning(NamedTuple):
    """How frames are moved, which no policy asks for."""

    offload: bool = True  # False: kernels cut, join and sum nothing for us
    busy_poll_us: int = 0  # how long to look for frames before sleeping
    workers: int = 1  # threads that forward


class MonotonicClock:
    """The clock that the C loop reads, so that both agree."""

    def now_ns(self) -> int:
        return time.monotonic_ns()


class Daemon:
    """Owns everything one `run` makes; a context manager that leaves nothing behind."""

    def __init__(
        self,
        file: str,
        node: Node,
        stats_file: str | None = None,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """`file` is where `node` comes from, and where it is read again; `limits` of the engine.

        Raises DataplaneError.
        """
        self._file, self._node, self._stats_file = file, node, stats_file
        self._tuning = tuning = tuning or Tuning()
        self._table: HostTable | None = None
        self._gone: set[str] = set()  # ports whose device was missed, and said so
        with contextlib.ExitStack() as made:
            self.engine = made.enter_context(
                Engine(clock=MonotonicClock(), workers=tuning.workers, **(limits or {}))
            )
            self.engine.commit(self._node)
            self._ports = made.enter_context(
                contextlib.closing(NodePorts(tuning.offload, tuning.workers))
            )
            self._ports.open(self._policy)
            made.callback(self._release_host)
            self._prepare_host(self._node)
            self._forwarding = contextlib.ExitStack()
            made.callback(self._stop_forwarding)
            self._start()
            self._made = made.pop_all()

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def _policy(self) -> Node:
        policy = self.engine.resolved
        assert policy is not None
        return policy

    def ready(self) -> str:
        endpoints = sum(len(network.endpoints) for network in self._policy.networks)
        underlay = self._policy.underlay
        where = f"[{underlay.address}]" if underlay.address.version == 6 else str(underlay.address)
        return (
            f"ready: node {self._policy.name}, {endpoints} endpoint{'s' * (endpoints != 1)}, "
            f"underlay {where}:{underlay.port}, generation {self.engine.generation}"
        )

    def serve(self) -> None:
        """Forwards and obeys signals, which the caller has blocked, until one of them ends it."""
        try:
            while True:
                self._obey(signal.sigtimedwait(SIGNALS, PATIENCE))
        except _Stopped as stopped:
            log.info("stopping: %s", signal.Signals(stopped.args[0]).name)

    def _obey(self, got: signal.struct_siginfo | None) -> None:
        if got is None:
            if not self._thread.is_alive():
                raise PortError("forwarding ended by itself")
            self._look_for_lost_devices()
        elif got.si_signo == signal.SIGHUP:
            self.reload()
        elif got.si_signo == signal.SIGUSR1:
            self.tell()
        else:
            raise _Stopped(got.si_signo)

    def _look_for_lost_devices(self) -> None:
        lost = self._ports.lost()
        for name in sorted(lost.keys() - self._gone):
            log.error("%s: %s is gone, was it deleted? SIGHUP makes it again", name, lost[name])
        self._gone = set(lost)

    # ---- policy --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Commits what the file says while frames pass. If it is wrong the old one stays."""
        try:
            begin = time.monotonic()
            with _stoppable():
                target = choose(_load_again(self._file), self._node.name)
                plan = self.engine.plan(target)
                text = plan.text()
            with self._ports.change(plan.resolved) as change:
                self._prepare_host(target)
                plan.commit()
                if change:
                    self._restart()
        except DataplaneError as error:
            log.error("%s", error)
            log.error("nothing applied, generation still %d", self.engine.generation)
            return
        self._node = target
        elapsed = (time.monotonic() - begin) * 1e3
        log.info("%s, applied in %.1f ms", text, elapsed)

    def _prepare_host(self, node: Node) -> None:
        """What NAT asks of the host."""
        host = node.host_port
        if self._table is not None and not (self._table.fits(host) and needs_host(node)):
            self._release_host()
        if host is None or not needs_host(node):
            return
        note = forward(host)
        if note:
            log.info("NAT: %s", note)
        self._table = self._table or HostTable(host)
        if self._table.apply(node):
            log.info("NAT: %s", self._table)

    def _release_host(self) -> None:
        table, self._table = self._table, None
        if table is not None:
            try:
                table.close()
            except PortError as error:
                log.warning("%s", error)

    # ---- forwarding ----------------------------------------------------------------------------

    def _start(self) -> None:
        with contextlib.ExitStack() as made:
            forwarder = Forwarder(
                self.engine,
                self._ports.open_ports,
                busy_poll_us=self._tuning.busy_poll_us,
                workers=self._tuning.workers,
            )
            made.enter_context(forwarder)
            self._thread = made.enter_context(forwarder.background())
            self._forwarding = made.pop_all()
        self.forwarder = forwarder

    def _stop_forwarding(self) -> None:
        self._forwarding.close()

    def _restart(self) -> None:
        """With other ports. Frames wait in their devices meanwhile."""
        self._stop_forwarding()
        self._start()

    def stop(self) -> None:
        """Ends forwarding; the counters are final then."""
        self._stop_forwarding()
        if self._stats_file is not None:
            self.tell()

    # ---- looking -------------------------------------------------------------------------------

    def tell(self) -> None:
        """The counters: into the file if there is one, else to the log."""
        if self._stats_file is None:
            log.info("%s", report.counters(self.engine.stats()))
            return
        try:
            _write(Path(self._stats_file), json.dumps(self._state(), indent=1) + "\n")
        except OSError as error:
            log.error("%s: %s", self._stats_file, error.strerror)

    def _state(self) -> dict[str, object]:
        return {
            "node": self._policy.name,
            **self.engine.stats().to_dict(),
            "io": self.forwarder.stats(),
        }


def run(
    file: str,
    node: str | None,
    stats_file: str | None,
    pid_file: str | None,
    limits: Limits,
    tuning: Tuning,
) -> None:
    """What the command does. Raises DataplaneError."""
    target = choose(load(file, REASON_NAMES), node)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    options = stats_file, limits, tuning
    with _signals_held(), _pid_file(pid_file), Daemon(file, target, *options) as daemon:
        log.info(daemon.ready())
        daemon.serve()
        daemon.stop()
        log.info(report.counters(daemon.engine.stats()))


def _load_again(file: str) -> Document:
    """Raises DocumentError."""
    if Path(file).exists() and not Path(file).is_file():
        message = "is no regular file, so it cannot be read again"
        raise DocumentError((Fault(file, 0, "$", message, "restart with one that is"),))
    return load(file, REASON_NAMES)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """By all threads that begin here: `serve` fetches them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Here, where nothing is changed, SIGINT and SIGTERM end the work at once. Raises _Stopped."""

    def stop(number: int, frame: object) -> None:
        raise _Stopped(number)

    handlers = {number: signal.signal(number, stop) for number in STOPS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _pid_file(name: str | None) -> Iterator[None]:
    """Raises PortError where the file is not ours to write."""
    if name is None:
        yield
        return
    path, own = Path(name), f"{os.getpid()}\n"
    try:
        _refuse_pid_file(path)
        path.write_text(own)
    except OSError as error:
        raise PortError(f"{name}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == own:
                path.unlink()


def _refuse_pid_file(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise PortError(f"{path}: is no regular file (name another --pid-file)")
    text = path.read_text(errors="replace").strip()
    if text and not (text.isascii() and text.isdecimal()):
        raise PortError(f"{path}: is no pid file (name another --pid-file)")
    if text and int(text) != os.getpid() and Path(f"/proc/{text}").exists():
        raise PortError(f"{path}: process {text} has it and lives (stop that, or remove the file)")


def _write(path: Path, text: str) -> None:
    """A reader of a regular file sees the old text or the new one, never half of it."""
    place = path.resolve()
    if place.exists() and not place.is_file():
        place.write_text(text)
        return
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(place)
