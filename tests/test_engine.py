"""The engine as an embedder meets it: batches, policy changes, names, time, threads."""

import threading
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from dataplane import (
    Batch,
    BusyError,
    DataplaneError,
    DocumentError,
    Engine,
    EngineError,
    PortError,
    Reason,
    SimClock,
    Timers,
    Verdict,
)
from dataplane._engine import ffi, lib
from dataplane.address import Mac, Vni
from dataplane.defaults import dr_mac, endpoint_mac
from dataplane.model import (
    Acl,
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet import build, describe, parse, vxlan
from tests.reference.build import reply_to
from tests.reference.checksum import checksum, fold, pseudo_header, words

REMOTE_MAC = Mac("02:00:00:00:0b:00")
WEB, DB, LOG = (
    Endpoint(name=name, addresses=(ip_address(address),))
    for name, address in (("web", "10.1.1.2"), ("db", "10.1.1.3"), ("log", "10.1.1.4"))
)


def remote(prefix: str, provider: str) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=ip_network(prefix), provider_address=ip_address(provider), dr_mac=REMOTE_MAC
    )


def node(*endpoints: Endpoint, **fields) -> Node:
    blue = {
        "name": "blue",
        "vni": Vni(4096),
        "prefixes": (ip_network("10.1.0.0/16"),),
        "remote_subnets": (remote("10.1.2.0/24", "192.0.2.2"),),
        "endpoints": endpoints or (WEB, DB),
    }
    return Node(
        name="a",
        underlay=Underlay(address=ip_address("192.0.2.1")),
        host_port=HostPort(
            address=ip_address("198.51.100.1"),
            peer=ip_address("198.51.100.2"),
            tap=Tap(name="dp0"),
        ),
        networks=(Network(**blue | fields),),
    )


def block(name: str, port: int, **fields) -> Acl:
    return Acl(
        name=name,
        direction="out",
        action="block",
        protocol="udp",
        remote_ports=(PortRange(port, port),),
        **fields,
    )


def sent(words: str, endpoint: Endpoint = WEB, policy: Node | None = None) -> bytes:
    policy = policy or node()
    return build(parse(words), endpoint_mac(endpoint), dr_mac(policy.networks[0], policy))


def from_remote(words: str, provider: str = "192.0.2.2") -> bytes:
    policy = node()
    inner = build(parse(words), REMOTE_MAC, dr_mac(policy.networks[0], policy))
    return vxlan(
        inner,
        src=ip_address(provider),
        dst=policy.underlay.address,
        vni=4096,
        smac="02:00:00:00:00:01",
        dmac="02:00:00:00:00:02",
    )


OUT = "udp 10.1.1.2:7 > 10.1.2.9:53"


@pytest.fixture
def engine():
    with Engine(max_flows=1024, max_bindings=1024) as made:
        made.commit(node())
        yield made


# ---- frames ------------------------------------------------------------------------------------


def test_one_frame(engine):
    outcome = engine.process_one(sent(OUT), "web")
    assert (outcome.verdict, outcome.port) == (Verdict.FORWARD, "underlay")
    assert describe(outcome.frame)["outer"]["dst"] == "192.0.2.2"
    assert (
        engine.process_one(from_remote("udp 10.1.2.9:53 > 10.1.1.2:7"), "underlay").port
        == "blue/web"
    )


def test_a_batch_is_rewritten_in_place(engine):
    batch = Batch(capacity=4, slot=512)
    frames = [
        sent(OUT),
        sent("udp 10.1.1.2:7 > 10.1.1.3:53"),
        b"short",
        sent("udp 10.1.1.9:7 > 10.1.2.9:53"),
    ]
    result = engine.process(batch.load(frames, port="web"))
    assert result.verdict.tolist() == [Verdict.FORWARD] * 2 + [Verdict.DROP] * 2
    assert result.index[result.verdict == Verdict.DROP].tolist() == [2, 3]
    assert [result.reason_of(i) for i in (2, 3)] == [Reason["SHORT_ETHERNET"], Reason["GUARD_IP"]]
    assert result.to("underlay").tolist() == [0] and result.to("db").tolist() == [1]
    assert len(result.frame(0)) == len(frames[0]) + 50
    assert result.missed.tolist() == [True, True, False, True]
    start = result.frame(0).obj
    assert start is not None and len(result) == 4
    assert batch.arena.ctypes.data % 64 == 0 and int(batch.frames["off"][0]) == 128 - 50


