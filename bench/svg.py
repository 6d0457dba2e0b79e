"""Bar charts as SVG text: grouped horizontal bars with their values, spread and a line to beat.

An own writer, since what light chart libraries lack is what figures of a shared machine need: a
spread at each bar.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, RIGHT = 960, 90  # pixels: of all, for the last value
BAR, GAP, GROUP_GAP = 17, 3, 16
FONT = "font-family='Helvetica, Arial, sans-serif'"
COLOURS = ("#1f5fa8", "#e08214", "#3a9d5d", "#9a4fb0", "#c0392b", "#7f8c8d", "#17a2a2")
INK, FAINT, GRID = "#22262b", "#6a737d", "#e3e7eb"


class Bar(NamedTuple):
    """A value, and the least and the greatest that were seen, where there were several."""

    value: float
    low: float | None = None
    high: float | None = None


class Chart(NamedTuple):
    """`groups`: bars by the group's name, one for each of `series`; None: was not measured.

    `mark`: a line across all groups, and its name. `log`: a logarithmic scale; all values above 0.
    """

    title: str
    notes: Sequence[str]
    axis: str  # what the values are, with unit
    series: Sequence[str]
    groups: Mapping[str, Sequence[Bar | None]]
    mark: tuple[float, str] | None = None
    log: bool = False


def draw(chart: Chart) -> str:
    """A whole SVG document. Raises ValueError where a chart has nothing to show."""
    bars = [bar for group in chart.groups.values() for bar in group if bar is not None]
    if not bars:
        raise ValueError(f"{chart.title}: no values")
    scale = _Scale(chart, bars)
    head = 38 + 17 * len(chart.notes) + 20 * _legend_rows(chart.series)
    top = head + (30 if chart.mark else 12)
    parts, bottom = list(_groups(chart, scale, top)), top + _height(chart)
    height = bottom + 52
    frame = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}'"
        f" height='{height}' {FONT} role='img'>",
        f"<title>{escape(chart.title)}</title>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        _text(20, 30, chart.title, size=19, weight="bold"),
        *(_text(20, 51 + 17 * i, note, size=12, fill=FAINT) for i, note in enumerate(chart.notes)),
        *_legend(chart.series, 46 + 17 * len(chart.notes)),
    ]
    lines = [*_axis(chart, scale, top - 6, bottom), *_mark(chart, scale, top - 6, bottom), *parts]
    return "\n".join([*frame, *lines, "</svg>", ""])


class _Scale:
    """Values to pixels; ticks at 1, 2 and 5 times powers of ten."""

    def __init__(self, chart: Chart, bars: Sequence[Bar]) -> None:
        self.left = 40 + round(7.4 * max(map(len, chart.groups)))  # beside the groups' names
        most = max(max(bar.value, bar.high or 0) for bar in bars)
        least = min(bar.value if bar.low is None else bar.low for bar in bars)
        if chart.mark:
            most, least = max(most, chart.mark[0]), min(least, chart.mark[0])
        self._log = chart.log
        if chart.log:
            if least <= 0:
                raise ValueError(f"{chart.title}: {least} has no place on a logarithmic scale")
            self._low = 10.0 ** math.floor(math.log10(least))
            self._high = next(t for t in _steps(self._low) if t >= most)
            self.ticks = [t for t in _steps(self._low, self._high) if t >= self._low]
            if len(self.ticks) > 12:
                self.ticks = [t for t in self.ticks if math.log10(t) % 1 < 1e-6]
        else:
            step = next(t for t in _steps(1e-9) if t * 8 >= (most or 1))
            self._low, self._high = 0.0, step * math.ceil(most / step - 1e-9)
            self.ticks = [step * i for i in range(round(self._high / step) + 1)]

    def __call__(self, value: float) -> float:
        if self._log:
            part = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            part = value / self._high
        return self.left + part * (WIDTH - self.left - RIGHT)


def _steps(low: float, high: float = math.inf) -> Iterator[float]:
    exponent = math.floor(math.log10(low))
    while True:
        for factor in (1, 2, 5):
            value = float(f"{factor}e{exponent}")
            if value > high * 1.0001:
                return
            yield value
        exponent += 1


# ---- parts -------------------------------------------------------------------------------------


def _groups(chart: Chart, scale: _Scale, top: int) -> Iterator[str]:
    y = top
    for name, bars in chart.groups.items():
        rows = len(bars) * (BAR + GAP)
        yield _text(scale.left - 12, y + rows / 2 + 3, name, anchor="end")
        for i, bar in enumerate(bars):
            yield from _bar(bar, scale, y + i * (BAR + GAP), COLOURS[i % len(COLOURS)])
        y += rows + GROUP_GAP


def _bar(bar: Bar | None, scale: _Scale, y: int, colour: str) -> Iterator[str]:
    if bar is None:
        yield _text(scale.left + 6, y + 13, "not measured", size=11, fill=FAINT)
        return
    end, middle = scale(bar.value), y + BAR / 2
    size = f"width='{max(end - scale.left, 1):.1f}' height='{BAR}'"
    yield f"<rect x='{scale.left}' y='{y}' {size} rx='2' fill='{colour}'/>"
    if bar.low is not None and bar.high is not None and bar.low < bar.high:
        low, end = scale(bar.low), max(scale(bar.high), end)
        yield (
            f"<path d='M{low:.1f} {middle}H{scale(bar.high):.1f}M{low:.1f} {middle - 4}v8"
            f"M{scale(bar.high):.1f} {middle - 4}v8' stroke='{INK}' fill='none' opacity='0.75'/>"
        )
    yield _text(end + 6, y + 13, number(bar.value), size=12)


def _axis(chart: Chart, scale: _Scale, top: int, bottom: int) -> Iterator[str]:
    for tick in scale.ticks:
        x = scale(tick)
        yield f"<path d='M{x:.1f} {top}V{bottom}' stroke='{GRID}'/>"
        yield _text(x, bottom + 17, number(tick), size=11, fill=FAINT, anchor="middle")
    middle = (scale.left + WIDTH - RIGHT) / 2
    yield _text(middle, bottom + 38, chart.axis, size=12, fill=FAINT, anchor="middle")
    yield f"<path d='M{scale.left} {top}V{bottom}' stroke='{FAINT}'/>"


def _mark(chart: Chart, scale: _Scale, top: int, bottom: int) -> Iterator[str]:
    if chart.mark is not None:
        value, name = chart.mark
        x = scale(value)
        yield (
            f"<path d='M{x:.1f} {top}V{bottom}' stroke='{INK}' stroke-width='1.5'"
            " stroke-dasharray='5 4'/>"
        )
        yield _text(x, top - 5, name, size=12, anchor="middle")


def _legend_rows(series: Sequence[str]) -> int:
    return _placed(series)[-1][1] + 1


def _placed(series: Sequence[str]) -> list[tuple[int, int]]:
    """Where each name of the legend begins, and in which row."""
    found, x, row = [], 20, 0
    for name in series:
        width = 34 + round(7.2 * len(name))
        if x > 20 and x + width > WIDTH - 20:
            x, row = 20, row + 1
        found.append((x, row))
        x += width
    return found


def _legend(series: Sequence[str], top: int) -> Iterator[str]:
    for i, (name, (x, row)) in enumerate(zip(series, _placed(series), strict=True)):
        y = top + 20 * row
        colour = COLOURS[i % len(COLOURS)]
        yield f"<rect x='{x}' y='{y}' width='12' height='12' rx='2' fill='{colour}'/>"
        yield _text(x + 18, y + 11, name)


def _height(chart: Chart) -> int:
    return sum(len(bars) * (BAR + GAP) + GROUP_GAP for bars in chart.groups.values())


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 13,
    fill: str = INK,
    anchor: str = "start",
    weight: str = "normal",
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'"
        f" font-weight='{weight}' paint-order='stroke' stroke='#ffffff' stroke-width='3'"
        f">{escape(text)}</text>"
    )


def number(value: float) -> str:
    """Three digits that count, thousands parted by commas: 1.25, 176, 2,530,000."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if digits <= 0 else f"{rounded:.{digits}f}".rstrip("0").rstrip(".")


def bars(values: Iterable[float | None]) -> list[Bar | None]:
    """Without a spread."""
    return [None if value is None else Bar(value) for value in values]
