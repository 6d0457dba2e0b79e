"""How many ICMP errors may be sent: the buckets of csrc/limit.h."""

from dataplane.model import IcmpRate

SLOTS = 20
SLOT_NS = 10**9 // SLOTS
PURPOSE = 5
ALL = 0xFFFF
MASK = (1 << 64) - 1


class Limit:
    """`key`: the engine's 32 bytes. Ports have the engine's numbers."""

    def __init__(self, key: bytes) -> None:
        self.words = _stretched(key)
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
        word = _hash(self.words, [slot, number, 0, 0, 0, 0])
        instants = slot + (rest >= (word & 0xFFFFFFFF) * SLOT_NS >> 32)
        if instants <= seen:
            return seen, owed
        least = ((word >> 32) * (burst // 4 + 1) >> 32) * SLOTS
        return instants, max(owed - min(owed, (instants - seen) * rate), least)


def _stretched(key: bytes) -> list[int]:
    """The key as eight words (splitmix64 over its four)."""
    state = [int.from_bytes(key[i : i + 8], "little") for i in range(0, 32, 8)]
    x, words = PURPOSE, []
    for i in range(8):
        x = (x + 0x9E3779B97F4A7C15 + state[i % 4]) & MASK
        z = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        words.append(z ^ z >> 31 ^ state[(i + 1) % 4])
    return words


def _hash(key: list[int], message: list[int]) -> int:
    """NH over three pairs, folded under two more key words."""
    summed = 0
    for i in range(0, 6, 2):
        summed += ((message[i] + key[i]) & MASK) * ((message[i + 1] + key[i + 1]) & MASK)
    summed &= (1 << 128) - 1
    mix = ((summed & MASK) ^ key[6]) * ((summed >> 64) ^ key[7])
    return (mix ^ mix >> 64) & MASK