def test_ports_may_be_mixed_in_a_batch(engine):
    batch = (
        Batch(capacity=2)
        .load([sent(OUT)], "web")
        .add([sent("udp 10.1.1.3:1 > 10.1.1.2:2", DB)], "blue/db")
    )
    assert engine.process(batch).verdict.tolist() == [Verdict.FORWARD] * 2


def test_a_result_dies_with_its_batch(engine):
    batch = Batch(capacity=2)
    old = engine.process(batch.load([sent(OUT)], "web"))
    engine.process(batch.load([sent(OUT)], "web"))
    with pytest.raises(DataplaneError, match="no longer valid"):
        old.frame(0)


def test_a_result_is_shown_in_few_words(engine):
    batch = Batch(capacity=1)
    old = engine.process(batch.load([sent(OUT)], "web"))
    assert len(repr(old)) < 100
    batch.clear()
    assert len(repr(old)) < 100


@pytest.mark.parametrize("now", [-1, 1 << 64, "soon"])
def test_a_call_that_fails_leaves_the_worker_free(engine, now):
    batch = Batch(capacity=1)
    old = engine.process(batch.load([sent(OUT)], "web"))
    with pytest.raises((OverflowError, TypeError)):
        engine.process(batch, now)
    with pytest.raises(DataplaneError, match="no longer valid"):
        _ = old.verdict
    with pytest.raises(PortError):
        engine.process(batch.load([sent(OUT)], "nobody"))
    assert engine.process(batch.load([sent(OUT)], "web")).verdict.tolist() == [Verdict.FORWARD]


def test_what_does_not_fit_in_a_batch_is_refused():
    batch = Batch(capacity=1, slot=256)
    with pytest.raises(ValueError, match="a slot takes 128"):
        batch.load([bytes(129)], 0)
    with pytest.raises(ValueError, match="full"):
        batch.load([b"", b""], 0)
    with pytest.raises(ValueError, match="at least 128"):
        Batch(headroom=64)
    with pytest.raises(ValueError):
        Batch(capacity=1 << 20, slot=1 << 20)


def test_descriptors_out_of_the_arena_are_dropped(engine):
    batch = Batch(capacity=2).load([sent(OUT)], "web")
    batch.frames["off"][0] = 0xFFFFFFF0
    assert engine.process(batch).reason_of(0) is Reason["BAD_DESCRIPTOR"]
    batch.count = 3
    with pytest.raises(ValueError, match="count is 3"):
        engine.process(batch)


def test_unknown_ports_are_named(engine):
    with pytest.raises(PortError, match="blue/db, blue/web, host, underlay"):
        engine.process_one(sent(OUT), "nobody")
    assert engine.process_one(sent(OUT), 77).reason is Reason["PORT_NOT_CONFIGURED"]


def test_scapy_packets_are_taken(engine):
    scapy = pytest.importorskip("scapy.layers.l2")
    assert engine.process_one(scapy.Ether(sent(OUT)), "web").verdict is Verdict.FORWARD


# ---- policy ------------------------------------------------------------------------------------


def test_the_outer_sum_foresees_the_inner_one(engine):
    """Over IPv6 it covers an inner checksum that is still partial (RFC 8200 section 8.1)."""
    over6 = replace(node().underlay, address6=ip_address("2001:db8::1"))
    engine.commit(
        replace(node(remote_subnets=(remote("10.1.2.0/24", "2001:db8::2"),)), underlay=over6)
    )
    whole = bytearray(sent(OUT))
    pseudo = pseudo_header(whole[26:30], whole[30:34], 17, len(whole) - 34)
    partial = whole[:40] + fold(sum(words(pseudo))).to_bytes(2) + whole[42:]
    frame = bytearray(engine.process_one(bytes(partial), "web", flags=lib.DP_CSUM_PARTIAL).frame)
    inner = 14 + 40 + 8 + 8
    frame[inner + 40 : inner + 42] = checksum(frame[inner + 34 :]).to_bytes(2)
    assert frame[inner + 40 : inner + 42] == whole[40:42]
    assert (
        checksum(pseudo_header(frame[22:38], frame[38:54], 17, len(frame) - 54) + frame[54:]) == 0
    )


