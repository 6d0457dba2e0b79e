"""Three nodes of ours and two kernels' VXLAN devices, set up as flannel does, in one overlay.

hub (etcd, 10.99.0.100; routes) ── a, b, c (10.99.0.1, .2, .5: ours), k, l (.3, .4: kernels)

The pods of a and b are at TAPs, in namespaces pa and pb. Of c the host itself has the lease, with a
bridge as flannel's CNI plugin makes it, and a pod there, pc.

DATAPLANE_OUTAGE says for how many seconds etcd is gone.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.flannel.documents import Lease, read_lease
from dataplane.model import Document, HostPort, Node, Tap, Underlay
from dataplane.netns import inside
from tests.cni_runtime import PLUGINS, Runtime
from tests.etcd_server import WHY_NOT, Etcd
from tests.flannel_overlay import (
    KernelDevice,
    Ping,
    address,
    ping_every_pair,
    run,
    tcp_every_pair,
    until,
)
from tests.live_node import Process, end_all, kill_all
from tests.peers.wire import ip

NO_BRIDGE = "" if Path(PLUGINS, "bridge").exists() else "containernetworking-plugins is missing"
pytestmark = pytest.mark.skipif(bool(WHY_NOT or NO_BRIDGE), reason=WHY_NOT or NO_BRIDGE)

OUTAGE = float(os.environ.get("DATAPLANE_OUTAGE", "4"))
ROOT = "/coreos.com/network"
VNI, PORT = 424_242, 4790
CONFIG = json.dumps(
    {
        "Network": "10.5.0.0/16",
        "SubnetMax": "10.5.50.0",
        "Backend": {"Type": "vxlan", "VNI": VNI, "Port": PORT},
    }
).encode()
UNDER = {f: f"10.99.0.{n}" for n, f in enumerate("abklc", 1)}
HUB = "10.99.0.100"
KERNEL_SUBNET, KERNEL_MAC = IPv4Network("10.5.57.0/24"), "7e:5b:fa:eb:b1:26"
KERNELS = {
    "k": (KERNEL_SUBNET, KERNEL_MAC),
    "l": (IPv4Network("10.5.58.0/24"), "7e:5b:fa:eb:b1:27"),
}
DEVICE = "flannel.n"
HOST = HostPort(
    address=ip_address("169.254.77.2"),
    peer=ip_address("169.254.77.1"),
    tap=Tap(name="flannel.ours", mtu=1450),
)


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

    def follows(self) -> None:
        """Waits until every node knows all that was written until now."""
        marker = f"{ROOT}/subnets/10.5.93.0-24"
        self.etcd.put(marker, kernel_lease("10.99.0.7", "02:00:00:00:00:07"))
        until(lambda: all("10.5.93.0/24" in self.remotes(n) for n in self.nodes))
        self.etcd.delete(marker)
        until(lambda: all("10.5.93.0/24" not in self.remotes(n) for n in self.nodes), 15)

    def pods(self) -> dict[str, str]:
        """The address of each namespace's end of the overlay."""
        found = {f"p{n}": address(self.names[f"p{n}"], "web") for n in self.nodes}
        found["c"] = str(self.leases()[UNDER["c"]].subnet.v4.network_address)
        return found | {k: str(subnet.network_address) for k, (subnet, _) in KERNELS.items()}

    def ends(self) -> dict[str, str]:
        """The same by the names that the namespaces really have."""
        return {self.names[label]: at for label, at in self.pods().items()}

    def follow(self, kernel: str) -> None:
        """As flannel does at a kernel's node, each lease of others."""
        device = kernel_device(self.names, kernel)
        for public_ip, lease in self.leases().items():
            if public_ip != UNDER[kernel]:
                device.follow(lease.subnet.v4, str(lease.mac), public_ip)

    def plug(self) -> None:
        """What flannel's CNI plugin does at c: it has the bridge plugin make a bridge with the
        lease's first address, and a pod there (its delegateAdd)."""
        process = self.nodes["c"]
        env = (process.place / "subnet.env").read_text()
        told = dict(line.split("=") for line in env.splitlines())
        subnet = ip_interface(told["FLANNEL_SUBNET"]).network
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": str(subnet)}]],
            "routes": [{"dst": told["FLANNEL_NETWORK"]}],
            "dataDir": str(process.place / "ipam"),
        }
        bridge = Runtime(
            Path(PLUGINS, "bridge"),
            cniVersion="0.3.1",
            name="cbr0",
            type="bridge",
            isGateway=True,
            hairpinMode=True,
            isDefaultGateway=True,
            ipMasq=False,  # as docs/flannel.md says
            mtu=int(told["FLANNEL_MTU"]),
            ipam=ipam,
        )
        inside(self.names["c"], lambda: bridge.add("web", self.names["pc"], ifname="web"))


