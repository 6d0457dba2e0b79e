"""Outbound NAT: which flows, and the bindings (semantics 5b)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference.site import Nat, Pool, within
from tests.reference.verdict import Drop
from tests.reference.wire import TCP, UDP, FlowId, is_mapped

SECOND = 10**9
HIGH = 1024  # ports below are well-known (RFC 4787 REQ-3)
SHORT_SEARCH = 64  # free ports up to which the engine finds each of them


class Inside(NamedTuple):
    vni: int
    port: str
    proto: int
    address: bytes
    sport: int
    portless: bool


@dataclass(eq=False)
class Binding:
    """`port` is None until the first translated packet leaves: only then it can be seen."""

    inside: Inside
    pool: Pool
    port: int | None
    last: int
    idle: int

    @property
    def address(self) -> bytes:
        return self.pool.address

    def fits(self, pool: Pool) -> bool:
        if self.port is None:
            return self.pool == pool
        known = self.port == 0 or pool.first <= self.port <= pool.last
        return self.address == pool.address and known


def translates(nat: Nat, flow: FlowId) -> bool:
    """Exceptions first, then destinations. A pool translates its own address family."""
    if is_mapped(flow.src) != is_mapped(nat.pool.address):
        return False
    if any(within(flow.dst, p) for p in nat.exceptions):
        return False
    return not nat.destinations or any(within(flow.dst, p) for p in nat.destinations)


def check_translatable(flow: FlowId, rule: str) -> None:
    if flow.later:
        raise Drop("fragment_untracked", rule)
    if flow.is_icmp and not flow.is_echo_request:
        raise Drop("nat_untranslatable", rule)


def has_port(flow: FlowId) -> bool:
    """Else the address alone is translated, and only one inside can have it."""
    return flow.proto in (TCP, UDP) or flow.is_echo


class Bindings:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.all: list[Binding] = []

    def find(self, inside: Inside, pool: Pool) -> Binding | None:
        return next((b for b in self.all if b.inside == inside and b.fits(pool)), None)

    def free_ports(self, pool: Pool, inside: Inside) -> set[int]:
        """Well-known ports to well-known ports only where the pool has both kinds."""
        same = [b for b in self.all if b.address == pool.address and b.inside.proto == inside.proto]
        taken = {b.port for b in same if b.port is not None}
        if inside.portless:
            return {0} - taken
        first, last = pool.first, pool.last
        if first < HIGH <= last:
            first, last = (first, HIGH - 1) if inside.sport < HIGH else (HIGH, last)
        return set(range(first, last + 1)) - taken

    def check_quota(self, inside: Inside, quota: int, rule: str) -> None:
        """`quota`: most bindings of one endpoint, 0 for any number."""
        if quota and sum(b.inside.port == inside.port for b in self.all) >= quota:
            raise Drop("nat_quota", rule)

    def check_free(self, pool: Pool, inside: Inside, rule: str) -> None:
        """A binding whose port is still unseen takes a port of its pool all the same."""
        free = self.free_ports(pool, inside)
        unseen = [
            b
            for b in self.all
            if b.port is None and b.pool == pool and b.inside.proto == inside.proto
        ]
        taken = [b for b in unseen if self.free_ports(pool, b.inside) & free]
        if len(free) <= len(taken):
            raise Drop("nat_exhausted", rule)

    def add(self, inside: Inside, pool: Pool, now: int, idle: int, rule: str) -> Binding:
        if len(self.all) >= self.limit:
            raise Drop("nat_table_full", rule)
        binding = Binding(inside, pool, None, now, idle)
        self.all.append(binding)
        return binding

    def drop(self, binding: Binding | None) -> None:
        self.all = [b for b in self.all if b is not binding]

    def undo(self, binding: Binding | None) -> None:
        """Takes back one that was made for a flow that came to nothing."""
        self.all = [b for b in self.all if b is not binding or b.port is not None]

    def expire(self, now: int, held: set[int]) -> int:
        """Forgets idle ones that no flow holds (given by id); returns how many."""
        before = len(self.all)
        self.all = [b for b in self.all if id(b) in held or now - b.last <= b.idle * SECOND]
        return before - len(self.all)

    def settle(self, binding: Binding, seen: int | None) -> None:
        """Adopts the outside port that the engine chose, if it may be chosen; else takes any."""
        free = self.free_ports(binding.pool, binding.inside)
        alike = {p for p in free if (p ^ binding.inside.sport) & 1 == 0}
        binding.port = min(alike or free) if seen is None else seen
        assert binding.port in free, f"outside port {seen} is taken or not of {binding.pool}"
        preferred = binding.port in alike or not alike or len(free) > SHORT_SEARCH
        assert preferred or binding.inside.portless, f"outside port {seen}: another parity"
