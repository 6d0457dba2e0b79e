"""The shell blocks of a docs page as one script, run in a directory of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.live_node import ROOT

PATIENCE = 90.0  # seconds


@contextlib.contextmanager
def run_page(
    page: Path, place: Path, prefix: str, names: str, netns: Iterable[str]
) -> Iterator[int]:
    """The script's exit code; namespaces that match `names` get the prefix. Whatever it began ends
    with the block, and the namespaces `netns` go."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    script = "set -euo pipefail\n" + "".join(blocks)
    script = re.sub(r"\bdataplane (?=[a-z])", f"{sys.executable} -m dataplane ", script)
    script = re.sub(rf"(?<![\w-])({names})\b", rf"{prefix}-\1", script)
    with (place / "told").open("wb") as told:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        yield shell.wait(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        for name in netns:
            subprocess.run(["ip", "netns", "del", f"{prefix}-{name}"], capture_output=True)


def page_told(place: Path) -> str:
    """All that it wrote, and its nodes' logs."""
    return "\n".join(file.read_text() for file in (place / "told", *place.glob("*.log")))
