"""The file by which flannel tells its CNI plugin what this node's subnet is.

Written as flannel's WriteSubnetFile does: FLANNEL_SUBNET is the gateway, the first address.
"""

import os
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from dataplane.flannel.documents import Config, Subnet

PLACE = "/run/flannel/subnet.env"


def text(config: Config, subnet: Subnet, mtu: int) -> str:
    return "".join(f"FLANNEL_{key}={value}\n" for key, value in _lines(config, subnet, mtu))


def write(place: Path, words: str) -> None:
    """A reader sees the old text or the new one. Raises OSError."""
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        fresh.write_text(words)
        fresh.chmod(0o644)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


def previous(place: Path) -> Subnet | None:
    """The subnet that a flannel node had here; None where nothing tells."""
    found: dict[str, str] = {}
    try:
        for line in place.read_text().splitlines():
            key, _, value = line.partition("=")
            found[key] = value
        six = found.get("FLANNEL_IPV6_SUBNET")
        return Subnet(
            IPv4Network(found["FLANNEL_SUBNET"], strict=False),
            IPv6Network(six, strict=False) if six else None,
        )
    except (OSError, ValueError, KeyError):
        return None


def _lines(config: Config, subnet: Subnet, mtu: int) -> Iterator[tuple[str, object]]:
    yield "NETWORK", config.v4.network
    yield "SUBNET", f"{subnet.v4[1]}/{subnet.v4.prefixlen}"
    if config.v6 is not None and subnet.v6 is not None:
        yield "IPV6_NETWORK", config.v6.network
        yield "IPV6_SUBNET", f"{subnet.v6[1]}/{subnet.v6.prefixlen}"
    yield "MTU", mtu
    yield "IPMASQ", "false"
