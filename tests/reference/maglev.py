"""Which server a new flow gets: Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4)."""

from functools import lru_cache
from typing import NamedTuple

from tests.reference.keyed import MASK, digest, halves
from tests.reference.wire import FlowId

PRIMES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139, 524287)
PLACES = 100  # of the table, at least, for each server


class Server(NamedTuple):
    address: bytes
    port: int


def choose(servers: tuple[Server, ...], affinity: str, flow: FlowId, key: list[int]) -> Server:
    """Of those that take new flows; `flow` is addressed to the service, `key` the engine's."""
    table = _table(tuple(sorted(servers)))
    return table[digest(key, _what_counts(affinity, flow)) % len(table)]


def _what_counts(affinity: str, flow: FlowId) -> list[int]:
    proto = 0 if affinity == "source_ip" else flow.proto
    ports = flow.sport << 16 | flow.dport if affinity == "none" else 0
    return [*halves(flow.src), *halves(flow.dst), proto << 32 | ports, 0]


@lru_cache(1024)
def _table(servers: tuple[Server, ...]) -> list[Server]:
    """Servers take turns; each takes the first place of its own order that is still free."""
    size = next(p for p in PRIMES if p >= len(servers) * PLACES)
    table: list[Server | None] = [None] * size
    orders = [_order(server, size) for server in servers]
    turn = 0
    while None in table:
        place = next(p for p in orders[turn % len(servers)] if table[p] is None)
        table[place] = servers[turn % len(servers)]
        turn += 1
    return table  # type: ignore[return-value]


def _order(server: Server, size: int) -> list[int]:
    """All places, in steps that are prime to their number."""
    offset, skip = _number(server, 1) % size, _number(server, 2) % (size - 1) + 1
    return [(offset + i * skip) % size for i in range(size)]


def _number(server: Server, purpose: int) -> int:
    """The same on every node: no key."""
    h = purpose
    for word in (*halves(server.address), server.port):
        h = (h ^ word) * 0x9E3779B97F4A7C15 & MASK
        h = (h ^ h >> 32) * 0xD6E8FEB86659FD93 & MASK
        h ^= h >> 29
    return h
