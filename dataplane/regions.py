"""Sets of numbers as intervals, and products of them: what a rule's conditions cover, exactly."""

from collections.abc import Iterable, Iterator

Interval = tuple[int, int]  # both ends included
Intervals = tuple[Interval, ...]  # sorted, disjoint
Region = tuple[Intervals, ...]  # one set a dimension: their product


def join(intervals: Iterable[Interval]) -> Intervals:
    """Their union."""
    joined: list[Interval] = []
    for low, high in sorted(intervals):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def meet(a: Intervals, b: Intervals) -> Intervals:
    """What both hold."""
    met = ((max(i[0], j[0]), min(i[1], j[1])) for i in a for j in b)
    return tuple(sorted(pair for pair in met if pair[0] <= pair[1]))


def less(a: Intervals, b: Intervals) -> Intervals:
    """What `a` holds and `b` does not."""
    left = list(a)
    for low, high in b:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return tuple(left)


def common(region: Region, other: Region) -> Region | None:
    """Their intersection; None if it is empty."""
    met = tuple(map(meet, region, other))
    return met if all(met) else None


def cut(region: Region, other: Region) -> Iterator[Region]:
    """What is left of a region outside of another, in disjoint pieces."""
    met = common(region, other)
    if met is None:
        yield region
        return
    for i, (mine, theirs) in enumerate(zip(region, other, strict=True)):
        rest = less(mine, theirs)
        if rest:
            yield (*met[:i], rest, *region[i + 1 :])


def holds(outer: Region, inner: Region) -> bool:
    """Whether `outer` holds all of `inner`."""
    return not any(less(mine, theirs) for mine, theirs in zip(inner, outer, strict=True))
