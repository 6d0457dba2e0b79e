"""Tenants that look alike meet nothing of each other: alone or interleaved, the same comes out.

Two networks with the same addresses, MACs and flow ids run the traces that Hypothesis draws: each
alone on a node, then both interleaved. What leaves must be the same, byte for byte.
"""

from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.address import Vni
from dataplane.defaults import resolve
from dataplane.model import Node, OutboundNat, PortRange, Tap
from dataplane.packet import build, parse
from dataplane.reasons import Verdict
from tests import blue
from tests.reference.build import error_about, reply_to

RED = blue.VNI ^ 0x800000
VNIS = {"blue": blue.VNI, "red": RED}
VIPS = {"blue": "198.51.100.1", "red": "198.51.100.2"}  # outside they cannot look alike


def policy() -> Node:
    """Both tenants; they differ in name, VNI and NAT address only."""
    node = blue.node()
    made = []
    for name, vni in VNIS.items():
        network = node.networks[0]
        nat = OutboundNat(vip=ip_address(VIPS[name]), ports=PortRange(2000, 2007))
        endpoints = tuple(
            replace(e, tap=Tap(name=f"{name}-{e.name}"), acls=ACLS) for e in network.endpoints
        )
        fields = {"name": name, "vni": Vni(vni), "outbound_nat": nat, "endpoints": endpoints}
        made.append(replace(network, **fields))
    return replace(node, networks=tuple(made))


ACLS = (
    blue.rule("no", "out", "reject", 99, protocol="udp"),
    blue.rule("out", "out", "allow", priority=2000),
    blue.rule("in", "in", "allow", protocol="udp"),
)
PORTS = (7, 8, 99)
PACKETS = [  # from web, to everywhere there is
    *(
        f"udp 10.1.0.2:{p} > {to}:{q}"
        for p in (7, 8)
        for q in PORTS
        for to in ("10.2.0.9", "10.1.0.3")
    ),
    *(
        f"tcp 10.1.0.2:7 > {to}:80 {f}"
        for to in ("10.2.0.9", "203.0.113.9")
        for f in ("syn", "rst")
    ),
    *(f"udp 10.1.0.2:{p} > 203.0.113.9:53" for p in range(10)),
    "icmp 10.1.0.2 > 203.0.113.9 echo id 5",
    "icmp 10.1.0.2 > 10.1.0.1 echo id 5",
    "udp [fd00:1::2]:7 > [fd00:6::9]:53",
    "udp 10.1.0.2:7 > 10.2.0.9:53 ttl 1",
    "udp 10.1.0.2:7 > 10.2.0.9:53 len 1500 df",
    "udp 10.1.0.2:7 > 10.2.0.9:53 mf len 24",
    "ip 17 10.1.0.2 > 10.2.0.9 frag 32 len 24",
    "arp who-has 10.1.0.3 tell 10.1.0.2",
    "arp who-has 10.1.0.99 tell 10.1.0.2",
]
INCOMING = [
    *(f"udp 10.2.0.9:{p} > 10.1.0.2:{q}" for p in (53, 99) for q in PORTS),
    "tcp 10.2.0.9:80 > 10.1.0.2:7 syn ack",
    "udp 10.3.0.9:53 > 10.1.0.2:7",
]


@dataclass(frozen=True)
class Step:
    """What a tenant does: `what` is a packet's words, or answer, complain, wait, expire."""

    what: str
    back: int = 0  # answer, complain: to the frame forwarded so many before


steps = st.one_of(
    st.builds(Step, st.sampled_from(PACKETS)),
    st.builds(Step, st.sampled_from(INCOMING)),
    st.builds(Step, st.sampled_from(["answer", "answer", "complain"]), st.integers(0, 3)),
)
traces = st.lists(steps, min_size=1, max_size=25)


