"""Observation: what is recorded is what passed, and nothing waits for whoever looks."""

from collections import Counter
from typing import Any

import pytest

from dataplane._engine import lib
from dataplane.batch import Batch
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, EngineError
from dataplane.observe import POINTS, Seen
from dataplane.reasons import Reason, Verdict
from tests import blue

OUT = "udp 10.1.0.2:1000 > 10.2.0.9:53"
LOCAL = "udp 10.1.0.2:1000 > 10.1.0.3:53"
NOWHERE = "udp 10.1.0.2:1000 > 10.1.0.77:53"
IN = "udp 10.2.0.9:53 > 10.1.0.2:1000"


@pytest.fixture
def engine() -> Engine:
    return blue.engine()


def all_seen(engine: Engine) -> list[Seen]:
    seen, lost = engine.seen()
    assert lost == 0
    return seen


def test_each_point_of_a_packets_way(engine: Engine) -> None:
    engine.observe(*POINTS)
    frame = blue.web(OUT)
    sent = engine.process_one(frame, "blue/web")
    seen = {s.point: s for s in all_seen(engine)}
    assert list(seen) == ["rx", "new", "tx", "encap"]
    assert seen["rx"].frame == seen["new"].frame == frame
    assert seen["tx"].frame == seen["encap"].frame == sent.frame
    assert (seen["new"].in_port, seen["new"].out_port) == ("blue/web", "underlay")
    assert seen["tx"].in_port == "blue/web" and seen["rx"].out_port is None
    carried = blue.peer(IN)
    got = engine.process_one(carried, "underlay")
    assert got.verdict is Verdict.FORWARD
    seen = {s.point: s for s in all_seen(engine)}
    assert list(seen) == ["rx", "tx", "decap"]
    assert seen["rx"].frame == carried and seen["decap"].frame == got.frame


def test_drops_tell_reason_rule_and_the_frame_as_it_came() -> None:
    rule = blue.rule("no-dns", "out", "block", 53, protocol="udp")
    with blue.engine(blue.node(acls=(rule,))) as engine:
        engine.observe("drop")
        frame = blue.web(OUT)
        outcome = engine.process_one(frame, "blue/web")
        (seen,) = all_seen(engine)
        assert (seen.point, seen.reason, seen.rule) == ("drop", outcome.reason, outcome.rule)
        assert seen.reason is Reason.ACL_DENY and seen.frame == frame
        stranger = blue.carried(blue.mirrored(frame), "203.0.113.7")
        engine.process_one(stranger, "underlay")
        (seen,) = all_seen(engine)
        assert seen.reason is Reason.UNKNOWN_VTEP and seen.frame == stranger
        assert seen.in_port == "underlay"


@pytest.mark.parametrize("source", ["203.0.113.7", "2001:db8::77"])
def test_what_a_socket_gave_is_seen_with_its_checksums(engine: Engine, source: str) -> None:
    """Its headers are made up without; traced again, the frame is dropped for the same reason."""
    engine.observe("drop")
    frame = blue.carried(blue.mirrored(blue.web(OUT)), source)
    at = 24 if ":" not in source else 60  # of the IPv4 header, or of UDP over IPv6
    bare = blue.patched(frame, at, b"\0\0")
    outcome = engine.process_one(bare, "underlay", flags=lib.DP_OUTER_CHECKED)
    (seen,) = all_seen(engine)
    assert seen.reason is outcome.reason is Reason.UNKNOWN_VTEP
    assert (
        seen.frame != bare and seen.frame[:at] + seen.frame[at + 2 :] == bare[:at] + bare[at + 2 :]
    )
    assert engine.trace(seen.frame, "underlay").reason is Reason.UNKNOWN_VTEP


def test_a_frame_answered_by_an_icmp_error_is_seen_as_it_came(engine: Engine) -> None:
    engine.observe("drop", "tx")
    frame = blue.web("udp 10.1.0.2:1000 > 10.2.0.9:53 ttl 1")
    outcome = engine.process_one(frame, "blue/web")
    assert outcome.port == "blue/web" and outcome.frame != frame
    drop, told = all_seen(engine)
    assert drop.frame == frame and drop.reason is outcome.reason
    assert told.frame == outcome.frame and told.out_port == "blue/web"


