"""A clock that moves only when told to."""


class SimClock:
    """Time in nanoseconds from `start_ns` on; the engine's timers run by it, so tests repeat."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now = start_ns

    def now_ns(self) -> int:
        return self._now

    def advance(self, *, seconds: float = 0, ns: int = 0) -> int:
        """Moves on, never back; returns the new time."""
        step = ns + round(seconds * 1_000_000_000)
        if step < 0:
            raise ValueError(f"time does not run backwards: {step} ns")
        self._now += step
        return self._now
