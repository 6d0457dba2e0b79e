"""What state weighs: resident memory of a process before and after, by what was put into it.

Each figure comes from a process of its own, so that no earlier measurement's memory is reused.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dataplane import bench_traffic
from dataplane.bench_commit import REMOTE_SUBNETS, large_policy
from dataplane.bench_play import VECTOR, Player, Row
from dataplane.engine import Engine
from dataplane.errors import DataplaneError

MILLION = 1_000_000


def measure_memory(flows: int = MILLION) -> list[Row]:
    """Of a full flow table, and of a large policy. Raises DataplaneError."""
    return [_elsewhere("flows", flows), _elsewhere("subnets", REMOTE_SUBNETS)]


def _elsewhere(what: str, count: int) -> Row:
    words = [sys.executable, "-m", "dataplane.bench_memory", what, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataplaneError(f"bench: memory of {what}: {done.stderr.strip()}")
    row: Row = json.loads(done.stdout)
    return row


def _resident() -> int:
    """Bytes, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---- in a process of its own -------------------------------------------------------------------


def _flows(count: int) -> Row:
    """A table of so many flow pairs, all in use, with its index; without what a tiny one takes."""
    with _engine(VECTOR) as warm:
        traffic = bench_traffic.traffic(warm, "encap", count)
        start = _resident()
        with _engine(VECTOR):
            before = _resident() + _resident() - start
            with _engine(count + VECTOR) as engine:
                empty = _resident()
                Player(engine, traffic).play(-(-count // VECTOR))
                full, held = _resident(), len(engine.flow_records())
    return {
        "memory": f"{count} flows",
        "bytes": full - before,
        "bytes_at_start": empty - before,
        "bytes_each": round((full - before) / count),
        "held": held,
    }


def _engine(flows: int) -> Engine:
    engine = Engine(max_flows=flows, max_bindings=1, max_ports=64)
    engine.commit(bench_traffic.policy(1000))
    return engine


def _subnets(count: int) -> Row:
    """The model in Python and what the engine makes of it, with all that the next plan needs."""
    import numpy as np

    assert np  # its own memory is not the policy's
    with Engine(max_flows=1024) as engine:
        before = _resident()
        node = large_policy(count)
        model = _resident()
        engine.commit(node)
        full = _resident()
    return {
        "memory": f"{count} remote subnets",
        "bytes": full - before,
        "bytes_at_start": model - before,
        "bytes_each": round((full - before) / count),
    }


MEASURES: dict[str, Callable[[int], Row]] = {"flows": _flows, "subnets": _subnets}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](int(sys.argv[2]))))
