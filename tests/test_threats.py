"""Attacks of a tenant, of time and of the network itself; those of the wire are in test_wire.py."""

import os
import threading
from ipaddress import ip_address

import pytest

from dataplane._engine import ffi
from dataplane.address import Mac
from dataplane.batch import Batch
from dataplane.packet import build, parse
from dataplane.reasons import Reason, Verdict
from tests import blue
from tests.blue import ETH, dropped, forwarded, inner_of, patched, peer, web

OUT = "udp 10.1.0.2:7 > 10.2.0.9:53"


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


# ---- the overlay, forged from inside -----------------------------------------------------------


@pytest.mark.conformance("T2")
@pytest.mark.parametrize("vtep", [blue.OURS, blue.VTEP, "192.0.2.3"])
def test_a_workload_cannot_speak_to_a_vtep_without_nat(vtep: str) -> None:
    with blue.engine(blue.node(outbound_nat=None)) as engine:
        frame = web(f"udp 10.1.0.2:49152 > {vtep}:4789 len 80")
        assert dropped(engine.process_one(frame, "web")) == "no_route"


@pytest.mark.conformance("T2")
@pytest.mark.parametrize("target", [blue.OURS, blue.VTEP, "192.0.2.3", "203.0.113.9"])
@pytest.mark.parametrize("port", [4789, 8472])
def test_a_workload_cannot_speak_to_a_vtep_through_nat(target: str, port: int) -> None:
    """Masqueraded it would come from a provider address that is on the other VTEP's list."""
    with blue.engine(blue.node(underlay={"port": port})) as engine:
        for tail in ("len 80", "len 80 mf", "len 0"):
            frame = web(f"udp 10.1.0.2:49152 > {target}:{port} {tail}")
            assert dropped(engine.process_one(frame, "web")) == "nat_vxlan"
        for words in (f"udp 10.1.0.2:7 > {target}:{port ^ 1}", f"tcp 10.1.0.2:7 > {target}:{port}"):
            assert engine.process_one(web(words), "web").port == "host"
        inside = web(f"udp 10.1.0.2:7 > 10.2.0.9:{port}")  # a tunnel of their own, in the overlay
        assert engine.process_one(inside, "web").port == "underlay"


@pytest.mark.conformance("T2")
def test_a_flow_that_was_let_out_ends_when_its_port_becomes_vxlans(engine) -> None:
    frame = web("udp 10.1.0.2:7 > 192.0.2.2:8472")
    assert engine.process_one(frame, "web").port == "host"
    engine.commit(blue.node(underlay={"port": 8472}))
    assert dropped(engine.process_one(frame, "web")) == "nat_vxlan"


# ---- spoofing ----------------------------------------------------------------------------------

TAG = b"\x81\0\0\5"
SPOOFED = {  # what web may not say: what it may, and why
    "udp 10.1.0.3:7 > 10.2.0.9:53": ("udp 10.1.0.2:7 > 10.2.0.9:53", "guard_ip"),
    "udp 10.1.0.1:7 > 10.2.0.9:53": ("udp 10.1.0.2:8 > 10.2.0.9:53", "guard_ip"),
    "tcp 10.2.0.9:7 > 10.2.0.8:53": ("tcp 10.1.0.2:7 > 10.2.0.8:53", "guard_ip"),
    "icmp 192.0.2.2 > 10.2.0.9 echo": ("icmp 10.1.0.2 > 10.2.0.9 echo", "guard_ip"),
    "udp [fd00:1::3]:7 > [fd00:2::9]:53": ("udp [fd00:1::2]:7 > [fd00:2::9]:53", "guard_ip"),
    **{
        f"{kind} {forged} {rest}": (f"{kind} {own} {rest}", "guard_ip")
        for kind, forged, own, rest in (
            ("udp", "10.1.0.3:7", "10.1.0.2:7", "> 10.2.0.9:53 mf len 24"),
            ("udp", "[fd00:1::3]:7", "[fd00:1::2]:7", "> [fd00:2::9]:53 frag 0 len 24"),
        )
    },
    **{
        f"udp {ours}:{forged} > {rest}": (f"udp {ours}:{own} > {rest}", "guard_dhcp")
        for ours, forged, own, rest in (
            ("10.1.0.2", 67, 68, "10.2.0.9:68"),
            ("[fd00:1::2]", 547, 546, "[fd00:2::9]:546"),
            ("[fd00:1::2]", 547, 67, "[fd00:2::9]:546 frag 0 len 24"),
        )
    },
}


@pytest.mark.conformance("T3")
@pytest.mark.parametrize("forged", SPOOFED)
def test_what_an_endpoint_may_say_and_what_not(engine, forged: str) -> None:
    """To the router and to a neighbour, and not inside a VLAN tag either."""
    honest, reason = SPOOFED[forged]
    assert engine.process_one(web(honest), "web").port == "underlay"
    for dmac in (blue.DR, blue.DB):
        frame = web(forged, dmac)
        assert dropped(engine.process_one(frame, "web")) == reason
        assert dropped(engine.process_one(frame[:12] + TAG + frame[12:], "web")) == "vlan_tagged"


