"""Outbound NAT: which flows, and the bindings (semantics 5b)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference.pool import Pool
from tests.reference.site import Nat, within
from tests.reference.verdict import Drop
from tests.reference.wire import TCP, UDP, FlowId, is_mapped

SECOND = 10**9
HIGH = 1024  # ports below are well-known (RFC 4787 REQ-3)


class Inside(NamedTuple):
    """`remote`: address and port of the other side, where each has a binding of its own."""

    vni: int
    port: str
    proto: int
    address: bytes
    sport: int
    portless: bool
    remote: tuple[bytes, int] | None = None


@dataclass(eq=False)
class Binding:
    inside: Inside
    address: bytes
    port: int
    last: int
    idle: int


def translates(nat: Nat, flow: FlowId) -> bool:
    """Exceptions first, then destinations. A pool translates its own address family."""
    if is_mapped(flow.src) != is_mapped(nat.pool.address):
        return False
    if any(within(flow.dst, p) for p in nat.exceptions):
        return False
    return not nat.destinations or any(within(flow.dst, p) for p in nat.destinations)


def check_translatable(flow: FlowId, vxlan_port: int) -> None:
    """UDP to the VXLAN port would pass for a packet of this node's VTEP outside."""
    if flow.is_icmp and not flow.is_echo_request:
        raise Drop("nat_untranslatable")
    if flow.proto == UDP and flow.dport == vxlan_port:
        raise Drop("nat_vxlan")


def has_port(flow: FlowId) -> bool:
    """Else the address alone is translated, and only one inside can have it."""
    return flow.proto in (TCP, UDP) or flow.is_echo


class Terms(NamedTuple):
    """Of a new binding. `quota`: most of one endpoint, 0 for any number. `reserved`: ports of the
    outside address that others own. `idle`: seconds it outlives its last flow."""

    quota: int
    reserved: set[int]
    idle: int


class Bindings:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.all: list[Binding] = []

    def find(self, inside: Inside, pool: Pool) -> Binding | None:
        fits = (b for b in self.all if b.inside == inside and pool.holds(b.address, b.port))
        return next(fits, None)

    def of(self, address: bytes, proto: int, port: int) -> Binding | None:
        """The one that has this outside."""
        outside = address, proto, port
        return next((b for b in self.all if (b.address, b.inside.proto, b.port) == outside), None)

    def bind(
        self, inside: Inside, pool: Pool, now: int, terms: "Terms", seen: int | None
    ) -> Binding:
        """A new one. `seen`: the outside port that the engine chose, adopted if it may be chosen;
        None: any will do."""
        if terms.quota and sum(b.inside.port == inside.port for b in self.all) >= terms.quota:
            raise Drop("nat_quota")
        liked = self._ports(inside, pool, terms.reserved)
        if not liked:
            raise Drop("nat_exhausted")
        if len(self.all) >= self.limit:
            raise Drop("nat_table_full")
        port = min(liked) if seen is None else seen
        assert port in liked, f"outside port {seen} for {inside} of {pool}: taken, or another kind"
        binding = Binding(inside, pool.address, port, now, terms.idle)
        self.all.append(binding)
        return binding

    def _ports(self, inside: Inside, pool: Pool, reserved: set[int]) -> set[int]:
        """Free ones that are preferred: of the inside's parity, if there are (RFC 4787 REQ-4).
        Well-known ports go to well-known ones, where the pool has both kinds (REQ-3)."""
        taken = {
            b.port for b in self.all if b.address == pool.address and b.inside.proto == inside.proto
        }
        if inside.portless:
            return {0} - taken
        first, last = pool.first, pool.last
        if first < HIGH <= last:
            first, last = (first, HIGH - 1) if inside.sport < HIGH else (HIGH, last)
        free = set(range(first, last + 1)) - taken - reserved
        return {p for p in free if (p ^ inside.sport) & 1 == 0} or free

    def drop(self, binding: Binding | None) -> None:
        self.all = [b for b in self.all if b is not binding]

    def expire(self, now: int, held: set[int]) -> int:
        """Forgets idle ones that no flow holds (given by id); returns how many."""
        before = len(self.all)
        self.all = [b for b in self.all if id(b) in held or now - b.last <= b.idle * SECOND]
        return before - len(self.all)
