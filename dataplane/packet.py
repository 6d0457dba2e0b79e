"""Packets in words and in bytes: the language of `trace`, of `expect:` and of the tests."""

from dataplane.packet_build import build, checksum, ethernet, pseudo_header, vxlan
from dataplane.packet_describe import HEADERS, describe
from dataplane.packet_spec import USAGE, PacketSpec, mirror, parse, text_of

__all__ = [
    "HEADERS",
    "USAGE",
    "PacketSpec",
    "build",
    "checksum",
    "describe",
    "ethernet",
    "mirror",
    "parse",
    "pseudo_header",
    "text_of",
    "vxlan",
]
