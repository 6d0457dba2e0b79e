"""What edits make of a policy is what a plan from scratch makes of it."""

import threading
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import DataplaneError, DocumentError, Draft, Engine, EngineError
from dataplane.address import Mac, Vni
from dataplane.model import Endpoint, Network, Node, RemoteSubnet
from dataplane.rows import RouteKind, Tables
from dataplane.version import LONGEST
from tests import blue

WEB = "10.1.0.2"
PREFIXES = [
    *("10.1.8.0/24", "10.1.8.128/25", "10.1.9.1/32", "10.1.0.0/16", "10.1.0.9/32", "10.1.0.0/24"),
    *("10.1.0.1/32", f"{WEB}/32", "10.9.0.0/16", "fd00:1::8:0/112", "fd00:1::/64", "10.7.0.0/24"),
]
PROVIDERS = ["192.0.2.2", "192.0.2.3", "192.0.2.4", blue.VTEP6, blue.OURS, "224.0.0.1"]
MACS = [blue.PEER, blue.PEER, blue.PEER, blue.STRANGER, Mac("01:00:00:00:00:00")]
NETWORKS = "blue", "green"
VNIS = {"blue": blue.VNI, "green": blue.VNI + 1}

subnets = st.builds(
    RemoteSubnet,
    prefix=st.sampled_from(PREFIXES).map(ip_network),
    provider_address=st.sampled_from(PROVIDERS[:3] * 4 + PROVIDERS).map(ip_address),
    dr_mac=st.sampled_from(MACS),
    dsr=st.booleans(),
)
added = st.tuples(st.sampled_from(NETWORKS), st.just("add"), subnets)
removed = st.tuples(
    st.sampled_from(NETWORKS), st.just("remove"), st.sampled_from(PREFIXES).map(ip_network)
)
edits = st.lists(st.lists(added | removed, min_size=1, max_size=4), min_size=1, max_size=12)
nodes = st.fixed_dictionaries(
    {
        "nat": st.sampled_from([False, False, True]),
        "domain": st.sampled_from([None, None, "both"]),
        "family6": st.booleans(),
    }
)

State = dict[str, list[RemoteSubnet]]
FIRST: State = {
    "blue": [blue.remote("10.1.8.0/24"), blue.remote("10.1.9.1/32", "192.0.2.3")],
    "green": [blue.remote("10.7.0.0/24", "192.0.2.3")],
}


def node(state: State, nat: bool = False, domain: str | None = None, family6: bool = True) -> Node:
    base = blue.node(
        routing_domain=domain,
        remote_subnets=tuple(state["blue"]),
        prefixes=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")),
        outbound_nat=blue.node().networks[0].outbound_nat if nat else None,
        underlay={} if family6 else {"address6": None},
    )
    green = Network(
        name="green",
        vni=Vni(VNIS["green"]),
        prefixes=(ip_network("10.7.0.0/16"),),
        dr_mac=blue.DR,
        endpoints=(Endpoint(name="far", addresses=(ip_address("10.7.0.2"),), mac=blue.WEB),),
        remote_subnets=tuple(state["green"]),
        routing_domain=domain,
    )
    return replace(base, networks=(*base.networks, green))


# ---- what is compared --------------------------------------------------------------------------


def tables(engine: Engine) -> Tables:
    found = engine._settled().tables
    assert found is not None
    return found


def routes(engine: Engine) -> list[set[tuple[object, ...]]]:
    """Of each network, with names for numbers."""
    found, vteps = tables(engine), engine.ids.adjacency_names
    made = []
    for network in found.networks:
        t = network.routes
        rows = zip(t.prefix, t.length, t.kind, t.target, t.flags, strict=True)
        made.append(
            {
                (bytes(p), int(n), int(k), vteps[to] if k == RouteKind.REMOTE else int(to), int(f))
                for p, n, k, to, f in rows
            }
        )
    return made


def words(to: str) -> str:
    return f"udp 10.1.0.2:1 > {to}:2" if "." in to else f"udp [fd00:1::2]:1 > [{to}]:2"


