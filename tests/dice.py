"""Strategies that throw dice: composed like Hypothesis's, drawn at once from one seed.

A scenario takes thousands of draws. Thrown independently of each other and of earlier examples they
meet more of the policies' cases in the same time, by far. Hypothesis draws the seed.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Generic, TypeVar

from hypothesis import strategies

T = TypeVar("T")
U = TypeVar("U")
Draw = Callable[["Dice[Any]"], Any]


class Dice(Generic[T]):
    """Makes a value from a source of randomness."""

    def __init__(self, make: Callable[[Random], T]) -> None:
        self.make = make

    def __or__(self, other: "Dice[U]") -> "Dice[T | U]":
        return Dice(lambda r: r.choice((self.make, other.make))(r))

    def map(self, change: Callable[[T], U]) -> "Dice[U]":
        return Dice(lambda r: change(self.make(r)))

    def flatmap(self, following: Callable[[T], "Dice[U]"]) -> "Dice[U]":
        return Dice(lambda r: following(self.make(r)).make(r))

    def thrown(self) -> strategies.SearchStrategy[T]:
        """For `given`: by a seed."""
        return strategies.integers(0, (1 << 64) - 1).map(lambda seed: self.make(Random(seed)))


def just(value: T) -> Dice[T]:
    return Dice(lambda r: value)


def none() -> Dice[None]:
    return just(None)


def booleans() -> Dice[bool]:
    return Dice(lambda r: r.random() < 0.5)


def integers(least: int, most: int) -> Dice[int]:
    return Dice(lambda r: r.randint(least, most))


def sampled_from(values: Sequence[T]) -> Dice[T]:
    return Dice(lambda r: values[int(r.random() * len(values))])


def lists(of: Dice[T], *, min_size: int = 0, max_size: int, unique: bool = False) -> Dice[list[T]]:
    """`unique`: what was thrown again is left out, down to `min_size` of at least one."""

    def make(r: Random) -> list[T]:
        made = [of.make(r) for _ in range(r.randint(min_size, max_size))]
        return list(dict.fromkeys(made)) if unique else made

    return Dice(make)


def permutations(values: Sequence[T]) -> Dice[list[T]]:
    return Dice(lambda r: r.sample(values, len(values)))


def binary(*, min_size: int = 0, max_size: int) -> Dice[bytes]:
    return Dice(lambda r: r.randbytes(r.randint(min_size, max_size)))


def builds(kind: Callable[..., T], *values: Dice[Any], **fields: Dice[Any]) -> Dice[T]:
    return Dice(
        lambda r: kind(*(v.make(r) for v in values), **{k: f.make(r) for k, f in fields.items()})
    )


def composite(function: Callable[..., T]) -> Callable[..., Dice[T]]:
    """A function that is given `draw` first, as a strategy."""

    def strategy(*args: Any, **keywords: Any) -> Dice[T]:
        return Dice(lambda r: function(lambda dice: dice.make(r), *args, **keywords))

    return strategy
