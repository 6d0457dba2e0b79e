"""Memo: results kept from one plan to the next while what they are made of is the same.

Frozen models share what they do not change, so comparisons mostly meet identical objects.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain, compress, count
from operator import is_not
from typing import Any, TypeVar

Made = TypeVar("Made")


class Memo:
    """What one plan has made, and what the plan before it had made and may still be used.

    A plan that is not committed is nobody's predecessor.
    """

    def __init__(self, old: "Memo | None" = None) -> None:
        self._old: dict[Hashable, tuple[Any, Any]] = old._new if old else {}
        self._new: dict[Hashable, tuple[Any, Any]] = {}
        self._compared: dict[tuple[int, int], tuple[tuple[Any, ...], ...]] = {}

    def __call__(self, key: Hashable, source: object, make: Callable[[], Made]) -> Made:
        kept = self._new.get(key) or self._old.get(key)
        value: Made = kept[1] if kept is not None and kept[0] == source else make()
        self._new[key] = source, value
        return value

    def kept(self, key: Hashable, otherwise: Made) -> Made:
        """What was kept under the key before."""
        found = self._old.get(key)
        return otherwise if found is None else found[1]

    def keep(self, key: Hashable, value: object) -> None:
        self._new[key] = None, value

    def spliced(
        self,
        key: Hashable,
        items: tuple[Any, ...],
        make: Callable[[tuple[Any, ...]], Made],
        splice: Callable[[Made, int, Made, int], Made],
    ) -> Made:
        """Of many items, of which few change: what is made of the changed ones is put between the
        results for as many first and last ones as are the same objects as before."""
        kept = self._new.get(key) or self._old.get(key)
        if kept is None:
            value = make(items)
        elif kept[0] is items:
            value = kept[1]
        else:
            head, tail = self.ends(kept[0], items)
            value = splice(kept[1], head, make(items[head : len(items) - tail]), tail)
        self._new[key] = items, value
        return value

    def each(
        self,
        key: Hashable,
        items: tuple[Any, ...],
        given: object,
        make: Callable[[Any], Made],
    ) -> tuple[Made, ...]:
        """What is made of each of many items, of which few change, and of what is given to all."""
        kept = self._new.get(key) or self._old.get(key)
        value: tuple[Made, ...]
        if kept is None or kept[0][0] != given:
            value = tuple(map(make, items))
        elif kept[0][1] is items:
            value = kept[1]
        else:
            (_, before), old = kept
            head, tail = self.ends(before, items)
            fresh = map(make, items[head : len(items) - tail])
            value = (*old[:head], *fresh, *old[len(old) - tail :])
        self._new[key] = (given, items), value
        return value

    def counted(
        self,
        key: Hashable,
        items: tuple[Any, ...],
        given: object,
        told: Callable[[Any], Iterable[Made]],
    ) -> Mapping[Made, int]:
        """How often each value is told, by many items, of which few change, and of what is given to
        all. No value that stays is hashed again, or changes its place."""
        kept = self._new.get(key) or self._old.get(key)
        value: dict[Made, int]
        if kept is None or kept[0][0] != given:
            value = {}
            _count(value, items, told, 1)
        elif kept[0][1] is items:
            value = kept[1]
        else:
            (_, before), value = kept[0], dict(kept[1])
            head, tail = self.ends(before, items)
            _count(value, items[head : len(items) - tail], told, 1)
            _count(value, before[head : len(before) - tail], told, -1)
        self._new[key] = (given, items), value
        return value

    def ends(self, old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[int, int]:
        """As `same_ends`, once for all that is made of the same items."""
        ids = id(old), id(new)
        if ids not in self._compared:  # which keeps both, so that no other has the id
            self._compared[ids] = old, new, same_ends(old, new)
        head, tail = self._compared[ids][2]
        return head, tail


def _count(
    into: dict[Made, int], items: Iterable[Any], told: Callable[[Any], Iterable[Made]], by: int
) -> None:
    for each in chain.from_iterable(map(told, items)):
        into[each] = into.get(each, 0) + by
        if not into[each]:
            del into[each]


def same_ends(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[int, int]:
    """How many first items, and how many last ones of the rest, are the same objects in both."""
    shorter = min(len(old), len(new))
    head = next(compress(count(), map(is_not, old, new)), shorter)
    backward = map(is_not, reversed(old), reversed(new))
    return head, min(next(compress(count(), backward), shorter), shorter - head)
