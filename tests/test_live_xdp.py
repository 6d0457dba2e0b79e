"""AF_XDP beside the underlay's sockets, on a veth pair: a kernel peer, and another of us."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from dataplane.address import Mac
from dataplane.api.client import Client
from dataplane.demo_node import NodeProcess
from dataplane.document import dump
from dataplane.engine import Engine
from dataplane.errors import PortError
from dataplane.forwarder import Forwarder
from dataplane.model import Document, RemoteSubnet, Wire
from dataplane.model import Tap as TapOf
from dataplane.netns import inside
from dataplane.ports import Tap, VxlanSocket
from dataplane.stats import adds_up
from tests import test_ports_live as ports_live
from tests.reference.checksum import checksum, pseudo_header
from tests.test_ports_live import (
    DR_MAC,
    PEER_MAC,
    POD,
    REMOTE,
    Running,
    Site,
    checksum_errors,
    ip,
    namespaces,
    outer_packets,
    ping_works,
    transfer,
    udp,
    wait_for,
)

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["underlay4", "underlay6"])


def running(**options: Any) -> AbstractContextManager[Running]:
    """With AF_XDP. A veth copies, so super-frames would take the sockets: here they are cut, as
    where the driver does zero copy."""
    return ports_live.running(**{"xdp": "under", "xdp_cut": True} | options)


def ping(netns: str, address: str) -> bool:
    words = ["ip", "netns", "exec", netns, "ping", "-c", "3", "-i", "0.05", "-W", "2", address]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def settle(r: Running) -> None:
    """Until packets leave by AF_XDP."""
    before = r.io("underlay", "xdp_tx")
    wait_for(lambda: ping_works(r) and r.io("underlay", "xdp_tx") > before, 5)


def program_of(netns: str, device: str = "under") -> bool:
    told = subprocess.check_output(["ip", "-n", netns, "-json", "link", "show", device])
    return "xdp" in json.loads(told)[0]


@pytest.fixture
def live() -> Iterator[Running]:
    with running() as r:
        settle(r)
        yield r


# ---- a kernel peer -----------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_traffic_with_a_kernel_peer(v6: bool, offload: bool) -> None:
    """With a veth's offloads: it leaves outer or inner checksums partial, whatever it sends."""
    with running(v6=v6, offload=offload) as r:
        settle(r)
        assert ping(r.site.pod, REMOTE) and ping(r.site.peer, POD)
        transfer(r.site.pod, r.site.peer, REMOTE, 8 << 20)
        transfer(r.site.peer, r.site.pod, POD, 8 << 20)
        assert checksum_errors(r.site.pod) == checksum_errors(r.site.peer) == 0
        assert not {"outer_checksum", "egress_busy"} & r.drops().keys()
        stats = r.engine.stats()
        assert adds_up(stats.totals)
        assert stats.ports["underlay"]["tx_frames"] == r.io("underlay", "tx_frames")
        assert stats.ports["underlay"]["rx_frames"] == r.io("underlay", "rx_frames")
        by_socket = r.io("underlay", "tx_frames") - r.io("underlay", "xdp_tx")
        assert r.io("underlay", "rx_frames") == r.io("underlay", "xdp_rx") > 6000
        assert by_socket < 20 and (r.io("underlay", "gro_frames") > 0) is offload


@pytest.mark.parametrize("size", [0, 1, 17, 1000, 1422])
def test_udp_of_every_size_there_and_back(live: Running, size: int) -> None:
    data = os.urandom(size)
    with udp(live.site.pod, POD) as pod, udp(live.site.peer, REMOTE) as peer:
        pod.sendto(data, peer.getsockname())
        got, source = peer.recvfrom(2000)
        assert got == data
        peer.sendto(data[::-1], source)
        assert pod.recv(2000) == data[::-1]
    assert checksum_errors(live.site.pod) == checksum_errors(live.site.peer) == 0