def test_flows_end_with_their_counters(engine: Engine) -> None:
    engine.observe("end")
    frame = blue.web(OUT)
    for _ in range(3):
        engine.process_one(frame, "blue/web", now=0)
    (flow,) = engine.flows()
    assert all_seen(engine) == []
    assert engine.expire(now=10**15) == 1
    (seen,) = all_seen(engine)
    assert seen.flow == flow and seen.flow.packets == (3, 0)
    assert seen.now_ns == 10**15 and seen.rule == flow.rule


def test_a_trace_is_not_seen(engine: Engine) -> None:
    engine.observe(*POINTS)
    for words in (OUT, NOWHERE):
        engine.trace(blue.web(words), "blue/web")
    assert all_seen(engine) == []


def test_frames_are_cut_at_the_snap_length(engine: Engine) -> None:
    engine.observe("rx", "drop", snap=20)
    frame = blue.web(NOWHERE)
    engine.process_one(frame, "blue/web")
    for seen in all_seen(engine):
        assert seen.frame == frame[:20] and seen.length == len(frame)
    engine.observe("end", snap=20)
    engine.process_one(blue.web(OUT), "blue/web", now=0)
    engine.expire(now=10**15)
    assert all_seen(engine)[0].flow is None


def played(engine: Engine, frames: list[tuple[bytes, str]]) -> Any:
    batch = Batch(capacity=len(frames), slot=2048)
    for frame, port in frames:
        batch.add([frame], port)
    return engine.process(batch)


def test_counts_are_those_of_the_engine(engine: Engine) -> None:
    """Whole bursts, hits of the express lane among them."""
    frame, local, nowhere = (blue.web(words) for words in (OUT, LOCAL, NOWHERE))
    back = blue.peer(IN)
    engine.observe(*POINTS)
    frames = [(frame, "blue/web"), (local, "blue/web"), (nowhere, "blue/web"), (back, "underlay")]
    total: Counter[str] = Counter()
    for _ in range(10):
        played(engine, frames * 20)
        total.update(s.point for s in all_seen(engine))
    stats = engine.stats()
    assert total["rx"] == stats.totals["rx"] == 800
    assert total["drop"] == stats.totals["dropped"] == 200
    assert total["tx"] == stats.totals["forwarded"] + stats.totals["originated"]
    assert total["encap"] == total["decap"] == 200
    assert total["new"] == stats.totals["flows"] == 2


def test_what_finds_no_room_is_counted(engine: Engine) -> None:
    engine.observe("rx")
    frames = [(blue.web(OUT + " len 1400"), "blue/web")] * 250
    for _ in range(40):
        played(engine, frames)
    seen, lost = engine.seen()
    found = len(seen)
    while seen:
        seen, more = engine.seen()
        assert more == 0
        found += len(seen)
    assert lost > 0 and found + lost == engine.stats().totals["rx"] == 10_000
    played(engine, frames[:3])
    assert len(all_seen(engine)) == 3


def test_the_ring_wraps(engine: Engine) -> None:
    """Records of all sizes, taken now and then, come out in order and whole."""
    engine.observe("rx")
    frames = [blue.web(f"{OUT} len {i * 37 % 1400}") for i in range(200)]
    sent: list[bytes] = []
    got: list[bytes] = []
    for i in range(30_000):
        sent.append(frames[i % len(frames)])
        engine.process_one(sent[i], "blue/web")
        if i % 997 == 0:
            got += [s.frame for s in all_seen(engine)]
    while seen := all_seen(engine):
        got += [s.frame for s in seen]
    assert got == sent


def test_nothing_is_seen_after_the_end(engine: Engine) -> None:
    engine.observe("rx")
    engine.observe()
    engine.process_one(blue.web(OUT), "blue/web")
    assert all_seen(engine) == []


def test_bad_arguments_are_refused(engine: Engine) -> None:
    with pytest.raises(DataplaneError, match="no point 'rxx'"):
        engine.observe("rxx")
    with pytest.raises(EngineError):
        engine.observe("rx", snap=1 << 20)
    with pytest.raises((OverflowError, EngineError)):
        engine.observe("rx", snap=-1)
