"""Mixed traffic at full rate over two nodes and a kernel peer, for as long as is asked for.

TCP, UDP, ping whose packets are fragments, hostile frames at a TAP and at the VXLAN port, and
policy changes, all at once. Then: what went in has come out or is counted, what TAPs and kernels
count is what the nodes count, every TCP stream was intact, and memory has not grown.

DATAPLANE_SOAK_SECONDS: 10 by default, `make soak` takes ten minutes.
"""

import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane import demo, demo_live, demo_net
from dataplane import demo_traffic as traffic
from dataplane.address import Mac
from dataplane.demo_base import DB, WEB, C
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from dataplane.document import dump, load
from dataplane.model import Acl, PortRange
from dataplane.packet_build import build
from dataplane.packet_spec import PacketSpec
from dataplane.stats import adds_up
from tests.peers.wire import udp_counter

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

SECONDS = float(os.environ.get("DATAPLANE_SOAK_SECONDS", "10"))
GROWTH = 8 << 20  # bytes of resident memory that a node may gain once it is warm
POD = {"a1": WEB, "b1": DB, "c1": C}
TAP = {"a1": "web", "b1": "db"}


def policies(site: Site) -> list[str]:
    """The demo's, and one in which pods of node a refuse what nobody here asks of them."""
    document = demo_live.placed(load(demo.POLICY), site)
    ports = (PortRange(9, 9),)
    rules = (
        Acl(name="discard", direction="in", action="block", protocol="tcp", local_ports=ports),
        Acl(name="rest", direction="in", action="allow"),
    )
    a, *others = document.nodes
    stricter = replace(a, networks=tuple(replace(n, acls=rules) for n in a.networks))
    return [dump(document), dump(replace(document, nodes=(stricter, *others)))]


def resident(node: NodeProcess) -> int:
    """Bytes. The process stands behind `ip netns exec`, which became it."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


# ---- who makes traffic ---------------------------------------------------------------------------


def streams(site: Site, source: str, target: str, port: int, on: Callable[[], bool]) -> int:
    """TCP transfers, one after the other, to ports from this one on; the bytes, all intact."""
    size, ports = 0, itertools.cycle(range(port, port + 500))
    while on():
        to = POD[target], next(ports)
        done = traffic.transfer(site, source, target, to, lambda n: n < 8)
        assert done.intact
        size += done.size
    return size


def datagrams(site: Site, source: str, target: str, port: int, on: Callable[[], bool]) -> int:
    stream = traffic.Stream(site, source, target, (POD[target], port))
    with stream.running(0.0002):
        while on():
            time.sleep(0.05)
    return len(stream.seen)


def fragments(site: Site, source: str, target: str, on: Callable[[], bool]) -> int:
    """Answers to pings of three fragments each."""
    count = 0
    while on():
        options = ("-c", "20", "-i", "0.005", "-s", "4000", "-M", "dont")
        count += traffic.ping(site, source, POD[target], *options)[1].count("bytes from")
    return count


def _raw(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind((device, 0))
    return made


def _damaged(dice: random.Random, frame: bytes) -> bytes:
    """A few bytes are others, and perhaps it is cut."""
    data = bytearray(frame)
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data[: dice.randint(14, len(data))])


def hostile_frames(site: Site, pod: str, on: Callable[[], bool]) -> int:
    """Damaged frames out of a pod, past its kernel."""
    dice, count = random.Random(1), 0
    ends = {"src": ip_address(POD[pod]), "dst": ip_address(DB)}
    spec = PacketSpec(kind="udp", proto=17, sport=7, dport=9, length=40, **ends)
    with closing(site.inside(pod, lambda: _raw(TAP[pod]))) as out:
        usual = build(spec, Mac.from_bytes(out.getsockname()[4]), "02:00:00:00:00:01")
        while on():
            out.send(_damaged(dice, usual))
            count += 1
            time.sleep(0.0005)
    return count


def hostile_datagrams(site: Site, host: str, vtep: str, on: Callable[[], bool]) -> int:
    """Damaged VXLAN packets from a host of the underlay, through the router."""
    dice, count = random.Random(2), 0
    ends = {"src": ip_address(C), "dst": ip_address(WEB)}
    inner = build(
        PacketSpec(kind="udp", proto=17, sport=7, dport=9, length=40, **ends),
        "02:00:00:00:00:02",
        "02:00:00:00:00:01",
    )
    usual = bytes([8, 0, 0, 0, 0, 16, 0, 0]) + inner
    with closing(site.inside(host, lambda: socket.socket(type=socket.SOCK_DGRAM))) as out:
        while on():
            out.sendto(_damaged(dice, usual), (vtep, 4789))
            count += 1
            time.sleep(0.0005)
    return count


def changes(
    nodes: list[NodeProcess], policy: Path, texts: list[str], on: Callable[[], bool]
) -> int:
    """Commits of policies that differ."""
    count = 0
    while on():
        policy.write_text(texts[count % 2])
        for node in nodes:
            node.reload()
        count += 1
        time.sleep(0.2)
    return count


# ---- what must hold ------------------------------------------------------------------------------


def device_counts(site: Site, pod: str) -> tuple[int, int]:
    """Frames that the pod's kernel gave its TAP, and got of it."""
    told = json.loads(
        demo_net.run("ip", "-n", site.full(pod), "-json", "-s", "link", "show", TAP[pod])
    )
    stats = told[0]["stats64"]
    return stats["tx"]["packets"], stats["rx"]["packets"]


