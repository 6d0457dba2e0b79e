"""Outside addresses and ports of a source NAT."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    address: bytes  # 16 bytes
    first: int
    last: int
    symmetric: bool = False  # a binding for each remote; else one for all
    open: bool = False  # anyone may send to a bound port

    def holds(self, address: bytes, port: int) -> bool:
        """Port 0: of a protocol that has none."""
        return address == self.address and (port == 0 or self.first <= port <= self.last)
