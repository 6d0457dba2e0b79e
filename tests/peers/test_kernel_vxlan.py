"""Linux's VXLAN device: the same packets to it and to us, and what either sends, on a veth pair.

node (192.0.2.1, 2001:db8::1, ours) ── veth ── kernel (192.0.2.2, 2001:db8::2; devices vx4 and vx6)

Ours is tried by both its underlay ports: `ring`, whole frames between wire and engine, and
`sockets`, where the node's kernel parses the outer headers. All runs in step, in one thread.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import pytest

from dataplane.address import Mac, Vni
from dataplane.forwarder import Forwarder
from dataplane.model import Endpoint, Network, Node, RemoteSubnet, Underlay
from dataplane.ports import AdoptedTap, VxlanSocket
from dataplane.reasons import Verdict
from tests.peers.wire import Wire, ip, is_ip, mac, one_processor, run, sysctl
from tests.reference import build
from tests.reference.checksum import checksum
from tests.reference.wire import ICMP, ICMP6, TCP, UDP
from tests.setting import OFFLOAD, Engine

VNI = 4096
MTU = 1500
OUR_MAC, POD_MAC = Mac("02:aa:00:00:00:01"), Mac("02:00:00:00:00:aa")
PEER_MAC, REMOTE_MAC = Mac("02:aa:00:00:00:02"), Mac("02:bb:00:00:00:02")
POD = {4: ip_address("10.1.1.2"), 6: ip_address("fd00:1:1::2")}
REMOTE = {4: ip_address("10.1.2.2"), 6: ip_address("fd00:1:2::2")}
UNDER = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("192.0.2.99")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2"), ip_address("2001:db8::99")),
}
ECN = range(4)
NOT_ECT, ECT0, CE = 0, 2, 3
MARK = b"end of series"  # in the last packet of each


# ---- the two sides ---------------------------------------------------------------------------


class Site(NamedTuple):
    """Both namespaces, and the wires at both ends of the veth pair and into the VXLAN devices."""

    node: str
    kernel: str
    near: Wire
    far: Wire
    devices: dict[int, Wire]
    node_mac: Mac
    kernel_mac: Mac


@pytest.fixture(scope="module")
def site(module_netns: Callable[..., list[str]]) -> Iterator[Site]:
    node, kernel = module_netns("n", "k")
    quiet = {"net__ipv6__conf__all__accept_dad": 0, "net__ipv6__conf__default__accept_dad": 0}
    for name in (node, kernel):
        sysctl(name, **quiet, net__ipv6__conf__default__router_solicitations=0)
    ip(node, f"link add under type veth peer name under netns {kernel}")
    for name, place in ((node, 0), (kernel, 1)):
        ip(
            name,
            "link set under mtu 1600 up",
            f"addr add {UNDER[4][place]}/24 dev under",
            f"addr add {UNDER[6][place]}/64 dev under nodad",
        )
        run(name, "ethtool", "-K", "under", "tx", "off", "gro", "off")
    node_mac, kernel_mac = mac(node, "under"), mac(kernel, "under")
    for name, place, lladdr in ((node, 1, kernel_mac), (kernel, 0, node_mac)):
        for version in (4, 6):
            neighbour = f"neigh replace {UNDER[version][place]} lladdr {lladdr} dev under"
            ip(name, neighbour + " nud permanent")
    for version in (4, 6):
        add_device(kernel, f"vx{version}", VNI, version)
    with one_processor(), ExitStack() as made:
        near, far = (made.enter_context(Wire(n, "under", is_udp)) for n in (node, kernel))
        devices = {v: made.enter_context(Wire(kernel, f"vx{v}")) for v in (4, 6)}
        yield Site(node, kernel, near, far, devices, node_mac, kernel_mac)


def is_udp(frame: bytes) -> bool:
    """Or a fragment over IPv6; not the errors of a kernel where the ring is not seen to listen."""
    return is_ip(frame) and frame[23 if frame[12] == 8 else 20] in (UDP, 44)


def add_device(kernel: str, name: str, vni: int, version: int) -> None:
    own, other = UNDER[version][1], UNDER[version][0]
    ip(
        kernel,
        f"link add {name} address {PEER_MAC} mtu {MTU} type vxlan id {vni} local {own}"
        f" remote {other} dev under dstport 4789 nolearning",
    )
    sysctl(kernel, **{f"net__ipv6__conf__{name}__disable_ipv6": 1})
    ip(kernel, f"link set {name} up")


def policy(version: int, vni: int = VNI) -> Node:
    network = Network(
        name="blue",
        vni=Vni(vni),
        prefixes=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
        dr_mac=OUR_MAC,
        mtu=MTU,
        remote_subnets=tuple(
            RemoteSubnet(
                prefix=ip_network(prefix), provider_address=UNDER[version][1], dr_mac=REMOTE_MAC
            )
            for prefix in ("10.1.2.0/24", "fd00:1:2::/64")
        ),
        endpoints=(Endpoint(name="web", addresses=(POD[4], POD[6]), mac=POD_MAC),),
    )
    underlay = Underlay(address=UNDER[4][0], address6=UNDER[6][0], mtu=1600)
    return Node(name="a", underlay=underlay, networks=(network,))


class Ours:
    """This node. `send`: what its pod sends. `delivered`: what its pod got before the mark."""

    def __init__(self, node: Node) -> None:
        self.engine = Engine(max_flows=1024, max_bindings=16)
        self.engine.commit(node)

    def send(self, *frames: bytes) -> None:
        raise NotImplementedError

    def delivered(self) -> list[bytes]:
        raise NotImplementedError

    def drops(self) -> dict[str, int]:
        return {r: n for r, n in self.engine.stats().to_dict()["reasons"].items() if n}


class Ring(Ours):
    """Whole frames, as an AF_XDP or pcap port would have them."""

    def __init__(self, site: Site, node: Node, _: ExitStack) -> None:
        super().__init__(node)
        self._site = site

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            outcome = self.engine.process_one(frame, "web")
            assert outcome.port == "underlay", outcome.reason
            self._site.near.send(
                self._site.kernel_mac.packed + self._site.node_mac.packed + outcome.frame[12:]
            )

    def delivered(self) -> list[bytes]:
        outcomes = [self.engine.process_one(f, "underlay") for f in self._site.near.until(MARK)]
        return [o.frame for o in outcomes if o.verdict is Verdict.FORWARD]


class Sockets(Ours):
    """UDP sockets in the node's namespace; a socket pair in place of the pod's TAP."""

    def __init__(self, site: Site, node: Node, made: ExitStack) -> None:
        super().__init__(node)
        own, self._pod = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.enter_context(self._pod)
        self._pod.settimeout(2)
        own.setblocking(False)
        tap = made.enter_context(AdoptedTap(own.detach(), mtu=MTU, vnet_hdr=False))
        sockets = VxlanSocket(
            node.underlay.address,
            address6=node.underlay.address6,
            netns=site.node,
            offload=OFFLOAD,
        )
        ports = {"underlay": made.enter_context(sockets), "web": tap}
        self._forwarder = made.enter_context(Forwarder(self.engine, ports))

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._pod.send(frame)
            self._forwarder.step(1_000_000_000)

    def delivered(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            self._forwarder.step(1_000_000_000)
            while (frame := self._take()) is not None:
                if MARK in frame:
                    return found
                found.append(frame)

    def _take(self) -> bytes | None:
        try:
            return self._pod.recv(70_000, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None


@pytest.fixture(autouse=True)
def quiet(site: Site) -> None:
    """What the test before has left on the wires is taken off."""
    for wire in (site.near, site.far, *site.devices.values()):
        wire.waiting()


@pytest.fixture(params=[4, 6], ids=["outer4", "outer6"])
def outer(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[Ring, Sockets], ids=["ring", "sockets"])
def ours(request: pytest.FixtureRequest, site: Site, outer: int) -> Iterator[Ours]:
    with ExitStack() as made:
        node: Ours = request.param(site, policy(outer), made)
        made.callback(node.engine.close)
        yield node


@dataclass
class Bench:
    """Ours and the kernel's device of one outer family."""

    site: Site
    version: int
    ours: Ours

    @property
    def device(self) -> Wire:
        return self.site.devices[self.version]

    def to_kernel(self, *packets: bytes) -> list[bytes]:
        """What the kernel's device delivers of outer packets that come from the node's wire."""
        end = self.packet(vxlan(inner_udp(4, MARK)))
        self.site.near.send(*(self._framed(p, self.site.kernel_mac) for p in [*packets, end]))
        return self.device.until(MARK)

    def to_ours(self, *packets: bytes) -> list[bytes]:
        """What our pod gets of the same packets, their outer addresses exchanged."""
        end = self.packet(vxlan(inner_udp(4, MARK)), back=True)
        self.site.far.send(*(self._framed(p, self.site.node_mac) for p in [*packets, end]))
        return self.ours.delivered()

    @staticmethod
    def _framed(packet: bytes, to: Mac) -> bytes:
        return build.ethernet(to.packed, bytes(6), build.ip_type(packet), packet)

    def packet(
        self, payload: bytes, *, back: bool = False, stranger: bool = False, **fields: Any
    ) -> bytes:
        """In UDP and IP, from the node to the kernel or `back`, or from a `stranger` to either."""
        ours, linux, other = (a.packed for a in UNDER[self.version])
        source, dst = (linux, ours) if back else (ours, linux)
        return outer_packet(other if stranger else source, dst, payload, **fields)


