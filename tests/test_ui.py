"""The web page of a running node: as its API and the bridge serve it, as a snapshot, in a browser.

With DATAPLANE_PICTURES=1 the browser's picture replaces the one in docs/.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from dataplane.api import page
from dataplane.api.client import Client
from dataplane.api.filters import FIELDS
from dataplane.cli import cli
from tests.live_node import PATIENCE, PICTURES, ROOT, Process

PICTURE = ROOT / "docs" / "ui.png"
CHROMIUM = shutil.which("chromium")


def answer(
    address: str, method: str, path: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `Host` as given or the address."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    connection.request(method, path, headers={"Host": address} | headers)
    response = connection.getresponse()
    told = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return told


class Site(NamedTuple):
    """What `dataplane ui` printed, in parts."""

    url: str
    address: str
    token: str

    @property
    def cookie(self) -> str:
        _, headers, _ = answer(self.address, "GET", f"/?token={self.token}")
        return headers["set-cookie"].partition(";")[0]


@pytest.fixture
def site(running: Process, node: Client) -> Iterator[Site]:
    command = [sys.executable, "-m", "dataplane", "ui", "--socket", str(running.socket)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    parts = urlsplit(url)
    yield Site(url, parts.netloc, parts.query.removeprefix("token="))
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    process.stdout.close()


# ---- the graph ---------------------------------------------------------------------------------


def test_graph_of_a_running_node(running: Process, node: Client, traffic: None) -> None:
    words = ["graph", "--socket", str(running.socket)]
    done = CliRunner().invoke(cli, [*words, "--svg"])
    assert done.exit_code == 0
    drawn = {e.get("data-endpoint") for e in ElementTree.fromstring(done.output).iter()}
    assert {"blue/web", "blue/db"} <= drawn
    told = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    assert [peer["name"] for peer in told["peers"]] == ["127.0.0.2"]
    assert "VNI 4096" in CliRunner().invoke(cli, words).output


# ---- the bridge --------------------------------------------------------------------------------


def test_who_has_the_token_may_look(site: Site) -> None:
    status, headers, body = answer(site.address, "GET", f"/?token={site.token}")
    assert (status, headers["location"], body) == (303, "/", b"")
    assert {"httponly", "samesite=strict"} <= set(headers["set-cookie"].lower().split("; "))
    status, headers, body = answer(site.address, "GET", "/", Cookie=site.cookie)
    assert status == 200 and body.decode() == page.text()
    assert headers["content-type"].startswith("text/html")
    status, _, body = answer(site.address, "GET", "/v1/flows?filter=vni=4096", Cookie=site.cookie)
    assert status == 200 and "items" in json.loads(body)
    status, _, body = answer(site.address, "GET", "/v1/flows?filter=x", Cookie=site.cookie)
    assert status == 400 and "no filter" in json.loads(body)["title"]


def test_nobody_else_may(site: Site) -> None:
    wrong = site.cookie[:-1] + ("x" if site.cookie[-1] != "x" else "y")
    for path, headers in (
        ("/", {}),
        ("/v1/stats", {}),
        ("/?token=", {}),
        (f"/?token={site.token}x", {}),
        ("/?token=%F6", {}),
        ("/", {"Cookie": wrong}),
        ("/", {"Cookie": "nonsense"}),
    ):
        status, _, body = answer(site.address, "GET", path, **headers)
        assert status == 403 and site.token not in body.decode(), path


def test_packets_and_policy_cannot_be_read(site: Site) -> None:
    for path in ("/v1/capture", "/v1/policy", "/v1/events?frames=true", "/metrics", "//v1/stats"):
        status, _, _ = answer(site.address, "GET", path, Cookie=site.cookie)
        assert status == 404, path


def test_nothing_can_be_changed(site: Site, node: Client) -> None:
    before = node.status()["generation"]
    for method in ("POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        path = f"/v1/networks/blue?token={site.token}"
        status, _, _ = answer(site.address, method, path, Cookie=site.cookie)
        assert status == 405, method
    assert node.status()["generation"] == before


def test_a_name_that_leads_here_reads_nothing(site: Site) -> None:
    """DNS rebinding: the browser believes to speak with evil.example."""
    port = site.address.rpartition(":")[2]
    for host in (f"evil.example:{port}", "127.0.0.1", f"localhost:{port}", "127.0.0.1:1"):
        status, _, _ = answer(site.address, "GET", "/", Host=host, Cookie=site.cookie)
        assert status == 421, host


def test_every_answer_bears_its_policy(site: Site) -> None:
    for path in ("/", "/nowhere", "/v1/stats"):
        for cookie in ({}, {"Cookie": site.cookie}):
            _, headers, _ = answer(site.address, "GET", path, **cookie)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


def test_events_pass_as_they_happen(site: Site, wire: Callable[[str], bytes]) -> None:
    connection = http.client.HTTPConnection(site.address, timeout=PATIENCE)
    headers = {"Cookie": site.cookie, "Accept": "text/event-stream"}
    connection.request("GET", "/v1/events?kind=drop&filter=dport=99", headers=headers)
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.readline() == b"event: listening\n"
    wire("udp 10.1.1.2:4000 > 10.1.77.1:99")
    while (line := response.readline()) != b"event: drop\n":
        assert line
    assert json.loads(response.readline().removeprefix(b"data: "))["reason"] == "no_such_endpoint"
    connection.close()


def test_only_a_loopback_is_listened_on(running: Process, tmp_path: Path) -> None:
    words = ["ui", "--socket", str(running.socket), "--listen"]
    for listen in (
        "0.0.0.0:0",
        "192.0.2.1:80",
        "localhost:80",
        "127.0.0.1",
        "127.0.0.1:x",
        "[::]:0",
    ):
        done = CliRunner().invoke(cli, [*words, listen])
        assert done.exit_code == 2 and "loopback" in done.output, listen
    done = CliRunner().invoke(cli, ["ui", "--socket", str(tmp_path / "none")])
    assert done.exit_code == 3


# ---- the page ----------------------------------------------------------------------------------


def test_page_asks_for_nothing_elsewhere() -> None:
    addresses = set(re.findall(r"https?://[^\s\"']+", page.text()))
    assert addresses == {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert re.findall(r"<(?:link|img|script)[^>]+(?:src|href)=\"(?!data:)", page.text()) == []
    assert len(page.text().splitlines()) <= 600


def test_page_of_the_control_socket(running: Process, node: Client) -> None:
    assert node.ask("/") == node.ask("/ui") == page.text()


def test_copied_commands_exist() -> None:
    """Every filter of the API is an option of `dataplane flows`, and the page knows them."""
    options = {o for p in cli.commands["flows"].params for o in p.opts}
    assert {f"--{field}" for field in FIELDS} <= options
    (known,) = re.findall(r"SHORT = /\^\(([\w|]+)\)", page.text())
    assert set(known.split("|")) == set(FIELDS)


def test_snapshot(running: Process, node: Client, traffic: None, tmp_path: Path) -> None:
    file = tmp_path / "node.html"
    words = ["ui", "--socket", str(running.socket), "--snapshot"]
    assert CliRunner().invoke(cli, [*words, str(file)]).exit_code == 0
    text = file.read_text()
    (data,) = re.findall(r'id="snapshot">(.*?)</script>', text, re.DOTALL)
    answers = json.loads(data)
    assert set(page.ASKED) < answers.keys() and "blue/web" in data
    first, second = answers["v1/stats"]
    assert second["now_ns"] > first["now_ns"] and "<meta http-equiv" in text
    assert CliRunner().invoke(cli, [*words, str(tmp_path / "no" / "where")]).exit_code == 1


def test_markup_in_a_snapshot_stays_text() -> None:
    text = page.snapshot({"v1/status": ["</script><script>alert(1)</script>"]}, "now")
    assert "<script>alert" not in text and text.count("</script>") == 2


# ---- in a browser ------------------------------------------------------------------------------


class Tab(NamedTuple):
    page: Any
    requests: list[str]
    errors: list[str]


@contextlib.contextmanager
def opened(url: str) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        tab.set_default_timeout(PATIENCE * 1000)
        requests: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.goto(url)
        yield Tab(tab, requests, errors)
        browser.close()


def until(tab: Any, condition: str, arg: Any = None) -> None:
    """Waits for a condition in JavaScript; playwright's own way needs what the page forbids."""
    deadline = time.monotonic() + PATIENCE
    while not tab.evaluate(condition, arg):
        assert time.monotonic() < deadline, (condition, arg)
        tab.wait_for_timeout(50)


