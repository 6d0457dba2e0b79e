"""What a plan takes over from the one before is what it would have made anew."""

import contextlib
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import DocumentError, Engine, validate
from dataplane.address import Mac
from dataplane.memo import Memo, same_ends
from dataplane.model import (
    Backend,
    Document,
    Endpoint,
    LoadBalancer,
    Node,
    PortMapping,
    RemoteSubnet,
)
from dataplane.node_ports import devices
from dataplane.rows import RouteKind
from dataplane.tree import path_text
from tests import blue

PREFIXES = [f"10.{n}.0.0/16" for n in range(2, 8)] + ["10.1.0.2/32", "10.1.0.1/32", "fd00:9::/64"]
PROVIDERS = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::2", blue.OURS, "224.0.0.1"]
MACS = [blue.PEER, blue.PEER, blue.PEER, blue.STRANGER, Mac("01:00:00:00:00:00")]
SUBNETS = [
    RemoteSubnet(prefix=ip_network(p), provider_address=ip_address(a), dr_mac=m)
    for p in PREFIXES
    for a in PROVIDERS
    for m in dict.fromkeys(MACS)
]
SOUND = [s for s in SUBNETS[: 6 * 18] if str(s.provider_address) in PROVIDERS[:4]]
SOUND = [s for s in SOUND if s.dr_mac == blue.PEER]

BALANCERS = [
    LoadBalancer(
        name=name,
        protocol="tcp",
        port=port,
        vips=(ip_address(f"10.96.0.{vip}"),),
        backends=tuple(Backend(address=ip_address(f"10.1.0.{n}")) for n in backends),
        source_vip=source,
        node_port=30000 if vip == 2 else None,
    )
    for name in ("one", "two", "three")
    for port in (80, 81)
    for vip in (1, 2)
    for backends in ((), (2,), (3, 2))
    for source in (None, ip_address("10.1.0.99"))
]

MAPPINGS = [
    (),
    (PortMapping(protocol="tcp", port=8080, target_port=80),),
    (PortMapping(protocol="tcp", port=90, vip=ip_address("10.96.0.1")),),
    (PortMapping(protocol="tcp", port=90, vip=ip_address("10.96.0.9")),),
]


def edits_of(*what: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[int, int, list[Any]]]]:
    where, gone = st.integers(0, 8), st.integers(0, 3)
    come = st.lists(st.one_of(*what), max_size=3)
    return st.lists(st.tuples(where, gone, come), min_size=1, max_size=8)


def node(subnets: tuple[RemoteSubnet, ...]) -> Node:
    return blue.node(remote_subnets=subnets)


def faults(policy: Node, memo: Memo | None = None) -> list[tuple[str, str, str]]:
    found = validate.check(Document(node=policy), memo=memo)
    return [(path_text(c.path), c.message, c.fix) for c in found]


def routes(engine: Engine) -> set[tuple[bytes, int, str]]:
    """Of the committed policy: prefix, length and provider of what lies behind a VTEP."""
    tables = engine._at.tables
    assert tables is not None
    (network,) = tables.networks
    table, names = network.routes, tables.ids.adjacency_names
    rows = zip(table.prefix, table.length, table.kind, table.target, strict=True)
    return {
        (bytes(prefix), int(length), str(names[int(target)]))
        for prefix, length, kind, target in rows
        if kind == RouteKind.REMOTE
    }


def wanted(subnets: tuple[RemoteSubnet, ...]) -> set[tuple[bytes, int, str]]:
    with Engine(max_flows=8) as fresh:
        fresh.commit(node(subnets))
        return routes(fresh)


@settings(deadline=None, max_examples=60)
@given(edits_of(st.sampled_from(SUBNETS), st.sampled_from(SOUND)))
def test_remote_subnets_come_and_go(changes: list[tuple[int, int, list[RemoteSubnet]]]) -> None:
    """Faults and routes are those of a plan that knows nothing, whatever was planned before."""
    subnets: tuple[RemoteSubnet, ...] = tuple(blue.REMOTES)
    with Engine(max_flows=8) as engine:
        engine.commit(node(subnets))
        for at, gone, come in changes:
            changed = subnets[:at] + tuple(come) + subnets[at + gone :]
            expected = faults(node(changed))
            assert faults(node(changed), Memo(engine._at.checked)) == expected
            if expected:
                with pytest.raises(DocumentError):
                    engine.plan(node(changed))
                continue
            engine.commit(node(changed))
            subnets = changed
            assert routes(engine) == wanted(subnets)
            vteps = {name.provider for name in engine.ids.adjacencies}
            assert vteps == {s.provider_address for s in subnets}


def services(engine: Engine) -> list[tuple[Any, ...]]:
    """In C, with what their numbers are of."""
    at = engine._at
    assert at.built.services is not None and at.built.filled is not None
    pools, balances = at.built.filled.arrays["pools"].tolist(), list(at.built.balances)
    names, found = engine.ids.rule_names, []
    for row in at.built.services.array.tolist():
        *own, network, rule, pool, balance = row
        found.append((*own, network, names[rule], pools[pool], balances[balance]))
    return found


