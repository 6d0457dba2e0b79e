"""What a service manager is told, and the unit that it is given."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from dataplane import daemon as daemons
from dataplane import service
from dataplane.api.client import Client
from dataplane.cli import cli
from dataplane.daemon import Daemon
from dataplane.document import dump
from dataplane.model import Document, Node, Underlay
from dataplane.service import notify, watched
from dataplane.state_dir import Saved
from tests.live_node import PATIENCE, Process, end_successor, policy

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "docs" / "dataplane@.service"


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_who_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@dataplane-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "MAINPID=7")
        assert manager.recv(100) == b"READY=1\nMAINPID=7"
    notify("STOPPING=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("STOPPING=1")


# ---- a running node ----------------------------------------------------------------------------

SLOW = 6.0  # seconds that a successor takes to begin
SOON = 3.0  # seconds from one WATCHDOG=1 to the next, at most


class Manager:
    """What a service manager hears, and when: it listens on a thread of its own."""

    def __init__(self, place: Path) -> None:
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(place))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while told := self._socket.recv(4096).decode():
            self.heard += [(time.monotonic(), line) for line in told.splitlines()]

    def await_line(self, line: str, times: int = 1) -> None:
        """Until it is said so often, from now on."""
        before = len(self.heard)
        await_truth(lambda: [said for _, said in self.heard[before:]].count(line) >= times)

    def longest_silence(self) -> float:
        """Between two WATCHDOG=1."""
        times = [when for when, line in self.heard if line == "WATCHDOG=1"]
        return max(b - a for a, b in pairwise(times))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield made
    made.close()


def test_a_node_tells_its_service_manager_and_so_does_its_successor(
    netns: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manager: Manager,
) -> None:
    """That it is ready, who it is, and that it lives, even while it waits for a successor that
    takes its time."""
    late = f"import sys, time; time.sleep({SLOW} * ('--successor' in sys.orig_argv))"
    (tmp_path / "sitecustomize.py").write_text(late)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = Process(*netns("s"), tmp_path)
    process.file.write_text(dump(Document(node=policy("web"))))
    process.start()
    assert process.process is not None
    try:
        await_truth(lambda: any(line == "READY=1" for _, line in manager.heard))
        _, own, status = (line for _, line in manager.heard if line != "WATCHDOG=1")
        assert own == f"MAINPID={process.process.pid}"
        assert status.startswith("STATUS=ready: node a, 1 endpoint,")
        manager.await_line("WATCHDOG=1", times=3)
        with Client(process.socket) as client:
            pid = client.restart()["pid"]
        assert pid != process.process.pid
        process.process.wait(PATIENCE)
        manager.await_line("WATCHDOG=1", times=3)
        assert manager.longest_silence() < SOON
        said = [line for _, line in manager.heard if line != "WATCHDOG=1"][3:]
        assert said[:3] == [f"MAINPID={pid}", "READY=1", f"MAINPID={pid}"]
    finally:
        end_successor(process.socket)


def test_the_watchdog_hears_of_who_is_well(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "INTERVAL", 0.01)
    found = iter([False, False, True])
    with watched(lambda: next(found, False)):
        manager.await_line("WATCHDOG=1")
    assert list(found) == []


def test_a_loop_that_does_not_turn_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its thread is alive."""
    monkeypatch.setattr(daemons, "STALL", 0.5)
    node = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.9"), port=14_791))
    with Daemon(Saved(1, node)) as daemon:
        assert daemon.is_well and daemon.is_forwarding
        with daemon.forwarder.pause():
            await_truth(lambda: not daemon.is_well)
            assert daemon.is_forwarding
        await_truth(lambda: daemon.is_well)


def await_truth(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the unit ----------------------------------------------------------------------------------


def test_the_unit_starts_what_there_is() -> None:
    (start,) = (line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    words = start.split()
    options = {o for p in cli.commands["run"].params for o in p.opts}
    assert words[1] == "run" and {w for w in words if w.startswith("--")} <= options


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "dataplane@.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/dataplane", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "dataplane@" in line]
    assert not ours, done.stderr
