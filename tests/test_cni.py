"""The CNI plugin against a running node: the specification's commands, versions and errors, and
that nothing is left of a container that goes, however it goes."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.api.client import Client
from dataplane.cni import plugin
from dataplane.cni.install import install
from dataplane.document import dump
from dataplane.model import Document, Node
from tests.cni_runtime import PLUGINS, Runtime
from tests.live_node import PATIENCE, Process, end_successor, policy

VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
needs_plugins = pytest.mark.skipif(
    not Path(PLUGINS, "host-local").exists(), reason="containernetworking-plugins is missing"
)


def document() -> Node:
    return policy("web")


@pytest.fixture(scope="module")
def running(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    (netns,) = module_netns("n")
    process = Process(netns, tmp_path_factory.mktemp("cni"))
    process.file.write_text(dump(Document(node=document())))
    process.start()
    yield process
    process.end()


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def runtime(running: Process, executable: Path) -> Iterator[Runtime]:
    """Of a node that has no container, before and after."""
    yield Runtime(executable, network="blue", socket=str(running.socket))
    with Client(running.socket) as client:
        client.ask("/healthz")
        for item in client.ask("/v1/attachments")["items"]:
            client._value("DELETE", f"/v1/attachments/{item['container']}/{item['ifname']}")


def attached(running: Process) -> list[str]:
    with Client(running.socket) as client:
        told = client.ask("/v1/attachments")["items"]
    return [f"{item['container']}/{item['ifname']}" for item in told]


def links(netns: str) -> dict[str, dict[str, Any]]:
    words = ["ip", "-n", netns, "-json", "addr"]
    told = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return {link["ifname"]: link for link in told}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- the specification -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_comes_and_goes(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]], version: str
) -> None:
    (pod,) = netns("pod")
    told = runtime.add("one", pod, cniVersion=version).value
    assert told["cniVersion"] == version
    (interface,) = told["interfaces"]
    (ip,) = told["ips"]
    link = links(pod)["eth0"]
    assert interface["name"] == "eth0" and interface["mac"] == link["address"]
    assert interface["sandbox"] == f"/run/netns/{pod}"
    assert interface.get("mtu") == (link["mtu"] if version == "1.1.0" else None)
    assert ip.get("version") == ("4" if version < "1" else None)
    assert ip["address"].endswith("/16") and ip["interface"] == 0
    (own,) = (a for a in link["addr_info"] if a["family"] == "inet")
    assert ip["address"] == f"{own['local']}/{own['prefixlen']}"
    assert told["routes"] == [{"dst": "0.0.0.0/0", "gw": ip["gateway"]}]
    if version >= "0.4.0":
        assert runtime.call("CHECK", "one", pod, cniVersion=version, prevResult=told).rc == 0
    runtime.delete("one", pod, cniVersion=version, prevResult=told)
    assert "eth0" not in links(pod) and attached(running) == []
    runtime.delete("one", pod, cniVersion=version)
    runtime.delete("one", "")


def test_versions_are_told(runtime: Runtime) -> None:
    told = runtime.call("VERSION", stdin=b"").value
    assert told == {"cniVersion": "1.1.0", "supportedVersions": VERSIONS}


def test_what_is_asked_for_is_had(runtime: Runtime, netns: Callable[..., list[str]]) -> None:
    (pod,) = netns("pod")
    told = runtime.add(
        "one",
        pod,
        mtu=1300,
        runtimeConfig={"ips": ["10.1.1.77/24"], "mac": "0e:2a:00:00:00:77"},
        dns={"nameservers": ["10.1.0.53"]},
    )
    link = links(pod)["eth0"]
    assert (told.addresses, link["mtu"]) == (["10.1.1.77/16"], 1300)
    assert link["address"] == "0e:2a:00:00:00:77"
    assert told.value["dns"] == {"nameservers": ["10.1.0.53"]}
    older = {"CNI_ARGS": "IgnoreUnknown=1;IP=10.1.1.78"}
    words = runtime.add("two", pod, ifname="eth1", env=older)
    assert words.addresses == ["10.1.1.78/16"]
    labels = [{"key": "app", "value": "web"}]
    args = {"cni": {"ips": ["10.1.1.79"], "labels": labels}, "x-unknown": 1}
    newer = runtime.add("three", pod, ifname="eth2", env=older, args=args)
    assert newer.addresses == ["10.1.1.79/16"]
    both = {"args": args, "runtimeConfig": {"ips": ["10.1.1.80"]}}
    assert runtime.add("four", pod, ifname="eth3", **both).addresses == ["10.1.1.80/16"]


def test_containers_of_one_network_have_acls_of_their_own(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    """Beside those of all, in front of them where priorities are equal, or by name in their
    place."""
    pods = dict(zip(("client", "plain", "closed", "open"), netns(*"abcd"), strict=True))
    rest, shut = (
        {"name": "rest", "direction": "in", "action": "allow"},
        {"name": "no-echo", "direction": "in", "action": "block", "protocol": "icmp"},
    )
    opened = shut | {"action": "allow"}
    told = {
        name: runtime.add(name, pods[name], endpoint=endpoint, **more)
        for name, endpoint, more in (
            ("client", {}, {}),
            ("plain", {"acls": [rest]}, {}),
            ("closed", {"acls": [rest]}, {"runtimeConfig": {OWN: {"acls": [shut]}}}),
            ("open", {"acls": [shut]}, {"runtimeConfig": {OWN: {"acls": [opened]}}}),
        )
    }

    def answers(name: str) -> bool:
        address = told[name].addresses[0].partition("/")[0]
        words = ["ip", "netns", "exec", pods["client"], "ping", "-c1", "-W1", address]
        return subprocess.run(words, stdout=subprocess.DEVNULL).returncode == 0

    assert answers("plain") and answers("open")
    with Client(running.socket) as client:
        before = client.stats()["rules"]
        assert not answers("closed")
        after = client.stats()["rules"]
    counted = [name for name in after if after[name] != before.get(name)]
    assert len(counted) == 1 and counted[0].endswith("closed-eth0/no-echo"), counted


def test_results_of_plugins_before_are_handed_on(
    runtime: Runtime, netns: Callable[..., list[str]]
) -> None:
    (pod,) = netns("pod")
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0", "sandbox": f"/run/netns/{pod}"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "x-unknown": [1],
    }
    told = runtime.add("one", pod, prevResult=before).value
    assert [i["name"] for i in told["interfaces"]] == ["other0", "eth0"]
    assert [ip["interface"] for ip in told["ips"]] == [0, 1]
    assert told["routes"][0] == {"dst": "192.0.2.0/24"} and told["x-unknown"] == [1]


OWN = "dataplane.endpoint"
BAD = {"name": "own", "direction": "in", "action": "fly"}
ALLOWING = {"endpoint": {"acls": [{"name": "rest", "direction": "in", "action": "allow"}]}}


@pytest.mark.parametrize(
    ("code", "message", "command", "change"),
    [
        (1, "version 9.9", "ADD", {"cniVersion": "9.9"}),
        (2, 'runtimeConfig "bandwidth"', "ADD", {"runtimeConfig": {"bandwidth": {}}}),
        (3, "one has no interface eth0", "CHECK", {"prevResult": {"ips": []}}),
        (7, "$.acls[0].action", "ADD", {**ALLOWING, "runtimeConfig": {OWN: {"acls": [BAD]}}}),
        (7, "$.colour", "ADD", {**ALLOWING, "runtimeConfig": {OWN: {"colour": "red"}}}),
        (7, f'"{OWN}" is no object', "ADD", {"runtimeConfig": {OWN: [1]}}),
        (7, '"acls" is no list', "ADD", {**ALLOWING, "runtimeConfig": {OWN: {"acls": 7}}}),
        (7, '"args" is no object', "ADD", {"args": [1]}),
        (7, "the policy cannot be used", "ADD", {"args": {"cni": {"ips": ["192.0.2.1"]}}}),
        (4, "CNI_CONTAINERID is not set", "ADD", {"container": ""}),
        (4, "CNI_IFNAME is not set", "DEL", {"ifname": ""}),
        (4, "CNI_IFNAME has other characters", "ADD", {"ifname": "a/b"}),
        (4, "CNI_IFNAME has other characters", "ADD", {"ifname": "eth0:1"}),
        (4, "CNI_IFNAME has other characters", "DEL", {"ifname": "eth 0"}),
        (4, "is no name of 1 to 15 characters", "ADD", {"ifname": "e" * 16}),
        (4, "is no name of 1 to 15 characters", "ADD", {"ifname": ".."}),
        (4, "CNI_CONTAINERID has other characters", "ADD", {"container": "a/b"}),
        (4, "begins with no letter or digit", "ADD", {"container": "-one"}),
        (4, "begins with no letter or digit", "DEL", {"container": ".one"}),
        (4, "CNI_NETNS is not set", "ADD", {"netns": ""}),
        (4, "CNI_COMMAND 'FLY'", "FLY", {}),
        (6, "no JSON object", "ADD", {"stdin": b"{"}),
        (6, "no JSON object", "ADD", {"stdin": b"[" * 100_000}),
        (6, "no JSON object", "ADD", {"stdin": b"[1]"}),
        (7, '"network" is no text', "ADD", {"network": 7}),
        (7, '"name" is no text', "ADD", {"name": ""}),
        (7, "there is no network 'red'", "ADD", {"network": "red"}),
        (7, "the policy cannot be used", "ADD", {"endpoint": {"colour": "red"}}),
        (7, "the policy cannot be used", "ADD", {"runtimeConfig": {"ips": ["192.0.2.1/24"]}}),
        (7, "no IPAM plugin nobody", "ADD", {"ipam": {"type": "nobody"}}),
        (7, "ipam.type is no plugin's name", "ADD", {"ipam": {"type": "../../bin/sh"}}),
        (7, "CHECK needs prevResult", "CHECK", {}),
        (8, "no such network namespace", "ADD", {"netns": "nowhere"}),
        (8, "would take it for its own", "ADD", {"env": {"CNI_NETNS": "/proc/self/ns/net"}}),
        (11, "no node answers", "ADD", {"socket": "/nowhere.sock"}),
        (11, "no node answers", "DEL", {"socket": "/nowhere.sock"}),
        (50, "no node answers", "STATUS", {"socket": "/nowhere.sock"}),
    ],
)
def test_errors_have_their_codes(
    runtime: Runtime,
    running: Process,
    netns: Callable[..., list[str]],
    code: int,
    message: str,
    command: str,
    change: dict[str, Any],
) -> None:
    (pod,) = netns("pod")
    told = runtime.call(command, **{"container": "one", "netns": pod, **change})
    assert told.rc == 1 and told.value["code"] == code
    assert message in f"{told.value['msg']} {told.value['details']}", told.raw
    assert told.value["cniVersion"] in VERSIONS
    assert "eth0" not in links(pod) and attached(running) == []


def test_an_answer_of_no_node_is_told(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            calling = pool.submit(runtime.call, "DEL", "one", socket=str(path))
            stranger, _ = listening.accept()
            with stranger:
                stranger.recv(4096)
                stranger.sendall(b"220 mail.example ESMTP\r\n")
            told = calling.result().value
    assert (told["code"], told["details"]) == (5, "is this its control socket?")


def test_what_nobody_thought_of_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*words: object) -> None:
        raise ZeroDivisionError("of us")

    monkeypatch.setenv("CNI_COMMAND", "VERSION")
    monkeypatch.setattr(plugin, "answer", broken)
    assert plugin.main() == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["code"], told["msg"]) == (999, "ZeroDivisionError('of us')")


def test_an_interface_is_made_once(runtime: Runtime, netns: Callable[..., list[str]]) -> None:
    pod, other = netns("pod", "other")
    runtime.add("one", pod)
    again = runtime.call("ADD", "one", pod)
    assert (again.rc, again.value["code"]) == (1, 100) and "already" in again.value["msg"]
    stranger = runtime.call("ADD", "two", pod)  # the same name in the same namespace
    assert stranger.rc == 1 and links(pod)["eth0"]
    runtime.add("two", other)


def test_ids_that_begin_alike_are_told_apart(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    pods = netns("a", "b")
    ids = [f"{'f' * 30}{n}" for n in range(2)]
    for name, pod in zip(ids, pods, strict=True):
        runtime.add(name, pod)
    assert attached(running) == [f"{name}/eth0" for name in ids]


def test_check_tells_what_is_gone(runtime: Runtime, netns: Callable[..., list[str]]) -> None:
    (pod,) = netns("pod")
    told = runtime.add("one", pod)
    check = {"prevResult": told.value}
    assert runtime.call("CHECK", "one", pod, **check).rc == 0
    for words, message in (
        ("route del default", "the default route by 10.1.0.1 is gone"),
        ("link set eth0 mtu 1000", "the MTU of eth0 is 1000"),
        (f"addr del {told.addresses[0]} dev eth0", f"{told.addresses[0]} is gone"),
        ("link set eth0 address 02:00:00:00:00:99", "the MAC of eth0"),
        ("link del eth0", "eth0 is gone"),
    ):
        subprocess.run(["ip", "-n", pod, *words.split()], check=True)
        found = runtime.call("CHECK", "one", pod, **check)
        assert (found.rc, found.value["code"]) == (1, 100) and message in found.value["details"]
    other = runtime.call("CHECK", "one", pod, prevResult={"ips": [{"address": "10.1.9.9/16"}]})
    assert "is not in prevResult" in other.value["details"]


def test_status_tells_whether_the_node_is_ready(
    runtime: Runtime, netns: Callable[..., list[str]]
) -> None:
    (pod,) = netns("pod")
    assert runtime.call("STATUS") == (0, {}, "")
    runtime.add("one", pod)
    subprocess.run(["ip", "-n", pod, "link", "del", "eth0"], check=True)
    told = runtime.call("STATUS").value
    assert (told["code"], told["msg"]) == (50, "the node is not ready")
    assert re.fullmatch(r"\S*one-eth0: .* is gone", told["details"])
    runtime.delete("one")
    assert runtime.call("STATUS") == (0, {}, "")


def test_gc_frees_what_is_not_listed(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    pods = netns("a", "b", "c")
    for name, pod in zip("ab", pods, strict=False):
        runtime.add(name, pod)
    runtime.add("c", pods[2], name="another")
    valid = [{"containerID": "b", "ifname": "eth0"}]
    assert runtime.call("GC", **{"cni.dev/valid-attachments": valid}).rc == 0
    assert attached(running) == ["b/eth0", "c/eth0"] and "eth0" not in links(pods[0])
    assert runtime.call("GC", **{"cni.dev/valid-attachments": []}).rc == 0
    assert attached(running) == ["c/eth0"]


@needs_plugins
def test_another_plugin_may_give_the_addresses(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    (pod,) = netns("pod")
    ranges = [[{"subnet": "10.1.1.0/24", "rangeStart": "10.1.1.200"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "ranges": ranges}
    leased = {"cniVersion": "1.0.0", "ipam": ipam}
    told = runtime.add("one", pod, **leased)
    assert told.addresses == ["10.1.1.200/16"]
    assert (tmp_path / "pods" / "10.1.1.200").exists()
    assert runtime.call("CHECK", "one", pod, prevResult=told.value, **leased).rc == 0
    runtime.delete("one", pod, **leased)
    assert not (tmp_path / "pods" / "10.1.1.200").exists()
    bad = runtime.call("ADD", "one", pod, endpoint={"colour": "red"}, **leased)
    assert bad.rc == 1 and not list((tmp_path / "pods").glob("10.*"))  # given back


NONSENSE = {
    "no JSON": (6, "is no JSON object", "echo nonsense"),
    "a list": (6, "is no JSON object", "echo '[1]'"),
    "nothing": (6, "has no ips", ""),
    "no list": (6, "has no ips", """echo '{"ips": {"address": "10.1.1.9/16"}}'"""),
    "no address": (6, "has no address", """echo '{"ips": [{"gateway": "10.1.0.1"}]}'"""),
    "a number": (6, "has no address", """echo '{"ips": [{"address": 7}]}'"""),
    "not ours": (7, "cannot be used", """echo '{"ips": [{"address": "192.0.2.9/24"}]}'"""),
    "a refusal": (11, "later", """echo '{"code": 11, "msg": "later"}'; exit 1"""),
    "no code": (5, "exit status 3", "exit 3"),
    "an odd code": (5, "odd", """echo '{"code": "x", "msg": "odd", "details": [1]}'; exit 1"""),
    "no previous": (7, '"ips" is no list', """echo '{"ips": [{"address": "10.1.1.9/16"}]}'"""),
}


@pytest.mark.parametrize(("code", "message", "answer"), NONSENSE.values(), ids=NONSENSE)
def test_a_lease_is_returned_whatever_fails_behind_it(
    runtime: Runtime,
    running: Process,
    netns: Callable[..., list[str]],
    tmp_path: Path,
    code: int,
    message: str,
    answer: str,
) -> None:
    """By one DEL, and what the runtime is told is the failure, though DEL fails as well."""
    (pod,) = netns("pod")
    ipam, calls = tmp_path / "odd", tmp_path / "calls"
    ipam.write_text(f"#!/bin/sh\necho $CNI_COMMAND >>{calls}\n{answer}\n")
    ipam.chmod(0o755)
    told = runtime.call(
        "ADD",
        "one",
        pod,
        env={"CNI_PATH": str(tmp_path)},
        ipam={"type": "odd"},
        prevResult={"ips": 7} if '"ips"' in message else {},
    )
    assert (told.rc, told.value["code"]) == (1, code), told.raw
    assert message in told.value["msg"] and isinstance(told.value["details"], str)
    assert calls.read_text().split() == ["ADD", "DEL"]
    assert "eth0" not in links(pod) and attached(running) == []


def test_an_ipam_plugin_that_does_not_run_is_told(
    runtime: Runtime, netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    (pod,) = netns("pod")
    (tmp_path / "odd").write_bytes(b"\0")
    (tmp_path / "odd").chmod(0o755)
    env = {"CNI_PATH": str(tmp_path)}
    told = runtime.call("ADD", "one", pod, env=env, ipam={"type": "odd"}).value
    assert (told["code"], told["msg"]) == (5, "IPAM plugin odd does not run")


# ---- containers that go, and nodes -------------------------------------------------------------


def test_what_goes_with_its_namespace_is_forgotten(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    pods = netns("a", "b")
    for name, pod in zip("ab", pods, strict=True):
        runtime.add(name, pod)
    subprocess.run(["ip", "netns", "del", pods[0]], check=True)
    wait_for(lambda: attached(running) == ["b/eth0"])
    subprocess.run(["ip", "netns", "del", pods[1]], check=True)
    subprocess.run(["ip", "netns", "add", pods[1]], check=True)  # another of the same name
    wait_for(lambda: attached(running) == [])
    assert "eth0" not in links(pods[1])


def test_a_killed_node_finds_its_containers_again(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    pods = netns("a", "b")
    first, _ = (runtime.add(name, pod) for name, pod in zip("ab", pods, strict=True))
    assert running.process is not None
    running.end(signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", pods[1]], check=True)
    running.start()
    assert attached(running) == ["a/eth0"]
    assert runtime.call("CHECK", "a", pods[0], prevResult=first.value).rc == 0
    assert runtime.add("b", pods[0], ifname="eth1").addresses != first.addresses


def test_killed_between_any_two_steps_it_converges(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    """The runtime removes what it is not sure of, as containerd and podman do, and asks again."""
    (pod,) = netns("pod")
    for delay in (0.0, 0.003, 0.01, 0.02, 0.04, 0.08):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            adding = pool.submit(runtime.call, "ADD", "one", pod)
            time.sleep(delay)
            running.end(signal.SIGKILL)
            adding.result()
        running.start()
        runtime.delete("one", pod)
        assert "eth0" not in links(pod) and attached(running) == []
        runtime.add("one", pod)
        runtime.delete("one", pod)


def test_a_successor_has_the_containers(
    runtime: Runtime, running: Process, netns: Callable[..., list[str]]
) -> None:
    """Asked for all the while another process takes over."""
    pods = netns(*"abcdef")
    told = runtime.add("a", pods[0])
    with Client(running.socket) as client, concurrent.futures.ThreadPoolExecutor(5) as pool:
        adding = [pool.submit(runtime.add, name, pods["abcdef".index(name)]) for name in "bcdef"]
        client.restart()
        for each in adding:
            each.result()
    try:
        assert runtime.call("CHECK", "a", pods[0], prevResult=told.value).rc == 0
        assert sorted(attached(running)) == [f"{name}/eth0" for name in "abcdef"]
        for name, pod in zip("abcdef", pods, strict=True):
            runtime.delete(name, pod)
    finally:
        end_successor(running.socket)
        running.start()


# ---- many, and how fast ------------------------------------------------------------------------


def test_fifty_at_once(runtime: Runtime, running: Process, netns: Callable[..., list[str]]) -> None:
    pods = netns(*(f"p{n}" for n in range(50)))
    names = [f"container-{n}" for n in range(50)]
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        told = [*pool.map(runtime.add, names, pods)]
        assert len({tuple(t.addresses) for t in told}) == 50
        assert sorted(attached(running)) == sorted(f"{name}/eth0" for name in names)
        [*pool.map(runtime.delete, names, pods)]
    assert attached(running) == [] and not any("eth0" in links(pod) for pod in pods)


@needs_plugins
def test_it_is_about_as_fast_as_plugins_in_go(
    runtime: Runtime, netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    """At most 50 ms more than a bridge with host-local, in turns, by medians; without
    DATAPLANE_SLOW=1, where that one is slow, too, in proportion."""
    pod, host = netns("pod", "host")
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "ranges": [[{"subnet": "10.7.0.0/24"}]]}
    enter = tmp_path / "bridge"
    enter.write_text(f"#!/bin/sh\nexec nsenter --net=/run/netns/{host} {PLUGINS}/bridge\n")
    enter.chmod(0o755)
    bridge = Runtime(enter, cniVersion="1.0.0", bridge="b0", ipam=ipam)
    seconds: dict[str, list[float]] = {"ours": [], "go": []}
    for _ in range(12):
        for name, each in (("ours", runtime), ("go", bridge)):
            begin = time.perf_counter()
            each.add("one", pod)
            each.delete("one", pod)
            seconds[name].append((time.perf_counter() - begin) / 2)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"a call takes {medians['ours'] * 1e3:.0f} ms, in Go {medians['go'] * 1e3:.0f} ms")
    strict = os.environ.get("DATAPLANE_SLOW") == "1"
    most = 0.05 if strict else max(0.05, 2.5 * medians["go"])
    assert medians["ours"] - medians["go"] < most, medians


def test_the_plugin_loads_little() -> None:
    code = f"import sys; sys.argv = ['']; exec(open({plugin.__file__!r}).read(), {{}})"
    code += "; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    words = [sys.executable, "-IS", "-c", code]
    loaded = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert {"json", "socket"} <= {*loaded}
    assert not {"typing", "subprocess", "http", "asyncio", "argparse", "dataplane"} & {*loaded}


# ---- hostile input -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = [
    "cniVersion",
    "name",
    "type",
    "network",
    "socket",
    "mtu",
    "ipam",
    "endpoint",
    "runtimeConfig",
    "prevResult",
    "dns",
    "args",
    "cni.dev/valid-attachments",
]


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)),
    st.sampled_from([*plugin.COMMANDS, "VERSION", "FLY", ""]),
)
def test_any_configuration_is_answered_or_refused(config: dict[str, Any], command: str) -> None:
    """By a code and words, and no node is there to be harmed."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "one",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/",
        "CNI_PATH": "/nowhere",
    }
    given = {"name": "pods", "socket": "/nowhere.sock", "cniVersion": "1.1.0"} | config
    try:
        plugin.answer(given, env)
    except plugin.Failure as failure:
        code, message, details = (*failure.args, "")[:3]
        assert 0 < code < 999 and message and isinstance(details, str)
    else:
        assert command == "VERSION"


def test_installing_again_replaces_the_file(tmp_path: Path) -> None:
    place = install(tmp_path)
    place.write_text("old")
    assert install(tmp_path) == place
    assert re.match(r"#!/\S+ -IS\n", place.read_text()) and os.access(place, os.X_OK)
    assert [*tmp_path.iterdir()] == [place]
