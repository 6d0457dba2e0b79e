"""Daemon: one node's engine between real ports, its policy changed while frames pass.

`dataplane run` and the control API are its two callers, on threads of their own.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

from dataplane import ipam
from dataplane.document import dump_json
from dataplane.engine import Engine, Limits
from dataplane.errors import BusyError, DataplaneError, DocumentError, Fault, StaleError
from dataplane.forwarder import Forwarder
from dataplane.handover import Inherited, Successor
from dataplane.host_nat import HostTable, forward, needs_host
from dataplane.ids import UNDERLAY
from dataplane.model import Document, Node
from dataplane.node_ports import NodePorts
from dataplane.plan import Plan
from dataplane.saved import Saved as SavedFlows
from dataplane.state_dir import Saved, StateDir

TURN = 0.1  # seconds between looks at whether it is worth to wait

log = logging.getLogger("dataplane")


class Tuning(NamedTuple):
    """How frames are moved, which no policy asks for."""

    offload: bool = True  # False: kernels cut, join and sum nothing for us
    busy_poll_us: int = 0  # how long to look for frames before sleeping
    workers: int = 1  # threads that forward
    xdp: str | None = None  # the interface of AF_XDP, whatever the policy says


class Applied(NamedTuple):
    """What an `apply` did, or would do: the plan, the generation that holds now, and how long."""

    plan: Plan
    generation: int
    seconds: float

    def text(self) -> str:
        return f"{self.plan.text()}, applied in {self.seconds * 1e3:.1f} ms"


class MonotonicClock:
    """The clock that the C loop reads, so that both agree."""

    def now_ns(self) -> int:
        return time.monotonic_ns()


class Daemon:
    """Owns everything one node makes; a context manager that leaves nothing behind.

    Methods may be called by any thread; changes are made one at a time.
    """

    def __init__(
        self,
        node: Node,
        *,
        generation: int = 1,
        released: ipam.Released | None = None,
        state: StateDir | None = None,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """`generation`: of the policy it begins with, `released`: addresses before it. `state`:
        where each one is saved; it stays the caller's. `limits` of the engine. `inherited`: from a
        predecessor, which hands its ports and flows over. Raises DataplaneError."""
        self.tuning = tuning = tuning or Tuning()
        self._state = state
        self._table: HostTable | None = None
        self._gone: set[str] = set()  # ports whose device was missed, and said so
        self._changing = threading.RLock()
        self.released = released or {}
        self._leaving = False  # a successor takes over, or has
        self.began = time.time()
        self.on_commit: list[Callable[[Applied], None]] = []  # told of each, on its thread
        with contextlib.ExitStack() as made:
            self.engine = made.enter_context(
                Engine(
                    clock=MonotonicClock(),
                    workers=tuning.workers,
                    generation=generation - 1,
                    ports=inherited.state["numbers"] if inherited else None,
                    **(limits or {}),
                )
            )
            plan = self.engine.plan(node)
            self._ports = made.enter_context(
                contextlib.closing(
                    NodePorts(tuning.offload, tuning.workers, state is not None, tuning.xdp)
                )
            )
            flows = b""
            if inherited is None:
                self._ports.open(plan.resolved)
            else:
                flows = inherited.await_flows()
                self._ports.inherit(plan.resolved, inherited.state["ports"])
            made.callback(self._release_host)
            self._prepare_host(node)
            with self._saving(plan):
                plan.commit()
            if flows:
                self._restore(flows)
            self._forwarding = contextlib.ExitStack()
            made.callback(self.stop)
            self._start()
            self._made = made.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._made.close()

    @property
    def policy(self) -> Node:
        """The committed one, with its defaults filled in."""
        policy = self.engine.resolved
        assert policy is not None
        return policy

    @property
    def is_forwarding(self) -> bool:
        """Whether it does, or is about to again: a change of ports interrupts it."""
        if self._thread.is_alive() or not self._changing.acquire(timeout=TURN):
            return True
        try:
            return self._thread.is_alive()
        finally:
            self._changing.release()

    def told(self) -> Iterator[str]:
        """What there is to say of it at the beginning."""
        if self._ports.xdp:
            yield f"underlay: {self._ports.xdp}"
        yield self.ready()

    def ready(self) -> str:
        policy = self.policy
        endpoints = sum(len(network.endpoints) for network in policy.networks)
        underlay = policy.underlay
        where = f"[{underlay.address}]" if underlay.address.version == 6 else str(underlay.address)
        return (
            f"ready: node {policy.name}, {endpoints} endpoint{'s' * (endpoints != 1)}, "
            f"underlay {where}:{underlay.port}, generation {self.engine.generation}"
        )

    # ---- policy --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keeps other threads from changing the policy: for those who read it, then write it.

        Raises BusyError while a successor takes over.
        """
        while not self._changing.acquire(timeout=TURN):
            if self._leaving:
                raise BusyError("another process takes over: ask again")
        try:
            yield
        finally:
            self._changing.release()

    def apply(self, node: Node, *, base: int | None = None, dry_run: bool = False) -> Applied:
        """Commits a policy while frames pass, all or nothing; what it says of ports, too.

        `base`: the generation that it was made of. Raises DataplaneError: DocumentError with every
        fault, StaleError where another generation came in between.
        """
        begin = time.monotonic()
        with self.changing():
            now = self.engine.generation
            if base is not None and base != now:
                raise StaleError(f"made of generation {base}, but {now} holds: look at it again")
            plan = self.plan(node)
            if not dry_run:
                self.commit(plan)
            return Applied(plan, self.engine.generation, time.monotonic() - begin)

    def plan(self, node: Node) -> Plan:
        """What `apply` would change. Raises DocumentError."""
        name = self.policy.name
        if node.name != name:
            fault = Fault("policy", 0, "$.node.name", f"is {node.name!r}, but this is node {name}")
            raise DocumentError((fault,))
        return self.engine.plan(node)

    def commit(self, plan: Plan) -> None:
        """Raises DataplaneError: nothing is changed then."""
        begin = time.monotonic()
        with self.changing():
            self._commit(plan)
            applied = Applied(plan, self.engine.generation, time.monotonic() - begin)
        for tell in self.on_commit if not plan.is_empty else ():
            tell(applied)

    def _commit(self, plan: Plan) -> None:
        with self._ports.change(plan.resolved) as change:
            self._prepare_host(plan.target)
            before = self.engine.node
            with self._saving(plan):
                plan.commit()
            self.released = ipam.after(self.released, before, plan.target)
            if change:
                self._restart()

    def _saving(self, plan: Plan) -> contextlib.AbstractContextManager[None]:
        if self._state is None or plan.is_empty:
            return contextlib.nullcontext()
        released = ipam.after(self.released, self.engine.node, plan.target)
        return self._state.saving(Saved(plan.base + 1, plan.target, released))

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
            except DataplaneError as error:
                log.warning("%s", error)

    # ---- restart -------------------------------------------------------------------------------

    def hand_over(
        self, also: dict[str, Any], fds: Iterable[int], before: Callable[[], None]
    ) -> None:
        """Starts a successor, which has everything when this returns; this daemon is left then.

        `also`: what it is told besides, with these descriptors; `before`: called once it is ready.
        Raises HandoverError: everything is as before, but what `before` did.
        """
        with self.changing(), self._departure():
            numbers = dict(self.engine.ids.ports)
            state = {"ports": self._ports.state(), "numbers": numbers, **also}
            state |= {"generation": self.engine.generation, "policy": self._source()}
            state |= {"released": dict(self.released)}
            all_fds = [*self._ports.fds(), *fds]
            with Successor(state, all_fds) as successor:
                successor.await_ready()
                before()
                with self._ports.without_xdp():
                    self.stop()
                try:
                    successor.hand_over(self.engine.save().to_bytes())
                except BaseException:
                    successor.end()
                    self._start()
                    raise
            self._leave()

    @contextlib.contextmanager
    def _departure(self) -> Iterator[None]:
        """Who wants to change something meanwhile is refused."""
        self._leaving = True
        try:
            yield
        except BaseException:
            self._leaving = False
            raise

    def _source(self) -> str:
        assert self.engine.node is not None
        return dump_json(Document(node=self.engine.node)).decode()

    def _restore(self, flows: bytes) -> None:
        """What the predecessor had; without it they begin anew."""
        try:
            count = self.engine.restore(SavedFlows.from_bytes(flows))
            log.info("%d flows taken over", count)
        except DataplaneError as error:
            log.warning("flows begin anew: %s", error)

    def _leave(self) -> None:
        """What another process has now is neither closed nor removed here."""
        self._ports.leave()
        self._table = None

    # ---- forwarding ----------------------------------------------------------------------------

    def _start(self) -> None:
        with contextlib.ExitStack() as made:
            forwarder = Forwarder(
                self.engine,
                self._ports.open_ports,
                busy_poll_us=self.tuning.busy_poll_us,
                workers=self.tuning.workers,
            )
            made.enter_context(forwarder)
            self._thread = made.enter_context(forwarder.background())
            self._forwarding = made.pop_all()
        self.forwarder = forwarder

    def stop(self) -> None:
        """Ends forwarding; the counters are final then. Again is harmless."""
        self._forwarding.close()

    def _restart(self) -> None:
        """With other ports. Frames wait in their devices meanwhile."""
        self.stop()
        self._start()

    def lost_devices(self) -> dict[str, str]:
        """Ports whose device is no more, and its name."""
        return self._ports.lost()

    def look_for_lost_devices(self) -> None:
        """Says once of each that it is gone; AF_XDP gets its interface back, if that came back."""
        lost = self.lost_devices()
        for name in sorted(lost.keys() - self._gone):
            log.error("%s: %s is gone, was it deleted? SIGHUP makes it again", name, lost[name])
        if wanted := self._ports.lacks_xdp:
            with contextlib.suppress(BusyError):
                self._renew_xdp()
        if wanted and self._ports.lacks_xdp:
            lost[UNDERLAY] = wanted
            if UNDERLAY not in self._gone:
                log.error("underlay: no AF_XDP on %s for now: packets take the sockets", wanted)
        self._gone = set(lost)

    def _renew_xdp(self) -> None:
        with self.changing(), self._ports.renewed() as again:
            if again:
                self._restart()
                log.info("underlay: %s", self._ports.xdp)

    def state(self) -> dict[str, Any]:
        """All counters, as the --stats file has them."""
        return {
            "node": self.policy.name,
            **self.engine.stats().to_dict(),
            "io": self.forwarder.stats(),
        }
