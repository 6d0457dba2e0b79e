"""What workers cost each other: cycles a packet of one that is alone, and of several at once.

Own flows: each worker has its share of them, as queues that are steered by flow give it. Same
flows: all workers play the same directions of the same flows, the worst there is. New flows are
made by one worker at a time.
Alone and together alternate, so that a machine shared with others weighs on both.

For more cores than there are it is simulated: packets of standing flows take no lock, and write no
line that another worker writes (its counters, and the flows it has); first packets hold the lock of
all. So workers go on side by side, until the lock has no time left.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from dataplane import bench_traffic
from dataplane.bench_play import HIT_VECTORS, MISS_VECTORS, VECTOR, Cycles, Player, Row
from dataplane.bench_traffic import Traffic
from dataplane.engine import Engine

Flows = Literal["own", "same", "new"]
MOST = 4  # workers
FLOWS = 16_000  # new ones: of each worker
ROUNDS = 8
SIMULATED = 8, 32  # workers
NEW_SHARES = 0.001, 0.01, 0.1  # of packets, those that begin a flow


def measure_workers(rate: float, seconds: float, rounds: int = ROUNDS) -> list[Row]:
    """`rate`: cycles a nanosecond. Nothing on a machine of one core."""
    cores = sorted(os.sched_getaffinity(0))[-MOST:]
    if len(cores) < 2:
        return []
    windows = max(8, int(seconds * 64))
    rows = [_row(flows, cores, rate, windows, rounds) for flows in ("own", "same", "new")]
    return rows + simulate(rows[0]["median_cycles_per_packet"], rows[2], rate)


def simulate(hit: float, new: Row, rate: float) -> list[Row]:
    """`hit`: cycles of a standing flow's packet, beside other workers; `new`: the row of new flows,
    whose first packets take all their time under the lock."""
    first = float(new["alone_cycles_per_packet"])
    rows = []
    for workers in SIMULATED:
        for share in NEW_SHARES:
            each = (1 - share) * hit + share * first  # cycles a packet
            lock = share * first  # of these, one worker at a time
            together = min(workers / each, 1 / lock)
            rows.append(
                {
                    "simulated_workers": workers,
                    "new_share": share,
                    "simulated_mpps": round(1000 * rate * together, 1),
                    "simulated_speedup": round(together * each, 2),
                    "bound_by": "cores" if workers / each <= 1 / lock else "lock",
                }
            )
    return rows


def _row(flows: Flows, cores: list[int], rate: float, windows: int, rounds: int) -> Row:
    import numpy as np

    n = len(cores)
    with Engine(max_flows=FLOWS * n + VECTOR, max_ports=64, workers=n) as engine:
        engine.commit(bench_traffic.policy(1000))
        turns = [_turn(flows, engine, worker, n, windows) for worker in range(n)]
        alone, together = [], []
        with ThreadPoolExecutor(n) as pool:
            for _ in range(rounds):
                engine.flush()
                alone.append(pool.submit(_on, cores[0], turns[0]).result())
                engine.flush()
                running = [pool.submit(_on, *pair) for pair in zip(cores, turns, strict=True)]
                together += [each.result() for each in running]
    medians = [float(np.median(np.concatenate(found))) for found in (alone, together)]
    return {
        "work": "encap",
        "path": "miss" if flows == "new" else "hit",
        "workers": n,
        "flows_of_each": flows,
        "median_cycles_per_packet": round(medians[1], 1),
        "alone_cycles_per_packet": round(medians[0], 1),
        "median_mpps": round(1000 * rate * n / medians[1], 2),
        "speedup": round(n * medians[0] / medians[1], 2),
    }


class _turn:
    """One worker's windows, over its flows."""

    def __init__(self, flows: Flows, engine: Engine, worker: int, n: int, windows: int) -> None:
        traffic = bench_traffic.traffic(engine, "encap", FLOWS * n if flows == "new" else 1000 * n)
        share = slice(None) if flows == "same" else slice(worker, None, n)
        own = Traffic(traffic.flows, traffic.frames[share].copy(), traffic.ports[share].copy())
        self._new, self._windows = flows == "new", windows
        self._engine, self._worker, self._traffic = engine, worker, own

    def __call__(self) -> Cycles:
        player = Player(self._engine, self._traffic, worker=self._worker)
        if self._new:
            return player.play(MISS_VECTORS, len(self._traffic.ports) // (VECTOR * MISS_VECTORS))
        player.play(2 * (-(-len(self._traffic.ports) // VECTOR)))
        return player.play(HIT_VECTORS, self._windows)


def _on(core: int, turn: _turn) -> Cycles:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return turn()
    finally:
        os.sched_setaffinity(0, before)
