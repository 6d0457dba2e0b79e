"""`dataplane run` on real devices: against the kernel's VXLAN device, with another node, and alone.

The topology is the demo's: hosts a and b run nodes, c is a kernel VXLAN peer, a1, b1, c1 are pods
of the network blue. All offloads of the underlay's veth pairs are what the kernel makes them.
"""

import errno
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from dataplane import demo, demo_live, demo_net
from dataplane import demo_traffic as traffic
from dataplane.address import Mac, parse_ip
from dataplane.demo_base import DB, OUTSIDE, WEB, C
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from dataplane.document import dump, load
from dataplane.model import (
    Backend,
    Document,
    Endpoint,
    LoadBalancer,
    Node,
    OutboundNat,
    RemoteSubnet,
)
from dataplane.stats import adds_up

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

POD = {"a1": WEB, "b1": DB, "c1": C}
UDP_SEGMENT = 103
PEER = "192.0.2.1"


class World(NamedTuple):
    site: Site
    document: Document  # with every TAP in its pod's namespace
    policy: Path
    a: NodeProcess
    b: NodeProcess


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        site = stack.enter_context(Site())
        document = demo_live.placed(load(demo.POLICY), site)
        policy = site.directory / "policy.yaml"
        policy.write_text(dump(document))
        nodes = [stack.enter_context(NodeProcess(site, n, n, policy)) for n in ("a", "b")]
        yield World(site, document, policy, *nodes)


@pytest.fixture
def host(world: World) -> Iterator[tuple[Site, Document, Path]]:
    """Host o, where a test may start a node of its own, and a policy for it."""
    site = world.site
    node = Node(
        name="alone",
        underlay=replace(world.document.nodes[0].underlay, address=parse_ip(OUTSIDE)),
        host_port=world.document.nodes[0].host_port,
        networks=tuple(
            replace(n, remote_subnets=(), endpoints=tuple(map(_at_home, n.endpoints)))
            for n in world.document.nodes[0].networks[:1]
        ),
    )
    document = Document(node=node)
    policy = site.directory / "alone.yaml"
    policy.write_text(dump(document))
    yield site, document, policy


def _at_home(endpoint: Endpoint) -> Endpoint:
    assert endpoint.tap is not None
    return replace(endpoint, tap=replace(endpoint.tap, netns=None))


def answers(site: Site, source: str, address: str, *options: str) -> bool:
    return traffic.ping(site, source, address, "-c", "2", "-i", "0.05", *options)[0] == 0


def eventually_answers(site: Site, source: str, address: str) -> bool:
    return any(answers(site, source, address, "-W", "1") for _ in range(10))


def devices(site: Site, name: str) -> set[str]:
    links = json.loads(demo_net.run("ip", "-n", site.full(name), "-json", "link"))
    return {link["ifname"] for link in links}


def tables(site: Site, name: str) -> str:
    return demo_net.run(*site.command(name, "nft", "list", "tables"))


PAIRS = [("a1", "c1"), ("c1", "a1"), ("b1", "c1"), ("c1", "b1"), ("a1", "b1"), ("b1", "a1")]


# ---- traffic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_ping(world: World, source: str, target: str) -> None:
    assert answers(world.site, source, POD[target])
    assert answers(world.site, source, POD[target], "-M", "do", "-s", "1422")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_tcp(world: World, source: str, target: str) -> None:
    to = (POD[target], 5001)
    done = traffic.transfer(world.site, source, target, to, lambda sent: sent < 20)
    assert done.intact
    assert done.size == 20 * traffic.BLOCK


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_udp(world: World, source: str, target: str) -> None:
    assert traffic.datagrams(world.site, source, target, (POD[target], 5002), 300) == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_udp_super_frames(world: World, source: str, target: str) -> None:
    """The sender's kernel makes one frame of many datagrams (UDP_SEGMENT)."""
    receiver = traffic.datagram_socket(world.site, target, 5003)
    sender = world.site.inside(source, lambda: socket.socket(type=socket.SOCK_DGRAM))
    with closing(receiver), closing(sender):
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
        payload = b"".join(struct.pack("!I", i) * 250 for i in range(30))
        sender.sendto(payload, (POD[target], 5003))
        got = [receiver.recv(2048) for _ in range(30)]
    assert sorted(got) == [payload[i : i + 1000] for i in range(0, 30_000, 1000)]


