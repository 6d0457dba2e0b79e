"""Who forwards between the pods: each a context manager that joins them, and leaves nothing behind.

`kernel` is what the others are compared with: Linux's VXLAN device, routed as flannel sets it up.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from bench.peers import tools
from bench.peers.site import (
    GATEWAY_MAC,
    HOST_OF,
    HOSTS,
    MTU,
    OTHER,
    POD_MAC,
    PODS,
    PREFIXES,
    VNI,
    Wire,
)
from dataplane.address import Mac, Vni
from dataplane.demo_net import run
from dataplane.demo_node import NodeProcess
from dataplane.document import dump
from dataplane.errors import DataplaneError
from dataplane.model import Document, Endpoint, Network, Node, RemoteSubnet, Tap, Underlay
from dataplane.stats import adds_up

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
ROOT = str(Path(__file__).resolve().parent.parent.parent)


@dataclass(frozen=True)
class Opponent:
    """`join`: forwards between the pods while its block runs. `lacks`: why it cannot, or empty.

    `only`: names of the measures it takes part in; none: all. `slow`: it is given less to do.
    """

    name: str
    title: str
    join: Callable[[Wire], AbstractContextManager[None]]
    lacks: Callable[[], str] = str
    only: tuple[str, ...] = ()
    slow: bool = False


# ---- the kernel --------------------------------------------------------------------------------


@contextmanager
def kernel(site: Wire) -> Iterator[None]:
    """vxlan device ─ routing ─ veth ─ pod, with flannel's three entries for the other host."""
    for pod, host in HOST_OF.items():
        other = OTHER[host]
        mac = {h: f"02:aa:00:00:00:0{h}" for h in HOSTS}
        site.pod_veth(pod)
        site.ip(
            host,
            f"link set pod address {GATEWAY_MAC}",
            f"route add {PODS[pod]}/32 dev pod",
            f"link add vx address {mac[host]} type vxlan id {VNI} local {HOSTS[host]} dev under"
            " dstport 4789 nolearning",
            f"link set vx mtu {MTU} up",
            f"neigh replace {PODS[OTHER[pod]]} lladdr {mac[other]} dev vx nud permanent",
            f"route add {PREFIXES[other]} via {PODS[OTHER[pod]]} dev vx onlink",
            f"neigh replace {PODS[pod]} lladdr {POD_MAC[pod]} dev pod nud permanent",
        )
        entry = ["fdb", "replace", mac[other], "dst", HOSTS[other], "dev", "vx", "self"]
        run("bridge", "-n", site.full(host), *entry, "permanent")
        site.forward(host)
        site.settle(pod, "eth0", GATEWAY_MAC)
    yield


# ---- this forwarder ----------------------------------------------------------------------------


def ours(*options: str) -> Callable[[Wire], AbstractContextManager[None]]:
    """`dataplane run` on both hosts, with these options."""

    @contextmanager
    def join(site: Wire) -> Iterator[None]:
        policy = site.directory / "policy.yaml"
        policy.write_text(dump(Document(nodes=tuple(_node(site, pod) for pod in PODS))))
        with ExitStack() as made:
            nodes = [
                made.enter_context(NodeProcess(site, host, host, policy, *options))
                for host in HOSTS
            ]
            yield
        for node in nodes:
            totals = node.final()["totals"]
            if not adds_up(totals):
                raise DataplaneError(f"node {node.name}: packets do not add up: {totals}")

    return join


def _node(site: Wire, pod: str) -> Node:
    host = HOST_OF[pod]
    other = OTHER[host]
    network = Network(
        name="bench",
        vni=Vni(VNI),
        prefixes=(ip_network("10.1.0.0/16"),),
        dr_mac=Mac(GATEWAY_MAC),
        remote_subnets=(
            RemoteSubnet(
                prefix=ip_network(PREFIXES[other]),
                provider_address=ip_address(HOSTS[other]),
                dr_mac=Mac(GATEWAY_MAC),
            ),
        ),
        endpoints=(
            Endpoint(
                name="pod",
                addresses=(ip_address(PODS[pod]),),
                mac=Mac(POD_MAC[pod]),
                tap=Tap(name="eth0", netns=site.full(pod)),
            ),
        ),
    )
    return Node(name=host, underlay=Underlay(address=ip_address(HOSTS[host])), networks=(network,))


# ---- Open vSwitch, its userspace datapath ------------------------------------------------------


def no_switch() -> str:
    found = shutil.which("ovs-vswitchd", path=PATH) and SCHEMA.exists()
    return "" if found else "Open vSwitch is not installed"


