"""`make figures`: what the last runs of `make bench` and `make bench-peers` found, in the README.

The few figures that it shows are kept in bench/figures.json, with machine, date and command; the
README's part between the marks is made of that file alone, and a test compares them.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.engine import VPP
from bench.peers.opponents import KERNEL, OPPONENTS
from bench.peers.report import COSTS, TITLES
from bench.results import HERE, RESULTS, machine_line
from bench.svg import number
from dataplane import bench
from dataplane.bench_traffic import WORKS

Figures = dict[str, Any]
Row = dict[str, Any]

KEPT = HERE / "figures.json"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: made by `make figures` -->\n", "<!-- end of figures -->\n"
HEAD = ("command", "date", "quick", "rounds", "seconds", "failures")
MACHINE = ("cpu", "cores", "tsc_mhz", "kernel", "python", "build", "load")
ONE_MORE, EDITED = ", one changed", ", one edited"
SHOWN = ("dataplane", "busy", "xdp", "ovs", "naive", "scapy")


# ---- what is kept ------------------------------------------------------------------------------


def of_engine(report: Mapping[str, Any]) -> Figures:
    """The few of `engine.json` that are shown."""
    rows: list[Row] = report["results"]
    packets = [row for row in rows if row.get("acl_rules") == bench.FULL and "flows" in row]
    return {
        **_head(report),
        "hits": {work: _by_flows(packets, work, "hit", "cycles_per_packet") for work in WORKS},
        "misses": {work: _by_flows(packets, work, "miss", "flows_per_second") for work in WORKS},
        "added_ns": max(row["added_ns"] for row in rows if "batch" in row),
        "memory": {row["memory"]: row["bytes_each"] for row in rows if "memory" in row},
        "commits": {row["work"]: row["seconds"] for row in rows if "seconds" in row},
        "p99_us": {row["meanwhile"]: row["p99_us"] for row in rows if "meanwhile" in row},
        "workers": {
            row["flows_of_each"]: [row["workers"], row["speedup"]]
            for row in rows
            if "workers" in row
        },
        "attack": max(r["ratio"] for r in rows if r.get("one_in") == 1024),
    }


def _head(report: Mapping[str, Any]) -> Figures:
    machine = {key: report["machine"][key] for key in MACHINE if key in report["machine"]}
    return {key: report[key] for key in HEAD if key in report} | {"machine": machine}


def _by_flows(rows: list[Row], work: str, path: str, key: str) -> dict[str, list[float]]:
    """Best and median by number of flows."""
    found = [row for row in rows if (row["work"], row["path"]) == (work, path)]
    return {str(row["flows"]): [row[key], row[f"median_{key}"]] for row in found}


def of_peers(report: Mapping[str, Any]) -> Figures:
    """The kernel's own medians, and the others' ratios to it: median, least, most."""
    kept: Figures = _head(report) | {"underlays": {}}
    for row in report["results"]:
        place = kept["underlays"].setdefault(row["underlay"], {}).setdefault(row["measure"], {})
        if row["opponent"] == KERNEL:
            place[KERNEL] = float(number(row["median"]).replace(",", ""))
        elif "ratio" in row:
            ratios = row["ratio"], row["ratio_min"], row["ratio_max"]
            place[row["opponent"]] = [float(number(r).replace(",", "")) for r in ratios]
    return kept


# ---- what is shown -----------------------------------------------------------------------------


def render(figures: Mapping[str, Figures]) -> str:
    """The README's part, Markdown."""
    return "\n".join([*_engine(figures["engine"]), "", *_peers(figures["peers"])]) + "\n"


def _engine(told: Figures) -> Iterator[str]:
    flows = list(next(iter(told["hits"].values())))
    new = list(next(iter(told["misses"].values())))[-1]
    yield f"{machine_line(told)}. {told['machine']['build'].partition(',')[0]}."
    yield ""
    heads = [_flows(n) for n in flows]
    yield f"| work | {' | '.join(heads)} | new flows, million a second | VPP, 1,000 / 1,000,000 |"
    yield "|---" * (len(flows) + 3) + "|"
    for work, hits in told["hits"].items():
        cells = [_best(*hits[n]) for n in flows]
        best, median = told["misses"][work][new]
        vpp = f"{VPP[work][0]} / {VPP[work][1]}" if work in VPP else "-"
        yield f"| {work} | {' | '.join(cells)} | {_best(best / 1e6, median / 1e6)} | {vpp} |"
    yield ""
    yield (
        "TSC cycles a packet, best of windows (median). VPP's are published figures of another "
        "machine (Zen 3, TSC 2.25 GHz, best of runs), of the nearest feature by itself: "
        + "; ".join(f"{work} {what}" for work, (_, _, what) in VPP.items())
        + "."
    )
    yield ""
    yield from _rest(told)


