"""What a node says of itself: findings of the doctor, and whether it is ready."""

import os
import resource
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataplane.api import health, host, metrics
from dataplane.api.finding import FAILURE, OK, WARNING, Finding
from dataplane.daemon import Daemon
from dataplane.state_dir import Saved, StateDir
from tests.live_node import policy

PEER = "127.0.0.2"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Without endpoints, so without devices."""
    with Daemon(Saved(1, policy())) as made:
        yield made


def findings(daemon: Daemon, subject: str) -> list[Finding]:
    return [finding for finding in health.examine(daemon) if finding.subject == subject]


def wrong(daemon: Daemon) -> list[Finding]:
    return [finding for finding in health.examine(daemon) if finding.level != OK]


def test_a_node_that_is_well_has_nothing_to_mend(daemon: Daemon) -> None:
    assert wrong(daemon) == [] and health.unready(daemon) == []


def test_a_path_mtu_that_was_learned_is_told(daemon: Daemon) -> None:
    with daemon.forwarder.pause():
        assert daemon.engine.learn_path(ip_address(PEER), 1300)
    (found,) = wrong(daemon)
    told = f"its packets have up to 1450 bytes, but 1250 arrive at {PEER}: ICMP told of 1300"
    assert found.subject == "mtu" and told in found.message
    assert found.fix == "mtu: 1250"


# ---- the host -----------------------------------------------------------------------------------


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[Daemon]:
    with StateDir(tmp_path / "state") as state, Daemon(Saved(1, policy()), state=state) as made:
        yield made


def test_a_state_directory_that_is_gone_is_made_again(saving: Daemon, tmp_path: Path) -> None:
    assert [found.level for found in findings(saving, "state")] == [OK]
    (tmp_path / "state").rename(tmp_path / "away")
    (found,) = wrong(saving)
    assert "No such file" in found.message
    subprocess.run(found.fix.split(), check=True)
    assert wrong(saving) == []


def test_a_state_directory_that_takes_no_more_is_told(
    saving: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LEAST", 1 << 80)
    (found,) = wrong(saving)
    assert (found.level, found.subject) == (WARNING, "state") and "KiB are left" in found.message
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    (found,) = wrong(saving)
    assert (found.level, found.subject) == (FAILURE, "state") and "chown" in found.fix
    full = SimpleNamespace(f_bavail=0, f_frsize=4096, f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    (found,) = wrong(saving)
    assert "read-only" in found.message and found.fix.startswith("mount -o remount,rw /")


def test_descriptors_that_run_out_are_told(daemon: Daemon) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, before[1]))
    try:
        (found,) = findings(daemon, "files")
        assert found.fix == f"prlimit --pid {os.getpid()} --nofile={2 * (used + 2)}"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert findings(daemon, "files") == []


def test_errors_are_told_while_they_grow(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "BETWEEN", 0.01)
    still = {"tx_errors": 7, "rx_lost": 0, "xdp_lost": 0}
    readings = iter([still, still, still, {"tx_errors": 9, "rx_lost": 6, "xdp_lost": 5}])
    monkeypatch.setattr(daemon.forwarder, "stats", lambda: {"underlay": next(readings)})
    assert findings(daemon, "io") == []
    refused, full, lost = findings(daemon, "io")
    assert refused.message == "underlay: 2 packets that a device refused in 0.01 s, 9 in all"
    assert full.message.startswith("underlay: 6 packets that found the underlay's sockets full")
    assert lost.message.startswith("underlay: 5 packets that found AF_XDP's rings full")


# ---- metrics ------------------------------------------------------------------------------------


def test_metrics_say_whether_the_node_is_ready_and_what_was_lost(daemon: Daemon) -> None:
    daemon.engine.unseen = 3
    text = metrics.text(daemon).decode()
    assert "dataplane_ready 1.0" in text and "dataplane_observer_lost_total 3.0" in text
    daemon.door("flannel", "look")
    assert "dataplane_ready 0.0" in metrics.text(daemon).decode()
