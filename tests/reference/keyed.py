"""The keyed hash of csrc/hash.h, for what the engine draws by lot and the twin must foretell."""

MASK = (1 << 64) - 1


def stretched(key: bytes, purpose: int) -> list[int]:
    """32 bytes as eight words, other ones for each purpose (splitmix64 over the key's four)."""
    state = [int.from_bytes(key[i : i + 8], "little") for i in range(0, 32, 8)]
    x, words = purpose, []
    for i in range(8):
        x = (x + 0x9E3779B97F4A7C15 + state[i % 4]) & MASK
        z = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        words.append(z ^ z >> 31 ^ state[(i + 1) % 4])
    return words


def digest(words: list[int], message: list[int]) -> int:
    """NH over three pairs of words, folded under two more of the key."""
    summed = 0
    for i in range(0, 6, 2):
        summed += ((message[i] + words[i]) & MASK) * ((message[i + 1] + words[i + 1]) & MASK)
    summed &= (1 << 128) - 1
    mix = ((summed & MASK) ^ words[6]) * ((summed >> 64) ^ words[7])
    return (mix ^ mix >> 64) & MASK


def halves(address: bytes) -> list[int]:
    """Of 16 bytes."""
    return [int.from_bytes(address[i : i + 8], "little") for i in (0, 8)]
