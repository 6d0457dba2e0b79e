"""Engine: one dataplane. Frames go in and come out, policy is planned and committed.

A function of (state, frames, now): it reads no clock of its own, opens no socket, starts no thread.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

from dataplane import flows, layers, saved, validate
from dataplane._engine import ffi, lib
from dataplane.address import IP, ip16
from dataplane.batch import Batch, Frame, Result
from dataplane.clock import SimClock
from dataplane.defaults import resolve
from dataplane.draft import Draft
from dataplane.errors import BusyError, DataplaneError, DocumentError, EngineError, Fault, PortError
from dataplane.garbage import no_collection
from dataplane.ids import Ids
from dataplane.ipam import completed
from dataplane.layers import NOTHING, Built, build
from dataplane.memo import Memo
from dataplane.model import Document, IcmpRate, Node, Timers
from dataplane.observe import SNAP, Reader, Seen, mask
from dataplane.plan import Commit, Plan
from dataplane.reasons import Reason, Verdict, check, text
from dataplane.remotes import Remotes, Step
from dataplane.rows import Tables
from dataplane.rules import compile_node, stamps, stamps_of_edit
from dataplane.saved import Saved
from dataplane.snapshot import icmp_rate as icmp_limits
from dataplane.snapshot import idle_seconds
from dataplane.stats import Counters, Stats
from dataplane.trace import Walk, walk_of
from dataplane.tree import path_text
from dataplane.version import Version

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

assert lib.dp_abi() == lib.DP_ABI, "the extension module is of another version than its headers"

KEPT_GENERATIONS = 16  # whose names are still known
LARGEST_FRAME = 65535 + 84  # a super-frame behind outer headers
MAX_STEPS = 4096  # of a trace


class Clock(Protocol):
    def now_ns(self) -> int: ...


class LearnedPath(NamedTuple):
    """`mtu`: bytes of outer packet (RFC 1191, RFC 8201), for so many `seconds` from now on."""

    mtu: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame. `frame` is what leaves by `port`: itself, an answer, an error."""

    verdict: Verdict
    reason: Reason
    port: str | None
    frame: bytes
    rule: str | None
    generation: int
    gso_size: int = 0  # of a super-frame that is forwarded
    more: tuple["Outcome", ...] = ()  # of frames that came out with it, see `Engine.more`


@dataclass(frozen=True, slots=True)
class _Committed:
    """What the next plan and commit start from.

    After edits `tables` and `checked` are still those of the policy that was edited: `remotes`
    knows what is different.
    """

    generation: int
    version: Version | None = None
    tables: Tables | None = None
    stamps: dict[int, int] = field(default_factory=dict)
    built: Built = NOTHING
    checked: Memo | None = None
    remotes: Remotes | None = None
    is_edited: bool = False


class _Turn:
    """One thread's at a time, whoever has the one token: a second one gets BusyError. A lock takes
    twice as long, a generator 2 µs."""

    __slots__ = ("give", "take")

    def __init__(self) -> None:
        tokens = [None]
        self.take, self.give = tokens.pop, tokens.append

    def __enter__(self) -> None:
        try:
            self.take()
        except IndexError:
            raise BusyError("another thread is inside this engine") from None

    def __exit__(self, *_: object) -> None:
        self.give(None)


class Limits(TypedDict, total=False):
    """Most of each, as `Engine` takes them."""

    max_flows: int
    max_bindings: int
    max_ports: int
    max_rules: int


