"""The commands of docs/flannel.md, run as they stand there but for the namespaces' names, and its
documents, loaded."""

import re
import shutil
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.document import loads
from tests.etcd_server import WHY_NOT
from tests.live_node import ROOT
from tests.shell_page import page_told, run_page

NAMES = ("node-a", "node-b", "pod-a", "pod-b")
NO_CURL = "" if shutil.which("curl") else "curl is not installed"
PAGE = ROOT / "docs" / "flannel.md"


@pytest.mark.skipif(bool(WHY_NOT or NO_CURL), reason=WHY_NOT or NO_CURL)
def test_the_commands_lead_to_a_ping(netns: Callable[..., list[str]], tmp_path: Path) -> None:
    (prefix,) = netns("doc")
    with run_page(PAGE, tmp_path, prefix, r"(?:node|pod)-(?:a|b|\$n)", NAMES) as code:
        told = page_told(tmp_path)
        assert code == 0, told
    assert "3 received" in told


def test_the_documents_are_right() -> None:
    """One with a host port of its own, as tests/test_flannel_live.py runs it, and one that names
    the overlay."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    behind, named = (loads(text, "page").node for text in blocks)
    assert behind is not None and behind.host_port is not None
    assert behind.host_port.peer == ip_address("169.254.77.1")
    assert named is not None and named.flannel is not None