def hops(site: Site, source: str, target: str, *options: str) -> list[str]:
    """Who answers on the way, as the system's traceroute shows it: one probe at a time, as a target
    answers few at once."""
    if shutil.which("traceroute") is None:
        pytest.skip("needs traceroute")
    words = ["traceroute", "-n", "-q", "1", "-N", "1", "-w", "2", "-m", "8", *options, target]
    text = demo_net.run(*site.command(source, *words))
    return re.findall(r"^ *\d+ +(\S+)", text, re.MULTILINE)


@pytest.mark.conformance("R2", "R3")
@pytest.mark.parametrize("options", [("-p", "5000"), ("-I",)], ids=["udp", "icmp"])
def test_traceroute(world: World, options: tuple[str, ...]) -> None:
    """Over our nodes, to the kernel peer, out through NAT: each router once, then the target."""
    site, gateway = world.site, "10.1.0.1"
    assert hops(site, "a1", DB, *options) == [gateway, DB]
    assert hops(site, "a1", C, *options) == [gateway, "10.1.3.0", C]
    assert hops(site, "c1", WEB, *options) == ["10.1.3.1", WEB]
    way_out = [gateway, demo_net.ROUTER["a"], OUTSIDE]
    assert [h for h in hops(site, "a1", OUTSIDE, *options) if h != "169.254.77.1"] == way_out


@pytest.mark.conformance("R5", "R6", "N3")
def test_path_mtu_through_nat(world: World) -> None:
    """A router outside says what its link carries; the pod hears of it, and TCP heeds it."""
    site = world.site
    site.ip("r", "link set to-o mtu 1300")
    site.ip("o", "link set uplink mtu 1300")
    try:
        text = traffic.ping(site, "a1", OUTSIDE, "-c", "2", "-M", "do", "-s", "1400")[1]
        assert f"From {demo_net.ROUTER['a']} icmp_seq=1 Frag needed and DF set (mtu = 1300)" in text
        done = traffic.transfer(site, "a1", "o", (OUTSIDE, 5010), lambda sent: sent < 5)
        assert done.intact
    finally:
        site.ip("o", "link set uplink mtu 1500")
        site.ip("r", "link set to-o mtu 1500")


def test_many_connections_at_once(world: World) -> None:
    with traffic.ThreadPoolExecutor(8) as pool:
        running = [
            pool.submit(
                traffic.transfer, world.site, source, target, (POD[target], 5300 + i), _three_blocks
            )
            for i, (source, target) in enumerate(PAIRS[:4] * 2)
        ]
        assert all(done.result(30).intact for done in running)


def _three_blocks(sent: int) -> bool:
    return sent < 3


def test_outside_sees_the_nat_address(world: World) -> None:
    done = traffic.transfer(world.site, "a1", "o", (OUTSIDE, 8080), lambda sent: sent < 3)
    assert done.intact
    assert done.peer == demo_live.NAT_ADDRESS


@pytest.mark.conformance("N3")
def test_refused_port_is_told_through_nat(world: World) -> None:
    """An ICMP error of the outside finds the socket that is behind the NAT."""
    client = world.site.inside("a1", lambda: socket.socket(type=socket.SOCK_DGRAM))
    with closing(client):
        client.settimeout(3)
        client.connect((OUTSIDE, 9))
        client.send(b"anybody there?")
        with pytest.raises(OSError) as told:
            client.recv(100)
    assert told.value.errno == errno.ECONNREFUSED


