"""Rounds to ratios: each opponent against the kernel's VXLAN device of the same round."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from bench.peers.measure import Values
from bench.peers.opponents import KERNEL, OPPONENTS
from bench.results import machine_line
from bench.svg import Bar, Chart, number
from dataplane.report import table

Round = dict[str, dict[str, Values]]  # by opponent, then by underlay
Row = dict[str, Any]

UNDERLAYS = {"on": "underlay with offloads", "off": "underlay without offloads"}
SPEEDS = {
    "tcp_1": ("TCP, 1 stream", "Gbit/s"),
    "tcp_1_back": ("TCP, 1 stream back", "Gbit/s"),
    "tcp_4": ("TCP, 4 streams", "Gbit/s"),
    "tcp_4_back": ("TCP, 4 streams back", "Gbit/s"),
    "udp_1": ("UDP 18 B, 1 flow", "Mpps"),
    "udp_1000": ("UDP 18 B, 1,000 flows", "Mpps"),
}
COSTS = {
    "rtt_p50": ("round trip, median", "µs"),
    "rtt_p99": ("round trip, p99", "µs"),
    "cpu_tcp_1": ("CPU, TCP 1 stream", "s/GB"),
    "cpu_tcp_4": ("CPU, TCP 4 streams", "s/GB"),
}
TITLES = {**SPEEDS, **COSTS}


def rows(rounds: list[Round]) -> Iterator[Row]:
    """One for each underlay, measure and opponent, with all rounds' values and ratios."""
    for underlay in UNDERLAYS:
        for measure, (title, unit) in TITLES.items():
            for name in OPPONENTS:
                row = _row(rounds, name, underlay, measure)
                if row is not None:
                    yield {"title": title, "unit": unit, **row}


def _row(rounds: list[Round], name: str, underlay: str, measure: str) -> Row | None:
    def of(each: Round, who: str) -> float | None:
        return each.get(who, {}).get(underlay, {}).get(measure)

    values = [of(each, name) for each in rounds]
    known = [value for value in values if value is not None]
    if not known:
        return None
    pairs = [(value, of(each, KERNEL)) for value, each in zip(values, rounds, strict=True)]
    ratios = [value / base for value, base in pairs if value is not None and base]
    row: Row = {"underlay": underlay, "measure": measure, "opponent": name, "values": known}
    row |= {"median": median(known), "ratios": ratios}
    if ratios:
        row |= {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return row


# ---- text --------------------------------------------------------------------------------------


def render(report: Mapping[str, Any]) -> str:
    """A table of ratios with their spread for each underlay; the kernel's own figures beside."""
    lines = [machine_line(report), _terms(report)]
    for underlay, title in UNDERLAYS.items():
        found = [row for row in report["results"] if row["underlay"] == underlay]
        if found:
            lines += ["", title, *table(_cells(found))]
    return "\n".join([*lines, *(f"FAILED  {failure}" for failure in report["failures"])])


def _terms(report: Mapping[str, Any]) -> str:
    least_most = "median and least to most of the rounds' ratios to the kernel's VXLAN device"
    return f"{report['rounds']} rounds, TCP {report['seconds']} s each; {least_most}"


def _cells(found: list[Row]) -> Iterator[list[str]]:
    names = [name for name in OPPONENTS if any(row["opponent"] == name for row in found)]
    by = {(row["measure"], row["opponent"]): row for row in found}
    others = [name for name in names if name != KERNEL]
    yield ["measure", "unit", KERNEL, *others]
    for measure, (title, unit) in TITLES.items():
        own = by.get((measure, KERNEL))
        cells = [_ratio(by.get((measure, name))) for name in others]
        if own or any(cells):
            yield [title, unit, number(own["median"]) if own else "-", *cells]


def _ratio(row: Row | None) -> str:
    if row is None or "ratio" not in row:
        return "-" if row is None else number(row["median"])
    low, high = number(row["ratio_min"]), number(row["ratio_max"])
    return number(row["ratio"]) + (f" ({low}-{high})" if len(row["ratios"]) > 1 else "")


# ---- pictures ----------------------------------------------------------------------------------


def charts(report: Mapping[str, Any]) -> dict[str, Chart]:
    """By underlay: what should be high, and what should be low."""
    found = {}
    for underlay, title in UNDERLAYS.items():
        for kind, measures, better in (("speed", SPEEDS, "more"), ("cost", COSTS, "less")):
            rows = [
                row
                for row in report["results"]
                if row["underlay"] == underlay and row["measure"] in measures and row.get("ratio")
            ]
            names = [n for n in OPPONENTS if n != KERNEL and any(r["opponent"] == n for r in rows)]
            if names:
                found[f"{underlay}-{kind}"] = Chart(
                    f"Against the kernel's VXLAN device: {title}",
                    [machine_line(report), _terms(report) + "."],
                    f"ratio to the kernel, {better} is better",
                    [OPPONENTS[name].title for name in names],
                    _groups(rows, names, measures),
                    mark=(1, "kernel"),
                    log=True,
                )
    return found


def _groups(
    rows: list[Row], names: list[str], measures: Mapping[str, tuple[str, str]]
) -> dict[str, list[Bar | None]]:
    by = {(row["measure"], row["opponent"]): row for row in rows}
    groups = {
        title: [_bar(by.get((measure, name))) for name in names]
        for measure, (title, _) in measures.items()
    }
    return {title: bars for title, bars in groups.items() if any(bars)}


def _bar(row: Row | None) -> Bar | None:
    return None if row is None else Bar(row["ratio"], row["ratio_min"], row["ratio_max"])
