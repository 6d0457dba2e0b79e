"""Numbers the engine knows names by.

C counts and tells in numbers. A name keeps its number from commit to commit, so that flows and
counters of earlier generations stay comparable; a number is given again only after it was free for
a whole generation.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import NamedTuple, TypeVar

from dataplane.address import IP, Mac, ip16, ip_from16

UNDERLAY, HOST = "underlay", "host"
UNDERLAY_PORT, HOST_PORT, FIRST_ENDPOINT_PORT = 0, 1, 2

Key = TypeVar("Key")


class GroupName(NamedTuple):
    """Of a network's own group (`endpoint` is None), or of an endpoint's."""

    network: str
    endpoint: str | None
    layer: str
    direction: str

    def __str__(self) -> str:
        return f"{self.network}/{self.endpoint}" if self.endpoint else self.network


class RuleName(NamedTuple):
    """NETWORK/ENDPOINT/RULE, or NETWORK/RULE where it stands in the network's own group."""

    network: str
    endpoint: str | None
    layer: str
    rule: str

    def __str__(self) -> str:
        return "/".join(filter(None, (self.network, self.endpoint, self.rule)))


class AdjacencyName(bytes):
    """One VTEP of one network: VNI (3 bytes), provider address (16), MAC of its router (6).

    Bytes know their hash: there are many of these, and they are looked up at every change.
    """

    __slots__ = ()

    @classmethod
    def of(cls, vni: int, provider: IP, dr_mac: Mac) -> "AdjacencyName":
        return cls(vni.to_bytes(3) + ip16(provider) + dr_mac.packed)

    @property
    def address(self) -> bytes:
        return self[3:19]

    @property
    def dr_mac(self) -> bytes:
        return self[19:]

    @property
    def provider(self) -> IP:
        return ip_from16(self.address)

    def __str__(self) -> str:
        return str(self.provider)


@dataclass(frozen=True)
class Ids:
    """The numbers of one generation, and back."""

    ports: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[GroupName, int] = field(default_factory=dict)
    rules: Mapping[RuleName, int] = field(default_factory=dict)
    adjacencies: Mapping[AdjacencyName, int] = field(default_factory=dict)
    lineage: int = 0  # another one where adjacencies have numbers that `allot` did not give

    def port(self, name: str) -> int | None:
        """`underlay`, `host`, `NETWORK/ENDPOINT`, or an endpoint's name where only one has it."""
        if name in self.ports:
            return self.ports[name]
        found = [n for full, n in self.ports.items() if full.partition("/")[2] == name]
        return found[0] if len(found) == 1 else None

    @cached_property
    def port_names(self) -> dict[int, str]:
        return {number: name for name, number in self.ports.items()}

    @cached_property
    def group_names(self) -> dict[int, GroupName]:
        return {number: name for name, number in self.groups.items()}

    @cached_property
    def rule_names(self) -> dict[int, str]:
        return {number: str(name) for name, number in self.rules.items()}

    @cached_property
    def adjacency_names(self) -> dict[int, AdjacencyName]:
        return {number: name for name, number in self.adjacencies.items()}


def allot(old: Mapping[Key, int], *keys: Iterable[Key], first: int = 0) -> Mapping[Key, int]:
    """Numbers for all keys: those they had, else the lowest that nobody has or had in `old`."""
    wanted = set[Key]().union(*keys)  # which hashes nothing again that is a dictionary's key
    new = wanted.difference(old)
    stay = len(wanted) - len(new)
    if not new and stay == len(old):
        return old
    fresh = dict.fromkeys(filter(new.__contains__, chain(*keys))) if len(new) > 1 else new
    numbers = dict(old)
    for gone in set(old).difference(wanted) if stay < len(old) else ():
        del numbers[gone]
    return numbers | dict(zip(fresh, _free(old.values(), first, len(new)), strict=True))


def _free(taken: Collection[int], first: int, n: int) -> list[int]:
    """The lowest `n` from `first` on."""
    import numpy as np

    free = np.ones(len(taken) + n, np.bool_)  # as many as `taken` can leave no room for
    used = np.fromiter(taken, np.int64, len(taken)) - first
    free[used[(used >= 0) & (used < len(free))]] = False
    found: list[int] = (np.flatnonzero(free)[:n] + first).tolist()
    return found
