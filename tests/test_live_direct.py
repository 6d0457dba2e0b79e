"""Direct subnets on real devices: two nodes on one link, a pod on each, and no tunnel between them.

a (192.0.2.1) ── b (192.0.2.2)      pods pa 10.1.1.2, pb 10.1.2.2
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from dataplane import demo_net
from dataplane.address import Vni
from dataplane.api.client import Client
from dataplane.direct import PROTOCOL
from dataplane.document import dump
from dataplane.errors import DataplaneError
from dataplane.model import (
    Backend,
    DirectSubnet,
    Document,
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    Tap,
    Underlay,
)
from tests.live_node import ROOT, Process, end_successor
from tests.peers.wire import ip, run

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

SITES = {"a": ("192.0.2.1", "10.1.1"), "b": ("192.0.2.2", "10.1.2")}
VIP = "10.1.250.1"
LARGEST = "1472"  # octets of echo in a packet as large as the link's


def direct(prefix: str, via: str) -> DirectSubnet:
    return DirectSubnet(prefix=ip_network(prefix), provider_address=ip_address(via))


class Running(NamedTuple):
    process: Process
    pod: str  # its namespace
    policy: Node

    def routes(self) -> dict[str, str]:
        """Direct ones of the host: gateways by prefix."""
        netns = self.process.netns
        told = json.loads(run(netns, "ip", "-json", "route", "show", "proto", str(PROTOCOL)))
        return {route["dst"]: route["gateway"] for route in told}

    def with_direct(self, *subnets: DirectSubnet, **fields: Any) -> str:
        (blue,) = self.policy.networks
        blue = replace(blue, direct_subnets=subnets, **fields)
        return dump(Document(node=replace(self.policy, networks=(blue,))))


def policy(name: str, pod: str) -> Node:
    (address, subnet), (via, other) = SITES[name], SITES["b" if name == "a" else "a"]
    service = LoadBalancer(
        name="db",
        protocol="tcp",
        port=80,
        vips=(ip_address(VIP),),
        backends=(Backend(address=ip_address("10.1.2.2"), port=5432),),
        node_port=30080,
    )
    blue = Network(
        name="blue",
        vni=Vni(4096),
        prefixes=(ip_network("10.1.0.0/16"),),
        gateways=(ip_address(f"{subnet}.1"),),
        mtu=1500,  # which no tunnel has to fit into
        host_route=True,
        direct_subnets=(direct(f"{other}.0/24", via),),
        load_balancers=(service,),
        endpoints=(
            Endpoint(
                name="pod",
                addresses=(ip_address(f"{subnet}.2"),),
                tap=Tap(name="eth0", netns=pod),
            ),
        ),
    )
    host = HostPort(
        address=ip_address("169.254.1.1"), peer=ip_address("169.254.1.2"), tap=Tap(name="dp-host")
    )
    underlay = Underlay(address=ip_address(address))
    return Node(name=name, underlay=underlay, host_port=host, networks=(blue,))


@pytest.fixture(scope="module")
def nodes(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Running]]:
    a, b, pa, pb = module_netns("a", "b", "pa", "pb")
    ip(a, f"link add under type veth peer name under netns {b}")
    made = {}
    for name, netns, pod in (("a", a, pa), ("b", b, pb)):
        ip(netns, f"addr add {SITES[name][0]}/24 dev under", "link set under up")
        own = policy(name, pod)
        process = Process(netns, tmp_path_factory.mktemp(name))
        process.file.write_text(dump(Document(node=own)))
        made[name] = Running(process.start(), pod, own)
    yield made
    for node in made.values():
        if node.process.process is not None and node.process.process.poll() is None:
            node.process.end()


def ping(netns: str, address: str, *words: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-n", "-q", "-c2", "-i0.2", "-W3", *words]
    return subprocess.run([*command, address], capture_output=True).returncode == 0


def fetched(server: str, client: str, address: str, port: int) -> str:
    """What a server on the pod's port 5432 sees as its client."""
    code = (
        "import socket; s = socket.create_server(('', 5432)); print('up', flush=True);"
        "c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()"
    )
    listen = ["ip", "netns", "exec", server, "python3", "-c", code]
    connect = f"import socket; s = socket.create_connection(('{address}', {port}), 5);"
    connect += "print(s.recv(99).decode())"
    with subprocess.Popen(listen, stdout=subprocess.PIPE) as serving:
        try:
            assert serving.stdout is not None and serving.stdout.readline() == b"up\n"
            return run(client, "python3", "-c", connect).strip()
        finally:
            serving.kill()


