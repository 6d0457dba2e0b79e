"""The benchmark behind `dataplane bench`: cycles a packet, new flows a second, seconds a commit.

Packets: 64-byte inner frames, full vectors, flows in shuffled order, laid into the cache before the
clock starts; every figure comes from windows of dp_process alone, timed in C. Unmarked figures are
those of the quietest window, the median is what a machine shared with others gave.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataplane import bench_attack, bench_traffic
from dataplane._engine import lib
from dataplane.batch import Batch
from dataplane.bench_batch import measure_batch
from dataplane.bench_commit import PARTS, measure_commit
from dataplane.bench_counters import measure_counters
from dataplane.bench_latency import measure_latency
from dataplane.bench_memory import measure_memory
from dataplane.bench_play import HIT_VECTORS, MISS_VECTORS, VECTOR, Cycles, Player, Row
from dataplane.bench_stages import measure_stages
from dataplane.bench_traffic import BINDINGS, INNER, WORKS, Traffic, Work
from dataplane.bench_workers import measure_workers
from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.reasons import Verdict, text
from dataplane.tables import table

Progress = Callable[[str], None]

MILLION = 1_000_000
FULL = 1000  # ACL rules of the full policy
SECONDS = 1.0  # of a measurement: neighbours on the machine seldom keep still for less
CHECKED = 512  # frames whose bytes are compared
PACKET_COLUMNS = ("work", "path", "acl_rules", "flows", "ns", "cycles", "median", "mpps")
ATTACK_COLUMNS = (
    "work",
    "path",
    "acl_rules",
    "one_in",
    "kpps",
    "alone",
    "attacked",
    "ratio",
    "median",
)
LATENCY_COLUMNS = ("work", "path", "meanwhile", "commits", "p50_us", "p99_us", "p999_us")
WORKER_COLUMNS = (
    "work",
    "path",
    "workers",
    "flows_of_each",
    "alone_cycles_per_packet",
    "median_cycles_per_packet",
    "speedup",
    "median_mpps",
)
SIMULATED_COLUMNS = (
    "simulated_workers",
    "new_share",
    "simulated_mpps",
    "simulated_speedup",
    "bound_by",
)
STAGE_COLUMNS = ("stage", "of_flows", "stage_cycles", "median_stage_cycles")
BATCH_COLUMNS = ("work", "batch", "engine_ns", "called_ns", "added_ns", "median_added_ns")
COUNTER_COLUMNS = (
    "work",
    "counted_flows",
    "ipc",
    "core_cycles",
    "instructions",
    "branch_misses",
    "cache_misses",
    "tlb_misses",
)
MEMORY_COLUMNS = ("memory", "bytes", "bytes_at_start", "bytes_each")
COMMIT_COLUMNS = ("commit", "seconds", "median", *PARTS)


class Case(NamedTuple):
    """One measurement. A miss is every flow's first packet."""

    work: Work
    path: str  # hit or miss
    acl_rules: int  # in each direction
    flows: int


def cases(largest: int) -> list[Case]:
    """The matrix of work, path, rules and flows, without those of more than `largest` flows."""
    full = [Case(work, "hit", FULL, n) for work in WORKS for n in (1, 1000, 64_000, MILLION)]
    full += [Case(work, "miss", FULL, n) for work in WORKS for n in (BINDINGS, MILLION)]
    fewer = [
        Case(work, path, rules, n)
        for rules in (0, 100)
        for work in ("encap", "nat")
        for path, n in (("hit", 1000), ("miss", BINDINGS))
    ]
    return [case for case in full + fewer if case.flows <= largest]


def run(progress: Progress = lambda _: None, *, quick: bool = False) -> dict[str, Any]:
    """Measures everything on one core: `{"machine": …, "results": […]}`. About a minute.

    `quick`: no more than 64,000 flows, shorter, and commits once instead of three times.
    """
    largest, seconds = (64_000, SECONDS / 10) if quick else (MILLION, SECONDS)
    results: list[Row] = []
    with pinned() as cpu:
        described = machine(cpu)
        rate = described["tsc_mhz"] / 1000
        todo = cases(largest)
        for rules in dict.fromkeys(case.acl_rules for case in todo):
            with engine_for(rules, largest) as engine:
                for case in (c for c in todo if c.acl_rules == rules):
                    progress(f"{case.work} {case.path}, {case.flows} flows, {rules} ACL rules")
                    results.append(_packet_row(case, measure(engine, case, seconds), rate))
                if rules == FULL:
                    progress("stages, counters, the batch API")
                    results += _looked_into(engine, (1000, largest), rate, seconds)
        progress("tuple space attack")
        results += bench_attack.measure(rate, seconds)
        progress("commits of large policies")
        results += measure_commit(repeats=1 if quick else 3)
        progress("packets while policies are committed")
        results += measure_latency(rate, rounds=1 if quick else 6)
    progress("memory")
    results += measure_memory(largest)
    progress("workers")
    results += measure_workers(rate, seconds, rounds=2 if quick else 8)
    return {"machine": described, "results": results}