def shows(tab: Any, place: str, text: str) -> None:
    asked = "([place, text]) => document.querySelector(place)?.textContent.includes(text)"
    until(tab, asked, [place, text])


def flows_shown(tab: Any, count: int) -> None:
    until(tab, "n => document.querySelectorAll('tbody#flows tr').length === n", count)


def test_page_in_a_browser(
    site: Site, node: Client, traffic: None, wire: Callable[[str], bytes], tmp_path: Path
) -> None:
    with opened(site.url) as (tab, requests, errors):
        shows(tab, "#node", "node a")
        shows(tab, "#state", "ready")
        for name in ("web", "db", "VNI 4096", "VTEP 127.0.0.2"):
            shows(tab, "#topology", name)
        tab.wait_for_selector('#topology path.silent[data-peer="127.0.0.2"]', state="attached")
        ids = "[...document.querySelectorAll('[id]')].map(element => element.id)"
        assert len(tab.evaluate(ids)) == len(set(tab.evaluate(ids)))
        until(tab, WIDER, ["blue/web", "blue/db"])
        shows(tab, "#layers", "no_such_endpoint")
        assert "guard_ip" not in tab.text_content("#layers")
        wire("udp 10.1.1.77:4000 > 10.1.2.9:53")  # a borrowed address
        shows(tab, "#layers", "guard_ip")
        tab.click("#mode")
        shows(tab, "#layers", "/s")
        until(tab, "document.querySelector('#rx-line polyline').points.length >= 6")
        flows_shown(tab, 3)
        tab.wait_for_timeout(20_000 if PICTURES else 500)
        tab.screenshot(path=tmp_path / "ui.png", full_page=True)
        tab.fill("#filter", "sport=4001")
        flows_shown(tab, 1)
        assert "10.1.1.2:4001" in tab.text_content("tbody#flows")
        tab.fill("#filter", "sport!=4001")
        flows_shown(tab, 2)
        assert tab.text_content("#command") == "dataplane flows --node a --not sport=4001"
        tab.click("tbody#flows tr:first-child td:nth-child(2)")
        until(tab, "document.querySelector('#filter').value === 'sport!=4001 proto=udp'")
        tab.click("#events summary")
        shows(tab, "#events ol", "vnet: no_such_endpoint")
        tab.click("#pause")
        tab.wait_for_timeout(500)
        before = len(requests)
        tab.wait_for_timeout(2500)
        assert len(requests) == before
    assert errors == []
    assert {urlsplit(url).netloc for url in requests} == {site.address}
    size = (tmp_path / "ui.png").stat().st_size
    assert 20_000 < size < 150_000
    if PICTURES:
        shutil.copy(tmp_path / "ui.png", PICTURE)


