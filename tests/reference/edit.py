"""Changes a few bytes of a packet and keeps its checksum in step."""

from tests.reference.checksum import adjust


def edit(data: bytearray, at: int, new: bytes, *check_at: int | None) -> None:
    """Writes `new` at `at`; adjusts the checksums at the even offsets `check_at` (None: none)."""
    first, end = at & ~1, (at + len(new) + 1) & ~1
    old = bytes(data[first:end])
    data[at : at + len(new)] = new
    for place in check_at:
        if place is not None:
            check = int.from_bytes(data[place : place + 2])
            changed = adjust(check, old, bytes(data[first:end]))
            data[place : place + 2] = changed.to_bytes(2)
