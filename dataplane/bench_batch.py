"""What Python adds to a packet: `Engine.process` with its arrays read, less `dp_process` alone.

Both play the same frames of standing flows, in vectors of 256 and in turns; laying the frames into
the arena is not counted on either side.
"""

import time
from typing import TYPE_CHECKING

from dataplane import bench_traffic
from dataplane.batch import Batch
from dataplane.bench_play import VECTOR, Player, Row
from dataplane.engine import Engine
from dataplane.errors import DataplaneError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOWS = 1000
SLOT = 256  # bytes, as in C
CALLS = 64  # of a turn
WORKS: tuple[bench_traffic.Work, ...] = ("encap", "nat")


class Caller:
    """Calls `process` with one vector, over and over, and reads verdicts and ports."""

    def __init__(self, engine: Engine, traffic: bench_traffic.Traffic) -> None:
        import numpy as np

        self._engine, self._batch = engine, Batch(VECTOR, slot=SLOT)
        place = np.arange(VECTOR) % len(traffic.ports)
        self._octets, self._wanted = (
            traffic.frames[place],
            np.zeros(VECTOR, self._batch.frames.dtype),
        )
        headroom, size = self._batch.headroom, self._octets.shape[1]
        self._inner = self._batch.arena[:, headroom : headroom + size]
        self._wanted["off"] = np.arange(VECTOR) * SLOT + headroom
        self._wanted["len"], self._wanted["port"] = size, traffic.ports[place]
        self._batch.count = VECTOR

    def lay(self) -> None:
        """Puts the frames into the arena, where the last call has rewritten them."""
        self._inner[:] = self._octets
        self._batch.frames[:] = self._wanted

    def process(self) -> None:
        result = self._engine.process(self._batch)
        _, _ = result.verdict, result.port

    def call(self) -> int:
        """Nanoseconds."""
        self.lay()
        start = time.perf_counter_ns()
        self.process()
        return time.perf_counter_ns() - start

    def calls(self, count: int) -> "NDArray[np.float64]":
        """Nanoseconds a packet of each call, without what asking for the time takes. Raises
        DataplaneError where a frame was not forwarded."""
        import numpy as np

        nothing = [-time.perf_counter_ns() + time.perf_counter_ns() for _ in range(count)]
        before = self._engine.stats().totals["forwarded"]
        took: NDArray[np.int64] = np.array([self.call() for _ in range(count)])
        if self._engine.stats().totals["forwarded"] - before != count * VECTOR:
            raise DataplaneError("bench: a frame of a batch was not forwarded")
        return (took - np.median(nothing)) / VECTOR


def measure_batch(engine: Engine, rate: float, seconds: float) -> list[Row]:
    """`rate`: cycles a nanosecond. `engine` has the full policy."""
    return [_measure(engine, work, rate, seconds) for work in WORKS]


def _measure(engine: Engine, work: bench_traffic.Work, rate: float, seconds: float) -> Row:
    import numpy as np

    engine.flush()
    traffic = bench_traffic.traffic(engine, work, FLOWS)
    first = bench_traffic.Traffic(
        traffic.flows, traffic.frames[:VECTOR].copy(), traffic.ports[:VECTOR].copy()
    )
    player, caller = Player(engine, first), Caller(engine, first)
    player.play(4)
    turns: list[tuple[float, float]] = []  # medians of each
    end = time.monotonic() + seconds
    while not turns or time.monotonic() < end:
        alone, called = player.play(1, CALLS) / rate, caller.calls(CALLS)
        turns.append((float(np.median(alone)), float(np.median(called))))
    best, median = np.min(turns, axis=0), np.median(turns, axis=0)
    return {
        "work": work,
        "batch": VECTOR,
        "engine_ns": round(float(best[0]), 2),
        "called_ns": round(float(best[1]), 2),
        "added_ns": round(float(best[1] - best[0]), 2),
        "median_added_ns": round(float(median[1] - median[0]), 2),
    }
