"""Open vSwitch's userspace datapath as the other VTEP: no kernel module, no VXLAN of Linux.

pod a ─ TAP ─ node (192.0.2.1, ours) ── veth ── br-under (192.0.2.2) br-pods ─ veth ─ pod b

Both daemons run in the switch's namespace and die with this process; database and sockets are in a
temporary directory.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from dataplane.address import Mac, Vni
from dataplane.engine import Engine
from dataplane.forwarder import Forwarder
from dataplane.model import Endpoint, Network, Node, RemoteSubnet, Underlay
from dataplane.netns import inside
from dataplane.ports import Tap, VxlanSocket
from tests.peers.wire import ip, mac, run
from tests.setting import PORT, WORKERS

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
pytestmark = pytest.mark.skipif(
    shutil.which("ovs-vswitchd", path=PATH) is None or not SCHEMA.exists(),
    reason="Open vSwitch is not installed",
)

A4, B4, A6, B6 = "10.1.1.2", "10.1.2.2", "fd00:1:1::2", "fd00:1:2::2"
A_MAC, DR_MAC = Mac("02:00:00:00:00:0a"), Mac("02:aa:00:00:00:01")
VNIS = [1, 4096, 0xFFFFFF]


class Switch:
    """`ovsdb-server` and `ovs-vswitchd` in a namespace."""

    def __init__(self, netns: str, directory: Path, made: ExitStack) -> None:
        self._netns, self._socket = netns, directory / "db.sock"
        self._environment = {**os.environ, "PATH": PATH, "OVS_RUNDIR": str(directory)}
        database = directory / "conf.db"
        subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True, capture_output=True)
        listen = f"--remote=punix:{self._socket}"
        self._start(made, directory, "ovsdb-server", str(database), listen)
        self._start(made, directory, "ovs-vswitchd", f"unix:{self._socket}", "--disable-system")

    def _start(self, made: ExitStack, directory: Path, *command: str) -> None:
        log = made.enter_context((directory / f"{command[0]}.log").open("wb"))
        daemon = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._netns, "setpriv", "--pdeathsig", "KILL"),
                *command,
                f"--unixctl={directory / command[0]}.ctl",
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        made.callback(daemon.wait, 10)
        made.callback(daemon.terminate)

    def vsctl(self, *words: str) -> None:
        """Returns once the switch does what it was told."""
        self._run("ovs-vsctl", f"--db=unix:{self._socket}", "--retry", "--timeout=10", *words)

    def _run(self, *words: str) -> None:
        command = ["ip", "netns", "exec", self._netns, *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"


class World(NamedTuple):
    switch: Switch
    engine: Engine
    pods: tuple[str, str]

    def use(self, vni: int) -> None:
        """Both sides speak this network."""
        self.engine.commit(policy(vni, mac(self.pods[1], "eth0")))
        self.switch.vsctl("set", "interface", "vx", f"options:key={vni}")


def policy(vni: int, remote_mac: Mac) -> Node:
    remote = [
        RemoteSubnet(
            prefix=ip_network(prefix), provider_address=ip_address("192.0.2.2"), dr_mac=remote_mac
        )
        for prefix in ("10.1.2.0/24", "fd00:1:2::/64")
    ]
    addresses = ip_address(A4), ip_address(A6)
    network = Network(
        name="blue",
        vni=Vni(vni),
        prefixes=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
        dr_mac=DR_MAC,
        remote_subnets=tuple(remote),
        endpoints=(Endpoint(name="web", addresses=addresses, mac=A_MAC),),
    )
    underlay = Underlay(address=ip_address("192.0.2.1"))
    return Node(name="a", underlay=underlay, networks=(network,))


@pytest.fixture(scope="module")
def world(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    node, other, a, b = module_netns("n", "v", "a", "b")
    with ExitStack() as made:
        cables(node, other, b)
        switch = Switch(other, tmp_path_factory.mktemp("ovs"), made)
        bridges(switch)
        ip(other, "addr add 192.0.2.2/24 dev br-under", "link set br-under up")
        engine = made.enter_context(Engine(workers=WORKERS))
        engine.commit(policy(VNIS[0], mac(b, "eth0")))
        tap = made.enter_context(Tap("eth0", netns=a, mac=A_MAC, mtu=1450, **PORT))
        settle(a, "eth0", A4, A6, DR_MAC)
        underlay = made.enter_context(VxlanSocket(ip_address("192.0.2.1"), netns=node, **PORT))
        ports = {"underlay": underlay, "web": tap}
        forwarder = made.enter_context(Forwarder(engine, ports, workers=WORKERS))
        made.enter_context(forwarder.background())
        yield World(switch, engine, (a, b))


def cables(node: str, other: str, pod: str) -> None:
    """Without offloads: the switch reads raw frames, which must be whole."""
    ip(
        other,
        f"link add under type veth peer name under netns {node}",
        f"link add pod type veth peer name eth0 netns {pod}",
        "link set under up",
        "link set pod mtu 1450 up",
    )
    ip(node, "addr add 192.0.2.1/24 dev under", "link set under up")
    ip(pod, "link set eth0 mtu 1450 up")
    for netns, device in ((node, "under"), (other, "under"), (other, "pod"), (pod, "eth0")):
        run(netns, "ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off", "gro", "off")
    settle(pod, "eth0", B4, B6, DR_MAC)


def settle(pod: str, device: str, ip4: str, ip6: str, router: Mac) -> None:
    """Addresses, and everything else behind the router's MAC."""
    ip(
        pod,
        f"addr add {ip4}/32 dev {device}",
        f"addr add {ip6}/128 dev {device} nodad",
        f"neigh replace 10.1.0.1 lladdr {router} dev {device} nud permanent",
        f"neigh replace fd00:1::1 lladdr {router} dev {device} nud permanent",
        f"route replace default via 10.1.0.1 dev {device} onlink",
        f"route replace default via fd00:1::1 dev {device} onlink",
    )


