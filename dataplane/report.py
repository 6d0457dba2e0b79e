"""Counters and tables as plain aligned text, greppable by the first word."""

from collections.abc import Iterable, Mapping, Sequence

from dataplane.stats import EXITS, Stats, adds_up

FRAMES = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "originated", "consumed", "dropped")


def table(rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of aligned columns: numbers to the right, the rest to the left."""
    texts = [[str(cell) for cell in row] for row in rows]
    if not texts:
        return []
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(map(_aligned, row, widths)).rstrip() for row in texts]


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


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell.isdecimal() else cell.ljust(width)
