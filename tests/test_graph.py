"""The graph of documents in every form. Of a running node: test_ui.py."""

import json
import re
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dataplane.address import parse_prefix
from dataplane.cli import cli
from dataplane.document import load
from dataplane.graph import MOST, graph
from dataplane.graph_forms import FORMS
from dataplane.names import nodes_of
from tests.blue import endpoint, node, remote

ROOT = Path(__file__).resolve().parent.parent
POLICIES = sorted((ROOT / "policies").glob("*.yaml"))
SVG = "{http://www.w3.org/2000/svg}"


def drawn(file: Path, form: str) -> str:
    done = CliRunner().invoke(cli, ["graph", "-f", str(file), f"--{form}"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("file", POLICIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_every_object(file: Path, form: str) -> None:
    text = drawn(file, form)
    for one in nodes_of(load(file)):
        assert one.name in text and str(one.underlay.address) in text
        for network in one.networks:
            assert network.name in text and str(int(network.vni)) in text
            for each in network.endpoints:
                assert each.name in text and str(each.addresses[0]) in text


def test_mermaid_is_the_default_and_its_edges_have_ends() -> None:
    done = CliRunner().invoke(cli, ["graph", "-f", str(ROOT / "policies/two-hosts.yaml")])
    assert done.output == drawn(ROOT / "policies/two-hosts.yaml", "mermaid")
    known = set(re.findall(r"^ +(\w+)[\[(]", done.output, re.MULTILINE))
    ends = re.findall(r"^ +(\w+) -- \"[^\"]+\" --> (\w+)$", done.output, re.MULTILINE)
    assert len(ends) == 4 and {end for pair in ends for end in pair} <= known


def test_nodes_of_one_document_meet() -> None:
    """What one sends to another's address goes to its network of the same VNI, and back."""
    told = json.loads(drawn(ROOT / "policies/two-hosts.yaml", "json"))
    edges = {(edge["source"], edge["target"]): edge["prefixes"] for edge in told["edges"]}
    assert edges["a/blue", "b/blue"] == ["10.1.2.0/24", "fd00:1:0:2::/64"]
    assert ("b/blue", "a/blue") in edges and told["peers"] == []
    done = CliRunner().invoke(cli, ["graph", "-f", str(POLICIES[0]), "-n", "a", "--json"])
    assert [n["name"] for n in json.loads(done.output)["nodes"]] == ["a"]


def test_silent_peers_are_red_and_shown_first() -> None:
    subnets = tuple(remote(f"10.{i}.0.0/16", f"192.0.2.{i}") for i in range(2, 2 + MOST + 5))
    last = f"192.0.2.{MOST + 6}"
    endpoints = tuple(
        replace(endpoint(f"e{i}", i, None), addresses=(ip_address(f"10.1.0.{i}"),))
        for i in range(2, MOST + 9)
    )
    shown = graph(
        [
            node(
                remote_subnets=subnets, endpoints=endpoints, prefixes=(parse_prefix("10.1.0.0/24"),)
            )
        ],
        {last: "silent"},
    )
    assert shown.peers[0].name == last and len(shown.peers) == MOST and shown.more == 5
    (network,) = shown.networks()
    assert len(network.endpoints) == MOST and network.more == 7
    root = ElementTree.fromstring(FORMS["svg"](shown))
    red = {
        e.get("data-peer") or e.get("data-box") for e in root.iter() if e.get("class") == "silent"
    }
    assert red == {last}
    assert "fill:#f66" in FORMS["mermaid"](shown) and "color=red" in FORMS["dot"](shown)
    for form, text in ((form, make(shown)) for form, make in FORMS.items()):
        assert "7 more" in text or form == "json", form


def test_svg_stays_inside_its_frame() -> None:
    for file in POLICIES:
        root = ElementTree.fromstring(drawn(file, "svg"))
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for box in root.iter(f"{SVG}rect"):
            x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height, file


def test_what_cannot_be_drawn() -> None:
    done = CliRunner().invoke(cli, ["graph", "-f", "none.yaml"])
    assert done.exit_code == 2
    done = CliRunner().invoke(cli, ["graph", "-f", str(POLICIES[0]), "-n", "nobody"])
    assert done.exit_code == 2
    done = CliRunner().invoke(cli, ["graph", "--socket", "none.sock"])
    assert done.exit_code == 3
