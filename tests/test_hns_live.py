"""docs/hns.md is followed to a ping on a running node; its objects outlive a crash."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.api.client import Client
from dataplane.errors import DataplaneError
from dataplane.hns.normal import POLICIES
from tests import hns_documents as d
from tests.hcn_namespaces import RUN, guid, named
from tests.live_node import Process

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/hns.md").read_text().replace("5f1c2a52", RUN)  # as namespaces are named
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)
NAMESPACES = guid(1), guid(2)


@pytest.fixture
def place(
    netns: Callable[..., list[str]], tmp_path: Path
) -> Iterator[tuple[Process, dict[str, str]]]:
    """The files of the how-to, and a node; the namespaces it names are of this test."""
    node, one, two = netns("n", "a", "b")
    names = dict(zip(NAMESPACES, (one, two), strict=True))
    for kind, name, text in BLOCKS:
        if kind in ("json", "yaml") and name:
            (tmp_path / name).write_text(text)
    process = Process(node, tmp_path)
    process.file = tmp_path / "node.yaml"
    yield process.start(), names
    process.end()


def test_howto(place: tuple[Process, dict[str, str]]) -> None:
    process, names = place
    with named(names):
        commands = [line for kind, _, text in BLOCKS if kind == "sh" for line in text.splitlines()]
        assert any("ping" in command for command in commands)
        for command in commands:
            run(command, process)
        process.end(signal.SIGKILL)
        process.start()
        run(f"ip netns exec {NAMESPACES[0]} ping -c 3 -W 5 10.244.3.6", process)
        with Client(process.socket) as client:
            exported = client.hns("GET", "export")
            assert client.hns("GET", "networks")[0]["Name"] == "flannel.4096"
            again = client.hns("POST", "batch", exported["Calls"])
            assert client.hns("GET", "export") == exported and again


def run(command: str, process: Process) -> str:
    """As the reader types it."""
    words = shlex.split(command, comments=True)
    if not words or words[:3] == ["ip", "netns", "add"] or words[1:2] == ["run"]:
        return ""  # done by the fixtures
    if words[0] == "dataplane":
        words = [sys.executable, "-m", "dataplane", *words[1:], "--socket", str(process.socket)]
        words = [str(process.place / w) if w.endswith(".json") else w for w in words]
    elif words[0] == "curl":
        words = [str(process.socket) if w == "/run/dataplane/win.sock" else w for w in words]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, (command, done.stdout, done.stderr, process.log.read_text()[-800:])
    return done.stdout


def test_every_policy_type_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", TEXT, re.MULTILINE))
    assert rows == {name: kind.fate for name, kind in POLICIES.items()}


def test_errors_over_the_api(node: Client) -> None:
    with pytest.raises(DataplaneError, match=r"QOS is not supported.*0x803b0015"):
        policy = {"Type": "QOS", "Settings": {}}
        node.hns("POST", "endpoints", {"HostComputeNetwork": d.NET, "Policies": [policy]})
    with pytest.raises(DataplaneError, match="0x803b0001"):
        node.hns("GET", f"networks/{d.NET}")
    assert node.hns("GET", "networks") == []


def test_port_taken_over_the_api(node: Client) -> None:
    """Two load balancers of one VIP and port: HNS's own code, and nothing half applied."""
    made = node.hns("POST", "networks", d.network(5000))
    guid = made["ID"]
    try:
        ends = [
            node.hns("POST", "endpoints", d.remote_endpoint(f"10.244.4.{i}", "192.168.2.19", guid))
            for i in (5, 6)
        ]
        for i, end in enumerate(ends):
            balancer = d.balancer([end["ID"]], "10.96.0.10")
            if i == 0:
                first = node.hns("POST", "loadbalancers", balancer)
                continue
            with pytest.raises(DataplaneError, match="0x803b0013"):
                node.hns("POST", "loadbalancers", balancer)
        assert [lb["ID"] for lb in node.hns("GET", "loadbalancers")] == [first["ID"]]
        v1 = node.ask("/networks/")
        assert v1["Success"] is True and v1["Output"][0]["Name"] == "flannel.4096"
    finally:
        node.hns("DELETE", f"networks/{guid}")
    assert node.hns("GET", "endpoints") == node.hns("GET", "loadbalancers") == []


def test_addresses_are_given_and_kept(node: Client) -> None:
    guid = node.hns("POST", "networks", d.network(5000))["ID"]
    try:
        made = node.hns("POST", "endpoints", {"HostComputeNetwork": guid, "Name": "auto"})
        (config,) = made["IpConfigurations"]
        assert config["IpAddress"].startswith("10.244.3.") and config["PrefixLength"] == 24
    finally:
        node.hns("DELETE", f"networks/{guid}")
