"""Arguments that cross into C wrong, frames that were never right: a status, a counted drop."""

import random

import numpy as np
import pytest

from dataplane._engine import ffi, lib
from dataplane.batch import Batch
from dataplane.engine import Engine
from dataplane.reasons import Reason, Verdict, text
from tests.test_reasons import ARP, CASES, FROM_HOST, INNER, OUT, TCP, UDP, node, vxlan

SEEDS = [UDP, TCP, OUT, ARP, FROM_HOST, INNER, vxlan(INNER), *(c.frame for c in CASES.values())]
PORTS = ["underlay", "host", "blue/web", "blue/db"]
ROUNDS = 400  # of 256 frames


@pytest.fixture
def engine():
    with Engine(max_flows=1 << 10) as engine:
        engine.commit(node())
        yield engine


def status_of(error) -> str:
    return text(lib.dp_status_name(error.status))


# ---- calls -------------------------------------------------------------------------------------


def test_null_where_an_object_belongs() -> None:
    error = ffi.new("struct dp_error *")
    frame, steps = ffi.new("struct dp_frame *"), ffi.new("struct dp_step[1]")
    assert lib.dp_process(ffi.NULL, ffi.NULL, 0, ffi.NULL, 0, 0) < 0
    assert lib.dp_trace(ffi.NULL, ffi.NULL, 0, frame, 0, steps, 1) < 0
    assert lib.dp_expire(ffi.NULL, 0, 1) < 0
    assert lib.dp_flush(ffi.NULL) < 0
    assert lib.dp_commit(ffi.NULL, ffi.NULL, error) < 0
    assert lib.dp_loop_run(ffi.NULL, 0) < 0
    for release in (lib.dp_group_release, lib.dp_routes_release, lib.dp_snapshot_release):
        release(ffi.NULL)
    lib.dp_engine_destroy(ffi.NULL)
    lib.dp_loop_destroy(ffi.NULL)
    assert lib.dp_engine_create(ffi.NULL, ffi.NULL, bytes(32), error) == ffi.NULL
    assert status_of(error) == "EINVAL"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"len": 129}, "EINVAL"),
        ({"kind": 9}, "EINVAL"),
        ({"prefix": bytes(15) + b"\1", "len": 120}, "EINVAL"),
    ],
)
def test_impossible_routes(fields: dict, status: str) -> None:
    error = ffi.new("struct dp_error *")
    routes = ffi.new("struct dp_route[]", [fields])
    assert lib.dp_routes_create(routes, 1, error) == ffi.NULL
    assert (status_of(error), text(error.what), error.index) == (status, "route", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"action": 9},
        {"flags": 0x80},
        {"src": {"first": 0, "count": 2}},
        {"dst": {"first": 0xFFFFFFFF, "count": 2}},
        {"sport": {"first": 2, "count": 0xFFFFFFFF}},
        {"proto": {"first": 1, "count": 1}},
    ],
)
def test_impossible_rules(fields: dict) -> None:
    error = ffi.new("struct dp_error *")
    rules = ffi.new("struct dp_rule[]", [fields])
    prefixes, ranges = ffi.new("struct dp_prefix[1]"), ffi.new("struct dp_range[1]")
    group = lib.dp_group_create(1, 0, rules, 1, prefixes, 1, ranges, 1, error)
    assert group == ffi.NULL and status_of(error) == "EINVAL"
    assert text(error.what) == "rule"


def policy(**arrays: list[dict]):
    """A `struct dp_policy` of generation 1 with those arrays, and what keeps it alive."""
    types = {"ports": "port", "networks": "network", "endpoints": "endpoint"}
    types |= {"adjacencies": "adjacency", "pools": "pool"}
    kept = {name: ffi.new(f"struct dp_{types[name]}[]", rows) for name, rows in arrays.items()}
    counts = {f"n_{name}": len(rows) for name, rows in arrays.items()}
    return ffi.new("struct dp_policy *", {"generation": 1, **kept, **counts}), kept


UNDERLAY = {"id": 0, "kind": 2, "mtu": 1500}
ENDPOINT = {"id": 1, "kind": 1, "mtu": 1500}


