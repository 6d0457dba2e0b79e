"""What a plan takes over from the one before is what it would have made anew."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import DocumentError, Engine, validate
from dataplane.address import Mac
from dataplane.memo import Memo, same_ends
from dataplane.model import Document, Node, RemoteSubnet
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

edits = st.lists(
    st.tuples(
        st.integers(0, 8),  # where
        st.integers(0, 3),  # how many go
        st.lists(st.sampled_from(SUBNETS) | st.sampled_from(SOUND), max_size=3),  # what comes
    ),
    min_size=1,
    max_size=8,
)


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
@given(edits)
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