def behaviour(engine: Engine) -> list[object]:
    """What becomes of packets to and from all places that were ever a remote subnet's."""
    engine.flush()
    seen: list[object] = []
    places = [str(ip_network(p)[-1]) for p in PREFIXES] + ["10.1.8.5", "10.3.0.1"]
    ends = {"web": blue.web, "far": lambda w: blue.web(w.replace(WEB, "10.7.0.2"))}
    for end, build in ends.items():
        for place in places:
            if not (end == "far" and ":" in place):
                out = engine.process_one(build(words(place)), end)
                seen.append((out.verdict, out.reason, out.port, out.frame))
    for provider in PROVIDERS[:4]:
        for vni in VNIS.values():
            for place in ("10.1.8.5", "10.1.9.1", "10.7.0.7"):
                frame = blue.peer(f"udp {place}:1 > {WEB}:2", provider, vni=vni)
                out = engine.process_one(frame, "underlay")
                seen.append((out.verdict, out.reason, out.port, out.frame))
    return seen


def same(engine: Engine, target: Node) -> None:
    with blue.engine(target) as fresh:
        assert behaviour(engine) == behaviour(fresh)
        assert engine.node == target and engine.resolved == fresh.resolved
        assert routes(engine) == routes(fresh)
        assert set(engine.ids.adjacencies) == set(fresh.ids.adjacencies)
        numbers = list(engine.ids.adjacencies.values())
        assert len(set(numbers)) == len(numbers)


def drafted(draft: Draft, state: State, changes: list[tuple[str, str, object]]) -> State:
    """Both changed; what cannot be removed is told of."""
    state = {name: list(found) for name, found in state.items()}
    for name, what, item in changes:
        if what == "add":
            assert isinstance(item, RemoteSubnet)
            draft.add(name, item)
            state[name].append(item)
            continue
        left = [s for s in state[name] if s.prefix != item]
        if len(left) == len(state[name]):
            with pytest.raises(DataplaneError, match="no remote subnet"):
                draft.remove(name, item)  # type: ignore[arg-type]
        else:
            draft.remove(name, item)  # type: ignore[arg-type]
        state[name] = left
    return state


# ---- any sequence ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(nodes, edits, st.integers(0, 3))
def test_edits_are_what_a_plan_from_scratch_is(fields, sequence, often: int) -> None:
    """Faults, tables, behaviour; `often`: after so many edits the whole way is taken once."""
    state = FIRST
    with blue.engine(node(state, **fields)) as engine:
        for i, changes in enumerate(sequence):
            draft = engine.draft()
            wanted = drafted(draft, state, changes)
            target = node(wanted, **fields)
            generation = engine.generation
            try:
                with Engine(max_flows=8) as fresh:
                    fresh.plan(target)
            except DocumentError as faulty:
                with pytest.raises(DocumentError) as caught:
                    engine.commit(draft)
                assert str(caught.value) == str(faulty)
                assert engine.generation == generation
            else:
                plan = engine.plan(draft)
                assert plan.target == target
                assert plan.is_empty == (wanted == state) or plan.edits is not None
                plan.commit()
                state = wanted
            if often and i % often == 0:
                assert engine.plan(node(state, **fields)).is_empty
                state = state | {"green": state["green"][::-1]}
                engine.commit(node(state, **fields))
        same(engine, node(state, **fields))
        engine.commit(replace(node(state, **fields), name="b"))
        same(engine, replace(node(state, **fields), name="b"))


# ---- the lane ----------------------------------------------------------------------------------

MORE = blue.remote("10.1.20.0/24", "192.0.2.9")


@pytest.mark.parametrize(
    "more",
    [
        MORE,
        replace(MORE, provider_address=ip_address("192.0.2.2")),
        replace(MORE, dsr=True),
        replace(MORE, prefix=ip_network("fd00:1::20:0/112")),
    ],
)
def test_what_is_plain_takes_the_express_lane(more: RemoteSubnet) -> None:
    with blue.engine(node(FIRST)) as engine:
        for _ in range(3):
            draft = engine.draft()
            draft.add("blue", more)
            plan = engine.plan(draft)
            assert plan.edits is not None and not plan.is_empty
            plan.commit()
            draft = engine.draft()
            draft.remove("blue", more.prefix)
            assert engine.plan(draft).edits is not None
            engine.commit(draft)
        same(engine, node(FIRST))


