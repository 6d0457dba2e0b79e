"""What the benchmarks share: a core of their own, an engine for each number of ACL rules, a clock.

Where packets are played the clock of pytest-benchmark goes on with the measured stage only, not
with the laying out of frames; so `--benchmark-compare-fail` compares what matters.
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


class StageClock:
    """Seconds that stages have taken: for a million packets each time, as the mean says."""

    def __init__(self) -> None:
        self._seconds, self._mhz = 0.0, bench.tsc_mhz()

    def __call__(self) -> float:
        self._seconds += 1e-12  # it moves: pytest-benchmark waits for that
        return self._seconds

    def add(self, cycles: bench.Cycles) -> None:
        self._seconds += float(cycles.mean()) / self._mhz


CLOCK = StageClock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "record" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture
def record(benchmark: BenchmarkFixture) -> Record:
    """Benchmarks a function that returns cycles a packet, and keeps the least and the median."""

    def run(play: Callable[[], bench.Cycles]) -> None:
        cycles: list[bench.Cycles] = []

        def timed() -> None:
            cycles.append(play())
            CLOCK.add(cycles[-1])

        benchmark.pedantic(timed, rounds=100, warmup_rounds=5)
        found = np.concatenate(cycles)
        benchmark.extra_info["cycles_per_packet"] = round(float(found.min()), 1)
        benchmark.extra_info["median_cycles_per_packet"] = round(float(np.median(found)), 1)

    return run
