"""How a front door stands: whether it ever did what its source says, and what keeps it from it."""

UNFORESEEN = "an unforeseen error, which the log has"


class Standing:
    """Told by a door's threads, read by any."""

    def __init__(self, look: str, synced: bool) -> None:
        """`look`: the command that shows how its source fares. `synced`: it has a share already."""
        self.look, self.synced = look, synced
        self._troubles: dict[str, str] = {}

    def sync(self) -> None:
        """All that the source says is done, for the first time or again."""
        self.synced = True

    def tell(self, trouble: str, of: str = "") -> None:
        """`of`: one of several things that may fail. An empty trouble is over."""
        self._troubles[of] = trouble

    @property
    def trouble(self) -> str:
        """Empty: none."""
        return "; ".join(sorted(set(filter(None, tuple(self._troubles.values())))))
