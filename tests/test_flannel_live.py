"""Two nodes of ours and a kernel's VXLAN device, set up as flannel does, in one overlay.

hub (etcd, 10.99.0.100; routes) ── a (10.99.0.1, ours), b (10.99.0.2, ours), k (10.99.0.3, kernel)

DATAPLANE_OUTAGE says for how many seconds etcd is gone.
"""

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.flannel.documents import Lease, read_lease
from dataplane.model import Document, Node, Underlay
from tests.etcd_server import WHY_NOT, Etcd
from tests.live_node import Process
from tests.peers.wire import ip

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

OUTAGE = float(os.environ.get("DATAPLANE_OUTAGE", "4"))
ROOT = "/coreos.com/network"
VNI, PORT = 424_242, 4790
CONFIG = json.dumps(
    {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": VNI, "Port": PORT}}
).encode()
UNDER = {"a": "10.99.0.1", "b": "10.99.0.2", "k": "10.99.0.3"}
HUB = "10.99.0.100"
KERNEL_SUBNET, KERNEL_MAC = IPv4Network("10.5.57.0/24"), "7e:5b:fa:eb:b1:26"
DEVICE = "flannel.n"


def kernel_lease(public_ip: str = UNDER["k"], mac: str = KERNEL_MAC) -> bytes:
    data = {"VNI": VNI, "VtepMAC": mac}
    lease = {"PublicIP": public_ip, "PublicIPv6": None, "BackendType": "vxlan"}
    return json.dumps(lease | {"BackendData": data}, separators=(",", ":")).encode()


@dataclass
class Overlay:
    """etcd, our nodes, and the names of all namespaces."""

    etcd: Etcd
    nodes: dict[str, Process]
    names: dict[str, str]

    def leases(self) -> dict[str, Lease]:
        """By public IP."""
        found = self.etcd.values(f"{ROOT}/subnets")
        leases = (read_lease(key.rpartition("/")[2], value) for key, value in found.items())
        return {str(lease.public_ip): lease for lease in leases}

    def remotes(self, node: str) -> dict[str, str]:
        """DR MACs by prefix, as the node's policy has them."""
        with Client(self.nodes[node].socket) as client:
            items = client.get("remote-subnets")
        return {item["prefix"]: item["dr_mac"] for item in items}

    def pods(self) -> dict[str, str]:
        """The address of each namespace's end of the overlay."""
        kernel = str(KERNEL_SUBNET.network_address)
        return {f"p{n}": _address(self.names[f"p{n}"], "web") for n in self.nodes} | {"k": kernel}

    def follow(self) -> None:
        """What flannel does at the kernel's node for each lease of ours, in its order."""
        for public_ip, lease in self.leases().items():
            if public_ip == UNDER["k"]:
                continue
            at, mac = lease.subnet.v4.network_address, lease.mac
            ip(self.names["k"], f"neigh replace {at} lladdr {mac} dev {DEVICE} nud permanent")
            fdb = f"fdb replace {mac} dst {public_ip} dev {DEVICE} self permanent"
            run("bridge", "-n", self.names["k"], *fdb.split())
            ip(self.names["k"], f"route replace {lease.subnet.v4} via {at} dev {DEVICE} onlink")


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _address(netns: str, device: str) -> str:
    told = json.loads(run("ip", "-n", netns, "-4", "-json", "addr", "show", device))
    return str(told[0]["addr_info"][0]["local"])


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def overlay(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Overlay]:
    labels = ("hub", "a", "b", "k", "pa", "pb")
    names = dict(zip(labels, module_netns(*labels), strict=True))
    ip(names["hub"], f"addr add {HUB}/32 dev lo")
    run("ip", "netns", "exec", names["hub"], "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for label, address in UNDER.items():
        ip(names["hub"], f"link add name to-{label} type veth peer name under netns {names[label]}")
        ip(names["hub"], f"link set to-{label} up", f"route add {address}/32 dev to-{label}")
        ip(names[label], f"addr add {address}/32 dev under", "link set under up")
        ip(names[label], f"route add {HUB} dev under", f"route add default via {HUB}")
    vxlan = f"type vxlan id {VNI} local {UNDER['k']} dev under dstport {PORT} nolearning"
    ip(
        names["k"],
        f"link add name {DEVICE} address {KERNEL_MAC} {vxlan}",
        f"link set {DEVICE} mtu 1450 up",
        f"addr add {KERNEL_SUBNET.network_address}/32 dev {DEVICE}",
    )
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), HUB, names["hub"]).start()
    nodes: dict[str, Process] = {}
    try:
        etcd.put(f"{ROOT}/config", CONFIG)
        etcd.put(f"{ROOT}/subnets/10.5.57.0-24", kernel_lease())
        for label in ("a", "b"):
            nodes[label] = node(label, names, etcd, tmp_path_factory.mktemp(label)).start()
        made = Overlay(etcd, nodes, names)
        until(lambda: len(made.leases()) == 3)
        until(lambda: all(len(made.remotes(n)) == 2 for n in nodes))
        made.follow()
        yield made
        for process in nodes.values():
            assert process.end() == 0, process.log.read_text()
    finally:
        for process in nodes.values():
            if process.process is not None and process.process.poll() is None:
                process.process.kill()
        etcd.kill()