def test_the_only_subnet_of_a_vtep_may_change_its_router() -> None:
    with blue.engine(node(FIRST)) as engine, engine.edit() as draft:
        changed = replace(FIRST["blue"][1], dr_mac=blue.STRANGER)
        draft.remove("blue", changed.prefix)
        draft.add("blue", changed)
        assert engine.plan(draft).edits is not None


@pytest.mark.parametrize(
    "more",
    [
        blue.remote("10.1.20.0/24", blue.VTEP6),  # less room for all
        blue.remote("10.1.0.0/16"),  # stands in for the network's own
        blue.remote("10.1.20.0/24", mac=blue.STRANGER),  # wrong
        blue.remote(f"{WEB}/32"),
    ],
)
def test_what_may_be_more_goes_the_whole_way(more: RemoteSubnet) -> None:
    with blue.engine(node(FIRST)) as engine:
        draft = engine.draft()
        draft.add("blue", more)
        assert engine._plan_edits(draft) is None


def test_a_nat_leaves_alone_what_an_edit_adds() -> None:
    far = blue.web("udp 10.1.0.2:7 > 10.99.0.5:53")
    with blue.engine(node(FIRST, nat=True)) as engine:
        draft = engine.draft()
        draft.add("blue", blue.remote("10.99.0.0/16"))
        assert engine._plan_edits(draft) is not None
        assert engine.process_one(far, "blue/web").port == "host"
        engine.commit(draft)
        assert engine.process_one(far, "blue/web").port == "underlay"
        same(engine, draft.node)


def test_an_edit_among_many_looks_at_none_of_them() -> None:
    """The subnets that stay are opaque: whoever touches one of them fails."""

    class Opaque:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was asked for")

    many = [blue.remote(f"10.1.{64 + i // 4}.{i % 4 * 64}/26", "192.0.2.7") for i in range(256)]
    with blue.engine(node(FIRST | {"blue": many})) as engine:
        remotes = engine._at.remotes
        assert remotes is not None
        subnets = remotes._places["blue"].subnets
        for span in list(subnets)[:-1]:
            subnets[span] = Opaque()  # type: ignore[assignment]
        with engine.edit() as draft:
            draft.remove("blue", many[-1].prefix)
            draft.add("blue", MORE)
        assert engine.generation == 2


# ---- drafts ------------------------------------------------------------------------------------


def test_a_draft_may_be_looked_at_and_changed_otherwise() -> None:
    with blue.engine(node(FIRST)) as engine:
        with engine.edit() as draft:
            draft.add("blue", MORE)
            assert MORE in draft.network("blue").remote_subnets
            draft.network("blue", mtu=1300)
            draft.remove("blue", FIRST["blue"][0].prefix)
            draft.add("green", blue.remote("10.7.9.0/24"))
            with pytest.raises(DataplaneError, match=r"no remote subnet 10\.1\.8\.0/24"):
                draft.remove("blue", FIRST["blue"][0].prefix)
        blue_, green = engine.node.networks  # type: ignore[union-attr]
        assert blue_.mtu == 1300 and blue_.remote_subnets == (FIRST["blue"][1], MORE)
        assert green.remote_subnets == (*FIRST["green"], blue.remote("10.7.9.0/24"))


def test_what_a_draft_cannot_do_is_told_at_once() -> None:
    with blue.engine(node(FIRST)) as engine:
        draft = engine.draft()
        with pytest.raises(DataplaneError, match="no network 'red'; there are: blue, green"):
            draft.add("red", MORE)
        with pytest.raises(DataplaneError, match="no network 'red'"):
            draft.remove("red", MORE.prefix)
        with pytest.raises(DataplaneError, match=r"no remote subnet 10\.1\.20\.0/24 in network"):
            draft.remove("blue", MORE.prefix)
        draft.remove("blue", FIRST["blue"][0].prefix)
        with pytest.raises(DataplaneError, match="no remote subnet"):
            draft.remove("blue", FIRST["blue"][0].prefix)
        draft.add("blue", MORE)
        draft.remove("blue", MORE.prefix)
        draft.add("blue", FIRST["blue"][0])
        assert engine.commit(draft) == 2