def test_a_policy_change_reaches_known_flows(engine):
    assert engine.process_one(sent(OUT), "web").generation == 1
    closed = replace(WEB, acls=(block("no-dns", 53),), default_out="allow")
    assert engine.commit(node(closed, DB)) == 2
    outcome = engine.process_one(sent(OUT), "web")
    assert (outcome.reason, outcome.rule, outcome.generation) == (
        Reason["ACL_DENY"],
        "blue/web/no-dns",
        2,
    )
    engine.commit(node())
    assert engine.process_one(sent(OUT), "web").verdict is Verdict.FORWARD


def test_only_what_changed_is_reconciled(engine):
    other = sent("udp 10.1.1.3:7 > 10.1.2.9:53", DB)
    engine.process_one(sent(OUT), "web")
    engine.process_one(other, "db")
    engine.commit(node(replace(WEB, acls=(block("x", 9),), default_out="allow"), DB))
    engine.process_one(other, "db")
    assert engine.stats().totals["reconciled"] == 0
    engine.process_one(sent(OUT), "web")
    assert engine.stats().totals["reconciled"] == 1
    moved = (remote("10.1.2.0/24", "192.0.2.3"),)
    engine.commit(node(remote_subnets=moved))
    assert describe(engine.process_one(other, "db").frame)["outer"]["dst"] == "192.0.2.3"


def test_the_stamp_follows_the_host_port_and_the_pool(engine):
    with_nat = node(outbound_nat=OutboundNat())
    engine.commit(with_nat)
    outside = sent("udp 10.1.1.2:7 > 203.0.113.1:53")
    assert describe(engine.process_one(outside, "web").frame)["src"] == "198.51.100.1"
    engine.commit(node(outbound_nat=OutboundNat(vip=ip_address("198.51.100.77"))))
    assert describe(engine.process_one(outside, "web").frame)["src"] == "198.51.100.77"
    engine.commit(replace(with_nat, host_port=None, networks=node().networks))
    assert engine.process_one(outside, "web").reason is Reason["NO_ROUTE"]


@pytest.mark.conformance("T16")
def test_a_translation_outlives_a_change_that_allows_it(engine):
    outside = sent("udp 10.1.1.2:7 > 203.0.113.1:53")
    engine.commit(node(outbound_nat=OutboundNat()))
    before = describe(engine.process_one(outside, "web").frame)["sport"]
    engine.commit(node(WEB, outbound_nat=OutboundNat()))
    assert describe(engine.process_one(outside, "web").frame)["sport"] == before


def test_flows_to_a_removed_endpoint_end(engine):
    engine.commit(node(WEB, DB, LOG))
    incoming = from_remote("udp 10.1.2.9:53 > 10.1.1.3:7")
    assert engine.process_one(incoming, "underlay").port == "blue/db"
    engine.commit(node(WEB, LOG))
    outcome = engine.process_one(incoming, "underlay")
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason["NO_SUCH_ENDPOINT"])


def test_an_endpoint_that_moved_gets_its_answers(engine):
    """The flow id of the answers is the same: the new flow takes it from the one that ended."""
    silent = replace(DB, acls=(Acl(name="silent", direction="out", action="block"),))
    moved = replace(WEB, name="web2", mac=endpoint_mac(WEB))
    request, answer = sent("udp 10.1.1.2:7 > 10.1.1.3:53"), "udp 10.1.1.3:53 > 10.1.1.2:7"
    engine.commit(node(WEB, silent))
    assert engine.process_one(request, "web").port == "blue/db"
    engine.commit(node(moved, silent))
    assert engine.process_one(request, "web2").port == "blue/db"
    outcome = engine.process_one(sent(answer, DB), "db")
    assert (outcome.verdict, outcome.port) == (Verdict.FORWARD, "blue/web2")
    assert len(engine.flows()) == 1


def test_numbers_stay_and_are_reused_late(engine):
    before = dict(engine.ids.ports)
    engine.commit(node(LOG, DB))
    assert engine.ids.ports["blue/db"] == before["blue/db"]
    assert engine.ids.ports["blue/log"] not in before.values()
    engine.commit(node(LOG, DB, WEB))
    assert engine.ids.ports["blue/web"] == before["blue/web"]


def test_a_reused_number_counts_from_zero(engine):
    engine.process_one(sent(OUT), "web")
    engine.commit(node(DB))
    engine.commit(node(DB, LOG))
    ports = engine.stats().ports
    assert engine.ids.ports["blue/log"] == 2 and ports["blue/log"]["rx_frames"] == 0


