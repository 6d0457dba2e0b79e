"""`dataplane run`: a node and its control API in the foreground, until a signal ends it.

SIGHUP reads the policy again, SIGUSR1 tells the counters, SIGUSR2 has a successor take over, SIGINT
and SIGTERM end it.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dataplane import report, sandbox
from dataplane.api.hub import Hub
from dataplane.api.serve import Control
from dataplane.api.sockets import socket_of
from dataplane.cni.attachments import Attachments, living
from dataplane.daemon import Daemon, Tuning
from dataplane.document import load, loads
from dataplane.engine import Limits, choose
from dataplane.errors import DataplaneError, DocumentError, Fault, PortError
from dataplane.handover import Inherited
from dataplane.model import Document
from dataplane.reasons import REASON_NAMES
from dataplane.service import notify, watched
from dataplane.state_dir import Saved, StateDir, shares_of

STOPS = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, *STOPS)
PATIENCE = 0.5  # seconds between looks at the forwarding thread

Door = Callable[[Daemon], contextlib.AbstractContextManager[object]]

log = logging.getLogger("dataplane")


class _Stopped(BaseException):
    """A signal came that ends the process; args[0] is its number."""


class _HandedOver(BaseException):
    """A successor does all of it now."""


class Places(NamedTuple):
    """Files of a running node; None: there is none."""

    policy: str | None = None
    state: str | None = None  # a directory
    from_file: bool = False  # the policy is read, whatever is saved
    control: str | None = None  # the socket; None: by the node's name
    serves: bool = True  # whether there is one
    reading: str | None = None  # a second socket, to read only
    stats: str | None = None
    pid: str | None = None


class Run:
    """Obeys signals."""

    def __init__(
        self,
        daemon: Daemon,
        places: Places,
        state: StateDir | None,
        controls: Mapping[str, Control],
    ) -> None:
        self._daemon, self._places = daemon, places
        self._state, self._controls = state, controls
        self._attachments = Attachments(daemon)
        self._refused: set[str] = set()  # sockets that cannot be made again, and it was said

    def serve(self) -> None:
        """Until a signal, which the caller has blocked, ends it. Raises PortError."""
        try:
            while True:
                self._obey(signal.sigtimedwait(SIGNALS, PATIENCE))
        except _Stopped as stopped:
            log.info("stopping: %s", signal.Signals(stopped.args[0]).name)
            notify("STOPPING=1")
            self._end()
        except _HandedOver:
            log.info("handed over")

    def _hand_over(self) -> None:
        """If the successor does not come all is as before."""
        fds = {name: control.fileno() for name, control in self._controls.items()}
        if self._state is not None:
            fds["state"] = self._state.fileno()
        begin = time.monotonic()
        try:
            self._daemon.hand_over(fds, fds.values(), self._pause)
        except DataplaneError as error:
            log.error("%s; going on", error)
            notify(f"MAINPID={os.getpid()}")
            for control in self._controls.values():
                control.resume()
            return
        for control in self._controls.values():
            control.leave()
        log.info("a successor forwards, after %.0f ms", (time.monotonic() - begin) * 1e3)
        raise _HandedOver

    def _pause(self) -> None:
        for control in self._controls.values():
            control.pause()

    def _obey(self, got: signal.struct_siginfo | None) -> None:
        """After a stop (SIGSTOP) of the process `got` may be of no signal (CPython issue)."""
        if got is None or got.si_signo not in SIGNALS:
            if not self._daemon.is_forwarding:
                raise PortError("forwarding ended by itself")
            self._daemon.look_for_lost_devices()
            self._look_for_containers()
            self._look_for_sockets()
        elif got.si_signo == signal.SIGHUP:
            self._reload()
        elif got.si_signo == signal.SIGUSR1:
            self.tell()
        elif got.si_signo == signal.SIGUSR2:
            self._hand_over()
        else:
            raise _Stopped(got.si_signo)

    def _look_for_containers(self) -> None:
        try:
            self._attachments.drop_dead()
        except DataplaneError as error:
            log.error("%s", error)

    def _look_for_sockets(self) -> None:
        """Those that were removed are made again; where they cannot be, the log says so once."""
        for name, control in self._controls.items():
            try:
                control.renew()
                self._refused.discard(name)
            except PortError as error:
                if name not in self._refused:
                    log.error("%s", error)
                self._refused.add(name)

    def _reload(self) -> None:
        """What the file says. If it is wrong the old policy stays."""
        daemon = self._daemon
        try:
            begin = time.monotonic()
            with daemon.changing():
                with _stoppable():
                    again = choose(_load_again(self._places.policy), daemon.policy.name)
                    proposal = daemon.plan(again)
                    text = proposal.plan.text()
                daemon.commit(proposal)
        except DataplaneError as error:
            log.error("%s", error)
            log.error("nothing applied, generation still %d", daemon.engine.generation)
            return
        log.info("%s, applied in %.1f ms", text, (time.monotonic() - begin) * 1e3)

    def tell(self) -> None:
        """The counters: into the file if there is one, else to the log."""
        if self._places.stats is None:
            log.info("%s", report.counters(self._daemon.engine.stats()))
            return
        try:
            text = json.dumps(self._daemon.state(), indent=1) + "\n"
            _write(Path(self._places.stats), text)
        except OSError as error:
            log.error("%s: %s", self._places.stats, error.strerror)

    def _end(self) -> None:
        """Tells the final counters."""
        self._daemon.stop()
        if self._places.stats is not None:
            self.tell()
        log.info(report.counters(self._daemon.engine.stats()))


def run(
    places: Places,
    node: str | None,
    limits: Limits,
    tuning: Tuning,
    successor: int | None = None,
    doors: Iterable[Door] = (),
    confined: bool = False,
) -> None:
    """What the command does; `successor`: the descriptor by which a predecessor hands over;
    `doors`: front doors that change the policy while the daemon runs; `confined`: the process gives
    up what it never needs.

    Raises DataplaneError.
    """
    with contextlib.ExitStack() as made:
        made.enter_context(_signals_held())
        inherited = Inherited(successor) if successor is not None else None
        told = inherited.state if inherited else {}
        state = made.enter_context(_state_dir(places.state, told)) if places.state else None
        begin = _inheritance(told) if inherited else living(_beginning(places, node, state))
        made.enter_context(_pid_file(places.pid, inherited is not None))
        given_up = [sandbox.enter()] if confined else []
        daemon = made.enter_context(
            Daemon(begin, state=state, limits=limits, tuning=tuning, inherited=inherited)
        )
        hub = made.enter_context(Hub(daemon))
        opened = [door(daemon) for door in doors]  # before anybody asks whether they are synced
        controls = {
            name: made.enter_context(
                Control(daemon, hub, path, read_only=name == "reading", inherited=told.get(name))
            )
            for name, path in _sockets(places, daemon.policy.name)
        }
        made.enter_context(watched(lambda: daemon.is_well))
        if inherited is not None:
            notify(f"MAINPID={os.getpid()}")  # before the predecessor ends
            inherited.done()
        for door in opened:
            made.enter_context(door)
        for line in (*given_up, *daemon.told()):
            log.info(line)
        notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={daemon.ready()}")
        Run(daemon, places, state, controls).serve()


def _state_dir(path: str, told: dict[str, Any]) -> StateDir:
    return StateDir.inherited(path, told["state"]) if "state" in told else StateDir(path)


def _inheritance(told: dict[str, Any]) -> Saved:
    """The policy that the predecessor has committed."""
    node = loads(told["policy"], "predecessor").node
    assert node is not None
    return Saved(told["generation"], node, told["released"], shares_of(told.get("shares", {})))


def _sockets(places: Places, node: str) -> Iterator[tuple[str, str | Path]]:
    if places.serves:
        yield "control", places.control or socket_of(node)
    if places.reading is not None:
        yield "reading", places.reading


def _beginning(places: Places, name: str | None, state: StateDir | None) -> Saved:
    """What was committed last, if that is known and the file is not to have the last word; else
    what the file says. Raises DataplaneError."""
    saved = state.read() if state is not None else None
    if saved is not None and name is not None and name != saved.node.name:
        raise DataplaneError(f"{places.state} is of node {saved.node.name}, not of {name}")
    if saved is not None and not places.from_file:
        log.info("generation %d of %s holds", saved.generation, places.state)
        return saved
    if places.policy is None:
        why = "--from-file" if places.from_file else "nothing is saved yet"
        raise DataplaneError(f"{why}: which policy? Give its FILE")
    document = load(places.policy, REASON_NAMES)
    if saved is None:
        return Saved(1, choose(document, name))
    log.info("%s takes the place of generation %d", places.policy, saved.generation)
    return saved.with_document(choose(document, saved.node.name))


def _load_again(file: str | None) -> Document:
    """Raises DataplaneError."""
    if file is None:
        raise DataplaneError("no FILE was given to be read again")
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
def _pid_file(name: str | None, takes_over: bool) -> Iterator[None]:
    """Raises PortError where the file is not ours to write."""
    if name is None:
        yield
        return
    path, own = Path(name), f"{os.getpid()}\n"
    try:
        if not takes_over:
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