def test_pods_talk_without_a_tunnel(nodes: dict[str, Running]) -> None:
    """In packets as large as the link's; nothing comes to the VXLAN port."""
    a, b = nodes["a"], nodes["b"]
    assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
    assert ping(a.pod, "10.1.2.2", "-Mdo", "-s", LARGEST)
    assert ping(b.pod, "10.1.1.2", "-Mdo", "-s", LARGEST)
    assert fetched(b.pod, a.pod, "10.1.2.2", 5432) == "10.1.1.2"
    for node in nodes.values():
        with Client(node.process.socket) as client:
            assert [f for f in client.findings() if f["level"] != "ok"] == []
            ports = {port["name"]: port for port in client.get("ports")}
            assert ports["underlay"]["rx_frames"] == ports["underlay"]["tx_frames"] == 0
            (shown,) = client.get("direct-subnets")
            assert shown["provider_address"] == SITES["b" if node is a else "a"][0]


def test_a_host_that_does_not_forward_is_told_and_mended(nodes: dict[str, Running]) -> None:
    a = nodes["a"]
    run(a.process.netns, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    with Client(a.process.socket) as client:
        (found,) = (f for f in client.findings() if f["level"] != "ok")
        assert found["message"].startswith("net.ipv4.ip_forward is off")
        run(a.process.netns, *found["fix"].split())
        assert [f for f in client.findings() if f["level"] != "ok"] == []
    assert ping(a.pod, "10.1.2.2")


def test_services_have_backends_there(nodes: dict[str, Running]) -> None:
    """From a pod, and from outside by the host's port: that client's answers come the same way."""
    a, b = nodes["a"], nodes["b"]
    assert fetched(b.pod, a.pod, VIP, 80) == "10.1.1.2"
    assert fetched(b.pod, b.process.netns, "192.0.2.1", 30080) == "10.1.1.1"


def test_what_the_kernel_refuses_changes_nothing(nodes: dict[str, Running]) -> None:
    a = nodes["a"]
    ip(a.process.netns, "route add 10.1.8.0/24 via 192.0.2.2")
    stands = direct("10.1.2.0/24", "192.0.2.2")
    with Client(a.process.socket) as client:
        generation = client.status()["generation"]
        for bad, why in (
            (direct("10.1.7.0/24", "198.51.100.9"), "10.1.7.0/24 via 198.51.100.9"),
            (direct("10.1.8.0/24", "192.0.2.2"), "somebody else's"),
        ):
            with pytest.raises(DataplaneError, match=why):
                client.apply(a.with_direct(stands, direct("10.1.6.0/24", "192.0.2.2"), bad))
            assert client.status()["generation"] == generation
            assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
    ip(a.process.netns, "route del 10.1.8.0/24 via 192.0.2.2")
    assert ping(a.pod, "10.1.2.2")


def test_routes_follow_the_policy(nodes: dict[str, Running]) -> None:
    """Another way to a prefix, one more, one less, by the API, too; and as before."""
    a = nodes["a"]
    there = direct("10.1.2.0/24", "192.0.2.2")
    with Client(a.process.socket) as client:
        client.apply(
            a.with_direct(direct("10.1.2.0/24", "192.0.2.9"), direct("10.1.6.0/24", "192.0.2.2"))
        )
        assert a.routes() == {"10.1.2.0/24": "192.0.2.9", "10.1.6.0/24": "192.0.2.2"}
        client.delete("blue", "direct-subnets", "10.1.6.0/24")
        client.put("blue", "direct-subnets", "10.1.2.0/24", {"provider_address": "192.0.2.2"})
        assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
        client.apply(a.with_direct(direct("10.1.6.0/24", "192.0.2.2")), prune=True)
        assert a.routes() == {"10.1.6.0/24": "192.0.2.2"}
        client.apply(a.with_direct(there), prune=True)
    assert ping(a.pod, "10.1.2.2")


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_the_link_takes_with_it_comes_again(nodes: dict[str, Running]) -> None:
    """As it goes down and up; and what somebody has removed."""
    a = nodes["a"]
    ip(a.process.netns, "link set under down", "link set under up")
    assert a.routes() == {}
    until(lambda: a.routes() == {"10.1.2.0/24": "192.0.2.2"})
    assert ping(a.pod, "10.1.2.2")


def test_what_the_kernel_refuses_at_the_beginning_is_made_later(nodes: dict[str, Running]) -> None:
    """`doctor` tells, and commits of other things pass."""
    a = nodes["a"]
    netns = a.process.netns
    assert a.process.end() == 0
    ip(netns, "route add 10.1.2.0/24 via 192.0.2.9", "link set under down")
    a.process.start()
    with Client(a.process.socket) as client:

        def told() -> list[str]:
            return [f["message"] for f in client.findings() if f["subject"] == "route"]

        (first,) = told()
        assert first.startswith("direct subnet 10.1.2.0/24 via 192.0.2.2: ")
        ip(netns, "link set under up", "route add 10.1.2.0/24 via 192.0.2.9")
        until(lambda: told() and "somebody else's" in told()[0])
        there = direct("10.1.2.0/24", "192.0.2.2")
        client.apply(a.with_direct(there, direct("10.1.6.0/24", "192.0.2.2")))
        assert a.routes() == {"10.1.6.0/24": "192.0.2.2"}
        client.apply(a.with_direct(there), prune=True)
        ip(netns, "route del 10.1.2.0/24 via 192.0.2.9")
        until(lambda: a.routes() == {"10.1.2.0/24": "192.0.2.2"})
        until(lambda: not told())
    assert ping(a.pod, "10.1.2.2")


def test_a_route_in_place_of_ours_is_left_alone(nodes: dict[str, Running]) -> None:
    a = nodes["a"]
    foreign = "10.1.2.0/24 via 192.0.2.9"
    ip(a.process.netns, "route del 10.1.2.0/24", f"route add {foreign}")
    with (
        Client(a.process.socket) as client,
        pytest.raises(DataplaneError, match="somebody else's"),
    ):
        client.apply(a.with_direct(direct("10.1.2.0/24", "192.0.2.7")))
    assert foreign in run(a.process.netns, "ip", "route") and a.routes() == {}
    ip(a.process.netns, f"route del {foreign}")
    until(lambda: a.routes() == {"10.1.2.0/24": "192.0.2.2"})


def test_a_successor_that_fails_takes_nothing_with_it(
    nodes: dict[str, Running], tmp_path: Path
) -> None:
    """Once it has the ports already: neither routes nor the host's table."""
    a = nodes["a"]
    assert a.process.end() == 0
    shutil.copytree(ROOT / "dataplane", tmp_path / "dataplane")
    a.process.home = tmp_path
    a.process.start()
    try:
        forwarder = tmp_path / "dataplane/forwarder.py"
        forwarder.write_text(forwarder.read_text() + "\nForwarder.__init__ = None\n")
        tables = run(a.process.netns, "nft", "list", "ruleset")
        assert "dnat" in tables
        with Client(a.process.socket) as client:
            with pytest.raises(DataplaneError):
                client.restart(patience=0)
            until(lambda: "see its log; going on" in a.process.log.read_text())
            until(lambda: client.status()["ready"])
        assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
        assert run(a.process.netns, "nft", "list", "ruleset") == tables
        assert ping(a.pod, "10.1.2.2")
    finally:
        a.process.home = ROOT
        a.process.end()
        a.process.start()


def test_they_outlive_a_restart_and_go_with_the_node(nodes: dict[str, Running]) -> None:
    """A successor has them; one that was killed left them, and who comes next sets them right."""
    a = nodes["a"]
    with Client(a.process.socket) as client:
        client.restart()
    try:
        assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
        assert ping(a.pod, "10.1.2.2")
    finally:
        end_successor(a.process.socket)
    deadline = time.monotonic() + 10
    while a.routes():  # they go after its socket
        assert time.monotonic() < deadline
        time.sleep(0.02)
    a.process.start()
    a.process.end(signal.SIGKILL)
    assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
    ip(a.process.netns, f"route add 10.1.6.0/24 via 192.0.2.2 proto {PROTOCOL}")
    a.process.start()
    assert a.routes() == {"10.1.2.0/24": "192.0.2.2"}
    assert ping(a.pod, "10.1.2.2")


def test_routes_move_with_the_host_port(
    nodes: dict[str, Running], netns: Callable[..., list[str]]
) -> None:
    """Into another namespace, all or nothing; and back, or the node ends, though it is deleted."""
    a = nodes["a"]
    there = direct("10.1.2.0/24", "192.0.2.2")

    def made(name: str) -> str:
        (other,) = netns(name)
        ip(other, "link add under type veth peer name far", "link set far up")
        ip(other, "addr add 192.0.2.7/24 dev under", "link set under up")
        return other

    def moved(other: str, *subnets: DirectSubnet) -> str:
        assert a.policy.host_port is not None
        tap = replace(a.policy.host_port.tap, netns=other)
        node = replace(a.policy, host_port=replace(a.policy.host_port, tap=tap))
        return a._replace(policy=node).with_direct(*subnets)

    def routes(other: str) -> str:
        return run(other, "ip", "route", "show", "proto", str(PROTOCOL))

    first, second = made("first"), made("second")
    with Client(a.process.socket) as client:
        with pytest.raises(DataplaneError, match="via 198"):
            bad = direct("10.1.7.0/24", "198.51.100.9")
            client.apply(moved(first, there, bad), prune=True)
        assert (a.routes(), routes(first)) == ({"10.1.2.0/24": "192.0.2.2"}, "")
        client.apply(moved(first, there), prune=True)
        assert a.routes() == {} and "10.1.2.0/24 via 192.0.2.2" in routes(first)
        demo_net.remove(first)
        client.apply(a.with_direct(there), prune=True)
        assert a.routes() == {"10.1.2.0/24": "192.0.2.2"} and ping(a.pod, "10.1.2.2")
        client.apply(moved(second, there), prune=True)
        demo_net.remove(second)
    assert a.process.end() == 0
