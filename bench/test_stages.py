"""Each stage of the packet's way by itself, on frames from endpoints to remote subnets."""

from collections.abc import Callable

import pytest

from dataplane import bench
from dataplane.bench_stages import STAGES
from dataplane.bench_traffic import traffic
from dataplane.engine import Engine

Engines = Callable[[int], Engine]
Record = Callable[[Callable[[], bench.Cycles]], None]


@pytest.mark.parametrize("flows", [1000, bench.MILLION])
@pytest.mark.parametrize("stage", STAGES)
def test_stage(engines: Engines, record: Record, stage: str, flows: int) -> None:
    engine = engines(1000)
    frames = traffic(engine, "encap", flows)
    engine.flush()
    bench.Player(engine, frames).play(-(-flows // bench.VECTOR))
    player = bench.Player(engine, frames, STAGES[stage])
    record(lambda: player.play(bench.HIT_VECTORS))
