"""What becomes of a frame."""

from typing import NamedTuple


class Drop(Exception):
    """Ends the way of a frame; `rule` is the rule that decided, where one did."""

    def __init__(self, reason: str, rule: str | None = None, mtu: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rule = rule
        self.mtu = mtu  # too_big: what would have fitted


class Outcome(NamedTuple):
    """`frame` leaves by port `egress`: the frame itself, its answer, or an ICMP error about it."""

    verdict: str  # forward, drop, answer, held
    reason: str | None = None
    egress: str | None = None
    frame: bytes | None = None
    rule: str | None = None
    partial: bool = False  # the L4 checksum of `frame` covers the pseudo-header only
    gso_size: int = 0  # of a super-frame
    packets: int = 1  # on the wire, of the frame that was judged
