"""Two hosts, a pod on each, and the wire between them: a veth of MTU 1500, or a router and two.

    pa ─ a ═══════ b ─ pb        or        pa ─ a ══ r ══ b ─ pb

What joins a pod to its host is the opponent's. Names carry the pid of the run that made them.
"""

from dataplane.demo_net import Namespaces, run

PREFIX = "dpbench"
HOSTS = {"a": "192.0.2.1", "b": "192.0.2.65"}
ROUTER = "192.0.2.126"
PODS = {"pa": "10.1.1.2", "pb": "10.1.2.2"}
HOST_OF = {"pa": "a", "pb": "b"}
PREFIXES = {"a": "10.1.1.0/24", "b": "10.1.2.0/24"}  # of the pods behind a host
POD_MAC = {"pa": "02:00:00:00:0a:01", "pb": "02:00:00:00:0b:01"}
GATEWAY, GATEWAY_MAC = "10.1.0.1", "02:aa:00:00:00:01"
VNI, MTU = 4096, 1450
OTHER = {"a": "b", "b": "a", "pa": "pb", "pb": "pa"}

# What a network device without offloads lacks; checksums stay, as on any NIC.
OFFLOADS = (
    "tso",
    "gso",
    "gro",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
)


class Wire(Namespaces):
    """The namespaces of one opponent's turn."""

    def __init__(self, router: bool = False) -> None:
        super().__init__(PREFIX)
        self._router = router
        self._ends: list[tuple[str, str]] = []

    def make(self) -> None:
        for name in (*HOSTS, *PODS, *(("r",) if self._router else ())):
            self.add(name)
        if self._router:
            for host, address in HOSTS.items():
                self._cable(host, "under", "r", f"to-{host}")
                self.ip("r", f"route add {address}/32 dev to-{host}")
            self.forward("r")
        else:
            self._cable("a", "under", "b", "under")
        for host in HOSTS:
            self.underlay(host, "under")
        if self._router:
            self.ip("r", *(f"addr add {ROUTER}/32 dev to-{host}" for host in HOSTS))

    def underlay(self, host: str, device: str) -> None:
        """The host's address is the device's, and the other host is behind it."""
        way = f"via {ROUTER} dev {device} onlink" if self._router else f"dev {device}"
        self.ip(
            host,
            f"addr add {HOSTS[host]}/24 dev {device}",
            f"link set {device} up",
            f"route replace {HOSTS[OTHER[host]]}/32 {way}",
        )

    def _cable(self, left: str, name: str, right: str, other: str) -> None:
        self.ip(
            left,
            f"link add name {name} type veth peer name {other} netns {self.full(right)}",
            f"link set {name} up",
        )
        self.ip(right, f"link set {other} up")
        self._ends += [(left, name), (right, other)]

    def offloads(self, on: bool) -> None:
        """Of the underlay's devices."""
        words = [word for name in OFFLOADS for word in (name, "on" if on else "off")]
        for place, device in self._ends:
            run(*self.command(place, "ethtool", "-K", device, *words))

    def settle(self, pod: str, device: str, router_mac: str) -> None:
        """A pod's address, and everything else behind the router's MAC."""
        self.ip(
            pod,
            f"link set {device} address {POD_MAC[pod]} mtu {MTU} up",
            f"addr add {PODS[pod]}/32 dev {device}",
            f"neigh replace {GATEWAY} lladdr {router_mac} dev {device} nud permanent",
            f"route replace default via {GATEWAY} dev {device} onlink",
        )

    def pod_veth(self, pod: str) -> None:
        """Joins a pod to its host by a veth, `eth0` here and `pod` there."""
        self.ip(
            HOST_OF[pod],
            f"link add name pod type veth peer name eth0 netns {self.full(pod)}",
            f"link set pod mtu {MTU} up",
        )
