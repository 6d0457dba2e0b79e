"""Plans: what they show, what they keep, and what a large one costs."""

import time
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from msgspec.structs import replace

from dataplane import DocumentError, Engine, EngineError
from dataplane.defaults import resolve
from dataplane.ids import HOST_PORT, Ids, RuleName, allot
from dataplane.model import Acl, Document, OutboundNat, PortRange, RemoteSubnet
from dataplane.rows import RouteKind
from dataplane.rules import compile_node, stamps
from tests.test_engine import DB, LOG, REMOTE_MAC, WEB, block, node, remote


def verbs(plan):
    return {f"{c.kind}/{c.name}": c.verb for c in plan.changes if c.verb != "unchanged"}


@pytest.fixture
def engine():
    with Engine(max_flows=64) as made:
        made.commit(node())
        yield made


def test_the_first_plan_creates_everything():
    with Engine() as engine:
        plan = engine.plan(node())
        assert set(verbs(plan).values()) == {"created"}
        assert plan.text().splitlines()[-1] == "generation 0 -> 1, 6 objects changed"
        assert engine.generation == 0


def test_each_change_is_shown_once(engine):
    changed = node(
        replace(WEB, acls=(block("x", 1),)),
        LOG,
        remote_subnets=(remote("10.1.3.0/24", "192.0.2.2"), remote("10.1.4.0/24", "192.0.2.4")),
    )
    plan = engine.plan(changed)
    assert verbs(plan) == {
        "network/blue": "changed",
        "endpoint/blue/web": "changed",
        "acl/blue/web/x": "created",
        "endpoint/blue/log": "created",
        "endpoint/blue/db": "removed",
        "peer/blue/192.0.2.2": "changed",
        "peer/blue/192.0.2.4": "created",
    }
    assert "10.1.2.0/24  dr" in plan.text() and "-> 10.1.3.0/24" in plan.text()
    assert "- endpoint/blue/db" in plan.diff() and "+ acl/blue/web/x" in plan.diff()
    assert plan.to_dict()["generation"] == 1
    assert "unchanged" in plan.text(unchanged=True)


def test_a_rule_that_changes_is_told_before_and_after(engine):
    engine.commit(node(replace(WEB, acls=(block("x", 1),))))
    plan = engine.plan(node(replace(WEB, acls=(block("x", 2, stateful=False),))))
    (change,) = [c for c in plan.changes if c.verb == "changed" and c.kind == "acl"]
    assert change.before.endswith("remote_ports 1") and "stateless" in change.after


def test_nothing_changed_makes_no_generation(engine):
    plan = engine.plan(node())
    assert plan.is_empty and plan.diff() == "" and "generation 1 stays" in plan.text()
    assert plan.commit() == 1


def test_the_order_of_rules_is_a_change(engine):
    x, y = block("x", 1), block("y", 2)
    engine.commit(node(replace(WEB, acls=(x, y))))
    plan = engine.plan(node(replace(WEB, acls=(y, x))))
    assert verbs(plan) == {"endpoint/blue/web": "changed"} and not plan.is_empty


def with_another_remote(engine):
    draft = engine.draft()
    draft.add("blue", remote("10.1.9.0/24", "192.0.2.9"))
    return engine.plan(draft)


@pytest.mark.parametrize(
    "planned", [lambda engine: engine.plan(node(WEB)), with_another_remote], ids=["whole", "edits"]
)
def test_what_is_prepared_is_not_seen_until_it_is_committed(engine, planned):
    """And then it is refused where another came first."""
    before = engine.committed, engine.ids, engine.stats()
    commit, late = planned(engine).prepare(), planned(engine).prepare()
    assert (engine.committed, engine.ids, engine.stats()) == before
    assert commit() == engine.generation == 2
    after = engine.committed, engine.ids
    for refused in (late, commit):
        with pytest.raises(EngineError, match="planned on generation 1, but 2 is committed"):
            refused()
    assert (engine.committed, engine.ids) == after


def test_a_stale_plan_is_refused(engine):
    first, second = engine.plan(node(WEB)), engine.plan(node(DB))
    first.commit()
    with pytest.raises(EngineError, match="generation 1, but 2"):
        second.commit()


def test_a_node_of_a_document_is_chosen(engine):
    document = Document(nodes=(node(WEB), replace(node(DB), name="b")))
    assert engine.plan(document, node="b").target.networks[0].endpoints == (DB,)
    with pytest.raises(Exception, match="which node"):
        engine.plan(document)
    with pytest.raises(Exception, match="no node 'c'"):
        engine.plan(document, node="c")


def test_a_hostile_node_is_refused_whole(engine):
    rule = Acl(name="x", direction="out", action="allow", priority=70_000)
    bad = node(replace(WEB, acls=(rule,)), replace(DB, addresses=(ip_address("10.9.0.1"),)))
    with pytest.raises(DocumentError) as caught:
        engine.plan(bad)
    assert len(caught.value.faults) >= 2


# ---- tables ------------------------------------------------------------------------------------


def tables(policy, old=None):
    return compile_node(resolve(policy), old)


def test_numbers_are_kept():
    assert allot({"a": 1, "b": 2}, ["b", "c", "d"], first=1) == {"b": 2, "c": 3, "d": 4}
    assert allot({"b": 2}, ["b", "e"], first=0) == {"b": 2, "e": 0}


