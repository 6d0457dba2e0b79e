"""Tables as plain aligned text."""

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of aligned columns: numbers to the right, the rest to the left."""
    texts = [[str(cell) for cell in row] for row in rows]
    if not texts:
        return []
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(map(_aligned, row, widths)).rstrip() for row in texts]


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell.isdecimal() else cell.ljust(width)