@pytest.fixture(scope="module")
def overlay(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Overlay]:
    labels = ("hub", *UNDER, "pa", "pb", "pc")
    names = dict(zip(labels, module_netns(*labels), strict=True))
    ip(names["hub"], f"addr add {HUB}/32 dev lo")
    run("ip", "netns", "exec", names["hub"], "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for label, at in UNDER.items():
        ip(names["hub"], f"link add name to-{label} type veth peer name under netns {names[label]}")
        ip(names["hub"], f"link set to-{label} up", f"route add {at}/32 dev to-{label}")
        ip(names[label], f"addr add {at}/32 dev under", "link set under up")
        ip(names[label], f"route add {HUB} dev under", f"route add default via {HUB}")
    for kernel in KERNELS:
        kernel_device(names, kernel).make(VNI, PORT)
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), HUB, names["hub"]).start()
    nodes: dict[str, Process] = {}
    try:
        etcd.put(f"{ROOT}/config", CONFIG)
        for kernel, (subnet, mac) in KERNELS.items():
            key = f"{ROOT}/subnets/{subnet.network_address}-24"
            etcd.put(key, kernel_lease(UNDER[kernel], mac))
        for label in ("a", "b", "c"):
            nodes[label] = node(label, names, etcd, tmp_path_factory.mktemp(label)).start()
        made = Overlay(etcd, nodes, names)
        until(lambda: len(made.leases()) == 5)
        until(lambda: all(len(made.remotes(n)) == 4 for n in nodes))
        for kernel in KERNELS:
            made.follow(kernel)
        made.plug()
        yield made
        end_all(nodes)
    finally:
        kill_all(nodes)
        etcd.kill()


def kernel_device(names: dict[str, str], kernel: str) -> KernelDevice:
    return KernelDevice(names[kernel], DEVICE, *KERNELS[kernel], UNDER[kernel])


def node(label: str, names: dict[str, str], etcd: Etcd, place: Path) -> Process:
    underlay = Underlay(address=ip_address(UNDER[label]), port=PORT)
    words = ["--flannel", etcd.url, "--flannel-env", str(place / "subnet.env")]
    host = HOST if label == "c" else None
    if host is None:
        words += ["--flannel-endpoint", f"web@{names['p' + label]}"]
    made = Process(names[label], place, *words)
    policy = Node(name=label, underlay=underlay, host_port=host)
    made.file.write_text(dump(Document(node=policy)))
    return made


def test_every_pair_pings_with_the_largest_packet(overlay: Overlay) -> None:
    """1450 octets, both ways between all five nodes and the host of one."""
    assert len(overlay.ends()) == 6
    ping_every_pair(overlay.ends(), 1450)


def test_every_pair_has_tcp_both_ways(overlay: Overlay) -> None:
    tcp_every_pair(overlay.ends())


def test_the_host_speaks_from_its_subnet(overlay: Overlay) -> None:
    """As with flannel's device: an address and a route, which go with the node's TAP."""
    at = overlay.pods()["c"]
    told = run("ip", "-n", overlay.names["c"], "route", "get", overlay.pods()["pa"])
    assert f"dev {HOST.tap.name} src {at} " in told


