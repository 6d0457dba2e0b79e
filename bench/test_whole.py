"""The whole engine: flows that are known, and flows that are new."""

from collections.abc import Callable

import pytest

from dataplane import bench
from dataplane.bench_traffic import BINDINGS, WORKS, Work, traffic
from dataplane.engine import Engine

Engines = Callable[[int], Engine]
Record = Callable[[Callable[[], bench.Cycles]], None]


@pytest.mark.parametrize("flows", [1, 1000, 64_000, bench.MILLION])
@pytest.mark.parametrize("work", WORKS)
def test_hit(engines: Engines, record: Record, work: Work, flows: int) -> None:
    engine = engines(1000)
    frames = traffic(engine, work, flows)
    bench.verify(engine, work, frames)
    engine.flush()
    player = bench.Player(engine, frames)
    player.play(-(-flows // bench.VECTOR))
    record(lambda: player.play(bench.HIT_VECTORS))


@pytest.mark.parametrize("acl_rules", [0, 100, 1000])
@pytest.mark.parametrize("work", WORKS)
def test_miss(engines: Engines, record: Record, work: Work, acl_rules: int) -> None:
    engine = engines(acl_rules)
    frames = traffic(engine, work, BINDINGS)
    bench.verify(engine, work, frames)
    record(lambda: bench.misses(engine, frames, seconds=0))
