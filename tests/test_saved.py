"""Flows and bindings saved by one engine and restored by another: packets go on as before."""

import random
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.model import Node
from dataplane.reasons import Verdict
from dataplane.saved import MAGIC, Saved
from tests import blue

SECOND = 1_000_000_000
OUTSIDE = "203.0.113.9"


def successor(engine: Engine, policy: Node | None = None, **options: Any) -> Engine:
    """What comes after it, through bytes, under a key of its own."""
    octets = engine.save().to_bytes()
    made = Engine(
        max_flows=1024,
        max_bindings=1024,
        generation=engine.generation - 1,
        ports=dict(engine.ids.ports),
        **options,
    )
    made.commit(policy or engine.node)
    made.restore(Saved.from_bytes(octets), now=SECOND)
    return made


def sent(engine: Engine, words: str, at: str = "blue/web", now: int = 0) -> Any:
    frame = {"blue/web": blue.web, "blue/db": blue.db, "host": blue.outside}[at](words)
    return engine.process_one(frame, at, now=now)


def told(engine: Engine) -> list[tuple[Any, ...]]:
    """What a flow is, apart from what the policy says of it."""
    return sorted(
        (
            *(f.vni, f.protocol, str(f.src), f.sport, str(f.dst), f.dport),
            *(str(f.new_src), f.new_sport, str(f.new_dst), f.new_dport, f.in_port),
            *(f.packets, f.bytes, f.last_ns, f.replied, f.half_open, f.closing),
        )
        for f in engine.flows()
    )


def played(seed: int) -> Engine:
    """An engine with flows of all kinds: local, encapsulated, translated, both families."""
    engine, dice = blue.engine(), random.Random(seed)
    words = [
        "tcp 10.1.0.2:{n} > 10.2.0.{m}:80 syn",
        "udp 10.1.0.2:{n} > 10.1.0.3:53",
        "udp 10.1.0.2:{n} > " + OUTSIDE + ":{m}",
        "tcp 10.1.0.2:{n} > " + OUTSIDE + ":443 syn",
        "icmp 10.1.0.2 > " + OUTSIDE + " echo id {n}",
        "udp [fd00:1::2]:{n} > [fd00:2::{m}]:53",
    ]
    for _ in range(60):
        text = dice.choice(words).format(n=dice.randrange(1000, 1040), m=dice.randrange(1, 20))
        out = sent(engine, text, now=dice.randrange(SECOND))
        if out.port == "host" and dice.random() < 0.5:
            engine.process_one(blue.mirrored(out.frame), "host", now=SECOND)
    return engine


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_flows_are_as_they_were(seed: int) -> None:
    with played(seed) as engine:
        before = told(engine)
        with successor(engine) as made:
            assert told(made) == before
            totals = made.stats().totals
            assert totals["flows"] == len(before)
            assert totals["bindings"] == engine.stats().totals["bindings"]
            with successor(made) as third:
                assert told(third) == before


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_every_flow_goes_on(seed: int) -> None:
    """The next packet of each, either way, leaves as it would have left without a restart."""
    with played(seed) as engine, successor(engine) as made:
        now = 2 * SECOND
        for flow in engine.flows():
            if flow.protocol == 17 and flow.out_port == "host":
                back = f"udp {flow.new_dst}:{flow.new_dport} > {flow.new_src}:{flow.new_sport}"
                frame, port = blue.outside(back), "host"
            elif flow.protocol in (6, 17):
                name = {6: "tcp", 17: "udp"}[flow.protocol]
                sides = ((flow.src, flow.sport), (flow.dst, flow.dport))
                ends = [f"[{a}]:{p}" if a.version == 6 else f"{a}:{p}" for a, p in sides]
                frame, port = blue.web(f"{name} {ends[0]} > {ends[1]}"), "blue/web"
            else:
                continue
            was = engine.process_one(frame, port, now=now)
            out = made.process_one(frame, port, now=now)
            assert (out.verdict, out.reason, out.port) == (was.verdict, was.reason, was.port)
            inner = 50 if out.port == "underlay" else 0  # its source port is of the engine's key
            assert out.frame[inner:] == was.frame[inner:]
        assert made.stats().totals["misses"] == 0
        assert made.stats().totals["flows"] == engine.stats().totals["flows"]


def test_translations_outlive_the_engine() -> None:
    with blue.engine() as engine:
        first = sent(engine, f"udp 10.1.0.2:1000 > {OUTSIDE}:53")
        with successor(engine) as made:
            again = sent(made, f"udp 10.1.0.2:1000 > {OUTSIDE}:53", now=1)
            assert again.frame == first.frame
            other = sent(made, f"udp 10.1.0.2:1000 > {OUTSIDE}:54", now=1)
            assert other.frame[34:36] == first.frame[34:36], "one outside port for all remotes"
        fresh = Engine(max_flows=64, max_bindings=64)
        fresh.commit(blue.node())
        unknown = sent(fresh, f"udp 10.1.0.2:1000 > {OUTSIDE}:53", now=1)
        assert unknown.verdict is Verdict.FORWARD
        fresh.close()


def test_a_new_policy_has_the_last_word() -> None:
    rule = blue.rule("no-dns", "out", "block", 53, protocol="udp")
    with blue.engine() as engine:
        sent(engine, "udp 10.1.0.2:1000 > 10.2.0.9:53")
        sent(engine, "udp 10.1.0.2:1000 > 10.2.0.9:54")
        with successor(
            engine, blue.node(acls=(rule,), default_out=None) if False else None
        ) as made:
            made.commit(blue.node(acls=(rule, blue.rule("rest", "out", "allow"))))
            assert sent(made, "udp 10.1.0.2:1000 > 10.2.0.9:53", now=1).rule == "blue/no-dns"
            assert sent(made, "udp 10.1.0.2:1000 > 10.2.0.9:54", now=1).verdict is Verdict.FORWARD
            assert made.stats().totals["flows"] == 1


# ---- bytes of others ---------------------------------------------------------------------------


def test_other_formats_are_refused() -> None:
    with played(1) as engine:
        octets = engine.save().to_bytes()
    assert octets.startswith(MAGIC)
    for bad in (b"", octets[:20], octets[:-1], b"x" + octets[1:]):
        with pytest.raises(DataplaneError):
            Saved.from_bytes(bad)
    other = octets[:8] + struct.pack("<I", 99) + octets[12:]
    with pytest.raises(DataplaneError, match="another format"):
        Saved.from_bytes(other)
    many = octets[:24] + struct.pack("<QQ", 1 << 60, 1) + octets[40:]
    with pytest.raises(DataplaneError, match="cut short"):
        Saved.from_bytes(many)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_damaged_records_do_no_harm(seed: int) -> None:
    """What comes in is bounded, counters add up, and packets are still judged."""
    dice = random.Random(seed)
    with played(2) as engine:
        octets = bytearray(engine.save().to_bytes())
        for _ in range(dice.randrange(1, 200)):
            octets[dice.randrange(40, len(octets))] = dice.randrange(256)
        made = Engine(max_flows=32, max_bindings=16, ports=dict(engine.ids.ports))
        made.commit(blue.node())
        count = made.restore(Saved.from_bytes(bytes(octets)), now=SECOND)
        totals = made.stats().totals
        assert count == totals["flows"] <= 32 and totals["bindings"] <= 16
        for n in range(40):
            sent(made, f"udp 10.1.0.2:{1000 + n} > {OUTSIDE}:53", now=2 * SECOND)
        made.flows()
        made.expire(now=1 << 62)
        assert made.stats().totals["flows"] == 0
        made.close()