@pytest.fixture
def bench(site: Site, outer: int, ours: Ours) -> Bench:
    return Bench(site, outer, ours)


# ---- packets ---------------------------------------------------------------------------------


def vxlan(inner: bytes, vni: int = VNI, reserved: int = 0) -> bytes:
    return ((0x08 << 56 | vni << 8) ^ reserved).to_bytes(8) + inner


def outer_packet(
    src: bytes,
    dst: bytes,
    payload: bytes,
    *,
    tos: int = 0,
    ttl: int = 64,
    options: bytes = b"",
    sport: int = 50000,
    dport: int = 4789,
    check: str = "right",
    longer: int = 0,
    beyond: bytes = b"",
    damage: int | None = None,
) -> bytes:
    """`longer`: octets that UDP claims and IP has not; `beyond`: those that IP has and UDP has not;
    `damage`: an octet of the IP header."""
    segment = bytearray(build.udp(sport, dport, payload))
    segment[4:6] = (len(segment) + longer).to_bytes(2)
    if check != "none":
        segment[:] = build.summed(src, dst, UDP, bytes(segment))
    segment[6] ^= check == "wrong"
    packet = bytearray(
        build.ip(src, dst, UDP, bytes(segment) + beyond, tos=tos, ttl=ttl, options=options)
    )
    if damage is not None:
        packet[damage] ^= 1
    return bytes(packet)


