"""A path of the underlay that is narrower than its first link: learned from ICMP, and only from it.

Host a runs a node; behind the router, the link to host c carries 1400 bytes.
"""

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from dataplane import demo_net
from dataplane import demo_traffic as traffic
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from tests.reference.checksum import checksum

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

NARROW = 1400
HELD = 3  # seconds
A, C, ROUTER = "192.0.2.1", "192.0.2.129", "192.0.2.62"
A6, C6 = "2001:db8:a::1", "2001:db8:c::1"
POLICY = """
version: 1
node:
  name: a
  underlay: {{address: 192.0.2.1, address6: "2001:db8:a::1"}}
  timers: {{path_mtu: {held}}}
  networks:
    - name: blue
      vni: 4096
      prefixes: [10.1.0.0/16, "fd00:1::/48"]
      dr_mac: "02:aa:00:00:10:01"
      remote_subnets:
        - {{prefix: 10.1.3.0/24, provider_address: 192.0.2.129, dr_mac: "02:aa:00:00:10:03"}}
        - {{prefix: 10.1.4.0/24, provider_address: "2001:db8:c::1", dr_mac: "02:aa:00:00:10:03"}}
        - {{prefix: "fd00:1:0:3::/64", provider_address: 192.0.2.129, dr_mac: "02:aa:00:00:10:03"}}
      endpoints:
        - name: web
          addresses: [10.1.1.2, "fd00:1:0:1::2"]
          tap: {{name: eth0, netns: {a1}}}
"""
OVER4, OVER6, OVER4_6 = "10.1.3.2", "10.1.4.2", "fd00:1:0:3::2"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        for name in ("r", "a", "c"):
            for family in ("all", "default"):
                path = f"/proc/sys/net/ipv6/conf/{family}/forwarding"
                site.inside(name, lambda path=path: open(path, "w").write("1"))  # noqa: SIM115
        site.ip("a", f"addr add {A6}/64 dev uplink nodad", "route add default via 2001:db8:a::fe")
        site.ip("c", f"addr add {C6}/64 dev uplink nodad", "route add default via 2001:db8:c::fe")
        site.ip("r", "addr add 2001:db8:a::fe/64 dev to-a nodad")
        site.ip("r", "addr add 2001:db8:c::fe/64 dev to-c nodad")
        site.ip("r", f"link set to-c mtu {NARROW}")
        site.ip("c", f"link set uplink mtu {NARROW}")
        site.ip("c", f"link set flannel.4096 mtu {NARROW - 50}")
        yield site


@pytest.fixture
def node(
    site: Site, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NodeProcess]:
    if by_xdp := getattr(request, "param", False):
        monkeypatch.setenv("DATAPLANE_XDP", "uplink")
    policy = site.directory / "path.yaml"
    policy.write_text(POLICY.format(held=HELD, a1=site.full("a1")))
    with NodeProcess(site, "a", "a", policy) as made:
        for gateway in ("10.1.0.1", "fd00:1::1"):  # once the pod's addresses are its own
            assert any(traffic.ping(site, "a1", gateway, "-c", "1")[0] == 0 for _ in range(30))
        for address in (OVER4, OVER6) if by_xdp else ():  # then the next hops are known
            traffic.ping(site, "a1", address, "-c", "2", "-i", "0.2", "-W", "1")
        yield made


EITHER = pytest.mark.parametrize("node", [False, True], indirect=True, ids=["sockets", "xdp"])


def learned(node: NodeProcess) -> int:
    return int(node.stats()["totals"]["paths"])


def told_mtu(site: Site, address: str) -> set[str]:
    """What the gateway says that the way carries, to one who sends full packets with DF."""
    text = traffic.ping(site, "a1", address, "-c", "3", "-i", "0.2", "-M", "do", "-s", "1380")[1]
    return set(re.findall(r"mtu ?= ?(\d+)", text))


