"""TAP devices, the UDP underlay and the loop against the kernel, in network namespaces of our own.

node (192.0.2.1, this engine) ── veth ── peer (192.0.2.2, the kernel's VXLAN device, 10.1.2.2)
 │
pod (the TAP lives here, 10.1.1.2)
"""

import contextlib
import functools
import hashlib
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane import model as policy
from dataplane.address import Mac, Vni
from dataplane.defaults import resolve
from dataplane.engine import Engine
from dataplane.errors import BusyError, DataplaneError, EngineError, PortError
from dataplane.forwarder import Forwarder
from dataplane.link import Route
from dataplane.model import (
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    RemoteSubnet,
    Underlay,
    Wire,
)
from dataplane.netns import Visitor, inside, path_of
from dataplane.node_ports import NodePorts
from dataplane.ports import AdoptedTap, Tap, VxlanSocket
from dataplane.stats import adds_up
from tests.peers.wire import udp_counter
from tests.setting import WORKERS

MTU = 1450
UDP_SEGMENT = 103
PEER_MAC, DR_MAC = Mac("02:aa:00:00:00:02"), Mac("02:aa:00:00:00:01")
POD, REMOTE = "10.1.1.2", "10.1.2.2"


@functools.cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root: it makes network namespaces"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    if not (shutil.which("ip") and shutil.which("bridge")):
        return "needs iproute2"
    name = f"dpt{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"no network namespaces: {made.stderr.decode().strip()}"


# ---- namespaces --------------------------------------------------------------------------------


