"""The hub: hands what is seen on a node to whoever listens, and to nobody who does not keep up.

The engine records for one reader, and only what somebody listens for; so all servers of a node
share its hub. It looks on a thread of its own, while somebody listens.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from dataplane.api.events import Event, stamp
from dataplane.api.peers import peers
from dataplane.daemon import Applied, Daemon
from dataplane.observe import SNAP, Seen

TURN = 0.02  # seconds between looks at the engine
PEERS_TURN = 2.0  # seconds between looks at peers
GONE = "gone"  # the state of a peer that the policy has no more
ROOM = 10_000  # records that wait for one listener; then the oldest go
ROOM_BYTES = 16 << 20  # of their frames


class Listener:
    """What waits for one reader: what was seen, and events of other kinds.

    Belongs to the event loop that made it.
    """

    def __init__(self, points: Iterable[str], kinds: Iterable[str], snap: int) -> None:
        self.points, self.kinds, self.snap = frozenset(points), frozenset(kinds), snap
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()  # of the others
        self._waiting: deque[Seen | Event] = deque()
        self._bytes = self._lost = 0

    def put(self, items: Iterable[Seen | Event], lost: int = 0) -> None:
        """`lost`: how many there were besides. For any thread."""
        with self._lock:
            self._lost += lost
            for item in items:
                self._waiting.append(item)
                self._bytes += _bytes_of(item)
            while len(self._waiting) > ROOM or self._bytes > ROOM_BYTES:
                self._bytes -= _bytes_of(self._waiting.popleft())
                self._lost += 1
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> tuple[list[Seen | Event], int]:
        """All that waits, and how many were lost since the last time; once there is either."""
        while not (self._waiting or self._lost):
            self._ready.clear()
            await self._ready.wait()
        with self._lock:
            found, lost = list(self._waiting), self._lost
            self._waiting.clear()
            self._bytes = self._lost = 0
        return found, lost


class Hub:
    """One for each daemon; a context manager. For any thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lock = threading.Lock()  # of the next two
        self._listeners: set[Listener] = set()
        self._thread: threading.Thread | None = None
        self._peers: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._daemon.on_commit.append(self._committed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._daemon.on_commit.remove(self._committed)
        with self._lock:
            self._listeners.clear()
            thread = self._thread
        if thread is not None:
            thread.join()

    @contextlib.contextmanager
    def listening(
        self, points: Iterable[str], kinds: Iterable[str] = (), snap: int = SNAP
    ) -> Iterator[Listener]:
        """A listener, for as long as the block lasts; `snap`: bytes of a frame that it gets."""
        listener = Listener(points, kinds, snap)
        try:
            with self._lock:
                self._listeners.add(listener)
                self._observe()
                self._start()
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)
                self._observe()

    def _observe(self) -> None:
        points = frozenset[str]().union(*(each.points for each in self._listeners))
        snap = max((each.snap for each in self._listeners), default=0)
        self._daemon.engine.observe(*points, snap=snap)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._serve, name="hub", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        look_at_peers = 0.0
        while self._goes_on():
            self._hand_out(*self._daemon.engine.seen())
            if self._wants("peers") and time.monotonic() > look_at_peers:
                look_at_peers = time.monotonic() + PEERS_TURN
                self._look_at_peers()
            time.sleep(TURN)

    def _goes_on(self) -> bool:
        """Until nobody listens any more."""
        with self._lock:
            if not self._listeners:
                self._thread = None
            return self._thread is not None

    def _all(self) -> list[Listener]:
        with self._lock:
            return list(self._listeners)

    def _hand_out(self, seen: list[Seen], lost: int) -> None:
        for listener in self._all():
            found = [_cut(item, listener.snap) for item in seen if item.point in listener.points]
            if listener.points and (found or lost):
                listener.put(found, lost)

    def _wants(self, kind: str) -> bool:
        return any(kind in listener.kinds for listener in self._all())

    def _publish(self, event: Event) -> None:
        for listener in self._all():
            if event["kind"] in listener.kinds:
                listener.put([event])

    def _committed(self, applied: Applied) -> None:
        """On the thread of whoever commits."""
        if self._wants("config"):
            event: Event = {"time": stamp(time.time_ns()), "kind": "config"}
            event |= {"generation": applied.generation}
            self._publish(event | {"changes": applied.plan.to_dict()["changes"]})

    def _look_at_peers(self) -> None:
        found = {peer["name"]: peer for peer in peers(self._daemon.engine)}
        gone = {name: {"name": name, "state": GONE} for name in self._peers.keys() - found.keys()}
        for name, peer in (gone | found).items():
            before = self._peers.get(name)
            if before != peer["state"]:
                event = {"time": stamp(time.time_ns()), "kind": "peers", "before": before}
                self._publish(event | peer)
        self._peers = {name: peer["state"] for name, peer in found.items()}


def _bytes_of(item: Seen | Event) -> int:
    return len(item.frame) if isinstance(item, Seen) else 0


def _cut(seen: Seen, snap: int) -> Seen:
    return seen if len(seen.frame) <= snap else replace(seen, frame=seen.frame[:snap])
