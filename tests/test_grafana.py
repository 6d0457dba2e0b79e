"""docs/grafana.json asks for metrics that a node has, by labels that they have."""

import json
import re
import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from dataplane.api.client import Client
from tests.live_node import DENIED, PATIENCE, ROOT

BOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
OF_PROMETHEUS = {"instance"}  # added to every sample when it is scraped


def test_panels() -> None:
    assert [panel["title"] for panel in BOARD["panels"]] == [
        "Packets",
        "Drops by reason",
        "Packets of known flows",
        "Flows and NAT bindings",
        "Silent peers",
        "I/O",
    ]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]}
    assert len(places) == len({panel["id"] for panel in BOARD["panels"]}) == 6


def test_every_metric_and_label_exists(node: Client, wire: Callable[[str], bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while "no_such_endpoint" not in node.stats()["reasons"]:
        assert time.monotonic() < deadline
        wire(DENIED)
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(node.metrics()):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    asked = [*EXPRESSIONS, *(v["query"]["query"] for v in BOARD["templating"]["list"][1:])]
    for expression in asked:
        names = re.findall(r"\bdataplane_\w+", expression)
        assert names
        labels = set(re.findall(r"(\w+)=~?\"", expression)) - OF_PROMETHEUS
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= set(re.split(r",\s*", group)) - OF_PROMETHEUS
        for name in names:
            assert name in known, name
            assert labels <= known[name], (name, labels)


def test_counters_are_rated_and_gauges_are_not() -> None:
    for expression in EXPRESSIONS:
        for before, name in re.findall(r"(rate\()?\b(dataplane_\w+)", expression):
            assert bool(before) == name.endswith("_total"), expression
