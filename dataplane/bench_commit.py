"""From a model in memory to the committed policy, for large ones."""

import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from dataplane import bench_traffic
from dataplane.bench_play import Row
from dataplane.engine import Engine
from dataplane.model import Node, RemoteSubnet

REMOTE_SUBNETS = 100_000
PARTS = ("plan", "commit")


def measure_commit(subnets: int = REMOTE_SUBNETS, repeats: int = 3) -> list[Row]:
    """From a model in memory to the committed policy, each remote subnet behind a VTEP of its own;
    then one more remote subnet."""
    first: list[Sequence[float]] = []
    more: list[Sequence[float]] = []
    node = large_policy(subnets)
    for i in range(repeats):
        with Engine(max_flows=1024) as engine:
            first.append(_timed_commit(engine, node))
            more.append(_timed_commit(engine, with_one_more(node, subnets + i)))
    return [
        _commit_row("commit", subnets, first),
        _commit_row("commit one more", subnets, more),
    ]


def large_policy(subnets: int) -> Node:
    """The full policy, with 10.0.0.0/8 cut into remote subnets of 64 addresses."""
    node = bench_traffic.policy(1000)
    network = replace(
        node.networks[0],
        prefixes=(IPv4Network("10.0.0.0/8"),),
        remote_subnets=tuple(map(_remote_subnet, range(subnets))),
    )
    return replace(node, networks=(network,))


def _remote_subnet(i: int) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=IPv4Network((0x0A020000 + 64 * i, 26)),
        provider_address=IPv4Address(0xAC100000 + i),
        dr_mac=bench_traffic.REMOTE_DR,
    )


def with_one_more(node: Node, i: int) -> Node:
    (network,) = node.networks
    subnets = (*network.remote_subnets, _remote_subnet(i))
    return replace(node, networks=(replace(network, remote_subnets=subnets),))


def _timed_commit(engine: Engine, node: Node) -> Sequence[float]:
    """Seconds of the plan, and of its commit."""
    start = time.perf_counter()
    plan = engine.plan(node)
    planned = time.perf_counter()
    plan.commit()
    return planned - start, time.perf_counter() - planned


def _commit_row(work: str, subnets: int, times: Sequence[Sequence[float]]) -> Row:
    best = min(times, key=sum)
    totals = sorted(map(sum, times))
    return {
        "work": work,
        "policy": "full",
        "acl_rules": 1000,
        "remote_subnets": subnets,
        "seconds": round(totals[0], 4),
        "median_seconds": round(totals[len(totals) // 2], 4),
        **{f"{part}_seconds": round(t, 4) for part, t in zip(PARTS, best, strict=True)},
    }
