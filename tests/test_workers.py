"""Several workers on one engine: what they share is right whatever they do at the same time."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from dataplane import Batch, BusyError, Engine, Verdict, bench_traffic
from dataplane.model import Wire
from dataplane.stats import adds_up

ROOT = Path(__file__).resolve().parent.parent
CC = os.environ.get("CC", "cc")
PROGRAM = ROOT / "tests/threads/workers.c"
ALONE = ("io", "bench")  # files that the engine does not need
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
BATCHES, FRAMES = 200, 256


def thread_sanitizer(tmp_path: Path) -> bool:
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    words = [CC, "-fsanitize=thread", empty, "-o", tmp_path / "empty"]
    return not subprocess.run(words, capture_output=True, check=False).returncode


def test_the_thread_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """Four workers in the same flows, commits, expiry and listing: no data race, all adds up."""
    if not shutil.which(CC) or not thread_sanitizer(tmp_path):
        pytest.skip("needs a C compiler with the thread sanitizer")
    sources = [p for p in sorted(ROOT.glob("csrc/*.c")) if not p.stem.startswith(ALONE)]
    program = tmp_path / "workers"
    words = [CC, *FLAGS, "-fsanitize=thread", f"-I{ROOT / 'csrc'}", PROGRAM, *sources]
    subprocess.run([*words, "-o", program], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr


def test_each_worker_is_one_thread_at_a_time() -> None:
    with Engine(max_flows=16, workers=2) as engine, engine.exclusive(1):
        engine.process(Batch(1), worker=0)
        with pytest.raises(BusyError):
            engine.process(Batch(1), worker=1)
        with pytest.raises(ValueError, match="no worker 2, only 0 to 1"):
            engine.process(Batch(1), worker=2)


def test_packets_of_one_flow_at_two_workers() -> None:
    """Both get every flow at once, while the policy is committed again and again."""
    with Engine(max_flows=4096, max_ports=64, workers=2) as engine:
        policies = [bench_traffic.policy(0), bench_traffic.policy(100)]
        engine.commit(policies[0])
        traffic = bench_traffic.traffic(engine, "encap", FRAMES)

        def play(worker: int) -> int:
            good = 0
            for _ in range(BATCHES):
                batch = Batch(FRAMES, slot=512)
                for frame, port in zip(traffic.frames, traffic.ports.tolist(), strict=True):
                    batch.add([frame.tobytes()], port)
                result = engine.process(batch, worker=worker)
                assert (result.verdict == Verdict.FORWARD).all()
                outer = np.array([len(result.frame(i)) for i in range(FRAMES)])
                good += int((outer == traffic.frames.shape[1] + 50).sum())
            return good

        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(play, worker) for worker in (0, 1)]
            turn = 0
            while not all(d.done() for d in done):
                turn += 1
                engine.commit(policies[turn % 2])
        assert [d.result() for d in done] == [BATCHES * FRAMES] * 2
        totals = engine.stats().totals
        assert adds_up(totals) and totals["rx"] == 2 * BATCHES * FRAMES
        assert totals["flows"] == FRAMES and totals["reconciled"] > 0 and turn > 2


def test_outer_packets_of_all_workers_have_numbers_of_their_own() -> None:
    """Those that others may fragment (RFC 6864 section 4.3)."""
    node = bench_traffic.policy(0)
    (network,) = node.networks
    network = replace(network, wire=Wire(df="clear"))
    with Engine(max_flows=1024, max_ports=64, workers=3) as engine:
        engine.commit(replace(node, networks=(network,)))
        traffic = bench_traffic.traffic(engine, "encap", 90)
        ids = set()
        for i, (frame, port) in enumerate(zip(traffic.frames, traffic.ports, strict=True)):
            outcome = engine.process_one(frame.tobytes(), int(port), worker=i % 3)
            assert outcome.frame[20:22] == b"\0\0", "DF is clear"
            ids.add(outcome.frame[18:20])
        assert len(ids) == 90


def test_a_small_table_that_workers_share_evicts_before_it_refuses() -> None:
    """Its places that wait for the other worker are more than an eviction looks at pairs."""
    with Engine(max_flows=8, max_ports=64, workers=2) as engine:
        engine.commit(bench_traffic.policy(0))
        traffic = bench_traffic.traffic(engine, "encap", 500)
        for i, (frame, port) in enumerate(zip(traffic.frames, traffic.ports, strict=True)):
            outcome = engine.process_one(frame.tobytes(), int(port), worker=i % 2)
            assert outcome.verdict == Verdict.FORWARD
            if i < 400 and i % 8 == 7:
                engine.flush()  # the next ones lie elsewhere
        assert engine.stats().totals["evicted"] == 100 - 8
