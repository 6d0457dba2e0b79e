"""A document as it was written: plain values, each with its line, and the limits of its size.

A reader (`yamltree`, `jsontree`) makes the tree, `convert` makes model objects of it.
"""

from collections.abc import Sequence

MAX_BYTES = 64 << 20
MAX_VALUES = 2_000_000
MAX_DEPTH = 32

Step = str | int
Path = tuple[Step, ...]


class Tree:
    """A scalar, a list of trees, or a mapping of trees. A mapping's member has its key's line."""

    __slots__ = ("line", "value")

    def __init__(
        self,
        value: "bool | int | float | str | list[Tree] | dict[str, Tree] | None",
        line: int,
    ) -> None:
        self.value = value
        self.line = line

    def line_of(self, path: Path) -> int:
        """The line of what stands at `path`, or of its nearest parent that is there."""
        here = self
        for step in path:
            value = here.value
            if isinstance(value, dict) and step in value:
                here = value[str(step)]
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                here = value[step]
            else:
                break
        return here.line


class Complaint(Exception):
    """One thing wrong at a path. Raised where reading cannot go on, else collected."""

    def __init__(self, path: Path, message: str, fix: str = "", line: int = 0) -> None:
        super().__init__(path, message, fix, line)
        self.path = path
        self.message = message
        self.fix = fix
        self.line = line  # 0: as the tree says


def path_text(path: Sequence[Step]) -> str:
    """`$.nodes[0].networks[0].vni`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def too_deep(line: int) -> Complaint:
    return Complaint((), f"nested deeper than {MAX_DEPTH} levels", line=line)


def too_many(line: int) -> Complaint:
    return Complaint((), f"more than {MAX_VALUES:,} values", "write large states as JSON", line)
