"""Services on real devices: 100 backends on two nodes behind a third one, and a client outside.

The client's packets go through node a, which balances them; the backends' nodes b and c answer the
client directly (DSR). Each backend is an address of its own on the pod b1 or c1, so a connection
knows by its socket which one it has.

        o (client) ─ r ─┬─ a  balances, hands on by VXLAN with the VIP inside
                        ├─ b  10.1.2.2-51
                        └─ c  10.1.3.2-51
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from dataplane import demo_net
from dataplane import demo_traffic as traffic
from dataplane.address import IP, Mac, Vni
from dataplane.demo_net import HOSTS, Site
from dataplane.demo_node import NodeProcess
from dataplane.document import dump
from dataplane.model import (
    Backend,
    Document,
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    RemoteSubnet,
    Tap,
    Underlay,
)
from tests.peers.wire import Wire, sysctl

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

VIP, PORT = "198.51.100.80", 80
CLIENT = "203.0.113.9"
PODS = {"b": "b1", "c": "c1"}  # by node
SUBNETS = {"a": "10.1.1", "b": "10.1.2", "c": "10.1.3"}
BACKENDS = tuple(f"{SUBNETS[n]}.{i}" for n in PODS for i in range(2, 52))
CONNECTIONS = 60
VXLAN = (4789).to_bytes(2)


class World(NamedTuple):
    site: Site
    policy: Path
    nodes: list[NodeProcess]

    def serve(self, *backends: Backend) -> None:
        """All nodes hear of the backends, one after the other."""
        self.policy.write_text(dump(document(self.site, backends)))
        for node in self.nodes:
            node.reload()


def document(site: Site, backends: tuple[Backend, ...]) -> Document:
    return Document(nodes=tuple(_node(name, site, backends) for name in SUBNETS))


def _node(name: str, site: Site, backends: tuple[Backend, ...]) -> Node:
    pod = PODS.get(name)
    addresses = tuple(ip_address(b) for b in BACKENDS if b.startswith(SUBNETS[name]))
    ends = (
        (Endpoint(name=pod, addresses=addresses, tap=Tap(name="dp0", netns=site.full(pod))),)
        if pod
        else ()
    )
    blue = Network(
        name="blue",
        vni=Vni(4096),
        prefixes=(ip_network("10.1.0.0/16"),),
        dr_mac=_router(name),
        remote_subnets=tuple(_remote(other) for other in SUBNETS if other != name),
        endpoints=ends,
        load_balancers=(
            LoadBalancer(
                name="shop",
                protocol="tcp",
                port=PORT,
                vips=(ip_address(VIP),),
                backends=backends,
                dsr=True,
            ),
        ),
    )
    return Node(
        name=name,
        underlay=Underlay(address=_provider(name)),
        host_port=HostPort(
            address=ip_address("169.254.77.2"), peer=ip_address("169.254.77.1"), tap=Tap(name="dp")
        ),
        networks=(blue,),
    )


def _remote(name: str) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=ip_network(f"{SUBNETS[name]}.0/24"),
        provider_address=_provider(name),
        dr_mac=_router(name),
    )


def _router(name: str) -> Mac:
    return Mac(f"02:aa:00:00:10:0{'abc'.index(name) + 1}")


def _provider(name: str) -> IP:
    return ip_address(HOSTS[name].partition("/")[0])


def all_backends(*, without: str = "", draining: str = "") -> tuple[Backend, ...]:
    return tuple(
        Backend(address=ip_address(b), drain=b == draining) for b in BACKENDS if b != without
    )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        site = stack.enter_context(Site())
        site.ip("c", "link del flannel.4096", "link del pod")
        site.ip("r", f"route add {VIP}/32 via {HOSTS['a'].partition('/')[0]}")
        for name in ("r", *SUBNETS):  # the VIP's packets come from where its route does not lead
            values = {"all__rp_filter": 0, "all__forwarding": 1}
            sysctl(site.full(name), **{f"net__ipv4__conf__{k}": v for k, v in values.items()})
        sysctl(site.full("r"), **{f"net__ipv4__conf__to-{n}__rp_filter": 0 for n in HOSTS})
        policy = site.directory / "policy.yaml"
        policy.write_text(dump(document(site, all_backends())))
        nodes = [stack.enter_context(NodeProcess(site, n, n, policy)) for n in SUBNETS]
        for pod in PODS.values():
            stack.enter_context(echoing(site, pod))
        yield World(site, policy, nodes)


# ---- connections -------------------------------------------------------------------------------


@contextmanager
def echoing(site: Site, pod: str) -> Iterator[None]:
    """A server in the pod that gives back what it gets, on all of its addresses."""
    listener = traffic.server(site, pod, PORT)
    listener.settimeout(None)

    def serve() -> None:
        try:
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    def echo(connection: socket.socket) -> None:
        with closing(connection):
            connection.sendall(socket.inet_aton(connection.getsockname()[0]))
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class Connection:
    """To the VIP. `backend` is whom it has."""

    def __init__(self, site: Site) -> None:
        self._socket = traffic.connect(site, "o", (VIP, PORT), traffic.PATIENCE)
        self.backend = socket.inet_ntoa(self._take(4))
        self._turn = 0

    def exchange(self, size: int = 20_000) -> None:
        """A block there and back. Raises OSError where the connection is broken."""
        self._turn += 1
        block = self._turn.to_bytes(4) * (size // 4)
        self._socket.sendall(block)
        assert self._take(len(block)) == block

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            assert more, "the server has closed it"
            data += more
        return data

    def close(self) -> None:
        self._socket.close()


class Crowd:
    """Connections in use, one after the other, on a thread, from entering to leaving the block."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._rounds = 0

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for connection in self._connections:
                    connection.exchange()
                self._rounds += 1
        except BaseException as error:
            self._failed.append(error)

    def go_round(self) -> None:
        """Returns when each has been in use once more, or one has failed."""
        rounds = self._rounds
        while self._rounds < rounds + 2 and self._thread.is_alive():
            time.sleep(0.01)

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert not self._failed, self._failed


