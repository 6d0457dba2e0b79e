"""The commands of docs/kubernetes.md, run as they stand there but for the namespaces' names."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dataplane.kubernetes.door import KINDS
from tests.live_node import ROOT
from tests.shell_page import page_told, run_page

PAGE = ROOT / "docs" / "kubernetes.md"
NAMES = "node-a", "node-b", "pod-a", "pod-b"
NO_CURL = "" if shutil.which("curl") else "curl is not installed"


@pytest.mark.skipif(bool(NO_CURL), reason=NO_CURL)
def test_the_commands_lead_to_a_ping_a_service_and_a_policy(
    netns: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(Path(sys.executable).parent)  # python3 is the one that runs this
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")
    (prefix,) = netns("doc")
    with run_page(PAGE, tmp_path, prefix, r"(?:node|pod)-(?:a|b|\$n)", NAMES) as code:
        told = page_told(tmp_path)
        assert code == 0, told
    assert "3 received" in told
    _, _, services = told.partition("default.web.http")
    assert "10.96.0.10" in services
    assert "kube.in.closed" in services
    assert "is not followed" not in told


def test_the_role_is_what_is_asked_for() -> None:
    """Each kind that the door lists and watches, the patch, and no more."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    granted = {
        (group, resource, verb)
        for rule in yaml.safe_load(block)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    asked = {("", "nodes/status", "patch")}
    for path in KINDS.values():
        *_, group, _, resource = path.split("/")
        asked |= {("" if group == "api" else group, resource, verb) for verb in ("list", "watch")}
    assert granted == asked