def node(label: str, names: dict[str, str], etcd: Etcd, place: Path) -> Process:
    underlay = Underlay(address=ip_address(UNDER[label]), port=PORT)
    words = ["--flannel", etcd.url, "--flannel-env", str(place / "subnet.env")]
    made = Process(names[label], place, *words, "--flannel-endpoint", f"web@{names['p' + label]}")
    made.file.write_text(dump(Document(node=Node(name=label, underlay=underlay))))
    return made


class Ping:
    """Echo requests from one namespace, until it ends; what they tell."""

    def __init__(self, netns: str, to: str, *words: str) -> None:
        command = ["ip", "netns", "exec", netns, "ping", "-n", "-q", *words, to]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def lost(self) -> int:
        """How many had no answer."""
        self.process.send_signal(signal.SIGINT)
        told, _ = self.process.communicate(timeout=30)
        sent, received = (
            int(told.partition(" packets transmitted")[0].split()[-1]),
            int(told.partition(" received")[0].split()[-1]),
        )
        assert sent > 20, told
        return sent - received


def test_every_pair_pings_with_the_largest_packet(overlay: Overlay) -> None:
    """1450 octets, not to be fragmented, both ways between all three nodes."""
    pods = overlay.pods()
    for source in pods:
        for target, address in pods.items():
            if source != target:
                words = ["-c1", "-W5", "-Mdo", "-s1422", address]
                run("ip", "netns", "exec", overlay.names[source], "ping", *words)


def test_subnet_env_tells_the_lease(overlay: Overlay) -> None:
    for label, process in overlay.nodes.items():
        lease = overlay.leases()[UNDER[label]]
        told = (process.place / "subnet.env").read_text()
        assert f"FLANNEL_SUBNET={lease.subnet.v4[1]}/24\nFLANNEL_MTU=1450\n" in told


def test_an_outage_and_a_compaction_stop_nothing(overlay: Overlay) -> None:
    """Meanwhile a peer's VtepMAC changes and another comes: all is followed once etcd is back."""
    pods, names, etcd = overlay.pods(), overlay.names, overlay.etcd
    before = {label: overlay.leases()[UNDER[label]] for label in overlay.nodes}
    pings = [Ping(names["pa"], pods["pb"], "-i0.02"), Ping(names["k"], pods["pa"], "-i0.02")]
    etcd.kill()
    time.sleep(OUTAGE)
    etcd.start()
    other = "10.5.90.0-24"
    etcd.put(f"{ROOT}/subnets/{other}", kernel_lease("10.99.0.9", "02:00:00:00:00:09"))
    for _ in range(20):
        etcd.put(f"{ROOT}/elsewhere", b"x")
    etcd.compact()
    until(lambda: all("10.5.90.0/24" in overlay.remotes(n) for n in overlay.nodes), 15)
    assert [ping.lost() for ping in pings] == [0, 0]
    after = overlay.leases()
    assert {label: after[UNDER[label]] for label in overlay.nodes} == before
    etcd.delete(f"{ROOT}/subnets/{other}")
    until(lambda: all("10.5.90.0/24" not in overlay.remotes(n) for n in overlay.nodes), 15)


