"""What bash is told where somebody presses the tab key."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane import cli_words
from dataplane.api import edits, flow_table, resources
from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.model import Acl, Document
from tests.live_node import PATIENCE, ROOT, Process, policy


def completed(line: str, **extra: str) -> list[str]:
    """The words for the last one of a line, which a blank at its end begins."""
    words = shlex.split(line)
    number = len(words) if line.endswith(" ") else len(words) - 1
    asked = {"_DATAPLANE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [sys.executable, "-m", "dataplane"],
        env=os.environ | {"DATAPLANE_SOCKET": "/nowhere.sock"} | asked | extra,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,  # a client of a node waits for a minute
        check=True,
    )
    assert done.stderr == ""
    return [told.removeprefix("plain,") for told in done.stdout.splitlines() if told]


def test_kinds() -> None:
    assert completed("dataplane get ") == completed("dataplane describe ")
    assert {*completed("dataplane get ")} == {*resources.KINDS}
    assert completed("dataplane get ne") == ["networks", "neigh"]
    assert completed("dataplane delete ") == ["networks", *edits.PARTS]


def test_sums() -> None:
    assert cli_words.SUMS == flow_table.SUMS
    assert completed("dataplane flows --by ") == [*flow_table.SUMS]
    assert completed("dataplane flows --by p") == ["pair", "proto", "peer"]


@pytest.fixture
def full(running: Process, node: Client) -> str:
    """The socket of a node that has an ACL of the network, and one of an endpoint."""
    made = policy("web", "db", acls=(Acl(name="guard", direction="in", action="block"),))
    node.apply(dump(Document(node=made)), prune=True)
    rule = {"name": "own", "direction": "in", "action": "allow"}
    node.put("blue", "endpoints", "web", {"addresses": ["10.1.1.2"], "acls": [rule]})
    return str(running.socket)


def test_names(full: str) -> None:
    for line, words in {
        "get endpoints --socket SOCKET -o ": ["text", "wide", "json", "yaml", "name"],
        "describe --socket SOCKET endpoints ": ["blue/web", "blue/db"],
        "describe --socket SOCKET ep blue/w": ["blue/web"],
        "describe --socket SOCKET acl ": ["blue/guard", "blue/web/own"],
        "delete --socket SOCKET acls ": ["blue/guard"],
        "delete --socket SOCKET rs ": ["blue/10.1.2.0/24"],
        "delete --socket SOCKET network ": ["blue"],
        "describe --socket SOCKET nonsense ": [],
        "delete --socket SOCKET nonsense ": [],
        "mtu --socket SOCKET ": ["127.0.0.2"],
        "ping-peer --socket SOCKET 127": ["127.0.0.2"],
        "ping-peer --socket SOCKET 192": [],
    }.items():
        assert completed(f"dataplane {line}".replace("SOCKET", full)) == words, line


def test_the_node_may_be_the_only_one(full: str) -> None:
    assert completed("dataplane mtu ", DATAPLANE_SOCKET=full) == ["127.0.0.2"]


def test_without_a_node_there_are_none_at_once(tmp_path: Path) -> None:
    """Nobody there, and somebody who never answers."""
    for line in ("dataplane mtu ", "dataplane describe peers ", "dataplane delete acls b"):
        assert completed(line) == []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen()
        assert completed("dataplane mtu ", DATAPLANE_SOCKET=str(tmp_path / "deaf.sock")) == []