@pytest.mark.conformance("T3")
def test_an_address_behind_extension_headers_is_looked_at_too(engine) -> None:
    """Up to eight headers; the DHCP port behind them is found."""
    for count in range(8):
        for port, src, reason in ((7, 3, "guard_ip"), (547, 2, "guard_dhcp"), (7, 2, None)):
            frame = extended(f"udp [fd00:1::{src}]:{port} > [fd00:2::9]:53 len 4", count)
            outcome = engine.process_one(frame, "web")
            assert outcome.port == "underlay" if reason is None else dropped(outcome) == reason
    assert dropped(engine.process_one(extended(f"{OUT6} len 4", 9), "web")) == "bad_extension"


OUT6 = "udp [fd00:1::2]:7 > [fd00:2::9]:53"


def extended(words: str, count: int) -> bytes:
    """The packet behind so many destination options headers."""
    frame = web(words)
    last = frame[20]
    chain = b"".join(
        bytes([60 if n < count - 1 else last, 0, 1, 4]) + bytes(4) for n in range(count)
    )
    length = int.from_bytes(frame[18:20]) + len(chain)
    head = frame[:18] + length.to_bytes(2) + bytes([60 if count else last]) + frame[21:54]
    return head + chain + frame[54:]


@pytest.mark.conformance("T3")
def test_the_source_mac_is_the_endpoints(engine) -> None:
    """For every packet, of a known flow too."""
    assert engine.process_one(web(OUT), "web").port == "underlay"
    for mac in (blue.DB, blue.DR, blue.STRANGER):
        frame = patched(web(OUT), 6, mac.packed)
        assert dropped(engine.process_one(frame, "web")) == "guard_mac"


# ---- loops -------------------------------------------------------------------------------------


@pytest.mark.conformance("T13")
def test_two_nodes_that_route_to_each_other_do_not_loop() -> None:
    """Split horizon: ten pings are ten packets on the wire, and ten drops."""
    loop = "10.9.0.0/16"
    here = blue.node(remote_subnets=(blue.remote(loop, "192.0.2.2"),))
    there = blue.node(
        underlay={"address": ip_address("192.0.2.2")},
        remote_subnets=(blue.remote(loop, blue.OURS), blue.remote("10.1.0.2/32", blue.OURS)),
        endpoints=(blue.endpoint("db", 3, blue.DB),),
    )
    with blue.engine(here) as a, blue.engine(there) as b:
        for seq in range(10):
            frame = web(f"icmp 10.1.0.2 > 10.9.0.9 echo seq {seq} len 56")
            outer = forwarded(a.process_one(frame, "web"), "underlay")
            assert len(outer) == len(frame) + 50
            assert dropped(b.process_one(outer, "underlay")) == "not_local"
        assert b.stats().totals["forwarded"] == b.stats().totals["originated"] == 0


@pytest.mark.conformance("T1", "T14")
@pytest.mark.parametrize("smac", ["02:00:00:00:00:02", "02:00:00:00:00:01", "01:00:5e:00:00:01"])
def test_inner_source_macs_are_believed_by_nobody(engine, smac: str) -> None:
    """No table learns them: the endpoint's own, the router's, a group's; a flood of them; one that
    moves from the TAP to the tunnel. What is delivered leaves with the router's."""
    words = "udp 10.2.0.9:53 > 10.1.0.2:7"
    wanted = forwarded(engine.process_one(peer(words), "underlay"), "blue/web")
    frame = blue.carried(build(parse(words), Mac(smac), blue.DR))
    assert forwarded(engine.process_one(frame, "underlay"), "blue/web") == wanted
    for n in range(1000):
        some = Mac.from_bytes(b"\2\6" + n.to_bytes(4))
        engine.process_one(blue.carried(build(parse(words), some, blue.DR)), "underlay")
    before = engine.stats().totals["flows"]
    sent = forwarded(engine.process_one(web(OUT), "web"), "underlay")
    assert inner_of(sent)[:12] == blue.PEER.packed + blue.DR.packed
    assert engine.stats().totals["flows"] == before


@pytest.mark.conformance("T13")
def test_a_vtep_inside_its_own_tunnel_is_not_nested(engine) -> None:
    """What is meant for the underlay goes there; no route inside is asked about it."""
    engine.commit(blue.node(remote_subnets=(blue.remote("192.0.2.0/24"), *blue.REMOTES)))
    outer = forwarded(engine.process_one(web(OUT), "web"), "underlay")
    assert len(outer) == len(web(OUT)) + 50 and outer[30:34] == ip_address(blue.VTEP).packed
    inside = engine.process_one(web("udp 10.1.0.2:7 > 192.0.2.2:53"), "web")
    assert len(inside.frame) == len(web(OUT)) + 50
    back = peer("udp 192.0.2.2:53 > 10.2.0.9:7")
    assert dropped(engine.process_one(back, "underlay")) == "not_local"


