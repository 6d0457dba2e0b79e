"""What a service manager is told, and the unit that it is given."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.cli import cli
from dataplane.service import notify

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