def bridges(switch: Switch) -> None:
    for bridge, port in (("br-under", "under"), ("br-pods", "pod")):
        switch.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        switch.vsctl("add-port", bridge, port)
    tunnel = ["type=vxlan", "options:remote_ip=192.0.2.1", f"options:key={VNIS[0]}"]
    switch.vsctl("add-port", "br-pods", "vx", "--", "set", "interface", "vx", *tunnel)


@pytest.fixture(params=VNIS)
def pods(request: pytest.FixtureRequest, world: World) -> tuple[str, str]:
    """Namespaces of the pod of ours and of theirs, joined by one network."""
    world.use(request.param)
    a, b = world.pods
    assert any(ping(a, B4, "-c", "1", "-W", "0.3") for _ in range(20)), "the switch never answers"
    return a, b


def ping(pod: str, address: str, *options: str) -> bool:
    words = ["ip", "netns", "exec", pod, "ping", "-q", *options, address]
    return subprocess.run(words, capture_output=True).returncode == 0


PAIRS = pytest.mark.parametrize(
    ("source", "address"), [(0, B4), (1, A4), (0, B6), (1, A6)], ids=["out4", "in4", "out6", "in6"]
)


@pytest.mark.conformance("V1", "V3", "V6")
@PAIRS
def test_ping(pods: tuple[str, str], source: int, address: str) -> None:
    largest = "1402" if ":" in address else "1422"
    assert ping(pods[source], address, "-c", "3", "-i", "0.02", "-W", "1")
    assert ping(pods[source], address, "-c", "1", "-W", "1", "-M", "do", "-s", largest)


@pytest.mark.conformance("V3")
@PAIRS
def test_udp(pods: tuple[str, str], source: int, address: str) -> None:
    """Datagrams of all kinds of sizes arrive whole, and are answered."""
    server = inside(pods[1 - source], lambda: bound(address, socket.SOCK_DGRAM))
    family = server.family
    client = inside(pods[source], lambda: socket.socket(family, socket.SOCK_DGRAM))
    with closing(server), closing(client):
        client.settimeout(2)
        for size in (0, 1, 17, 1000, 1450 - (48 if ":" in address else 28)):
            data = os.urandom(size)
            client.sendto(data, server.getsockname())
            got, back = server.recvfrom(2000)
            server.sendto(got[::-1], back)
            assert (got, client.recv(2000)) == (data, data[::-1])


@pytest.mark.conformance("V3", "N8")
@PAIRS
def test_tcp(pods: tuple[str, str], source: int, address: str) -> None:
    server = inside(pods[1 - source], lambda: bound(address, socket.SOCK_STREAM))
    server.listen()
    data, digest = os.urandom(1 << 20), hashlib.sha256()

    def receive() -> None:
        with server.accept()[0] as connection:
            connection.settimeout(5)
            while chunk := connection.recv(1 << 16):
                digest.update(chunk)

    with closing(server):
        receiver = threading.Thread(target=receive)
        receiver.start()
        to = server.getsockname()[:2]
        with inside(pods[source], lambda: socket.create_connection(to, 5)) as client:
            client.sendall(data)
        receiver.join(10)
    assert digest.digest() == hashlib.sha256(data).digest()


def bound(address: str, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.settimeout(5)
    sock.bind((address, 0))
    return sock


@pytest.mark.conformance("V3")
def test_another_network_is_not_heard(world: World, pods: tuple[str, str]) -> None:
    """Theirs keeps its number, ours changes: neither hears the other any more."""
    vni = int(world.engine.resolved.networks[0].vni)  # type: ignore[union-attr]
    world.engine.commit(policy(vni ^ 2, mac(pods[1], "eth0")))
    before = world.engine.stats()
    assert not ping(pods[0], B4, "-c", "2", "-i", "0.05", "-W", "0.3")
    assert not ping(pods[1], A4, "-c", "2", "-i", "0.05", "-W", "0.3")
    assert (world.engine.stats() - before).to_dict()["reasons"]["unknown_vni"] >= 2