class Engine:
    """Owns the C engine; a context manager.

    As each worker one thread at a time may process, as worker 0 also expire or flush: a second one
    gets BusyError. `commit`, `stats`, `trace` and `flows` may be called by any thread meanwhile.
    Without a `now` the engine's `clock` is asked, by default a SimClock that stands still.
    """

    def __init__(
        self,
        *,
        max_flows: int = 65_536,
        max_bindings: int = 65_536,
        max_ports: int = 65_535,
        max_rules: int = 65_536,
        max_datagrams: int = 4_096,
        max_kept: int = 1_024,
        workers: int = 1,
        icmp_rate: IcmpRate | None = None,
        timers: Timers | None = None,
        clock: Clock | None = None,
        key: bytes | None = None,
        generation: int = 0,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        """`timers`: where the policy names none, each by itself.

        `key`: 32 secret bytes that all tables are hashed under; by default random.
        `workers`: how many threads may process at the same time, sharing all state.
        `max_datagrams`: incomplete ones; `max_kept`: frames that wait, see `more`.
        `icmp_rate`: of ICMP errors, where the policy says nothing of it.
        `generation`: which the first commit comes after, and `ports`: numbers that ports had, for
        those who `restore` what another engine had saved.
        """
        if not 0 <= generation < 1 << 31:
            raise ValueError(f"generation {generation} is out of range")
        key = os.urandom(32) if key is None else key
        if len(key) != 32:
            raise ValueError(f"the key has {len(key)} bytes, not 32")
        self.clock = SimClock() if clock is None else clock
        self.max_flows = max_flows
        self._workers = {worker: _Turn() for worker in range(max(workers, 1))}
        self._control = threading.Lock()
        self._at = _Committed(generation)
        self._generations: dict[int, Ids] = {generation: Ids(ports=dict(ports or {}))}
        limits: dict[str, Any] = {
            "max_flows": max_flows,
            "max_bindings": max_bindings,
            "max_ports": max_ports,
            "max_rules": max_rules,
            "max_datagrams": max_datagrams,
            "max_kept": max_kept,
            "max_workers": workers,
            "icmp": icmp_limits(icmp_rate),
        }
        self._handle = _create(limits, timers, key)
        self._counters = Counters(self._handle, max_ports, max_rules)
        self._singles: dict[int, Batch] = {}  # by worker, for one frame
        self.unseen = 0  # records that were lost, of all that `seen` told of
        self._looking = threading.Lock()  # of those who trace, list flows or take what was seen
        self._reader: Reader | None = None

    # ---- life ----------------------------------------------------------------------------------

    @property
    def handle(self) -> Any:
        """The `struct dp_engine *`, for those who call C themselves."""
        if self._handle is None:
            raise DataplaneError("the engine is closed")
        return self._handle

    def close(self) -> None:
        """Frees everything; again is harmless. Raises BusyError while another thread is inside."""
        with self._control, self._looking, ExitStack() as inside:
            for worker in range(len(self._workers)):
                inside.enter_context(self.exclusive(worker))
            if self._handle is not None:
                ffi.release(self._handle)
                self._handle = None
                self._at = _Committed(0)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exclusive(self, worker: int = 0) -> _Turn:
        """Keeps other threads from being that worker. Raises BusyError if one is."""
        turn = self._workers.get(worker)
        if turn is None:
            raise ValueError(f"there is no worker {worker}, only 0 to {len(self._workers) - 1}")
        return turn

    # ---- policy --------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Of the committed policy; before the first as given, else 0."""
        return self._at.generation

    @property
    def node(self) -> Node | None:
        """The committed policy as it was given."""
        return self.committed[0]

    @property
    def committed(self) -> tuple[Node | None, int]:
        """The policy as it was given, and its generation."""
        at = self._at
        return (at.version.given if at.version is not None else None), at.generation

    @property
    def resolved(self) -> Node | None:
        """The committed policy with all defaults filled in."""
        version = self._at.version
        return version.resolved if version is not None else None

    def plan(self, policy: Document | Node | Draft, node: str | None = None) -> Plan:
        """What committing the policy would change. `node` chooses among the nodes of a document.

        Raises DocumentError with all faults. Changes nothing.
        """
        with no_collection():
            if isinstance(policy, Draft):
                return self._plan_edits(policy) or replace(
                    self._plan(policy.node), base=policy.base
                )
            return self._plan(policy if isinstance(policy, Node) else choose(policy, node))

    def _plan(self, target: Node) -> Plan:
        at = self._settled()
        target = completed(target, at.version.given if at.version is not None else None)
        checked = Memo(at.checked)
        faults = [
            Fault(f"node {target.name}", 0, path_text(f.path), f.message, f.fix)
            for f in validate.check(Document(node=target), memo=checked)
        ]
        if faults:
            raise DocumentError(tuple(faults))
        resolved = resolve(target, checked)
        tables = compile_node(resolved, at.tables, self.ids)
        make = partial(self._make, tables=tables, checked=checked)
        return Plan(at.generation, at.version, Version(target, resolved), None, make)

    def _plan_edits(self, draft: Draft) -> Plan | None:
        """Where it is sure what they change, and nobody has committed since."""
        edits = draft.edits
        with self._control:
            at = self._at
            if edits is None or at.generation != draft.base:
                return None
            assert at.remotes is not None and at.version is not None
            step = at.remotes.step(edits, at.generation, partial(layers.uses, at.built))
        if step is None:
            return None
        make = partial(self._make_edited, step=step)
        return Plan(at.generation, at.version, at.version.edited(edits), edits, make)

    def _settled(self) -> _Committed:
        """What is committed, as if it had come as a whole."""
        with self._control:
            at = self._at
            if not at.is_edited:
                return at
            assert at.remotes is not None and at.version is not None and at.tables is not None
            ids, checked = at.remotes.whole()
        tables = compile_node(at.version.resolved, replace(at.tables, ids=ids))
        settled = replace(
            at,
            tables=tables,
            built=layers.named(at.built, tables),
            checked=checked,
            remotes=_remotes(at.version.resolved, tables, checked),
            is_edited=False,
        )
        with self._control:
            if self._at is at:
                self._at = settled
        return settled

    def commit(self, policy: Document | Node | Draft, node: str | None = None) -> int:
        """Plans and commits in one go; returns the generation."""
        return self.plan(policy, node).commit()

    def draft(self) -> Draft:
        """A draft of the committed policy, to be planned or committed before anything else is.

        Raises DataplaneError where nothing is committed.
        """
        at = self._at
        if at.version is None:
            raise DataplaneError("nothing is committed yet: there is nothing to edit")
        assert at.remotes is not None
        return Draft(at.version, at.generation, at.remotes.find)

    @contextmanager
    def edit(self) -> Iterator[Draft]:
        """A draft of the committed policy, committed at the end of the block unless that raises.

        Raises EngineError where another commit came in between: the draft knows nothing of it.
        """
        draft = self.draft()
        yield draft
        self.commit(draft)

    def _make(self, plan: Plan, *, tables: Tables, checked: Memo) -> Commit:
        at = self._start(plan)
        if plan.is_empty:
            return lambda: at.generation
        generation = at.generation + 1
        stamped = stamps(tables, at.tables, at.stamps, generation)
        built = build(tables, generation, stamped, at.built)
        remotes = _remotes(plan.resolved, tables, checked)
        made = _Committed(generation, plan.now, tables, stamped, built, checked, remotes)
        return partial(self._publish, plan, made)

    def _publish(self, plan: Plan, made: _Committed) -> int:
        assert made.tables is not None
        with self._control:
            self._counters.rebase(self._generations[self._start(plan).generation], made.tables.ids)
            self._swap(made, made.tables.ids)
            return made.generation

    def _make_edited(self, plan: Plan, *, step: Step) -> Commit:
        at = self._start(plan)
        if plan.is_empty:
            return lambda: at.generation
        assert at.tables is not None
        generation = at.generation + 1
        vnis = {change.vni for change in step.routes}
        stamped = stamps_of_edit(at.tables, vnis, at.stamps, generation)
        made = replace(
            at,
            generation=generation,
            version=plan.now,
            stamps=stamped,
            built=layers.edit(step, generation, stamped, at.built),
            is_edited=True,
        )
        return partial(self._publish_edited, plan, made, step)

    def _publish_edited(self, plan: Plan, made: _Committed, step: Step) -> int:
        assert made.remotes is not None
        with self._control:
            self._start(plan)
            made.remotes.announce(step)
            self._swap(made, made.remotes.ids)
            made.remotes.apply(step, made.generation)
            return made.generation

    def _start(self, plan: Plan) -> _Committed:
        _ = self.handle  # raises where the engine is closed, before anything reads it
        if plan.base != self._at.generation:
            raise EngineError(
                -1, f"planned on generation {plan.base}, but {self._at.generation} is committed"
            )
        return self._at

    def _swap(self, made: _Committed, ids: Ids) -> None:
        """Names first: a frame may come out judged by the new policy before this returns."""
        generation = made.generation
        self._generations[generation] = ids
        error = ffi.new("struct dp_error *")
        try:
            check(lib.dp_commit(self.handle, made.built.snapshot, error), error)
        except BaseException:
            del self._generations[generation]
            raise
        self._at = made
        self._generations.pop(generation - KEPT_GENERATIONS, None)

    # ---- names ---------------------------------------------------------------------------------

    @property
    def ids(self) -> Ids:
        """Names and numbers of the committed policy."""
        return self._generations[self._at.generation]

    def ids_of(self, generation: int) -> Ids:
        """Of an earlier generation too, while it is remembered; else of the committed one."""
        return self._generations.get(generation) or self.ids

    def port_id(self, name: str) -> int:
        """Of `underlay`, `host`, `NETWORK/ENDPOINT` or `ENDPOINT`. Raises PortError."""
        ids = self.ids
        number = ids.port(name)
        if number is None:
            known = ", ".join(sorted(ids.ports)) or "none, nothing is committed"
            raise PortError(f"no port or more than one is called {name!r}; ports are: {known}")
        return number

    # ---- frames --------------------------------------------------------------------------------

    def process(self, batch: Batch, now: int | None = None, *, worker: int = 0) -> Result:
        """Judges and rewrites all frames of the batch in place, without the GIL. `now` is in ns.

        `worker`: which of the `workers` does it; each may run on a thread of its own.
        Fetch what comes out besides with `more`. Raises BusyError, PortError.
        """
        # 256 packets share what this costs, 5 ns each: hence no `with`
        if now is None:
            now = self.clock.now_ns()
        turn = self._workers.get(worker) or self.exclusive(worker)
        try:
            turn.take()
        except IndexError:
            raise BusyError("another thread is inside this engine") from None
        try:
            return batch.process(self._handle or self.handle, worker, now, self, self._generations)
        finally:
            turn.give(None)

    def more(self, batch: Batch, now: int | None = None, *, worker: int = 0) -> Result:
        """Frames that came out with others: fragments whose first one has come, pieces of packets.

        Replaces what is in the batch, with as many of them as fit; to be called after `process`
        until there are none. Raises BusyError, and ValueError where the next one finds no room.
        """
        now = self.clock.now_ns() if now is None else now
        with self.exclusive(worker):
            got = lib.dp_more(self.handle, worker, *batch.open(), now)
        if got < 0 and text(lib.dp_status_name(got)) == "EINVAL":
            raise ValueError(f"a frame that waits does not fit into a slot of {batch.slot} bytes")
        batch.count = check(got)
        return batch.result(self._generations)

    def process_one(
        self,
        frame: Frame,
        port: int | str,
        *,
        now: int | None = None,
        flags: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        worker: int = 0,
    ) -> Outcome:
        """One frame, without FCS, by the way of `process`. With `gso_size` it is a super-frame."""
        with self.exclusive(worker):
            if worker not in self._singles:
                self._singles[worker] = _room_for_one()
            batch = _fill(self._singles[worker], frame, port, flags, gso_type, gso_size)
            now = self.clock.now_ns() if now is None else now
            result = batch.process(self.handle, worker, now, self, self._generations)
            outcome = _outcome(batch, result)
            more = tuple(self._rest(batch, now, worker))
        return replace(outcome, more=more) if more else outcome

    def trace(
        self,
        frame: Frame,
        port: int | str,
        *,
        now: int | None = None,
        flags: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
    ) -> Walk:
        """What would become of the frame, and why. Changes no state and no counter."""
        steps = ffi.new("struct dp_step[]", MAX_STEPS)
        batch = _fill(_room_for_one(), frame, port, flags, gso_type, gso_size)
        before = bytes(batch.view(0))
        now = self.clock.now_ns() if now is None else now
        with self._looking:
            arena, size, frames, _ = batch.prepare(self.port_id)
            entry = int(batch.frames["port"][0])
            n = check(lib.dp_trace(self.handle, arena, size, frames, now, steps, MAX_STEPS))
        outcome = _outcome(batch, batch.result(self._generations))
        ids = self.ids_of(outcome.generation)
        return walk_of(steps[0:n], ids, ids.port_names.get(entry, f"port {entry}"), before, outcome)

    def expire(self, budget: int = 1 << 20, now: int | None = None) -> int:
        """Forgets idle ones among up to `budget` flows and bindings; returns how many."""
        now = self.clock.now_ns() if now is None else now
        with self.exclusive():
            return check(lib.dp_expire(self.handle, now, budget))

    def learn_path(
        self, remote: IP | str, mtu: int, *, vni: int | None = None, now: int | None = None
    ) -> bool:
        """ICMP says that the underlay's way to a VTEP carries `mtu` bytes of outer packet.

        `vni`: of the packet that was quoted. Believed of VTEPs of the policy (of that network)
        only, not below 576 bytes (IPv6: 1280), and where it is less than what is known; whether
        it was (RFC 1191, RFC 8201, RFC 5927). Forgotten after `timers.path_mtu`. Raises ValueError.
        """
        now = self.clock.now_ns() if now is None else now
        number = lib.DP_NONE if vni is None else vni
        if not 0 <= mtu < 1 << 16 or not 0 <= number < 1 << 32:
            raise ValueError(f"MTU {mtu} or VNI {vni} is out of range")
        address = ip16(ip_address(remote))
        with self.exclusive():
            return bool(check(lib.dp_learn_path(self.handle, address, number, mtu, now)))

    def learned_path(self, remote: IP | str, now: int | None = None) -> LearnedPath | None:
        """What ICMP told of the underlay's way to a VTEP, while it holds."""
        now = self.clock.now_ns() if now is None else now
        until = ffi.new("uint64_t *")
        with self._looking:
            address = ip16(ip_address(remote))
            mtu = check(lib.dp_path_mtu(self.handle, address, now, until))
        return LearnedPath(mtu, (until[0] - now) / 1e9) if mtu else None

    def flush(self) -> None:
        """Forgets all flows and bindings, and drops the frames that wait."""
        with self.exclusive():
            check(lib.dp_flush(self.handle))

    # ---- restart -------------------------------------------------------------------------------

    def save(self) -> Saved:
        """Flows and NAT bindings, for `restore` by an engine with the same numbers of ports."""
        with self._looking:
            return saved.read(self.handle)

    def restore(self, state: Saved, now: int | None = None) -> int:
        """Takes over what another engine had saved; returns how many flows came in.

        Each is judged by the policy on its next packet, and keeps its translation and backend as
        far as that allows. What is no flow, or finds no room, is left out.
        """
        now = self.clock.now_ns() if now is None else now
        with self._looking:
            return saved.write(self.handle, state, now)

    def _rest(self, batch: Batch, now: int, worker: int) -> Iterator[Outcome]:
        while check(lib.dp_more(self.handle, worker, *batch.open(), now)):
            batch.count = 1
            yield _outcome(batch, batch.result(self._generations))

    # ---- looking -------------------------------------------------------------------------------

    def observe(self, *points: str, snap: int = SNAP) -> None:
        """Records from now on what passes at these points, in place of those before; none: nothing.

        rx, tx, drop, encap, decap: frames; new: those that began a flow; end: flows that ended.
        `snap`: bytes kept of a frame. Raises DataplaneError, EngineError.
        """
        check(lib.dp_observe(self.handle, mask(points), snap))

    def seen(self) -> tuple[list[Seen], int]:
        """What was seen since the last call, up to some thousand records, and how many were lost.

        For any thread.
        """
        with self._looking:
            self._reader = self._reader or Reader(self.handle)
            found, lost = self._reader.take(self.ids_of)
            self.unseen += lost
            return found, lost

    def stats(self) -> Stats:
        """All counters, read at one moment."""
        with self._control:
            _ = self.handle
            return self._counters.stats(self.ids, self.clock.now_ns())

    def flows(self) -> list[flows.Flow]:
        """The flow table, with names."""
        return flows.named(self.flow_records(), self.ids)

    def flow_records(self) -> "NDArray[np.void]":
        """The flow table as an array of `struct dp_flow_info`, for large ones."""
        with self._looking:
            return flows.read(self.handle)


def choose(document: Document, name: str | None = None) -> Node:
    """The node of that name, or the only one. Raises DataplaneError."""
    nodes = [document.node] if document.node is not None else list(document.nodes)
    found = [n for n in nodes if name is None or n.name == name]
    if len(found) != 1:
        names = ", ".join(n.name for n in nodes) or "none"
        raise DataplaneError(
            f"no node {name!r}; there are: {names}" if name else f"which node? There are: {names}"
        )
    return found[0]


def _remotes(node: Node, tables: Tables, checked: Memo) -> Remotes:
    return Remotes(node, tables.ids, tables.memo, checked, KEPT_GENERATIONS)


def _room_for_one() -> Batch:
    return Batch(1, lib.DP_HEADROOM + LARGEST_FRAME)


def _fill(
    batch: Batch, frame: Frame, port: int | str, flags: int, gso_type: int, gso_size: int
) -> Batch:
    batch.load([frame], port, flags)
    batch.frames["gso_type"], batch.frames["gso_size"] = gso_type, gso_size
    return batch


def _outcome(batch: Batch, result: Result) -> Outcome:
    return Outcome(
        verdict=result.verdict_of(0),
        reason=result.reason_of(0),
        port=result.port_of(0),
        frame=bytes(result.frame(0)),
        rule=result.rule_of(0),
        generation=int(result.generation[0]),
        gso_size=int(batch.frames["gso_size"][0]),
    )


def _create(limits: dict[str, Any], timers: Timers | None, key: bytes) -> Any:
    error = ffi.new("struct dp_error *")
    try:
        c_limits = ffi.new("struct dp_limits *", limits)
        c_timers = ffi.new("struct dp_timers *", idle_seconds(timers or Timers()))
    except OverflowError as overflow:
        raise EngineError(-1, f"a limit or timer is out of range: {overflow}") from overflow
    made = lib.dp_engine_create(c_limits, c_timers, key, error)
    check(error.status, error)
    return ffi.gc(made, lib.dp_engine_destroy)
