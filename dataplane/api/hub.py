"""The hub: hands what is seen on a node to whoever listens, and to nobody who does not keep up.

Belongs to the server's event loop. The engine records only what somebody listens for.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from dataplane.api.events import Event, stamp
from dataplane.api.peers import peers
from dataplane.daemon import Applied, Daemon
from dataplane.observe import SNAP, Seen

TURN = 0.02  # seconds between looks at the engine
PEERS_TURN = 2.0  # seconds between looks at peers
ROOM = 10_000  # records that wait for one listener; then the oldest go


class Listener:
    """What waits for one reader: what was seen, and events of other kinds."""

    def __init__(self, points: Iterable[str], kinds: Iterable[str], snap: int) -> None:
        self.points, self.kinds, self.snap = frozenset(points), frozenset(kinds), snap
        self._waiting: deque[Seen | Event] = deque()
        self._lost = 0
        self._ready = asyncio.Event()

    def put(self, item: Seen | Event) -> None:
        if len(self._waiting) >= ROOM:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(item)
        self._ready.set()

    def lose(self, count: int) -> None:
        self._lost += count

    async def take(self) -> tuple[list[Seen | Event], int]:
        """All that waits, at least one; and how many were lost since the last time."""
        await self._ready.wait()
        self._ready.clear()
        found, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        return found, lost


class Hub:
    """One for each server."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._peers: dict[str, str] = {}

    @contextlib.contextmanager
    def listening(
        self, points: Iterable[str], kinds: Iterable[str] = (), snap: int = SNAP
    ) -> Iterator[Listener]:
        """A listener, for as long as the block lasts."""
        listener = Listener(points, kinds, snap)
        self._listeners.add(listener)
        self._observe()
        if self._task is None:
            self._task = asyncio.ensure_future(self._serve())
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._observe()

    def committed(self) -> Callable[[Applied], None]:
        """What tells listeners of a commit; for any thread."""
        loop = asyncio.get_running_loop()

        def tell(applied: Applied) -> None:
            event = {
                "time": stamp(time.time_ns()),
                "kind": "config",
                "generation": applied.generation,
                "changes": applied.plan.to_dict()["changes"],
            }
            loop.call_soon_threadsafe(self._publish, event)

        return tell

    def _observe(self) -> None:
        points = frozenset[str]().union(*(each.points for each in self._listeners))
        snap = max((each.snap for each in self._listeners), default=0)
        self._daemon.engine.observe(*points, snap=snap)

    async def _serve(self) -> None:
        """Until nobody listens any more."""
        try:
            look_at_peers = 0.0
            while self._listeners:
                seen, lost = await run_in_threadpool(self._daemon.engine.seen)
                self._hand_out(seen, lost)
                if self._wants("peers") and time.monotonic() > look_at_peers:
                    look_at_peers = time.monotonic() + PEERS_TURN
                    await self._look_at_peers()
                await asyncio.sleep(TURN)
        finally:
            self._task = None

    def _hand_out(self, seen: list[Seen], lost: int) -> None:
        for listener in self._listeners:
            listener.lose(lost)
            for item in seen:
                if item.point in listener.points:
                    listener.put(item)

    def _wants(self, kind: str) -> bool:
        return any(kind in listener.kinds for listener in self._listeners)

    def _publish(self, event: Event) -> None:
        for listener in self._listeners:
            if event["kind"] in listener.kinds:
                listener.put(event)

    async def _look_at_peers(self) -> None:
        found: list[dict[str, Any]] = await run_in_threadpool(
            lambda: list(peers(self._daemon.engine))
        )
        for peer in found:
            before = self._peers.get(peer["name"])
            self._peers[peer["name"]] = peer["state"]
            if before != peer["state"]:
                event = {"time": stamp(time.time_ns()), "kind": "peers", "before": before}
                self._publish(event | peer)
