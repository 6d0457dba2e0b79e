"""A running node and its control API: the commands, the client, and HTTP itself.

The node runs in a network namespace of its own; its control socket is reached from here.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from dataplane import columns
from dataplane.address import Vni, parse_prefix
from dataplane.api.client import Client
from dataplane.api.openapi import plain
from dataplane.api.resources import KINDS
from dataplane.api.server import OPERATIONS
from dataplane.api.streams import STREAMS
from dataplane.cli import cli
from dataplane.document import dump, dump_json, loads
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, DocumentError, MissingError, NoNodeError, StaleError
from dataplane.model import (
    Acl,
    Document,
    Endpoint,
    Network,
    Node,
    PortRange,
    Tap,
    Underlay,
)
from dataplane.pcap import read
from dataplane.verbs.base import ALIASES
from tests.live_node import DENIED, PATIENCE, ROOT, Process, Wire, policy

KILLS = int(os.environ.get("DATAPLANE_KILLS", "8"))  # 200 by hand


def dataplane(running: Process, *words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, [*words, "--socket", str(running.socket)], input=text)


def request(running: Process, octets: bytes) -> bytes:
    """All that the node answers to such bytes, whose `Host: x` ends the connection too."""
    octets = octets.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(running.socket))
        sock.sendall(octets)
        answer = b""
        while part := sock.recv(1 << 16):
            answer += part
    return answer


# ---- policy ------------------------------------------------------------------------------------


def test_what_is_exported_can_be_applied(running: Process, node: Client) -> None:
    for form in (["export"], ["export", "-o", "json"]):
        text = dataplane(running, *form).output
        before = node.status()["generation"]
        done = dataplane(running, "apply", "-f", "-", "--prune", text=text)
        assert done.exit_code == 0 and "nothing changed" in done.output
        assert node.status()["generation"] == before
        assert loads(text).node == policy("web", "db")


def test_apply_merges_or_prunes(running: Process, node: Client) -> None:
    text = dump(Document(node=policy("web", "cache")))
    before = node.status()["generation"]
    told = dataplane(running, "diff", "-f", "-", "--prune", text=text)
    assert told.exit_code == 1 and "+ endpoint/blue/cache" in told.output, told.output
    dry = dataplane(running, "apply", "-f", "-", "--dry-run", "--prune", text=text)
    assert dry.exit_code == 0 and "not applied" in dry.output
    assert node.status()["generation"] == before
    with pytest.raises(DocumentError, match=r"10\.1\.1\.3 is taken"):
        node.apply(text)  # cache has db's address
    done = dataplane(running, "apply", "-f", "-", "--prune", text=text)
    assert done.exit_code == 0, done.output
    assert "endpoint/blue/cache" in done.output and "removed" in done.output
    assert {e["name"] for e in node.get("endpoints")} == {"blue/web", "blue/cache"}
    assert {"web", "cache"} <= running.links() and "db" not in running.links()
    merged = Node(
        name="a",
        underlay=Underlay(address=ip_address("127.0.0.1")),
        networks=(Network(name="green", vni=Vni(7), prefixes=(parse_prefix("10.9.0.0/16"),)),),
    )
    node.apply(dump(Document(node=merged)))
    assert [n["name"] for n in node.get("networks")] == ["blue", "green"]


def test_stale_changes_are_refused(running: Process, node: Client) -> None:
    generation = node.status()["generation"]
    text = dump(Document(node=policy("web")))
    node.apply(text, prune=True, base=generation)
    with pytest.raises(StaleError, match=f"generation {generation}"):
        node.apply(text, prune=True, base=generation)
    words = ["apply", "-f", "-", "--if-generation", str(generation)]
    assert dataplane(running, *words, text=text).exit_code == 1


def test_one_bad_line_among_many_objects(running: Process, node: Client) -> None:
    """It is named, nothing changes, and that takes less than a second."""
    acls = tuple(
        Acl(name=f"r{i}", direction="in", action="allow", priority=100) for i in range(8000)
    )
    full = policy("web", "db", acls=acls)
    (network,) = full.networks
    subnets = tuple(
        replace(network.remote_subnets[0], prefix=parse_prefix(f"10.{1 + i // 250}.{i % 250}.0/24"))
        for i in range(250, 2250)
    )
    full = replace(full, networks=(replace(network, remote_subnets=subnets),))
    text = dump_json(Document(node=full)).decode()
    lines = text.replace('{"name":"r', '\n{"name":"r')
    bad = lines.replace('"name":"r7777","direction":"in"', '"name":"r7777","direction":"inn"')
    before = node.status()["generation"]
    begin, used = time.monotonic(), running.cpu()
    with pytest.raises(DocumentError) as caught:
        node.apply(bad, name="big.json", prune=True)
    waited, used = time.monotonic() - begin, running.cpu() - used
    (fault,) = caught.value.faults
    assert fault.line == 7779 and fault.path.endswith("acls[7777].direction")
    assert "'inn'" in fault.message and fault.fix
    took = min(waited, used)  # where others use the machine, what it would be without them
    assert 0 < took < 1, f"{took:.2f} s"
    assert node.status()["generation"] == before
    assert node.export() == dump(Document(node=policy("web", "db")))


def test_objects_one_at_a_time(running: Process, node: Client) -> None:
    node.put("blue", "endpoints", "cache", {"addresses": ["10.1.1.9"]})
    assert node.describe("endpoints", "blue/cache")["addresses"] == ["10.1.1.9"]
    assert "cache" in running.links()
    subnet = {"provider_address": "127.0.0.3", "dr_mac": "02:00:00:00:00:03"}
    node.put("blue", "remote-subnets", "10.1.3.0/24", subnet)
    assert "blue/10.1.3.0/24" in {r["name"] for r in node.get("remote-subnets")}
    node.delete("blue", "remote-subnets", "10.1.3.0/24")
    done = dataplane(running, "delete", "ep", "blue/cache")
    assert done.exit_code == 0 and "removed" in done.output
    assert "cache" not in running.links()
    for call in (
        lambda: node.delete("blue", "endpoints", "cache"),
        lambda: node.delete("red"),
        lambda: node.put("blue", "nonsense", "x", {}),
        lambda: node.put("red", "endpoints", "x", {}),
    ):
        with pytest.raises(MissingError):
            call()
    with pytest.raises(DocumentError, match=r"\$\.addresses\[0\]"):
        node.put("blue", "endpoints", "x", {"addresses": ["10.1.1.300"]})
    with pytest.raises(DocumentError, match="the path says x"):
        node.put("blue", "endpoints", "x", {"name": "y", "addresses": ["10.1.1.30"]})
    with pytest.raises(DocumentError, match="unknown key"):
        node.put("blue", "endpoints", "x", {"adresses": ["10.1.1.30"]})


def test_a_document_without_addresses_gets_free_ones_and_keeps_them(
    running: Process, node: Client
) -> None:
    (blue,) = policy().networks
    unnamed = tuple(Endpoint(name=name) for name in ("x1", "x2"))
    text = dump(Document(node=replace(policy(), networks=(replace(blue, endpoints=unnamed),))))
    assert "addresses" not in text
    shown = dataplane(running, "apply", "-f", "-", "--prune", "--dry-run", text=text)
    assert dataplane(running, "apply", "-f", "-", "--prune", text=text).exit_code == 0
    held = {e["name"]: e["addresses"] for e in node.get("endpoints")}
    assert all(address in shown.output for (address,) in held.values()) and len(held) == 2
    for again in (text, dataplane(running, "export").output):
        done = dataplane(running, "apply", "-f", "-", "--prune", text=again)
        assert "nothing changed" in done.output
    less = dump(Document(node=replace(policy(), networks=(replace(blue, endpoints=unnamed[1:]),))))
    assert dataplane(running, "apply", "-f", "-", "--prune", text=less).exit_code == 0
    assert [e["addresses"] for e in node.get("endpoints")] == [held["blue/x2"]]


def test_another_mtu_of_the_underlay_needs_no_restart(
    running: Process, node: Client, wire: Callable[[str], bytes]
) -> None:
    """Open TAPs get theirs, and packets of that size."""
    pid = node.status()["pid"]
    with Wire(running, "db").socket as receiver:
        receiver.bind(("db", 3))  # ETH_P_ALL
        receiver.settimeout(PATIENCE)
        for mtu in (9000, 1400, 1500):
            underlay = replace(policy().underlay, mtu=mtu)
            text = dump(Document(node=replace(policy("web", "db"), underlay=underlay)))
            node.apply(text, prune=True)
            assert running.mtu("web") == running.mtu("db") == mtu - 50
            sent = wire(f"udp 10.1.1.2:4000 > 10.1.1.3:{mtu} len {mtu - 50 - 28}")
            while not (got := receiver.recv(1 << 16)).endswith(sent[34:]):
                pass
            assert len(got) == mtu - 50 + 14
    assert node.status()["pid"] == pid


def test_an_endpoint_without_addresses_gets_free_ones(running: Process, node: Client) -> None:
    """And MAC and device; kept when it is put again, not given to the next one at once."""
    node.put("blue", "endpoints", "x1", {})
    (first,) = node.describe("endpoints", "blue/x1")["addresses"]
    assert first not in ("10.1.0.0", "10.1.0.1", "10.1.1.2", "10.1.1.3")
    node.put("blue", "endpoints", "x1", {"max_flows": 7})
    assert node.describe("endpoints", "blue/x1")["addresses"] == [first]
    node.delete("blue", "endpoints", "x1")
    node.put("blue", "endpoints", "x2", {})
    (second,) = node.describe("endpoints", "blue/x2")["addresses"]
    assert second != first
    assert "x2" in running.links()
    saved = json.loads((running.state / "policy.json").read_text())
    assert first in saved["released"]["blue"] and second not in saved["released"]["blue"]


def test_another_nodes_document_is_refused(node: Client) -> None:
    text = dump(Document(node=policy("web"))).replace("name: a", "name: b")
    with pytest.raises(DataplaneError, match="no node 'a'; there are: b"):
        node.apply(text)


# ---- looking -----------------------------------------------------------------------------------


def test_every_kind_is_listed(running: Process, node: Client) -> None:
    (full, *_) = loads((ROOT / "policies" / "services-dsr.yaml").read_text()).nodes
    taps = tuple(
        replace(n, endpoints=tuple(replace(e, tap=None) for e in n.endpoints))
        for n in full.networks
    )
    host = replace(full.host_port, tap=Tap(name="out")) if full.host_port else None
    wanted = replace(policy(), networks=taps, host_port=host)
    node.apply(dump(Document(node=wanted)), prune=True)
    assert set(KINDS) == set(columns.KINDS) - {"flows", "sums"}
    for kind in KINDS:
        items = node.get(kind)
        for form in ("text", "wide", "name", "json", "yaml"):
            told = dataplane(running, "get", kind, "-o", form)
            assert told.exit_code == 0, (kind, form, told.output)
            for item in items[:3]:
                assert item["name"] in told.output, (kind, form)
        for item in items[:3]:
            assert node.describe(kind, item["name"])["name"] == item["name"]
            told = dataplane(running, "describe", kind, item["name"])
            assert told.exit_code == 0 and item["name"] in told.output
    assert {kind for word, kind in ALIASES.items()} <= set(KINDS)


def test_one_can_be_called_by_its_own_name(node: Client) -> None:
    assert node.describe("endpoints", "web") == node.describe("endpoints", "blue/web")
    with pytest.raises(MissingError, match="no 'nobody'"):
        node.describe("endpoints", "nobody")
    with pytest.raises(MissingError):
        node.get("nonsense")


def test_trace_is_that_of_the_policy(running: Process, node: Client) -> None:
    packet = "tcp 10.1.1.2:40000 > 10.1.2.9:80"
    live = dataplane(running, "trace", packet)
    document = CliRunner().invoke(cli, ["trace", "-f", str(running.file), packet])
    assert live.exit_code == document.exit_code == 0
    assert live.output == document.output
    assert dataplane(running, "trace", packet, "--mermaid").output.startswith("flowchart")
    dropped = dataplane(running, "trace", "tcp 10.1.1.2:1 > 10.1.77.1:80", "-o", "json")
    assert dropped.exit_code == 1
    assert json.loads(dropped.output)["reason"] == "no_such_endpoint"
    assert dataplane(running, "trace", "tcp nonsense").exit_code == 2


def test_status_and_doctor(running: Process, node: Client) -> None:
    told = dataplane(running, "status")
    assert told.exit_code == 0 and "ready" in told.output
    assert dataplane(running, "doctor").exit_code == 0
    for words in (["stats"], ["stats", "io"], ["stats", "layers"], ["stats", "--rate", "0.1"]):
        assert dataplane(running, *words).exit_code == 0
    assert "law    rx" in dataplane(running, "stats").output
    subprocess.run(["ip", "-n", running.netns, "link", "del", "db"], check=True)
    told = dataplane(running, "doctor")
    assert told.exit_code == 1 and "blue/db: TAP db is gone" in told.output
    told = dataplane(running, "status")
    assert told.exit_code == 1 and "NOT READY" in told.output
    assert b" 503 " in request(running, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in request(running, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    node.apply(dump(Document(node=policy("web"))), prune=True)
    node.apply(dump(Document(node=policy("web", "db"))), prune=True)
    assert dataplane(running, "doctor").exit_code == 0


def test_metrics_can_be_scraped(node: Client) -> None:
    families = {f.name: f for f in text_string_to_metric_families(node.metrics())}
    totals = {name: families[f"dataplane_{name}"].samples[0].value for name in ("rx", "dropped")}
    assert totals["rx"] >= totals["dropped"] >= 0
    assert {s.labels["port"] for s in families["dataplane_port_rx_frames"].samples} >= {"blue/web"}


def test_openapi_tells_every_operation(running: Process, node: Client) -> None:
    answer = request(running, b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    for operation in OPERATIONS:
        assert operation.method.lower() in told["paths"][plain(operation.path)]


def test_bundle_holds_what_one_asks_for_first(running: Process, tmp_path: Path) -> None:
    file = tmp_path / "bundle.tar.gz"
    done = dataplane(running, "bundle", "-w", str(file))
    assert done.exit_code == 0, done.output
    with tarfile.open(file) as tar:
        names = {name.removeprefix("dataplane-a/") for name in tar.getnames()}
        assert {"status.json", "policy.json", "findings.json", "flows.json"} <= names
        policy_file = tar.extractfile("dataplane-a/policy.json")
        assert policy_file is not None and loads(policy_file.read()).node is not None
    assert dataplane(running, "bundle", "-w", str(tmp_path / "no" / "way")).exit_code == 1


def test_words_of_vfpctrl(running: Process, node: Client) -> None:
    for name, command in cli.commands["vfp"].commands.items():  # type: ignore[attr-defined]
        if name == "process-tuples":
            told = dataplane(running, "vfp", name, "tcp 10.1.1.2:1 > 10.1.2.9:80")
        else:
            told = dataplane(running, "vfp", name)
        assert told.exit_code == 0 and told.output, (name, told.output)
        assert command.help


# ---- bad requests ------------------------------------------------------------------------------

BAD = {
    b"NONSENSE\r\n\r\n": b"400",
    b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n": b"404",
    b"GET /v1/nonsense HTTP/1.1\r\nHost: x\r\n\r\n": b"404",
    b"POST /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n": b"405",
    b"GET /v1/flows?filter=x HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"GET /v1/flows?filter=ip%3D1.2.3 HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"GET /v1/flows?limit=-1 HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"GET /v1/flows?by=nothing HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"GET /v1/policy?format=xml HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]": b"422",
    b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\xff\xfe\0": b"422",
    b"DELETE /v1/networks/blue?dry_run=maybe HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
    b"DELETE /v1/networks/blue HTTP/1.1\r\nHost: x\r\nIf-Match: new\r\n\r\n": b"400",
    b"DELETE /v1/networks/blue HTTP/1.1\r\nHost: x\r\nIf-Match: 1000000\r\n\r\n": b"412",
    b"POST /v1/trace HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}": b"400",
    b"POST /v1/trace HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n" + b"[" * 11: b"400",
    b'POST /v1/trace HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"frame":"zz"}': b"400",
    b'POST /v1/trace HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"frame":""}': b"200",
    b'POST /v1/trace HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"packet":1}': b"400",
}


@pytest.mark.parametrize("octets", BAD)
def test_bad_requests_are_answered(running: Process, node: Client, octets: bytes) -> None:
    before = node.status()["generation"]
    answer = request(running, octets)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == BAD[octets], answer
    if b"problem+json" in head:
        problem = json.loads(body)
        assert problem["status"] == int(BAD[octets]) and problem["title"]
    assert node.status()["generation"] == before


def test_too_large_a_body_is_refused(running: Process, node: Client) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(running.socket))
        sock.settimeout(PATIENCE)
        size = (64 << 20) + 1
        sock.sendall(b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(bytes(size))
        assert b" 413 " in sock.recv(4096)
    assert node.status()["ready"]


def test_clients_that_say_nothing_stall_nobody(running: Process, node: Client) -> None:
    silent = []
    for i in range(500):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(running.socket))
        if i % 2:
            sock.sendall(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n" * 3)  # and never reads
        silent.append(sock)
    begin = time.monotonic()
    assert node.status()["ready"]
    assert time.monotonic() - begin < PATIENCE
    for sock in silent:
        sock.close()


# ---- one node ----------------------------------------------------------------------------------


def test_socket_is_its_owners(running: Process) -> None:
    assert running.socket.stat().st_mode & 0o777 == 0o600
    assert (running.state).stat().st_mode & 0o777 == 0o700
    assert (running.state / "policy.json").stat().st_mode & 0o777 == 0o600


def test_a_node_that_changes_its_ports_is_not_taken_for_dead(
    running: Process, node: Client
) -> None:
    """Forwarding stops for a moment at each of them; the node looks at it all the while."""
    text = {n: dump(Document(node=policy(*["web", "db"][:n]))) for n in (1, 2)}
    for turn in range(100):
        node.apply(text[1 + turn % 2], prune=True)
        assert node.status()["forwarding"]
    assert running.process is not None and running.process.poll() is None


def test_a_client_that_was_idle_asks_again(running: Process, node: Client) -> None:
    node.status()
    time.sleep(6)  # longer than the node keeps a silent connection
    assert node.status()["ready"]


def test_a_second_socket_is_for_reading_only(running: Process, node: Client) -> None:
    assert running.reading.stat().st_mode & 0o777 == 0o660
    with Client(running.reading) as reader:
        assert reader.status()["node"] == "a" and reader.get("endpoints") == node.get("endpoints")
        events = reader.events(("config",))
        assert next(events)["kind"] == "listening"
        events.close()
        for call in (
            lambda: reader.apply(dump(Document(node=policy("web")))),
            lambda: reader.put("blue", "endpoints", "x", {}),
            lambda: reader.delete("blue"),
            reader.restart,
            lambda: next(reader.events(frames=True)),
            lambda: next(reader.capture()),
        ):
            with pytest.raises(DataplaneError):
                call()
    assert {e["name"] for e in node.get("endpoints")} == {"blue/web", "blue/db"}


def test_who_changes_something_is_named_in_the_log(running: Process, node: Client) -> None:
    """As it was asked for, so nobody begins a line of his own."""
    before = len(running.log.read_text())
    asked = {
        "POST /v1/attachments?config=none": '{"valid": []}',
        "POST /hcn/networks": "{}",
        "PUT /v1/networks/%0aINFO": "{}",
        "POST /v1/trace": "{}",
        "POST /v1/ping": "{}",
    }
    for line, body in asked.items():
        head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        assert request(running, f"{head}{body}".encode()).startswith(b"HTTP/1.1 ")
    log = running.log.read_text()[before:]
    found = re.findall(r"(\w+ /\S+) by uid (\d+), pid (\d+)$", log, re.MULTILINE)
    changes = ("POST /v1/attachments", "POST /hcn/networks", "PUT /v1/networks/%0aINFO")
    assert found == [(line, str(os.getuid()), str(os.getpid())) for line in changes]


def test_a_second_node_is_refused(running: Process) -> None:
    command = [sys.executable, "-m", "dataplane", "run", str(running.file)]
    places = {
        "another process has it": ["--state", str(running.state), "--no-control"],
        "another node listens": ["--control", str(running.socket)],
    }
    for message, words in places.items():
        done = subprocess.run(
            ["ip", "netns", "exec", running.netns, *command, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert done.returncode == 1, done.stderr
        if "--state" in words:
            assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert running.answers()


def test_without_a_node(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["status", "--socket", str(tmp_path / "none")])
    assert done.exit_code == 3 and "no node answers" in done.output


def test_kill_at_any_moment_loses_nothing(netns: Callable[..., list[str]], tmp_path: Path) -> None:
    """Each start finds the last generation that was acknowledged, or the one under way, whole."""
    (name,) = netns("k")
    process = Process(name, tmp_path)
    process.file.write_text(dump(Document(node=policy("web"))))
    dice = random.Random(4)
    known = 1
    for _ in range(KILLS):
        process.start()
        with Client(process.socket) as client:
            status = client.status()
            assert status["generation"] in (known, known + 1)
            known = status["generation"]
            assert client.policy()["node"] == json.loads(dump_json(numbered(known)))["node"]
        known = _applies_until_killed(process, known, dice.uniform(0, 0.15))
    process.start()
    assert process.end() == 0
    assert "web" not in process.links()


def test_addresses_given_and_released_outlive_a_kill(
    netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Who has one keeps it, and one that was released is not the next to be given."""
    process = Process(*netns("g"), tmp_path)
    process.file.write_text(dump(Document(node=policy("web"))))
    process.start()
    held = {}
    with Client(process.socket) as client:
        for name in ("x1", "x2"):
            client.put("blue", "endpoints", name, {})
            (held[name],) = client.describe("endpoints", f"blue/{name}")["addresses"]
        client.delete("blue", "endpoints", "x1")
    for turn in range(2):
        process.end(signal.SIGKILL)
        process.start()
        with Client(process.socket) as client:
            assert client.describe("endpoints", "blue/x2")["addresses"] == [held["x2"]]
            client.put("blue", "endpoints", "x3", {})
            (given,) = client.describe("endpoints", "blue/x3")["addresses"]
            assert given not in held.values()
            held[f"x3 of turn {turn}"] = given
            client.delete("blue", "endpoints", "x3")
    assert process.end() == 0


