"""How long 256 packets take while another thread commits large policies, and in quiet."""

import threading
import time
from collections.abc import Callable

from dataplane import bench_traffic
from dataplane.bench_commit import REMOTE_SUBNETS, large_policy, remote_subnet, with_one_more
from dataplane.bench_play import VECTOR, Cycles, Player, Row
from dataplane.engine import Engine

ROUNDS = 6
VECTORS = 4_000  # of a play
LEAST_PLAYS = 8
EDITS_A_SECOND = 20


def measure_latency(rate: float, rounds: int = ROUNDS) -> list[Row]:
    """`rate`: cycles a nanosecond. Of 100,000 remote subnets one comes and goes: by policies that
    are planned as a whole, one after another, and by edits, so many a second."""
    nodes = [large_policy(REMOTE_SUBNETS)]
    nodes.append(with_one_more(nodes[0], REMOTE_SUBNETS))
    with Engine(max_flows=4096, max_ports=64) as engine:

        def commit(i: int) -> None:
            engine.commit(nodes[i % 2])

        def edit(i: int) -> None:
            more = remote_subnet(REMOTE_SUBNETS)
            with engine.edit() as draft:
                if i % 2:
                    draft.add("bench", more)
                else:
                    draft.remove("bench", more.prefix)
            time.sleep(1 / EDITS_A_SECOND)

        engine.commit(nodes[0])
        player = Player(engine, bench_traffic.traffic(engine, "nat", 1000))
        player.play(16)
        found: dict[str, list[Cycles]] = {"quiet": [], "commits": [], "edits": []}
        counts = dict.fromkeys(found, 0)
        for _ in range(rounds):
            found["quiet"].append(player.play(1, VECTORS))
            for meanwhile, change in (("commits", commit), ("edits", edit)):
                cycles, count = _meanwhile(change, player)
                engine.commit(nodes[0])
                found[meanwhile].append(cycles)
                counts[meanwhile] += count
    return [_row(meanwhile, found[meanwhile], counts[meanwhile], rate) for meanwhile in found]


def _meanwhile(change: Callable[[int], None], player: Player) -> tuple[Cycles, int]:
    """At least one change has begun and ended meanwhile."""
    import numpy as np

    over = threading.Event()
    count = 0

    def run() -> None:
        nonlocal count
        while not over.is_set():
            count += 1
            change(count)

    thread = threading.Thread(target=run)
    thread.start()
    found: list[Cycles] = []
    while count < 3 or len(found) < LEAST_PLAYS:
        found.append(player.play(1, VECTORS))
    over.set()
    thread.join()
    return np.concatenate(found), count


def _row(meanwhile: str, found: list[Cycles], commits: int, rate: float) -> Row:
    import numpy as np

    micros = np.concatenate(found) * VECTOR / rate / 1000
    p50, p99, p999 = np.percentile(micros, (50, 99, 99.9))
    return {
        "work": "nat",
        "path": "hit",
        "meanwhile": meanwhile,
        "commits": commits,
        "vectors": len(micros),
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "p999_us": round(float(p999), 2),
    }