@FAMILIES
@pytest.mark.parametrize("full", [False, True], ids=["zero", "full"])
@pytest.mark.conformance("V5", "V6", "V7", "E1", "E6", "E8")
def test_outer_headers_are_the_engines(v6: bool, full: bool) -> None:
    """Of single packets and of those cut from a super-frame, the last of which is shorter."""
    with running(v6=v6, checksum4=full) as r:
        if full:
            with r.engine.edit() as draft:
                draft.network("blue", wire=Wire(udp_checksum="full"))
        settle(r)

        def send() -> None:
            with udp(r.site.pod, POD) as pod:
                pod.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 2)  # EF, ECT(0)
                pod.sendto(b"hello", (REMOTE, 7000))
                pod.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
                pod.sendto(b"hello" * 660, (REMOTE, 7000))

        frames = [f for f in outer_packets(r, send) if b"hello" in f]
        assert len(frames) == 5
        for frame in frames:
            outer = frame[14:]
            head = 40 if v6 else 20
            transport = outer[head:]
            assert len(transport) == int.from_bytes(transport[4:6])
            if v6:
                assert int.from_bytes(outer[:4]) == 6 << 28 | 2 << 20
                assert int.from_bytes(outer[4:6]) == len(transport) and outer[7] == 64
                pseudo = pseudo_header(outer[8:24], outer[24:40], 17, len(transport))
            else:
                assert checksum(outer[:20]) == 0 and outer[1] == 2 and outer[8] == 64
                assert int.from_bytes(outer[2:4]) == len(outer)
                assert outer[4:8] == b"\0\0\x40\0", "DF is set, so the id is 0"
                pseudo = pseudo_header(outer[12:16], outer[16:20], 17, len(transport))
            if v6 or full:
                assert transport[6:8] != b"\0\0" and checksum(pseudo + transport) == 0
            else:
                assert transport[6:8] == b"\0\0"
        assert len({f[34:36] if not v6 else f[54:56] for f in frames}) == 1, "one flow"


@pytest.mark.conformance("V5")
def test_flows_spread_over_all_source_ports(live: Running) -> None:
    flows = 300

    def send() -> None:
        for i in range(flows):
            with udp(live.site.pod, POD) as pod:
                pod.sendto(struct.pack("!6sH", b"spread", i), (REMOTE, 7000))

    frames = [f for f in outer_packets(live, send) if b"spread" in f]
    ports = {int.from_bytes(f[34:36]) for f in frames}
    assert len(frames) == flows
    assert len(ports) > 0.95 * flows, "of 16,384 ports hardly two flows have the same"
    assert min(ports) >= 49152 and max(ports) - min(ports) > 15_000


def test_df_is_as_the_network_asks(live: Running) -> None:
    """Through sockets it always is set."""
    with live.engine.edit() as draft:
        draft.network("blue", wire=Wire(df="clear"))

    def send() -> None:
        with udp(live.site.pod, POD) as pod:
            for _ in range(3):
                pod.sendto(b"may be cut", (REMOTE, 7000))

    frames = [f for f in outer_packets(live, send) if b"may be cut" in f]
    assert {f[20:22] for f in frames} == {b"\0\0"}
    assert len({f[18:20] for f in frames}) == len(frames) == 3, "each has an id"


# ---- two of us ---------------------------------------------------------------------------------


class Other:
    """A node in the peer's place, with a TAP there as its pod."""

    def __init__(self, r: Running, made: contextlib.ExitStack, cut: bool = True) -> None:
        site = r.site
        ip(site.peer, "link del vx")
        node = site.policy()
        network = node.networks[0]
        back = RemoteSubnet(
            prefix=ip_network("10.1.1.0/24"),
            provider_address=ip_address(site.address),
            dr_mac=DR_MAC,
        )
        endpoint = replace(network.endpoints[0], addresses=(ip_address(REMOTE),))
        network = replace(network, remote_subnets=(back,), endpoints=(endpoint,), dr_mac=PEER_MAC)
        underlay = replace(node.underlay, address=ip_address(site.remote))
        self.engine = made.enter_context(Engine())
        self.engine.commit(replace(node, underlay=underlay, networks=(network,)))
        assert self.engine.resolved is not None
        mac = self.engine.resolved.networks[0].endpoints[0].mac
        tap = made.enter_context(Tap("web", netns=site.peer, mac=mac, mtu=site.mtu))
        tap.address(ip_address(REMOTE), 24)
        ip(site.peer, "route add 10.1.1.0/24 via 10.1.0.1 dev web onlink")
        self.underlay = made.enter_context(
            VxlanSocket(ip_address(site.remote), netns=site.peer, xdp="under", xdp_cut=cut)
        )
        ports = {"underlay": self.underlay, "web": tap}
        self.forwarder = made.enter_context(Forwarder(self.engine, ports))
        made.enter_context(self.forwarder.background())


