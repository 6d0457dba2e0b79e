"""Values of HNS documents, each in one spelling: how the normal form writes them.

A reader takes a JSON value and its place, and returns the value in the normal form. It raises
HcnError, which names the place.
"""

import ipaddress
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from dataplane.address import Mac, Malformed, parse_ip
from dataplane.hns.errors import HcnError
from dataplane.model import PROTOCOLS, PortRange

Value = Any
Reader = Callable[[Value, str], Value]
ANY_PROTOCOL, VXLAN_PROTOCOL = 256, 252


def bad(place: str, message: str, symbol: str = "HCN_E_INVALID_JSON") -> HcnError:
    return HcnError(symbol, f"{place}: {message}")


def text(value: Value, place: str) -> str:
    if not isinstance(value, str):
        raise bad(place, f"{_shown(value)} is no text")
    return value


def boolean(value: Value, place: str) -> bool:
    if not isinstance(value, bool):
        raise bad(place, f"{_shown(value)} is neither true nor false")
    return value


def number(most: int) -> Reader:
    """An unsigned number, which some clients write as text."""

    def read(value: Value, place: str) -> int:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value[:20])
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise bad(place, f"{_shown(value)} is no number from 0 to {most}")
        return value

    return read


u8, u16, u32, u64 = (number((1 << bits) - 1) for bits in (8, 16, 32, 64))
vni = number((1 << 24) - 1)  # RFC 7348 §5, also where Go's clients have a uint16


def guid(value: Value, place: str) -> str:
    try:
        return str(uuid.UUID(text(value, place)))
    except ValueError:
        message = f"{_shown(value)} is no GUID"
        raise bad(place, message, "HCN_E_GUID_CONVERSION_FAILURE") from None


def mac(value: Value, place: str) -> str:
    """`00-15-5D-52-C0-00`, as Windows writes it."""
    return str(_parsed(lambda: Mac(text(value, place)), place)).upper().replace(":", "-")


def address(value: Value, place: str) -> str:
    return str(_parsed(lambda: parse_ip(text(value, place)), place))


def prefix(value: Value, place: str) -> str:
    """Host bits are cleared: Microsoft's own tests write 169.254.169.254/24."""
    given = text(value, place)
    if "%" in given:
        raise bad(place, f"{given!r} has a zone id", "HCN_E_INVALID_IP")
    try:
        return str(ipaddress.ip_network(given, strict=False))
    except ValueError:
        raise bad(place, f"{given[:60]!r} is no prefix", "HCN_E_INVALID_IP") from None


def addresses_or_set(value: Value, place: str) -> str:
    """Addresses and prefixes with commas, or names of sets (SetPolicy); sorted."""
    return _commas(value, place, _address_or_name)


def _address_or_name(part: str, place: str) -> str:
    if re.fullmatch(r"[0-9.]+(/[0-9]+)?|.*:.*", part):
        return prefix(part, place).removesuffix("/32").removesuffix("/128")
    return part


def ports(value: Value, place: str) -> str:
    """80,8080 or 8000-8100, which need not be text."""
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return _commas(
        given, place, lambda part, at: str(_parsed(lambda: PortRange.parse(part), at)), _port_key
    )


def _port_key(part: str) -> tuple[int, ...]:
    return tuple(map(int, part.split("-")))


def protocols(value: Value, place: str) -> str:
    """Numbers as text; 256 is any protocol, 252 what is VXLAN-encapsulated."""
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return _commas(given, place, lambda part, at: str(protocol(part, at)), int)


def protocol(value: Value, place: str) -> int:
    """A number, or a name as v1 has it: TCP."""
    if isinstance(value, str) and value.lower() in PROTOCOLS:
        return PROTOCOLS[value.lower()]
    if isinstance(value, str) and value.lower() == "any":
        return ANY_PROTOCOL
    found: int = number(ANY_PROTOCOL)(value, place)
    return found


def transport(value: Value, place: str) -> int:
    found = protocol(value, place)
    if found not in (6, 17):
        raise bad(place, f"{found} is neither TCP (6) nor UDP (17)", "HCN_E_INVALID_POLICY")
    return found


def choice(*known: str) -> Reader:
    """One of these words, however it is capitalised."""

    def read(value: Value, place: str) -> str:
        for word in known:
            if text(value, place).lower() == word.lower():
                return word
        raise bad(place, f"{_shown(value)} is none of {', '.join(known)}")

    return read


def never(why: str) -> Reader:
    """False: what nothing here does, and the reason."""

    def read(value: Value, place: str) -> bool:
        if boolean(value, place):
            raise bad(place, f"is not supported: {why}", "HCN_E_REQUEST_UNSUPPORTED")
        return False

    return read


def many(one: Reader, order: Callable[[Any], Any] | None = None) -> Reader:
    """A list, or text with commas; sorted where its order means nothing."""

    def read(value: Value, place: str) -> list[Any]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            raise bad(place, f"{_shown(value)} is no list")
        read_all = [one(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return sorted(_once(read_all), key=order) if order else read_all

    return read


def verbatim(value: Value, place: str) -> Value:
    return value


def _commas(
    value: Value, place: str, one: Callable[[str, str], str], order: Callable[[str], Any] = str
) -> str:
    if isinstance(value, list):
        value = ",".join(text(part, place) for part in value)
    parts = [part.strip() for part in text(value, place).split(",")]
    return ",".join(sorted(_once(one(part, place) for part in parts if part), key=order))


def _once(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _parsed(parse: Callable[[], Any], place: str) -> Any:
    try:
        return parse()
    except Malformed as error:
        raise bad(place, str(error), "HCN_E_INVALID_IP") from None


def _shown(value: Value) -> str:
    return repr(value)[:60]
