"""How long 256 packets take while another thread commits large policies, and in quiet."""

import threading

from dataplane import bench_traffic
from dataplane.bench_commit import REMOTE_SUBNETS, large_policy, with_one_more
from dataplane.bench_play import VECTOR, Cycles, Player, Row
from dataplane.engine import Engine
from dataplane.model import Node

ROUNDS = 6
VECTORS = 4_000  # of a round


def measure_latency(rate: float, rounds: int = ROUNDS) -> list[Row]:
    """`rate`: cycles a nanosecond. The commits change one of 100,000 remote subnets each."""
    nodes = [large_policy(REMOTE_SUBNETS)]
    nodes.append(with_one_more(nodes[0], REMOTE_SUBNETS))
    with Engine(max_flows=4096, max_ports=64) as engine:
        engine.commit(nodes[0])
        player = Player(engine, bench_traffic.traffic(engine, "nat", 1000))
        player.play(16)
        quiet, busy, commits = [], [], 0
        for _ in range(rounds):
            quiet.append(player.play(1, VECTORS))
            found, count = _while_committing(engine, nodes, player)
            busy.append(found)
            commits += count
    return [_row("quiet", quiet, 0, rate), _row("commits", busy, commits, rate)]


def _while_committing(engine: Engine, nodes: list[Node], player: Player) -> tuple[Cycles, int]:
    """At least one commit has begun and ended meanwhile."""
    import numpy as np

    over = threading.Event()
    count = 0

    def commit() -> None:
        nonlocal count
        while not over.is_set():
            count += 1
            engine.commit(nodes[count % 2])

    thread = threading.Thread(target=commit)
    thread.start()
    found: list[Cycles] = []
    while count < 3:
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
