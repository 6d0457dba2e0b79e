"""A policy for all nodes, in etcd: two nodes that have only their endpoints of their own."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dataplane.address import Mac, Vni, parse_prefix
from dataplane.api.client import Client
from dataplane.api.health import unready
from dataplane.daemon import Daemon
from dataplane.document import dump
from dataplane.errors import DocumentError
from dataplane.etcd_policy.common import read, share
from dataplane.etcd_policy.door import EtcdPolicy, Options
from dataplane.model import Acl, Document, Endpoint, HostPort, Network, Node, Tap, Underlay
from dataplane.netns import inside
from dataplane.state_dir import Saved
from tests.etcd_server import WHY_NOT, Etcd
from tests.live_node import Process, end_all, kill_all
from tests.peers.wire import ip

ROOT = Path(__file__).resolve().parent.parent
HUB, ADDRESSES = "10.99.2.254", {"a": "10.99.2.1", "b": "10.99.2.2"}
PODS = {"a": "10.1.1.2", "b": "10.1.2.2"}
TEXT = (ROOT / "docs/etcd.md").read_text()
GOOD = re.findall(r"^```yaml common.yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[0]
BLOCKED = (
    GOOD + "    acls: [{name: quiet, direction: in, action: block, protocol: icmp, priority: 10}]\n"
)
SERVED = """networks: [{name: red, vni: 4097, prefixes: [10.9.0.0/16]}]
""" + (
    GOOD + "    load_balancers: [{name: web, protocol: tcp, port: 80, vips: [10.1.250.1],\n"
    "      backends: [{address: 10.1.2.2, port: 8080}]}]\n"
)
DIRECT = """networks: [{name: red, vni: 4097, prefixes: [10.9.0.0/16], host_route: true,
  direct_subnets: [{prefix: 10.9.1.0/24, provider_address: 10.98.0.9}]}]