def test_holes_among_adjacencies(engine):
    ways = [remote(f"10.1.{i}.0/24", f"192.0.2.{i}") for i in (2, 3, 4)]
    engine.commit(node(remote_subnets=tuple(ways)))
    engine.commit(node(remote_subnets=(ways[2],)))
    outcome = engine.process_one(sent("udp 10.1.1.2:7 > 10.1.4.9:53"), "web")
    assert describe(outcome.frame)["outer"]["dst"] == "192.0.2.4"
    assert engine.process_one(sent(OUT), "web").reason is Reason["NO_SUCH_ENDPOINT"]


@pytest.mark.conformance("T16")
def test_a_faulty_policy_leaves_the_old_one(engine):
    twice = node(WEB, replace(DB, name="web"))
    with pytest.raises(DocumentError) as caught:
        engine.commit(twice)
    assert "taken" in str(caught.value)
    with Engine(max_rules=1) as small, pytest.raises(EngineError, match="max_rules"):
        small.commit(node(replace(WEB, acls=(block("a", 1), block("b", 2)))))
    with Engine(max_ports=3) as small:
        small.commit(node(WEB))
        with pytest.raises(EngineError, match="max_ports"):
            small.commit(node(WEB, DB))
        assert (
            small.generation == 1 and small.process_one(sent(OUT), "web").verdict is Verdict.FORWARD
        )
    assert engine.generation == 1


def test_edit_commits_at_the_end_or_not_at_all(engine):
    with engine.edit() as draft:
        draft.endpoint("blue", "web", acls=(block("no-dns", 53),), default_out="allow")
    assert engine.generation == 2
    assert engine.process_one(sent(OUT), "web").rule == "blue/web/no-dns"
    with pytest.raises(ZeroDivisionError), engine.edit() as draft:
        draft.network("blue", endpoints=())
        raise ZeroDivisionError
    with pytest.raises(DataplaneError, match="no endpoint 'nobody'"), engine.edit() as draft:
        draft.endpoint("blue", "nobody")
    assert engine.generation == 2


def test_an_edit_knows_nothing_of_a_commit_that_came_in_between(engine):
    with pytest.raises(EngineError, match="planned on generation 1, but 2"), engine.edit() as draft:
        draft.endpoint("blue", "web", default_out="block")
        with engine.edit() as other:
            other.network("blue", mtu=1300)
    assert engine.generation == 2 and engine.resolved.networks[0].mtu == 1300


def test_the_arrays_of_a_batch_are_written_not_replaced(engine):
    batch = Batch(4)
    batch.load([sent(OUT)], "web")
    with pytest.raises(AttributeError):
        batch.arena = batch.arena.repeat(9)
    with pytest.raises(AttributeError):
        batch.frames = batch.frames.repeat(9)
    batch.capacity = batch.count = 1000
    with pytest.raises(ValueError, match="holds up to 4"):
        engine.process(batch)
    assert len(engine.more(batch)) == 0


def test_unchanged_tables_are_shared(engine):
    closed = replace(WEB, acls=(block("no-dns", 53),), default_out="allow")
    engine.commit(node(closed, DB))
    before = engine._at.built
    engine.commit(node(closed, replace(DB, acls=(block("x", 1),))))
    after = engine._at.built
    assert set(before.groups.items()) <= set(after.groups.items())
    assert list(after.routes.values()) == list(before.routes.values())


def test_rules_of_a_network_come_before_its_endpoints(engine):
    soft = Acl(name="soft", direction="out", action="block", terminating=False)
    allow = Acl(name="dns", direction="out", action="allow", protocol="udp")
    engine.commit(node(replace(WEB, acls=(allow,)), DB, acls=(soft,)))
    assert engine.process_one(sent(OUT), "web").rule == "blue/web/dns"
    outcome = engine.process_one(sent("udp 10.1.1.3:7 > 10.1.2.9:53", DB), "db")
    assert (outcome.reason, outcome.rule) == (Reason["ACL_DENY"], "blue/soft")


def test_nat_exceptions(engine):
    far = remote("10.77.0.0/16", "192.0.2.7")
    near = remote("10.1.2.0/24", "192.0.2.2")
    nat = OutboundNat(
        exceptions=(ip_network("203.0.113.0/24"),), destinations=(ip_network("0.0.0.0/0"),)
    )
    engine.commit(node(remote_subnets=(near, far), outbound_nat=nat))
    assert engine.process_one(sent("udp 10.1.1.2:7 > 10.77.1.1:53"), "web").port == "underlay"
    assert engine.process_one(sent("udp 10.1.1.2:7 > 8.8.8.8:53"), "web").port == "host"
    assert (
        engine.process_one(sent("udp 10.1.1.2:7 > 203.0.113.5:53"), "web").reason
        is Reason["NO_ROUTE"]
    )
    assert (
        engine.process_one(sent("udp 10.1.1.2:7 > 10.1.9.9:53"), "web").reason
        is Reason["NO_SUCH_ENDPOINT"]
    )