@FAMILIES
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "sockets"])
def test_two_of_us(v6: bool, cut: bool) -> None:
    """Neither loses a packet: what one sends, super-frames by the sockets or all by AF_XDP, the
    other gets by AF_XDP."""
    with contextlib.ExitStack() as made:
        r = made.enter_context(running(v6=v6, xdp_cut=cut))
        other = Other(r, made, cut)
        settle(r)
        transfer(r.site.pod, r.site.peer, REMOTE, 8 << 20)
        transfer(r.site.peer, r.site.pod, POD, 8 << 20)
        ours, theirs = {}, {}

        def nothing_is_lost() -> bool:
            ours.update(r.forwarder.stats()["underlay"])
            theirs.update(other.forwarder.stats()["underlay"])
            ends = (ours["tx_frames"], theirs["tx_frames"])
            return ends == (theirs["rx_frames"], ours["rx_frames"])

        wait_for(nothing_is_lost)
        for io in (theirs, ours):
            assert io["xdp_rx"] == io["rx_frames"] > 5000 and io["gro_frames"] > 0
            by_socket = io["tx_frames"] - io["xdp_tx"]
            if cut:
                assert by_socket < io["tx_frames"] / 20  # until the way is known
            else:
                assert by_socket >= io["gso_packets"] > 4000 and io["xdp_tx"] > 0
        assert checksum_errors(r.site.pod) == checksum_errors(r.site.peer) == 0
        assert adds_up(r.engine.stats().totals) and adds_up(other.engine.stats().totals)


def test_workers_have_a_queue_each() -> None:
    """A pair of two queues: each is read by a worker of its own, and either sends."""
    with namespaces("n", "k", "p") as names, contextlib.ExitStack() as made:
        site = Site(*names, v6=False, underlay_mtu=1500)
        for netns in (site.node, site.peer):
            words = ["ip", "netns", "exec", netns, "ethtool", "-L", "under", "rx", "2", "tx", "2"]
            subprocess.run(words, check=True)
        engine = made.enter_context(Engine(workers=2))
        engine.commit(site.policy())
        assert engine.resolved is not None
        mac = engine.resolved.networks[0].endpoints[0].mac
        tap = made.enter_context(Tap("web", netns=site.pod, mac=mac, mtu=site.mtu, queues=2))
        tap.address(ip_address(POD), 16)
        tap.default_route(ip_address("10.1.0.1"))
        underlay = made.enter_context(
            VxlanSocket(
                ip_address(site.address), netns=site.node, xdp="under", xdp_cut=True, queues=2
            )
        )
        assert str(underlay.xdp) == "AF_XDP on under, 2 queues, copy"
        ports = {"underlay": underlay, "web": tap}
        forwarder = made.enter_context(Forwarder(engine, ports, workers=2))
        made.enter_context(forwarder.background())

        def the_way_is_known() -> bool:
            before = forwarder.stats()["underlay"]["xdp_tx"]
            transfer(site.pod, site.peer, REMOTE, 1 << 10)
            return forwarder.stats()["underlay"]["xdp_tx"] > before

        wait_for(the_way_is_known, 5)
        for _ in range(3):
            transfer(site.pod, site.peer, REMOTE, 2 << 20)
            transfer(site.peer, site.pod, POD, 2 << 20)
        io = forwarder.stats()["underlay"]
        assert io["xdp_rx"] == io["rx_frames"] and io["xdp_tx"] > 1000, io
        assert adds_up(engine.stats().totals)


# ---- what the program lets pass ----------------------------------------------------------------