def check_devices(site: Site, pod: str, node: NodeProcess) -> None:
    """What a TAP and the node count of each other: frames that a full queue lost are in neither."""
    name = next(n for n in node.stats()["io"] if n.startswith("blue/"))
    io = node.stats()["io"][name]
    assert (io["rx_frames"], io["tx_frames"]) == device_counts(site, pod)


def check_underlay(site: Site, host: str, node: NodeProcess) -> None:
    """What the host's kernel dropped at UDP sockets is what the node lost there."""
    lost = site.inside(host, lambda: udp_counter("InErrors"))
    assert node.stats()["io"]["underlay"]["rx_lost"] == lost


@contextmanager
def going_on(*works: Callable[[Callable[[], bool]], int]) -> Iterator[list[Future[int]]]:
    """Each on a thread of its own, until the block ends."""
    over = threading.Event()
    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(work, lambda: not over.is_set()) for work in works]
        try:
            yield running
        finally:
            over.set()


@pytest.mark.timeout(SECONDS + 120)
def test_all_at_once() -> None:
    with ExitStack() as stack:
        site = stack.enter_context(Site())
        texts = policies(site)
        policy = site.directory / "policy.yaml"
        policy.write_text(texts[1])
        nodes = [stack.enter_context(NodeProcess(site, n, n, policy)) for n in ("a", "b")]
        works = [
            lambda on: streams(site, "a1", "b1", 5001, on),
            lambda on: streams(site, "c1", "a1", 6001, on),
            lambda on: datagrams(site, "b1", "a1", 7001, on),
            lambda on: fragments(site, "a1", "b1", on),
            lambda on: hostile_frames(site, "a1", on),
            lambda on: hostile_datagrams(site, "o", "192.0.2.1", on),
            lambda on: changes(nodes[:1], policy, texts, on),
        ]
        with going_on(*works) as running:
            time.sleep(SECONDS / 2)
            warm = [resident(node) for node in nodes]
            time.sleep(SECONDS / 2)
            grown = [resident(node) - w for node, w in zip(nodes, warm, strict=True)]
        done = [work.result() for work in running]
        time.sleep(0.5)
        print("bytes, bytes, datagrams, pings, frames, packets, commits:", done, "grown:", grown)
        assert all(done)
        assert max(grown) < GROWTH
        for pod, node in zip(("a1", "b1"), nodes, strict=True):
            stats = node.stats()
            assert adds_up(stats["totals"]) and stats["totals"]["held"] == 0
            check_devices(site, pod, node)
            check_underlay(site, node.name, node)
        assert len(nodes[0].stats()["reasons"]) > 10
