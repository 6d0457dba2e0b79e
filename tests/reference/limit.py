"""How many ICMP errors may be sent: the buckets of csrc/limit.h."""

from dataplane.model import IcmpRate
from tests.reference.keyed import digest, stretched

SLOTS = 20
SLOT_NS = 10**9 // SLOTS
PURPOSE = 5
ALL = 0xFFFF


class Limit:
    """`key`: the engine's 32 bytes. Ports have the engine's numbers."""

    def __init__(self, key: bytes) -> None:
        self.words = stretched(key, PURPOSE)
        self.buckets: dict[int, tuple[int, int]] = {}  # instants seen, shares owed

    def take(self, rate: IcmpRate, port: int, now_ns: int) -> bool:
        """Whether an error may be sent to the port; it is owed then."""
        own = self._paid(port, rate.port, rate.port_burst, now_ns)
        total = self._paid(ALL, rate.all, rate.all_burst, now_ns)
        may = (
            own[1] + SLOTS <= rate.port_burst * SLOTS and total[1] + SLOTS <= rate.all_burst * SLOTS
        )
        cost = SLOTS if may else 0
        self.buckets[port] = own[0], own[1] + cost
        self.buckets[ALL] = total[0], total[1] + cost
        return may

    def _paid(self, number: int, rate: int, burst: int, now_ns: int) -> tuple[int, int]:
        seen, owed = self.buckets.get(number, (0, 0))
        slot, rest = divmod(now_ns, SLOT_NS)
        word = digest(self.words, [slot, number, 0, 0, 0, 0])
        instants = slot + (rest >= (word & 0xFFFFFFFF) * SLOT_NS >> 32)
        if instants <= seen:
            return seen, owed
        least = ((word >> 32) * (burst // 4 + 1) >> 32) * SLOTS
        return instants, max(owed - min(owed, (instants - seen) * rate), least)