def test_subnet_env_tells_the_lease(overlay: Overlay) -> None:
    for label, process in overlay.nodes.items():
        lease = overlay.leases()[UNDER[label]]
        told = (process.place / "subnet.env").read_text()
        assert f"FLANNEL_SUBNET={lease.subnet.v4[1]}/24\nFLANNEL_MTU=1450\n" in told


def test_an_outage_and_a_compaction_stop_nothing(overlay: Overlay) -> None:
    """Meanwhile a peer's VtepMAC changes and another comes: all is followed once etcd is back."""
    pods, names, etcd = overlay.pods(), overlay.names, overlay.etcd
    before = {label: overlay.leases()[UNDER[label]] for label in overlay.nodes}
    pings = [Ping(names["pa"], pods["pb"], 0.02), Ping(names["k"], pods["pa"], 0.02)]
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
    ping = Ping(overlay.names["pa"], overlay.pods()["k"], 0.02)
    key = f"{ROOT}/subnets/10.5.57.0-24"
    overlay.etcd.delete(key)
    time.sleep(1)
    overlay.etcd.put(key, kernel_lease(mac=""))
    overlay.follows()
    overlay.etcd.put(key, kernel_lease())
    overlay.follows()
    assert ping.lost() == 0


def test_a_peer_whose_vtep_mac_changes_is_reached_by_the_new_one(overlay: Overlay) -> None:
    """As its device is made anew, at the kernel's node; then again with the one of before."""
    key, device = f"{ROOT}/subnets/10.5.57.0-24", f"link set {DEVICE} address"
    for mac in ("7e:5b:fa:eb:b1:99", KERNEL_MAC):
        ip(overlay.names["k"], f"{device} {mac}")
        overlay.etcd.put(key, kernel_lease(mac=mac))
        until(lambda mac=mac: overlay.remotes("a")["10.5.57.0/24"] == mac)
        overlay.follow("k")
        words = ["ping", "-c2", "-i0.2", "-W5", overlay.pods()["k"]]
        run("ip", "netns", "exec", overlay.names["pa"], *words)
        overlay.follow("l")


def test_a_lease_that_is_removed_comes_again(overlay: Overlay) -> None:
    """The same subnet, the same VtepMAC, and forwarding goes on."""
    ping = Ping(overlay.names["pa"], overlay.pods()["pb"], 0.02)
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
    ping = Ping(overlay.names["pa"], overlay.pods()["pb"], 0.02)
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
        until(lambda: client.describe("networks", "flannel")["remote_subnets"] >= 1005, 30)
        took = time.monotonic() - begin
    print(f"1,000 leases in {took:.3f} s")
    assert took < 1.0, f"{took:.2f} s"


def test_a_subnet_that_another_node_took_is_left_to_it(overlay: Overlay) -> None:
    """Of a the endpoint, of c the host: each has a subnet of another number then."""
    for label in ("a", "c"):
        lease = overlay.leases()[UNDER[label]]
        thief = kernel_lease("10.99.0.9", "02:00:00:00:00:09")
        overlay.etcd.put(f"{ROOT}/subnets/{lease.subnet.key()}", thief)
        until(lambda label=label: UNDER[label] in overlay.leases())
        fresh = overlay.leases()[UNDER[label]]
        assert fresh.mac == lease.mac and fresh.subnet != lease.subnet
        until(lambda fresh=fresh: str(fresh.subnet.v4) in overlay.remotes("b"))
    subnet = overlay.leases()[UNDER["a"]].subnet.v4

    def moved() -> bool:
        """The TAP is another one, and may be none just now."""
        with contextlib.suppress(subprocess.CalledProcessError, ValueError):
            return ip_address(overlay.pods()["pa"]) in subnet
        return False

    until(moved)
    pods = overlay.pods()
    for source, target in (("pa", "c"), ("c", "pb"), ("pb", "pa")):
        words = ["ping", "-c1", "-W5", pods[target]]
        run("ip", "netns", "exec", overlay.names[source], *words)
    told = run("ip", "-n", overlay.names["c"], "address", "show", "dev", HOST.tap.name)
    assert pods["c"] in told and told.count("inet ") == 2, "the address of before is gone"