def inner(
    version: int, proto: int, segment: bytes, *, to_pod: bool = True, **fields: int | bytes
) -> bytes:
    """A frame between the remote pod and ours, by the router's MACs."""
    ends = REMOTE[version].packed, POD[version].packed
    src, dst = ends if to_pod else ends[::-1]
    dmac, smac = (OUR_MAC, REMOTE_MAC) if to_pod else (OUR_MAC, POD_MAC)
    packet = build.ip(src, dst, proto, build.summed(src, dst, proto, segment), **fields)  # type: ignore[arg-type]
    return build.ethernet(dmac.packed, smac.packed, build.ip_type(packet), packet)


def inner_udp(version: int, data: bytes, **fields: int) -> bytes:
    return inner(version, UDP, build.udp(7000, 7001, data), **fields)


def every_kind(version: int, *, to_pod: bool) -> list[bytes]:
    """Protocols, options, fragments, marks and sizes."""
    head = 20 if version == 4 else 40
    icmp, echo = (ICMP, 8) if version == 4 else (ICMP6, 128)
    option = b"\x94\x04\0\0" if version == 4 else bytes([UDP, 0, 1, 4, 0, 0, 0, 0])
    segments: list[tuple[int, bytes, dict[str, int | bytes]]] = [
        (TCP, build.tcp(7000, 80, 0x10, b"", b"some data"), {}),
        (TCP, build.tcp(7000, 80, 0x02, b"\x02\x04\x05\x00"), {}),
        (UDP, build.udp(7000, 7001), {}),
        (UDP, build.udp(7000, 7001, b"odd"), {"tos": 0xB8}),
        (icmp, build.icmp(echo, 0, 77, b"ping"), {"ttl": 255}),
        (132, b"\x1b\x58\x1b\x59" + bytes(12), {}),
        (UDP if version == 4 else 60, build.udp(7000, 7001, b"options"), {"options": option}),
    ]
    sizes = [*range(0, 40), 576, 1279, 1280, MTU - head - 8]
    segments += [(UDP, build.udp(7000, 7001, b"\xa5" * size), {}) for size in sizes]
    return [
        inner(version, proto, segment, to_pod=to_pod, **fields)
        for proto, segment, fields in segments
    ]


