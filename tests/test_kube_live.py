"""Two nodes of ours and a kernel's VXLAN device in a cluster, whose API server is a double.

a, b (10.99.0.1, .2: ours), k (.3: a kernel's device, annotated as flannel does it), joined by a
bridge in hub, where the API server is. Pods are containers as CNI makes them.
"""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.kubernetes.nodes import PREFIX
from dataplane.model import Document, HostPort, Node, Tap, Underlay
from dataplane.netns import inside
from tests.conftest import why_no_netns
from tests.kube_objects import CONFIG, endpoint_slice, network_policy, node, pod, service
from tests.kube_server import Server
from tests.live_node import PATIENCE, Process
from tests.peers.wire import ip

WHY_NOT = why_no_netns()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

UNDER = {name: f"10.99.0.{n}" for n, name in enumerate("abk", 1)}
CIDR = {name: f"10.244.{n}.0/24" for n, name in enumerate("abk", 1)}
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

    def asked(self, source: str, address: str, port: int) -> str:
        """What a server there tells; empty if none does."""

        def ask() -> str:
            with socket.create_connection((address, port), 0.7) as sock:
                return sock.recv(100).decode()

        try:
            return inside(self.names[source], ask)
        except OSError:
            return ""

    def serve(self, name: str, port: int = 8080) -> None:
        """Tells its name to whoever comes."""

        def make() -> socket.socket:
            return socket.create_server(("", port))

        listening = inside(self.names[name], make)

        def loop() -> None:
            with listening, contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client:
                        client.sendall(name.encode())

        threading.Thread(target=loop, daemon=True).start()


def start(name: str, names: dict[str, str], api: Server, place: Path) -> Process:
    (place / "kubeconfig").write_text(kubeconfig(api.url))
    (place / "net-conf.json").write_text(json.dumps(CONFIG))
    words = ["--kubernetes", "--kubeconfig", str(place / "kubeconfig")]
    words += ["--kubernetes-config", str(place / "net-conf.json")]
    made = Process(names[name], place, *words)
    underlay = Underlay(address=ip_address(UNDER[name]))
    policy = Node(name=name, underlay=underlay, host_port=HOST if name == "a" else None)
    made.file.write_text(dump(Document(node=policy)))
    return made.start()


