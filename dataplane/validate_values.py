"""Checks of single values: names, numbers, addresses, and what only one may have."""

import re
from collections.abc import Hashable, Iterable, Iterator

from dataplane.address import IP, Mac
from dataplane.model import Network
from dataplane.tree import Complaint, Path, path_text

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


def taken(what: str, items: Iterable[tuple[Hashable, Path]]) -> Iterator[Complaint]:
    seen: dict[Hashable, Path] = {}
    for key, path in items:
        first = seen.setdefault(key, path)
        if first is not path:
            shown = key[0] if isinstance(key, tuple) else key
            yield Complaint(path, f"{what} {shown} is taken", f"also at {path_text(first)}")


def named(name: str, path: Path) -> Iterator[Complaint]:
    if not _NAME.fullmatch(name):
        message = f"{name[:40]!r} is not a name"
        yield Complaint((*path, "name"), message, "letters, digits, _ . -, at most 63")


def within(what: str, value: int, low: int, high: int, path: Path) -> Iterator[Complaint]:
    if not low <= value <= high:
        yield Complaint(path, f"{value} is not a possible {what} ({low}-{high})")


def inside(address: IP, network: Network, path: Path) -> Iterator[Complaint]:
    yield from unicast(address, path)
    if network.prefixes and not any(address in prefix for prefix in network.prefixes):
        held = ", ".join(map(str, network.prefixes))
        yield Complaint(path, f"{address} lies outside of the network", f"its prefixes: {held}")


def unicast(address: IP, path: Path, loopback: bool = False) -> Iterator[Complaint]:
    """A host's address (RFC 1122 §3.2.1.3, RFC 4291 §2.5): the engine drops packets of others."""
    first, number = address.packed[0], int(address)
    if address.version == 4:
        bad = first == 0 or first >= 224 or (first == 127 and not loopback)
    else:
        bad = first == 0xFF or number == 0 or (number == 1 and not loopback)
    if bad:
        yield Complaint(path, f"{address} is no host's address")


def station(mac: Mac, path: Path) -> Iterator[Complaint]:
    if mac.is_multicast:
        yield Complaint(path, f"{mac} is a multicast MAC", f"an even first octet: 02{mac[2:]}")
    elif mac == "00:00:00:00:00:00":
        yield Complaint(path, "the all-zero MAC belongs to no one")