def unmarked(frame: bytes) -> bytes:
    """From the ethertype on: MAC addresses are each router's own."""
    return frame[12:]


# ---- byte for byte ---------------------------------------------------------------------------


@pytest.mark.conformance("V1", "V6", "V11", "E8")
@pytest.mark.parametrize("version", [4, 6], ids=["inner4", "inner6"])
def test_what_we_send_is_delivered_by_linux(bench: Bench, version: int) -> None:
    frames = every_kind(version, to_pod=False)
    reference = Engine(max_flows=1024, max_bindings=16)
    reference.commit(policy(bench.version))
    head = 50 if bench.version == 4 else 70
    wanted = [reference.process_one(f, "web").frame[head:] for f in frames]
    bench.ours.send(*frames, inner_udp(version, MARK, to_pod=False))
    assert bench.device.until(MARK) == wanted
    assert [one_hop_later(f) for f in frames] == [w[12:] for w in wanted]


@pytest.mark.conformance("V1", "V6", "V11")
@pytest.mark.parametrize("version", [4, 6], ids=["inner4", "inner6"])
def test_what_linux_sends_is_delivered_by_us(bench: Bench, version: int) -> None:
    frames = every_kind(version, to_pod=True)
    bench.device.send(*frames, inner_udp(version, MARK))
    macs = POD_MAC.packed + OUR_MAC.packed
    assert bench.ours.delivered() == [macs + f[12:] for f in frames]
    assert bench.ours.drops() == {}


def one_hop_later(frame: bytes) -> bytes:
    """From the ethertype on: MAC addresses are each router's own."""
    data = bytearray(frame[12:])
    if data[2] >> 4 == 6:
        data[2 + 7] -= 1
        return bytes(data)
    data[2 + 8] -= 1
    data[12:14] = b"\0\0"
    data[12:14] = checksum(bytes(data[2 : 2 + (data[2] & 15) * 4])).to_bytes(2)
    return bytes(data)


# ---- outer headers ---------------------------------------------------------------------------


class Outer(NamedTuple):
    """What an outer header says, of either family."""

    dscp: int
    ecn: int
    ttl: int
    dont_fragment: bool | None
    label: int | None
    dport: int
    checksum: str
    vxlan: bytes


