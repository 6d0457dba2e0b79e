"""Filters on flows and events: `ip=10.1.0.0/16`, `port!=53`, `endpoint=blue/web`.

All conditions have to hold; `ip` and `port` look at both sides. A value of several, parted by
commas, is met by any of them.
"""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane.address import Prefix, Span, ip16, parse_ip, parse_prefix, prefix16
from dataplane.errors import DataplaneError
from dataplane.ids import Ids
from dataplane.model import PROTOCOLS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

FIELDS = {
    "vni": "number of the network",
    "proto": "tcp, udp, icmp, icmp6, sctp or a number",
    "ip": "address or prefix of either side",
    "src": "address or prefix of the initiator",
    "dst": "address or prefix it sends to",
    "port": "port of either side",
    "sport": "port of the initiator",
    "dport": "port it sends to",
    "endpoint": "NETWORK/ENDPOINT of either side",
    "peer": "provider address",
    "state": "new, est or closing",
}
STATES = ("new", "est", "closing")
_V4: Span = prefix16(ip_network("0.0.0.0/0"))  # how IPv4 stands among the 128 bits


class Condition(NamedTuple):
    """One of them, read already: `values` are as the field wants them."""

    field: str
    values: tuple[Any, ...]
    negated: bool


def parse(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Raises DataplaneError."""
    return tuple(map(_parse, texts))


def _parse(text: str) -> Condition:
    field, equals, value = text.partition("=")
    negated = field.endswith("!")
    field = field.removesuffix("!").strip()
    if not equals or field not in FIELDS:
        known = ", ".join(FIELDS)
        raise DataplaneError(f"{text!r} is no filter: FIELD=VALUE or FIELD!=VALUE, of {known}")
    try:
        values = tuple(_value(field, part.strip()) for part in value.split(","))
    except ValueError as error:
        raise DataplaneError(f"filter {text!r}: {error}") from None
    return Condition(field, values, negated)


def _value(field: str, text: str) -> Any:
    if field in ("ip", "src", "dst", "peer"):
        return parse_prefix(text) if "/" in text else ip_network(parse_ip(text))
    if field == "proto":
        return PROTOCOLS[text] if text in PROTOCOLS else _number(text, 255)
    if field == "state":
        if text not in STATES:
            raise ValueError(f"{text!r} is not one of {', '.join(STATES)}")
        return text
    if field == "endpoint":
        return text
    return _number(text, (1 << 24) - 1 if field == "vni" else 65535)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        raise ValueError(f"{text!r} is not a number from 0 to {most}")
    return int(text)


# ---- events ------------------------------------------------------------------------------------


def meets(event: Mapping[str, Any], conditions: Iterable[Condition]) -> bool:
    """Whether an event, or a flow as plain values, meets all conditions."""
    return all(
        any(_is(event, c.field, value) for value in c.values) != c.negated for c in conditions
    )


def _is(event: Mapping[str, Any], field: str, value: Any) -> bool:
    if field in _SIDES:
        found = [event.get(name) for name in _SIDES[field]]
        if field in ("ip", "src", "dst"):
            return any(side is not None and ip_address(side) in value for side in found)
        return value in found and event.get("protocol") in _PORTED
    if field == "peer":
        provider = event.get("provider")
        return provider is not None and ip_address(provider) in value
    if field == "endpoint":
        ports = (event.get("in_port"), event.get("out_port"))
        return any(port and value in (port, port.partition("/")[2]) for port in ports)
    if field == "proto":
        protocol = event.get("protocol")
        return protocol is not None and PROTOCOLS.get(protocol, protocol) in (value, str(value))
    return bool(event.get(field) == value)


_SIDES = {
    "ip": ("src", "dst"),
    "src": ("src",),
    "dst": ("dst",),
    "port": ("sport", "dport"),
    "sport": ("sport",),
    "dport": ("dport",),
}
_PORTED = ("tcp", "udp", "sctp")


# ---- flow records ------------------------------------------------------------------------------


def matching(records: "NDArray[np.void]", conditions: Iterable[Condition], ids: Ids) -> "Mask":
    """Which of the records of `struct dp_flow_info` meet all conditions."""
    import numpy as np

    found = np.ones(len(records), np.bool_)
    for condition in conditions:
        met = np.zeros(len(records), np.bool_)
        for value in condition.values:
            met |= _MATCHERS[condition.field](records, value, ids)
        found &= ~met if condition.negated else met
    return found


def octets_of(records: "NDArray[np.void]", name: str) -> "NDArray[np.uint8]":
    """A column of addresses, 16 bytes a row."""
    import numpy as np

    return np.ascontiguousarray(records[name]).view(np.uint8).reshape(len(records), 16)


def _address(records: "NDArray[np.void]", names: Iterable[str], prefix: Prefix) -> "Mask":
    import numpy as np

    def inside(name: str) -> "Mask":
        octets = octets_of(records, name)
        of_v4 = _inside(octets, _V4)
        of_family = of_v4 if prefix.version == 4 else ~of_v4
        return _inside(octets, prefix16(prefix)) & of_family

    found: Mask = np.any([inside(name) for name in names], axis=0)
    return found


def _inside(octets: "NDArray[np.uint8]", span: Span) -> "Mask":
    import numpy as np

    first, length = span
    mask = ((1 << 128) - (1 << (128 - length))).to_bytes(16)
    bits = np.frombuffer(mask, np.uint8)
    found: Mask = ((octets & bits) == np.frombuffer(first, np.uint8)).all(axis=1)
    return found


def _port(records: "NDArray[np.void]", names: Iterable[str], port: int) -> "Mask":
    import numpy as np

    ported = np.isin(records["proto"], (6, 17, 132))
    found: Mask = np.any([records[name] == port for name in names], axis=0) & ported
    return found


def _endpoint(records: "NDArray[np.void]", name: str, ids: Ids) -> "Mask":
    number = ids.port(name)
    if number is None:
        raise DataplaneError(f"filter endpoint={name}: there is no such endpoint")
    found: Mask = (records["in_port"] == number) | (records["out_port"] == number)
    return found


def _peer(records: "NDArray[np.void]", prefix: Any, ids: Ids) -> "Mask":
    import numpy as np

    octets = ip16(prefix.network_address)
    numbers = [n for name, n in ids.adjacencies.items() if name.address == octets]
    return np.isin(records["adjacency"], numbers)


def _state(records: "NDArray[np.void]", state: str) -> "Mask":
    closing = (records["state"] & 4) != 0
    both = (records["state"] & 3) == 3
    masks: dict[str, Mask] = {
        "closing": closing,
        "est": both & ~closing,
        "new": ~both & ~closing,
    }
    return masks[state]


Matcher = Callable[["NDArray[np.void]", Any, Ids], "Mask"]
_MATCHERS: Mapping[str, Matcher] = {
    "vni": lambda records, value, ids: records["vni"] == value,
    "proto": lambda records, value, ids: records["proto"] == value,
    "ip": lambda records, value, ids: _address(records, ("src", "dst"), value),
    "src": lambda records, value, ids: _address(records, ("src",), value),
    "dst": lambda records, value, ids: _address(records, ("dst",), value),
    "port": lambda records, value, ids: _port(records, ("sport", "dport"), value),
    "sport": lambda records, value, ids: _port(records, ("sport",), value),
    "dport": lambda records, value, ids: _port(records, ("dport",), value),
    "endpoint": _endpoint,
    "peer": _peer,
    "state": lambda records, value, ids: _state(records, value),
}
