"""What the event stream costs the path: cycles of new flows in memory, watched and not, in turns.

Amplified, so that neighbours on the machine are not measured instead: every packet begins a flow,
and while they are watched a thread takes what was seen as fast as it can.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dataplane import bench_traffic
from dataplane._engine import lib
from dataplane.api.events import POINTS
from dataplane.api.hub import Hub
from dataplane.api.streams import EVENT_SNAP, Streams
from dataplane.bench import engine_for, tsc_mhz
from dataplane.bench_play import VECTOR, Player
from dataplane.clock import SimClock
from dataplane.engine import Engine

FLOWS = VECTOR  # of a window: short, for a window with a pause in it tells nothing
A_SECOND = 10_000
PAIRS = 80
WARM = 8  # windows: whoever has waited is slow at first
HOUR = 3600
MOST = 0.02  # of the path's time


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def read(engine: Engine) -> Iterator[list[int]]:
    """Somebody reads the event stream, on a thread of its own, as the node serves it."""
    daemon = SimpleNamespace(engine=engine, policy=engine.resolved, on_commit=[])
    hub = Hub(cast(Any, daemon))
    streams = Streams(cast(Any, daemon), hub)
    loop = asyncio.new_event_loop()
    count = [0]

    async def listen() -> None:
        async for part in streams._events(POINTS, [], False, False):
            count[0] += part.count(b"\n")

    def run() -> None:
        with hub, contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    task = loop.create_task(listen())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: count[0] == 1)  # it listens
        yield count
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def window(engine: Engine, player: Player) -> float:
    """Cycles of a flow's beginning and its end."""
    begin = float(player.play(1)[0])
    cast(SimClock, engine.clock).advance(seconds=HOUR)
    start = lib.dp_bench_cycles()
    assert engine.expire() == FLOWS
    return begin + (lib.dp_bench_cycles() - start) / FLOWS


def windows(engine: Engine, player: Player, count: list[int]) -> Iterator[float]:
    """Unwatched and watched by turns, each right after others that nobody watches."""
    for _ in range(PAIRS):
        for points in ((), POINTS):
            engine.observe()
            for _ in range(WARM):
                window(engine, player)
            told = count[0]
            engine.observe(*points, snap=EVENT_SNAP)
            yield window(engine, player)
            if points:  # or the next window's would find no room, which costs less
                wait_for(lambda before=told: count[0] >= before + 2 * FLOWS)


@pytest.mark.timeout(120)
def test_the_event_stream_costs_the_path_little(record_property: Any) -> None:
    """The beginnings and ends of 10,000 flows a second, as a share of a core that forwards."""
    with engine_for(0, FLOWS) as engine, read(engine) as count:
        player = Player(engine, bench_traffic.traffic(engine, "encap", FLOWS))
        found = np.array(list(windows(engine, player, count)))
        unwatched, watched = found[::2], found[1::2]
        assert count[0] == 1 + 2 * PAIRS * FLOWS, "some were lost"
    more = float(np.percentile(watched, 25) - np.percentile(unwatched, 25))
    share = more * A_SECOND / (tsc_mhz() * 1e6)
    record_property("cycles_per_flow", round(more))
    record_property("share_of_the_path", round(share, 5))
    print(f"{more:.0f} cycles a flow, {share:.2%} of the path")
    assert more > 0, "what is written is not free: nothing was measured"
    assert share < MOST