def outer_of(frame: bytes) -> Outer:
    packet = frame[14:]
    v4 = packet[0] >> 4 == 4
    word = int.from_bytes(packet[:4])
    tos = packet[1] if v4 else word >> 20 & 0xFF
    udp = packet[20:] if v4 else packet[40:]
    src, dst = (packet[12:16], packet[16:20]) if v4 else (packet[8:24], packet[24:40])
    found = (
        "none"
        if udp[6:8] == b"\0\0"
        else "right"
        if build.summed(src, dst, UDP, udp) == udp
        else "wrong"
    )
    return Outer(
        dscp=tos >> 2,
        ecn=tos & 3,
        ttl=packet[8 if v4 else 7],
        dont_fragment=bool(packet[6] & 0x40) if v4 else None,
        label=None if v4 else word & 0xFFFFF,
        dport=int.from_bytes(udp[2:4]),
        checksum=found,
        vxlan=udp[8:16],
    )


def from_us(bench: Bench, *frames: bytes) -> list[bytes]:
    """The outer packets of what the pod sends, on the wire."""
    bench.ours.send(*frames, inner_udp(4, MARK, to_pod=False))
    return bench.site.far.until(MARK)


def from_linux(bench: Bench, *frames: bytes) -> list[bytes]:
    """The outer packets of what the VXLAN device sends, on the wire."""
    bench.device.send(*frames, inner_udp(4, MARK))
    return bench.site.near.until(MARK)


@pytest.mark.conformance("V1", "V4", "V5", "V6", "V7", "E1", "E5", "E6", "E8")
@pytest.mark.parametrize("version", [4, 6], ids=["inner4", "inner6"])
def test_outer_headers_differ_as_meant(bench: Bench, version: int) -> None:
    fields = {"tos": 0xB8 | ECT0, "ttl": 17}
    ours = outer_of(*from_us(bench, inner_udp(version, b"x", to_pod=False, **fields)))
    linux = outer_of(*from_linux(bench, inner_udp(version, b"x", **fields)))
    outer4, summed = bench.version == 4, isinstance(bench.ours, Sockets) and OFFLOAD
    assert ours == Outer(
        dscp=0,
        ecn=ECT0,
        ttl=64,
        dont_fragment=True if outer4 else None,
        label=None if outer4 else chosen_label(bench, ours),
        dport=4789,
        checksum="right" if summed or not outer4 else "none",
        vxlan=vxlan(b""),
    )
    # Linux fills in the UDP checksum, and lets routers cut what is too big (decision 7).
    meant = ours._replace(checksum="right", dont_fragment=False if outer4 else None)
    if isinstance(bench.ours, Sockets) and not outer4:
        meant = meant._replace(label=0)
    assert linux == meant


def chosen_label(bench: Bench, ours: Outer) -> int | None:
    """Ours is 0; below a socket the node's kernel makes one of the flow (RFC 6437 allows both)."""
    return ours.label if isinstance(bench.ours, Sockets) else 0


@pytest.mark.conformance("V5")
def test_source_ports_of_many_flows(bench: Bench) -> None:
    def ports(packets: list[bytes]) -> list[int]:
        at = 34 if bench.version == 4 else 54
        return [int.from_bytes(p[at : at + 2]) for p in packets]

    flows = 300

    def frames(to_pod: bool) -> list[bytes]:
        return [inner(4, UDP, build.udp(10_000 + n, 7), to_pod=to_pod) for n in [*range(flows)] * 2]

    mine, theirs = ports(from_us(bench, *frames(False))), ports(from_linux(bench, *frames(True)))
    assert mine[:flows] == mine[flows:] and theirs[:flows] == theirs[flows:]
    assert min(mine) >= 49152  # RFC 7348 section 5; Linux takes them from ip_local_port_range
    sockets = 64 if isinstance(bench.ours, Sockets) else 1 << 14
    assert len(set(mine)) > 0.9 * min(flows, sockets) and len(set(theirs)) > 0.9 * flows


# ---- ECN -------------------------------------------------------------------------------------