def test_no_checksum_errors(world: World) -> None:
    assert world.site.checksum_errors() == {}


def test_counters_obey_the_law(world: World) -> None:
    for node in (world.a, world.b):
        stats = node.stats()
        totals = stats["totals"]
        assert adds_up(totals) and totals["rx"] > 0
        assert sum(stats["reasons"].values()) == totals["dropped"]
        assert not {"egress_busy", "egress_too_big"} & stats["reasons"].keys()


# ---- devices that come and go ------------------------------------------------------------------


def test_tap_down_and_up_again(world: World) -> None:
    site = world.site
    site.ip("b1", "link set db down")
    assert not answers(site, "a1", DB, "-W", "1")
    assert world.b.stats()["reasons"].get("egress_down", 0) > 0
    assert answers(site, "a1", C)
    site.ip("b1", "link set db up")
    assert eventually_answers(site, "a1", DB)
    assert answers(site, "b1", WEB)


@pytest.mark.conformance("T18")
def test_underlay_down_and_up_again(world: World) -> None:
    site = world.site
    site.ip("b", "link set uplink down")
    assert not answers(site, "a1", DB, "-W", "1")
    assert not answers(site, "b1", WEB, "-W", "1")
    site.ip("b", "link set uplink up", "route replace default via 192.0.2.126")
    assert eventually_answers(site, "a1", DB)


@pytest.mark.conformance("T18")
def test_peer_that_refuses_is_survived(world: World) -> None:
    """Port unreachable from a host without a VTEP comes back as an error of the socket."""
    site = world.site
    site.ip("c", "link set flannel.4096 down")
    assert not answers(site, "a1", C, "-W", "1")
    site.ip(
        "c",
        "link set flannel.4096 up",
        "neigh replace 10.1.1.0 lladdr 02:aa:00:00:10:01 dev flannel.4096 nud permanent",
        "neigh replace 10.1.2.0 lladdr 02:aa:00:00:10:02 dev flannel.4096 nud permanent",
        "route replace 10.1.1.0/24 via 10.1.1.0 dev flannel.4096 onlink",
        "route replace 10.1.2.0/24 via 10.1.2.0 dev flannel.4096 onlink",
    )
    assert eventually_answers(site, "a1", C)


# ---- policy while running ----------------------------------------------------------------------


def test_reload_adds_and_removes_an_endpoint(world: World) -> None:
    site = world.site
    node = world.document.nodes[0]
    blue = node.networks[0]
    first = blue.endpoints[0]
    more = replace(
        first,
        name="web2",
        addresses=(first.addresses[0] + 1,),
        tap=replace(first.tap, name="web2", netns=site.full("a3")),
    )
    site.add("a3")
    wider = replace(blue, endpoints=(first, more))
    grown = replace(node, networks=(wider, *node.networks[1:]))
    stream = traffic.Stream(site, "a1", "b1", (DB, 5005))
    with stream.running(0.001):
        for nodes, expected in (((grown,), True), ((node,), False)):
            document = replace(world.document, nodes=(*nodes, world.document.nodes[1]))
            world.policy.write_text(dump(document))
            world.a.reload()
            assert ("web2" in devices(site, "a3")) is expected
            if expected:
                assert answers(site, "a1", "10.1.1.3")
    assert stream.sent > 0
    assert stream.lost == 0
    assert answers(site, "a1", DB)


@pytest.mark.conformance("T16")
def test_bad_file_keeps_the_policy_and_names_all_faults(world: World) -> None:
    world.policy.write_text("version: 1\nnode: {name: 7, underlay: {address: x}}\n")
    before = len(world.a.lines())
    assert world.a.refuse().startswith("nothing applied, generation still ")
    faults = [line for line in world.a.lines()[before:] if str(world.policy) in line]
    assert len(faults) == 2
    assert all(line.startswith(f"{world.policy}:2 $.node.") for line in faults)
    assert answers(world.site, "a1", DB)
    world.policy.write_text(dump(world.document))


