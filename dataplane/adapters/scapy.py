"""Frames to and from scapy packets. Importing scapy costs a second: it waits for the first use."""

from typing import Any


def to_scapy(frame: bytes | memoryview) -> Any:
    """The Ethernet frame as a scapy packet."""
    from scapy.layers.l2 import Ether
    from scapy.layers.vxlan import VXLAN  # noqa: F401  (teaches UDP port 4789)

    return Ether(bytes(frame))


def from_scapy(packet: Any) -> bytes:
    """The bytes of a scapy packet, its lengths and checksums filled in."""
    from scapy.compat import raw

    return bytes(raw(packet))