@pytest.mark.conformance("E1", "E2")
@pytest.mark.parametrize("version", [4, 6], ids=["inner4", "inner6"])
def test_ecn_of_the_outer_header(bench: Bench, version: int) -> None:
    ours = from_us(bench, *(inner_udp(version, b"x", to_pod=False, tos=e) for e in ECN))
    linux = from_linux(bench, *(inner_udp(version, b"x", tos=e) for e in ECN))
    assert [outer_of(p).ecn for p in ours] == [*ECN]
    assert [outer_of(p).ecn for p in linux] == [0, 1, 2, ECT0]  # decision 2: CE is copied, RFC 6040


@pytest.mark.conformance("E2", "C1")
@pytest.mark.parametrize("version", [4, 6], ids=["inner4", "inner6"])
def test_ecn_of_the_delivered_packet(bench: Bench, version: int) -> None:
    """The same 16 packets to both: the same inner packets, checksums and all, and one dropped."""
    cases = [(o, i) for o in ECN for i in ECN]
    sent = [(vxlan(inner_udp(version, bytes([o, i]), tos=i)), o) for o, i in cases]
    linux = bench.to_kernel(*(bench.packet(payload, tos=o) for payload, o in sent))
    ours = bench.to_ours(*(bench.packet(payload, tos=o, back=True) for payload, o in sent))
    assert [f[12:] for f in ours] == [f[12:] for f in linux]
    delivered = [(o, i) for o, i in cases if (o, i) != (CE, NOT_ECT)]
    assert [tuple(f[-2:]) for f in ours] == delivered
    assert bench.ours.drops() == {"ecn_ce_on_not_ect": 1}


# ---- what is accepted ------------------------------------------------------------------------


@pytest.mark.conformance("V1")
def test_each_reserved_bit_alone(bench: Bench) -> None:
    """Decision 1: RFC 7348 says ignore, Linux drops and counts."""
    bits = [1 << n for n in range(64) if n < 8 or (n >= 32 and n != 59)]
    assert len(bits) == 39
    payloads = [vxlan(inner_udp(4, b"reserved"), reserved=bit) for bit in bits]
    before = errors(bench)
    assert bench.to_kernel(*map(bench.packet, payloads)) == []
    assert errors(bench) - before == 39
    assert len(bench.to_ours(*(bench.packet(p, back=True) for p in payloads))) == 39
    assert bench.ours.drops() == {}


def errors(bench: Bench) -> int:
    """Packets that the kernel's device refused."""
    device = f"vx{bench.version}"
    link = json.loads(run(bench.site.kernel, "ip", "-json", "-s", "link", "show", device))[0]
    return int(link["stats64"]["rx"]["errors"])


class Case(NamedTuple):
    """A packet that is unusual in one way, and who takes it: Linux, our ring, our socket."""

    name: str
    payload: bytes
    fields: dict[str, Any]
    takers: str = "linux ring sockets"
    why: str = ""  # they differ
    families: tuple[int, ...] = (4, 6)


PLAIN = inner_udp(4, b"plain")
TAGGED = PLAIN[:12] + b"\x81\0\0\x64" + PLAIN[12:]
SHORT = inner(4, UDP, build.udp(7000, 7001))
CASES = [
    Case("plain", vxlan(PLAIN), {}),
    Case("no VNI flag", vxlan(PLAIN, reserved=1 << 59), {}, ""),
    Case("unknown VNI", vxlan(PLAIN, vni=VNI + 1), {}, ""),
    Case("no UDP checksum, IPv4", vxlan(PLAIN), {"check": "none"}, families=(4,)),
    Case("no UDP checksum, IPv6", vxlan(PLAIN), {"check": "none"}, "", "decision 3", (6,)),
    Case("wrong UDP checksum", vxlan(PLAIN), {"check": "wrong"}, ""),
    Case("wrong IP checksum", vxlan(PLAIN), {"damage": 10}, "", families=(4,)),
    Case("octets beyond UDP", vxlan(SHORT), {"beyond": b"trailer"}),
    Case("UDP longer than IP", vxlan(PLAIN), {"longer": 1}, ""),
    Case("half a VXLAN header", vxlan(b"")[:4], {}, ""),
    Case("nothing inside", vxlan(b""), {}, ""),
    Case("half an Ethernet header", vxlan(PLAIN[:13]), {}, ""),
    Case("low source port", vxlan(PLAIN), {"sport": 1}),
    Case("another UDP port", vxlan(PLAIN), {"dport": 8472}, ""),
    Case("last hop", vxlan(PLAIN), {"ttl": 1}),
    Case("IPv4 option", vxlan(PLAIN), {"options": b"\1\1\1\0"}, families=(4,)),
    Case("inner VLAN tag", vxlan(TAGGED), {}, "linux", "decision 6: RFC 7348 section 6.1"),
    Case("a stranger's address", vxlan(PLAIN), {"stranger": True}, "linux", "T1: only known VTEPs"),
]


