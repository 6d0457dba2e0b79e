"""Counters as plain aligned text, greppable by the first word."""

from collections.abc import Mapping

from dataplane.stats import EXITS, Stats, adds_up
from dataplane.tables import table

FRAMES = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "originated", "consumed", "dropped")


def counters(stats: Stats) -> str:
    """Ports, drops by reason with layer and meaning, rules hit, totals, and whether they add up."""
    ports: list[tuple[object, ...]] = [("port", *FRAMES)]
    ports += [(name, *(c[column] for column in FRAMES)) for name, c in stats.ports.items()]
    drops = [
        ("drop", reason, reason.layer, count, reason.sentence)
        for reason, count in sorted(stats.reasons.items(), key=lambda item: -item[1])
    ]
    rules = [("rule", name, count) for name, count in sorted(stats.rules.items())]
    totals = [("total", name, count) for name, count in stats.totals.items()]
    told = [*table(ports), *table(drops), *table(rules), *table(totals)]
    return "\n".join([*told, f"law    {law(stats.totals)}"])


def law(totals: Mapping[str, int]) -> str:
    """The law in numbers; what was seldom, only where it was at all."""
    came = [f"{k} {totals[k]}" for k in ("rx", "copies") if k == "rx" or totals[k]]
    went = [f"{k} {totals[k]}" for k in EXITS if k != "held" or totals[k]]
    return f"{' + '.join(came)} {'==' if adds_up(totals) else '!='} {' + '.join(went)}"
