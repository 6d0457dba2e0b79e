"""Two nodes of ours and a kernel's VXLAN device in a cluster, for tests.

a, b (10.99.0.1, .2: ours), k (.3: a kernel's device, annotated as flannel does it), joined by a
bridge in hub, where the API server is: a double. Clients outside may be on that bridge, too. Pods
are containers as CNI makes them.
"""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.kubernetes.nodes import PREFIX
from dataplane.model import Document, HostPort, Node, Tap, Underlay
from dataplane.netns import inside
from tests.kube_objects import CONFIG, node, pod
from tests.kube_server import Server
from tests.live_node import PATIENCE, Process, end_all, kill_all
from tests.peers.wire import ip, sysctl

UNDER = {name: f"10.99.0.{n}" for n, name in enumerate("abk", 1)}
CIDR = {name: f"10.244.{n}.0/24" for n, name in enumerate("abk", 1)}
PODS = {"client": "a", "one": "b", "two": "b", "other": "a"}  # and their nodes
HUB, VIP, TOKEN = "10.99.0.100", "10.96.0.10", "secret"
KERNEL, KERNEL_MAC = "10.244.3.0", "7e:5b:fa:eb:b1:26"
HOST = HostPort(
    address=ip_address("169.254.77.2"), peer=ip_address("169.254.77.1"), tap=Tap(name="dp0")
)


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kubeconfig(url: str, token: str = TOKEN) -> str:
    return json.dumps(
        {
            "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
    )


class Answer(NamedTuple):
    server: str
    client: str  # its address, as the server sees it


@dataclass
class Cluster:
    api: Server
    names: dict[str, str]
    nodes: dict[str, Process]
    addresses: dict[str, str] = field(default_factory=dict)

    def client(self, name: str) -> Client:
        return Client(self.nodes[name].socket)

    def ask(self, name: str, path: str) -> Any:
        with self.client(name) as client:
            return client.ask(path)

    def attach(self, name: str, at: str, **labels: str) -> str:
        """A pod at one of our nodes, and its address."""
        body = {"tap": {"name": "eth0", "netns": self.names[name]}}
        with self.client(at) as client:
            path = f"/v1/attachments/{name}/eth0"
            made = client._value(
                "PUT", path, [("network", "kubernetes")], json.dumps(body).encode()
            )
        address: str = made["addresses"][0]["address"].partition("/")[0]
        self.api.put("pods", pod(name, address, at, **labels))
        self.addresses[name] = address
        return address

    def ping(self, source: str, address: str, *words: str) -> bool:
        command = ["ip", "netns", "exec", self.names[source], "ping", "-c1", "-W1", "-n", *words]
        return subprocess.run([*command, address], capture_output=True).returncode == 0

    def call(self, source: str, address: str, port: int, by: str = "") -> Answer:
        """What a server there tells. `by`: the client's address. Raises OSError."""

        def ask() -> Answer:
            with socket.create_connection((address, port), 0.7, (by, 0)) as sock:
                return Answer(*sock.recv(100).decode().split())

        return inside(self.names[source], ask)

    def asked(self, source: str, address: str, port: int, by: str = "") -> str:
        """The name of who answers there; empty if nobody does."""
        try:
            return self.call(source, address, port, by).server
        except OSError:
            return ""

    def serve(self, name: str, port: int = 8080) -> None:
        """Tells its name, and the client's address, to whoever comes. Clients close first: a server
        in TIME_WAIT takes no other client that NAT has given the same port."""

        def make() -> socket.socket:
            return socket.create_server(("", port))

        listening = inside(self.names[name], make)

        def loop() -> None:
            with listening:
                while True:
                    client, (seen, _) = listening.accept()
                    client.settimeout(1)
                    with client, contextlib.suppress(OSError):
                        client.sendall(f"{name} {seen}".encode())
                        client.recv(1)

        threading.Thread(target=loop, daemon=True).start()


def start(
    name: str, names: dict[str, str], api: Server, place: Path, host: HostPort | None
) -> Process:
    (place / "kubeconfig").write_text(kubeconfig(api.url))
    (place / "net-conf.json").write_text(json.dumps(CONFIG))
    words = ["--kubernetes", "--kubeconfig", str(place / "kubeconfig")]
    words += ["--kubernetes-config", str(place / "net-conf.json")]
    made = Process(names[name], place, *words)
    underlay = Underlay(address=ip_address(UNDER[name]))
    policy = Node(name=name, underlay=underlay, host_port=host)
    made.file.write_text(dump(Document(node=policy)))
    return made.start()


@contextlib.contextmanager
def running(
    make_netns: Callable[..., list[str]], make_place: Callable[[str], Path], hosts: str = "a"
) -> Iterator[Cluster]:
    """With pods client and other at a, one and two at b, which serve. `hosts`: nodes of ours that
    have a host port."""
    labels = ("hub", *UNDER, *PODS)
    names = dict(zip(labels, make_netns(*labels), strict=True))
    ip(names["hub"], "link add bridge type bridge", f"addr add {HUB}/24 dev bridge")
    ip(names["hub"], "link set bridge up")
    for label, address in UNDER.items():
        plug(names, label, address)
    vxlan = f"type vxlan id 1 local {UNDER['k']} dev under dstport 4789 nolearning"
    ip(names["k"], f"link add name flannel.1 address {KERNEL_MAC} {vxlan}")
    ip(names["k"], "link set flannel.1 mtu 1450 up", f"addr add {KERNEL}/32 dev flannel.1")
    with Server(TOKEN, names["hub"], HUB) as api:
        for name in ("a", "b"):
            sysctl(names[name], net__ipv4__ip_forward=0)  # who needs it turns it on
            api.put("nodes", node(name, CIDR[name]))
        api.put("nodes", node("k", CIDR["k"], UNDER["k"], KERNEL_MAC))
        nodes: dict[str, Process] = {}
        try:
            for name in ("a", "b"):
                host = HOST if name in hosts else None
                nodes[name] = start(name, names, api, make_place(name), host)
            made = Cluster(api, names, nodes)
            wait_for(lambda: all(remotes(made, name) == 2 for name in "ab"))
            follow(made)
            for name, at in PODS.items():
                made.attach(name, at, app=name)
            for name in ("one", "two"):
                made.serve(name)
            yield made
            assert api.wrongs == []
            end_all(nodes)
        finally:
            kill_all(nodes)


def plug(names: dict[str, str], label: str, *addresses: str) -> None:
    """Joins a namespace to the bridge, by its device `under`."""
    ip(names["hub"], f"link add name to-{label} type veth peer name under netns {names[label]}")
    ip(names["hub"], f"link set to-{label} master bridge up")
    ip(names[label], *(f"addr add {address}/24 dev under" for address in addresses))
    ip(names[label], "link set under up")


def remotes(cluster: Cluster, name: str) -> int:
    return len(cluster.ask(name, "/v1/remote-subnets")["items"])


def follow(cluster: Cluster) -> None:
    """What flannel does at the kernel's node, by what the others' annotations say."""
    for name in ("a", "b"):
        told = cluster.api.get("nodes", name)
        at, marks = CIDR[name].partition("/")[0], told["metadata"]["annotations"]
        mac = json.loads(marks[f"{PREFIX}backend-data"])["VtepMAC"]
        public = marks[f"{PREFIX}public-ip"]
        ip(cluster.names["k"], f"neigh replace {at} lladdr {mac} dev flannel.1 nud permanent")
        fdb = f"fdb replace {mac} dst {public} dev flannel.1 self permanent"
        run("bridge", "-n", cluster.names["k"], *fdb.split())
        ip(cluster.names["k"], f"route replace {CIDR[name]} via {at} dev flannel.1 onlink")
