"""From a model in memory to the committed policy, for large ones."""

import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from dataplane import bench_traffic
from dataplane.bench_play import Row
from dataplane.engine import Engine
from dataplane.garbage import no_collection
from dataplane.model import Acl, Backend, LoadBalancer, Node, PortRange, RemoteSubnet

REMOTE_SUBNETS = 100_000
SERVICES, BACKENDS, PER_SERVICE = 2_000, 5_000, 3
POLICIES = 500
EDITS = 99
PARTS = ("plan", "commit")


def measure_commit(repeats: int = 3) -> list[Row]:
    """Large policies, each first on an empty engine, then once more with a small change."""
    subnets = large_policy(REMOTE_SUBNETS)
    spread, shared = (service_policy(each) for each in (PER_SERVICE, BACKENDS))
    changes = {
        f"{REMOTE_SUBNETS} remote subnets": (subnets, with_one_more(subnets, REMOTE_SUBNETS)),
        f"{SERVICES} services, {BACKENDS} backends": (spread, with_one_less(spread)),
        f"{SERVICES} services of {BACKENDS} backends each": (shared, with_one_less(shared)),
        f"{POLICIES} network policies": (
            network_policies(POLICIES - 1),
            network_policies(POLICIES),
        ),
    }
    rows = [_edit_row(subnets, repeats)]
    for what, nodes in changes.items():
        times: list[list[Sequence[float]]] = [[], []]
        for _ in range(repeats):
            with Engine(max_flows=1024) as engine:
                for found, node in zip(times, nodes, strict=True):
                    found.append(_timed_commit(engine, node))
        rows += [_row(what, times[0]), _row(f"{what}, one changed", times[1])]
    return rows


# ---- policies ----------------------------------------------------------------------------------


def large_policy(subnets: int) -> Node:
    """The full policy, with 10.0.0.0/8 cut into remote subnets of 64 addresses."""
    node = bench_traffic.policy(1000)
    network = replace(
        node.networks[0],
        prefixes=(IPv4Network("10.0.0.0/8"),),
        remote_subnets=tuple(map(remote_subnet, range(subnets))),
    )
    return replace(node, networks=(network,))


def remote_subnet(i: int) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=IPv4Network((0x0A020000 + 64 * i, 26)),
        provider_address=IPv4Address(0xAC100000 + i),
        dr_mac=bench_traffic.REMOTE_DR,
    )


def with_one_more(node: Node, i: int) -> Node:
    (network,) = node.networks
    subnets = (*network.remote_subnets, remote_subnet(i))
    return replace(node, networks=(replace(network, remote_subnets=subnets),))


def service_policy(each: int) -> Node:
    """The full policy with 2,000 load balancers, each over so many of 5,000 backends: in turn, or
    over all of them."""
    node = bench_traffic.policy(1000)
    backends = tuple(Backend(address=IPv4Address(0x0A010100 + i)) for i in range(BACKENDS))
    balancers = tuple(
        LoadBalancer(
            name=f"s{i}",
            protocol="tcp",
            port=80,
            target_port=8080,
            vips=(IPv4Address(0x0A600000 + i),),
            backends=backends if each == BACKENDS else _turn(backends, i * each, each),
        )
        for i in range(SERVICES)
    )
    return replace(node, networks=(replace(node.networks[0], load_balancers=balancers),))


def _turn(backends: tuple[Backend, ...], first: int, n: int) -> tuple[Backend, ...]:
    return tuple(backends[(first + i) % BACKENDS] for i in range(n))


def with_one_less(node: Node) -> Node:
    """The first service loses a backend."""
    (network,) = node.networks
    first, *rest = network.load_balancers
    fewer = replace(first, backends=first.backends[1:])
    return replace(node, networks=(replace(network, load_balancers=(fewer, *rest)),))


def network_policies(n: int) -> Node:
    """The full policy with so many Kubernetes network policies on its first endpoint, each three
    rules: two blocks of peers, an exception among them, two ranges of ports; in and out."""
    node = bench_traffic.policy(1000)
    network = node.networks[0]
    first, *rest = network.endpoints
    acls = tuple(rule for i in range(n) for rule in _network_policy(i))
    endpoints = (replace(first, acls=acls), *rest)
    return replace(node, networks=(replace(network, endpoints=endpoints),))


def _network_policy(i: int) -> tuple[Acl, ...]:
    blocks = tuple(IPv4Network((0x0A800000 + (2 * i + j << 12), 20)) for j in range(2))
    ports = PortRange(1024 + i, 1024 + i), PortRange(8000 + 10 * i, 8009 + 10 * i)
    hole = (IPv4Network((0x0A800000 + (2 * i << 12), 28)),)
    return (
        Acl(name=f"p{i}-except", direction="in", action="pass", remote=hole),
        Acl(
            name=f"p{i}-in",
            direction="in",
            action="allow",
            protocol="tcp",
            remote=blocks,
            local_ports=ports,
        ),
        Acl(
            name=f"p{i}-out",
            direction="out",
            action="allow",
            protocol="tcp",
            remote=blocks,
            remote_ports=ports,
        ),
    )


# ---- times -------------------------------------------------------------------------------------


def _timed_commit(engine: Engine, node: Node) -> Sequence[float]:
    """Seconds of the plan, and of its commit."""
    start = time.perf_counter()
    plan = engine.plan(node)
    planned = time.perf_counter()
    plan.commit()
    return planned - start, time.perf_counter() - planned


def _timed_edits(engine: Engine, edits: int) -> list[Sequence[float]]:
    """Seconds of each plan and commit: one comes, it moves to another VTEP, it goes."""
    times: list[Sequence[float]] = []
    at, elsewhere = remote_subnet(REMOTE_SUBNETS), remote_subnet(REMOTE_SUBNETS + 1)
    moved = replace(at, provider_address=elsewhere.provider_address)
    for i in range(edits):
        start = time.perf_counter()
        draft = engine.draft()
        if i % 3:
            draft.remove("bench", at.prefix)
        if i % 3 < 2:
            draft.add("bench", moved if i % 3 else at)
        plan = engine.plan(draft)
        planned = time.perf_counter()
        plan.commit()
        times.append((planned - start, time.perf_counter() - planned))
    return times


def _edit_row(node: Node, repeats: int) -> Row:
    """Of single edits; the collector of Python, which looks at the caller's policy, rests."""
    with Engine(max_flows=1024) as engine, no_collection():
        engine.commit(node)
        times = _timed_edits(engine, EDITS * repeats)
    row = _row(f"{REMOTE_SUBNETS} remote subnets, one edited", times)
    return row | {"worst_seconds": round(max(map(sum, times)), 6)}


def _row(work: str, times: Sequence[Sequence[float]]) -> Row:
    best = min(times, key=sum)
    totals = sorted(map(sum, times))
    return {
        "work": work,
        "policy": "full",
        "acl_rules": 1000,
        "seconds": round(totals[0], 6),
        "median_seconds": round(totals[len(totals) // 2], 6),
        **{f"{part}_seconds": round(t, 6) for part, t in zip(PARTS, best, strict=True)},
    }