@pytest.mark.conformance("V1", "V2", "V3", "V6", "V10", "V11", "E6", "E9", "T1")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_who_takes_it(bench: Bench, case: Case) -> None:
    if bench.version not in case.families:
        return
    linux = bench.to_kernel(bench.packet(case.payload, **case.fields))
    ours = bench.to_ours(bench.packet(case.payload, back=True, **case.fields))
    port = "ring" if isinstance(bench.ours, Ring) else "sockets"
    assert (len(linux), len(ours)) == ("linux" in case.takers, port in case.takers), case.why
    if linux and ours:
        assert linux[0][12:] == ours[0][12:]


@pytest.mark.conformance("V7")
def test_fragments_of_the_outer_packet(bench: Bench) -> None:
    """RFC 7348 section 4.3: a receiver may drop them. Kernels join them, a ring cannot."""
    linux = bench.to_kernel(*fragments(bench.packet(vxlan(PLAIN))))
    ours = bench.to_ours(*fragments(bench.packet(vxlan(PLAIN), back=True)))
    assert [f[12:] for f in linux] == [PLAIN[12:]]
    if isinstance(bench.ours, Ring):
        assert ours == [] and bench.ours.drops() == {"outer_fragment": 2}
    else:
        assert [f[12:] for f in ours] == [PLAIN[12:]]


def fragments(packet: bytes) -> list[bytes]:
    """The packet in two pieces, cut after the first 24 octets of its payload."""
    if packet[0] >> 4 == 4:
        src, dst, payload = packet[12:16], packet[16:20], packet[20:]
        pieces = ((payload[:24], 0x2000), (payload[24:], 3))
        return [build.ip(src, dst, UDP, piece, fragment=at) for piece, at in pieces]
    src, dst, payload = packet[8:24], packet[24:40], packet[40:]
    headers = (bytes([UDP, 0]) + at.to_bytes(2) + b"\0\0\0\7" for at in (1, 24))
    pieces = zip((payload[:24], payload[24:]), headers, strict=True)
    return [build.ip(src, dst, 44, piece, options=header) for piece, header in pieces]


@pytest.mark.conformance("V3")
@pytest.mark.parametrize("vni", [1, 0x800000, 0xFEDCBA, 0xFFFFFF])
def test_network_identifiers(site: Site, vni: int) -> None:
    """Of 24 bits, both ways, through devices of their own."""
    add_device(site.kernel, f"vn{vni}", vni, 4)
    with ExitStack() as made:
        made.callback(ip, site.kernel, f"link del vn{vni}")
        device = made.enter_context(Wire(site.kernel, f"vn{vni}"))
        ours = Ring(site, policy(4, vni), made)
        made.callback(ours.engine.close)
        ours.send(inner_udp(4, b"there", to_pod=False), inner_udp(4, MARK, to_pod=False))
        assert [f[-5:] for f in device.until(MARK)] == [b"there"]
        device.send(inner_udp(4, b"back"), inner_udp(4, MARK))
        assert [f[-4:] for f in ours.delivered()] == [b"back"]
        assert ours.drops() == {}