def _looked_into(
    engine: Engine, flows: tuple[int, int], rate: float, seconds: float
) -> Iterator[Row]:
    for n in flows:
        yield from measure_stages(engine, n, seconds)
    yield from measure_counters(engine, flows)
    yield from measure_batch(engine, rate, seconds)


# ---- packets -----------------------------------------------------------------------------------


def engine_for(acl_rules: int, largest: int = MILLION) -> Engine:
    """An engine with the full policy and room for `largest` flows."""
    engine = Engine(max_flows=largest + VECTOR, max_bindings=65_536, max_ports=64)
    engine.commit(bench_traffic.policy(acl_rules))
    return engine


def measure(engine: Engine, case: Case, seconds: float = SECONDS) -> Cycles:
    """Cycles a packet, by window. Raises DataplaneError if a frame leaves as it must not."""
    traffic = bench_traffic.traffic(engine, case.work, case.flows)
    verify(engine, case.work, traffic)
    return (hits if case.path == "hit" else misses)(engine, traffic, seconds)


def verify(engine: Engine, work: Work, traffic: Traffic) -> None:
    """Some frames, as first and as later packets of their flows, byte for byte."""
    engine.flush()
    n = min(CHECKED, len(traffic.ports))
    for path in ("miss", "hit"):
        batch = Batch(n, slot=512)
        for frame, port in zip(traffic.frames[:n], traffic.ports[:n].tolist(), strict=True):
            batch.add([frame.tobytes()], port)
        result = engine.process(batch)
        if (result.verdict != Verdict.FORWARD).any() or (result.missed != (path == "miss")).any():
            raise DataplaneError(f"bench: a frame of {work} was not forwarded as a {path}")
        for i in range(n):
            out = bytes(result.frame(i))
            flow = bench_traffic.Flow(*(column[i] for column in traffic.flows))
            wanted = bench_traffic.expected(engine, work, flow, out)
            if out != wanted:
                raise DataplaneError(f"bench: {work} made {out.hex()}, should be {wanted.hex()}")


