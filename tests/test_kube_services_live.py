"""Services met from outside of the cluster and from its pods, as behind kube-proxy: external IPs,
addresses of a cloud's balancer, node ports, traffic policies and affinity.

The cluster of tests/kube_cluster.py, both nodes with a host port. Outside are clients on the nodes'
own link, which reach the external addresses by one of the nodes.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import why_no_netns
from tests.kube_cluster import PODS, UNDER, VIP, Answer, Cluster, plug, running, wait_for
from tests.kube_objects import endpoint, endpoint_slice, service
from tests.peers.wire import ip, run

WHY_NOT = why_no_netns()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

EXTERNAL, CLOUD, NODE_PORT = "203.0.113.5", "203.0.113.6", 30080
CLIENTS = [f"10.99.0.{n}" for n in range(50, 90)]  # outside; the first speaks where none is named
ROUTER = {"a": "10.244.1.1", "b": "10.244.2.1"}  # whom a server on the other node sees
MANY = 20  # connections after which each of a few servers was met, but by a chance in 10^5


@pytest.fixture(scope="module")
def cluster(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    (outside,) = module_netns("outside")
    with running(module_netns, tmp_path_factory.mktemp, hosts="ab") as made:
        made.names["outside"] = outside
        plug(made.names, "outside", *CLIENTS)
        for name in ("other", "outside"):
            made.serve(name)
        enter_by(made, "a")
        yield made


def enter_by(cluster: Cluster, name: str) -> None:
    """The node that clients outside reach external addresses by."""
    ip(cluster.names["outside"], f"route replace 203.0.113.0/24 via {UNDER[name]}")


def put(cluster: Cluster, *servers: str, **spec: Any) -> None:
    """The service, with these pods behind it."""
    made = service(
        "out",
        VIP,
        type="LoadBalancer",
        ports=[{"port": 80, "nodePort": NODE_PORT, "protocol": "TCP"}],
        externalIPs=[EXTERNAL],
        **spec,
    )
    made["status"] = {"loadBalancer": {"ingress": [{"ip": CLOUD}]}}
    backends = [endpoint(cluster.addresses[pod]) | {"nodeName": PODS[pod]} for pod in servers]
    cluster.api.put("endpointslices", endpoint_slice("out", *backends))
    cluster.api.put("services", made)


@contextlib.contextmanager
def offered(cluster: Cluster, *servers: str) -> Iterator[None]:
    """Inside the block there is the plain service; nodes have it, and all its servers."""
    put(cluster, *servers)
    for source in ("client", "two"):
        wait_for(lambda source=source: met(cluster, source, VIP, 80) == {*servers})
    try:
        yield
    finally:
        cluster.api.delete("services", "out", "default")
        cluster.api.delete("endpointslices", "out-1", "default")
        wait_for(lambda: not any(balancers(cluster, name) for name in "ab"))
        enter_by(cluster, "a")


def met(cluster: Cluster, source: str, address: str, port: int, by: str = "") -> set[str]:
    """Who answered many connections, "" where one was not."""
    return {cluster.asked(source, address, port, by) for _ in range(MANY)}


def refused(cluster: Cluster, source: str, address: str, port: int) -> bool:
    """Told so, not left waiting."""
    try:
        cluster.call(source, address, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def balancers(cluster: Cluster, name: str) -> list[Any]:
    found: list[Any] = cluster.ask(name, "/v1/load-balancers")["items"]
    return found


def traces(cluster: Cluster, name: str) -> tuple[str, str, list[Any]]:
    """What services leave at a node: routes and rules of its host, and its own."""
    netns = cluster.names[name]
    told = run(netns, "ip", "route"), run(netns, "nft", "list", "ruleset")
    return *told, balancers(cluster, name)


# ---- where a service is met --------------------------------------------------------------------


def test_a_cluster_ip_leads_to_a_pod_beside_its_client(cluster: Cluster) -> None:
    """On one link, where the server answers its client without the router; and to the client."""
    with offered(cluster, "other"):
        assert cluster.call("client", VIP, 80) == Answer("other", cluster.addresses["client"])
        assert cluster.call("other", VIP, 80) == Answer("other", ROUTER["a"])


@pytest.mark.parametrize(("server", "seen"), [("other", CLIENTS[0]), ("one", ROUTER["a"])])
def test_external_addresses(cluster: Cluster, server: str, seen: str) -> None:
    """The server is on the node that clients outside come to, or on the other one."""
    with offered(cluster, server):
        for address in (EXTERNAL, CLOUD):
            assert cluster.call("outside", address, 80) == Answer(server, seen)
            for source in ("client", "two"):
                told = cluster.call(source, address, 80)
                assert told == Answer(server, cluster.addresses[source])
            for source in ("a", "b"):
                assert cluster.asked(source, address, 80) == server
            assert not cluster.asked("outside", address, 81)


@pytest.mark.parametrize("server", ["other", "one"])
def test_a_node_port(cluster: Cluster, server: str) -> None:
    """At each node's address, whichever of them the server is on, and whoever asks."""
    with offered(cluster, server):
        for source in ("outside", "client", "two", "a", "b"):
            for node in ("a", "b"):
                assert cluster.asked(source, UNDER[node], NODE_PORT) == server, (source, node)
        near = PODS[server]
        assert cluster.call("outside", UNDER[near], NODE_PORT) == Answer(server, CLIENTS[0])