def test_equal_policies_make_equal_tables():
    first = tables(node())
    again = tables(node(), first)
    assert again == first and again.ids is not None
    assert tables(node(WEB, LOG), first) != first


def test_stamps_move_with_what_an_endpoint_depends_on():
    first = tables(node())
    known = stamps(first, None, {}, 1)
    assert set(known.values()) == {1}
    web, db = first.ids.ports["blue/web"], first.ids.ports["blue/db"]
    acl = tables(node(replace(WEB, acls=(block("x", 1),)), DB), first)
    assert stamps(acl, first, known, 2) == {HOST_PORT: 1, web: 2, db: 1}
    routes = tables(node(remote_subnets=()), first)
    assert stamps(routes, first, known, 2) == {HOST_PORT: 2, web: 2, db: 2}
    mtu = tables(node(mtu=1400), first)
    assert stamps(mtu, first, known, 2) == {HOST_PORT: 2, web: 2, db: 2}
    moved = replace(node(), host_port=None)
    assert stamps(tables(moved, first), first, known, 2) == {HOST_PORT: 2, web: 2, db: 2}


def test_names_of_two_networks_do_not_meet():
    blue = node(replace(WEB, acls=(block("x", 1),)))
    red = replace(blue.networks[0], name="red", vni=5)
    made = tables(replace(blue, networks=(*blue.networks, red)))
    numbers = [made.ids.rules[RuleName(n, "web", "acl", "x")] for n in ("blue", "red")]
    assert numbers[0] != numbers[1]
    assert [made.ids.rule_names[i] for i in numbers] == ["blue/web/x", "red/web/x"]
    assert Ids(ports=made.ids.ports).port("web") is None


def test_local_and_remote_become_source_and_destination():
    near, far = (ip_network("10.1.1.0/24"),), (ip_network("10.1.2.0/24"),)
    ports = {"local_ports": (PortRange(1, 2),), "remote_ports": (PortRange(3, 4),)}
    both = tuple(
        Acl(name=d, direction=d, action="allow", protocol="tcp", local=near, remote=far, **ports)
        for d in ("in", "out")
    )
    row = tables(node(replace(WEB, acls=both))).endpoints[0]
    (out,), (inward,) = (group.rules for groups in row.groups for group in groups)
    assert out.src == inward.dst and out.dst == inward.src and out.src != out.dst
    assert (out.sport, out.dport) == (((1, 2),), ((3, 4),)) == (inward.dport, inward.sport)


@pytest.mark.parametrize(
    ("kind", "code", "ranges"),
    [(8, 0, ((0x800, 0x800),)), (3, None, ((0x300, 0x3FF),)), (None, 1, 256)],
)
def test_icmp_types_are_ports(kind, code, ranges):
    rule = Acl(
        name="x", direction="in", action="allow", protocol="icmp", icmp_type=kind, icmp_code=code
    )
    found = tables(node(replace(WEB, acls=(rule,)))).endpoints[0].groups[1][0].rules[0].dport
    assert found == ranges if isinstance(ranges, tuple) else len(found) == ranges


def test_a_remote_subnet_as_wide_as_the_network_wins():
    whole = tables(node(remote_subnets=(remote("10.1.0.0/16", "192.0.2.2"),)))
    kinds = whole.networks[0].routes.kind.tolist()
    assert RouteKind.SUBNET not in kinds and kinds.count(RouteKind.REMOTE) == 1


def test_what_stays_inside_is_no_rule():
    """Routes say it. An endpoint's own exceptions come before its translation."""
    own = OutboundNat(exceptions=(ip_network("192.0.2.0/24"),))
    policy = node(
        WEB,
        replace(DB, outbound_nat=own),
        remote_subnets=(remote("10.9.0.0/16", "192.0.2.3"),),
        outbound_nat=OutboundNat(),
    )
    groups = [[[r.action for r in g.rules] for g in e.groups[0]] for e in tables(policy).endpoints]
    assert groups == [[["snat"]], [["allow", "snat"]]]


# ---- size --------------------------------------------------------------------------------------


def test_a_hundred_thousand_remote_subnets():
    """Issue: committed in 3 s. Spread over 1,000 VTEPs."""
    subnets = tuple(
        RemoteSubnet(
            prefix=IPv4Network((0x0A000000 + (i << 6), 26)),
            provider_address=IPv4Address(0xC0A80000 + i % 1000),
            dr_mac=REMOTE_MAC,
        )
        for i in range(100_000)
    )
    wide = {
        "prefixes": (ip_network("10.0.0.0/8"),),
        "gateways": (ip_address("10.250.0.1"),),
    }
    end = replace(WEB, addresses=(ip_address("10.250.0.2"),))
    with Engine(max_flows=64) as engine:
        start = time.perf_counter()
        engine.commit(node(end, remote_subnets=subnets, **wide))
        assert time.perf_counter() - start < 3
        more = (*subnets, remote("10.240.0.0/24", "192.0.2.9"))
        plan = engine.plan(node(end, remote_subnets=more, **wide))
        assert verbs(plan) == {"peer/blue/192.0.2.9": "created"}
        assert plan.commit() == 2
