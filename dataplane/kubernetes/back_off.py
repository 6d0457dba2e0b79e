"""Waits between attempts at a server, ever longer. Pure."""

import random

FIRST, LONGEST = 0.2, 10.0  # seconds
JITTER = 0.5  # of it: many nodes begin again at once


class BackOff:
    def __init__(self) -> None:
        self._wait = FIRST

    def reset(self) -> None:
        """The next wait is the first again."""
        self._wait = FIRST

    def next(self, least: float = 0.0) -> float:
        """Seconds to wait now, `least` or more: what the server asked for."""
        wait, self._wait = self._wait, min(self._wait * 2, LONGEST)
        return max(wait, least) * (1 + JITTER * random.random())