def hits(engine: Engine, traffic: Traffic, seconds: float = SECONDS) -> Cycles:
    """Of flows that are all known; the windows go over all of them at least once."""
    import numpy as np

    player = Player(engine, traffic)
    vectors = -(-len(traffic.ports) // VECTOR)
    engine.flush()
    player.play(vectors)
    player.play(vectors)
    before = engine.stats().totals["misses"]
    found: list[Cycles] = []
    end = time.monotonic() + seconds
    while not found or time.monotonic() < end:
        found.append(player.play(HIT_VECTORS, max(64, -(-vectors // HIT_VECTORS))))
    assert engine.stats().totals["misses"] == before
    return np.concatenate(found)


def misses(engine: Engine, traffic: Traffic, seconds: float = SECONDS) -> Cycles:
    """Of flows that are all new, from an empty table to a full one, several times over."""
    import numpy as np

    found: list[Cycles] = []
    windows = len(traffic.ports) // (VECTOR * MISS_VECTORS)
    end = time.monotonic() + seconds
    while not found or time.monotonic() < end:
        engine.flush()
        player = Player(engine, traffic)
        before = engine.stats().totals["hits"]
        found.append(player.play(MISS_VECTORS, windows))
        assert engine.stats().totals["hits"] == before
    return np.concatenate(found)


def _packet_row(case: Case, cycles: Cycles, rate: float) -> Row:
    """`rate`: cycles a nanosecond."""
    import numpy as np

    best, median = float(cycles.min()), float(np.median(cycles))
    row: Row = {
        "work": case.work,
        "path": case.path,
        "policy": "full",
        "acl_rules": case.acl_rules,
        "flows": case.flows,
        "inner_bytes": INNER,
        "ns_per_packet": round(best / rate, 2),
        "cycles_per_packet": round(best, 1),
        "mpps": round(1000 * rate / best, 3),
        "median_ns_per_packet": round(median / rate, 2),
        "median_cycles_per_packet": round(median, 1),
        "median_mpps": round(1000 * rate / median, 3),
        "windows": len(cycles),
    }
    if case.path == "miss":
        row["flows_per_second"] = round(1e9 * rate / best)
        row["median_flows_per_second"] = round(1e9 * rate / median)
    return row


# ---- machine -----------------------------------------------------------------------------------


@contextmanager
def pinned() -> Iterator[int]:
    """Keeps this thread on one of its cores, the last, and gives the others back at the end."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


def machine(cpu: int) -> Row:
    return {
        "cpu": _cpu_model(),
        "core": cpu,
        "cores": os.cpu_count(),
        "tsc_mhz": round(tsc_mhz(), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "build": text(lib.dp_bench_build()),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def tsc_mhz(seconds: float = 0.1) -> float:
    """Cycles of the time stamp counter a microsecond of CLOCK_MONOTONIC."""
    start, cycles = time.monotonic_ns(), lib.dp_bench_cycles()
    time.sleep(seconds)
    end, more = time.monotonic_ns(), lib.dp_bench_cycles()
    return float((more - cycles) * 1000 / (end - start))


# ---- text --------------------------------------------------------------------------------------


def render(report: dict[str, Any]) -> str:
    """The report as plain text."""
    lines = [f"{key:<8} {value}" for key, value in report["machine"].items()]
    packets = [row for row in report["results"] if "flows" in row]
    attacks = [row for row in report["results"] if "ratio" in row]
    commits = [row for row in report["results"] if "seconds" in row]
    lines += ["", *table([PACKET_COLUMNS, *map(_packet_cells, packets)])]
    lines += ["", *table([ATTACK_COLUMNS, *map(_attack_cells, attacks)])]
    lines += ["", *table([COMMIT_COLUMNS, *map(_commit_cells, commits)])]
    lines += ["", *_columns(LATENCY_COLUMNS, report, "meanwhile")]
    lines += ["", *_columns(WORKER_COLUMNS, report, "workers")]
    lines += ["", *_columns(SIMULATED_COLUMNS, report, "simulated_workers")]
    lines += ["", *_columns(STAGE_COLUMNS, report, "stage")]
    lines += ["", *_columns(COUNTER_COLUMNS, report, "counted_flows")]
    lines += ["", *_columns(BATCH_COLUMNS, report, "batch")]
    lines += ["", *_columns(MEMORY_COLUMNS, report, "memory")]
    return "\n".join(lines)


def _columns(names: tuple[str, ...], report: dict[str, Any], kind: str) -> list[str]:
    """A table of the rows that have the key `kind`, as they are."""
    rows = [row for row in report["results"] if kind in row]
    return table([names, *(tuple(_cell(row[name]) for name in names) for row in rows)])


def _cell(value: object) -> str:
    return "not available" if value is None else str(value)


def _packet_cells(row: Row) -> tuple[str, ...]:
    return (
        row["work"],
        row["path"],
        str(row["acl_rules"]),
        str(row["flows"]),
        f"{row['ns_per_packet']:.1f}",
        f"{row['cycles_per_packet']:.1f}",
        f"{row['median_cycles_per_packet']:.1f}",
        f"{row['mpps']:.2f}",
    )


def _attack_cells(row: Row) -> tuple[str, ...]:
    return (
        row["work"],
        row["path"],
        str(row["acl_rules"]),
        str(row["one_in"]),
        str(row["attack_kpps"]),
        f"{row['cycles_per_packet']:.1f}",
        f"{row['attacked_cycles_per_packet']:.1f}",
        f"{row['ratio']:.3f}",
        f"{row['median_ratio']:.3f}",
    )


def _commit_cells(row: Row) -> tuple[str, ...]:
    seconds = ("seconds", "median_seconds", *(f"{part}_seconds" for part in PARTS))
    return row["work"], *(f"{row[key]:.5f}" for key in seconds)


@dataclass
class _Terminal:
    """One line of progress that is written over, on a terminal only."""

    live: bool

    def __call__(self, message: str) -> None:
        if self.live:
            print(f"\r\x1b[K{message}", end="", file=sys.stderr, flush=True)


def main(as_json: bool = False, quick: bool = False) -> int:
    """Measures and prints; the exit code."""
    import json

    progress = _Terminal(sys.stderr.isatty())
    report = run(progress, quick=quick)
    progress("")
    print(json.dumps(report, indent=2) if as_json else render(report))
    return 0
