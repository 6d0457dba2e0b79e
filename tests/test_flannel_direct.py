"""DirectRouting: one peer is on the node's link and knows no VXLAN, one lies behind a gateway.

near (10.99.1.3) ── switch of hub (10.99.1.254) ── a (10.99.1.1: ours, the host has the lease)
                    hub (10.98.0.254) ── far (10.98.0.4: a kernel's VXLAN device)
"""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from dataplane.api.client import Client
from dataplane.direct import PROTOCOL
from dataplane.document import dump
from dataplane.flannel.documents import Lease, read_lease
from dataplane.model import Document, HostPort, Node, Tap, Underlay
from tests.etcd_server import WHY_NOT, Etcd
from tests.live_node import Process, end_successor
from tests.peers.wire import ip, run, sysctl

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

ROOT, VNI, PORT = "/coreos.com/network", 4711, 4789
HUB, OURS, NEAR, FAR = "10.99.1.254", "10.99.1.1", "10.99.1.3", "10.98.0.4"
NEAR_KEY = f"{ROOT}/subnets/10.5.57.0-24"
NEAR_MAC, FAR_MAC = "7e:5b:fa:eb:b1:31", "7e:5b:fa:eb:b1:32"
HOST = HostPort(
    address=ip_address("169.254.77.2"),
    peer=ip_address("169.254.77.1"),
    tap=Tap(name="flannel.ours", mtu=1450),
)


class Place(NamedTuple):
    etcd: Etcd
    process: Process
    hub: str  # network namespaces
    node: str
    near: str
    far: str

    def lease(self) -> Lease | None:
        for key, value in self.etcd.values(f"{ROOT}/subnets").items():
            found = read_lease(key.rpartition("/")[2], value)
            if str(found.public_ip) == OURS:
                return found
        return None

    def routes(self) -> dict[str, str]:
        """Of ours, past the overlay: gateways by prefix."""
        told = json.loads(run(self.node, "ip", "-json", "route", "show", "proto", str(PROTOCOL)))
        return {route["dst"]: route["gateway"] for route in told}

    def remotes(self) -> set[str]:
        with Client(self.process.socket) as client:
            return {item["prefix"] for item in client.get("remote-subnets")}


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def peer_lease(public_ip: str, mac: str) -> bytes:
    data = {"VNI": VNI, "VtepMAC": mac}
    lease = {"PublicIP": public_ip, "PublicIPv6": None, "BackendType": "vxlan"}
    return json.dumps(lease | {"BackendData": data}).encode()


def config(direct: bool = True) -> bytes:
    backend = {"Type": "vxlan", "VNI": VNI, "Port": PORT, "DirectRouting": direct}
    return json.dumps(
        {"Network": "10.5.0.0/16", "SubnetMax": "10.5.50.0", "Backend": backend}
    ).encode()


@pytest.fixture(scope="module")
def place(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    names = module_netns("hub", "a", "near", "far")
    hub, node, near, far = names
    ip(hub, "link add switch type bridge", f"addr add {HUB}/24 dev switch", "link set switch up")
    for netns, address in ((node, OURS), (near, NEAR)):
        ip(hub, f"link add to-{address} type veth peer name under netns {netns}")
        ip(hub, f"link set to-{address} master switch up")
        ip(netns, f"addr add {address}/24 dev under", "link set under up")
        ip(netns, f"route add default via {HUB}")
    ip(
        hub,
        f"link add far type veth peer name under netns {far}",
        "addr add 10.98.0.254/24 dev far",
    )
    ip(hub, "link set far up")
    ip(
        far,
        f"addr add {FAR}/24 dev under",
        "link set under up",
        "route add default via 10.98.0.254",
    )
    sysctl(hub, net__ipv4__ip_forward=1)
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), HUB, hub).start()
    directory = tmp_path_factory.mktemp("a")
    words = ["--flannel", etcd.url, "--flannel-env", str(directory / "subnet.env")]
    process = Process(node, directory, *words)
    underlay = Underlay(address=ip_address(OURS), port=PORT)
    process.file.write_text(dump(Document(node=Node(name="a", underlay=underlay, host_port=HOST))))
    made = Place(etcd, process, *names)
    try:
        etcd.put(f"{ROOT}/config", config())
        etcd.put(NEAR_KEY, peer_lease(NEAR, NEAR_MAC))
        etcd.put(f"{ROOT}/subnets/10.5.58.0-24", peer_lease(FAR, FAR_MAC))
        process.start()
        until(made.routes)
        peers(made)
        yield made
    finally:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
        etcd.kill()


def peers(place: Place) -> None:
    """What flannel does at both, for our lease: with DirectRouting one route is all."""
    lease = place.lease()
    assert lease is not None
    subnet, at = lease.subnet.v4, lease.subnet.v4.network_address
    ip(place.near, "addr add 10.5.57.0/32 dev lo", f"route add {subnet} via {OURS}")
    vxlan = f"type vxlan id {VNI} local {FAR} dev under dstport {PORT} nolearning"
    ip(
        place.far,
        f"link add name flannel.n address {FAR_MAC} {vxlan}",
        "link set flannel.n mtu 1450 up",
        "addr add 10.5.58.0/32 dev flannel.n",
        f"neigh replace {at} lladdr {lease.mac} dev flannel.n nud permanent",
        f"route replace {subnet} via {at} dev flannel.n onlink",
    )
    fdb = f"fdb replace {lease.mac} dst {OURS} dev flannel.n self permanent"
    subprocess.run(["bridge", "-n", place.far, *fdb.split()], check=True)