def ip(netns: str | None, *lines: str) -> None:
    where = ["-n", netns] if netns else []
    for line in lines:
        done = subprocess.run(
            ["ip", *where, *line.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"ip {line}: {done.stderr}"


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    """Made here and removed at the end. Skips the test where that cannot be."""
    if _why_not():
        pytest.skip(_why_not())
    made: list[str] = []
    try:
        for name in names:
            full = f"dpt{os.getpid()}-{name}"
            ip(None, f"netns add {full}")
            made.append(full)
            ip(full, "link set lo up")
        yield made
    finally:
        for full in made:
            subprocess.run(["ip", "netns", "del", full], check=False)


class Site:
    """The picture above, with the kernel's VXLAN device set up as flannel does it."""

    def __init__(self, node: str, peer: str, pod: str, *, v6: bool, underlay_mtu: int) -> None:
        self.node, self.peer, self.pod = node, peer, pod
        self.address, self.remote = (
            ("2001:db8::1", "2001:db8::2") if v6 else ("192.0.2.1", "192.0.2.2")
        )
        self.mtu = underlay_mtu - (70 if v6 else 50)
        length, flags = ("64", " nodad") if v6 else ("24", "")
        ip(
            node,
            f"link add under type veth peer name under netns {peer}",
            f"link set under mtu {underlay_mtu} up",
            f"addr add {self.address}/{length} dev under{flags}",
        )
        ip(
            peer,
            f"link set under mtu {underlay_mtu} up",
            f"addr add {self.remote}/{length} dev under{flags}",
            f"link add vx address {PEER_MAC} type vxlan id 4096 local {self.remote} dev under"
            f" dstport 4789 nolearning" + (" udp6zerocsumrx" if v6 else ""),
            f"link set vx mtu {self.mtu} up",
            f"addr add {REMOTE}/32 dev vx",
            f"neigh add 10.1.1.0 lladdr {DR_MAC} dev vx nud permanent",
            f"route add 10.1.1.0/24 via 10.1.1.0 dev vx onlink src {REMOTE}",
        )
        subprocess.run(
            ["bridge", "-n", peer, *f"fdb add {DR_MAC} dev vx dst {self.address}".split()],
            check=True,
        )

    def policy(self, mtu: int | None = None) -> Node:
        remote = RemoteSubnet(
            prefix=ip_network("10.1.2.0/24"),
            provider_address=ip_address(self.remote),
            dr_mac=PEER_MAC,
        )
        web = Endpoint(name="web", addresses=(ip_address(POD),))
        network = Network(
            name="blue",
            vni=Vni(4096),
            prefixes=(ip_network("10.1.0.0/16"),),
            dr_mac=DR_MAC,
            mtu=mtu or self.mtu,
            remote_subnets=(remote,),
            endpoints=(web,),
        )
        return Node(
            name="a", underlay=Underlay(address=ip_address(self.address)), networks=(network,)
        )


class Running:
    """An engine that forwards between the pod's TAP and the underlay, on a thread."""

    def __init__(
        self,
        site: Site,
        made: contextlib.ExitStack,
        mtu: int | None = None,
        offload: bool = True,
        **underlay: Any,
    ) -> None:
        self.site = site
        self.engine = made.enter_context(Engine(workers=WORKERS))
        self.engine.commit(site.policy(mtu))
        mac = self.engine.resolved.networks[0].endpoints[0].mac  # type: ignore[union-attr]
        self.tap = made.enter_context(
            Tap(
                "web",
                netns=site.pod,
                mac=mac,
                mtu=mtu or site.mtu,
                offload=offload,
                queues=WORKERS,
            )
        )
        self.tap.address(ip_address(POD), 16)
        self.tap.default_route(ip_address("10.1.0.1"))
        self.underlay = made.enter_context(
            VxlanSocket(
                ip_address(site.address),
                netns=site.node,
                interface="under",
                offload=offload,
                queues=WORKERS,
                **underlay,
            )
        )
        ports = {"underlay": self.underlay, "web": self.tap}
        self.forwarder = made.enter_context(Forwarder(self.engine, ports, workers=WORKERS))
        made.enter_context(self.forwarder.background())

    def io(self, port: str, counter: str) -> int:
        return self.forwarder.stats()[port][counter]

    def drops(self) -> dict[str, int]:
        return {r: n for r, n in self.engine.stats().to_dict()["reasons"].items() if n}


@contextlib.contextmanager
def running(
    *,
    v6: bool = False,
    underlay_mtu: int = 1500,
    mtu: int | None = None,
    offload: bool = True,
    **underlay: Any,
) -> Iterator[Running]:
    with namespaces("n", "k", "p") as names, contextlib.ExitStack() as made:
        site = Site(*names, v6=v6, underlay_mtu=underlay_mtu)
        yield Running(site, made, mtu, offload, **underlay)


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def live(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(offload=request.param) as r:
        yield r


def test_it_sleeps_unless_the_next_packet_is_near() -> None:
    """Round trips make it look for the next packet; later, or for slow ones, it takes no time."""
    with running() as r, contextlib.ExitStack() as made:
        client = made.enter_context(udp(r.site.pod, POD))
        server = made.enter_context(udp(r.site.peer, REMOTE, 7000))

        def round_trip() -> None:
            client.sendto(b"ping", (REMOTE, 7000))
            server.sendto(b"pong", server.recvfrom(100)[1])
            assert client.recv(100) == b"pong"

        for _ in range(500):
            round_trip()
        begin = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - begin < 0.1
        begin = time.process_time()
        for _ in range(50):
            round_trip()
            time.sleep(0.01)
        assert time.process_time() - begin < 0.1


# ---- traffic -----------------------------------------------------------------------------------


def udp(netns: str, address: str, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(2)
        sock.bind((address, port))
        return sock

    return inside(netns, make)


def transfer(from_netns: str, to_netns: str, to: str, size: int) -> None:
    """One TCP connection, `size` bytes; the digests must be equal."""

    def listen() -> socket.socket:
        return socket.create_server((to, 5000))

    server = inside(to_netns, listen)
    server.settimeout(5)
    data = os.urandom(1 << 20) * (size >> 20)
    digest = hashlib.sha256()

    def receive() -> None:
        with server, server.accept()[0] as conn:
            conn.settimeout(10)
            while chunk := conn.recv(1 << 18):
                digest.update(chunk)

    thread = threading.Thread(target=receive)
    thread.start()
    with inside(from_netns, lambda: socket.create_connection((to, 5000), 5)) as client:
        client.settimeout(20)
        client.sendall(data)
    thread.join(30)
    assert not thread.is_alive()
    assert digest.digest() == hashlib.sha256(data).digest()


def checksum_errors(netns: str) -> int:
    """Of TCP, UDP and ICMP over IPv4 that the namespace's kernel received."""

    def read() -> int:
        with open("/proc/thread-self/net/snmp") as file:
            lines = [line.split() for line in file]
        return sum(
            int(row[head.index("InCsumErrors")])
            for head, row in zip(lines[::2], lines[1::2], strict=True)
            if "InCsumErrors" in head
        )

    return inside(netns, read)


def wait_for(condition: Callable[[], bool], seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def ping_works(r: Running) -> bool:
    """A datagram there and back."""
    with udp(r.site.pod, POD) as pod, udp(r.site.peer, REMOTE) as peer:
        pod.settimeout(0.3)
        peer.settimeout(0.3)
        try:
            pod.sendto(b"there", peer.getsockname())
            data, source = peer.recvfrom(100)
            peer.sendto(b"back", source)
            return data == b"there" and pod.recv(100) == b"back"
        except OSError:
            return False


# ---- frames of a kernel peer -------------------------------------------------------------------


@pytest.mark.parametrize("v6", [False, True], ids=["underlay4", "underlay6"])
def test_tcp_both_ways_with_the_offloads_of_a_veth(v6: bool) -> None:
    with running(v6=v6) as r:
        transfer(r.site.pod, r.site.peer, REMOTE, 8 << 20)
        transfer(r.site.peer, r.site.pod, POD, 8 << 20)
        assert r.io("web", "gso_frames") > 0, "the peer sends super-frames without a segment size"
        assert r.io("web", "truncated") == r.io("underlay", "truncated") == 0
        assert checksum_errors(r.site.pod) == checksum_errors(r.site.peer) == 0
        totals = r.engine.stats().to_dict()["totals"]
        assert adds_up(totals)


OFFLOADS = ("tso", "gso", "gro", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "rx", "tx")


@pytest.mark.parametrize("off", [*((each,) for each in OFFLOADS), OFFLOADS], ids="-".join)
def test_with_offloads_of_kernels_off(off: tuple[str, ...]) -> None:
    """One by one, and all of them: of the underlay at both ends, of the peer's VXLAN device, and of
    the pod's. Where a device has none to switch, that is how it is."""
    if not shutil.which("ethtool"):
        pytest.skip("needs ethtool")
    with running() as r:
        places = (r.site.node, "under"), (r.site.peer, "under"), (r.site.peer, "vx")
        switched = 0
        for netns, device in (*places, (r.site.pod, "web")):
            for each in off:
                words = ["ip", "netns", "exec", netns, "ethtool", "-K", device, each, "off"]
                switched += not subprocess.run(words, capture_output=True, check=False).returncode
        assert switched
        transfer(r.site.pod, r.site.peer, REMOTE, 4 << 20)
        transfer(r.site.peer, r.site.pod, POD, 4 << 20)
        with udp(r.site.pod, POD, 7001) as pod, udp(r.site.peer, REMOTE, 7002) as peer:
            for sender, receiver in ((pod, peer), (peer, pod)):
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                data = os.urandom(9500)
                sender.sendto(data, receiver.getsockname())
                assert b"".join(receiver.recv(2000) for _ in range(10)) == data
        assert checksum_errors(r.site.pod) == checksum_errors(r.site.peer) == 0
        assert adds_up(r.engine.stats().to_dict()["totals"])


@pytest.mark.parametrize("size", [0, 1, 2, 17, 1000, MTU - 28])
def test_udp_of_every_size_there_and_back(live: Running, size: int) -> None:
    data = os.urandom(size)
    with udp(live.site.pod, POD) as pod, udp(live.site.peer, REMOTE) as peer:
        pod.sendto(data, peer.getsockname())
        got, source = peer.recvfrom(2000)
        assert got == data
        peer.sendto(data[::-1], source)
        assert pod.recv(2000) == data[::-1]
    assert checksum_errors(live.site.pod) == checksum_errors(live.site.peer) == 0


def test_a_way_that_takes_no_messages_of_many_gets_single_packets() -> None:
    SO_NO_CHECK = 11
    with running() as r:
        for sock in r.underlay._send[4]:  # without checksums the kernel refuses UDP_SEGMENT
            sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        transfer(r.site.pod, r.site.peer, REMOTE, 4 << 20)
        assert r.io("underlay", "gso_frames") == 0 < r.io("web", "rx_frames")
        assert r.drops().keys() <= {"multicast", "nd_router_solicit", "nd_unknown_target"}
        calls = r.io("underlay", "tx_calls")
        assert calls < r.io("underlay", "tx_frames") / 2, "each message was tried, and cut again"


def test_what_an_underlay_refuses_counts_as_it_was_counted() -> None:
    """A super-frame of 30 packets is 30 drops; a last one that fits is sent."""
    with running() as r:
        ip(r.site.node, "link set under mtu 1000")
        sender, receiver = udp(r.site.pod, POD), udp(r.site.peer, REMOTE)
        with sender, receiver:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
            sender.sendto(bytes(30 * 1200 + 5), receiver.getsockname())
            assert receiver.recv(2000) == bytes(5)
        wait_for(lambda: r.drops().get("egress_too_big") == 30)
        assert adds_up(r.engine.stats().totals)
        ports = r.engine.stats().ports
        assert ports["underlay"]["tx_frames"] == r.io("underlay", "tx_frames")


def test_udp_with_segment_offload_arrives_as_it_was_cut(live: Running) -> None:
    with udp(live.site.pod, POD) as pod, udp(live.site.peer, REMOTE) as peer:
        peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        data = os.urandom(5500)
        peer.sendto(data, pod.getsockname())
        got = [pod.recv(9000) for _ in range(6)]
    assert [len(g) for g in got] == [1000] * 5 + [500]
    assert b"".join(got) == data


@pytest.mark.conformance("V7")
def test_a_datagram_is_never_cut_in_two() -> None:
    """A peer with a larger MTU: TCP may be cut into segments, a datagram is one or none."""
    with running(underlay_mtu=9000, mtu=MTU) as r:
        with udp(r.site.pod, POD) as pod, udp(r.site.peer, REMOTE) as peer:
            peer.sendto(b"x" * 4000, pod.getsockname())
            peer.sendto(b"y", pod.getsockname())
            assert pod.recv(9000) == b"y"
        assert r.drops()["egress_too_big"] == 1
        transfer(r.site.peer, r.site.pod, POD, 4 << 20)


# ---- what leaves by the underlay ---------------------------------------------------------------


def outer_packets(r: Running, work: Callable[[], None], quiet: float = 0.3) -> list[bytes]:
    """What the peer's underlay device receives from this node while `work` runs."""
    ip_type = 0x86DD if ":" in r.site.address else 0x0800

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ip_type))
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        sock.bind(("under", ip_type))
        sock.settimeout(quiet)
        return sock

    own = ip_address(r.site.address).packed
    at = 22 if len(own) == 16 else 26
    found = []
    with inside(r.site.peer, listen) as sock:
        work()
        with contextlib.suppress(TimeoutError):
            while frame := sock.recv(65535):
                if frame[at : at + len(own)] == own:
                    found.append(frame)
    return found


@pytest.mark.conformance("V1", "V6", "E1", "E5", "E8")
@pytest.mark.parametrize("offload", [False, True], ids=["plain", "offload"])
@pytest.mark.parametrize("v6", [False, True], ids=["underlay4", "underlay6"])
def test_outer_headers(v6: bool, offload: bool) -> None:
    with running(v6=v6, offload=offload) as r:

        def send() -> None:
            with udp(r.site.pod, POD) as pod:
                pod.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 2)  # EF, ECT(0)
                pod.sendto(b"hello", (REMOTE, 7000))

        frames = [f for f in outer_packets(r, send) if b"hello" in f]
        assert len(frames) == 1
        outer = frames[0][14:]
        if v6:
            assert int.from_bytes(outer[:4]) >> 20 & 0xFF == 2 and outer[7] == 64
            transport = outer[40:]
            assert transport[6:8] != b"\0\0", "RFC 8200: the checksum is mandatory"
        else:
            assert outer[1] == 2 and outer[8] == 64
            assert outer[6] & 0xC0 == 0x40, "DF is set: never fragmented (RFC 7348 section 4.3)"
            transport = outer[20:]
            assert (transport[6:8] == b"\0\0") is not offload, "many in one need a checksum"
        assert int.from_bytes(transport[:2]) >= 49152
        assert int.from_bytes(transport[2:4]) == 4789
        assert transport[8:16] == bytes([8, 0, 0, 0, 0, 16, 0, 0])


@pytest.mark.conformance("V5")
def test_flows_spread_over_source_ports_and_stick_to_theirs(live: Running) -> None:
    flows = 200

    def send() -> None:
        for i in range(flows):
            with udp(live.site.pod, POD) as pod:
                for _ in range(3):
                    pod.sendto(struct.pack("!6sH", b"spread", i), (REMOTE, 7000))

    ports: dict[int, set[int]] = {}
    for frame in outer_packets(live, send):
        for found in re.finditer(b"spread(..)", frame, re.DOTALL):  # of a message of many, all
            flow = int.from_bytes(found[1])
            ports.setdefault(flow, set()).add(int.from_bytes(frame[34:36]))
    assert len(ports) == flows and all(len(p) == 1 for p in ports.values())
    distinct = set().union(*ports.values())
    assert len(distinct) > 48, "64 sockets, 200 flows: about 61 of them are used"
    assert min(distinct) >= 49152


# ---- misfortunes -------------------------------------------------------------------------------


@pytest.mark.conformance("T18")
def test_tap_down_and_up(live: Running) -> None:
    assert ping_works(live)
    ip(live.site.pod, "link set web down")
    with udp(live.site.peer, REMOTE) as peer:
        for _ in range(5):
            peer.sendto(b"x", (POD, 9))
    wait_for(lambda: live.drops().get("egress_down") == 5)
    before = live.io("web", "rx_calls")
    time.sleep(0.3)
    assert live.io("web", "rx_calls") - before < 10, "it spins"
    ip(live.site.pod, "link set web up", "route replace default via 10.1.0.1 dev web")
    wait_for(lambda: ping_works(live))


def test_tap_deleted_others_go_on(live: Running) -> None:
    assert ping_works(live)
    ip(live.site.pod, "link del web")
    time.sleep(0.1)
    before = live.io("web", "rx_calls")
    with udp(live.site.peer, REMOTE) as peer:
        peer.sendto(b"x", (POD, 9))
    wait_for(lambda: live.drops().get("egress_down") == 1)
    time.sleep(0.2)
    assert live.io("web", "rx_calls") - before < 10, "it spins"


def test_tap_is_missed_in_a_namespace_made_again() -> None:
    """`ip netns del` leaves the old one alive, for a TAP in it is open."""
    with namespaces("p") as (pod,), Tap("web", netns=pod) as tap:
        assert tap.is_there
        ip(None, f"netns del {pod}")
        assert tap.is_there  # others may live there still
        ip(None, f"netns add {pod}")
        assert not tap.is_there
        with Tap("web", netns=pod) as again:
            assert again.is_there


@pytest.mark.conformance("T18")
def test_peer_that_does_not_listen(live: Running) -> None:
    """ICMP port unreachable comes back for every packet: counted at most, never fatal."""
    ip(live.site.peer, "link set vx down")
    with udp(live.site.pod, POD) as pod:
        for _ in range(50):
            pod.sendto(b"x", (REMOTE, 9))
            time.sleep(0.002)
    wait_for(lambda: live.io("underlay", "tx_frames") >= 50)
    ip(
        live.site.peer,
        "link set vx up",
        f"neigh replace 10.1.1.0 lladdr {DR_MAC} dev vx nud permanent",
        f"route replace 10.1.1.0/24 via 10.1.1.0 dev vx onlink src {REMOTE}",
    )
    wait_for(lambda: ping_works(live))


@pytest.mark.conformance("T18")
def test_underlay_without_a_route(live: Running) -> None:
    assert ping_works(live)
    ip(live.site.node, "link set under down")
    with udp(live.site.pod, POD) as pod:
        pod.sendto(b"x", (REMOTE, 9))
    wait_for(lambda: live.drops().get("egress_down") == 1)
    ip(live.site.node, "link set under up")
    wait_for(lambda: ping_works(live))


@pytest.mark.conformance("V7", "T18")
def test_underlay_that_carries_less_than_believed(live: Running) -> None:
    """The kernel refuses instead of fragmenting (RFC 7348 section 4.3)."""
    ip(live.site.node, "link set under mtu 1400")
    with udp(live.site.pod, POD) as pod:
        pod.sendto(b"x" * 1400, (REMOTE, 9))
        wait_for(lambda: live.drops().get("egress_too_big") == 1)
    assert ping_works(live)


# ---- without root: the underlay on loopback, a socket pair in place of the TAP -------------------


class Bench:
    """`peer` is the UDP socket of another VTEP, `pod` the far end of the "TAP"."""

    def __init__(self, made: contextlib.ExitStack, *, vnet_hdr: bool, v6: bool) -> None:
        inner, prefix = ("fd00::2", "fd00::/16") if v6 else (POD, "10.1.0.0/16")
        remote = "fd00:2::/32" if v6 else "10.1.2.0/24"
        self.vnet = 10 if vnet_hdr else 0
        self.peer = made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.peer.bind(("127.0.0.2", 0))
        self.peer.settimeout(2)
        port = self.peer.getsockname()[1]
        ours, self.pod = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.enter_context(self.pod)
        self.pod.settimeout(2)
        ours.setblocking(False)
        tap = made.enter_context(AdoptedTap(ours.detach(), mtu=1400, vnet_hdr=vnet_hdr))
        network = Network(
            name="blue",
            vni=Vni(4096),
            prefixes=(ip_network(prefix),),
            dr_mac=DR_MAC,
            remote_subnets=(
                RemoteSubnet(
                    prefix=ip_network(remote),
                    provider_address=ip_address("127.0.0.2"),
                    dr_mac=PEER_MAC,
                ),
            ),
            endpoints=(Endpoint(name="web", addresses=(ip_address(inner),), mac=POD_MAC),),
        )
        underlay = Underlay(address=ip_address("127.0.0.1"), port=port)
        self.engine = made.enter_context(Engine())
        self.engine.commit(Node(name="a", underlay=underlay, networks=(network,)))
        sockets = made.enter_context(VxlanSocket(underlay.address, port=port, sources=4))
        self.address = "127.0.0.1", port
        self.forwarder = made.enter_context(
            Forwarder(self.engine, {"underlay": sockets, "web": tap})
        )

    def encapsulated(self, inner: bytes) -> None:
        self.peer.sendto(bytes([8, 0, 0, 0, 0, 16, 0, 0]) + inner, self.address)
        assert self.forwarder.step(1_000_000_000)

    def delivered(self) -> tuple[tuple[int, ...], bytes]:
        """The virtio-net header (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)."""
        data = self.pod.recv(70000)
        header = struct.unpack("<BBHHHH", data[:10]) if self.vnet else ()
        return header, data[self.vnet :]

    def drops(self) -> dict[str, int]:
        return {r: n for r, n in self.engine.stats().to_dict()["reasons"].items() if n}


POD_MAC = Mac("02:00:00:00:00:aa")


@contextlib.contextmanager
def bench(*, vnet_hdr: bool = True, v6: bool = False) -> Iterator[Bench]:
    with contextlib.ExitStack() as made:
        yield Bench(made, vnet_hdr=vnet_hdr, v6=v6)


def tcp_frame(size: int, *, v6: bool = False, partial: bool = False, **ip_fields: int) -> bytes:
    """From the peer to the pod; with `partial` the checksum is the pseudo-header's sum."""
    scapy = pytest.importorskip("scapy.all")
    src, dst = ("fd00:2::2", "fd00::2") if v6 else (REMOTE, POD)
    ip_layer = scapy.IPv6 if v6 else scapy.IP
    layers = ip_layer(src=src, dst=dst, **ip_fields) / scapy.TCP(sport=40000, dport=80)
    frame = bytearray(bytes(scapy.Ether(src=PEER_MAC, dst=DR_MAC) / layers / (b"x" * size)))
    if partial:
        l4 = 54 if v6 else 34
        words = ip_address(src).packed + ip_address(dst).packed
        words += struct.pack("!II", len(frame) - l4, 6)
        total = sum(struct.unpack(f"!{len(words) // 2}H", words))
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("!H", frame, l4 + 16, (total & 0xFFFF) + (total >> 16))
    return bytes(frame)


def test_partial_checksum_is_left_to_the_device() -> None:
    with bench() as b:
        b.encapsulated(tcp_frame(100, partial=True))
        header, frame = b.delivered()
        assert header == (1, 0, 0, 0, 34, 16)
        assert frame[34:] == tcp_frame(100, partial=True)[34:]
        b.encapsulated(tcp_frame(100))
        assert b.delivered()[0] == (0, 0, 0, 0, 0, 0)


def test_partial_checksum_is_completed_where_no_device_would() -> None:
    with bench(vnet_hdr=False) as b:
        b.encapsulated(tcp_frame(101, partial=True))
        assert b.delivered()[1][34:] == tcp_frame(101)[34:]


@pytest.mark.parametrize("partial", [True, False], ids=["partial", "complete"])
@pytest.mark.parametrize("v6", [True, False], ids=["inner6", "inner4"])
def test_super_frames_are_left_to_the_device(v6: bool, partial: bool) -> None:
    l4 = 54 if v6 else 34
    size = 65000 if v6 else 64000
    with bench(v6=v6) as b:
        b.encapsulated(tcp_frame(size, v6=v6, partial=partial))
        header, frame = b.delivered()
        assert header == (1, 4 if v6 else 1, l4 + 20, 1414 - l4 - 20, l4, 16)
        assert frame[l4:] == tcp_frame(size, v6=v6, partial=True)[l4:]
        assert b.forwarder.stats()["web"]["gso_frames"] == 1


@pytest.mark.conformance("T18")
def test_a_full_queue_of_the_underlays_device_is_counted(live: Running) -> None:
    """ENOBUFS: what the queueing discipline drops is a drop of ours; then traffic goes on.

    Of a message of many packets it takes some and drops others without telling.
    """
    shape = "root handle 1: tbf rate 64kbit burst 2000 limit 4000"
    tc = ["tc", "-n", live.site.node, "qdisc"]
    subprocess.run([*tc, "add", "dev", "under", *shape.split()], check=True)
    with udp(live.site.pod, POD) as sender:
        for _ in range(200):
            sender.sendto(bytes(1000), (REMOTE, 9))
        wait_for(lambda: live.engine.stats().totals["rx"] >= 200)
    stats = live.engine.stats()
    assert live.drops().get("egress_busy", 0) > 20 and adds_up(stats.totals)
    subprocess.run([*tc, "del", "dev", "under", "root"], check=True)
    transfer(live.site.pod, live.site.peer, REMOTE, 1 << 20)


def test_super_frames_that_cannot_be_cut_are_counted() -> None:
    with bench() as b:
        b.encapsulated(tcp_frame(2004, flags="MF"))
        assert b.drops() == {"egress_too_big": 1}
    with bench(vnet_hdr=False) as b:
        b.encapsulated(tcp_frame(2004, flags="MF"))
        assert b.drops() == {"egress_too_big": 1}


def test_super_frames_are_cut_where_no_device_would() -> None:
    with bench(vnet_hdr=False) as b:
        b.encapsulated(tcp_frame(2000))
        first, second = b.delivered()[1], b.delivered()[1]
        assert (len(first), len(second)) == (1414, 54 + 2000 - 1360)
        assert first[54:] + second[54:] == tcp_frame(2000)[54:]
        totals = b.engine.stats().totals
        assert totals["rx"] == totals["forwarded"] == b.forwarder.stats()["web"]["tx_frames"] == 2


@pytest.mark.conformance("E2")
@pytest.mark.parametrize("inner", [0, 1, 2, 3])
@pytest.mark.parametrize("outer", [0, 1, 2, 3])
def test_congestion_marks_of_the_outer_header_arrive(outer: int, inner: int) -> None:
    with bench() as b:
        b.peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, outer)
        b.encapsulated(tcp_frame(0, tos=inner))
        if (outer, inner) == (3, 0):
            assert b.drops() == {"ecn_ce_on_not_ect": 1}
        elif (outer, inner) == (1, 2):
            assert b.delivered()[1][15] == 1, "RFC 6040 figure 4: ECT(1) outside wins"
        else:
            assert b.delivered()[1][15] == (3 if outer == 3 else inner)


def test_answers_that_cannot_be_sent_are_no_forwards() -> None:
    scapy = pytest.importorskip("scapy.all")
    arp = scapy.Ether(src=POD_MAC, dst="ff:ff:ff:ff:ff:ff") / scapy.ARP(
        hwsrc=POD_MAC, psrc=POD, pdst=REMOTE
    )
    with bench(vnet_hdr=False) as b:
        for _ in range(1000):  # more than the socket pair holds
            with contextlib.suppress(BlockingIOError):
                b.pod.send(bytes(arp), socket.MSG_DONTWAIT)
            b.forwarder.step()
        io, totals = b.forwarder.stats()["web"], b.engine.stats().to_dict()["totals"]
        assert io["tx_errors"] > 0
        assert totals["consumed"] == totals["rx"] == io["tx_frames"] + io["tx_errors"]
        assert totals["forwarded"] == totals["dropped"] == 0


@pytest.mark.conformance("T18")
def test_a_full_tap_queue_drops_and_counts() -> None:
    """More than the socket pair holds; once it is read, frames are delivered again."""
    with bench(vnet_hdr=False) as b:
        for _ in range(1000):
            b.encapsulated(tcp_frame(100))
        dropped = b.drops()["egress_busy"]
        held = 1000 - dropped
        assert 0 < held < 1000
        assert [b.delivered()[1][34:] for _ in range(held)] == [tcp_frame(100)[34:]] * held
        b.encapsulated(tcp_frame(100))
        assert b.delivered()[1][34:] == tcp_frame(100)[34:]
        totals = b.engine.stats().to_dict()["totals"]
        assert totals["forwarded"] == held + 1 and totals["dropped"] == dropped


def test_packets_wait_for_a_forwarder_that_has_no_turn(live: Running) -> None:
    """2,000 of them, which is more than the 1,000 that a TAP has room for by itself."""
    wait_for(lambda: ping_works(live))
    before = live.io("web", "rx_frames")
    with udp(live.site.pod, POD) as pod, live.forwarder.pause():
        for _ in range(2000):
            pod.sendto(b"wait", (REMOTE, 9))
    wait_for(lambda: live.io("web", "rx_frames") >= before + 2000)


def test_what_finds_the_underlays_socket_full_is_counted(live: Running) -> None:
    """As the kernel counts it, and all of it."""

    def counted() -> tuple[int, int]:
        return live.io("underlay", "rx_frames"), live.io("underlay", "rx_lost")

    received, lost = counted()
    sent = 20_000
    with udp(live.site.peer, live.site.remote) as peer, live.forwarder.pause():
        for _ in range(sent):
            peer.sendto(bytes(1400), (live.site.address, 4789))
    wait_for(lambda: sum(counted()) == received + lost + sent)
    assert counted()[1] - lost == inside(live.site.node, lambda: udp_counter("RcvbufErrors")) > 0
    assert ping_works(live)


@pytest.mark.conformance("V11")
def test_nonsense_on_the_vxlan_port() -> None:
    with bench() as b:
        for payload in (b"", b"\x08", bytes(8), bytes(100), b"\xff" * 65000):
            b.peer.sendto(payload, b.address)
            b.forwarder.step(1_000_000_000)
        totals = b.engine.stats().to_dict()["totals"]
        assert totals["rx"] == totals["dropped"] == 5


# ---- the forwarder -----------------------------------------------------------------------------


def test_a_second_thread_is_refused_and_policy_may_change(live: Running) -> None:
    with pytest.raises(BusyError if WORKERS == 1 else ValueError):
        live.forwarder.step()
    with pytest.raises(BusyError):
        live.forwarder.close()
    with pytest.raises(BusyError):
        live.engine.close()
    with Forwarder(live.engine, {}) as other, pytest.raises(BusyError):
        other.run(timeout=0)
        other.step()
    assert ping_works(live)
    with live.forwarder.pause():
        assert len(live.engine.flows()) == 1
        assert not ping_works(live)
    wait_for(lambda: ping_works(live))
    with live.engine.edit() as draft:
        draft.network("blue", remote_subnets=())
    assert not ping_works(live)


def test_step_with_a_loop_of_ones_own() -> None:
    with namespaces("n", "k", "p") as names, Engine() as engine:
        site = Site(*names, v6=False, underlay_mtu=1500)
        engine.commit(site.policy())
        mac = engine.resolved.networks[0].endpoints[0].mac
        with (
            Tap("web", netns=site.pod, mac=mac, mtu=MTU) as tap,
            VxlanSocket(ip_address(site.address), netns=site.node) as underlay,
            Forwarder(engine, {0: underlay, "blue/web": tap}) as forwarder,
            udp(site.peer, REMOTE) as peer,
        ):
            tap.address(ip_address(POD), 16)
            while select.select([forwarder], [], [], 0)[0]:
                assert forwarder.step()
            peer.sendto(b"x", (POD, 9))
            assert select.select([forwarder], [], [], 2)[0]
            assert forwarder.step()
            assert forwarder.stats()["0"]["rx_frames"] == 1
            begin = time.monotonic()
            forwarder.run(timeout=0.15)
            assert 0.1 < time.monotonic() - begin < 1
            forwarder.stop()
            assert not forwarder.step()
            assert forwarder.step()
            forwarder.stop()
            forwarder.run()
            forwarder.run(until=lambda: True)
        engine.flush()


def test_a_closed_engine_is_an_error_not_a_crash() -> None:
    engine = Engine()
    with Forwarder(engine, {}) as forwarder:
        engine.close()
        with pytest.raises(DataplaneError):
            forwarder.step()
    with pytest.raises(DataplaneError):
        forwarder.run(timeout=0.1)


# ---- opening -----------------------------------------------------------------------------------


@pytest.mark.conformance("T18")
def test_nothing_stays_open() -> None:
    with running() as r:
        assert ping_works(r)
    before = sorted(os.listdir("/proc/self/fd"))
    with running() as r:
        assert ping_works(r)
    assert sorted(os.listdir("/proc/self/fd")) == before


def links(netns: str) -> str:
    return subprocess.check_output(["ip", "-n", netns, "link"], text=True)


def test_persistence() -> None:
    with namespaces("p") as (pod,):
        with Tap("stays", netns=pod, persist=True), Tap("goes", netns=pod) as goes:
            assert "stays" in links(pod) and "goes" in links(pod)
            goes.close()
            goes.close()
            wait_for(lambda: "goes" not in links(pod))
        assert "stays" in links(pod)
        with Tap("stays", netns=pod, mtu=1400, mac=Mac("02:00:00:00:00:07")):
            shown = links(pod)
            assert "mtu 1400" in shown and "02:00:00:00:00:07" in shown and "UP" in shown
        assert "stays" in links(pod)


def test_refusals_name_the_fix() -> None:
    with namespaces("p") as (pod,):
        ip(pod, "link add other type veth peer name another")
        with Tap("tap0", netns=pod):
            for name, words in {
                "tap0": "busy",
                "other": "no single-queue TAP",
                "sixteen-bytes-it": "1 to 15 bytes",
                "tap%d": "percent",
            }.items():
                with pytest.raises(PortError, match=words):
                    Tap(name, netns=pod)
        with pytest.raises(PortError, match="interface name"):
            Tap("", netns=pod)
        with pytest.raises(PortError, match="ip netns add"):
            Tap("tap0", netns="no-such-netns")
        with pytest.raises(PortError, match=r"(?i)mtu|invalid"):
            Tap("tap1", netns=pod, mtu=20)
        assert "tap1" not in links(pod)
        loopback = ip_address("127.0.0.1")
        with VxlanSocket(loopback, netns=pod, sources=3):
            with pytest.raises(PortError, match="in use"):
                VxlanSocket(loopback, netns=pod)
            VxlanSocket(loopback, netns=pod, port=8472).close()
        with pytest.raises(PortError, match="no interface"):
            VxlanSocket(ip_address("192.0.2.9"), netns=pod)
        with pytest.raises(PortError, match="interface nothere"):
            VxlanSocket(loopback, netns=pod, interface="nothere")
        for count in (0, -1, 20000):
            with pytest.raises(PortError, match="source ports"):
                VxlanSocket(loopback, netns=pod, sources=count)
        ip(pod, "link add vx type vxlan external dstport 4789", "link set vx up")
        with pytest.raises(PortError, match="kernel VXLAN device"):
            VxlanSocket(loopback, netns=pod)


def test_source_ports_in_use_are_left_out() -> None:
    with namespaces("p") as (pod,):
        held = [udp(pod, "127.0.0.1", port) for port in (49152, 49153)]
        with VxlanSocket(ip_address("127.0.0.1"), netns=pod) as socket_:
            ports = [s.getsockname()[1] for s in socket_._send[4]]
            assert ports[0] == 49154 and len(set(ports)) == 64 and ports[-1] > 65000
        for sock in held:
            sock.close()


def test_what_is_sent_to_a_source_port_does_not_pile_up() -> None:
    with namespaces("p") as (pod,), VxlanSocket(ip_address("127.0.0.1"), netns=pod) as socket_:
        sender = socket_._send[4][0]
        with udp(pod, "127.0.0.1") as other:
            for _ in range(1000):
                other.sendto(b"x" * 1000, sender.getsockname())
        held = 0
        with contextlib.suppress(BlockingIOError):
            while sender.recv(2000):
                held += 1
        assert held < 20


def test_pytap2_devices_are_adopted() -> None:
    pytap2 = pytest.importorskip("pytap2")
    from dataplane.adapters.pytap2 import from_pytap2

    with namespaces("p") as (pod,), Engine() as engine:
        site_policy = Node(
            name="a",
            underlay=Underlay(address=ip_address("127.0.0.1"), mtu=1600),
            networks=(
                Network(
                    name="blue",
                    vni=Vni(1),
                    prefixes=(ip_network("10.1.0.0/16"),),
                    mtu=1500,
                    endpoints=(Endpoint(name="web", addresses=(ip_address(POD),)),),
                ),
            ),
        )
        engine.commit(site_policy)
        mac = engine.resolved.networks[0].endpoints[0].mac
        device = inside(pod, lambda: pytap2.TapDevice(pytap2.TapMode.Tap, name="py"))
        try:
            ip(pod, f"link set py0 address {mac} up", f"addr add {POD}/16 dev py0")
            port = from_pytap2(device)
            assert isinstance(port, AdoptedTap) and port.fileno() != device.fileno()
            with Forwarder(engine, {"web": port}) as forwarder, forwarder.background():
                with udp(pod, POD) as sock:
                    sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # the kernel may fragment
                    sock.sendto(b"x" * 1472, ("10.1.0.1", 9))
                wait_for(lambda: engine.stats().to_dict()["reasons"].get("to_gateway", 0) == 1)
            port.close()
            port.close()
            os.fstat(device.fileno())  # still open: it is the caller's
        finally:
            device.close()
            device.close = lambda: (
                None
            )  # it registered itself with atexit, and would close a stranger


def test_pytap2_tun_is_refused() -> None:
    pytap2 = pytest.importorskip("pytap2")
    from dataplane.adapters.pytap2 import from_pytap2

    with namespaces("p") as (pod,):
        device = inside(pod, lambda: pytap2.TapDevice(pytap2.TapMode.Tun, name="py"))
        with pytest.raises(PortError, match="TapMode"):
            from_pytap2(device)
        device.close()


def test_inside_leaves_this_thread_where_it_is() -> None:
    with namespaces("p") as (pod,):
        here = os.stat("/proc/thread-self/ns/net").st_ino
        there = inside(pod, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
        assert there == os.stat(path_of(pod)).st_ino != here
        assert os.stat("/proc/thread-self/ns/net").st_ino == here
        with pytest.raises(ZeroDivisionError):
            inside(pod, lambda: 1 // 0)


def test_a_visitor_stays_there_until_it_is_closed() -> None:
    with namespaces("p") as (pod,):
        visitor, before = Visitor(pod), threading.active_count()
        found = {
            visitor(lambda: (threading.get_ident(), os.stat("/proc/thread-self/ns/net").st_ino))
            for _ in range(3)
        }
        assert {space for _, space in found} == {os.stat(path_of(pod)).st_ino} and len(found) == 1
        with pytest.raises(ZeroDivisionError):
            visitor(lambda: 1 // 0)
        visitor.close()
        visitor.close()
        assert threading.active_count() == before
    with pytest.raises(PortError, match="ip netns add"):
        Visitor("no-such-netns")(lambda: None)


def test_routes_of_a_link_come_and_go() -> None:
    """A route whose source is replaced stays; nothing is left of the connection."""
    gateway, source = ip_address("169.254.77.1"), ip_address("10.9.0.1")
    plain = {Route(ip_network(f"10.9.{n}.0/24"), gateway) for n in range(3)}
    by_source = {route._replace(source=source) for route in plain}
    with namespaces("p") as (pod,), Tap("dp0", netns=pod) as tap:

        def shown() -> dict[str, str]:
            """Sources by prefix."""
            lines = subprocess.check_output(["ip", "-n", pod, "route"], text=True).splitlines()
            found = (line.split() for line in lines)
            return {w[0]: w[w.index("src") + 1] if "src" in w else "" for w in found}

        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        tap.routes.add(plain)
        assert shown() == {f"10.9.{n}.0/24": "" for n in range(3)}
        tap.routes.add(by_source)
        tap.routes.remove(plain, by_source)
        assert shown() == {f"10.9.{n}.0/24": str(source) for n in range(3)}
        ip(pod, "route del 10.9.1.0/24")
        tap.routes.remove(by_source, ())
        told = subprocess.check_output(["ip", "-n", pod, "address"], text=True)
        assert shown() == {} and str(source) not in told
        with pytest.raises(PortError, match=r"dp0: .*Invalid argument"):
            tap.routes.add([Route(ip_network("10.9.0.0/24"), ip_address("127.0.0.1"))])
        tap.routes.close()
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (
            descriptors,
            threads,
        )
        tap.routes.add(plain)
        assert len(shown()) == 3


def behind_the_host(pod: str, *vips: str) -> Node:
    """Whose host port is in the pod, with load balancers at these addresses."""
    host = HostPort(
        address=ip_address("169.254.1.1"),
        peer=ip_address("169.254.1.2"),
        tap=policy.Tap(name="host", netns=pod),
    )
    balancers = tuple(
        LoadBalancer(name=f"lb{n}", protocol="tcp", port=80, vips=(ip_address(vip),))
        for n, vip in enumerate(vips)
    )
    blue = Network(
        name="blue", vni=Vni(1), prefixes=(ip_network("10.1.0.0/16"),), load_balancers=balancers
    )
    here = Underlay(address=ip_address("127.0.0.1"))
    return resolve(Node(name="a", underlay=here, host_port=host, networks=(blue,)))


def test_routes_of_the_host_stand_and_fall_with_a_commit() -> None:
    """Whoever deletes its device or namespace, and makes it again; nothing is left behind."""
    with namespaces("p", "u") as (pod, underlay), contextlib.closing(NodePorts()) as ports:

        def shown() -> set[str]:
            lines = subprocess.check_output(["ip", "-n", pod, "route"], text=True).splitlines()
            return {line.split()[0] for line in lines if " via 169.254.1.1 " in line}

        def change(*vips: str) -> set[str]:
            with ports.change(behind_the_host(pod, *vips)) as begun:
                begun.settle()
                within = shown()
            assert shown() == {*vips}
            return within

        one, two, three = (f"10.96.0.{n}" for n in (1, 2, 3))
        threads = threading.active_count()
        inside(underlay, lambda: ports.open(behind_the_host(pod, one)))
        assert change(one, two) == {one, two} and change(three) == {one, two, three}
        with pytest.raises(ZeroDivisionError), ports.change(behind_the_host(pod, one, two)):
            raise ZeroDivisionError
        assert shown() == {three}
        ip(pod, "address add 169.254.1.1 dev lo")  # no gateway, then
        with (
            pytest.raises(PortError, match="host: "),
            ports.change(behind_the_host(pod, one, three)) as begun,
        ):
            begun.settle()
            raise AssertionError("the kernel took it")
        ip(pod, "address del 169.254.1.1 dev lo")
        assert shown() == {three}
        ip(pod, "link del host")
        change(one)
        change(two)
        subprocess.run(["ip", "netns", "del", pod], check=True)
        ip(None, f"netns add {pod}")
        change(three)
        change()
        ports.close()
        assert threading.active_count() == threads


def test_a_route_of_the_host_has_its_source_again() -> None:
    """Where a commit that would have given it another one fails."""
    with namespaces("p", "u") as (pod, underlay), contextlib.closing(NodePorts()) as ports:

        def using(source: str) -> Node:
            node = behind_the_host(pod)
            subnets = (ip_network(f"{source}/24"),)
            blue = replace(node.networks[0], host_route=True, host_subnets=subnets)
            return replace(node, networks=(blue,))

        def source() -> str:
            told = subprocess.check_output(["ip", "-n", pod, "route", "get", POD], text=True)
            return told.partition(" src ")[2].split()[0]

        inside(underlay, lambda: ports.open(using("10.1.8.0")))
        with pytest.raises(ZeroDivisionError), ports.change(using("10.1.9.0")) as begun:
            begun.settle()
            assert source() == "10.1.9.0"
            raise ZeroDivisionError
        assert source() == "10.1.8.0"
        told = subprocess.check_output(["ip", "-n", pod, "address"], text=True)
        assert "10.1.8.0" in told and "10.1.9.0" not in told


@pytest.mark.conformance("E4", "E8")
def test_the_socket_sends_with_the_networks_ttl_and_dscp() -> None:
    with bench() as b:
        b.peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        b.peer.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        for wire, wanted in (
            (Wire(), (0, 64)),
            (Wire(ttl=9), (0, 9)),
            (Wire(ttl=200, dscp=46), (46 << 2, 200)),
        ):
            with b.engine.edit() as draft:
                draft.network("blue", wire=wire)
            b.pod.send(bytes(10) + echo_frame())
            assert b.forwarder.step(1_000_000_000)
            _, control, _, _ = b.peer.recvmsg(2000, 256)
            found = {kind: int.from_bytes(data, "little") for _, kind, data in control}
            assert (found[socket.IP_TOS], found[socket.IP_TTL]) == wanted


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


def echo_frame() -> bytes:
    """From the pod to the peer."""
    inner = b"\x08\0\xf7\xfe\0\1\0\0"
    ends = ip_address(POD).packed + ip_address(REMOTE).packed
    head = b"\x45\0" + (20 + len(inner)).to_bytes(2) + b"\0\0\x40\0\x40\1\0\0" + ends
    total = sum(struct.unpack("!10H", head))
    check = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    head = head[:10] + check.to_bytes(2) + head[12:]
    return DR_MAC.packed + POD_MAC.packed + b"\x08\0" + head + inner


def test_zero_checksums_over_ipv6_are_asked_of_the_socket() -> None:
    for zero6 in (False, True):
        with VxlanSocket(ip_address("::1"), port=free_port(), zero6=zero6, sources=1) as own:
            (receiver,) = own._receive[6]
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
                peer.setsockopt(socket.IPPROTO_UDP, 101, 1)  # UDP_NO_CHECK6_TX
                peer.sendto(b"unsummed", receiver.getsockname())
            assert bool(select.select([receiver], [], [], 0.1)[0]) is zero6


# ---- workers -----------------------------------------------------------------------------------


def test_a_port_that_workers_share_is_not_shared_with_others() -> None:
    """SO_REUSEPORT would let any process of the same user in."""
    with VxlanSocket(ip_address("127.0.0.1"), port=free_port(), sources=1, queues=2) as own:
        for queues in (1, 2):
            with pytest.raises(PortError, match="in use"):
                VxlanSocket(ip_address("127.0.0.1"), port=own.port, sources=1, queues=queues)


def test_a_forwarder_of_workers_is_not_stepped() -> None:
    with Engine(max_flows=16, workers=2) as engine:
        with Forwarder(engine, {}, workers=2) as forwarder:
            for call in (forwarder.step, forwarder.fileno):
                with pytest.raises(ValueError, match="a forwarder of 2 workers is run"):
                    call()
            forwarder.run(timeout=0.05)
        with pytest.raises(EngineError, match="worker"):
            Forwarder(engine, {}, workers=3)