WIDER = """([busy, idle]) => {
  const width = name => Number(document.querySelector(`path[data-endpoint="${name}"]`)
    .getAttribute("stroke-width"));
  return width(busy) > 4 && width(idle) <= 4;
}"""


def test_a_bad_filter_is_told_in_the_page(site: Site, node: Client) -> None:
    with opened(site.url) as (tab, _, _):
        shows(tab, "#node", "node a")
        tab.fill("#filter", "ip=1.2.3")
        shows(tab, "#refused", "ip=1.2.3")
        tab.fill("#filter", "")
        until(tab, "document.querySelector('#refused').textContent === ''")


def test_snapshot_in_a_browser(
    running: Process, node: Client, traffic: None, tmp_path: Path
) -> None:
    file = tmp_path / "node.html"
    words = ["ui", "--socket", str(running.socket), "--snapshot", str(file)]
    assert CliRunner().invoke(cli, words).exit_code == 0
    with opened(file.as_uri()) as (tab, requests, errors):
        shows(tab, "#taken", "snapshot of")
        shows(tab, "#topology", "web")
        shows(tab, "#rx-now", "pps")
        shows(tab, "#layers", "no_such_endpoint")
        flows_shown(tab, 3)
        tab.fill("#filter", ":4001")
        flows_shown(tab, 1)
    assert errors == [] and requests == [file.as_uri()]


def test_picture_is_shown_and_small() -> None:
    assert "docs/ui.png" in (ROOT / "README.md").read_text()
    assert PICTURE.read_bytes()[:4] == b"\x89PNG" and os.stat(PICTURE).st_size < 150_000
