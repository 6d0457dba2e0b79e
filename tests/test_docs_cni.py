"""The commands of docs/cni.md, run as they stand there but for the namespaces' names."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.api.edits import made
from dataplane.cni import plugin
from dataplane.model import Endpoint
from tests import podman
from tests.live_node import ROOT
from tests.shell_page import page_told, run_page

PAGE = ROOT / "docs" / "cni.md"


@pytest.fixture
def short_path() -> Iterator[Path]:
    with podman.short_place() as place:
        yield place


@pytest.mark.skipif(bool(podman.WHY_NOT), reason=podman.WHY_NOT)
def test_the_commands_lead_to_a_ping(netns: Callable[..., list[str]], short_path: Path) -> None:
    (prefix,) = netns("doc")
    with run_page(PAGE, short_path, prefix, r"node-(?:a|b|\$n)", ("node-a", "node-b")) as code:
        told = page_told(short_path)
        assert code == 0, told
    assert "3 packets received" in told
    assert "blue" not in told[told.index("3 packets received") :].partition("NAME")[2]


def test_codes_and_capabilities_are_the_plugins() -> None:
    text = PAGE.read_text()
    codes = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert codes == sorted(codes_of_plugin())
    for name in plugin.CAPABILITIES:
        assert f"`{name}`" in text
    configured, own = map(
        json.loads, re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
    for endpoint in (configured["endpoint"], own[plugin.OWN]):
        made(json.dumps(endpoint).encode(), Endpoint, "name", "one")


def codes_of_plugin() -> set[int]:
    """The whole numbers among its constants, but for the one that is none."""
    constants = {name: value for name, value in vars(plugin).items() if name.isupper()}
    return {value for name, value in constants.items() if type(value) is int and name != "TRIES"}
