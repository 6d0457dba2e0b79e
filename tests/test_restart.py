"""Restarts that nobody notices: traffic between two nodes while policies change and processes do.

DATAPLANE_RESTART_MB says how much TCP goes through; by hand 1,000 and more.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane import demo_net
from dataplane import demo_traffic as traffic
from dataplane.demo_base import DB, OUTSIDE
from dataplane.demo_node import NodeProcess
from dataplane.document import dump_json
from dataplane.errors import DataplaneError
from dataplane.model import Acl, Document, Node
from tests.world import World, world_at

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

MEGABYTES = int(os.environ.get("DATAPLANE_RESTART_MB", "200"))
UPGRADED = "2"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def world(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """By request with AF_XDP."""
    if getattr(request, "param", False):
        monkeypatch.setenv("DATAPLANE_XDP", "uplink")
    with world_at(tmp_path) as made:
        yield made


def numbered(node: Node, n: int) -> bytes:
    """The node's policy with one more rule that says which of many it is."""
    rule = Acl(name=f"n{n}", direction="in", action="allow", priority=1, protocol=200)
    network, *rest = node.networks
    first, *others = network.endpoints
    endpoint = replace(first, acls=(*first.acls, rule))
    network = replace(network, endpoints=(endpoint, *others))
    return dump_json(Document(node=replace(node, networks=(network, *rest))))


def test_traffic_outlives_policies_and_processes(world: World, tmp_path: Path) -> None:
    """A TCP transfer survives 100 applies, a restart of each node, of one into other code, and a
    kill of the other; numbered datagrams lose nothing over the applies and the restarts."""
    of_code_of_its_own(world, tmp_path / "code")
    stage = {"killed": False, "done": False}

    def more(blocks: int) -> bool:
        return blocks < MEGABYTES or not stage["done"]

    site = world.site
    stream = traffic.Stream(site, "a1", "b1", (DB, 5050))
    with traffic.Background() as background:
        sending = background.submit(
            traffic.transfer, site, "a1", "b1", (DB, 5051), more, rate=60_000_000
        )
        with stream.running(0.0005):
            for n in range(100):
                name = "ab"[n % 2]
                with world.client(name) as client:
                    client.apply(numbered(world.node(name), n), prune=True)
            upgrade(tmp_path / "code")
            for name in world.nodes:
                with world.client(name) as client:
                    generation = client.status()["generation"]
                    before = len(client.flows(limit=100_000)["items"])
                    status = client.restart()
                    assert status["generation"] == generation
                    assert (status["version"] == UPGRADED) == (name == "a")
                    assert len(client.flows(limit=100_000)["items"]) >= before > 0
        kill_and_start_again(world, "b")
        stage["done"] = True
        done = sending.result(120)
    assert done.intact and done.size >= MEGABYTES << 20
    assert stream.lost == 0, f"{stream.lost} of {stream.sent} datagrams lost"
    assert stream.sent > 1000


def kill_and_start_again(world: World, name: str) -> None:
    """SIGKILL, and a new process with nothing but the state directory."""
    with world.client(name) as client:
        status = client.status()
    os.kill(status["pid"], signal.SIGKILL)
    node = world.nodes[name]
    fresh = NodeProcess(world.site, name, name, node.policy, "--state", str(world.state / name))
    fresh.wait_for("ready: ")
    world.nodes[name] = fresh
    with world.client(name) as client:
        assert client.status()["generation"] == status["generation"]


def test_translations_and_backends_outlive_a_restart(world: World) -> None:
    """A connection through NAT to the outside goes on; its outside port stays the same."""
    site = world.site
    listener = traffic.server(site, "o", 5060)
    client = traffic.connect(site, "a1", (OUTSIDE, 5060), 5)
    server, peer = listener.accept()
    server.settimeout(5)
    for turn in range(3):
        client.sendall(b"%d" % turn)
        assert server.recv(10) == b"%d" % turn
        server.sendall(b"back")
        assert client.recv(10) == b"back"
        with world.client("a") as node:
            assert any(f["dport"] == 5060 for f in node.flows(["dport=5060"])["items"])
            node.restart()
    assert server.getpeername() == peer
    for sock in (client, server, listener):
        sock.close()


def of_code_of_its_own(world: World, code: Path) -> NodeProcess:
    """Node a, started anew from a copy of the package."""
    shutil.copytree(ROOT / "dataplane", code / "dataplane")
    world.nodes["a"].stop()
    state = ("--state", str(world.state / "a"))
    node = NodeProcess(world.site, "a", "a", world.nodes["a"].policy, *state, home=code)
    node.wait_for("ready: ")
    world.nodes["a"] = node
    return node


