"""Where the cycles go: each stage of the general way by itself, on frames from endpoints.

The express lane does the same work in fewer loops; what it saves shows in the whole, not here.
"""

from dataplane import bench_traffic
from dataplane._engine import lib
from dataplane.bench_play import HIT_VECTORS, VECTOR, Player, Row
from dataplane.engine import Engine

STAGES: dict[str, int] = {
    "parse": lib.DP_BENCH_PARSE,
    "lookup": lib.DP_BENCH_LOOKUP,
    "walk": lib.DP_BENCH_WALK,
    "transpose": lib.DP_BENCH_TRANSPOSE,
}


def measure_stages(engine: Engine, flows: int, seconds: float) -> list[Row]:
    """One row a stage. `engine` has the full policy and room for the flows."""
    frames = bench_traffic.traffic(engine, "encap", flows)
    engine.flush()
    Player(engine, frames).play(-(-flows // VECTOR))
    windows = max(8, int(seconds * 64))
    return [
        _row(name, Player(engine, frames, stage), flows, windows) for name, stage in STAGES.items()
    ]


def _row(stage: str, player: Player, flows: int, windows: int) -> Row:
    import numpy as np

    cycles = player.play(HIT_VECTORS, windows)
    return {
        "work": "encap",
        "stage": stage,
        "acl_rules": 1000,
        "of_flows": flows,
        "stage_cycles": round(float(cycles.min()), 1),
        "median_stage_cycles": round(float(np.median(cycles)), 1),
    }
