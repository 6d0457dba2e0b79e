"""Addresses as types: MAC, VNI, IP, prefix; and the engine's 16-byte form of IP and prefix."""

import functools
import ipaddress
import re
import socket
from abc import ABC
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from dataplane.errors import DataplaneError

if TYPE_CHECKING:
    IP = IPv4Address | IPv6Address
    Prefix = IPv4Network | IPv6Network
else:  # a decoder wants one class to ask `isinstance` of, not a union

    class IP(ABC):  # noqa: B024
        """An IPv4 or IPv6 address of the standard library."""

    class Prefix(ABC):  # noqa: B024
        """An IPv4 or IPv6 network of the standard library."""

    IP.register(IPv4Address)
    IP.register(IPv6Address)
    Prefix.register(IPv4Network)
    Prefix.register(IPv6Network)

Span = tuple[bytes, int]  # a prefix in the engine's form: 16 bytes, and length over 128 bits

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"


class Malformed(DataplaneError, ValueError):
    """A value that is not what its place wants, and how it could be mended."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} ({fix})" if fix else message)
        self.message = message
        self.fix = fix


class Mac(str):
    """A MAC address, written `02:00:5e:00:00:01`; dashes and capitals are accepted."""

    __slots__ = ()

    def __new__(cls, text: str) -> "Mac":
        if not _MAC.fullmatch(text):
            raise Malformed(f"{text!r} is not a MAC address", "six hex pairs: 02:00:5e:00:00:01")
        return super().__new__(cls, text.lower().replace("-", ":"))

    @classmethod
    def from_bytes(cls, octets: bytes) -> "Mac":
        return cls(octets.hex(":"))

    @property
    def packed(self) -> bytes:
        return bytes.fromhex(self.replace(":", ""))

    @property
    def is_multicast(self) -> bool:
        return self[1] in "13579bdf"


class Vni(int):
    """A VXLAN network identifier, 0 to 2^24 - 1 (RFC 7348 §5)."""

    __slots__ = ()

    def __new__(cls, number: int) -> "Vni":
        if isinstance(number, bool) or not 0 <= number < 1 << 24:
            raise Malformed(f"{number} is not a VNI (0-16777215)")
        return super().__new__(cls, number)


@functools.lru_cache(4096)
def parse_ip(text: str) -> IP:
    """An address. IPv4-mapped IPv6 and zone ids are refused: the engine has neither."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise Malformed(f"{text!r} is not an IP address", _address_fix(text)) from None
    if isinstance(address, IPv6Address):
        _refuse_v6_forms(text, address)
    return address


def parse_prefix(text: str) -> Prefix:
    """A prefix; a bare address is one of full length. Host bits must be clear."""
    host, slash, length = text.partition("/")
    if length.isdecimal() and text.isascii():
        try:  # the common case, at half the price
            return IPv4Network((socket.inet_pton(socket.AF_INET, host), int(length)))
        except (OSError, ValueError):
            pass
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError:
        raise _prefix_fault(text) from None
    if slash and not (length.isdecimal() and length.isascii()):
        raise Malformed(f"{text!r} has a netmask", f"write {prefix}")
    if isinstance(prefix, IPv6Network):
        _refuse_v6_forms(text, prefix.network_address, prefix.prefixlen)
    return prefix


def _refuse_v6_forms(text: str, address: IPv6Address, length: int | None = None) -> None:
    if address.scope_id is not None:
        raise Malformed(f"{text!r} has a zone id", "leave out what stands after %")
    if address.ipv4_mapped is not None:
        rest = "" if length is None else f"/{max(0, length - 96)}"
        raise Malformed(f"{text!r} is IPv4-mapped", f"write {address.ipv4_mapped}{rest}")


def _address_fix(text: str) -> str:
    if "/" in text:
        return "an address, without a prefix length"
    if re.fullmatch(r"\d+(\.\d+){3}", text) and re.search(r"\b0\d", text):
        return "leading zeros are ambiguous: some read them as octal"
    return "as 192.0.2.1 or 2001:db8::1"


def _prefix_fault(text: str) -> Malformed:
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        hint = _address_fix(text.partition("/")[0])
        fix = hint if "zero" in hint else "as 10.1.0.0/16 or 2001:db8::/64"
        return Malformed(f"{text!r} is not a prefix", fix)
    return Malformed(f"{text!r} has host bits set", f"write {wider}")


@functools.lru_cache(maxsize=1 << 16)
def host_prefix(address: IP) -> Prefix:
    """The address alone."""
    return ipaddress.ip_network(address)


def is_within(prefix: Prefix, whole: Prefix) -> bool:
    """Whether all of its addresses are the other's, too."""
    return prefix.version == whole.version and prefix.subnet_of(whole)  # type: ignore[arg-type]


def ip16(address: IP) -> bytes:
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else _V4_MAPPED + address.packed


def ip_from16(octets: bytes) -> IP:
    """The inverse of `ip16`."""
    if octets[:12] == _V4_MAPPED:
        return IPv4Address(octets[12:])
    return IPv6Address(octets)


def prefix16(prefix: Prefix) -> Span:
    """Network address as 16 bytes, and length counted over 128 bits."""
    length = prefix.prefixlen + (96 if prefix.version == 4 else 0)
    return ip16(prefix.network_address), length
