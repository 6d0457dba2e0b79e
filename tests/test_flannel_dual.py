"""A dual-stack overlay: two nodes of ours, and a kernel's, set up as flannel does.

hub (etcd, 10.99.0.100, fd99::100; routes) ── a, b (10.99.0.1, .2; fd99::1, ::2: ours), k (.3; ::3)

The pods of a and b are at TAPs, in namespaces pa and pb. IPv6 goes over IPv6.
"""

import json
import signal
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

import pytest

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.flannel.documents import Lease, read_lease
from dataplane.model import Document, Node, Underlay
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
from tests.peers.wire import ip, sysctl

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

ROOT, VNI, PORT = "/coreos.com/network", 43, 8472
CONFIG = json.dumps(
    {
        "Network": "10.5.0.0/16",
        "SubnetMax": "10.5.50.0",
        "EnableIPv6": True,
        "IPv6Network": "2001:cafe:42::/56",
        "IPv6SubnetMax": "2001:cafe:42:32::",
        "Backend": {"Type": "vxlan", "VNI": VNI},
    }
).encode()
UNDER = {label: f"10.99.0.{n}" for n, label in enumerate("abk", 1)}
UNDER6 = {label: f"fd99::{n}" for n, label in enumerate("abk", 1)}
HUB, HUB6 = "10.99.0.100", "fd99::100"
KERNEL, KERNEL6 = IPv4Network("10.5.57.0/24"), IPv6Network("2001:cafe:42:f0::/64")
KEY = f"{ROOT}/subnets/10.5.57.0-24&2001:cafe:42:f0::-64"
INTERVAL = 0.002
MAC, MAC6 = "3a:b5:9c:f3:a6:05", "2e:70:3d:4b:fa:14"


class Way(NamedTuple):
    """Where a node sends what is for a prefix."""

    provider: str
    mac: str


class Overlay(NamedTuple):
    etcd: Etcd
    nodes: dict[str, Process]
    names: dict[str, str]  # network namespaces

    def leases(self) -> dict[str, Lease]:
        """By public IP."""
        found = self.etcd.values(f"{ROOT}/subnets")
        leases = (read_lease(key.rpartition("/")[2], value) for key, value in found.items())
        return {str(lease.public_ip): lease for lease in leases}

    def ways(self, node: str) -> dict[str, Way]:
        """By prefix, as the node's policy has them."""
        with Client(self.nodes[node].socket) as client:
            items = client.get("remote-subnets")
        return {item["prefix"]: Way(item["provider_address"], item["dr_mac"]) for item in items}

    def ends(self, version: int) -> dict[str, str]:
        """The address of each end of the overlay, by its network namespace."""
        kernel = (KERNEL if version == 4 else KERNEL6).network_address
        pods = [self.names[f"p{node}"] for node in self.nodes]
        return {pod: address(pod, "web", version) for pod in pods} | {self.names["k"]: str(kernel)}

    def follow(self) -> None:
        """As flannel does at k, each lease of ours."""
        four, six = kernel_devices(self.names["k"])
        for node in self.nodes:
            lease = self.leases()[UNDER[node]]
            assert lease.subnet.v6 is not None
            four.follow(lease.subnet.v4, str(lease.mac), str(lease.public_ip))
            six.follow(lease.subnet.v6, str(lease.mac6), str(lease.public_ip6))


def kernel_devices(
    netns: str, public_ip6: str = UNDER6["k"], mac6: str = MAC6
) -> tuple[KernelDevice, KernelDevice]:
    return (
        KernelDevice(netns, f"flannel.{VNI}", KERNEL, MAC, UNDER["k"]),
        KernelDevice(netns, f"flannel-v6.{VNI}", KERNEL6, mac6, public_ip6),
    )


def kernel_lease(
    public_ip: str = UNDER["k"], public_ip6: str = UNDER6["k"], mac6: str = MAC6
) -> bytes:
    lease = {"PublicIP": public_ip, "PublicIPv6": public_ip6, "BackendType": "vxlan"}
    data, data6 = {"VNI": VNI, "VtepMAC": MAC}, {"VNI": VNI, "VtepMAC": mac6}
    whole = lease | {"BackendData": data, "BackendV6Data": data6}
    return json.dumps(whole, separators=(",", ":")).encode()


