"""What a running node has given up, and that it can do its work all the same."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane import sandbox
from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.model import Document
from tests.live_node import ROOT, Process, end_successor, policy

UNIT = ROOT / "docs" / "dataplane@.service"
NEEDED = {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"}


def statuses(pid: int) -> Iterator[dict[str, str]]:
    """Of each thread."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        yield {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def masks(pid: int) -> set[tuple[int, int]]:
    """In force, and what no program begun by it can get back."""
    return {(int(s["CapEff"], 16), int(s["CapBnd"], 16)) for s in statuses(pid)}


def test_every_thread_is_confined(running: Process, node: Client) -> None:
    kept = sum(1 << number for number in sandbox.KEPT)
    for effective, bound in masks(node.status()["pid"]):
        assert effective & ~kept == bound & ~kept == 0
        assert all(effective >> n & 1 for n, name in sandbox.KEPT.items() if name in NEEDED)
    for status in statuses(node.status()["pid"]):
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_so_is_a_successor(running: Process, node: Client) -> None:
    before = node.status()["pid"]
    told = masks(before)
    after = node.restart()["pid"]
    assert after != before and masks(after) == told


def test_a_tap_goes_into_the_namespace_of_a_process(running: Process, node: Client) -> None:
    """As container runtimes name them."""
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as process:
        try:
            path = f"/proc/{process.pid}/ns/net"
            while os.stat(path).st_ino == os.stat("/proc/self/ns/net").st_ino:
                pass
            tap = {"name": "eth0", "netns": path}
            node.put("blue", "endpoints", "boxed", {"addresses": ["10.1.1.9"], "tap": tap})
            words = ["nsenter", f"--net={path}", "ip", "-brief", "link"]
            assert "eth0" in subprocess.check_output(words, text=True)
            node.delete("blue", "endpoints", "boxed")
        finally:
            process.kill()


CALLS = {
    "chroot": "os.chroot('/')",
    "mknod": "os.mknod(sys.argv[1], 0o600 | stat.S_IFCHR, os.makedev(1, 3))",
    "a file of another user's": "os.open(sys.argv[2], os.O_WRONLY)",
    "ptrace": "call(0, 0, 0, 0)",  # PTRACE_TRACEME
}


@pytest.mark.parametrize("what", CALLS)
def test_what_is_given_up_fails(what: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("root is needed")
    file = tmp_path / "theirs"
    file.touch(0o600)
    os.chown(file, 4321, 4321)
    program = f"""
        import ctypes, os, stat, sys
        from dataplane import sandbox
        libc = ctypes.CDLL(None, use_errno=True)
        def call(*words):
            if libc.ptrace(*words):
                raise OSError(ctypes.get_errno(), "ptrace")
        if sys.argv[3] == "confined":
            sandbox.enter()
        {CALLS[what]}
    """
    for how, code in (("free", 0), ("confined", 1)):
        words = [str(tmp_path / how), str(file), how]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, (how, done.stderr)
    assert "PermissionError" in done.stderr or "Operation not permitted" in done.stderr


def test_it_can_be_turned_off(tmp_path: Path, netns: Callable[..., list[str]]) -> None:
    (place,) = netns("n")
    process = Process(place, tmp_path, "--no-sandbox", "--log", "json")
    process.file.write_text(dump(Document(node=policy("web"))))
    process.start()
    try:
        with Client(process.socket) as client:
            (status, *_) = statuses(client.status()["pid"])
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "0")
        told = [json.loads(line)["message"] for line in process.log.read_text().splitlines()]
        assert any(message.startswith("ready: node a") for message in told)
    finally:
        process.end()


def test_the_unit_leaves_what_a_node_needs(tmp_path: Path, netns: Callable[..., list[str]]) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    place, other = netns("n", "o")
    process = Process(place, tmp_path)
    process.before = (sys.executable, "-m", "tests.confined", str(UNIT))
    process.file.write_text(dump(Document(node=policy("web"))))
    process.start()
    try:
        with Client(process.socket) as client:
            confined = masks(client.status()["pid"])
            for _, bound in confined:
                assert bound & ~sum(1 << number for number in sandbox.KEPT) == 0
            tap = {"name": "eth0", "netns": other}
            client.put("blue", "endpoints", "boxed", {"addresses": ["10.1.1.9"], "tap": tap})
            words = ["ip", "-n", other, "-brief", "link"]
            assert "eth0" in subprocess.check_output(words, text=True)
            client.restart()
            assert client.status()["ready"] and masks(client.status()["pid"]) == confined
            assert client.delete("blue", "endpoints", "boxed")["changed"]
    finally:
        end_successor(process.socket)
        process.end()