class Tenant:
    """Plays a trace into an engine that others may use meanwhile, and keeps what came of it."""

    def __init__(self, engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.forwarded: list[tuple[str, bytes]] = []
        self.seen: list[tuple] = []

    def play(self, step: Step) -> None:
        made = self._frame(step)
        if made is None:
            return
        port, frame = made
        outcome = self.engine.process_one(frame, port)
        leaves = outcome.frame if outcome.port else b""
        self.seen.append((outcome.verdict, outcome.reason, outcome.port, leaves, outcome.rule))
        if outcome.verdict is Verdict.FORWARD:
            self.forwarded.append((outcome.port or "", outcome.frame))

    def _frame(self, step: Step) -> tuple[str, bytes] | None:
        if step.what in PACKETS:
            return f"{self.name}/web", build(parse(step.what), blue.WEB, blue.DR)
        if step.what in INCOMING:
            return "underlay", self._carried(build(parse(step.what), blue.PEER, blue.DR))
        if step.back >= len(self.forwarded):
            return None
        port, frame = self.forwarded[-1 - step.back]
        make = partial(reply_to) if step.what == "answer" else error_about
        inner = make(blue.inner_of(frame) if port == "underlay" else frame)
        if inner is None:
            return None
        if port == "underlay":
            source = blue.VTEP6 if frame[12:14] == b"\x86\xdd" else blue.VTEP
            return port, self._carried(blue.DR.packed + inner[6:], source)
        return port, inner if port == "host" else blue.DR.packed + inner[6:]

    def _carried(self, inner: bytes, source: str = blue.VTEP) -> bytes:
        return blue.carried(inner, source, vni=VNIS[self.name])


POLICY = policy()


def played(turns: list[tuple[str, Step]]) -> dict[str, list[tuple]]:
    """What each tenant saw."""
    with blue.engine(POLICY, max_flows=256, max_bindings=64) as engine:
        tenants = {name: Tenant(engine, name) for name in VNIS}
        for name, step in turns:
            tenants[name].play(step)
        return {name: tenant.seen for name, tenant in tenants.items()}


@pytest.mark.conformance("T17", "V3")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(traces, traces, st.randoms(use_true_random=False))
def test_alone_is_interleaved(one: list[Step], other: list[Step], draw) -> None:
    alone = {
        name: played([(name, step) for step in trace])[name]
        for name, trace in (("blue", one), ("red", other))
    }
    rest = {"blue": list(one), "red": list(other)}
    order = draw.sample([*["blue"] * len(one), *["red"] * len(other)], len(one) + len(other))
    assert played([(name, rest[name].pop(0)) for name in order]) == alone


@pytest.mark.conformance("T17")
def test_the_same_trace_in_both_differs_by_what_names_the_tenant() -> None:
    """The tenants do look alike: in step, only VNI, NAT address, chosen ports and names differ."""
    trace = [Step(p) for p in PACKETS + INCOMING]
    seen = played([(name, step) for step in trace for name in VNIS])
    assert len(seen["blue"]) == len(seen["red"]) == len(trace)
    for (verdict, reason, port, frame, _), (verdict2, reason2, port2, frame2, _) in zip(
        seen["blue"], seen["red"], strict=True
    ):
        assert (verdict, reason, len(frame)) == (verdict2, reason2, len(frame2))
        assert (port or "").replace("blue", "red") == (port2 or "")
        if port == "underlay" and frame[12:14] == b"\x08\0":
            assert frame[46:49] == blue.VNI.to_bytes(3) and frame2[46:49] == RED.to_bytes(3)
            assert blue.inner_of(frame) == blue.inner_of(frame2)


@pytest.mark.conformance("T17")
def test_no_packet_reaches_the_other_tenant() -> None:
    """Nor does the answer of one find the flow of the other: its VNI is another."""
    resolved = resolve(POLICY)
    assert {e.mac for n in resolved.networks for e in n.endpoints} == {blue.WEB, blue.DB}
    with blue.engine(POLICY) as engine:
        for words in ("udp 10.1.0.2:7 > 10.1.0.3:9", "tcp 10.1.0.2:7 > 10.2.0.9:80 syn"):
            assert engine.process_one(blue.web(words), "blue/web").verdict is Verdict.FORWARD
        outcome = engine.process_one(blue.web("udp 10.1.0.2:7 > 10.1.0.3:9"), "red/web")
        assert outcome.port == "red/db"
        answer = blue.peer("tcp 10.2.0.9:80 > 10.1.0.2:7 syn ack", vni=RED)
        assert blue.dropped(engine.process_one(answer, "underlay")) == "acl_deny"
        answer = blue.peer("tcp 10.2.0.9:80 > 10.1.0.2:7 syn ack", vni=blue.VNI)
        assert engine.process_one(answer, "underlay").port == "blue/web"
