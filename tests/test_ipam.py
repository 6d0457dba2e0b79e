"""Addresses for endpoints that name none."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import ipam
from dataplane.address import Mac, Vni, parse_prefix
from dataplane.engine import Engine
from dataplane.errors import DocumentError
from dataplane.lab import Lab
from dataplane.model import (
    DirectSubnet,
    Document,
    Endpoint,
    LoadBalancer,
    Network,
    Node,
    RemoteSubnet,
    Underlay,
)


def network(*prefixes: str, far: tuple[str, ...] = (), **fields: object) -> Network:
    subnets = tuple(
        RemoteSubnet(
            prefix=parse_prefix(text),
            provider_address=ip_address("192.0.2.2"),
            dr_mac=Mac("02:00:00:00:00:02"),
        )
        for text in far
    )
    return Network(
        name="blue",
        vni=Vni(1),
        prefixes=tuple(map(parse_prefix, prefixes)),
        remote_subnets=subnets,
        **fields,  # type: ignore[arg-type]
    )


def node(*addresses: str, prefixes: tuple[str, ...] = ("10.0.0.0/29",)) -> Node:
    endpoints = tuple(
        Endpoint(name=f"e{i}", addresses=(ip_address(a),)) for i, a in enumerate(addresses)
    )
    blue = replace(network(*prefixes), endpoints=endpoints)
    return Node(name="a", underlay=Underlay(address=ip_address("192.0.2.1")), networks=(blue,))


def texts(found: tuple[object, ...]) -> list[str]:
    return [str(address) for address in found]


def test_gateways_services_and_other_nodes_are_left_out() -> None:
    assert texts(ipam.assigned(network("10.0.0.0/24"))) == ["10.0.0.2"]
    blue = network("10.0.0.0/24", far=("10.0.0.0/28", "10.0.0.16/28"))
    assert texts(ipam.assigned(blue)) == ["10.0.0.32"]
    vip = LoadBalancer(name="v", protocol="tcp", port=80, vips=(ip_address("10.0.0.2"),))
    assert texts(ipam.assigned(network("10.0.0.0/24", load_balancers=(vip,)))) == ["10.0.0.3"]
    seen = replace(vip, source_vip=ip_address("10.0.0.3"))
    assert texts(ipam.assigned(network("10.0.0.0/24", load_balancers=(seen,)))) == ["10.0.0.4"]
    own = network("10.0.0.0/24", gateways=(ip_address("10.0.0.254"),))
    assert texts(ipam.assigned(own)) == ["10.0.0.1"]


def test_one_of_each_family() -> None:
    assert texts(ipam.assigned(network("10.0.0.0/24", "fd00::/64"))) == ["10.0.0.2", "fd00::2"]


def test_the_same_address_elsewhere_is_no_conflict() -> None:
    assert texts(ipam.assigned(network("10.0.0.0/24"))) == texts(
        ipam.assigned(replace(network("10.0.0.0/24"), name="green"))
    )


@pytest.mark.parametrize("prefix", ["10.0.0.0/32", "10.0.0.0/31", "fd00::/127"])
def test_tiny_prefixes(prefix: str) -> None:
    blue = network(prefix)
    held = []
    with pytest.raises(ipam.ExhaustedError, match="free"):
        for i in range(3):
            found = ipam.assigned(blue)
            held.append(found)
            made = Endpoint(name=f"e{i}", addresses=found)
            blue = replace(blue, endpoints=(*blue.endpoints, made))
    assert len(held) <= 2


def test_no_prefixes() -> None:
    with pytest.raises(ipam.ExhaustedError, match="no prefixes"):
        ipam.assigned(network())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_what_was_released_comes_last(steps: list[tuple[bool, int]]) -> None:
    """Beside a plain queue: never one that is held, the longest released when all others are."""
    released: ipam.Released = {}
    now = node(prefixes=("10.0.0.0/28",))
    never = [f"10.0.0.{i}" for i in range(2, 15)]
    queue: list[str] = []
    for adds, which in steps:
        (blue,) = now.networks
        if adds:
            try:
                (found,) = ipam.assigned(blue, released.get("blue", ()))
            except ipam.ExhaustedError:
                assert not never and not queue
                continue
            assert str(found) == (never.pop(0) if never else queue.pop(0))
            made = Endpoint(name=str(found), addresses=(found,))
            endpoints = (*blue.endpoints, made)
        elif blue.endpoints:
            gone = blue.endpoints[which % len(blue.endpoints)]
            queue.append(str(gone.addresses[0]))
            endpoints = tuple(e for e in blue.endpoints if e != gone)
        else:
            continue
        fresh = replace(now, networks=(replace(blue, endpoints=endpoints),))
        released, now = ipam.after(released, now, fresh), fresh
        assert list(released.get("blue", ())) == queue


def with_far(text: str) -> dict[str, object]:
    (subnet,) = network("10.0.0.0/29", far=(text,)).remote_subnets
    return {"remote_subnets": (subnet,)}


def with_direct(text: str) -> dict[str, object]:
    subnet = DirectSubnet(prefix=parse_prefix(text), provider_address=ip_address("192.0.2.2"))
    return {"direct_subnets": (subnet,)}


def with_vip(text: str) -> dict[str, object]:
    vip = ip_address(text.partition("/")[0])
    return {"load_balancers": (LoadBalancer(name="v", protocol="tcp", port=80, vips=(vip,)),)}


def with_gateway(text: str) -> dict[str, object]:
    gateways = (ip_address("10.0.0.1"), ip_address(text.partition("/")[0]))
    return {"gateways": gateways}


TAKEN_SINCE = [with_far, with_direct, with_vip, with_gateway]


@pytest.mark.parametrize("taken", TAKEN_SINCE)
def test_what_was_released_and_is_taken_since_is_not_given(
    taken: Callable[[str], dict[str, object]],
) -> None:
    released = "10.0.0.4", "10.0.0.5"
    held = tuple(Endpoint(name=f"e{i}", addresses=(ip_address(f"10.0.0.{i}"),)) for i in (2, 3, 6))
    blue = network("10.0.0.0/29", endpoints=held)
    assert texts(ipam.assigned(blue, released)) == ["10.0.0.4"]
    assert texts(ipam.assigned(replace(blue, **taken("10.0.0.4/32")), released)) == ["10.0.0.5"]


@pytest.mark.parametrize("taken", TAKEN_SINCE)
def test_what_was_kept_and_is_taken_since_is_another(
    taken: Callable[[str], dict[str, object]],
) -> None:
    blue = network("10.0.0.0/29", endpoints=(Endpoint(name="x"),))
    before = ipam.completed(replace(node(), networks=(blue,)))
    assert held(before) == {"x": ["10.0.0.2"]}
    after = ipam.completed(
        replace(before, networks=(replace(blue, **taken("10.0.0.2/32")),)), before
    )
    assert held(after) == {"x": ["10.0.0.3"]}


def test_what_is_no_host_address_is_not_given() -> None:
    only = Endpoint(name="x", addresses=(ip_address("10.0.0.2"),))
    blue = network("10.0.0.0/30", endpoints=(only,))
    with pytest.raises(ipam.ExhaustedError):
        ipam.assigned(blue, ("10.0.0.0", "10.0.0.3"))


spans = st.lists(
    st.tuples(st.integers(0, 63), st.integers(26, 32)).map(
        lambda p: str(ip_network((f"10.0.0.{p[0]}", p[1]), strict=False))
    ),
    max_size=6,
)


@given(spans, st.lists(st.integers(0, 63), max_size=9))
def test_all_that_is_given_is_free(far: list[str], released: list[int]) -> None:
    """Beside a plain look at each; whatever is behind whom, and was whose before."""
    blue = network("10.0.0.0/26", far=tuple(far))
    behind = list(map(ip_network, far))
    free = {a for a in blue.prefixes[0].hosts() if not any(a in p for p in behind)} - {
        ip_address("10.0.0.1")
    }
    pool = ipam.Pool(blue, [f"10.0.0.{n}" for n in released])
    given = {pool.take()[0] for _ in free}
    assert given == free
    with pytest.raises(ipam.ExhaustedError):
        pool.take()


# ---- policies whose endpoints name none --------------------------------------------------------


def unnamed(*names: str, **fields: object) -> Node:
    endpoints = tuple(Endpoint(name=name) for name in names)
    blue = network("10.0.0.0/24", "fd00::/64", endpoints=endpoints, **fields)
    return Node(name="a", underlay=Underlay(address=ip_address("192.0.2.1")), networks=(blue,))


def held(policy: Node) -> dict[str, list[str]]:
    return {e.name: texts(e.addresses) for n in policy.networks for e in n.endpoints}


def with_endpoint(policy: Node, endpoint: Endpoint) -> Node:
    (blue,) = policy.networks
    return replace(policy, networks=(replace(blue, endpoints=(*blue.endpoints, endpoint)),))


def test_endpoints_get_addresses_in_their_order() -> None:
    fixed = Endpoint(name="fixed", addresses=(ip_address("10.0.0.3"),))
    whole = ipam.completed(with_endpoint(unnamed("x", "y"), fixed))
    assert held(whole) == {
        "x": ["10.0.0.2", "fd00::2"],
        "y": ["10.0.0.4", "fd00::3"],
        "fixed": ["10.0.0.3"],
    }
    assert ipam.completed(whole) is whole


def test_they_keep_them_by_name_while_they_are_free() -> None:
    before = ipam.completed(unnamed("x", "y"))
    after = ipam.completed(unnamed("new", "y"), before)
    assert held(after) == {"new": ["10.0.0.2", "fd00::2"], "y": ["10.0.0.3", "fd00::3"]}
    thief = Endpoint(name="thief", addresses=(ip_address("10.0.0.3"),))
    robbed = ipam.completed(with_endpoint(unnamed("y"), thief), before)
    assert held(robbed)["y"] == ["10.0.0.2", "fd00::2"]
    moved = replace(before, networks=(network("10.9.0.0/24", endpoints=(Endpoint(name="y"),)),))
    assert held(ipam.completed(moved, before))["y"] == ["10.9.0.2"]


def test_they_come_out_of_the_pool() -> None:
    pool = (parse_prefix("10.0.0.64/30"), parse_prefix("10.0.0.128/25"))
    found = held(ipam.completed(unnamed("x", "y", "z", pool=pool)))
    assert [v4 for v4, _ in found.values()] == ["10.0.0.65", "10.0.0.66", "10.0.0.129"]
    assert [v6 for _, v6 in found.values()] == ["fd00::2", "fd00::3", "fd00::4"]


def test_where_none_is_free_the_place_is_told() -> None:
    with pytest.raises(DocumentError) as caught:
        ipam.completed(unnamed("x", "y", "z", pool=(parse_prefix("10.0.0.64/31"),)))
    place = "$.networks[0].endpoints[2].addresses"
    assert f"{place}: network blue: no IPv4 address is free" in str(caught.value)


def test_engine_and_lab_complete_policies() -> None:
    with Engine(max_flows=64) as engine:
        engine.commit(unnamed("x", "y"))
        engine.commit(unnamed("y"))
        assert engine.node is not None and held(engine.node) == {"y": ["10.0.0.3", "fd00::3"]}
        assert engine.plan(unnamed("y")).is_empty
    with Lab.from_document(Document(node=unnamed("x", "y"))) as lab:
        lab.settle()
        ends = [lab.nodes["a"].endpoint(name, network="blue") for name in ("x", "y")]
        assert [end.ip for end in ends] == ["10.0.0.2", "10.0.0.3"]