@settings(deadline=None, max_examples=60)
@given(edits_of(st.sampled_from(BALANCERS)))
def test_load_balancers_come_and_go(changes: list[tuple[int, int, list[LoadBalancer]]]) -> None:
    """As remote subnets; and the host's routes to them."""
    balancers: tuple[LoadBalancer, ...] = ()
    memo = Memo()
    with Engine(max_flows=8) as engine, Engine(max_flows=8) as fresh:
        engine.commit(blue.node())
        for at, gone, come in changes:
            changed = balancers[:at] + tuple(come) + balancers[at + gone :]
            policy = blue.node(load_balancers=changed)
            expected = faults(policy)
            assert faults(policy, Memo(engine._at.checked)) == expected
            if expected:
                continue
            engine.commit(policy)
            fresh.commit(blue.node())
            fresh.commit(policy)
            balancers = changed
            assert services(engine) == services(fresh)
            memo = Memo(memo)
            resolved = engine.resolved
            assert resolved is not None
            routes_of = devices(resolved, memo)["host"].routes
            assert routes_of == devices(resolved, Memo())["host"].routes
            assert {str(r.prefix)[:-3] for r in routes_of} >= {str(b.vips[0]) for b in changed}


def whole(engine: Engine) -> list[object]:
    """What was committed last, as a whole, with names for numbers."""
    tables = engine._at.tables
    assert tables is not None
    names, ports = engine.ids.rule_names, engine.ids.port_names
    rows = [
        (ports[row.port], row.addresses, names[rule.id], rule._replace(id=0))
        for row in tables.endpoints
        for groups in row.groups
        for group in groups
        for rule in group.rules
    ]
    (network,) = tables.networks
    table, vteps = network.routes, engine.ids.adjacency_names
    columns = zip(table.prefix, table.length, table.kind, table.target, strict=True)
    ways = {
        (bytes(p), int(n), int(k), vteps[int(to)] if k == RouteKind.REMOTE else ports.get(int(to)))
        for p, n, k, to in columns
    }
    (found,) = tables.adjacencies
    behind = {(vteps[int(n)], bytes(r)) for n, r in zip(found.id, found.remote, strict=True)}
    return [services(engine), rows, ways, behind, sorted(names.values())]


def toggled(
    engine: Engine, subnet: RemoteSubnet, there: tuple[RemoteSubnet, ...]
) -> tuple[RemoteSubnet, ...]:
    """By a draft, unless that is refused; returns what remote subnets there are then."""
    draft = engine.draft()
    if any(subnet.prefix == each.prefix for each in there):
        draft.remove("blue", subnet.prefix)
    else:
        draft.add("blue", subnet)
    with contextlib.suppress(DocumentError):
        engine.commit(draft)
    assert engine.node is not None
    return engine.node.networks[0].remote_subnets


MAPPED = [replace(node(()).networks[0].endpoints[0], port_mappings=m) for m in MAPPINGS]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["commit", "commit", "plan", "edit"]),
            edits_of(st.sampled_from(BALANCERS)).map(lambda edits: edits[0]),
            st.sampled_from(SOUND),
            st.sampled_from(MAPPED),
        ),
        max_size=10,
    )
)
def test_whole_commits_after_edits_and_plans(
    steps: list[tuple[str, tuple[int, int, list[Any]], RemoteSubnet, Endpoint]],
) -> None:
    """Services and all that follows from them, whatever was edited or only planned in between."""
    first = blue.node().networks[0]
    subnets, balancers = first.remote_subnets, first.load_balancers
    with Engine(max_flows=8) as engine, Engine(max_flows=8) as fresh:
        engine.commit(blue.node())
        for verb, (at, gone, come), subnet, endpoint in steps:
            if verb == "edit":
                subnets = toggled(engine, subnet, subnets)
                continue
            changed = balancers[:at] + tuple(come) + balancers[at + gone :]
            policy = blue.node(
                load_balancers=changed,
                remote_subnets=subnets,
                endpoints=(endpoint, first.endpoints[1]),
            )
            if faults(policy):
                continue
            plan = engine.plan(policy)
            if verb == "plan":
                continue
            plan.commit()
            balancers = changed
            fresh.commit(blue.node())
            fresh.commit(policy)
            assert whole(engine) == whole(fresh)


@given(edits_of(st.text("abc", max_size=3)))
def test_counted_is_what_a_counter_counts(changes: list[tuple[int, int, list[str]]]) -> None:
    memo, items = Memo(), tuple[str, ...]()
    for at, gone, come in changes:
        items = items[:at] + tuple(come) + items[at + gone :]
        memo = Memo(memo)
        assert memo.counted("letters", items, None, iter) == Counter("".join(items))


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_same_ends(old: list[int], new: list[int]) -> None:
    head, tail = same_ends(tuple(old), tuple(new))
    assert old[:head] == new[:head] and head + tail <= min(len(old), len(new))
    assert old[len(old) - tail :] == new[len(new) - tail :]
    rest = old[head : len(old) - tail], new[head : len(new) - tail]
    assert not all(rest) or (rest[0][0] != rest[1][0] and rest[0][-1] != rest[1][-1])


def test_a_plan_that_is_not_committed_changes_nothing_for_the_next() -> None:
    fresh = next(s for s in SOUND if s.prefix == ip_network("10.5.0.0/16"))
    more = (*blue.REMOTES, fresh)
    other = (*blue.REMOTES, replace(fresh, provider_address=ip_address("192.0.2.4")))
    with blue.engine() as engine:
        engine.plan(node(more))
        engine.plan(node(blue.REMOTES))
        engine.commit(node(other))
        assert routes(engine) == wanted(other)


def test_rules_that_were_faulty_are_still_faulty() -> None:
    twice = (blue.rule("a", "out", "allow", 1, protocol="udp"),) * 2
    with blue.engine() as engine:
        for _ in range(2):
            with pytest.raises(DocumentError, match="rule a is taken"):
                engine.commit(blue.node(acls=twice))
        engine.commit(blue.node(acls=twice[:1]))
        with pytest.raises(DocumentError, match="rule a is taken"):
            engine.commit(blue.node(acls=twice))