def _flows(count: str) -> str:
    return "1 flow" if count == "1" else f"{int(count):,} flows"


def _best(best: float, median: float) -> str:
    return f"{number(best)} ({number(median)})"


def _rest(told: Figures) -> Iterator[str]:
    if told["workers"]:
        n, own = told["workers"]["own"]
        same, new = (number(told["workers"][flows][1]) for flows in ("same", "new"))
        yield (
            f"- {n} workers on as many cores forward {number(own)} times as much as one, "
            f"{same} times where all have the same flows; new flows, in turns, {new} times."
        )
    yield f"- Python adds {number(told['added_ns'])} ns to a packet, in batches of 256."
    memory = [f"{number(n)} bytes each of {_count(what)}" for what, n in told["memory"].items()]
    yield f"- Memory: {', '.join(memory)}, index and Python's model included."
    for what, seconds in told["commits"].items():
        if not what.endswith((ONE_MORE, EDITED)):
            again = [
                f"{how} in {number(1e3 * told['commits'][what + how])} ms"
                for how in (ONE_MORE, EDITED)
                if what + how in told["commits"]
            ]
            once = f"{number(1e3 * seconds)} ms"
            yield f"- {_count(what)}: planned and committed in {once}{''.join(again)}."
    quiet, busy = (number(told["p99_us"][meanwhile]) for meanwhile in ("quiet", "commits"))
    yield (
        f"- 256 packets with NAT take {quiet} µs at the 99th percentile, {busy} µs "
        "while another thread commits policies of 100,000 remote subnets."
    )
    attack = number(told["attack"])
    yield f"- A tuple space attack, one packet in 1,024: known flows' packets cost {attack} times."


def _count(text: str) -> str:
    """Numbers with commas."""
    return " ".join(f"{int(word):,}" if word.isdecimal() else word for word in text.split())


def _peers(told: Figures) -> Iterator[str]:
    yield f"{machine_line(told)}, {told['rounds']} rounds."
    for underlay, measures in told["underlays"].items():
        names = [n for n in SHOWN if any(n in found for found in measures.values())]
        yield ""
        titles = [f"{OPPONENTS[name].title}" for name in names]
        yield f"| offloads {underlay} | kernel | {' | '.join(titles)} |"
        yield "|---" * (len(names) + 2) + "|"
        for measure, found in measures.items():
            title, unit = TITLES[measure]
            less = " (less is better)" if measure in COSTS else ""
            own = f"{number(found[KERNEL])} {unit}" if KERNEL in found else "-"
            cells = [_ratio(found.get(name)) for name in names]
            yield f"| {title}{less} | {own} | {' | '.join(cells)} |"


def _ratio(found: list[float] | None) -> str:
    if found is None:
        return "-"
    ratio, least, most = map(number, found)
    return ratio if least == most else f"{ratio} ({least}-{most})"


# ---- where it goes -----------------------------------------------------------------------------


def inserted(readme: str, block: str) -> str:
    """The README with its figures replaced. Raises ValueError where the marks are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md lacks the marks between which the figures go")
    return before + begin + "\n" + block + "\n" + end + after


def main(results: Path = RESULTS, kept: Path = KEPT, readme: Path = README) -> int:
    """Takes over what is there; of a bench that has not run, the figures stay."""
    figures: Figures = json.loads(kept.read_text()) if kept.exists() else {}
    for name, reduced in (("engine", of_engine), ("peers", of_peers)):
        path = results / f"{name}.json"
        if path.exists():
            figures[name] = reduced(json.loads(path.read_text()))
        elif name not in figures:
            print(f"{path} is missing: run the bench first", file=sys.stderr)
            return 1
    kept.write_text(json.dumps(figures, indent=1) + "\n")
    readme.write_text(inserted(readme.read_text(), render(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
