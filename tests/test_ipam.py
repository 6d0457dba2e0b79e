"""Addresses for endpoints that name none."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import ipam
from dataplane.address import Mac, Vni, parse_prefix
from dataplane.model import Endpoint, LoadBalancer, Network, Node, RemoteSubnet, Underlay


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
