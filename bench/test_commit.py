"""From a model in memory to the committed policy."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dataplane import bench_commit
from dataplane.engine import Engine


def test_commit(benchmark: BenchmarkFixture) -> None:
    """Plan and commit of 100,000 remote subnets."""
    node = bench_commit.large_policy(bench_commit.REMOTE_SUBNETS)

    def commit() -> None:
        with Engine(max_flows=1024) as engine:
            engine.commit(node)

    benchmark.pedantic(commit, rounds=3)


def test_commit_one_more(benchmark: BenchmarkFixture) -> None:
    """One more remote subnet beside 100,000."""
    node = bench_commit.large_policy(bench_commit.REMOTE_SUBNETS)
    with Engine(max_flows=1024) as engine:
        more = iter(range(100))

        def setup() -> tuple[tuple[object], dict[str, object]]:
            return (bench_commit.with_one_more(node, bench_commit.REMOTE_SUBNETS + next(more)),), {}

        engine.commit(node)
        benchmark.pedantic(engine.commit, setup=setup, rounds=3)


def test_edit(benchmark: BenchmarkFixture) -> None:
    """One remote subnet comes beside 100,000, and goes again."""
    with Engine(max_flows=1024) as engine:
        engine.commit(bench_commit.large_policy(bench_commit.REMOTE_SUBNETS))
        more = bench_commit.remote_subnet(bench_commit.REMOTE_SUBNETS)

        def come_and_go() -> None:
            with engine.edit() as draft:
                draft.add("bench", more)
            with engine.edit() as draft:
                draft.remove("bench", more.prefix)

        benchmark(come_and_go)


@pytest.mark.parametrize("each", [bench_commit.PER_SERVICE, bench_commit.BACKENDS])
def test_commit_services(benchmark: BenchmarkFixture, each: int) -> None:
    """2,000 services over 5,000 backends, some or all of them each."""
    node = bench_commit.service_policy(each)

    def commit() -> None:
        with Engine(max_flows=1024) as engine:
            engine.commit(node)

    benchmark.pedantic(commit, rounds=3)