@pytest.fixture(scope="module")
def overlay(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Overlay]:
    labels = ("hub", *UNDER, "pa", "pb")
    names = dict(zip(labels, module_netns(*labels), strict=True))
    wire(names)
    for device in kernel_devices(names["k"]):
        device.make(VNI, PORT)
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), HUB, names["hub"]).start()
    nodes: dict[str, Process] = {}
    try:
        etcd.put(f"{ROOT}/config", CONFIG)
        etcd.put(KEY, kernel_lease())
        for label in ("a", "b"):
            place = tmp_path_factory.mktemp(label)
            words = ["--flannel", etcd.url, "--flannel-env", str(place / "subnet.env")]
            words += ["--flannel-endpoint", f"web@{names['p' + label]}"]
            process = nodes[label] = Process(names[label], place, *words)
            own, own6 = ip_address(UNDER[label]), ip_address(UNDER6[label])
            node = Node(name=label, underlay=Underlay(address=own, address6=own6, port=PORT))
            process.file.write_text(dump(Document(node=node)))
            process.start()
        made = Overlay(etcd, nodes, names)
        until(lambda: len(made.leases()) == 3)
        until(lambda: all(len(made.ways(node)) == 4 for node in nodes))
        made.follow()
        yield made
        end_all(nodes)
    finally:
        kill_all(nodes)
        etcd.kill()


