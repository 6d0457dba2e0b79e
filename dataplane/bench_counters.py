"""The processor's own counters while packets are played, by `perf stat` where it works.

Many virtual machines have no such counters (PMU), and perf may not be installed or permitted: the
rows then say why.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from dataplane import bench_traffic
from dataplane.bench_play import HIT_VECTORS, VECTOR, Player, Row
from dataplane.engine import Engine

# by perf's name; what a packet has of each
EVENTS = {
    "cycles": "core_cycles",
    "instructions": "instructions",
    "branch-misses": "branch_misses",
    "cache-misses": "cache_misses",
    "dTLB-load-misses": "tlb_misses",
    "page-faults": "page_faults",
}
WINDOWS = 64


def measure_counters(engine: Engine, flows: tuple[int, ...]) -> list[Row]:
    """One row for each number of flows, of `encap` and standing flows; laying out is included."""
    return [_row(engine, n) for n in flows]


def _row(engine: Engine, flows: int) -> Row:
    engine.flush()
    player = Player(engine, bench_traffic.traffic(engine, "encap", flows))
    player.play(-(-flows // VECTOR))
    with counted() as found:
        player.play(HIT_VECTORS, WINDOWS)
    packets = HIT_VECTORS * WINDOWS * VECTOR
    row: Row = {"work": "encap", "counted_flows": flows}
    row |= {name: _each(found.get(event), packets) for event, name in EVENTS.items()}
    cycles, instructions = found.get("cycles"), found.get("instructions")
    row["ipc"] = round(instructions / cycles, 2) if cycles and instructions else None
    return row


def _each(count: float | None, packets: int) -> float | None:
    return None if count is None else round(count / packets, 4)


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """This process's counts inside the block, filled in at its end; absent: not to be had."""
    found: dict[str, float] = {}
    perf = shutil.which("perf")
    if perf is None:
        yield found
        return
    to_perf, ours = os.pipe()
    from_perf, acks = os.pipe()
    words = ["stat", "-x", ";", "-e", ",".join(EVENTS), "-p", str(os.getpid()), "--delay", "-1"]
    process = subprocess.Popen(
        [perf, *words, "--control", f"fd:{to_perf},{acks}"],
        pass_fds=(to_perf, acks),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(to_perf)
    os.close(acks)
    try:
        on = _told(ours, from_perf, b"enable\n")
        yield found
        if on and _told(ours, from_perf, b"disable\n"):
            process.send_signal(signal.SIGINT)
            found.update(_read(process.communicate(timeout=10)[1]))
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(from_perf)


def _told(to: int, acks: int, word: bytes) -> bool:
    """Whether perf did as it was told; it closes its ends where it cannot start."""
    try:
        os.write(to, word)
    except BrokenPipeError:
        return False
    return os.read(acks, 5).startswith(b"ack")


def _read(text: str) -> dict[str, float]:
    """`perf stat -x ;`: count, unit, event, ...; the count is words where there is none."""
    rows = [line.split(";") for line in text.splitlines()]
    return {
        row[2].partition(":")[0]: float(row[0])
        for row in rows
        if len(row) > 2 and row[0].replace(".", "", 1).isdecimal()
    }