"""
# right by its form, but b has one of that name
CLASHES = GOOD + "    acls: [{name: own, direction: in, action: allow, protocol: udp}]\n"


# ---- documents ---------------------------------------------------------------------------------


OWN = Acl(name="own", direction="in", action="allow", priority=60_000)


def node(name: str, netns: str | None = None) -> Node:
    tap = Tap(name="web", netns=netns)
    web = Endpoint(name="web", addresses=(ip_address(PODS[name]),), tap=tap)
    blue = Network(
        name="blue",
        vni=Vni(4096),
        prefixes=(parse_prefix("10.1.0.0/16"),),
        dr_mac=Mac(f"02:aa:00:00:00:0{name}"),
        endpoints=(web,),
        acls=(OWN,) if name == "b" else (),
    )
    underlay = Underlay(address=ip_address(ADDRESSES[name]))
    return Node(name=name, underlay=underlay, networks=(blue,))


def test_a_node_sees_what_is_remote_to_it() -> None:
    made = share(read(GOOD.encode(), "policy"), node("a"), 7)
    assert [str(r.prefix) for r in made.parts[0].remote_subnets] == ["10.1.2.0/24"]
    assert made.kept == "7" and share(read(b"{}", "policy"), node("a"), 8).parts == ()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("parts: [{network: blue, endpoints: [{name: x}]}]", "$.parts[0].endpoints"),
        ("parts: [{}]", "$.parts[0]"),
        ("parts: [{network: blue, acl: []}]", "$.parts[0]"),
        ("networks: [{name: n, vni: -1, prefixes: []}]", "$.networks[0].vni"),
        ("node: {}", "$"),
        ("[]", "$"),
        ("{", "$"),
        ("\0", "$"),
    ],
)
def test_what_has_not_the_form_is_named(text: str, path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text.encode(), "policy")
    assert caught.value.faults[0].file == "policy"
    assert caught.value.faults[0].path.startswith(path)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_node_is_ready_once_etcd_was_heard_and_its_policy_fits(tmp_path: Path) -> None:
    """Nothing there to follow is no fault; what is refused from the beginning is one."""
    own = Node(name="c", underlay=Underlay(address=ip_address("127.0.0.76")))
    etcd = Etcd(tmp_path)
    options = Options((etcd.url,), "/dp")
    try:
        with Daemon(Saved(1, own)) as daemon, EtcdPolicy(daemon, options):
            until(lambda: "refused" in "".join(unready(daemon)))
            etcd.start()
            until(lambda: not unready(daemon))
            until(lambda: "/dp/policy is missing" in daemon.doors["etcd"].trouble)
        etcd.put("/dp/policy", b"parts: [{network: nobody}]")
        with Daemon(Saved(1, own)) as daemon, EtcdPolicy(daemon, options):
            until(lambda: "is refused: " in daemon.doors["etcd"].trouble)
            until(lambda: "etcd: not synced yet: revision " in "".join(unready(daemon)))
            etcd.put("/dp/policy", b"networks: [{name: n, vni: 7, prefixes: [10.9.0.0/16]}]")
            until(lambda: not unready(daemon))
            until(lambda: not daemon.doors["etcd"].trouble)
    finally:
        etcd.kill()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_what_the_kernel_refuses_is_told_like_any_fault(
    tmp_path: Path, netns: Callable[..., list[str]]
) -> None:
    """A direct route to a node that is not on the link; it is done once the link is there."""
    (there,) = netns("host")
    host = HostPort(
        address=ip_address("169.254.77.2"),
        peer=ip_address("169.254.77.1"),
        tap=Tap(name="host", netns=there),
    )
    underlay = Underlay(address=ip_address("127.0.0.76"))
    etcd = Etcd(tmp_path).start()

    def answer() -> dict[str, Any]:
        told = etcd.values("/dp/nodes/c").get("/dp/nodes/c", b"{}")
        return dict(json.loads(told))

    revision = etcd.put("/dp/policy", DIRECT.encode())
    own = Node(name="c", underlay=underlay, host_port=host)
    try:
        with Daemon(Saved(1, own)) as daemon, EtcdPolicy(daemon, Options((etcd.url,), "/dp")):
            until(lambda: "10.9.1.0/24" in answer().get("refused", ""))
            assert (answer()["revision"], answer()["holds"]) == (revision, 0)
            ip(there, "addr add 10.98.0.1/24 dev lo", "link set lo up")
            until(lambda: answer()["holds"] == revision)
            assert "refused" not in answer() and daemon.policy.networks
    finally:
        etcd.kill()


# ---- running nodes -----------------------------------------------------------------------------


class Place(NamedTuple):
    etcd: Etcd
    nodes: dict[str, Process]
    pods: dict[str, str]
    directory: Path
    hub: str

    def push(self, text: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, what it prints, and the errors."""
        file = self.directory / "common.yaml"
        file.write_text(text)
        (line,) = re.findall("^dataplane push .*$", TEXT, re.MULTILINE)
        words = [str(file) if word == file.name else word for word in shlex.split(line)]
        assert self.etcd.url in words
        words += ["-o", "json"]
        command = ["ip", "netns", "exec", self.hub, sys.executable, "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    def ping(self, patience: str = "5") -> bool:
        command = ["ip", "netns", "exec", self.pods["a"], "ping", "-c1", f"-W{patience}", PODS["b"]]
        return subprocess.run(command, capture_output=True).returncode == 0

    def remotes(self, name: str) -> set[str]:
        with Client(self.nodes[name].socket) as client:
            items = client.get("remote-subnets")
        assert {item["origin"] for item in items} <= {"etcd"}
        return {item["prefix"] for item in items}


@pytest.fixture(scope="module")
def place(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    hub, *names = module_netns("hub", "a", "b", "pa", "pb")
    ip(hub, "link add switch type bridge", f"addr add {HUB}/24 dev switch", "link set switch up")
    for netns, (label, address) in zip(names, ADDRESSES.items(), strict=False):
        ip(hub, f"link add to-{label} type veth peer name under netns {netns}")
        ip(hub, f"link set to-{label} master switch up")
        ip(netns, f"addr add {address}/24 dev under", "link set under up")
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), HUB, hub).start()
    pods = dict(zip(ADDRESSES, names[2:], strict=True))
    nodes = {}
    try:
        for netns, label in zip(names, ADDRESSES, strict=False):
            (line,) = re.findall("^dataplane run .*(--etcd-policy .*)$", TEXT, re.MULTILINE)
            made = Process(netns, tmp_path_factory.mktemp(label), *shlex.split(line))
            made.file.write_text(dump(Document(node=node(label, pods[label]))))
            nodes[label] = made.start()
        yield Place(etcd, nodes, pods, tmp_path_factory.mktemp("push"), hub)
        end_all(nodes)
    finally:
        kill_all(nodes)
        etcd.kill()


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_pushed_is_what_all_nodes_do(place: Place) -> None:
    assert not place.ping("1")
    code, told, _ = place.push(GOOD)
    assert code == 0
    until(lambda: place.remotes("a") == {"10.1.2.0/24"} and place.remotes("b") == {"10.1.1.0/24"})
    assert place.ping()
    code, told, _ = place.push(BLOCKED)
    assert code == 0 and told["nodes"].keys() == {"a", "b"}
    assert all(said["holds"] == told["revision"] for said in told["nodes"].values())
    assert not place.ping("1")
    assert place.push(GOOD)[0] == 0 and place.ping()


