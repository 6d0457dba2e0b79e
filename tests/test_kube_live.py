"""Two nodes of ours and a kernel's VXLAN device in a cluster (tests/kube_cluster.py): the overlay,
cluster IPs, policies, faults, and many services. test_kube_services_live.py: services from outside.
"""

import contextlib
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dataplane.kubernetes.nodes import PREFIX
from dataplane.netns import inside
from tests.conftest import why_no_netns
from tests.kube_cluster import KERNEL, UNDER, VIP, Cluster, remotes, running, wait_for
from tests.kube_objects import endpoint_slice, network_policy, node, service

WHY_NOT = why_no_netns()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")


@pytest.fixture(scope="module")
def cluster(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with running(module_netns, tmp_path_factory.mktemp) as made:
        yield made


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