@pytest.mark.conformance("R8", "R5")
@pytest.mark.parametrize(
    ("address", "inner"), [(OVER4, NARROW - 50), (OVER6, NARROW - 70), (OVER4_6, NARROW - 50)]
)
def test_the_path_is_learned_and_the_sender_told(
    site: Site, node: NodeProcess, address: str, inner: int
) -> None:
    """The first packet is lost on its way, the next one answered; in time it is tried again."""
    assert told_mtu(site, address) == {str(inner)}
    assert learned(node) == 1
    deadline = time.monotonic() + 2 * HELD
    while learned(node):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.conformance("R8", "R5")
@pytest.mark.parametrize("node", [True], indirect=True, ids=["xdp"])
@pytest.mark.parametrize(("address", "inner"), [(OVER4, NARROW - 50), (OVER6, NARROW - 70)])
def test_the_path_of_what_no_socket_sent_is_learned(
    site: Site, node: NodeProcess, address: str, inner: int
) -> None:
    sent = node.stats()["io"]["underlay"]["xdp_tx"]
    assert told_mtu(site, address) == {str(inner)}
    assert learned(node) == 1 and node.stats()["io"]["underlay"]["xdp_tx"] > sent


@EITHER
@pytest.mark.conformance("R8", "R7")
def test_tcp_finds_its_size(site: Site, node: NodeProcess) -> None:
    """To a kernel peer behind the narrow link; what was in flight meanwhile is sent again."""
    done = traffic.transfer(site, "a1", "c1", (OVER4, 5001), lambda sent: sent < 20)
    assert done.intact and done.size == 20 * traffic.BLOCK
    assert learned(node) == 1


def forged(mtu: int, sport: int, dport: int = 4789, dst: str = C, vni: int = 4096) -> bytes:
    """Fragmentation needed, about a packet that the node may have sent."""
    vxlan = struct.pack("!BxxxI", 8, vni << 8) + bytes(28)
    udp = struct.pack("!HHHH", sport, dport, 1400, 0)
    ends = ip_address(A).packed + ip_address(dst).packed
    head = struct.pack("!BBHHHBB", 0x45, 0, 1420, 0, 0x4000, 63, 17)
    ip = head + checksum(head + b"\0\0" + ends).to_bytes(2) + ends
    message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + ip + udp + vxlan
    return message[:2] + checksum(message).to_bytes(2) + message[4:]


def send_from_router(site: Site, messages: list[bytes]) -> None:
    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            for message in messages:
                sock.sendto(message, (A, 0))

    site.inside("r", work)


def source_ports(site: Site) -> list[int]:
    told = demo_net.run(*site.command("a", "ss", "-Hnlu", "src", A))
    return sorted(int(p) for p in re.findall(rf"{re.escape(A)}:(\d+)", told) if int(p) > 49151)


@EITHER
@pytest.mark.conformance("R8", "T9")
def test_forged_messages_do_not_stall_the_tunnel(site: Site, node: NodeProcess) -> None:
    """Wrong port, wrong destination, no VTEP of the network, impossible size: not believed. A lie
    that could be true is believed down to the floor, for a while, and only of that way."""
    ports = source_ports(site)
    assert len(ports) == 64
    lies: list[Callable[[int], bytes]] = [
        lambda p: forged(1000, p, dport=53),
        lambda p: forged(1000, p, dst="192.0.2.65"),
        lambda p: forged(1000, p, vni=4097),
        lambda p: forged(1000, p - 1),
        lambda p: forged(67, p),
        lambda p: forged(1500, p),
        lambda p: forged(9000, p),
    ]
    for lie in lies:
        send_from_router(site, [lie(p) for p in ports[:8]])
    time.sleep(0.3)
    assert learned(node) == 0
    send_from_router(site, [forged(68, p) for p in ports[:8]])
    time.sleep(0.3)
    assert learned(node) == 1
    assert str(576 - 50) in told_mtu(site, OVER4)  # Linux heeds no less than 552
    assert told_mtu(site, OVER4_6) == {"1280"}
    done = traffic.transfer(site, "a1", "c1", (OVER4, 5001), lambda sent: sent < 2)
    assert done.intact