def test_a_peer_that_begins_again_loses_nothing(overlay: Overlay) -> None:
    """Its lease is deleted and written again; an empty VtepMAC in between is waited for."""
    ping = Ping(overlay.names["pa"], overlay.pods()["k"], "-i0.02")
    key = f"{ROOT}/subnets/10.5.57.0-24"
    overlay.etcd.delete(key)
    time.sleep(1)
    overlay.etcd.put(key, kernel_lease())
    time.sleep(0.5)
    assert ping.lost() == 0


def test_a_lease_that_is_removed_comes_again(overlay: Overlay) -> None:
    """The same subnet, the same VtepMAC, and forwarding goes on."""
    ping = Ping(overlay.names["pa"], overlay.pods()["pb"], "-i0.02")
    lease = overlay.leases()[UNDER["a"]]
    overlay.etcd.delete(f"{ROOT}/subnets/{lease.subnet.key()}")
    until(lambda: overlay.leases().get(UNDER["a"]) == lease)
    time.sleep(1)
    assert ping.lost() == 0


def test_a_node_that_is_killed_has_its_lease_and_addresses_again(overlay: Overlay) -> None:
    """With and without etcd: what it knew is in its state directory."""
    process, lease = overlay.nodes["a"], overlay.leases()[UNDER["a"]]
    pods = overlay.pods()
    for etcd_lives in (True, False):
        process.end(signal.SIGKILL)
        if not etcd_lives:
            overlay.etcd.kill()
        process.start()
        words = ["-c3", "-W5", "-i0.2", pods["pb"]]
        run("ip", "netns", "exec", overlay.names["pa"], "ping", *words)
        if not etcd_lives:
            overlay.etcd.start()
        until(lambda: overlay.leases()[UNDER["a"]] == lease)
        assert overlay.pods() == pods


def test_a_successor_has_the_lease_and_follows(overlay: Overlay) -> None:
    """No packet is lost while it takes over, and it sees who comes afterwards."""
    lease = overlay.leases()[UNDER["a"]]
    ping = Ping(overlay.names["pa"], overlay.pods()["pb"], "-i0.02")
    with Client(overlay.nodes["a"].socket) as client:
        client.restart()
    key = f"{ROOT}/subnets/10.5.92.0-24"
    overlay.etcd.put(key, kernel_lease("10.99.0.8", "02:00:00:00:00:08"))
    until(lambda: "10.5.92.0/24" in overlay.remotes("a"))
    assert ping.lost() == 0
    assert overlay.leases()[UNDER["a"]] == lease
    overlay.etcd.delete(key)
    until(lambda: all("10.5.92.0/24" not in overlay.remotes(n) for n in overlay.nodes), 15)


def test_a_thousand_leases_appear_within_a_second(overlay: Overlay) -> None:
    """From the first put to the engine, of subnets of 28 bits in 10.5.128.0/17."""

    def put(n: int) -> dict[str, Any]:
        at = ip_address("10.5.128.0") + 16 * n
        value = kernel_lease(f"10.98.{n >> 8}.{n & 255 or 1}", f"02:00:00:00:{n >> 8:02x}:01")
        key = base64.b64encode(f"{ROOT}/subnets/{at}-28".encode()).decode()
        return {"request_put": {"key": key, "value": base64.b64encode(value).decode()}}

    puts = [put(n) for n in range(1000)]
    marker = f"{ROOT}/subnets/10.5.91.0-24"
    overlay.etcd.put(marker, kernel_lease("10.99.0.9", "02:00:00:00:00:09"))
    until(lambda: "10.5.91.0/24" in overlay.remotes("b"))  # follows again
    with Client(overlay.nodes["b"].socket) as client:
        begin = time.monotonic()
        for at in range(0, 1000, 125):
            overlay.etcd.call("kv/txn", {"success": puts[at : at + 125]})
        until(lambda: client.describe("networks", "flannel")["remote_subnets"] >= 1003, 30)
        took = time.monotonic() - begin
    print(f"1,000 leases in {took:.3f} s")
    assert took < 1.0, f"{took:.2f} s"
