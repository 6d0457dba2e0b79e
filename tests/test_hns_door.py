"""HNS calls of a running node: what is one commit, and an export that is imported again."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from dataplane.address import Vni, parse_prefix
from dataplane.daemon import Daemon
from dataplane.hns.calls import call
from dataplane.hns.door import HnsDoor
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.model import Network, Node, Underlay
from dataplane.state_dir import Saved
from tests import hns_documents as d
from tests.test_hns import DR

NODE = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.9"), port=14_791))
PREFIX, OLD, NEW = "10.244.4.0/24", "192.168.2.19", "192.168.2.20"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(Saved(1, NODE)) as made:
        yield made


@pytest.fixture
def door(daemon: Daemon) -> HnsDoor:
    made = HnsDoor(daemon)
    made.call("POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    made.call("POST", f"networks/{d.NET}/modify", d.remote_subnet(PREFIX, OLD, DR))
    return made


def ways(daemon: Daemon) -> list[str]:
    """Provider addresses of the remote subnets."""
    assert daemon.engine.node is not None
    (network,) = daemon.engine.node.networks
    return [str(subnet.provider_address) for subnet in network.remote_subnets]


def test_a_peer_that_moves(daemon: Daemon, door: HnsDoor) -> None:
    """Flannel's two calls leave a gap; Add alone, and a batch of both, do not."""
    path = f"networks/{d.NET}/modify"
    remove = d.remote_subnet(PREFIX, OLD, DR, verb="Remove")
    add, back = d.remote_subnet(PREFIX, NEW, DR), d.remote_subnet(PREFIX, OLD, DR)
    door.call("POST", path, remove)
    assert ways(daemon) == []
    door.call("POST", path, back)
    before = daemon.engine.generation
    door.call("POST", "batch", [{"Path": path, "Body": remove}, {"Path": path, "Body": add}])
    assert (ways(daemon), daemon.engine.generation) == ([NEW], before + 1)
    door.call("POST", path, back)
    assert (ways(daemon), daemon.engine.generation) == ([OLD], before + 2)


def test_a_balancer_without_endpoints_is_lost_beside_other_networks(
    daemon: Daemon, door: HnsDoor
) -> None:
    name = door.call("POST", "loadbalancers", d.balancer([], "10.96.0.10"))["ID"]
    assert door.export()["Lost"] == []
    red = Network(name="red", vni=Vni(7), prefixes=(parse_prefix("10.7.0.0/16"),))
    daemon.apply(replace(NODE, networks=(red,)))
    told = door.export()
    (lost,) = told["Lost"]
    assert name in lost and "loadbalancers" not in {made["Path"] for made in told["Calls"]}
    again = Store(NODE)
    call(again, "POST", "batch", told["Calls"])
    assert [network.name for network in share(again).networks] == ["flannel.4096", "red"]