# ---- what must be so ---------------------------------------------------------------------------


@pytest.mark.conformance("N6")
def test_answers_do_not_pass_the_balancer(world: World) -> None:
    """Seen on the wires of all three nodes: requests go through a, answers only from b and c."""
    site = world.site
    vip = socket.inet_aton(VIP)
    request, answer = socket.inet_aton(CLIENT) + vip, vip + socket.inet_aton(CLIENT)
    with ExitStack() as stack:
        wires = {
            (place, device): stack.enter_context(Wire(site.full(place), device))
            for place, device in (
                ("a", "uplink"),
                *(("r", f"to-{n}") for n in SUBNETS),
            )
        }
        used = Counter()
        for _ in range(20):
            with closing(Connection(site)) as connection:
                connection.exchange()
                used[connection.backend] += 1
        seen = {key: wire.waiting() for key, wire in wires.items()}
    to_a, from_a = seen["a", "uplink"], seen["r", "to-a"]
    tunnelled = [frame for frame in from_a if frame[36:38] == VXLAN]  # some of many packets
    assert sum(frame.count(request) for frame in to_a) > 20 * 10
    assert sum(frame.count(request) for frame in tunnelled) > 20 * 10
    assert not any(answer in frame for frame in (*to_a, *from_a))
    for name, pod in PODS.items():
        answers = [frame for frame in seen["r", f"to-{name}"] if answer in frame]
        assert any(b.startswith(SUBNETS[name]) for b in used) == bool(answers), pod
        assert all(frame[26:34] == answer for frame in answers), "not in a tunnel"
    assert len({b.rpartition(".")[0] for b in used}) == 2, "both nodes were used"


@pytest.mark.conformance("N6")
def test_backends_go_and_come_while_connections_run(world: World) -> None:
    """One of 100 drains, goes and comes back: none of 60 connections breaks or moves."""
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(Connection(world.site))) for _ in range(CONNECTIONS)]
        gone = kept[0].backend
        leaving = [c for c in kept if c.backend == gone]
        staying = [c for c in kept if c.backend != gone]
        with Crowd(kept) as crowd:
            world.serve(*all_backends(draining=gone))
            crowd.go_round()
        for connection in leaving:
            connection.close()
        with Crowd(staying) as crowd:
            world.serve(*all_backends(without=gone))
            assert gone not in fresh(world, 100)
            world.serve(*all_backends())
            crowd.go_round()
        for connection in staying:
            connection.exchange()
    assert any(gone in fresh(world, 100) for _ in range(20))
    for node in world.nodes:
        stats = node.stats()
        assert not {"lb_no_backend", "flow_table_full"} & stats["reasons"].keys()


def fresh(world: World, count: int) -> set[str]:
    """Backends of so many new connections."""
    found = set()
    for _ in range(count):
        with closing(Connection(world.site)) as connection:
            found.add(connection.backend)
    return found