@pytest.fixture(scope="module")
def cluster(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    labels = ("hub", *UNDER, "client", "one", "two", "other")
    names = dict(zip(labels, module_netns(*labels), strict=True))
    ip(names["hub"], "link add bridge type bridge", f"addr add {HUB}/24 dev bridge")
    ip(names["hub"], "link set bridge up")
    for label, address in UNDER.items():
        ip(names["hub"], f"link add name to-{label} type veth peer name under netns {names[label]}")
        ip(names["hub"], f"link set to-{label} master bridge up")
        ip(names[label], f"addr add {address}/24 dev under", "link set under up")
    vxlan = f"type vxlan id 1 local {UNDER['k']} dev under dstport 4789 nolearning"
    ip(names["k"], f"link add name flannel.1 address {KERNEL_MAC} {vxlan}")
    ip(names["k"], "link set flannel.1 mtu 1450 up", f"addr add {KERNEL}/32 dev flannel.1")
    with Server(TOKEN, names["hub"], HUB) as api:
        for name in ("a", "b"):
            api.put("nodes", node(name, CIDR[name]))
        api.put("nodes", node("k", CIDR["k"], UNDER["k"], KERNEL_MAC))
        nodes: dict[str, Process] = {}
        try:
            for name in ("a", "b"):
                nodes[name] = start(name, names, api, tmp_path_factory.mktemp(name))
            made = Cluster(api, names, nodes)
            wait_for(lambda: all(remotes(made, name) == 2 for name in "ab"))
            follow(made)
            for name, at in (("client", "a"), ("one", "b"), ("two", "b"), ("other", "a")):
                made.attach(name, at, app=name)
            for name in ("one", "two"):
                made.serve(name)
            yield made
            assert api.wrongs == []
            for process in nodes.values():
                assert process.end() == 0, process.log.read_text()
        finally:
            for process in nodes.values():
                if process.process is not None and process.process.poll() is None:
                    process.process.kill()


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


# ---- the overlay -------------------------------------------------------------------------------


def test_nodes_say_of_themselves_what_flannel_does(cluster: Cluster) -> None:
    for name in ("a", "b"):
        told = cluster.api.get("nodes", name)
        marks = told["metadata"]["annotations"]
        assert marks[f"{PREFIX}kube-subnet-manager"] == "true"
        assert marks[f"{PREFIX}backend-type"] == "vxlan"
        assert marks[f"{PREFIX}public-ip"] == UNDER[name]
        own = cluster.ask(name, "/v1/networks")["items"][0]["dr_mac"]
        assert marks[f"{PREFIX}backend-data"] == f'{{"VNI":1,"VtepMAC":"{own}"}}'
        (condition,) = told["status"]["conditions"]
        assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")


def test_pods_reach_each_other_and_the_kernels_node(cluster: Cluster) -> None:
    for source in ("client", "one", "other"):
        for target in (*cluster.addresses.values(), KERNEL):
            if target != cluster.addresses[source]:
                assert cluster.ping(source, target, "-Mdo", "-s1422"), (source, target)
    assert cluster.ping("k", cluster.addresses["one"])
    assert cluster.ping("a", cluster.addresses["client"])  # the kubelet's way, by the host port


def test_a_node_comes_changes_and_goes(cluster: Cluster) -> None:
    mac = "02:00:00:00:00:%02x"
    cluster.api.put("nodes", node("new", "10.244.9.0/24", "10.99.0.9", mac % 1))
    wait_for(lambda: remotes(cluster, "a") == 3)
    cluster.api.put("nodes", node("new", "10.244.9.0/24", "10.99.0.9", mac % 2))

    def dr_macs() -> set[str]:
        return {item["dr_mac"] for item in cluster.ask("a", "/v1/remote-subnets")["items"]}

    wait_for(lambda: mac % 2 in dr_macs())
    cluster.api.put("nodes", node("new", "10.244.1.0/24", "10.99.0.9", mac % 2))  # our own
    wait_for(lambda: remotes(cluster, "a") == 2)
    wait_for(lambda: "10.244.1.0/24 overlaps our own" in cluster.nodes["a"].log.read_text())
    cluster.api.delete("nodes", "new")
    wait_for(lambda: remotes(cluster, "b") == 2)


# ---- services ----------------------------------------------------------------------------------


@pytest.fixture
def web(cluster: Cluster) -> Iterator[None]:
    backends = [cluster.addresses["one"], cluster.addresses["two"]]
    cluster.api.put("services", service("web", VIP))
    cluster.api.put("endpointslices", endpoint_slice("web", *backends))
    wait_for(lambda: cluster.asked("client", VIP, 80))
    yield
    cluster.api.delete("services", "web", "default")
    cluster.api.delete("endpointslices", "web-1", "default")
    wait_for(lambda: not cluster.asked("client", VIP, 80))


def test_a_service_balances_and_follows_its_endpoints(cluster: Cluster, web: None) -> None:
    told = {cluster.asked("client", VIP, 80) for _ in range(30)}
    assert told == {"one", "two"}
    cluster.api.put("endpointslices", endpoint_slice("web", cluster.addresses["two"]))
    wait_for(lambda: {cluster.asked("client", VIP, 80) for _ in range(10)} == {"two"})
    cluster.api.put("endpointslices", endpoint_slice("web"))
    wait_for(lambda: not cluster.asked("client", VIP, 80))


def test_a_node_port_is_met_at_the_host(cluster: Cluster) -> None:
    ports = [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]
    cluster.api.put("services", service("out", "10.96.0.11", type="NodePort", ports=ports))
    cluster.api.put("endpointslices", endpoint_slice("out", cluster.addresses["one"]))
    wait_for(lambda: cluster.asked("a", "169.254.77.2", 30080) == "one")
    wait_for(lambda: "its nodePort needs a host_port" in cluster.nodes["b"].log.read_text())
    cluster.api.delete("services", "out", "default")
    cluster.api.delete("endpointslices", "out-1", "default")


def test_what_cannot_be_is_left_out_by_name(cluster: Cluster, web: None) -> None:
    """Two services of one VIP and port, and one at a pod's own address."""
    cluster.api.put("services", service("a-twin", VIP))
    cluster.api.put("services", service("pods-own", cluster.addresses["client"]))
    cluster.api.put("services", service("sound", "10.96.0.12"))

    def named() -> set[str]:
        return {i["name"] for i in cluster.ask("a", "/v1/load-balancers")["items"]}

    wait_for(lambda: "kubernetes/default.sound.80" in named())
    assert "kubernetes/default.pods-own.80" not in named()
    told = "service default.pods-own.80 is not followed"
    wait_for(lambda: told in cluster.nodes["a"].log.read_text())
    for name in ("a-twin", "pods-own", "sound"):
        cluster.api.delete("services", name, "default")
    wait_for(lambda: "kubernetes/default.sound.80" not in named())


# ---- policies ----------------------------------------------------------------------------------


def test_a_policy_closes_and_opens_a_pod(cluster: Cluster, web: None) -> None:
    one = cluster.addresses["one"]
    only = {"podSelector": {"matchLabels": {"app": "one"}}}
    assert cluster.asked("client", one, 8080) == cluster.asked("other", one, 8080) == "one"
    cluster.api.put("networkpolicies", network_policy("deny", **only, policyTypes=["Ingress"]))
    wait_for(lambda: not cluster.asked("client", one, 8080))
    assert not cluster.ping("client", one)
    assert cluster.asked("client", cluster.addresses["two"], 8080) == "two"
    peer = {"podSelector": {"matchLabels": {"app": "client"}}}
    rule = {"from": [peer], "ports": [{"port": 8080}]}
    cluster.api.put("networkpolicies", network_policy("allow", **only, ingress=[rule]))
    wait_for(lambda: cluster.asked("client", one, 8080) == "one")
    assert not cluster.asked("other", one, 8080) and not cluster.ping("client", one)
    assert cluster.ping("one", cluster.addresses["client"])  # its own way out, and the answer
    for name in ("deny", "allow"):
        cluster.api.delete("networkpolicies", name, "default")
    wait_for(lambda: cluster.asked("other", one, 8080) == "one")


def test_egress_to_a_service_is_egress_to_its_pods(cluster: Cluster, web: None) -> None:
    targets = [{"podSelector": {"matchExpressions": [
        {"key": "app", "operator": "In", "values": ["one", "two"]}]}}]  # fmt: skip
    rule = {"to": targets, "ports": [{"port": 8080, "protocol": "TCP"}]}
    only = {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}
    cluster.api.put("networkpolicies", network_policy("out", **only, egress=[rule]))
    wait_for(lambda: not cluster.ping("client", cluster.addresses["one"]))
    wait_for(lambda: cluster.asked("client", VIP, 80) in ("one", "two"))
    assert not cluster.ping("client", KERNEL) and cluster.ping("other", KERNEL)
    cluster.api.delete("networkpolicies", "out", "default")
    wait_for(lambda: cluster.ping("client", KERNEL))


# ---- faults ------------------------------------------------------------------------------------


def test_the_server_goes_is_compacted_and_comes_back(cluster: Cluster, web: None) -> None:
    """What was known last is forwarded, and what changed meanwhile is caught up with."""
    cluster.api.down = True
    cluster.api.cut()
    backends = [cluster.addresses["one"], cluster.addresses["two"]]
    for _ in range(10):
        assert cluster.asked("client", VIP, 80) and cluster.ping("client", KERNEL)
    cluster.api.put("endpointslices", endpoint_slice("web", backends[1]))
    cluster.api.put("nodes", node("new", "10.244.9.0/24", "10.99.0.9", "02:00:00:00:00:01"))
    cluster.api.compact()
    assert remotes(cluster, "a") == 2
    cluster.api.down = False
    wait_for(lambda: remotes(cluster, "a") == 3, 30)
    wait_for(lambda: {cluster.asked("client", VIP, 80) for _ in range(10)} == {"two"}, 30)
    cluster.api.delete("nodes", "new")
    wait_for(lambda: remotes(cluster, "a") == 2)
    wait_for(lambda: "follows nodes again" in cluster.nodes["a"].log.read_text())


def test_a_killed_node_forwards_at_once_without_the_server(cluster: Cluster, web: None) -> None:
    process = cluster.nodes["a"]
    cluster.api.down = True
    cluster.api.cut()
    process.end(signal.SIGKILL)
    process.start()
    assert cluster.asked("client", VIP, 80) and cluster.ping("client", KERNEL)
    cluster.api.down = False
    cluster.api.put("endpointslices", endpoint_slice("web", cluster.addresses["one"]))
    wait_for(lambda: {cluster.asked("client", VIP, 80) for _ in range(10)} == {"one"}, 30)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_killed_between_the_steps_it_converges(cluster: Cluster, web: None, delay: float) -> None:
    process = cluster.nodes["a"]
    for n in range(3):
        cluster.api.put("services", service(f"more{n}", f"10.96.1.{n + 1}"))
    time.sleep(delay)
    process.end(signal.SIGKILL)
    cluster.api.delete("services", "more0", "default")
    process.start()

    def named() -> set[str]:
        items = cluster.ask("a", "/v1/load-balancers")["items"]
        return {i["name"].partition("/")[2] for i in items}

    wait_for(lambda: named() == {"default.web.80", "default.more1.80", "default.more2.80"})
    for n in (1, 2):
        cluster.api.delete("services", f"more{n}", "default")
    wait_for(lambda: named() == {"default.web.80"})


# ---- many --------------------------------------------------------------------------------------


def test_two_thousand_services(cluster: Cluster, web: None) -> None:
    """5,000 endpoints: how long until a node has them, and what one change costs, with all that the
    double and the asking take (test_kube_load.py: without); a flow that it is not about loses
    nothing."""
    slow = float(os.environ.get("DATAPLANE_SLOW", "3"))  # times as slow as asked it may be here
    process = cluster.nodes["a"]
    process.end()
    for n in range(2000):
        cluster.api.put("services", service(f"s{n}", f"10.97.{n // 250}.{n % 250 + 1}"))
        backends = [f"10.244.2.{(n + j) % 200 + 50}" for j in range(2 + n % 2)]
        cluster.api.put("endpointslices", endpoint_slice(f"s{n}", *backends))
    wait_for(lambda: balancers(cluster, "b") == 2001, 60)
    process.start()
    begin, old = time.monotonic(), generation(cluster)
    wait_for(lambda: generation(cluster) > old, 30)
    synced = time.monotonic() - begin
    assert balancers(cluster, "a") == 2001
    changes = []
    with streaming(cluster) as lost:
        for n in range(30):
            old, begin = generation(cluster), time.monotonic()
            cluster.api.put("endpointslices", endpoint_slice("s7", f"10.244.2.{n + 50}"))
            wait_for(lambda old=old: generation(cluster) > old)
            changes.append(time.monotonic() - begin)
    assert lost() == 0
    median = statistics.median(changes)
    print(f"2,000 services in {synced:.2f} s, one changed in {median * 1e3:.0f} ms")
    assert synced < 2 * slow and median < 0.03 * slow, (synced, median)


def balancers(cluster: Cluster, name: str) -> int:
    return int(cluster.ask(name, "/v1/networks/kubernetes")["load_balancers"])


def generation(cluster: Cluster) -> int:
    return int(cluster.ask("a", "/v1/status")["generation"])


@contextlib.contextmanager
def streaming(cluster: Cluster) -> Iterator[Callable[[], int]]:
    """Numbered datagrams from the client to pod one, over the overlay; how many were lost."""
    one = cluster.addresses["one"]

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", 7000))
        made.settimeout(1)
        return made

    sink = inside(cluster.names["one"], bound)
    source = inside(cluster.names["client"], bound)
    over, sent, got = threading.Event(), [0], set[bytes]()

    def send() -> None:
        while not over.is_set():
            source.sendto(str(sent[0]).encode(), (one, 7000))
            sent[0] += 1
            time.sleep(0.0005)

    def receive() -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                got.add(sink.recv(100))

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sent[0] - len(got)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sink.close()
        source.close()