def test_device_that_cannot_be_had_keeps_the_policy(world: World) -> None:
    node = world.document.nodes[0]
    blue = node.networks[0]
    first = blue.endpoints[0]
    lost = replace(first, tap=replace(first.tap, name="other", netns="no-such-namespace"))
    broken = replace(node, networks=(replace(blue, endpoints=(lost,)), *node.networks[1:]))
    world.policy.write_text(dump(replace(world.document, nodes=(broken,))))
    before = len(world.a.lines())
    world.a.refuse()
    assert any("no-such-namespace" in line for line in world.a.lines()[before:])
    assert answers(world.site, "a1", DB)
    world.policy.write_text(dump(world.document))


def test_deleted_device_is_missed_and_made_again(world: World) -> None:
    site = world.site
    before = len(world.a.lines())
    site.ip("a1", "link del web")
    assert "SIGHUP makes it again" in world.a.wait_for("blue/web: TAP web ", before)
    before = len(world.a.lines())
    world.a.reload()
    assert eventually_answers(site, "a1", DB)
    assert not any("is gone" in line for line in world.a.lines()[before:])


def test_policy_that_is_no_file_any_more_is_refused(world: World) -> None:
    text = world.policy.read_text()
    world.policy.unlink()
    os.mkfifo(world.policy)
    before = len(world.a.lines())
    world.a.refuse()
    assert any("is no regular file" in line for line in world.a.lines()[before:])
    world.policy.unlink()
    world.policy.write_text(text)
    assert answers(world.site, "a1", DB)


# ---- the end of a node -------------------------------------------------------------------------


def test_sigterm_removes_all_it_made(host: tuple[Site, Document, Path]) -> None:
    site, _, policy = host
    with NodeProcess(site, "o", "alone", policy) as node:
        assert {"web", "dataplane0"} <= devices(site, "o")
        assert "table ip dataplane-dataplane0" in tables(site, "o")
        assert node.stop() == 0
    assert not {"web", "dataplane0"} & devices(site, "o")
    assert tables(site, "o") == ""
    assert any(line.startswith("law    rx ") for line in node.lines())
    assert node.final()["node"] == "alone"


def test_sigterm_does_not_wait_for_a_large_policy(host: tuple[Site, Document, Path]) -> None:
    site, document, policy = host
    assert document.node is not None
    network = document.node.networks[0]
    ways = (ip_network(f"10.1.{128 + n // 256}.{n % 256}/32") for n in range(30_000))
    subnets = tuple(
        RemoteSubnet(prefix=way, provider_address=parse_ip(PEER), dr_mac=Mac("02:aa:00:00:10:01"))
        for way in ways
    )
    large = replace(document.node, networks=(replace(network, remote_subnets=subnets),))
    with NodeProcess(site, "o", "alone", policy) as node:
        policy.write_text(dump(Document(node=large)))
        node.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        begin = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - begin < 1.5
        assert not any("applied" in line for line in node.lines())


def test_sigint_at_once_is_clean(host: tuple[Site, Document, Path]) -> None:
    site, _, policy = host
    node = NodeProcess(site, "o", "alone", policy)
    deadline = time.monotonic() + 10
    while "web" not in devices(site, "o") and time.monotonic() < deadline:
        time.sleep(0.01)
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(10) == 0
    assert not {"web", "dataplane0"} & devices(site, "o")
    assert tables(site, "o") == ""


@pytest.mark.conformance("T16")
def test_kill_leaves_only_the_nft_table_and_a_new_start_takes_it_over(
    host: tuple[Site, Document, Path],
) -> None:
    site, _, policy = host
    with NodeProcess(site, "o", "alone", policy) as node:
        node.process.kill()
        node.process.wait()
    deadline = time.monotonic() + 5
    while {"web", "dataplane0"} & devices(site, "o") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not {"web", "dataplane0"} & devices(site, "o")
    assert tables(site, "o").strip() == "table ip dataplane-dataplane0"
    with NodeProcess(site, "o", "alone", policy):
        assert tables(site, "o").strip() == "table ip dataplane-dataplane0"
    assert tables(site, "o") == ""


