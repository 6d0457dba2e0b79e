"""A node that only HNS calls have told anything, and a kernel's VXLAN device as flannel sets it up.

pod (10.244.3.9, a TAP) ── node (10.0.133.170: ours) ── peer (192.168.2.20: Linux; 10.244.4.5)
"""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.model import Document
from dataplane.netns import inside
from tests import hns_documents as d
from tests.hcn_namespaces import guid, named
from tests.hns_orders import FLANNEL, OWN, added, flannel, kube_proxy, settings, win_overlay
from tests.live_node import Process
from tests.peers.wire import ip, run
from tests.test_hns import NODE

PEER, PEER_MAC = "192.168.2.20", "7e:5b:fa:eb:b1:30"
POD, FAR, VIP = "10.244.3.9", "10.244.4.5", "10.96.0.10"
NAMESPACE = guid(3)
DEVICE, PATIENCE = "flannel.4096", 5.0
BIG = bytes(range(256)) * 1024


class Place(NamedTuple):
    process: Process
    client: Client
    pod: str  # network namespaces
    peer: str
    network: str  # IDs
    endpoint: str


@pytest.fixture(scope="module")
def place(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    node, pod, peer = module_netns("n", "p", "k")
    ip(node, f"link add under type veth peer name under netns {peer}")
    for netns, own, other in ((node, OWN, PEER), (peer, PEER, OWN)):
        ip(netns, f"addr add {own}/32 dev under", "link set under up")
        ip(netns, f"route add {other} dev under src {own}")
    process = Process(node, tmp_path_factory.mktemp("hns"))
    process.file.write_text(dump(Document(node=replace(NODE, name="win"))))
    with named({NAMESPACE: pod}):
        process.start()
        try:
            with Client(process.socket) as client:
                made = flannel(client.hns)
                linux(peer, client, made)
                added(client.hns, made, "10.244.4.0/24", PEER, "")
                added(client.hns, made, "10.244.4.0/24", PEER, PEER_MAC.replace(":", "-"))
                endpoint = win_overlay(client.hns, made, POD, NAMESPACE)
                kube_proxy(client.hns, made, endpoint)
                yield Place(process, client, pod, peer, made, endpoint)
        finally:
            assert process.end() == 0, process.log.read_text()


def linux(peer: str, client: Client, network: str) -> None:
    """What flannel does at the other node: a device, and this node's lease there."""
    told = settings(client.hns("GET", f"networks/{network}"), "DrMacAddress")["Address"]
    router = told.replace("-", ":").lower()
    vxlan = f"type vxlan id 4096 local {PEER} dev under dstport 4789 nolearning"
    ip(
        peer,
        f"link add name {DEVICE} address {PEER_MAC} {vxlan}",
        f"link set {DEVICE} mtu 1450 up",
        f"addr add 10.244.4.0/32 dev {DEVICE}",
        f"addr add {FAR}/32 dev lo",
        f"neigh replace 10.244.3.0 lladdr {router} dev {DEVICE} nud permanent",
        f"route replace 10.244.3.0/24 via 10.244.3.0 dev {DEVICE} onlink src {FAR}",
    )
    fdb = f"fdb replace {router} dst {OWN} dev {DEVICE} self permanent"
    subprocess.run(["bridge", "-n", peer, *fdb.split()], check=True)


@contextlib.contextmanager
def serving(netns: str, port: int, words: bytes) -> Iterator[None]:
    """Whoever connects is told these words, and from where it came; then it is closed."""
    listening = inside(netns, lambda: socket.create_server(("", port)))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listening.accept()[0] as client:
                    client.sendall(client.getpeername()[0].encode() + b" " + words)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def asked(netns: str, address: str, port: int) -> tuple[str, bytes]:
    """Who the server sees, and what it tells."""
    with inside(netns, lambda: socket.create_connection((address, port), PATIENCE)) as client:
        client.settimeout(PATIENCE)
        with client.makefile("rb") as told:
            seen, _, words = told.read().partition(b" ")
    return seen.decode(), words


def ping(netns: str, address: str, *words: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-n", "-q", *words, address]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_ping_both_ways_with_the_largest_packet(place: Place) -> None:
    words = ["-c3", "-i0.2", "-W5", "-Mdo", "-s1422"]
    run(place.pod, "ping", *words, FAR)
    run(place.peer, "ping", *words, POD)


def test_tcp_both_ways(place: Place) -> None:
    with serving(place.pod, 8081, BIG), serving(place.peer, 8081, BIG):
        assert asked(place.pod, FAR, 8081) == (POD, BIG)
        assert asked(place.peer, POD, 8081) == (FAR, BIG)


def test_a_service_leads_to_both_backends(place: Place) -> None:
    """The far backend sees the client; the pod that is its own backend sees the source address."""
    with serving(place.pod, 8080, b"pod"), serving(place.peer, 8080, b"far"):
        told = {asked(place.pod, VIP, 80) for _ in range(40)}
    assert {words for _, words in told} == {b"pod", b"far"}
    assert (POD, b"far") in told and not ping(place.pod, VIP, "-c1", "-W1")


def test_a_node_port_leads_in(place: Place) -> None:
    with serving(place.pod, 8080, b"pod"):
        seen, words = asked(place.peer, OWN, 30080)
    assert words == b"pod" and seen


def test_a_blocked_port_is_blocked_until_the_acl_goes(place: Place) -> None:
    """As a network policy on Windows: block one port, allow the rest."""
    block = d.ACL["Settings"] | {"Action": "Block", "LocalPorts": "8082", "Priority": 100}
    block = {k: v for k, v in block.items() if not k.endswith(("Addresses", "RemotePorts"))}
    rest = {"Action": "Allow", "Direction": "In", "Protocols": "256", "Priority": 65500}
    out = {"Action": "Allow", "Direction": "Out", "Protocols": "256", "Priority": 65500}
    acls = [{"Type": "ACL", "Settings": each} for each in (block, rest, out)]
    path = f"endpoints/{place.endpoint}/modify"

    def told(verb: str) -> None:
        request = {"ResourceType": "Policy", "RequestType": verb, "Settings": {"Policies": acls}}
        place.client.hns("POST", path, request)

    with serving(place.pod, 8082, b"shut"), serving(place.pod, 8083, b"open"):
        assert asked(place.peer, POD, 8082) == (FAR, b"shut")
        told("Add")
        try:
            with pytest.raises(TimeoutError):
                inside(place.peer, lambda: socket.create_connection((POD, 8082), 1))
            assert asked(place.peer, POD, 8083) == (FAR, b"open") and ping(place.peer, POD, "-c1")
        finally:
            told("Remove")
        assert asked(place.peer, POD, 8082) == (FAR, b"shut")


def test_a_lease_that_moves_loses_its_way_and_has_it_again(place: Place) -> None:
    """Flannel's order: Remove by value, Add of the other; then the peer is where it was."""
    added(place.client.hns, place.network, "10.244.4.0/24", "192.168.2.21", PEER_MAC)
    assert not ping(place.pod, FAR, "-c1", "-W1")
    added(place.client.hns, place.network, "10.244.4.0/24", PEER, PEER_MAC)
    assert ping(place.pod, FAR, "-c1", "-W5")


def test_all_is_there_again_after_a_crash(place: Place) -> None:
    place.process.end(9)
    place.process.start()
    with Client(place.process.socket) as client:
        assert FLANNEL in {made["Name"] for made in client.hns("GET", "networks")}
    deadline = time.monotonic() + PATIENCE
    while not ping(place.pod, FAR, "-c1", "-W1"):
        assert time.monotonic() < deadline
    with serving(place.pod, 8080, b"pod"), serving(place.peer, 8080, b"far"):
        assert {asked(place.pod, VIP, 80)[1] for _ in range(40)} == {b"pod", b"far"}
