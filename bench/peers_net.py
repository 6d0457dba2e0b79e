"""Two hosts, a pod on each, and what carries packets between them: the opponents of bench-peers.

     p1 ── h1 ══ underlay, MTU 1500 ══ h2 ── p2        each opponent in four namespaces of its own

Pods are 10.1.1.2 and 10.1.2.2, hosts 192.0.2.1 and 192.0.2.2, the VNI is 4096 for all of them.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

from dataplane import demo_net
from dataplane.address import Mac, Vni
from dataplane.demo_node import NodeProcess
from dataplane.document import dump
from dataplane.model import Document, Endpoint, Network, Node, RemoteSubnet, Tap, Underlay

HOSTS, PODS = ("h1", "h2"), ("p1", "p2")
UNDERLAY = {"h1": "192.0.2.1", "h2": "192.0.2.2"}
ADDRESS = {"p1": "10.1.1.2", "p2": "10.1.2.2"}
ROUTER = {"h1": Mac("02:aa:00:00:00:01"), "h2": Mac("02:aa:00:00:00:02")}
OFFLOADS = ("tso", "gso", "gro", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
FORWARDER = Path(__file__).resolve().parent / "peers_naive.py"


class Site(demo_net.Site):
    """The four namespaces, and the veth pair between the hosts. Owned like the demo's."""

    def __init__(self, name: str, offloads: bool) -> None:
        super().__init__()
        self.prefix += name
        self._offloads = offloads
        self.made = ExitStack()

    def __enter__(self) -> "Site":
        try:
            for name in (*HOSTS, *PODS):
                self.add(name)
            end = f"netns {self.full('h2')}"
            self.ip("h1", f"link add name uplink type veth peer name uplink {end}")
            for host, address in UNDERLAY.items():
                self.ip(host, f"addr add {address}/24 dev uplink", "link set uplink up")
                if not self._offloads:
                    for name in OFFLOADS:
                        demo_net.run(*self.command(host, "ethtool", "-K", "uplink", name, "off"))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        self.made.close()
        super().close()

    @functools.cached_property
    def udp_program(self) -> Path:
        """The sender and counter of small datagrams, built."""
        source, program = FORWARDER.with_name("peers_udp.c"), self.directory / "peers_udp"
        demo_net.run(os.environ.get("CC", "cc"), "-O2", str(source), "-o", str(program))
        return program

    def pod_cables(self, mtu: int) -> None:
        """A veth pair from each host to its pod."""
        for host, pod in zip(HOSTS, PODS, strict=True):
            end = f"netns {self.full(pod)}"
            self.ip(host, f"link add pod mtu {mtu} type veth peer name eth0 mtu {mtu} {end}")
            self.ip(host, "link set pod up")

    def daemon(self, host: str, *words: str, **environment: str) -> None:
        """Runs until the site is closed."""
        log = self.made.enter_context((self.directory / f"{Path(words[0]).name}.log").open("ab"))
        process = subprocess.Popen(
            self.command(host, "setpriv", "--pdeathsig", "KILL", *words),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        self.made.callback(process.wait)
        self.made.callback(process.terminate)


def _flat_pods(site: Site) -> None:
    """Pods that are neighbours on one Ethernet."""
    for pod in PODS:
        site.ip(pod, "link set eth0 mtu 1450 up", f"addr add {ADDRESS[pod]}/16 dev eth0")


# ---- opponents ---------------------------------------------------------------------------------


def kernel(site: Site) -> None:
    """Linux's VXLAN device, routed as flannel routes it."""
    site.pod_cables(1450)
    for i, (host, pod) in enumerate(zip(HOSTS, PODS, strict=True), 1):
        other = 3 - i
        mac = f"02:bb:00:00:00:0{other}"
        site.ip(
            host,
            f"link add vx address 02:bb:00:00:00:0{i} type vxlan id 4096 local 192.0.2.{i}"
            " dev uplink dstport 4789 nolearning",
            "link set vx mtu 1450 up",
            f"addr add 10.1.{i}.0/32 dev vx",
            f"addr add 10.1.{i}.1/24 dev pod",
            f"neigh add 10.1.{other}.0 lladdr {mac} dev vx nud permanent",
        )
        fdb = ["fdb", "add", mac, "dst", f"192.0.2.{other}", "dev", "vx", "self", "permanent"]
        demo_net.run("bridge", "-n", site.full(host), *fdb)
        site.ip(host, f"route add 10.1.{other}.0/24 via 10.1.{other}.0 dev vx onlink")
        site.inside(host, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        site.ip(
            pod,
            "link set eth0 up",
            f"addr add {ADDRESS[pod]}/24 dev eth0",
            f"route add default via 10.1.{i}.1",
        )


def dataplane(site: Site) -> None:
    """Two `dataplane run`."""
    nodes = []
    for i, (host, pod) in enumerate(zip(HOSTS, PODS, strict=True), 1):
        other = 3 - i
        remote = RemoteSubnet(
            prefix=ip_network(f"10.1.{other}.0/24"),
            provider_address=ip_address(f"192.0.2.{other}"),
            dr_mac=ROUTER[f"h{other}"],
        )
        tap = Tap(name="eth0", netns=site.full(pod))
        endpoint = Endpoint(name="pod", addresses=(ip_address(ADDRESS[pod]),), tap=tap)
        network = Network(
            name="blue",
            vni=Vni(4096),
            prefixes=(ip_network("10.1.0.0/16"),),
            dr_mac=ROUTER[host],
            remote_subnets=(remote,),
            endpoints=(endpoint,),
        )
        underlay = Underlay(address=ip_address(UNDERLAY[host]))
        nodes.append(Node(name=host, underlay=underlay, networks=(network,)))
    policy = site.directory / "policy.yaml"
    policy.write_text(dump(Document(nodes=tuple(nodes))))
    for host in HOSTS:
        site.made.enter_context(NodeProcess(site, host, host, policy))


def openvswitch(site: Site) -> None:
    """Open vSwitch's userspace datapath, a bridge for pods and one for the underlay's address."""
    schema = "/usr/share/openvswitch/vswitch.ovsschema"
    site.pod_cables(1450)
    _flat_pods(site)
    for i, host in enumerate(HOSTS, 1):
        directory = site.directory / host
        directory.mkdir()
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        own = {"OVS_RUNDIR": str(directory), "PATH": path}
        database, remote = directory / "conf.db", f"unix:{directory}/db.sock"
        demo_net.run("ovsdb-tool", "create", str(database), schema)
        unixctl = f"--unixctl={directory}/server.ctl"
        site.daemon(host, "ovsdb-server", str(database), f"--remote=p{remote}", unixctl, **own)
        unixctl = f"--unixctl={directory}/switch.ctl"
        site.daemon(host, "ovs-vswitchd", remote, "--disable-system", unixctl, **own)
        site.ip(host, f"addr del {UNDERLAY[host]}/24 dev uplink")
        words = f"""add-br under -- set bridge under datapath_type=netdev
            -- add-port under uplink
            -- add-br pods -- set bridge pods datapath_type=netdev
            -- add-port pods pod
            -- add-port pods vx -- set interface vx type=vxlan options:key=4096
               options:remote_ip=192.0.2.{3 - i}""".split()
        vsctl = ["ovs-vsctl", f"--db={remote}", "--retry", "--timeout=10"]
        demo_net.run(*site.command(host, *vsctl, *words))
        site.ip(host, f"addr add {UNDERLAY[host]}/24 dev under", "link set under up")
        for device in ("uplink", "pod"):
            for name in (*OFFLOADS, "tx"):
                demo_net.run(*site.command(host, "ethtool", "-K", device, name, "off"))
    for pod in PODS:
        demo_net.run(*site.command(pod, "ethtool", "-K", "eth0", "tx", "off"))


def _by_script(how: str) -> Callable[[Site], None]:
    def opponent(site: Site) -> None:
        for i, (host, pod) in enumerate(zip(HOSTS, PODS, strict=True), 1):
            ends = (f"192.0.2.{i}", f"192.0.2.{3 - i}")
            site.daemon(host, sys.executable, str(FORWARDER), how, site.full(pod), *ends)
        for _ in range(100):
            if all("eth0" in demo_net.run("ip", "-n", site.full(p), "link") for p in PODS):
                break
            time.sleep(0.05)
        _flat_pods(site)

    return opponent


OPPONENTS: dict[str, Callable[[Site], None]] = {
    "kernel": kernel,
    "dataplane": dataplane,
    "openvswitch": openvswitch,
    "naive": _by_script("naive"),
    "scapy": _by_script("scapy"),
}
