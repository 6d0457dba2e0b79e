"""Nodes that go, come again, and say for a while less than they did."""

from ipaddress import IPv4Address

import pytest

from dataplane.address import Mac
from dataplane.flannel.documents import Lease, read_config
from dataplane.flannel.peers import GRACE
from dataplane.kubernetes import nodes
from dataplane.kubernetes.objects import Object
from dataplane.kubernetes.peers import Peers
from dataplane.model import Underlay
from tests.kube_objects import node

CONFIG = read_config(
    b'{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}', "net-conf.json"
)
US = IPv4Address("192.0.2.1")
MAC, OTHER = "02:00:00:00:00:07", "02:00:00:00:00:08"
CIDR, KEY = "10.244.7.0/24", ("", "x")
REACHED = [(CIDR, "192.0.2.7", MAC)]


@pytest.fixture
def peers() -> Peers:
    made = Peers(CONFIG, "us")
    made.replace({KEY: peer()}, 0)
    assert reached(made, 0) == REACHED
    return made


def own() -> Lease:
    return nodes.own_lease(node("us", "10.244.1.0/24"), US, None, Mac("02:00:00:00:00:01"), 1)


def peer(mac: str = MAC, public: str = "192.0.2.7", name: str = "x") -> Object:
    return node(name, CIDR, public, mac)


def reached(peers: Peers, now: float) -> list[tuple[str, str, str]]:
    found = peers.subnets(own(), Underlay(address=US), None, now)
    assert found.refused == {}
    return [(str(r.prefix), str(r.provider_address), str(r.dr_mac)) for r in found.remote]


def test_one_that_goes_stays_for_its_grace(peers: Peers) -> None:
    assert peers.next_change() is None
    peers.put(KEY, None, 10)
    peers.put(KEY, None, 12)  # told twice
    assert peers.next_change() == 10 + GRACE
    assert reached(peers, 10 + GRACE - 0.1) == REACHED
    assert reached(peers, 10 + GRACE) == []
    assert peers.next_change() is None


def test_one_that_a_listing_does_not_name_stays_too(peers: Peers) -> None:
    peers.replace({}, 10)
    assert reached(peers, 14) == REACHED
    assert reached(peers, 15) == []


def test_one_that_is_made_anew_and_says_nothing_yet(peers: Peers) -> None:
    peers.put(KEY, None, 10)
    peers.put(KEY, node("x", CIDR), 11)
    assert reached(peers, 11) == REACHED
    peers.put(KEY, peer(OTHER, "192.0.2.8"), 12)
    assert reached(peers, 12) == [(CIDR, "192.0.2.8", OTHER)]
    assert reached(peers, 15) == [(CIDR, "192.0.2.8", OTHER)]


def test_who_gets_the_subnet_of_one_that_went_has_it_at_once(peers: Peers) -> None:
    peers.put(KEY, None, 10)
    peers.put(("", "y"), peer(OTHER, "192.0.2.8", "y"), 11)
    assert reached(peers, 11) == [(CIDR, "192.0.2.8", OTHER)]


@pytest.mark.parametrize("mute", ["", "00:00:00:00:00:00"])
def test_a_mac_holds_until_a_new_one_is_told(peers: Peers, mute: str) -> None:
    peers.put(KEY, peer(mute), 10)
    assert reached(peers, 10) == REACHED
    peers.put(KEY, peer(mute) | {"spec": {"podCIDR": CIDR}}, 11)  # and again
    assert reached(peers, 11) == REACHED
    peers.put(KEY, peer(OTHER), 12)
    assert reached(peers, 12) == [(CIDR, "192.0.2.7", OTHER)]


def test_a_mac_is_that_of_a_public_address(peers: Peers) -> None:
    peers.put(KEY, peer("", "192.0.2.8"), 10)
    assert reached(peers, 10) == []
