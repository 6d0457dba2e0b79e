"""`make bench`: the engine's figures as JSON, as text and as pictures, into bench/results/."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.results import RESULTS, machine_line, today, write
from bench.svg import Bar, Chart
from dataplane import bench
from dataplane.bench_traffic import WORKS

Report = dict[str, Any]
Row = dict[str, Any]

# VPP 26.06, best of runs, at 1,000 and 1,000,000 flows: TSC cycles a packet as they were measured
# on another machine (AMD Zen 3, TSC 2.25 GHz) with 60-byte frames, for the nearest of its features.
VPP = {
    "encap": (238, 322, "with a stateful ACL of 1,000 rules"),
    "decap": (175, 180, "routed, without ACL"),
    "nat": (352, 807, "NAT without ACL"),
}
FLOWS = {1: "1 flow", 1000: "1,000", 64_000: "64,000", 1_000_000: "1,000,000"}


def charts(report: Report) -> dict[str, Chart]:
    notes = [machine_line(report)]
    return {
        "cycles": cycles(report, notes),
        "misses": misses(report, notes),
        "stages": stages(report, notes),
        "commits": commits(report, notes),
    }


def cycles(report: Report, notes: list[str]) -> Chart:
    rows = [r for r in report["results"] if r.get("path") == "hit" and r.get("policy") == "full"]
    rows = [r for r in rows if r.get("acl_rules") == bench.FULL and "flows" in r]
    flows = sorted({row["flows"] for row in rows})
    groups: dict[str, list[Bar | None]] = {}
    for work in WORKS:
        found = {row["flows"]: row for row in rows if row["work"] == work}
        groups[work] = [_spread(found.get(n), "cycles_per_packet") for n in flows]
        groups[work] += _vpp(work)
    return Chart(
        "Cycles a packet of standing flows, whole policy",
        [
            *notes,
            "Best of windows; the line goes to the median. Guard, 1,000 stateful ACL rules each "
            "way, services, NAT, routes, VXLAN; 64-byte frames.",
            "VPP: published figures of another machine (Zen 3, TSC 2.25 GHz, best of runs), "
            "nearest feature:",
            ", ".join(f"{work} {what[2]}" for work, what in VPP.items()) + ".",
        ],
        "TSC cycles a packet, one core",
        [*(FLOWS.get(n, f"{n:,}") for n in flows), "VPP, 1,000 flows", "VPP, 1,000,000 flows"],
        groups,
    )


def _vpp(work: str) -> list[Bar | None]:
    known = VPP.get(work)
    return [None, None] if known is None else [Bar(known[0]), Bar(known[1])]


def _spread(row: Row | None, key: str) -> Bar | None:
    return None if row is None else Bar(row[key], row[key], row[f"median_{key}"])


def misses(report: Report, notes: list[str]) -> Chart:
    rows = [
        r for r in report["results"] if "flows_per_second" in r and r["acl_rules"] == bench.FULL
    ]
    flows = sorted({row["flows"] for row in rows})
    groups: dict[str, list[Bar | None]] = {
        work: [
            next((_fewer(r) for r in rows if (r["work"], r["flows"]) == (work, n)), None)
            for n in flows
        ]
        for work in WORKS
    }
    return Chart(
        "New flows a second, whole policy",
        [*notes, "Every packet is a flow's first. Best of windows; the line goes to the median."],
        "millions a second, one core",
        [f"{n:,} flows" for n in flows],
        groups,
        mark=(1, "goal"),
    )


def _fewer(row: Row) -> Bar:
    best, median = row["flows_per_second"] / 1e6, row["median_flows_per_second"] / 1e6
    return Bar(best, median, best)


def stages(report: Report, notes: list[str]) -> Chart:
    rows = [r for r in report["results"] if "stage" in r]
    flows = sorted({row["of_flows"] for row in rows})
    names = list(dict.fromkeys(row["stage"] for row in rows))
    by = {(row["stage"], row["of_flows"]): row for row in rows}
    groups: dict[str, list[Bar | None]] = {
        stage: [_spread(by.get((stage, n)), "stage_cycles") for n in flows] for stage in names
    }
    return Chart(
        "Cycles by stage, general way",
        [*notes, "walk: what a flow's first packet costs, through all layers."],
        "TSC cycles a packet, one core",
        [f"{n:,} flows" for n in flows],
        groups,
        log=True,
    )


def commits(report: Report, notes: list[str]) -> Chart:
    rows = {row["work"]: row for row in report["results"] if "seconds" in row}
    hows = "", ", one changed", ", one edited"
    groups: dict[str, list[Bar | None]] = {
        work: [_milliseconds(rows.get(work + how)) for how in hows]
        for work in rows
        if not work.endswith(hows[1:])
    }
    return Chart(
        "From a model to the committed policy",
        [*notes, "Plan and commit. Best of rounds; the line goes to the median."],
        "milliseconds",
        ["on an empty engine", "once more, one changed", "one edited"],
        groups,
        log=True,
    )


def _milliseconds(row: Row | None) -> Bar | None:
    if row is None:
        return None
    best, median = 1000 * row["seconds"], 1000 * row["median_seconds"]
    return Bar(best, best, median)


def described(report: Report) -> Iterator[str]:
    yield machine_line(report)
    yield f"build: {report['machine']['build']}"
    yield ""
    yield bench.render(report)


def main(words: list[str], to: Path = RESULTS) -> int:
    quick = "--quick" in words
    if set(words) - {"--quick"}:
        print("usage: python -m bench.engine [--quick]", file=sys.stderr)
        return 2
    command = "make bench" + (" QUICK=1" if quick else "")
    report: Report = {"command": command, "date": today(), "quick": quick}
    report |= bench.run(lambda what: print(what, file=sys.stderr), quick=quick)
    text = "\n".join(described(report))
    print(text)
    for path in write("engine", report, text, charts(report), to):
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
