"""Counters and tables as plain aligned text, greppable by the first word."""

from collections.abc import Iterable, Sequence

from dataplane.stats import Stats

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
    return "\n".join([*table(ports), *table(drops), *table(rules), *table(totals), law(stats)])


def adds_up(stats: dict[str, int]) -> bool:
    """The law, of totals: no frame is lost without a reason."""
    return stats["rx"] == stats["forwarded"] + stats["dropped"] + stats["consumed"]


def law(stats: Stats) -> str:
    t = dict(stats.totals)
    sign = "==" if adds_up(t) else "!="
    parts = f"forwarded {t['forwarded']} + dropped {t['dropped']} + consumed {t['consumed']}"
    return f"law    rx {t['rx']} {sign} {parts}"


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell.isdecimal() else cell.ljust(width)