def test_nothing_is_left_of_it(cluster: Cluster) -> None:
    places = [(EXTERNAL, 80), (CLOUD, 80), *((UNDER[node], NODE_PORT) for node in "ab")]
    before = [traces(cluster, name) for name in "ab"]
    with offered(cluster, "one", "other"):
        for source in ("outside", "client"):
            for place in places:
                assert cluster.asked(source, *place), (source, place)
        for (routes, rules, _), node in zip([traces(cluster, n) for n in "ab"], "ab", strict=True):
            assert all(f"{address} via" in routes for address in (VIP, EXTERNAL, CLOUD)), node
            assert f"tcp dport {NODE_PORT} dnat" in rules, node
    for source in ("outside", "client"):
        for place in ((VIP, 80), *places):
            assert not cluster.asked(source, *place), (source, place)
    assert [traces(cluster, name) for name in "ab"] == before


# ---- who answers -------------------------------------------------------------------------------


def test_external_traffic_stays_at_its_node(cluster: Cluster) -> None:
    """The server sees its client. A node without one refuses, where kube-proxy drops; and so it
    does to its own pods, where kube-proxy lets them reach all servers."""
    with offered(cluster, "one", "two", "other"):
        assert met(cluster, "outside", EXTERNAL, 80) == {"one", "two", "other"}
        put(cluster, "one", "two", "other", externalTrafficPolicy="Local")
        for node, servers in (("a", {"other"}), ("b", {"one", "two"})):
            enter_by(cluster, node)
            for place in ((EXTERNAL, 80), (CLOUD, 80), (UNDER[node], NODE_PORT)):
                wait_for(lambda to=place, of=servers: met(cluster, "outside", *to) == of)
                assert cluster.call("outside", *place).client == CLIENTS[0]
        for source, servers in (("client", {"other"}), ("two", {"one", "two"})):
            assert met(cluster, source, EXTERNAL, 80) == servers
            assert met(cluster, source, VIP, 80) == {"one", "two", "other"}
        put(cluster, "one", "two", externalTrafficPolicy="Local")
        wait_for(lambda: refused(cluster, "outside", UNDER["a"], NODE_PORT))
        enter_by(cluster, "a")
        assert refused(cluster, "outside", EXTERNAL, 80) and refused(cluster, "client", CLOUD, 80)
        assert met(cluster, "client", VIP, 80) == {"one", "two"}
        enter_by(cluster, "b")
        assert met(cluster, "outside", EXTERNAL, 80) == {"one", "two"}


def test_internal_traffic_stays_at_its_node(cluster: Cluster) -> None:
    with offered(cluster, "one", "other"):
        put(cluster, "one", "other", internalTrafficPolicy="Local")
        for source, server in (("client", "other"), ("a", "other"), ("two", "one"), ("b", "one")):
            wait_for(lambda of=source, to=server: met(cluster, of, VIP, 80) == {to})
        for place in ((EXTERNAL, 80), (UNDER["a"], NODE_PORT)):
            assert met(cluster, "outside", *place) == {"one", "other"}
        put(cluster, "one", internalTrafficPolicy="Local")
        wait_for(lambda: refused(cluster, "client", VIP, 80))
        assert cluster.asked("two", VIP, 80) == cluster.asked("outside", EXTERNAL, 80) == "one"


def test_a_client_keeps_its_server(cluster: Cluster) -> None:
    servers = {"one", "two", "other"}
    with offered(cluster, *servers):
        assert met(cluster, "outside", EXTERNAL, 80) == servers
        put(cluster, *servers, sessionAffinity="ClientIP")
        for source in ("client", "two"):
            wait_for(lambda of=source: len(met(cluster, of, VIP, 80)) == 1)
        for place in ((EXTERNAL, 80), (UNDER["a"], NODE_PORT)):
            kept = [met(cluster, "outside", *place, by=client) for client in CLIENTS]
            assert all(len(each) == 1 for each in kept), kept
            assert set().union(*kept) == servers  # but by a chance in 10^6


# ---- the way out -------------------------------------------------------------------------------


def test_pods_reach_what_is_outside_as_their_node(cluster: Cluster) -> None:
    """By its own address, or by that of a service, as an API server; the host only by its own."""
    assert cluster.call("client", CLIENTS[0], 8080) == Answer("outside", UNDER["a"])
    assert cluster.ping("client", UNDER["a"]) and cluster.ping("client", UNDER["b"])
    cluster.api.put("services", service("api", VIP))
    cluster.api.put("endpointslices", endpoint_slice("api", CLIENTS[0]))
    for source, node in (("client", "a"), ("two", "b")):
        wait_for(lambda of=source: cluster.asked(of, VIP, 80) == "outside")
        assert cluster.call(source, VIP, 80).client == UNDER[node]
        assert cluster.asked(node, CLIENTS[0], 8080) and not cluster.asked(node, VIP, 80)
    cluster.api.delete("services", "api", "default")
    cluster.api.delete("endpointslices", "api-1", "default")
    wait_for(lambda: not any(balancers(cluster, name) for name in "ab"))
