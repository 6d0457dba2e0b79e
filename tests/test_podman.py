"""Containers of podman on two nodes: the overlay, a service, an ACL, and that nothing is left."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dataplane.api.client import Client
from dataplane.cni.install import install
from tests import podman
from tests.live_node import PATIENCE, Process
from tests.podman import Podman

pytestmark = pytest.mark.skipif(bool(podman.WHY_NOT), reason=podman.WHY_NOT)

VIP = "10.96.0.10"
MACS = ("", '"02:00:00:00:00:01"', '"02:00:00:00:00:02"')
NODE = """
version: 1
node:
  name: {own}
  underlay: {{address: 10.99.0.{own_n}}}
  networks:
    - name: blue
      vni: 4096
      prefixes: [10.1.0.0/16]
      pool: [10.1.{own_n}.0/24]
      dr_mac: {own_mac}
      remote_subnets:
        - {{prefix: 10.1.{far_n}.0/24, provider_address: 10.99.0.{far_n}, dr_mac: {far_mac}}}
"""


class Nodes(NamedTuple):
    podman: Podman
    clients: dict[str, Client]
    netns: list[str]


@pytest.fixture
def short_path() -> Iterator[Path]:
    with podman.short_place() as place:
        yield place


@pytest.fixture
def nodes(netns: Callable[..., list[str]], short_path: Path) -> Iterator[Nodes]:
    made = netns("a", "b")
    link = ["ip", "-n", made[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable"]
    subprocess.run([*link, "netns", made[1]], check=True)
    clients: dict[str, Client] = {}
    with contextlib.ExitStack() as stack:
        for n, (name, where) in enumerate(zip("ab", made, strict=True), 1):
            for words in (f"addr add 10.99.0.{n}/24 dev cable", "link set cable up"):
                subprocess.run(["ip", "-n", where, *words.split()], check=True)
            place = short_path / name
            place.mkdir()
            process = Process(where, place)
            process.file.write_text(
                NODE.format(own=name, own_n=n, far_n=3 - n, own_mac=MACS[n], far_mac=MACS[3 - n])
            )
            process.start()
            stack.callback(process.end)
            clients[name] = stack.enter_context(Client(process.socket))
        networks = {
            f"pods-{name}": {"type": "dataplane", "network": "blue", "socket": client.path}
            for name, client in clients.items()
        }
        containers = Podman(short_path, install(short_path / "plugins").parent, networks)
        yield Nodes(containers, clients, made)


def address_of(client: Client, index: int = 0) -> str:
    """Of an attachment, in the order in which they were made."""
    found: str = client.ask("/v1/attachments")["items"][index]["addresses"][0]["address"]
    return found.partition("/")[0]


def asked(nodes: Nodes, name: str, address: str, port: int, fails: bool = False) -> str:
    words = f"echo | nc -w 2 {address} {port}"
    return nodes.podman.inside(name, "sh", "-c", words, fails=fails).strip()


def serve(nodes: Nodes, network: str, name: str) -> None:
    """A container that tells its name to whoever connects to port 8080."""
    words = f"while :; do echo {name} | nc -l -p 8080; done"
    nodes.podman.run(network, "sh", "-c", words, name=name)


def test_containers_talk_over_the_overlay(nodes: Nodes) -> None:
    a, b = nodes.clients["a"], nodes.clients["b"]
    serve(nodes, "pods-b", "one")
    serve(nodes, "pods-b", "two")
    nodes.podman.run("pods-a", "sleep", "600", name="client")
    first, second = address_of(b, 0), address_of(b, 1)

    told = nodes.podman.inside("client", "ping", "-c", "3", "-s", "1400", first)
    assert "3 packets received" in told
    assert nodes.podman.inside("client", "ping", "-c", "1", address_of(a))  # itself

    web = {"protocol": "tcp", "port": 80, "target_port": 8080, "vips": [VIP]}
    a.put("blue", "load-balancers", "web", {**web, "backends": [first, second]})
    answers = {"one": 0, "two": 0}
    for _ in range(24):
        answers[asked(nodes, "client", VIP, 80)] += 1
    assert min(answers.values()) > 2, answers

    closed = {"direction": "in", "action": "block", "protocol": "tcp", "local_ports": 8080}
    b.put("blue", "acls", "rest", {"direction": "in", "action": "allow", "priority": 2})
    b.put("blue", "acls", "closed", {**closed, "priority": 1})
    before = b.stats()["rules"].get("blue/closed", 0)
    asked(nodes, "client", first, 8080, fails=True)
    assert b.stats()["rules"]["blue/closed"] > before
    assert nodes.podman.inside("client", "ping", "-c", "1", first)
    b.delete("blue", "acls", "closed")
    assert asked(nodes, "client", first, 8080) == "one"


def test_nothing_is_left_of_a_container(nodes: Nodes) -> None:
    b = nodes.clients["b"]
    nodes.podman.run("pods-b", "sleep", "600", name="one")
    (held,) = b.ask("/v1/attachments")["items"]
    nodes.podman.remove("one")
    assert b.ask("/v1/attachments")["items"] == [] and b.get("endpoints") == []
    assert not Path(held["netns"]).exists()
    links = subprocess.check_output(["ip", "-n", nodes.netns[1], "-json", "link"])
    assert {link["ifname"] for link in json.loads(links)} == {"lo", "cable"}
    assert "status: " not in nodes.podman.run("pods-b", "ip", "addr")  # and again
    assert b.get("endpoints") == []


def test_a_container_that_is_killed_with_its_runtime_goes(nodes: Nodes) -> None:
    """Nobody calls DEL; the namespace is taken away, as by a reboot of the runtime."""
    b = nodes.clients["b"]
    nodes.podman.run("pods-b", "sleep", "600", name="one")
    (held,) = b.ask("/v1/attachments")["items"]
    subprocess.run(["ip", "netns", "del", Path(held["netns"]).name], check=True)
    deadline = time.monotonic() + PATIENCE
    while b.get("endpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
