"""The commands of docs/flannel.md, run as they stand there but for the namespaces' names."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcd_server import WHY_NOT
from tests.live_node import ROOT
from tests.shell_page import page_told, run_page

NAMES = ("node-a", "node-b", "pod-a", "pod-b")
NO_CURL = "" if shutil.which("curl") else "curl is not installed"


@pytest.mark.skipif(bool(WHY_NOT or NO_CURL), reason=WHY_NOT or NO_CURL)
def test_the_commands_lead_to_a_ping(netns: Callable[..., list[str]], tmp_path: Path) -> None:
    (prefix,) = netns("doc")
    page = ROOT / "docs" / "flannel.md"
    with run_page(page, tmp_path, prefix, r"(?:node|pod)-(?:a|b|\$n)", NAMES) as code:
        told = page_told(tmp_path)
        assert code == 0, told
    assert "3 received" in told