def test_an_empty_edit_commits_nothing() -> None:
    with blue.engine(node(FIRST)) as engine:
        with engine.edit() as draft:
            draft.add("blue", MORE)
            draft.remove("blue", MORE.prefix)
        with engine.edit():
            pass
        assert engine.generation == 1


def test_plans_show_what_edits_change() -> None:
    with blue.engine(node(FIRST)) as engine:
        draft = engine.draft()
        draft.add("blue", MORE)
        plan = engine.plan(draft)
        engine.commit(draft)
        assert plan.text() == (
            "peer/blue/192.0.2.9             created    10.1.20.0/24  dr 02:00:00:00:00:04\n"
            "generation 1 -> 2, 1 object changed"
        )
        draft = engine.draft()
        draft.remove("blue", MORE.prefix)
        assert engine.plan(draft).to_dict()["changes"][0]["verb"] == "removed"


def test_of_two_edits_on_one_generation_one_is_refused() -> None:
    with blue.engine(node(FIRST)) as engine:
        drafts = [engine.draft() for _ in range(3)]
        for i, draft in enumerate(drafts):
            draft.add("blue", replace(MORE, prefix=ip_network(f"10.1.{20 + i}.0/24")))
        plans = [engine.plan(draft) for draft in drafts[:2]]
        assert plans[1].commit() == 2
        for late in (plans[0].commit, engine.plan(drafts[2]).commit):
            with pytest.raises(EngineError, match="planned on generation 1, but 2"):
                late()
        same(engine, plans[1].target)


def test_threads_that_edit_lose_nothing() -> None:
    """Each tries again until its own has come in; somebody plans as a whole meanwhile."""

    def add(worker: int) -> None:
        for i in range(8):
            more = replace(MORE, prefix=ip_network(f"10.1.{100 + worker}.{i * 8}/29"))
            while True:
                try:
                    with engine.edit() as draft:
                        draft.add("blue", more)
                    break
                except EngineError as late:
                    assert "planned on generation" in str(late)

    with blue.engine(node(FIRST)) as engine:
        threads = [threading.Thread(target=add, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert engine.plan(node(FIRST)).target == node(FIRST)
        found = engine.node.networks[0].remote_subnets  # type: ignore[union-attr]
        assert len({s.prefix for s in found}) == len(found) == 2 + 3 * 8
        same(engine, engine.node)  # type: ignore[arg-type]


# ---- names and room ----------------------------------------------------------------------------


def test_a_vtep_keeps_its_name_in_the_generations_that_knew_it() -> None:
    """Numbers are given again once no generation is remembered that gave them to another."""
    seen: dict[int, set[str]] = {}
    with blue.engine(node(FIRST)) as engine:
        for i in range(40):
            with engine.edit() as draft:
                if i:
                    draft.remove("blue", MORE.prefix)
                draft.add("blue", replace(MORE, provider_address=ip_address(f"192.0.2.{10 + i}")))
            name = f"192.0.2.{10 + i}"
            number = next(n for k, n in engine.ids.adjacencies.items() if str(k) == name)
            assert str(engine.ids.adjacency_names[number]) == name
            seen.setdefault(number, set()).add(name)
            out = engine.process_one(blue.web(words("10.1.20.5")), "web")
            assert ip_address(out.frame[30:34]) == ip_address(name)
        assert 16 <= len(seen) <= 20


def test_many_edits_are_put_together_in_the_end() -> None:
    with blue.engine(node(FIRST)) as engine:
        for i in range(LONGEST + 10):
            with engine.edit() as draft:
                if i % 2:
                    draft.remove("blue", MORE.prefix)
                else:
                    draft.add("blue", MORE)
        assert engine.generation == LONGEST + 11
        same(engine, node(FIRST))