def test_what_cannot_change_while_it_runs_begins_with_the_file(
    netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Refused, and of no effect in FILE alone; with --from-file it holds. Generations go on, given
    addresses and released ones are kept, and of a process that was killed no TAP is left."""
    process = Process(*netns("f"), tmp_path)
    process.file.write_text(dump(Document(node=policy("web", "db"))))
    process.start()
    with Client(process.socket) as client:
        for name in ("x1", "x2"):
            client.put("blue", "endpoints", name, {})
        given = client.describe("endpoints", "blue/x2")["addresses"]
        (released,) = client.describe("endpoints", "blue/x1")["addresses"]
        generation = client.delete("blue", "endpoints", "x1")["generation"]
        text = elsewhere("10.1.1.7")
        with pytest.raises(DataplaneError, match=r"underlay cannot change .* with --from-file"):
            client.apply(text, prune=True)
    process.file.write_text(text)
    assert process.end() == 0
    process.start()
    with Client(process.socket) as client:
        assert client.status()["generation"] == generation
        assert client.policy()["node"]["underlay"].get("port", 4789) == 4789
    process.end(signal.SIGKILL)
    assert {"web", "db", "x2"} <= process.links()
    process.words = ("--from-file",)
    process.start()
    with Client(process.socket) as client:
        assert client.status()["generation"] == generation + 1
        assert client.policy()["node"]["underlay"]["port"] == 4790
        assert client.describe("endpoints", "blue/x2")["addresses"] == given
    saved = json.loads((process.state / "policy.json").read_text())
    assert {released, "10.1.1.2", "10.1.1.3"} <= {*saved["released"]["blue"]}
    assert process.links() & {"web", "db", "x2"} == {"web", "x2"}
    assert process.addresses("web") == {"10.1.1.7"}
    assert process.end() == 0


def elsewhere(address: str) -> str:
    """Another port of the underlay, another address of web, no db, and x2 by its name alone."""
    node = policy("web")
    (blue,) = node.networks
    web = replace(blue.endpoints[0], addresses=(ip_address(address),))
    blue = replace(blue, endpoints=(web, Endpoint(name="x2")))
    underlay = replace(node.underlay, port=4790)
    return dump(Document(node=replace(node, underlay=underlay, networks=(blue,))))


def test_from_file_needs_a_file_that_can_be_used(tmp_path: Path) -> None:
    words = ["run", "--state", str(tmp_path / "state"), "--no-control", "--from-file"]
    command = [sys.executable, "-m", "dataplane"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2 and "Give its FILE" in done.stderr


def numbered(generation: int) -> Document:
    """The policy of that generation: every one tells which it is."""
    if generation == 1:
        return Document(node=policy("web"))
    acl = Acl(name=f"g{generation}", direction="in", action="allow")
    return Document(node=policy("web", acls=(acl,)))


def _applies_until_killed(process: Process, known: int, seconds: float) -> int:
    """The last generation that was acknowledged."""
    assert process.process is not None
    killer = subprocess.Popen(["sh", "-c", f"sleep {seconds:.3f}; kill -9 {process.process.pid}"])
    try:
        with Client(process.socket) as client:
            while True:
                done = client.apply(dump_json(numbered(known + 1)), prune=True)
                assert done["generation"] == known + 1
                known += 1
    except NoNodeError:
        pass
    killer.wait()
    process.process.wait()
    return known


def test_engine_goes_on_from_a_generation() -> None:
    with Engine(generation=41) as engine:
        assert engine.commit(policy("web")) == 42
    with pytest.raises(ValueError, match="out of range"):
        Engine(generation=-1)


# ---- as it happens -----------------------------------------------------------------------------


def until(events: Iterator[dict[str, Any]], condition: Callable[[dict[str, Any]], bool]) -> Any:
    """The first event that meets it."""
    return next(event for event in events if condition(event))


ALLOWED = "udp 10.1.1.2:4{n:03} > 10.1.2.9:53"


def test_events_tell_of_drops_flows_and_commits(
    node: Client, wire: Callable[[str], bytes], running: Process
) -> None:
    with Client(running.socket) as listener:
        events = listener.events(("drop", "new", "config"), ["port=53"])
        assert next(events)["kind"] == "listening"
        wire(DENIED)
        drop = until(events, lambda e: e["kind"] == "drop")
        assert drop["reason"] == "no_such_endpoint" and drop["in_port"] == "blue/web"
        assert (drop["src"], drop["dport"], drop["vni"]) == ("10.1.1.2", 53, 4096)
        assert drop["text"].startswith("udp 10.1.1.2:4000 > 10.1.77.1:53")
        wire(ALLOWED.format(n=1))
        new = until(events, lambda e: e["kind"] == "new")
        assert (new["sport"], new["out_port"]) == (4001, "underlay")
        done = node.put("blue", "endpoints", "cache", {"addresses": ["10.1.1.9"]})
        config = until(events, lambda e: e["kind"] == "config")
        assert config["generation"] == done["generation"]
        assert "blue/cache" in {c["name"] for c in config["changes"]}


def test_events_tell_of_peers_that_leave_and_come_again(running: Process, node: Client) -> None:
    place, peer = ("blue", "remote-subnets", "10.1.3.0/24"), "127.0.0.3"
    told = []
    with Client(running.socket) as listener:
        events = listener.events(("peers",))
        assert next(events)["kind"] == "listening"
        for turn in range(3):
            if turn % 2:
                node.delete(*place)
            else:
                node.put(*place, {"provider_address": peer, "dr_mac": "02:00:00:00:00:03"})
            event = until(events, lambda e: e["name"] == peer)
            told.append((event["before"], event["state"]))
    state = told[0][1]
    assert told == [(None, state), (state, "gone"), (None, state)] and state != "gone"


def test_stats_monitor_capture_and_trace_agree_on_a_drop(
    running: Process, node: Client, wire: Callable[[str], bytes], tmp_path: Path
) -> None:
    """Each names the same layer, reason and rule."""
    acl = Acl(
        name="no-ntp",
        direction="out",
        action="block",
        protocol="udp",
        remote_ports=(PortRange(123, 123),),
    )
    node.apply(dump(Document(node=policy("web", "db", acls=(acl,)))), prune=True)
    before = node.stats()["reasons"].get("acl_deny", 0)
    words = "udp 10.1.1.2:4000 > 10.1.2.9:123"
    command = [sys.executable, "-m", "dataplane"]
    asked = ["--socket", str(running.socket), "--count", "1"]
    looking = [
        subprocess.Popen([*command, *more, *asked], stdout=subprocess.PIPE, cwd=ROOT)
        for more in (
            ["monitor", "drop", "--port", "123", "-o", "json"],
            ["capture", "--point", "drop", "--port", "123"],
            ["trace", "--drops", "--filter", "port=123", "-o", "json"],
        )
    ]
    frame = b""
    deadline = time.monotonic() + PATIENCE
    while any(p.poll() is None for p in looking) and time.monotonic() < deadline:
        frame = wire(words)
        time.sleep(0.1)
    told = [p.communicate(timeout=PATIENCE)[0] for p in looking]
    assert [p.returncode for p in looking] == [0, 0, 0]
    event = json.loads(told[0])
    named = (event["layer"], event["reason"], event["rule"])
    assert named == ("acl", "acl_deny", "blue/no-ntp")
    (tmp_path / "drop.pcapng").write_bytes(told[1])
    (packet,) = read(tmp_path / "drop.pcapng")
    assert packet.data == frame and packet.interface == "blue/web"
    assert packet.comment == "drop layer=acl reason=acl_deny rule=blue/no-ntp in=blue/web"
    walk = json.loads(told[2])["walk"]
    assert (walk["reason"], walk["rule"]) == named[1:]
    simulated = dataplane(running, "trace", words, "-o", "json")
    assert json.loads(simulated.output)["rule"] == named[2]
    after = node.stats()
    assert after["reasons"]["acl_deny"] > before
    told_drops = dataplane(running, "stats", "drops").output
    assert any(line.split()[:2] == ["acl_deny", "acl"] for line in told_drops.splitlines())


def test_capture_of_a_packets_way(
    running: Process, wire: Callable[[str], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "way.pcapng"
    with Client(running.socket) as listener, file.open("wb") as out:
        parts = listener.capture(("rx", "encap"), ["dport=53", "sport=4100"], count=2)
        out.write(next(parts))  # the head: it listens
        frame = wire(ALLOWED.format(n=100))
        for part in parts:
            out.write(part)
    rx, encap = read(file)
    assert rx.data == frame and rx.comment == "rx in=blue/web"
    assert encap.interface == "underlay" and encap.data.endswith(frame[34:])
    assert abs(rx.time_ns - time.time_ns()) < 60e9


def test_readers_of_both_sockets_see_all(
    running: Process, node: Client, wire: Callable[[str], bytes], tmp_path: Path
) -> None:
    """A capture on one goes on, whole, while readers of the other come and go."""
    file, sports = tmp_path / "drops.pcapng", range(5000, 5100)
    with Client(running.socket) as owner, Client(running.reading) as reader:
        parts = owner.capture(("drop",), ["dport=53"], count=len(sports))
        drops = reader.events(("drop",), ["dport=53"])
        head = next(parts)
        assert next(drops)["kind"] == "listening"
        for sport in sports:
            brief = reader.events(("config",))
            assert next(brief)["kind"] == "listening"
            wire(DENIED.replace("4000", str(sport)))
            brief.close()
        told = [next(drops)["sport"] for _ in sports]
        drops.close()
        file.write_bytes(head + b"".join(parts))
    assert told == list(sports)
    assert [int.from_bytes(packet.data[34:36]) for packet in read(file)] == list(sports)


def test_a_listener_that_never_reads_stalls_nobody(
    running: Process, node: Client, wire: Callable[[str], bytes]
) -> None:
    """It loses events; the node counts every packet, and others listen on."""
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    silent.connect(str(running.socket))
    silent.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    before = node.stats()["reasons"].get("no_such_endpoint", 0)
    deadline = time.monotonic() + 4 * PATIENCE

    def dropped() -> int:
        return int(node.stats()["reasons"].get("no_such_endpoint", 0)) - before

    with Client(running.socket) as listener:
        events = listener.events(("drop",), ["dport=99"])
        next(events)
        for n in range(20_000):
            wire(DENIED)
            while n % 500 == 499 and dropped() < n - 100:  # the TAP holds but a thousand
                assert time.monotonic() < deadline
                time.sleep(0.005)
        wire(DENIED.replace(":53", ":99"))
        assert until(events, lambda e: e["kind"] == "drop")["dport"] == 99
    while dropped() < 20_001:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    silent.close()


def test_streams_of_a_socket_are_so_many(running: Process, node: Client) -> None:
    """One more is refused, and served once another has ended; the other socket has its own."""

    def listening(path: Path) -> Iterator[dict[str, Any]]:
        events = Client(path).events(("config",))
        assert next(events)["kind"] == "listening"
        return events

    with contextlib.ExitStack() as opened:
        streams = [listening(running.reading) for _ in range(STREAMS)]
        for stream in (*streams, listening(running.socket)):
            opened.callback(stream.close)
        with pytest.raises(DataplaneError, match=f"{STREAMS} streams .* no more are served"):
            listening(running.reading)
        streams[0].close()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(DataplaneError):
                opened.callback(listening(running.reading).close)
                break
            time.sleep(0.02)
        else:
            pytest.fail("the place of a stream that ended is not given again")


def test_nothing_is_observed_when_nobody_listens(running: Process, node: Client) -> None:
    for _ in range(3):
        with Client(running.socket) as listener:
            events = listener.events()
            next(events)
            events.close()
    assert node.status()["ready"]
