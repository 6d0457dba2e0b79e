"""What a look at a node found: whether it is well, and the command that mends it."""

from typing import NamedTuple

OK, WARNING, FAILURE = "ok", "warning", "failure"
FULL = 0.9  # of what is bounded


class Finding(NamedTuple):
    """`level` is ok, warning or failure; `fix` a command or a change of the policy."""

    level: str
    subject: str
    message: str
    fix: str = ""
