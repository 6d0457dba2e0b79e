"""The benchmarks' pictures and reports, and what Python adds to a packet."""

import contextlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from bench import compare, figures, instructions
from bench import engine as engine_bench
from bench.svg import Bar, Chart, bars, draw, number
from dataplane import bench, bench_batch, bench_counters, bench_traffic
from dataplane.engine import Engine
from dataplane.errors import DataplaneError

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"
CHART = Chart(
    "Cycles & more", ["a note"], "cycles", ["one", "two"], {"g<1>": [Bar(50, 40, 80), Bar(100)]}
)


# ---- pictures ----------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def widths(svg: str) -> list[float]:
    """Of the bars."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [float(r.attrib["width"]) for r in found if r.get("height") == "17"]


def test_a_chart_says_what_it_shows() -> None:
    said = texts(draw(CHART))
    assert {"Cycles & more", "a note", "cycles", "one", "two", "g<1>", "50", "100"} <= set(said)


def test_bars_are_as_long_as_their_values() -> None:
    first, second = widths(draw(CHART))
    assert second == pytest.approx(2 * first, rel=1e-2)


def test_a_logarithmic_scale_has_equal_steps() -> None:
    chart = CHART._replace(groups={"g": bars([0.1, 1, 10])}, series="abc", log=True)
    a, b, c = widths(draw(chart._replace(mark=(0.01, "least"))))
    assert c - b == pytest.approx(b - a, rel=1e-2)


def test_spread_and_mark_are_drawn() -> None:
    plain = CHART._replace(groups={"g": bars([50, 100])})
    drawn = draw(CHART).count("<path"), draw(plain).count("<path")
    assert drawn[0] == drawn[1] + 1
    assert "goal" in texts(draw(plain._replace(mark=(70, "goal"))))


def test_everything_lies_within_the_picture() -> None:
    many = Chart("t", [], "x", [f"series {i}" for i in range(20)], {"g" * 30: bars([1.5] * 20)})
    root = ElementTree.fromstring(draw(many))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for shape in [*root.iter(f"{SVG}text"), *root.iter(f"{SVG}rect")]:
        assert 0 <= float(shape.get("x", 0)) <= width
        assert 0 <= float(shape.get("y", 0)) <= height


def test_no_picture_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        draw(CHART._replace(groups={"g": [None]}))
    with pytest.raises(ValueError, match="logarithmic"):
        draw(CHART._replace(groups={"g": bars([0.0])}, log=True))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.0412, "0.0412"), (1, "1"), (2.5, "2.5"), (15.26, "15.3"), (2534567, "2,530,000")],
)
def test_number(value: float, said: str) -> None:
    assert number(value) == said


# ---- beside an earlier commit -----------------------------------------------------------------


def report_of(cycles: float, flows: int = 1000) -> dict[str, Any]:
    row = {"work": "nat", "path": "hit", "acl_rules": 1000, "flows": flows}
    return {"results": [row | {"cycles_per_packet": cycles}, {"work": "nat", "added_ns": 5}]}


def test_ratios_are_of_neighbouring_turns() -> None:
    turns = [(80.0, 88.0), (160.0, 168.0), (80.0, 80.0)]
    pairs = [
        (compare.figures_of(report_of(before)), compare.figures_of(report_of(now)))
        for before, now in turns
    ]
    (found,) = compare.compared(pairs)
    assert found == ("nat hit, 1,000 flows, 1000 rules", 80, [1.1, 1.05, 1])
    assert found.ratio == 1.05 and "1.050  (1.000-1.100)" in str(found)
    assert not list(compare.compared([(pairs[0][0], compare.figures_of(report_of(80, 1)))]))


@pytest.mark.parametrize(("now", "code"), [(80, 0), (87, 0), (89, 1)])
def test_a_slower_engine_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], now: float, code: int
) -> None:
    before = Path("before")
    monkeypatch.setattr(compare, "built", lambda commit: contextlib.nullcontext(before))
    monkeypatch.setattr(
        compare,
        "measured",
        lambda tree: compare.figures_of(report_of(80 if tree == before else now)),
    )
    assert compare.main(["HEAD", "--turns", "2"]) == code
    assert ("slower than 1.1 times: nat hit" in capsys.readouterr().out) == bool(code)


def test_there_may_be_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An exit code that is not that of a slower engine."""
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    for why in ("not a git repository", "not a valid object name"):
        assert compare.main(["no-such-commit"]) == 2
        told = capfd.readouterr().err
        assert why in told and "python -m bench.compare: Command '['git', 'archive'" in told
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(compare, "built", lambda commit: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(compare, "measured", lambda tree: {})
    assert compare.main(["HEAD"]) == 2
    assert "HEAD measures nothing of this" in capfd.readouterr().err


# ---- step by step -----------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="single steps: x86-64 only")
def test_instructions_of_a_packet() -> None:
    """The parts are the whole, and a packet of a standing flow never walks the layers."""
    command = [sys.executable, "-m", "bench.instructions", "encap"]
    told = subprocess.check_output(command, text=True, cwd=ROOT)
    (whole, *parts) = (float(n) for n in re.findall(r" (\d+\.\d)", told))
    assert 200 < whole < 700 and whole - 5 < sum(parts) <= whole
    assert "dp_express_look" in told and "walk" not in told


@pytest.mark.skipif(platform.machine() != "x86_64", reason="single steps: x86-64 only")
def test_where_nobody_may_trace(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions, "_ptrace", lambda *_: -1)
    assert instructions.main(["encap"]) == 1
    assert "bench.instructions: the process to be traced has ended" in capfd.readouterr().err


def test_steps_are_those_of_x86_64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert instructions.main([]) == 1
    assert capsys.readouterr().err == "python -m bench.instructions: riscv64 is not x86-64\n"
    assert instructions.main(["nonsense"]) == 2


# ---- what is measured --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Engine:
    return bench.engine_for(1000, 64_000)


def test_the_batch_api_costs_less_than_the_engine(engine: Engine) -> None:
    """Python's part of a packet is about 5 ns; a loop over frames would be a hundred times that."""
    with bench.pinned():
        rows = bench_batch.measure_batch(engine, bench.tsc_mhz() / 1000, 0.5)
    assert [row["work"] for row in rows] == ["encap", "nat"]
    for row in rows:
        assert 0 < row["added_ns"] < 0.5 * row["engine_ns"], row


def test_a_dropped_frame_ends_the_batch_bench() -> None:
    with Engine(max_flows=1024, max_ports=64) as empty:
        empty.commit(bench_traffic.policy(0))
        traffic = bench_traffic.traffic(empty, "encap", 256)
        traffic.frames[:] = 0
        with pytest.raises(DataplaneError, match="not forwarded"):
            bench_batch.Caller(empty, traffic).calls(1)


@pytest.mark.parametrize("work", bench_traffic.WORKS)
def test_every_frame_is_of_another_flow(engine: Engine, work: bench_traffic.Work) -> None:
    n = 2 * bench_traffic.BINDINGS
    columns = bench_traffic.traffic(engine, work, n).flows
    assert len(set(zip(*(column.tolist() for column in columns), strict=True))) == n


def test_a_service_that_sends_elsewhere_ends_the_bench() -> None:
    node = bench_traffic.policy(0)
    (network,) = node.networks
    moved = tuple(replace(b, target_port=9) for b in network.load_balancers)
    with Engine(max_flows=1024, max_ports=64) as engine:
        engine.commit(replace(node, networks=(replace(network, load_balancers=moved),)))
        traffic = bench_traffic.traffic(engine, "service", 256)
        with pytest.raises(DataplaneError, match="service made"):
            bench.verify(engine, "service", traffic)
        engine.commit(node)
        bench.verify(engine, "service", traffic)


def test_counters_count_or_say_that_they_do_not(engine: Engine) -> None:
    (row,) = bench_counters.measure_counters(engine, (1000,))
    for key in ("core_cycles", "instructions"):
        assert row[key] is None or 10 < row[key] < 10_000
    assert "not available" in bench._cell(None)


def test_counters_without_perf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with bench_counters.counted() as found:
        pass
    assert found == {}


def test_counted_events_are_read() -> None:
    said = "123;;cycles:u;99;100.00;;\n<not supported>;;instructions;0;100.00;;\n4;;page-faults;;\n"
    assert bench_counters._read(said) == {"cycles": 123, "page-faults": 4}


# ---- reports -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("results")
    assert engine_bench.main(["--quick"], to) == 0
    return to


def test_report_has_all_kinds_of_rows(report: Path) -> None:
    told: dict[str, Any] = json.loads((report / "engine.json").read_text())
    assert {"cpu", "cores", "kernel", "build", "tsc_mhz"} <= told["machine"].keys()
    assert told["command"] == "make bench QUICK=1" and re.fullmatch(
        r"\d{4}-\d\d-\d\d", told["date"]
    )
    kinds = ("flows", "ratio", "seconds", "meanwhile", "stage", "counted_flows", "batch", "memory")
    for kind in kinds:
        assert any(kind in row for row in told["results"]), kind
    flows, _ = (row for row in told["results"] if "memory" in row)
    assert 256 * 0.8 < flows["bytes_each"] < 400  # a pair, and its part of the index
    assert flows["held"] == 64_000


def test_report_as_text_and_pictures(report: Path) -> None:
    told = json.loads((report / "engine.json").read_text())
    text = (report / "engine.txt").read_text()
    assert told["machine"]["build"] in text and "added_ns" in text
    for name in ("cycles", "misses", "stages", "commits"):
        said = texts((report / f"engine-{name}.svg").read_text())
        assert any(told["date"] in line for line in said)
    hits = [r for r in told["results"] if r.get("path") == "hit" and r.get("flows") == 64_000]
    said = texts((report / "engine-cycles.svg").read_text())
    for row in hits:
        assert number(row["cycles_per_packet"]) in said
    assert any("VPP" in line and "another machine" in line for line in said)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_bench.main(["--fast"]) == 2
    assert "usage" in capsys.readouterr().err


# ---- the README's figures ----------------------------------------------------------------------

KERNEL = {"underlay": "on", "measure": "tcp_1", "opponent": "kernel", "median": 12.345}
OURS = {**KERNEL, "opponent": "dataplane", "ratio": 0.61, "ratio_min": 0.5, "ratio_max": 0.7}


def results(report: Path, to: Path) -> Path:
    """Of both benches."""
    told = json.loads((report / "engine.json").read_text())
    peers = {**told, "command": "make bench-peers", "rounds": 3, "results": [KERNEL, OURS]}
    (to / "engine.json").write_text(json.dumps(told))
    (to / "peers.json").write_text(json.dumps(peers))
    return to


def test_the_readme_shows_the_kept_figures() -> None:
    kept = json.loads(figures.KEPT.read_text())
    readme = figures.README.read_text()
    assert figures.inserted(readme, figures.render(kept)) == readme, "run: make figures"
    for told in kept.values():
        assert told["command"].startswith("make bench") and told["date"] in readme
        assert told["machine"]["build"] and told["machine"]["cpu"] in readme


def test_figures_are_taken_from_the_results(report: Path, tmp_path: Path) -> None:
    readme, kept = tmp_path / "README.md", tmp_path / "figures.json"
    readme.write_text(f"before\n{figures.BEGIN}old\n{figures.END}after\n")
    assert figures.main(results(report, tmp_path), kept, readme) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| TCP, 1 stream | 12.3 Gbit/s | 0.61 (0.5-0.7) |" in text
    told = json.loads((report / "engine.json").read_text())
    (row,) = (
        r
        for r in told["results"]
        if (r.get("path"), r.get("work"), r.get("flows"), r.get("acl_rules"))
        == ("hit", "nat", 1, 1000)
    )
    assert number(row["cycles_per_packet"]) in text and told["date"] in text
    assert "make bench QUICK=1" in text and "another machine" in text
    (tmp_path / "peers.json").unlink()
    assert figures.main(tmp_path, kept, readme) == 0 and readme.read_text() == text


def test_figures_want_results_and_marks(tmp_path: Path, capsys: Any) -> None:
    assert figures.main(tmp_path, tmp_path / "figures.json", tmp_path / "README.md") == 1
    assert "run the bench first" in capsys.readouterr().err
    with pytest.raises(ValueError, match="marks"):
        figures.inserted("no marks", "x")
