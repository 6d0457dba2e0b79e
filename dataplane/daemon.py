"""Daemon: one node's engine between real ports, its policy changed while frames pass.

`dataplane run` and the control API are its two callers, on threads of their own.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dataplane import ipam
from dataplane.defaults import resolve
from dataplane.document import dump_json
from dataplane.encoder import told_shares
from dataplane.engine import Engine, Limits
from dataplane.errors import BusyError, DataplaneError, DocumentError, Fault, StaleError
from dataplane.forwarder import Forwarder
from dataplane.garbage import no_collection
from dataplane.handover import Inherited, Successor
from dataplane.host_nat import HostTable, forward, needs_host
from dataplane.ids import UNDERLAY
from dataplane.model import Document, Node
from dataplane.node_ports import NodePorts
from dataplane.plan import Plan
from dataplane.saved import Saved as SavedFlows
from dataplane.shares import DOCUMENT, Composer, Share, Shares
from dataplane.standing import Standing
from dataplane.state_dir import Saved, StateDir

TURN = 0.1  # seconds between looks at whether it is worth to wait
STALL = 5.0  # seconds without a turn of the loop, after which it will not come again

log = logging.getLogger("dataplane")


class Tuning(NamedTuple):
    """How frames are moved, which no policy asks for."""

    offload: bool = True  # False: kernels cut, join and sum nothing for us
    busy_poll_us: int = 0  # how long to look for frames before sleeping
    workers: int = 1  # threads that forward
    xdp: str | None = None  # the interface of AF_XDP, whatever the policy says


class Proposal(NamedTuple):
    """A policy that may be committed: the document's own part of it, the shares, and the plan."""

    own: Node
    shares: Shares
    plan: Plan