def test_services_and_whole_networks_are_pushed_too(place: Place) -> None:
    """A client at a reaches the service's backend at b; all goes again with the document."""

    def had(name: str) -> tuple[set[str], set[str]]:
        with Client(place.nodes[name].socket) as client:
            services = {item["name"] for item in client.get("load-balancers")}
            return {item["name"] for item in client.get("networks")}, services

    assert place.push(SERVED)[0] == 0
    assert had("a") == had("b") == ({"blue", "red"}, {"blue/web"})
    with inside(place.pods["b"], lambda: socket.create_server(("", 8080))) as server:
        there = "10.1.250.1", 80
        with inside(place.pods["a"], lambda: socket.create_connection(there, 5)) as client:
            with server.accept()[0] as served:
                assert served.getpeername()[0] == PODS["a"]
                served.sendall(b"there")
            assert client.recv(5) == b"there"
    assert place.push(GOOD)[0] == 0
    assert had("a") == had("b") == ({"blue"}, set())


def test_an_etcd_that_is_set_back_is_followed(place: Place) -> None:
    """As by a snapshot that is restored: its revisions are lower than those that nodes hold."""
    data, saved = place.etcd.place / "etcd", place.directory / "saved"
    _, good, _ = place.push(GOOD)
    place.etcd.kill()
    shutil.copytree(data, saved)
    place.etcd.start()
    for text in (BLOCKED, GOOD, BLOCKED):
        _, blocked, _ = place.push(text)
    assert blocked["revision"] > good["revision"] and not place.ping("1")
    place.etcd.kill()
    shutil.rmtree(data)
    shutil.copytree(saved, data)
    place.etcd.start()
    until(lambda: place.ping("1"), 20)
    code, told, _ = place.push(BLOCKED)
    assert code == 0 and told["revision"] < blocked["revision"] and not place.ping("1")
    assert place.push(GOOD)[0] == 0


def test_a_bad_document_changes_nothing(place: Place) -> None:
    """One that has not the form is not even pushed; one that fits not everywhere is refused there,
    with the reason, and what was before holds."""
    _, good, _ = place.push(GOOD)
    code, told, errors = place.push("parts: [{network: blue, acls: [{name: x}]}]")
    assert (code, told) == (2, {}) and "$.parts[0].acls[0]" in errors
    code, told, _ = place.push(CLASHES)
    assert code == 1
    a, b = told["nodes"]["a"], told["nodes"]["b"]
    assert a["holds"] == told["revision"] and not a["refused"]
    assert (
        b["holds"] == good["revision"]
        and "acl own of network blue is document's already" in b["refused"]
    )
    assert place.ping() and "is refused" in place.nodes["b"].log.read_text()
    code, told, _ = place.push("parts: [{network: red}]")
    assert code == 1 and "red" in told["nodes"]["a"]["refused"] and place.ping()
    assert place.push(GOOD)[0] == 0


def test_nodes_hold_it_without_etcd(place: Place) -> None:
    """Killed and begun again; what was pushed meanwhile is done once etcd is back."""
    place.nodes["a"].end(signal.SIGKILL)
    place.etcd.kill()
    place.nodes["a"].start()
    assert place.ping()
    place.etcd.start()
    place.etcd.put("/dataplane/policy", BLOCKED.encode())
    until(lambda: not place.ping("1"), 20)
    place.etcd.delete("/dataplane/policy")
    place.etcd.compact()
    assert place.push(GOOD)[0] == 0 and place.ping()


def test_an_empty_document_takes_all_back(place: Place) -> None:
    assert place.push("{}")[0] == 0
    until(lambda: place.remotes("a") == place.remotes("b") == set())
    assert not place.ping("1")
