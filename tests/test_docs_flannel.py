"""The commands of docs/flannel.md, run as they stand there but for the namespaces' names."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcd_server import WHY_NOT

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "flannel.md").read_text()
NAMES = ("node-a", "node-b", "pod-a", "pod-b")
NO_CURL = "" if shutil.which("curl") else "curl is not installed"


@pytest.mark.skipif(bool(WHY_NOT or NO_CURL), reason=WHY_NOT or NO_CURL)
def test_the_commands_lead_to_a_ping(netns: Callable[..., list[str]], tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script = "set -euo pipefail\n" + "".join(blocks).replace(
        "dataplane run", f"{sys.executable} -m dataplane run"
    ).replace("dataplane get", f"{sys.executable} -m dataplane get")
    (prefix,) = netns("doc")  # its own are removed as that one is
    script = re.sub(r"(?<![\w-])(node|pod)-(a|b|\$n)\b", rf"{prefix}-\1-\2", script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "told").open("wb") as told:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
        try:
            code = shell.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            for name in NAMES:
                subprocess.run(["ip", "netns", "del", f"{prefix}-{name}"], capture_output=True)
    logs = "\n".join(file.read_text() for file in (tmp_path / "told", *tmp_path.glob("?.log")))
    assert code == 0, logs
    assert "3 received" in logs