def wire(names: dict[str, str]) -> None:
    hub = names["hub"]
    ip(hub, f"addr add {HUB}/32 dev lo")
    sysctl(hub, net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
    for label, address4 in UNDER.items():
        ip(hub, f"link add name to-{label} type veth peer name under netns {names[label]}")
        ip(hub, f"addr add {HUB6}/128 dev to-{label} nodad", f"link set to-{label} up")
        ip(names[label], "link set under up")
        for own, router, nodad in (
            (f"{address4}/32", HUB, ""),
            (f"{UNDER6[label]}/128", HUB6, "nodad"),
        ):
            ip(hub, f"route add {own} dev to-{label}")
            ip(names[label], f"addr add {own} dev under {nodad}")
            ip(names[label], f"route add {router} dev under", f"route add default via {router}")


both_families = pytest.mark.parametrize("version", [4, 6])


@both_families
def test_every_pair_pings_with_the_largest_packet(overlay: Overlay, version: int) -> None:
    """1430 octets, as IPv6 over IPv6 leaves them."""
    assert len(overlay.ends(version)) == 3
    ping_every_pair(overlay.ends(version), 1430)


def test_what_a_flannel_node_sends_over_ipv4_arrives(overlay: Overlay) -> None:
    """1450 octets, as its device and its pods have them; over IPv4 there is room for them."""
    for pod in ("pa", "pb"):
        to = overlay.ends(4)[overlay.names[pod]]
        words = ["ping", "-c1", "-W5", "-Mdo", "-s1422", to]
        run("ip", "netns", "exec", overlay.names["k"], *words)


@both_families
def test_every_pair_has_tcp_both_ways(overlay: Overlay, version: int) -> None:
    tcp_every_pair(overlay.ends(version))


def test_each_family_goes_over_its_own(overlay: Overlay) -> None:
    """To the VtepMAC that the lease tells for it."""
    for node, other in (("a", "b"), ("b", "a")):
        lease = overlay.leases()[UNDER[other]]
        assert overlay.ways(node) == {
            str(KERNEL): Way(UNDER["k"], MAC),
            str(KERNEL6): Way(UNDER6["k"], MAC6),
            str(lease.subnet.v4): Way(UNDER[other], str(lease.mac)),
            str(lease.subnet.v6): Way(UNDER6[other], str(lease.mac6)),
        }


def test_subnet_env_tells_both_families(overlay: Overlay) -> None:
    """The MTU is IPv6's: of the two the kernel's devices have, the smaller one."""
    for label, process in overlay.nodes.items():
        v4, v6 = overlay.leases()[UNDER[label]].subnet
        assert v6 is not None
        assert (process.place / "subnet.env").read_text() == (
            f"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={v4[1]}/24\n"
            f"FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET={v6[1]}/64\n"
            "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
        )


@pytest.mark.parametrize(
    ("public_ip6", "mac6"), [(UNDER6["k"], "2e:70:3d:4b:fa:99"), ("fd99::33", MAC6)]
)
def test_a_peer_whose_ipv6_changes_is_reached_as_it_says(
    overlay: Overlay, public_ip6: str, mac6: str
) -> None:
    """Its device is made anew, at another address or with another VtepMAC; then again with what it
    had before. IPv4 goes on."""
    names, ends, ends6 = overlay.names, overlay.ends(4), overlay.ends(6)
    kernel = names["k"]
    ip(names["hub"], "route replace fd99::33/128 dev to-k")
    ip(kernel, "addr replace fd99::33/128 dev under nodad")
    pings = [Ping(names[pod], ends[kernel], INTERVAL) for pod in ("pa", "pb")]
    for way in (Way(public_ip6, mac6), Way(UNDER6["k"], MAC6)):
        ip(kernel, f"link del flannel-v6.{VNI}")
        _, six = kernel_devices(kernel, *way)
        six.make(VNI, PORT)
        overlay.etcd.put(KEY, kernel_lease(public_ip6=way.provider, mac6=way.mac))
        until(lambda way=way: all(overlay.ways(n)[str(KERNEL6)] == way for n in overlay.nodes))
        overlay.follow()
        ping_every_pair(ends6, 1430)
    assert [ping.lost() for ping in pings] == [0, 0]


def test_a_peer_that_does_not_know_its_ipv6_vtep_mac_yet_loses_nothing(overlay: Overlay) -> None:
    """As one that begins again: it is waited for."""
    ping = Ping(overlay.names["pa"], overlay.ends(6)[overlay.names["k"]], INTERVAL)
    overlay.etcd.put(KEY, kernel_lease(mac6=""))
    marker, seen = f"{ROOT}/subnets/10.5.93.0-24", "10.5.93.0/24"
    overlay.etcd.put(marker, kernel_lease("10.99.0.9"))
    until(lambda: seen in overlay.ways("a"))
    assert overlay.ways("a")[str(KERNEL6)] == Way(UNDER6["k"], MAC6)
    overlay.etcd.put(KEY, kernel_lease())
    overlay.etcd.delete(marker)
    until(lambda: seen not in overlay.ways("a"), 15)
    assert ping.lost() == 0


def test_a_lease_that_is_removed_comes_again(overlay: Overlay) -> None:
    """Both subnets, and forwarding goes on."""
    names, lease = overlay.names, overlay.leases()[UNDER["a"]]
    pings = [Ping(names["pa"], overlay.ends(v)[names["pb"]], INTERVAL) for v in (4, 6)]
    overlay.etcd.delete(f"{ROOT}/subnets/{lease.subnet.key()}")
    until(lambda: overlay.leases().get(UNDER["a"]) == lease)
    for version in (4, 6):
        ping_every_pair(overlay.ends(version), 1430)
    assert [ping.lost() for ping in pings] == [0, 0]


def test_a_node_that_is_killed_has_both_subnets_again(overlay: Overlay) -> None:
    process, lease = overlay.nodes["a"], overlay.leases()[UNDER["a"]]
    ends = {version: overlay.ends(version) for version in (4, 6)}
    process.end(signal.SIGKILL)
    process.start()
    for version, before in ends.items():
        ping_every_pair(before, 1430)
        assert overlay.ends(version) == before
    assert overlay.leases()[UNDER["a"]] == lease


def test_subnets_that_another_node_took_are_left_to_it(overlay: Overlay) -> None:
    """a has others, of both families, and so has its endpoint."""
    lease = overlay.leases()[UNDER["a"]]
    key = f"{ROOT}/subnets/{lease.subnet.key()}"
    overlay.etcd.put(key, kernel_lease("10.99.0.9", "fd99::9", "02:00:00:00:00:09"))
    until(lambda: UNDER["a"] in overlay.leases())
    fresh = overlay.leases()[UNDER["a"]]
    assert fresh.subnet.v4 != lease.subnet.v4 and fresh.subnet.v6 != lease.subnet.v6
    assert (fresh.mac, fresh.mac6) == (lease.mac, lease.mac6)
    until(lambda: overlay.ways("b").get(str(fresh.subnet.v6)) == Way(UNDER6["a"], str(fresh.mac6)))
    overlay.follow()
    for version, subnet in ((4, fresh.subnet.v4), (6, fresh.subnet.v6)):
        assert subnet is not None
        until(lambda v=version, s=subnet: has_address_of(overlay.names["pa"], v, s))
        ping_every_pair(overlay.ends(version), 1430)


def has_address_of(netns: str, version: int, subnet: IPv4Network | IPv6Network) -> bool:
    """The TAP is another one by now, and may be none just now."""
    told = run("ip", "-n", netns, f"-{version}", "-json", "addr")
    found = (ip_address(a["local"]) for link in json.loads(told) for a in link["addr_info"])
    return any(at in subnet for at in found)