# ---- time, looking -----------------------------------------------------------------------------


@pytest.mark.conformance("N3")
def test_an_icmp_error_from_inside_hides_the_inside(engine):
    """Source and quoted packet are those of the outside (RFC 5508 REQ-5), all checksums right."""
    from scapy.layers.inet import ICMP, IP, UDP
    from scapy.layers.l2 import Ether

    policy = node(outbound_nat=OutboundNat())
    engine.commit(policy)
    request = Ether(engine.process_one(sent("udp 10.1.1.2:7 > 203.0.113.1:53"), "web").frame)
    answer = Ether(src=request.dst, dst=request.src) / IP(src="203.0.113.1", dst=request[IP].src)
    answer /= UDP(sport=53, dport=request[UDP].sport) / b"answer"
    inside = Ether(engine.process_one(answer, "host").frame)
    error = Ether(src=inside.dst, dst=inside.src) / IP(src="10.1.1.2", dst="203.0.113.1")
    error /= ICMP(type=3, code=3) / bytes(inside[IP])[:28]
    outcome = engine.process_one(error, "web")
    told = Ether(outcome.frame)
    assert (outcome.port, told[IP].src, told[IP].dst) == ("host", "198.51.100.1", "203.0.113.1")
    quoted = bytes(told[ICMP].payload)
    assert quoted[12:24] == bytes(answer[IP])[12:24] and quoted[26:28] == bytes(answer[UDP])[6:8]
    for part, length in ((bytes(told[IP])[:20], 20), (bytes(told[ICMP]), None), (quoted[:20], 20)):
        assert checksum(part[:length]) == 0


def test_time_is_told(engine):
    engine.process_one(sent(OUT), "web")
    engine.clock.advance(seconds=299)
    assert engine.expire() == 0
    engine.clock.advance(seconds=2)
    assert engine.expire() == 1 and engine.flows() == []


def test_timers_and_own_clock():
    clock = SimClock(start_ns=5)
    with Engine(timers=Timers(udp=10), clock=clock) as engine:
        engine.commit(node())
        engine.process_one(sent(OUT), "web")
        assert engine.expire(now=clock.now_ns() + 11 * 10**9) == 1


def test_flows_have_names(engine):
    engine.process_one(sent(OUT), "web")
    engine.process_one(from_remote("udp 10.1.2.9:53 > 10.1.1.2:7"), "underlay")
    (flow,) = engine.flows()
    assert (flow.in_port, flow.out_port, str(flow.provider)) == (
        "blue/web",
        "underlay",
        "192.0.2.2",
    )
    assert flow.replied and flow.packets == (1, 1) and not flow.translated
    engine.flush()
    assert engine.flows() == []


def test_stats_subtract(engine):
    engine.process_one(sent(OUT), "web")
    first = engine.stats()
    engine.clock.advance(seconds=2)
    for _ in range(4):
        engine.process_one(sent(OUT), "web")
    engine.process_one(b"", "web")
    since = engine.stats() - first
    assert since.totals["rx"] == 5 and since.rates()["forwarded"] == 2
    assert since.reasons == {Reason["SHORT_ETHERNET"]: 1}
    assert since.totals["flows"] == 1 and since.ports["blue/web"]["rx_frames"] == 5


def test_a_walk_changes_nothing(engine):
    before = engine.stats()
    walk = engine.trace(sent(OUT), "web")
    assert engine.stats() == before and engine.flows() == []
    assert [s.layer for s in walk.steps if s.kind == "layer"] == [
        "guard",
        "acl",
        "nat",
        "vnet",
        "underlay",
    ]
    assert "FORWARD" in str(walk) and not walk.hit
    assert walk.after == engine.process_one(sent(OUT), "web").frame
    assert engine.trace(sent(OUT), "web").hit
    assert walk.to_dict()["verdict"] == "forward" and walk.mermaid().startswith("flowchart LR")