@contextmanager
def open_vswitch(site: Wire) -> Iterator[None]:
    """On each host a switch of its own: br-under on the veth, br-pods with a TAP and VXLAN."""
    with ExitStack() as made:
        for pod, host in HOST_OF.items():
            vsctl = made.enter_context(_switch(site, host))
            for bridge in ("br-under", "br-pods"):
                vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
            vsctl("add-port", "br-under", "under")
            to = f"options:remote_ip={HOSTS[OTHER[host]]}"
            vxlan = ["type=vxlan", to, f"options:key={VNI}"]
            vsctl("add-port", "br-pods", "vx", "--", "set", "interface", "vx", *vxlan)
            vsctl("add-port", "br-pods", "tap", "--", "set", "interface", "tap", "type=internal")
            site.ip(host, "addr flush dev under", f"link set tap netns {site.full(pod)}")
            site.underlay(host, "br-under")
            site.settle(pod, "tap", POD_MAC[OTHER[pod]])
        yield


@contextmanager
def _switch(site: Wire, host: str) -> Iterator[Callable[..., None]]:
    """Its daemons, which die with this process; yields `ovs-vsctl`."""
    directory = site.directory / f"ovs-{host}"
    directory.mkdir()
    environment = {**os.environ, "PATH": PATH, "OVS_RUNDIR": str(directory)}
    database, remote = directory / "conf.db", f"unix:{directory / 'db.sock'}"
    run("ovsdb-tool", "create", str(database), str(SCHEMA))

    def started(*command: str) -> subprocess.Popen[bytes]:
        with (directory / f"{command[0]}.log").open("wb") as log:
            words = ["setpriv", "--pdeathsig", "KILL", *command]
            return subprocess.Popen(
                site.command(host, *words, f"--unixctl={directory / command[0]}.ctl"),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def vsctl(*words: str) -> None:
        run(*site.command(host, "ovs-vsctl", f"--db={remote}", "--retry", "--timeout=10", *words))

    with ExitStack() as made:
        for command in (
            ("ovsdb-server", str(database), f"--remote=p{remote}"),
            ("ovs-vswitchd", remote, "--disable-system"),
        ):
            made.callback(_end, started(*command))
        yield vsctl


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- one packet at a time ----------------------------------------------------------------------


def no_compiler() -> str:
    return "" if shutil.which("cc") else "no C compiler"


@contextmanager
def naive(site: Wire) -> Iterator[None]:
    """naive.c: one packet a system call."""
    program = tools.built("naive", site.directory)
    with _forwarders(site, [str(program)]):
        yield


def no_scapy() -> str:
    try:
        import scapy  # noqa: F401
    except ImportError:
        return "scapy is not installed"
    return ""


@contextmanager
def scapy(site: Wire) -> Iterator[None]:
    """scapy_node.py: each packet becomes objects."""
    with _forwarders(site, [sys.executable, "-m", "bench.peers.scapy_node"]):
        yield


@contextmanager
def _forwarders(site: Wire, program: list[str]) -> Iterator[None]:
    """One on each host, told its pod's namespace, TAP, both ends, and the VNI."""
    with ExitStack() as made:
        for pod, host in HOST_OF.items():
            netns = f"/run/netns/{site.full(pod)}"
            ends = HOSTS[host], HOSTS[OTHER[host]]
            process = subprocess.Popen(
                site.command(host, *program, netns, "eth0", *ends, str(VNI)),
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": ROOT},
            )
            made.callback(_end, process)
            assert process.stdout is not None
            made.enter_context(process.stdout)
            if process.stdout.readline() != b"ready\n":
                raise DataplaneError(f"{program[-1]} on host {host} does not start")
            site.settle(pod, "eth0", POD_MAC[OTHER[pod]])
        yield


KERNEL = "kernel"
OURS = "dataplane"
OPPONENTS = {
    o.name: o
    for o in (
        Opponent(KERNEL, "kernel VXLAN device", kernel),
        Opponent(OURS, "this forwarder", ours()),
        Opponent("busy", "this forwarder, busy polling", ours("--busy-poll", "200"), only=("rtt",)),
        Opponent("xdp", "this forwarder, AF_XDP", ours("--xdp", "under")),
        Opponent("ovs", "Open vSwitch userspace", open_vswitch, no_switch),
        Opponent("naive", "one packet a call", naive, no_compiler),
        Opponent("scapy", "scapy", scapy, no_scapy, only=("tcp_1", "udp_1", "rtt"), slow=True),
    )
}