class Committed(NamedTuple):
    """The document's own policy, what front doors add, and the generation of both together."""

    own: Node
    shares: Shares
    generation: int


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
        begin: Saved,
        *,
        state: StateDir | None = None,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """`begin`: the policy it begins with. `state`: where each one is saved; it stays the
        caller's. `limits` of the engine. `inherited`: from a predecessor, which hands its ports and
        flows over. Raises DataplaneError."""
        self.tuning = tuning = tuning or Tuning()
        self._state = state
        self._composer = Composer()
        self._table: HostTable | None = None
        self._gone: set[str] = set()  # ports whose device was missed, and said so
        self._changing = threading.RLock()
        self.released = begin.released
        self.committed = Committed(begin.node, begin.shares, begin.generation - 1)
        self._leaving = False  # a successor takes over, or has
        self.began = time.monotonic()
        self.on_commit: list[Callable[[Applied], None]] = []  # told of each, on its thread
        self.doors: dict[str, Standing] = {}  # those that follow somebody, by origin
        with contextlib.ExitStack() as made:
            self.engine = made.enter_context(self._new_engine(begin, limits or {}, inherited))
            proposal = self._proposed(begin.node, begin.shares)
            ports = NodePorts(tuning.offload, tuning.workers, state is not None, tuning.xdp)
            self._ports = made.enter_context(contextlib.closing(ports))
            made.callback(self._release_host)
            if inherited is not None:
                made.callback(self._spare, inherited)
            flows = self._open_ports(proposal.plan.resolved, begin.before, inherited)
            self._prepare_host(proposal.plan.target)
            released = ipam.after(self.released, None, proposal.plan.target)
            self._commit_saved(proposal, released)
            self._ports.outlive()
            self.committed = Committed(begin.node, begin.shares, self.engine.generation)
            if flows:
                self._restore(flows)
            self._forwarding = contextlib.ExitStack()
            made.callback(self.stop)
            self._start()
            self._made = made.pop_all()

    def _new_engine(self, begin: Saved, limits: Limits, inherited: Inherited | None) -> Engine:
        return Engine(
            clock=MonotonicClock(),
            workers=self.tuning.workers,
            generation=begin.generation - 1,
            ports=inherited.state["numbers"] if inherited else None,
            **limits,
        )

    def _open_ports(
        self, resolved: Node, before: Node | None, inherited: Inherited | None
    ) -> bytes:
        """The predecessor's flows, once it has left the ports to us."""
        if inherited is None:
            self._ports.open(resolved, before and resolve(before))
            return b""
        flows = inherited.await_flows()
        self._ports.inherit(resolved, inherited.state["ports"])
        return flows

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

    @property
    def is_well(self) -> bool:
        """Whether frames are moved: not only is there somebody to do it. While a successor takes
        over, who is given time for it, nobody is asked."""
        return self._leaving or (self.is_forwarding and self.forwarder.silence() < STALL)

    @property
    def xdp(self) -> str | None:
        """AF_XDP beside the underlay's sockets, in words."""
        xdp = self._ports.xdp
        return str(xdp) if xdp and not self.lacks_xdp else None

    @property
    def lacks_xdp(self) -> str | None:
        """The interface where AF_XDP is wanted and is not."""
        return self._ports.lacks_xdp

    @property
    def state_path(self) -> Path | None:
        """The directory that policies are saved in."""
        return self._state.path if self._state is not None else None

    def told(self) -> Iterator[str]:
        """What there is to say of it at the beginning."""
        if self.xdp:
            yield f"underlay: {self.xdp}"
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
            with no_collection():
                yield
        finally:
            self._changing.release()

    def apply(self, node: Node, *, base: int | None = None, dry_run: bool = False) -> Applied:
        """Commits a document's policy while frames pass, all or nothing; what it says of ports,
        too. What front doors have stays.

        `base`: the generation that it was made of. Raises DataplaneError: DocumentError with every
        fault, StaleError where another generation came in between.
        """
        with self.changing():
            self._check_name(node)
            return self._applied(lambda now: (node, now.shares), base, dry_run)

    def contribute(
        self, origin: str, share: Share, *, base: int | None = None, dry_run: bool = False
    ) -> Applied:
        """As `apply`, for a front door: all that it has, in place of what it had."""
        with self.changing():
            return self._applied(lambda now: (now.own, _with(now, origin, share)), base, dry_run)

    def share(self, origin: str) -> Share:
        """What a front door has; nothing, if it never came."""
        return self.committed.shares.get(origin) or Share()

    def door(self, origin: str, look: str) -> Standing:
        """For a front door that follows somebody: the node is not ready before its first sync,
        unless it has a share from before. `look`: see Standing."""
        self.doors[origin] = Standing(look, origin in self.committed.shares)
        return self.doors[origin]

    def _applied(
        self, change: Callable[[Committed], tuple[Node, Shares]], base: int | None, dry_run: bool
    ) -> Applied:
        begin = time.monotonic()
        now = self.engine.generation
        if base is not None and base != now:
            raise StaleError(f"made of generation {base}, but {now} holds: look at it again")
        proposal = self._proposed(*change(self.committed))
        if not dry_run:
            self.commit(proposal)
        return Applied(proposal.plan, self.engine.generation, time.monotonic() - begin)

    def plan(self, node: Node) -> Proposal:
        """What `apply` would change. Raises DocumentError."""
        self._check_name(node)
        return self._proposed(node, self.committed.shares)

    def _check_name(self, node: Node) -> None:
        name = self.policy.name
        if node.name != name:
            fault = Fault("policy", 0, "$.node.name", f"is {node.name!r}, but this is node {name}")
            raise DocumentError((fault,))

    def _proposed(self, own: Node, shares: Shares) -> Proposal:
        target = self._composer.compose(own, shares)
        given = ipam.missing(target, self.engine.node, self.released)
        if given:
            own, shares = ipam.filled(own, given), ipam.filled_shares(shares, given)
            target = self._composer.compose(own, shares)
        return Proposal(own, shares, self.engine.plan(target))

    def commit(self, proposal: Proposal) -> None:
        """Raises DataplaneError: nothing is changed then."""
        begin, plan = time.monotonic(), proposal.plan
        with self.changing():
            self._commit(proposal)
            applied = Applied(plan, self.engine.generation, time.monotonic() - begin)
        for tell in self.on_commit if not plan.is_empty else ():
            tell(applied)

    def _commit(self, proposal: Proposal) -> None:
        plan = proposal.plan
        with self._ports.change(plan.resolved) as change:
            self._prepare_host(plan.target)
            released = ipam.after(self.released, self.engine.node, plan.target)
            self._commit_saved(proposal, released, change.settle)
            self.released = released
            self.committed = Committed(proposal.own, proposal.shares, self.engine.generation)
            if change.interrupts:
                self._restart()

    def _commit_saved(
        self,
        proposal: Proposal,
        released: ipam.Released,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`settle` is called before."""
        with self._saving(proposal, released) as save:
            commit = proposal.plan.prepare()  # while the kernel and the disk work
            settle()
            save()
            commit()

    def _saving(
        self, proposal: Proposal, released: ipam.Released
    ) -> contextlib.AbstractContextManager[Callable[[], None]]:
        own, shares, plan = proposal
        if self._state is None or (plan.is_empty and self._holds(own, shares)):
            return contextlib.nullcontext(lambda: None)
        return self._state.saving(Saved(plan.base + (not plan.is_empty), own, released, shares))

    def _holds(self, own: Node, shares: Shares) -> bool:
        return (own, shares) == (self.committed.own, self.committed.shares)

    def _prepare_host(self, node: Node) -> None:
        """What NAT and subnets behind it ask of the host."""
        host = node.host_port
        needed = needs_host(node)
        if self._table is not None and not (self._table.fits(host) and needed):
            self._release_host()
        if host is None or not needed:
            return
        if self._table is None:
            if note := forward(host):
                log.info("host: %s", note)
            self._table = HostTable(host)
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
            own, shares, generation = self.committed
            policy = dump_json(Document(node=own)).decode()
            state |= {"generation": generation, "policy": policy, "released": dict(self.released)}
            state |= {"shares": json.loads(told_shares(shares))}
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

    def _spare(self, predecessor: Inherited) -> None:
        """It goes on with everything, unless this daemon has come so far that it is done."""
        if not predecessor.is_done:
            self._leave()

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

    def lacking_routes(self) -> list[str]:
        """Direct routes that the kernel refuses, and why."""
        return list(self._ports.direct.lacking.values())

    def look_for_lost_devices(self) -> None:
        """Says once of each that it is gone; AF_XDP gets its interface back, if that came back, and
        the host its direct routes."""
        lost = self.lost_devices()
        if self._ports.direct.is_due:
            with contextlib.suppress(BusyError), self.changing():
                self._ports.direct.mend()
        for name in sorted(lost.keys() - self._gone):
            fix = "an interface has to get it" if name == UNDERLAY else "SIGHUP makes it again"
            log.error("%s: %s is gone, was it deleted? %s", name, lost[name], fix)
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


def _with(now: Committed, origin: str, share: Share) -> Shares:
    """The shares with this one in place of the origin's. Raises DataplaneError."""
    if origin == DOCUMENT:
        raise DataplaneError(f"{origin!r} is no front door: use apply")
    rest = {name: each for name, each in now.shares.items() if name != origin}
    return rest | ({origin: share} if share != Share() else {})