def test_a_walk_foretells_the_end_of_an_answers_way(engine):
    """A flow to the outside goes to a VTEP now: answers by the old way are strangers."""
    engine.commit(node(outbound_nat=OutboundNat(), remote_subnets=()))
    request = sent("udp 10.1.1.2:7 > 203.0.113.1:53")
    left = engine.process_one(request, "web")
    assert left.port == "host"
    answer = reply_to(left.frame)
    inside = (remote("203.0.113.0/24", "192.0.2.2"),)
    engine.commit(node(outbound_nat=OutboundNat(), remote_subnets=inside))
    walk = engine.trace(answer, "host")
    outcome = engine.process_one(answer, "host")
    assert outcome.reason is Reason["NAT_NO_BINDING"]
    assert (walk.verdict, walk.reason, walk.rule) == (outcome.verdict, outcome.reason, outcome.rule)


def test_a_walk_tells_every_rule_and_why(engine):
    rules = (block("no-ntp", 123), block("no-dns", 53))
    engine.commit(node(replace(WEB, acls=rules, default_out="allow")))
    walk = engine.trace(sent(OUT), "web")
    told = {s.rule: s.matched for s in walk.steps if s.kind in ("rule", "group")}
    assert told == {"blue/web/no-ntp": False, "blue/web/no-dns": True}
    assert "DROP    layer acl, rule blue/web/no-dns, reason acl_deny" in walk.text()


# ---- threads, life -----------------------------------------------------------------------------


def test_a_second_thread_is_refused(engine):
    with engine.exclusive():
        for call in (engine.flush, engine.expire, lambda: engine.process_one(b"", 0)):
            with pytest.raises(BusyError):
                call()
        with pytest.raises(BusyError):
            engine.close()
        assert engine.commit(node(WEB)) == 2
        assert engine.stats().totals["generation"] == 2
        assert engine.flows() == [] and engine.trace(sent(OUT), "web").verdict is Verdict.FORWARD


@pytest.mark.conformance("T16")
def test_commits_while_frames_pass(engine):
    """Each result is of one policy, and is what that policy says."""
    open_, closed = node(), node(replace(WEB, acls=(block("no-dns", 53),), default_out="allow"), DB)
    done = threading.Event()

    def change():
        for i in range(200):
            engine.commit(closed if i % 2 == 0 else open_)
        done.set()

    changer = threading.Thread(target=change)
    changer.start()
    batch, frame, seen = Batch(capacity=64), sent(OUT), set()
    while not done.is_set():
        result = engine.process(batch.load([frame] * 64, "web"))
        for generation, verdict in zip(
            result.generation.tolist(), result.verdict.tolist(), strict=True
        ):
            assert verdict == (Verdict.FORWARD if generation % 2 else Verdict.DROP)
            seen.add(generation)
    changer.join()
    assert engine.generation == 201 and seen
    totals = engine.stats().totals
    assert totals["rx"] == totals["forwarded"] + totals["dropped"]


def test_names_are_those_of_the_frames_generation(engine):
    engine.commit(node(replace(WEB, acls=(block("old", 53),))))
    batch = Batch(capacity=1)
    result = engine.process(batch.load([sent(OUT)], "web"))
    engine.commit(node(DB))
    engine.commit(node(replace(DB, acls=(block("new", 53),))))
    assert result.rule_of(0) == "blue/web/old"


def test_a_closed_engine_says_so():
    engine = Engine()
    engine.close()
    engine.close()
    for call in (engine.flush, engine.stats, lambda: engine.commit(node())):
        with pytest.raises(DataplaneError, match="closed"):
            call()


def test_nothing_is_committed_yet():
    with Engine() as engine:
        assert engine.generation == 0 and engine.node is None
        assert engine.process_one(sent(OUT), 2).reason is Reason["PORT_NOT_CONFIGURED"]
        with pytest.raises(DataplaneError, match="nothing is committed"), engine.edit():
            pass


@pytest.mark.parametrize(
    "limits", [{"max_flows": 0}, {"max_ports": 1 << 16}, {"max_rules": 1 << 40}]
)
def test_impossible_limits(limits):
    with pytest.raises(EngineError):
        Engine(**limits)


def test_reasons_are_those_of_c():
    assert [str(r) for r in Reason] == [
        ffi.string(lib.dp_reason_name(i)).decode() for i in range(lib.dp_reason_count())
    ]
    assert all(r.sentence and r.layer for r in Reason)


def test_public_names_are_there():
    import dataplane

    for name in dataplane.__all__:
        assert getattr(dataplane, name) is not None
    with pytest.raises(AttributeError):
        _ = dataplane.nothing