def test_a_vip_is_found_behind_the_host_port(host: tuple[Site, Document, Path]) -> None:
    """The host needs no masquerading for it, only the way back."""
    site, document, policy = host
    site.add("o1")
    assert document.node is not None
    blue = document.node.networks[0]
    web = blue.endpoints[0]
    assert web.tap is not None
    web = replace(web, tap=replace(web.tap, netns=site.full("o1")))
    blue = replace(blue, endpoints=(web,), outbound_nat=OutboundNat(vip=parse_ip("198.51.100.77")))
    policy.write_text(dump(Document(node=replace(document.node, networks=(blue,)))))
    with NodeProcess(site, "o", "alone", policy):
        assert answers(site, "o1", OUTSIDE)
        assert tables(site, "o") == ""


def test_node_port_host_route_and_vip(host: tuple[Site, Document, Path]) -> None:
    """The host reaches a pod by its own address and port, by a VIP, and by the pod's address."""
    site, document, policy = host
    site.add("o2")
    assert document.node is not None
    blue = document.node.networks[0]
    web = blue.endpoints[0]
    assert web.tap is not None
    web = replace(web, tap=replace(web.tap, netns=site.full("o2")))
    shop = LoadBalancer(
        name="shop",
        protocol="tcp",
        port=80,
        target_port=8080,
        vips=(parse_ip("198.51.100.80"),),
        backends=(Backend(address=web.addresses[0]),),
        node_port=30080,
    )
    plain = replace(blue, endpoints=(web,))
    served = replace(plain, load_balancers=(shop,), host_route=True)
    policy.write_text(dump(Document(node=replace(document.node, networks=(served,)))))
    pod = str(web.addresses[0])
    listener = site.inside("o2", lambda: socket.create_server(("0.0.0.0", 8080)))
    with closing(listener), NodeProcess(site, "o", "alone", policy) as node:
        for address in ((OUTSIDE, 30080), ("198.51.100.80", 80), (pod, 8080)):
            with closing(traffic.connect(site, "o", address, 5)) as client:
                server, _ = listener.accept()
                with closing(server):
                    client.sendall(b"hello")
                    assert server.recv(16) == b"hello"
        assert "tcp dport 30080 dnat to 169.254.77.2" in demo_net.run(
            *site.command("o", "nft", "list", "ruleset")
        )
        policy.write_text(dump(Document(node=replace(document.node, networks=(plain,)))))
        node.reload()
        assert "198.51.100.80" not in demo_net.run(*site.command("o", "ip", "route"))
        assert "dnat" not in demo_net.run(*site.command("o", "nft", "list", "ruleset"))


def test_persistent_tap_survives_and_is_attached_again(host: tuple[Site, Document, Path]) -> None:
    site, document, policy = host
    assert document.node is not None
    blue = document.node.networks[0]
    first = blue.endpoints[0]
    kept = replace(blue, endpoints=(replace(first, tap=replace(first.tap, persist=True)),))
    policy.write_text(dump(Document(node=replace(document.node, networks=(kept,)))))
    try:
        for _ in range(2):
            with NodeProcess(site, "o", "alone", policy):
                assert answers(site, "o", "10.1.0.1")  # the gateway
            assert "web" in devices(site, "o")
            assert "dataplane0" not in devices(site, "o")
    finally:
        site.ip("o", "link del web")


def test_port_in_use_is_said(host: tuple[Site, Document, Path]) -> None:
    site, _, policy = host
    with NodeProcess(site, "o", "alone", policy):
        words = site.command("o", sys.executable, "-m", "dataplane", "run", str(policy))
        second = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    assert second.returncode == 1
    assert "udp 203.0.113.9 port 4789: in use" in second.stderr
