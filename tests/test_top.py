"""`dataplane top`: what two readings say, in lines and on the screen.

The screen's picture is taken here; with DATAPLANE_PICTURES=1 it replaces the one in docs/.
"""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from dataplane import top
from dataplane.api.client import Client
from dataplane.cli import cli
from dataplane.errors import NoNodeError
from tests.live_node import PATIENCE, PICTURES, ROOT, Process

PICTURE = ROOT / "docs" / "top.svg"


def reading(now_ns: int, scale: int, **flow: Any) -> top.Reading:
    port = {"rx_frames": 10, "rx_bytes": 1000, "tx_frames": 5, "tx_bytes": 500}
    totals = {"hits": 90, "misses": 10, "dropped": 20, "flows": 7}
    stats = {
        "now_ns": now_ns,
        "node": "a",
        "totals": {name: n * scale for name, n in totals.items()},
        "ports": {"blue/web": {name: n * scale for name, n in port.items()}},
    }
    drops = [
        {"name": "acl_deny", "layer": "acl", "count": 2 * scale, "means": "…"},
        {"name": "no_route", "layer": "vnet", "count": 18 * scale, "means": "…"},
        {"name": "too_big", "layer": "vnet", "count": 0, "means": "…"},
    ]
    one = dict.fromkeys(top.FLOW_KEY, 1) | {"packets": 4 * scale, "bytes": 400 * scale}
    return top.Reading(stats, drops, [one | flow], [])


def test_rates_are_those_between_two_readings() -> None:
    now = top.moment(reading(10**9, 1), reading(3 * 10**9, 3))
    assert now["seconds"] == 2.0
    assert now["rx"] == {"packets": 10.0, "bits": 8000.0}
    assert now["tx"] == {"packets": 5.0, "bits": 4000.0}
    assert (now["dropped"], now["flows"], now["hit_share"]) == (20.0, 21, 0.9)
    assert [(d["name"], d["rate"]) for d in now["drops"]] == [("no_route", 18.0), ("acl_deny", 2.0)]
    (flow,) = now["busiest"]
    assert flow["rates"] == {"packets": 4.0, "bytes": 400.0}


def test_what_was_not_there_counts_from_zero_and_what_was_reset_counts_nothing() -> None:
    now = top.moment(reading(0, 2, sport=9), reading(10**9, 1))
    assert now["rx"]["packets"] == 0 and now["hit_share"] is None
    (flow,) = now["busiest"]
    assert flow["rates"]["packets"] == 4.0


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 pps"), (0.5, "0.5 pps"), (12, "12 pps"), (999.4, "999 pps"), (1234, "1.2 kpps"),
     (812_345, "812 kpps"), (9.96e9, "10 Gpps"), (2e15, "2000 Tpps")],
)  # fmt: skip
def test_quantities(number: float, said: str) -> None:
    assert top.quantity(number, "pps") == said


def test_plain(running: Process, traffic: None) -> None:
    words = ["top", "--plain", "-c", "2", "--every", "0.3", "--socket", str(running.socket)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    first, second, rest = done.output.split("\n\n")
    assert rest == "" and first.splitlines()[1].startswith("REASON")
    for block in (first, second):
        lines = {line.split()[0]: line.split() for line in block.splitlines()[1:]}
        assert {"REASON", "no_such_endpoint", "VNI", "4096", "PEER", "127.0.0.2"} <= lines.keys()
        assert lines["no_such_endpoint"][1] == "vnet" and float(lines["no_such_endpoint"][2]) > 0
        assert lines["127.0.0.2"][1] == "silent"
        assert re.match(r"\d\d:\d\d:\d\d  a  rx \d+ pps .* hit \d+\.\d%$", block.splitlines()[0])


def test_json_and_filters(running: Process, traffic: None) -> None:
    words = ["top", "-o", "json", "-c", "1", "--every", "0.3", "--socket", str(running.socket)]
    done = CliRunner().invoke(cli, [*words, "--sport", "4001"])
    (line,) = done.output.splitlines()
    told = json.loads(line)
    assert [flow["sport"] for flow in told["busiest"]] == [4001]
    assert told["busiest"][0]["rates"]["packets"] > 0 and told["dropped"] > 0
    assert CliRunner().invoke(cli, [*words, "--ip", "nonsense"]).exit_code == 2
    assert CliRunner().invoke(cli, ["top", "-c", "1", "--socket", "none"]).exit_code == 3


# ---- the screen --------------------------------------------------------------------------------


async def _until(pilot: Any, condition: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.1)):
        if condition():
            return
        await pilot.pause(0.1)
    raise AssertionError("the screen does not get there")


def texts(svg: str) -> set[str]:
    """The words of a picture."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    words = " ".join(element.text or "" for element in found).replace("\xa0", " ")
    return set(words.split())


def test_screen(running: Process, traffic: None) -> None:
    from textual.widgets import Input

    from dataplane.top_screen import TopScreen

    async def used() -> str:
        with Client(running.socket) as client:
            screen = TopScreen(lambda asked: top.read(client, asked), 0.2)
            async with screen.run_test(size=(118, 30)) as pilot:
                await _until(pilot, lambda: screen.moments >= 30)
                picture = screen.export_screenshot(title="dataplane top")
                await pilot.press("p")
                await pilot.pause(0.5)
                before = screen.moments
                await pilot.pause(0.5)
                assert screen.moments == before
                await pilot.press("p", "slash", *"sport=4001", "enter")
                assert not screen.query_one(Input).has_class("asked")
                await _until(pilot, lambda: screen.query_one("#busiest").row_count == 1)  # type: ignore[attr-defined]
                await pilot.press("q")
            assert screen.return_code == 0
        return picture

    picture = re.sub(r"@font-face\s*{[^}]*}", "", asyncio.run(used()))
    assert "url(http" not in picture and "@import" not in picture
    if PICTURES:
        PICTURE.write_text(picture)
    shown = texts(picture)
    titles = {w for columns in top.TABLES.values() for c in columns for w in c.title.split()}
    said = titles | {"rx", "tx", "drop", "flows", "hit", "Quit", "Pause", "Filter"}
    said |= {"no_such_endpoint", "silent", "encap(127.0.0.2)"}
    assert said - shown == set()
    assert said - texts(PICTURE.read_text()) == set(), "DATAPLANE_PICTURES=1 takes it anew"


def test_screen_outlives_its_node() -> None:
    """It says so, and goes on when the node is back."""
    from dataplane.top_screen import TopScreen

    answers = iter([reading(0, 1), None, reading(10**9, 2), reading(2 * 10**9, 3)])
    last = reading(3 * 10**9, 4)

    def read(asked: object) -> top.Reading:
        found = next(answers, last)
        if found is None:
            raise NoNodeError("no node answers")
        return found

    flow = {"src": "10.1.1.2", "dst": "10.1.2.9", "state": "est", "action": "> b"}

    async def used() -> None:
        screen = TopScreen(lambda asked: _with(read(asked), flow), 0.05)
        async with screen.run_test() as pilot:
            await _until(pilot, lambda: screen.moments >= 2)

    asyncio.run(used())


def _with(made: top.Reading, fields: dict[str, Any]) -> top.Reading:
    return made._replace(flows=[flow | fields | {"protocol": "tcp"} for flow in made.flows])


def test_readme_shows_the_picture() -> None:
    assert "docs/top.svg" in Path(ROOT / "README.md").read_text()