@pytest.mark.conformance("T13")
def test_every_routed_hop_costs_a_ttl(engine) -> None:
    """A packet that came back again and again would end."""
    frame, hops = web(f"{OUT} ttl 8"), 0
    while (outcome := engine.process_one(frame, "web")).verdict is Verdict.FORWARD:
        inner = inner_of(outcome.frame)
        frame, hops = blue.DR.packed + blue.WEB.packed + inner[12:], hops + 1
    assert hops == 7 and outcome.reason is Reason["TTL_EXPIRED"]


# ---- time --------------------------------------------------------------------------------------

SECOND = 10**9
STARTS = [0, 2**32 - 1, 2**32 * 10**6 - 5 * SECOND, 2**63 - 5 * SECOND, 2**64 - 1000 * SECOND]


@pytest.mark.conformance("T19")
@pytest.mark.parametrize("start", STARTS)
def test_flows_live_as_long_at_any_time(engine, start: int) -> None:
    """Over the wrap of 32-bit milliseconds, and up to the end of 64-bit nanoseconds."""
    assert engine.process_one(web(OUT), "web", now=start).port == "underlay"
    assert engine.expire(now=start + 300 * SECOND) == 0
    answer = peer("udp 10.2.0.9:53 > 10.1.0.2:7")
    assert engine.process_one(answer, "underlay", now=start + 300 * SECOND).port == "blue/web"
    assert engine.expire(now=start + 600 * SECOND) == 0
    assert engine.expire(now=start + 600 * SECOND + 1) == 1


@pytest.mark.conformance("T19")
def test_a_clock_that_steps_back_is_not_followed(engine) -> None:
    """An earlier time counts as the latest: nothing expires early, nothing lives for ever."""
    assert engine.process_one(web(OUT), "web", now=1000 * SECOND).port == "underlay"
    for now in (999 * SECOND, 0):
        assert engine.process_one(web(OUT), "web", now=now).port == "underlay"
        assert engine.expire(now=now) == 0
    (flow,) = engine.flows()
    assert flow.last_ns == 1000 * SECOND
    assert engine.expire(now=1301 * SECOND) == 1


@pytest.mark.conformance("T19")
def test_one_sweep_finds_all_that_is_idle() -> None:
    """However it is cut into budgets: the table's size is looked at, and no more."""
    with blue.engine(max_flows=1000, max_bindings=8) as engine:
        for sport in range(1000, 2000):
            frame = web(f"udp 10.1.0.2:{sport} > 10.2.0.9:53")
            assert engine.process_one(frame, "web", now=0).port == "underlay"
        gone = sum(engine.expire(budget=100, now=301 * SECOND) for _ in range(10))
        assert gone == 1000 and engine.stats().totals["flows"] == 0


@pytest.mark.conformance("T19")
@pytest.mark.parametrize("struct", ["dp_totals", "dp_port_counters"])
def test_counters_are_of_64_bits(struct: str) -> None:
    fields = ffi.typeof(f"struct {struct}").fields
    assert {field.type.cname for _, field in fields} == {"uint64_t"}


# ---- the boundary ------------------------------------------------------------------------------


@pytest.mark.conformance("T21")
def test_a_fork_has_an_engine_of_its_own(engine) -> None:
    """The child forwards, closes and ends; the parent's flows and counters know nothing of it."""
    engine.process_one(web(OUT), "web")
    before = engine.stats()
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = engine.process_one(web(f"{OUT} ttl 9"), "web").port == "underlay"
            good = good and engine.commit(blue.node(mtu=1400)) == 2 and len(engine.flows()) == 1
            engine.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert engine.stats() == before and engine.generation == 1
    assert engine.process_one(web(OUT), "web").port == "underlay"


@pytest.mark.conformance("T21")
def test_frames_are_kept_alive_as_long_as_c_looks_at_them(engine) -> None:
    """A batch that nobody else holds, processed while another thread makes garbage."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            Batch(capacity=64)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            result = engine.process(Batch(capacity=64).load([web(OUT)] * 64, "web"))
            assert (result.verdict == Verdict.FORWARD).all()
            assert inner_of(bytes(result.frame(63)))[ETH + 20 :] == web(OUT)[ETH + 20 :]
    finally:
        stop.set()
        thread.join()


# ---- hidden hosts ------------------------------------------------------------------------------


@pytest.mark.conformance("T1")
def test_an_inner_frame_to_another_mac_is_not_delivered(engine) -> None:
    """The tunnel brings frames to the router or to the endpoint that they name."""
    for mac in (blue.STRANGER, blue.PEER, blue.DB):
        inner = build(parse("udp 10.2.0.9:53 > 10.1.0.2:7"), blue.PEER, mac)
        assert dropped(engine.process_one(blue.carried(inner), "underlay")) == "not_our_mac"