def upgrade(code: Path) -> None:
    """Who begins from now on tells another version."""
    edited(code / "dataplane/api/health.py", 'metadata.version("vxlan-dataplane")', f'"{UPGRADED}"')


def edited(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def gets_xdp_again(node: NodeProcess, before: int) -> None:
    deadline = time.monotonic() + 5
    while "underlay: AF_XDP on uplink, 1 queue, copy" not in node.lines()[before:]:
        assert time.monotonic() < deadline, node.tail(20)
        time.sleep(0.05)


@pytest.mark.parametrize("world", [True], indirect=True, ids=["xdp"])
def test_af_xdp_changes_hands(world: World, tmp_path: Path) -> None:
    """To a successor, and back from one that does not come: the sockets have it meanwhile."""
    node = of_code_of_its_own(world, tmp_path / "code")
    stream = traffic.Stream(world.site, "a1", "b1", (DB, 5054))
    with world.client("a") as client, stream.running(0.001):
        before = len(node.lines())
        client.restart()
        gets_xdp_again(node, before)
        forwarder = tmp_path / "code/dataplane/forwarder.py"
        forwarder.write_text(forwarder.read_text() + "\nForwarder.__init__ = None\n")
        before = len(node.lines())
        with pytest.raises(DataplaneError):
            client.restart(patience=0)
        gets_xdp_again(node, before)
        assert answers(world, "a1", DB)
    assert stream.lost == 0 and stream.sent > 100


def answers(world: World, source: str, address: str) -> bool:
    return traffic.ping(world.site, source, address, "-c", "2", "-i", "0.05")[0] == 0


def test_an_upgrade_in_place(world: World, tmp_path: Path) -> None:
    """The successor runs the code that is installed by then."""
    of_code_of_its_own(world, tmp_path / "code")
    upgrade(tmp_path / "code")
    stream = traffic.Stream(world.site, "a1", "b1", (DB, 5052))
    with world.client("a") as client, stream.running(0.001):
        assert client.status()["version"] != UPGRADED
        assert client.restart()["version"] == UPGRADED
        time.sleep(0.2)
    assert stream.lost == 0 and stream.sent > 100


def test_flows_of_another_format_begin_anew(world: World, tmp_path: Path) -> None:
    """And are all that does: policy, ports and NAT's rules are there, and packets pass."""
    node = of_code_of_its_own(world, tmp_path / "code")
    edited(tmp_path / "code/dataplane/saved.py", "lib.DP_SAVED", "lib.DP_SAVED + 1")
    stream = traffic.Stream(world.site, "a1", "b1", (DB, 5055))
    with world.client("a") as client, stream.running(0.001):
        client.apply(numbered(world.node("a"), 1), prune=True)
        before, policy, lines = client.status(), client.policy(), len(node.lines())
        after = client.restart()
        assert after["pid"] != before["pid"] and after["generation"] == before["generation"]
        node.wait_for("flows begin anew: saved flows are of another format", lines)
        assert client.policy() == policy
        assert answers(world, "a1", DB)
    assert stream.lost == 0 and stream.sent > 100


def test_a_handover_of_another_format_changes_nothing(world: World, tmp_path: Path) -> None:
    """The successor says so, and the old process goes on, flows and all."""
    node = of_code_of_its_own(world, tmp_path / "code")
    edited(tmp_path / "code/dataplane/handover.py", "FORMAT = 1", "FORMAT = 2")
    stream = traffic.Stream(world.site, "a1", "b1", (DB, 5056))
    with world.client("a") as client, stream.running(0.001):
        before, policy = client.status(), client.policy()
        with pytest.raises(DataplaneError):
            client.restart(patience=0)
        node.wait_for("the predecessor's handover has format 1, not 2")
        node.wait_for("the successor")
        after = client.status()
        assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
        assert client.policy() == policy
        assert answers(world, "a1", DB)
    assert stream.lost == 0 and stream.sent > 100


@pytest.mark.parametrize("file", ["run.py", "saved.py", "api/hub.py"])
def test_a_successor_that_does_not_come_changes_nothing(
    world: World, tmp_path: Path, file: str
) -> None:
    """The old process goes on, and serves again."""
    node = of_code_of_its_own(world, tmp_path / "code")
    (tmp_path / "code" / "dataplane" / file).write_text("raise SystemExit('broken')\n")
    stream = traffic.Stream(world.site, "a1", "b1", (DB, 5053))
    with world.client("a") as client, stream.running(0.001):
        before = client.status()
        with pytest.raises(DataplaneError):
            client.restart(patience=0)
        node.wait_for("the successor")
        time.sleep(0.2)
        after = client.status()
        assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
        client.apply(numbered(world.node("a"), 1), prune=True)
    assert stream.lost == 0 and stream.sent > 100
