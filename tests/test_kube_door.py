"""The door at work in a daemon of this process: what it tells the server and the log, and what no
object of the server's can do to it."""

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dataplane.api.health import examine, unready
from dataplane.daemon import Daemon
from dataplane.flannel.link import LACKS_HOST
from dataplane.kubernetes import nodes
from dataplane.kubernetes.access import Access
from dataplane.kubernetes.client import TIMEOUT
from dataplane.kubernetes.door import Kubernetes, Options
from dataplane.model import Network, Node, Underlay
from dataplane.state_dir import Saved
from tests.kube_objects import (
    FLANNEL,
    Object,
    endpoint_slice,
    network_policy,
    node,
    pod,
    service,
)
from tests.kube_server import PATHS, Refused, Server

PORT = 4795
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": PORT}}
NODE = Node(name="us", underlay=Underlay(address=ip_address("127.0.0.78"), port=PORT))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        made.put("nodes", node("us", "10.244.1.0/24"))
        yield made
        assert made.wrongs == []


@pytest.fixture
def options(server: Server, tmp_path: Path) -> Options:
    place = tmp_path / "net-conf.json"
    place.write_text(json.dumps(CONFIG))
    return Options(Access(server.url), "us", place)


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def overlay(daemon: Daemon) -> Network | None:
    return next((n for n in daemon.policy.networks if n.name == "kubernetes"), None)


def balancers(daemon: Daemon) -> list[str]:
    network = overlay(daemon)
    return [] if network is None else [b.name for b in network.load_balancers]


def peers(daemon: Daemon) -> list[str]:
    network = overlay(daemon)
    return [] if network is None else [str(r.provider_address) for r in network.remote_subnets]


def said(server: Server) -> dict[str, str]:
    found = server.get("nodes", "us")["metadata"].get("annotations", {})
    return {name.removeprefix(FLANNEL): text for name, text in found.items()}


def conditions(server: Server) -> dict[str, str]:
    told = server.get("nodes", "us").get("status", {}).get("conditions", [])
    return {each["type"]: each["status"] for each in told}


def patches(server: Server) -> int:
    return sum(request.startswith("PATCH") for request in server.requests)


def test_a_node_says_where_it_is_once(server: Server, options: Options) -> None:
    """Two patches; events that follow, its own among them, ask for no third. Nor does a restart."""
    for _ in range(2):
        with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
            until(lambda: conditions(server) == {"NetworkUnavailable": "False"})
            until(lambda daemon=daemon: overlay(daemon))
            server.put("services", service("web", "10.96.0.1"))
            until(lambda daemon=daemon: balancers(daemon) == ["default.web.80"])
        assert said(server)["public-ip"] == "127.0.0.78"
        assert patches(server) == 2


def test_a_node_that_was_made_anew_is_told_again(server: Server, options: Options) -> None:
    """As by a cloud's controller, which deletes a node that was away: the new one says nothing."""
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})
        before = said(server)
        server.delete("nodes", "us")
        server.put("nodes", node("us", "10.244.1.0/24"))
        until(lambda: said(server) == before)
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})


def test_killed_between_its_two_patches(server: Server, options: Options) -> None:
    """The condition comes with the next start, though the annotations are all there."""
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})
    half = server.get("nodes", "us")
    half["status"]["conditions"] = []
    server.put("nodes", half)
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})


def test_who_may_not_patch_forwards_all_the_same(
    server: Server,
    options: Options,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told once, tried again, and mended without a restart."""
    allowed = server.patch

    def forbidden(path: str, change: Object) -> Object:
        raise Refused(403, "Forbidden")

    monkeypatch.setattr(server, "patch", forbidden)
    server.put("services", service("web", "10.96.0.1"))
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: balancers(daemon) == ["default.web.80"])
        until(lambda: patches(server) >= 3)
        server.put("services", service("also", "10.96.0.2"))
        until(lambda: len(balancers(daemon)) == 2)
        assert caplog.text.count("403 forbidden") == 1
        monkeypatch.setattr(server, "patch", allowed)
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})


def test_a_node_is_not_ready_before_its_first_sync_and_is_through_an_outage(
    server: Server, options: Options
) -> None:
    server.down = True
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: f"kubernetes: not synced yet: {server.url}" in "".join(unready(daemon)))
        assert levels(daemon) == ["failure"]
        server.down = False
        until(lambda: not unready(daemon))
        until(lambda: levels(daemon) == ["ok"])
        server.down = True
        server.cut()
        until(lambda: levels(daemon) == ["warning"])
        assert unready(daemon) == []
        server.down = False
        until(lambda: levels(daemon) == ["ok"])


def levels(daemon: Daemon) -> list[str]:
    return [finding.level for finding in examine(daemon) if finding.subject == "door"]


def test_what_is_refused_is_told_ever_more_rarely(
    server: Server, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    def forbidden(path: str, change: Object) -> Object:
        at.append(time.monotonic())
        raise Refused(403, "Forbidden")

    monkeypatch.setattr(server, "patch", forbidden)
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: len(at) == 5)
    gaps = [after - before for before, after in pairwise(at)]
    assert all(gap >= least for gap, least in zip(gaps, (0.2, 0.4, 0.8, 1.6), strict=True)), gaps


def test_a_server_that_does_not_answer_holds_up_no_service(
    server: Server, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering, patch = threading.Event(), server.patch

    def hanging(path: str, change: Object) -> Object:
        answering.wait()
        return patch(path, change)

    monkeypatch.setattr(server, "patch", hanging)
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: patches(server))
        server.put("services", service("web", "10.96.0.1"))
        until(lambda: balancers(daemon) == ["default.web.80"], TIMEOUT / 2)
        answering.set()
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})


def test_a_node_without_a_subnet_is_waited_for(
    server: Server, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither is a node that the server does not know, nor one whose podCIDR is to come."""
    caplog.set_level(logging.INFO, "dataplane")
    server.delete("nodes", "us")
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: "node us is not known to the API server" in caplog.text)
        server.put("nodes", node("us", ""))
        until(lambda: "its podCIDR is missing" in caplog.text)
        server.put("nodes", node("us", "10.244.1.0/24"))
        until(lambda: overlay(daemon))
    assert caplog.text.count("is not known") == 1
    assert caplog.text.count("podCIDR is missing") == 1


