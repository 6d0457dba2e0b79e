"""`make bench-peers`: its searches, its report, and a short run beside the kernel."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.peers import __main__ as command
from bench.peers import report, tools
from bench.peers.measure import MEASURES, Meter, knobs, lossless
from bench.peers.opponents import OPPONENTS
from bench.peers.site import PREFIX, Wire
from dataplane import demo_net
from dataplane.errors import DataplaneError

ROOT = Path(__file__).resolve().parent.parent
WHY_NOT = demo_net.why_not()
live = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")


# ---- the highest rate without loss -------------------------------------------------------------


@pytest.mark.parametrize("capacity", [60.0, 5_000.0, 123_456.0, 3e6])
def test_lossless_finds_the_capacity(capacity: float) -> None:
    found = lossless(lambda rate: (rate, rate <= capacity), 20_000)
    assert 0.93 * capacity <= found <= capacity


def test_lossless_stops_where_the_sender_does() -> None:
    asked = []

    def trial(rate: float) -> tuple[float, bool]:
        asked.append(rate)
        return min(rate, 100_000), True

    assert lossless(trial, 20_000) == 100_000
    assert len(asked) == 4


def test_lossless_forgives_one_stumble_but_not_two() -> None:
    stumbles = iter([False])
    assert lossless(lambda rate: (rate, rate <= 50_000 and next(stumbles, True)), 20_000) > 46_000
    assert lossless(lambda rate: (rate, False), 20_000) == 0


# ---- the report --------------------------------------------------------------------------------


def turn(tcp: float, rtt: float) -> dict[str, dict[str, float]]:
    return {"on": {"tcp_1": tcp, "rtt_p50": rtt}}


def made(rounds: list[report.Round]) -> dict[str, Any]:
    machine = {"cpu": "a", "cores": 2, "kernel": "6"}
    return {
        "command": "make bench-peers",
        "date": "2026-01-01",
        "machine": machine,
        "rounds": len(rounds),
        "seconds": 1,
        "failures": ["ovs: fell over"],
        "results": list(report.rows(rounds)),
    }


ROUNDS = [
    {"kernel": turn(10, 20), "dataplane": turn(5, 60)},
    {"kernel": turn(20, 20), "dataplane": turn(12, 30)},
    {"kernel": turn(5, 20), "dataplane": turn(4, 40)},
]


def test_ratios_are_of_one_round() -> None:
    (row,) = (
        r for r in report.rows(ROUNDS) if (r["measure"], r["opponent"]) == ("tcp_1", "dataplane")
    )
    assert row["ratios"] == [0.5, 0.6, 0.8]
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (0.6, 0.5, 0.8)
    assert row["values"] == [5, 12, 4] and row["median"] == 5


def test_a_round_that_failed_is_left_out() -> None:
    rounds = [*ROUNDS, {"kernel": turn(10, 20)}, {"dataplane": turn(10, 20)}]
    (row,) = (
        r for r in report.rows(rounds) if (r["measure"], r["opponent"]) == ("tcp_1", "dataplane")
    )
    assert row["ratios"] == [0.5, 0.6, 0.8] and row["values"] == [5, 12, 4, 10]


def test_table_and_pictures_show_ratios_and_spread() -> None:
    told = made(ROUNDS)
    text = report.render(told)
    assert "0.6 (0.5-0.8)" in text and "2 (1.5-3)" in text and "FAILED  ovs: fell over" in text
    charts = report.charts(told)
    assert set(charts) == {"on-speed", "on-cost"}
    assert charts["on-speed"].groups == {"TCP, 1 stream": [(0.6, 0.5, 0.8)]}
    assert charts["on-speed"].mark == (1, "kernel")


def test_every_measure_has_its_title() -> None:
    told = {"rtt_p50", "rtt_p99"} | {name for name in MEASURES if name != "rtt"}
    assert {t for t in report.TITLES if not t.startswith("cpu_")} == told
    assert {t.removeprefix("cpu_") for t in report.TITLES if t.startswith("cpu_")} <= set(MEASURES)
    for opponent in OPPONENTS.values():
        assert set(opponent.only) <= set(MEASURES)


# ---- for real ----------------------------------------------------------------------------------


def ours() -> list[str]:
    return demo_net.namespaces(PREFIX)


@live
def test_a_short_run(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--seconds", "1", "--opponents", "dataplane", "--underlays", "on"]
    assert command.main([*words, "--results", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "peers.json").read_text())
    assert told["failures"] == [] and told["compared_with"] == "kernel" and told["rounds"] == 1
    assert {"cpu", "kernel", "build"} <= told["machine"].keys()
    assert {row["measure"] for row in told["results"]} == set(report.TITLES)
    for row in told["results"]:
        assert row["opponent"] in ("kernel", "dataplane") and row["underlay"] == "on"
        assert row["median"] > 0 and row["ratio"] > 0, row
        assert row["ratio"] == 1 or row["opponent"] == "dataplane"
    assert "TCP, 4 streams back" in (tmp_path / "peers.txt").read_text()
    for kind in ("speed", "cost"):
        ElementTree.fromstring((tmp_path / f"peers-on-{kind}.svg").read_text())
    assert not [name for name in ours() if name.startswith(f"{PREFIX}{os.getpid()}-")]


@live
@pytest.mark.parametrize("name", ["naive", "scapy", "ovs"])
@pytest.mark.parametrize("router", [False, True], ids=["direct", "routed"])
def test_opponents_forward(name: str, router: bool) -> None:
    opponent = OPPONENTS[name]
    if why := opponent.lacks():
        pytest.skip(why)
    with Wire(router) as site:
        program = tools.built("traffic", site.directory)
        meter = Meter(site, program, knobs(0.5, slow=True))
        with opponent.join(site):
            site.offloads(False)
            meter.verify()
            assert meter.round_trip("rtt")["rtt_p50"] > 1
            meter.no_wrong_checksums()


@live
def test_damage_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who delivers other bytes than were sent has no figures."""
    with Wire() as site, OPPONENTS["kernel"].join(site):
        meter = Meter(site, tools.built("traffic", site.directory), knobs(0.5, slow=True))
        meter.verify()
        monkeypatch.setattr("dataplane.demo_traffic.Transfer.intact", property(lambda _: False))
        with pytest.raises(DataplaneError, match="not what was sent"):
            meter.verify()


@live
def test_a_killed_run_is_cleaned_up_by_the_next() -> None:
    words = [sys.executable, "-m", "bench.peers", "--rounds", "1", "--opponents", "dataplane"]
    run = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    own = f"{PREFIX}{run.pid}-"
    deadline = time.monotonic() + 20
    while not any(n == f"{own}pb" for n in ours()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert f"{own}a" in demo_net.remove_leftovers(PREFIX)
    assert not [name for name in ours() if name.startswith(own)]
    assert not list(Path(tempfile.gettempdir()).glob(f"{own}*"))


def test_without_namespaces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_net, "why_not", lambda: "no root")
    assert command.main([]) == 2
    assert "no root" in capsys.readouterr().err