class Sender:
    """Frames from the peer's interface, as they are."""

    def __init__(self, r: Running) -> None:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind(("under", 0))
            return sock

        self.sock = inside(r.site.peer, make)
        self.macs = _mac(r.site.node) + _mac(r.site.peer)
        self.r = r

    def v4(self, *, options: bytes = b"", frag: int = 0, proto: int = 17, **udp: int) -> bytes:
        body = self.udp(**udp)
        ends = ip_address("192.0.2.2").packed + ip_address("192.0.2.1").packed
        size = 20 + len(options)
        head = struct.pack("!BBHHHBB", 0x40 | size // 4, 0, size + len(body), 7, frag, 64, proto)
        sum_ = checksum(head + b"\0\0" + ends + options)
        return b"\x08\0" + head + sum_.to_bytes(2) + ends + options + body

    def udp(self, port: int = 4789, csum: int = 0, vni: int = 4096) -> bytes:
        payload = struct.pack("!BxxxI", 8, vni << 8) + bytes(60)
        return struct.pack("!HHHH", 50_000, port, 8 + len(payload), csum) + payload

    def came(self, packet: bytes, tag: bytes = b"") -> str:
        """How it came in: by `xdp`, `socket`, or not at all."""
        before = self.r.io("underlay", "rx_frames"), self.r.io("underlay", "xdp_rx")
        self.sock.send(self.macs + tag + packet)
        end = time.monotonic() + 0.3
        while time.monotonic() < end and self.r.io("underlay", "rx_frames") == before[0]:
            time.sleep(0.01)
        if self.r.io("underlay", "xdp_rx") > before[1]:
            return "xdp"
        return "socket" if self.r.io("underlay", "rx_frames") > before[0] else "not"


def _mac(netns: str, device: str = "under") -> bytes:
    told = json.loads(subprocess.check_output(["ip", "-n", netns, "-json", "link", "show", device]))
    return Mac(told[0]["address"]).packed


def test_only_what_is_ours_is_taken(live: Running) -> None:
    """All else takes the kernel's way, and some of it to our sockets."""
    sender = Sender(live)
    with contextlib.closing(sender.sock):
        assert sender.came(sender.v4()) == "xdp"
        assert sender.came(sender.v4(options=b"\1\1\1\0")) == "socket"
        assert sender.came(sender.v4(port=4790)) == "not"
        assert sender.came(sender.v4(proto=6)) == "not"
        assert sender.came(sender.v4(frag=0x2000)) == "not"
        assert sender.came(sender.v4(), tag=b"\x81\0\0\7") == "not"
        assert sender.came(sender.v4()[:25]) == "not"
        other = bytearray(sender.v4())
        other[21] ^= 3  # the destination's last byte
        assert sender.came(bytes(other)) == "not"


@pytest.mark.conformance("V6", "E9")
def test_what_is_wrong_outside_is_dropped_for_its_reason(live: Running) -> None:
    sender = Sender(live)
    with contextlib.closing(sender.sock):
        wrong = bytearray(sender.v4())
        wrong[12] ^= 1  # the header checksum
        assert sender.came(bytes(wrong)) == "xdp"
        assert sender.came(sender.v4(csum=0x1234)) == "xdp"
        wait_for(lambda: live.drops().get("outer_checksum") == 2)
        short = bytearray(sender.v4())
        short[26:28] = b"\0\4"  # the UDP length
        assert sender.came(bytes(short)) == "xdp"
        wait_for(lambda: live.drops().get("outer_malformed") == 1)
        assert sender.came(sender.v4(vni=77)) == "xdp"
        wait_for(lambda: live.drops().get("unknown_vni") == 1)
    assert adds_up(live.engine.stats().totals)


@pytest.mark.conformance("E6")
def test_a_zero_checksum_over_ipv6_is_the_engines_to_judge() -> None:
    with running(v6=True) as r:
        settle(r)
        ends = ip_address(r.site.remote).packed + ip_address(r.site.address).packed
        sender = Sender(r)
        with contextlib.closing(sender.sock):
            body = sender.udp()
            packet = struct.pack("!HIHBB", 0x86DD, 6 << 28, len(body), 17, 64) + ends + body
            assert sender.came(packet) == "xdp"
            wait_for(lambda: r.drops().get("udp6_zero_checksum") == 1)


def test_what_the_rings_have_no_room_for_is_counted(live: Running) -> None:
    sender = Sender(live)
    with contextlib.closing(sender.sock):
        before = live.io("underlay", "rx_frames")
        with live.forwarder.pause():
            frame = sender.macs + sender.v4(vni=77)
            for _ in range(3000):
                sender.sock.send(frame)
        wait_for(lambda: live.io("underlay", "rx_frames") >= before + 2048)
        assert live.io("underlay", "xdp_lost") == 3000 - 2048
        assert sender.came(sender.v4()) == "xdp"
        assert live.io("underlay", "rx_frames") == before + 2049
    assert live.drops()["unknown_vni"] == 2048


def test_fragments_come_together_in_the_kernel(live: Running) -> None:
    """And then by the socket, as ever."""
    before = live.io("underlay", "rx_frames"), live.io("underlay", "xdp_rx")
    with udp(live.site.peer, live.site.remote) as peer:
        peer.setsockopt(socket.IPPROTO_IP, 10, 0)  # the kernel may fragment
        peer.sendto(struct.pack("!BxxxI", 8, 77 << 8) + bytes(3000), (live.site.address, 4789))
    wait_for(lambda: live.io("underlay", "rx_frames") == before[0] + 1)
    assert live.io("underlay", "xdp_rx") == before[1]
    assert live.drops().get("unknown_vni") == 1


def test_the_host_itself_is_reached_as_ever(live: Running) -> None:
    transfer(live.site.peer, live.site.node, live.site.address, 4 << 20)
    transfer(live.site.node, live.site.peer, live.site.remote, 4 << 20)
    assert ping(live.site.peer, live.site.address)


# ---- next hops that change ---------------------------------------------------------------------


def test_until_the_next_hop_is_known_the_sockets_send() -> None:
    with running() as r:
        assert ping_works(r)
        first = r.forwarder.stats()["underlay"]
        assert first["tx_frames"] > first["xdp_tx"], "the kernel had to ask for the neighbour"
        settle(r)
        assert not any(reason.startswith("egress") for reason in r.drops())


def test_a_neighbour_with_another_mac_is_followed(live: Running) -> None:
    ip(live.site.peer, "link set under address 02:00:00:00:77:77")
    ip(live.site.node, f"neigh replace {live.site.remote} lladdr 02:00:00:00:77:77 dev under")
    settle(live)


def test_our_own_mac_is_followed(live: Running) -> None:
    ip(live.site.node, "link set under address 02:00:00:00:88:88")
    ip(live.site.peer, f"neigh replace {live.site.address} lladdr 02:00:00:00:88:88 dev under")

    def send() -> None:
        with udp(live.site.pod, POD) as pod:
            pod.sendto(b"from the new one", (REMOTE, 7000))

    time.sleep(0.2)
    frames = [f for f in outer_packets(live, send) if b"from the new one" in f]
    assert [f[6:12].hex(":") for f in frames] == ["02:00:00:00:88:88"]


def test_a_route_elsewhere_takes_the_sockets(live: Running) -> None:
    """A second pair, to the same peer."""
    site = live.site
    ip(site.node, f"link add more type veth peer name more netns {site.peer}")
    for netns, address in ((site.node, "198.51.100.1"), (site.peer, "198.51.100.2")):
        ip(netns, f"addr add {address}/24 dev more", "link set more up")
    ip(site.node, f"route add {site.remote}/32 via 198.51.100.2 dev more")
    time.sleep(0.2)
    before = live.io("underlay", "xdp_tx")
    with udp(site.pod, POD) as pod:
        pod.sendto(b"x", (REMOTE, 7000))
    wait_for(lambda: live.engine.stats().ports["underlay"]["tx_frames"] > 0)
    assert live.io("underlay", "xdp_tx") == before
    ip(site.node, f"route del {site.remote}/32")
    settle(live)


def test_a_stale_neighbour_is_kept_alive(live: Running) -> None:
    """The kernel sees nothing of what is sent past it; so it is asked to look."""
    remote = live.site.remote
    mac = _mac(live.site.peer).hex(":")
    ip(live.site.node, f"neigh replace {remote} lladdr {mac} dev under nud stale")

    def state() -> str:
        words = ["ip", "-n", live.site.node, "-json", "neigh", "show", remote]
        return str(json.loads(subprocess.check_output(words))[0]["state"])

    wait_for(lambda: "STALE" not in state(), 8)
    settle(live)


# ---- interfaces that come and go ---------------------------------------------------------------


@pytest.mark.conformance("T18")
def test_interface_down_and_up(live: Running) -> None:
    ip(live.site.node, "link set under down")
    with udp(live.site.pod, POD) as pod:
        for _ in range(20):
            pod.sendto(b"x", (REMOTE, 9))
            time.sleep(0.005)
    wait_for(lambda: live.drops().get("egress_down") == 20)
    stats = live.engine.stats()
    assert adds_up(stats.totals)
    assert stats.ports["underlay"]["tx_frames"] == live.io("underlay", "tx_frames")
    ip(live.site.node, "link set under up")
    settle(live)


@pytest.mark.conformance("T18")
def test_interface_without_carrier(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before we hear of it the kernel takes packets and drops them: each is counted once."""
    monkeypatch.setattr("dataplane.xdp.Ways.sweep", lambda ways, hops: True)
    ip(live.site.peer, "link set under down")
    with udp(live.site.pod, POD) as pod:
        pod.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
        pod.sendto(bytes(20 * 1000), (REMOTE, 9))
    wait_for(lambda: live.drops().get("egress_down") == 20)
    assert live.engine.stats().ports["underlay"]["tx_frames"] == live.io("underlay", "tx_frames")


@pytest.mark.conformance("T18")
def test_interface_deleted(live: Running) -> None:
    ip(live.site.node, "link del under")
    assert live.underlay.xdp is not None
    wait_for(lambda: not live.underlay.xdp.is_there)
    with udp(live.site.pod, POD) as pod:
        pod.sendto(b"x", (REMOTE, 9))
    wait_for(lambda: live.drops().get("egress_down") == 1)
    before = live.io("underlay", "rx_calls")
    time.sleep(0.3)
    assert live.io("underlay", "rx_calls") - before < 10, "it spins"


@pytest.mark.conformance("V7", "T18")
def test_interface_that_carries_less_than_believed(live: Running) -> None:
    ip(live.site.node, "link set under mtu 1400")
    time.sleep(0.2)
    with udp(live.site.pod, POD) as pod:
        pod.sendto(b"x" * 1400, (REMOTE, 9))
        wait_for(lambda: live.drops().get("egress_too_big") == 1)
        pod.setsockopt(socket.IPPROTO_UDP, 103, 1380)  # UDP_SEGMENT
        pod.sendto(bytes(30 * 1380 + 5), (REMOTE, 9))
        wait_for(lambda: live.drops().get("egress_too_big") == 31)
    settle(live)
    assert live.engine.stats().ports["underlay"]["tx_frames"] == live.io("underlay", "tx_frames")


def test_a_second_one_is_refused(live: Running) -> None:
    with pytest.raises(PortError, match="xdp under: another process, or a program, has it"):
        VxlanSocket(ip_address("127.0.0.1"), netns=live.site.node, xdp="under")
    settle(live)


def test_the_program_goes_with_the_process() -> None:
    """However it ends: here it is killed."""
    script = (
        "import time; from ipaddress import ip_address; from dataplane.ports import VxlanSocket\n"
        "own = VxlanSocket(ip_address('192.0.2.1'), xdp='under'); print('up', flush=True)\n"
        "time.sleep(60)"
    )
    with namespaces("n", "k", "p") as names:
        site = Site(*names, v6=False, underlay_mtu=1500)
        words = ["ip", "netns", "exec", site.node, sys.executable, "-c", script]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            assert program_of(site.node)
            process.send_signal(signal.SIGKILL)
        wait_for(lambda: not program_of(site.node))
        with VxlanSocket(ip_address("192.0.2.1"), netns=site.node, xdp="under"):
            assert program_of(site.node)
        assert not program_of(site.node)


class Host(NamedTuple):
    """Where a node process runs."""

    netns: str
    directory: Path

    def command(self, host: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.netns, *words]


def told_of_xdp(process: NodeProcess) -> tuple[str | None, str]:
    """By the status, and how bad it is."""
    with Client(process.control) as client:
        (level,) = (f["level"] for f in client.findings() if f["subject"] == "xdp")
        return client.status()["underlay"]["xdp"], level


@pytest.mark.parametrize("by_option", [False, True], ids=["document", "option"])
def test_a_node_gets_its_interface_back(
    by_option: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the sockets have it all; afterwards AF_XDP is there again, by itself."""
    with namespaces("n", "k", "p") as names:
        site = Site(*names, v6=False, underlay_mtu=1500)
        node = site.policy()
        web = replace(node.networks[0].endpoints[0], tap=TapOf(name="web", netns=site.pod))
        networks = (replace(node.networks[0], endpoints=(web,)),)
        own = replace(node.underlay, xdp=None if by_option else "under")
        if by_option:
            monkeypatch.setenv("DATAPLANE_XDP", "under")
        else:
            monkeypatch.delenv("DATAPLANE_XDP", raising=False)
        policy = tmp_path / "policy.yaml"
        policy.write_text(dump(Document(node=replace(node, networks=networks, underlay=own))))
        with NodeProcess(Host(site.node, tmp_path), "n", "a", policy) as process:  # type: ignore[arg-type]
            says = "underlay: AF_XDP on under, 1 queue, copy"
            assert process.wait_for("underlay: ") == says
            assert ping(site.pod, REMOTE) and ping(site.pod, REMOTE)
            assert process.stats()["io"]["underlay"]["xdp_tx"] > 0
            assert told_of_xdp(process) == ("AF_XDP on under, 1 queue, copy", "ok")
            before = len(process.lines())
            ip(site.node, "link del under")
            gone = process.wait_for("underlay: no AF_XDP", before)
            assert told_of_xdp(process) == (None, "warning")
            assert gone == "underlay: no AF_XDP on under for now: packets take the sockets"
            Site(*names, v6=False, underlay_mtu=1500)
            process.wait_for(says, before)
            sent = process.stats()["io"]["underlay"]["xdp_tx"]
            assert ping(site.pod, REMOTE) and ping(site.pod, REMOTE) and ping(site.peer, POD)
            stats = process.stats()
            assert stats["io"]["underlay"]["xdp_tx"] > sent and adds_up(stats["totals"])
            other = replace(own, xdp="lo")
            policy.write_text(dump(Document(node=replace(node, networks=networks, underlay=other))))
            process.refuse()
            assert any("its underlay cannot change while it runs" in x for x in process.lines())


def test_refusals_name_the_fix() -> None:
    with namespaces("n") as (node,):
        loopback = ip_address("127.0.0.1")
        ip(
            node,
            "tuntap add tun0 mode tun",
            "link add wide mtu 9000 type veth peer name end mtu 9000",
        )
        for name, words in {
            "nothere": "nothere: no such interface",
            "tun0": "tun0: is no Ethernet interface",
            "wide": "its driver refuses a program; is its MTU",
        }.items():
            with pytest.raises(PortError, match=words):
                VxlanSocket(loopback, netns=node, xdp=name)
        script = (
            "from ipaddress import ip_address; from dataplane.ports import VxlanSocket\n"
            "VxlanSocket(ip_address('127.0.0.1'), sources=1, xdp='end')"
        )
        words = ["ip", "netns", "exec", node, "setpriv", "--bounding-set", "-all", sys.executable]
        done = subprocess.run([*words, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert re.search("xdp end: not permitted; run as root, or with CAP_NET_ADMIN", done.stderr)


def test_nothing_stays_open() -> None:
    with running() as r:
        settle(r)
    before = sorted(os.listdir("/proc/self/fd"))
    with running() as r:
        settle(r)
    assert sorted(os.listdir("/proc/self/fd")) == before