def test_what_kubelets_say_again_and_again_costs_little(
    server: Server, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are found anew where a node says something else of its subnet; not for its status, nor
    for a service."""
    counted: list[object] = []
    real = nodes.leases
    monkeypatch.setattr(nodes, "leases", lambda *given: counted.append(given) or real(*given))
    peer = node("x", "10.244.9.0/24", "192.0.2.9", "02:00:00:00:00:09")
    server.put("nodes", peer)
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: conditions(server) == {"NetworkUnavailable": "False"})
        until(lambda: peers(daemon) == ["192.0.2.9"])
        time.sleep(0.2)  # its own annotations come back
        before = len(counted)
        server.put("nodes", peer | {"status": {"conditions": [{"type": "Ready"}]}})
        server.put("services", service("web", "10.96.0.1"))
        until(lambda: balancers(daemon))
        assert len(counted) == before
        moved = node("x", "10.244.9.0/24", "192.0.2.10", "02:00:00:00:00:09")
        server.put("nodes", moved)
        until(lambda: peers(daemon) == ["192.0.2.10"])
        server.delete("nodes", "x")
        server.put("services", service("also", "10.96.0.2"))
        until(lambda: len(balancers(daemon)) == 2)
        assert peers(daemon) == ["192.0.2.10"]  # for its grace
        until(lambda: peers(daemon) == [])


# ---- hostile -------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (None, True, 7, -1, "x", "", [], [None], ["x"], {}, {"a": 1}, [[]], [{}])
SOUND = {
    "nodes": node("x", "10.244.9.0/24", "192.0.2.9", "02:00:00:00:00:09"),
    "services": service("x", externalIPs=["192.0.2.99"], sessionAffinity="ClientIP"),
    "endpointslices": endpoint_slice("web", "10.244.9.9"),
    "pods": pod("x", "10.244.9.9", app="x"),
    "namespaces": {"metadata": {"name": "x", "labels": {"a": "b"}}},
    "networkpolicies": network_policy("x", policyTypes=["Ingress"], ingress=[{"from": []}]),
}


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    listed = enumerate(value) if isinstance(value, list) else ()
    found = [way] if way else []
    for key, inner in value.items() if isinstance(value, dict) else listed:
        if way != ("metadata",) or key in ("labels", "annotations"):
            found += places(inner, (*way, key))
    return found


def spoiled(item: Object) -> Iterator[Object]:
    """With junk at each place, but for what names the object."""
    for way in places(item):
        for junk in JUNK if way != ("metadata",) else ():
            made = inner = copy.deepcopy(item)
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = junk
            yield made


@pytest.mark.parametrize("kind", SOUND)
def test_no_object_holds_up_the_others(
    server: Server, options: Options, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """All spoiled forms of a kind at once, and then a service."""
    for i, item in enumerate(spoiled(SOUND[kind])):
        item["metadata"]["name"] = f"x{i}"
        server.put(kind, item)
    assert len(server._objects[PATHS[kind]]) > 25
    with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
        until(lambda: overlay(daemon))
        server.put("services", service("web", "10.96.0.77"))
        until(lambda: "default.web.80" in balancers(daemon))
        until(lambda: said(server))
    assert "unforeseen" not in caplog.text
    assert "this node" not in caplog.text


def test_direct_routing_that_cannot_be_is_told(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    direct = CONFIG | {"Backend": {"Type": "vxlan", "VNI": 1, "Port": PORT, "DirectRouting": True}}
    for told, config in enumerate((CONFIG, direct)):
        options.config.write_text(json.dumps(config))
        with Daemon(Saved(1, NODE)) as daemon, Kubernetes(daemon, options):
            assert caplog.text.count(LACKS_HOST) == told
