"""What the benchmarks share: a core of their own, and an engine for each number of ACL rules.

pytest-benchmark's own times include laying the frames out; `cycles_per_packet` in its extra info is
the stage alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dataplane import bench
from dataplane.engine import Engine

Record = Callable[[Callable[[], bench.Cycles]], None]


@pytest.fixture(scope="session", autouse=True)
def core() -> Iterator[int]:
    with bench.pinned() as cpu:
        yield cpu


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[[int], Engine]]:
    """By number of ACL rules; one at a time, since each has room for a million flows."""
    kept: dict[int, Engine] = {}

    def engine(acl_rules: int) -> Engine:
        if acl_rules not in kept:
            close()
            kept[acl_rules] = bench.engine_for(acl_rules)
        return kept[acl_rules]

    def close() -> None:
        for old in kept.values():
            old.close()
        kept.clear()

    yield engine
    close()


@pytest.fixture
def record(benchmark: BenchmarkFixture) -> Record:
    """Benchmarks a function that returns cycles a packet, and keeps the least and the median."""

    def run(play: Callable[[], bench.Cycles]) -> None:
        cycles: list[bench.Cycles] = []
        benchmark(lambda: cycles.append(play()))
        found = np.concatenate(cycles)
        benchmark.extra_info["cycles_per_packet"] = round(float(found.min()), 1)
        benchmark.extra_info["median_cycles_per_packet"] = round(float(np.median(found)), 1)

    return run