def ping(netns: str, address: str, *words: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-n", "-q", "-c2", "-i0.2", "-W3", *words]
    return subprocess.run([*command, address], capture_output=True).returncode == 0


def test_a_peer_on_the_link_is_reached_without_a_tunnel(place: Place) -> None:
    """By packets as large as the link's, which no tunnel has room for, both ways."""
    lease = place.lease()
    assert lease is not None
    own = str(lease.subnet.v4.network_address)
    assert place.routes() == {"10.5.57.0/24": NEAR}
    assert ping(place.node, "10.5.57.0", "-Mdo", "-s1472", "-I", own)
    assert ping(place.near, own, "-Mdo", "-s1472", "-I", "10.5.57.0")


def test_one_behind_a_gateway_is_reached_by_vxlan(place: Place) -> None:
    lease = place.lease()
    assert lease is not None
    assert ping(place.node, "10.5.58.0", "-Mdo", "-s1422")
    assert not ping(place.node, "10.5.58.0", "-Mdo", "-s1423")
    assert ping(place.far, str(lease.subnet.v4.network_address), "-Mdo", "-s1422")


def test_a_part_of_a_near_subnet_that_lies_elsewhere_hinders_nobody(place: Place) -> None:
    """As while SubnetLen changes: the near one has VXLAN meanwhile, others are followed."""
    part, other = f"{ROOT}/subnets/10.5.57.128-25", f"{ROOT}/subnets/10.5.59.0-24"
    place.etcd.put(part, peer_lease("10.98.0.9", "7e:5b:fa:eb:b1:34"))
    place.etcd.put(other, peer_lease("10.99.1.9", "7e:5b:fa:eb:b1:33"))
    until(lambda: place.routes() == {"10.5.59.0/24": "10.99.1.9"})
    until(lambda: place.remotes() == {"10.5.57.0/24", "10.5.57.128/25", "10.5.58.0/24"})
    place.etcd.delete(part)
    place.etcd.delete(other)
    until(lambda: place.routes() == {"10.5.57.0/24": NEAR})
    until(lambda: place.remotes() == {"10.5.58.0/24"})


def test_a_successor_has_the_routes(place: Place) -> None:
    with Client(place.process.socket) as client:
        client.restart()
    try:
        other = "10.5.59.0/24"
        key = f"{ROOT}/subnets/10.5.59.0-24"
        place.etcd.put(key, peer_lease("10.99.1.9", "7e:5b:fa:eb:b1:33"))
        until(lambda: other in place.routes())
        assert place.routes() == {"10.5.57.0/24": NEAR, other: "10.99.1.9"}
        place.etcd.delete(key)
        until(lambda: other not in place.routes())
        assert place.routes() == {"10.5.57.0/24": NEAR}
    finally:
        end_successor(place.process.socket)
    until(lambda: place.routes() == {})
    place.process.start()
    until(place.routes)


def test_routes_of_a_node_that_was_killed_are_mended(place: Place) -> None:
    """A peer left meanwhile, and somebody has a route of his own there."""
    ip(place.node, f"route add 10.5.60.0/24 via {NEAR}")
    place.process.end(signal.SIGKILL)
    assert place.routes() == {"10.5.57.0/24": NEAR}
    place.etcd.delete(NEAR_KEY)
    place.process.start()
    until(lambda: place.routes() == {})
    assert "10.5.60.0/24" in run(place.node, "ip", "route")
    place.etcd.put(NEAR_KEY, peer_lease(NEAR, NEAR_MAC))
    until(lambda: place.routes() == {"10.5.57.0/24": NEAR})
    assert ping(place.node, "10.5.57.0", "-Mdo", "-s1472")


@pytest.mark.parametrize("shape", ["host", "endpoint"])
def test_without_a_state_directory_they_are_mended_too(
    place: Place, netns: Callable[..., list[str]], shape: str
) -> None:
    """The policy that such a node begins with has no overlay yet."""
    process, other, (pod,) = place.process, "10.5.59.0/24", netns("pod")
    words = process.words
    process.end()
    place.etcd.put(f"{ROOT}/subnets/10.5.59.0-24", peer_lease("10.99.1.9", "7e:5b:fa:eb:b1:33"))
    process.saves = False
    if shape == "endpoint":
        process.words = (*words, "--flannel-endpoint", f"web@{pod}")
    try:
        process.start()
        until(lambda: place.routes() == {"10.5.57.0/24": NEAR, other: "10.99.1.9"})
        process.end(signal.SIGKILL)
        place.etcd.delete(f"{ROOT}/subnets/10.5.59.0-24")
        process.start()
        until(lambda: place.routes() == {"10.5.57.0/24": NEAR})
        until(lambda: place.remotes() == {"10.5.58.0/24"})
        process.end()
        assert place.routes() == {}
    finally:
        process.words, process.saves = words, True
        process.start()
        until(place.routes)


def test_all_go_by_vxlan_once_the_config_says_so(place: Place) -> None:
    """Which is read when the node begins. The routes go with the node, too."""
    assert place.process.end() == 0 and place.routes() == {}
    place.etcd.put(f"{ROOT}/config", config(direct=False))
    marker = "10.5.61.0/24"
    place.etcd.put(f"{ROOT}/subnets/10.5.61.0-24", peer_lease("10.99.1.9", "7e:5b:fa:eb:b1:33"))
    place.process.start()
    until(lambda: marker in place.remotes())
    assert place.routes() == {}
    told = run(place.node, "ip", "route", "get", "10.5.57.0")
    assert f"dev {HOST.tap.name} " in told