@pytest.mark.parametrize(
    ("arrays", "status"),
    [
        ({"ports": [{"id": 0, "kind": 7, "mtu": 1500}]}, "EINVAL"),
        ({"ports": [{"id": 65535, "kind": 1, "mtu": 1500}]}, "EINVAL"),
        ({"ports": [{"id": 0, "kind": 2, "mtu": 20}]}, "EINVAL"),
        ({"ports": [UNDERLAY, UNDERLAY]}, "EDUP"),
        ({"networks": [{"vni": 1 << 24, "mtu": 1450}]}, "EINVAL"),
        ({"networks": [{"vni": 1, "mtu": 1450}]}, "EREF"),
        ({"networks": [{"vni": 1, "mtu": 1450, "vteps": {"first": 0, "count": 9}}]}, "EREF"),
        ({"ports": [ENDPOINT], "endpoints": [{"network": 0, "port": 1}]}, "EREF"),
        ({"ports": [UNDERLAY], "adjacencies": [{"network": 3, "port": 0, "mtu": 1450}]}, "EREF"),
        ({"pools": [{"lo": 9, "hi": 8}]}, "EINVAL"),
    ],
)
def test_impossible_policies(arrays: dict, status: str) -> None:
    error = ffi.new("struct dp_error *")
    wrong, kept = policy(**arrays)
    assert lib.dp_snapshot_create(wrong, error) == ffi.NULL and kept
    assert status_of(error) == status and error.why


def test_a_generation_does_not_come_twice(engine: Engine) -> None:
    error = ffi.new("struct dp_error *")
    empty, _ = policy()
    snapshot = lib.dp_snapshot_create(empty, error)
    assert lib.dp_commit(engine.handle, snapshot, error) < 0
    assert text(error.what) == "generation" and engine.stats().totals["generation"] == 1
    lib.dp_snapshot_release(snapshot)


# ---- frames ------------------------------------------------------------------------------------


def check_law(engine: Engine, sent: int) -> None:
    stats = engine.stats()
    totals = stats.totals
    assert totals["rx"] == sent
    assert totals["rx"] == totals["forwarded"] + totals["dropped"] + totals["consumed"]
    assert sum(stats.reasons.values()) == totals["dropped"]


def test_random_descriptors(engine: Engine) -> None:
    """Whatever stands in a descriptor, nothing outside of the arena is touched."""
    rng = np.random.default_rng(7)
    arena = np.frombuffer(bytearray(b"\xa5" * 8192), np.uint8)
    fence = 1024
    inside = ffi.from_buffer("uint8_t[]", arena[fence:-fence])
    frames = ffi.new("struct dp_frame[256]")
    for _ in range(200):
        ffi.buffer(frames)[:] = rng.bytes(ffi.sizeof(frames))
        for i in range(0, 256, 2):  # every other one nearly right
            frames[i].off, frames[i].len = int(rng.integers(8192)), int(rng.integers(2048))
            frames[i].port, frames[i].gso_size = int(rng.integers(5)), 0
        assert lib.dp_process(engine.handle, inside, 8192 - 2 * fence, frames, 256, 0) == 0
        assert (arena[:fence] == 0xA5).all() and (arena[-fence:] == 0xA5).all()
    check_law(engine, 200 * 256)


def test_random_mutations(engine: Engine) -> None:
    """What leaves stays inside of its slot, and every frame is accounted for."""
    rng = random.Random(11)
    batch = Batch(capacity=256, slot=4096)
    for _ in range(ROUNDS):
        batch.clear()
        for _ in range(256):
            frame = bytearray(rng.choice(SEEDS))
            for _ in range(rng.randrange(4)):
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            batch.add(
                [frame[: rng.choice([len(frame)] * 3 + [rng.randrange(len(frame))])]],
                rng.choice(PORTS),
                rng.choice([0, lib.DP_OUTER_CHECKED, lib.DP_CSUM_UNKNOWN]),
            )
        result = engine.process(batch, now=rng.randrange(1 << 40))
        ends = batch.frames["off"].astype(np.int64) + batch.frames["len"]
        slots = np.arange(256) * batch.slot
        leaves = result.port != lib.DP_PORT_NONE
        assert (batch.frames["off"] >= slots)[leaves].all()
        assert (ends <= slots + batch.slot)[leaves].all()
    check_law(engine, ROUNDS * 256)


def test_nothing_old_leaks_into_new_headers(engine: Engine) -> None:
    """An answer, an error and outer headers are written whole over a poisoned arena."""
    batch = Batch(capacity=1, slot=4096)
    for frame, port in ((UDP, "blue/web"), (CASES["ttl_expired"].frame, "blue/web")):
        outputs = []
        for poison in (0xA5, 0x5A):
            batch.arena[:] = poison
            result = engine.process(batch.load([frame], port))
            assert result.verdict_of(0) in (Verdict.FORWARD, Verdict.DROP)
            outputs.append(bytes(result.frame(0)))
        assert outputs[0] == outputs[1]


def test_reasons_have_words() -> None:
    assert text(lib.dp_reason_name(len(Reason))) == "unknown"
    assert text(lib.dp_status_name(99)) == "UNKNOWN"
