"""Packets in words, as `trace`, `expect:` and tests write them.

tcp 10.1.1.2:40000 > 10.1.2.2:80 syn mss 1460 ttl 3
udp [2001:db8::1]:53 > [2001:db8::2]:53 len 100
icmp 10.1.1.2 > 10.1.2.2 echo id 7 seq 1
arp who-has 10.1.1.1 tell 10.1.1.2
nd who-has fd00::1 tell fd00::2
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dataplane.address import IP, Mac, Malformed, parse_ip
from dataplane.errors import PacketError

FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")  # bit 0 first (RFC 9293 §3.1)
ND_FLAGS = ("override", "solicited", "router")  # bit 5 first (RFC 4861 §4.4)
RESOLVERS = ("arp", "nd")
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58}
ICMP_WORDS = {
    ("icmp", "echo"): (8, 0),
    ("icmp", "reply"): (0, 0),
    ("icmp", "unreachable"): (3, 1),
    ("icmp", "prohibited"): (3, 13),
    ("icmp", "too-big"): (3, 4),
    ("icmp", "time-exceeded"): (11, 0),
    ("icmp6", "echo"): (128, 0),
    ("icmp6", "reply"): (129, 0),
    ("icmp6", "unreachable"): (1, 3),
    ("icmp6", "prohibited"): (1, 1),
    ("icmp6", "too-big"): (2, 0),
    ("icmp6", "time-exceeded"): (3, 0),
}
_OPTIONS = "[len N] [ttl N] [tos N] [df] [mf] [frag BYTES] [ipid N] [vlan N] [smac MAC] [dmac MAC]"
_ICMP_USAGE = (
    "echo|reply|unreachable|prohibited|too-big|time-exceeded|type N code N [id N] [seq N] [mtu N]"
)
USAGE = {
    "tcp": f"tcp SRC:PORT > DST:PORT [{'|'.join(FLAGS)} …] [mss N] {_OPTIONS}",
    "udp": f"udp SRC:PORT > DST:PORT {_OPTIONS}",
    "icmp": f"icmp SRC > DST {_ICMP_USAGE} {_OPTIONS}",
    "icmp6": f"icmp6 SRC > DST {_ICMP_USAGE} {_OPTIONS}",
    "ip": f"ip PROTOCOL SRC > DST {_OPTIONS}",
    "arp": "arp who-has TARGET tell SENDER | arp reply SENDER is-at MAC tell TARGET "
    "[vlan N] [smac MAC] [dmac MAC]",
    "nd": "nd who-has TARGET tell SENDER | nd reply SENDER is-at MAC tell TARGET "
    f"[{'|'.join(ND_FLAGS)} …] [vlan N] [smac MAC] [dmac MAC]",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketSpec:
    """One packet. What a kind does not have stays at its default."""

    kind: str  # a key of USAGE
    src: IP  # ARP, ND: the sender
    dst: IP  # ARP, ND: the target
    proto: int = 0  # IP protocol number; ARP, ND: 1 for a question, 2 for a reply
    sport: int = 0
    dport: int = 0
    flags: tuple[str, ...] = ()
    mss: int | None = None
    icmp_type: int = 0
    icmp_code: int = 0
    id: int = 0  # second half of the ICMP header, high and low
    seq: int = 0
    length: int = 0  # payload bytes behind the last header
    ttl: int = 64
    tos: int = 0  # IPv6: traffic class
    df: bool = False
    mf: bool = False
    frag: int | None = None  # offset in bytes; given at all: IPv6 gets a fragment header
    ipid: int = 0
    vlan: int | None = None
    smac: Mac | None = None
    dmac: Mac | None = None
    is_at: Mac | None = None  # ARP or ND reply: the sender's MAC

    @property
    def later_fragment(self) -> bool:
        return bool(self.frag)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(PacketSpec)}
_NUMBERS = {  # option: field, lowest, highest
    "len": ("length", 0, 65535),
    "ttl": ("ttl", 0, 255),
    "tos": ("tos", 0, 255),
    "frag": ("frag", 0, 65528),
    "ipid": ("ipid", 0, 0xFFFFFFFF),
    "vlan": ("vlan", 0, 4095),
    "mss": ("mss", 0, 65535),
    "type": ("icmp_type", 0, 255),
    "code": ("icmp_code", 0, 255),
    "id": ("id", 0, 65535),
    "seq": ("seq", 0, 65535),
}
_ONLY = {  # options that not every kind has
    **dict.fromkeys(("mss", *FLAGS, "none"), ("tcp",)),
    **dict.fromkeys(("type", "code", "id", "seq", "mtu"), ("icmp", "icmp6")),
    **dict.fromkeys(ND_FLAGS, ("nd",)),
    **dict.fromkeys(
        ("len", "ttl", "tos", "df", "mf", "frag", "ipid"),
        tuple(kind for kind in USAGE if kind not in RESOLVERS),
    ),
}


# ---- words to spec --------------------------------------------------------------------------


def parse(text: str) -> PacketSpec:
    """The packet that the words mean. TCP without flags is a SYN. Raises PacketError."""
    words = text.split()
    kind = words[0] if words else ""
    if kind not in USAGE:
        kinds = " | ".join(USAGE)
        raise PacketError(f"{kind!r} is no kind of packet; a packet starts with {kinds}")
    try:
        spec = _question(kind, words) if kind in RESOLVERS else _ip(kind, words)
        _check(spec)
    except (ValueError, IndexError) as error:
        why = "it ends too early" if isinstance(error, IndexError) else str(error)
        raise PacketError(f"{text!r}: {why}; usage: {USAGE[kind]}") from None
    return spec


def _question(kind: str, words: list[str]) -> PacketSpec:
    """Of ARP or ND; or the answer."""
    if words[1] == "who-has" and words[3] == "tell":
        fields: dict[str, Any] = {"proto": 1, "dst": parse_ip(words[2]), "src": parse_ip(words[4])}
        rest = words[5:]
    elif words[1] == "reply" and words[3] == "is-at" and words[5] == "tell":
        fields = {"proto": 2, "src": parse_ip(words[2]), "dst": parse_ip(words[6])}
        fields["is_at"] = Mac(words[4])
        rest = words[7:]
    else:
        raise Malformed("it is neither a who-has nor a reply")
    return PacketSpec(kind=kind, **fields, **_options(kind, rest))


def _ip(kind: str, words: list[str]) -> PacketSpec:
    at = 1
    proto = PROTOCOLS.get(kind, 0)
    if kind == "ip":
        proto = _number("the protocol", words[1], 0, 255)
        at = 2
    ports = kind in ("tcp", "udp")
    src, sport = _side(words[at], ports)
    if words[at + 1] != ">":
        raise Malformed(f"{words[at + 1]!r} stands where > should")
    dst, dport = _side(words[at + 2], ports)
    options = _options(kind, words[at + 3 :])
    if ports and (sport is None or dport is None) and not options.get("frag"):
        raise Malformed("a port is missing")
    if options.get("frag") and (sport or dport):
        raise Malformed("a later fragment carries no ports")
    if kind == "tcp" and "flags" not in options and not options.get("frag"):
        options["flags"] = ("syn",)
    if kind.startswith("icmp") and "icmp_type" not in options and not options.get("frag"):
        raise Malformed("the ICMP type is missing")
    if src.version == 6 and options.get("mf"):
        options.setdefault("frag", 0)
    elif src.version == 4 and options.get("frag") == 0:
        del options["frag"]
    fields: dict[str, Any] = {"src": src, "dst": dst, "sport": sport or 0, "dport": dport or 0}
    return PacketSpec(kind=kind, proto=proto, **fields, **options)


def _side(word: str, ports: bool) -> tuple[IP, int | None]:
    host, port = word, ""
    if word.startswith("["):
        host, bracket, port = word[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise Malformed(f"{word!r} is not [ADDRESS]:PORT")
        port = port[1:]
    elif word.count(":") == 1:
        host, _, port = word.partition(":")
    if port and not ports:
        raise Malformed(f"{word!r} has a port, but only tcp and udp have ports")
    return parse_ip(host), _number("the port", port, 0, 65535) if port else None


def _options(kind: str, words: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    rest = iter(words)
    order = ND_FLAGS if kind == "nd" else FLAGS
    for word in rest:
        if kind not in _ONLY.get(word, (kind,)):
            raise Malformed(f"{kind} has no {word}")
        if (kind, word) in ICMP_WORDS:
            fields["icmp_type"], fields["icmp_code"] = ICMP_WORDS[kind, word]
        elif word in order or word == "none":
            chosen = {*fields.get("flags", ()), word}
            fields["flags"] = tuple(flag for flag in order if flag in chosen)
        elif word in ("df", "mf"):
            fields[word] = True
        elif word in ("smac", "dmac"):
            fields[word] = Mac(_value(word, rest))
        elif word == "mtu":
            mtu = _number("mtu", _value(word, rest), 0, 0xFFFFFFFF)
            fields["id"], fields["seq"] = mtu >> 16, mtu & 0xFFFF
        elif word in _NUMBERS:
            name, low, high = _NUMBERS[word]
            fields[name] = _number(word, _value(word, rest), low, high)
        else:
            raise Malformed(f"unknown word {word!r}")
    return fields


def _value(option: str, words: Iterator[str]) -> str:
    word = next(words, None)
    if word is None:
        raise Malformed(f"{option} lacks its value")
    return word


def _number(what: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and low <= int(text) <= high):
        raise Malformed(f"{text!r} is not {what} ({low}-{high})")
    return int(text)


def _check(spec: PacketSpec) -> None:
    if spec.src.version != spec.dst.version:
        raise Malformed("IPv4 meets IPv6")
    if spec.kind in ("arp", "icmp") and spec.src.version != 4:
        raise Malformed(f"{spec.kind} is IPv4 only")
    if spec.kind in ("icmp6", "nd") and spec.src.version != 6:
        raise Malformed(f"{spec.kind} is IPv6 only")
    if spec.kind == "nd" and spec.proto == 1 and spec.flags:
        raise Malformed(f"a question has no {spec.flags[0]}")
    if spec.src.version == 6 and spec.df:
        raise Malformed("IPv6 has no df: routers never fragment it")
    if spec.src.version == 6 and spec.ipid and spec.frag is None:
        raise Malformed("IPv6 has an ipid only in fragments")
    if spec.src.version == 4 and spec.ipid > 0xFFFF:
        raise Malformed(f"{spec.ipid} is not an IPv4 id (0-65535)")
    room = _most_payload(spec)
    if spec.length > room:
        raise Malformed(f"len {spec.length} does not fit into one packet (up to {room})")
    if (spec.frag or 0) % 8:
        raise Malformed(f"{spec.frag} is no fragment offset (a multiple of 8 bytes)")


def _most_payload(spec: PacketSpec) -> int:
    transport = {"tcp": 20 if spec.mss is None else 24, "udp": 8, "icmp": 8, "icmp6": 8}
    fragment = 8 if spec.frag is not None or spec.mf else 0  # IPv6: a header of its own
    front = 20 if spec.src.version == 4 else fragment
    return 65535 - front - transport.get(spec.kind, 0)


# ---- spec to words --------------------------------------------------------------------------


def text_of(spec: PacketSpec) -> str:
    """The words that mean the packet: `parse(text_of(spec)) == spec`."""
    if spec.kind in RESOLVERS:
        words = [f"{spec.kind} who-has {spec.dst} tell {spec.src}"]
        if spec.proto != 1:
            words = [f"{spec.kind} reply {spec.src} is-at {spec.is_at} tell {spec.dst}"]
        words += spec.flags
    else:
        proto = f" {spec.proto}" if spec.kind == "ip" else ""
        words = [f"{spec.kind}{proto} {_end(spec, spec.src, spec.sport)} >"]
        words += [_end(spec, spec.dst, spec.dport), *_particulars(spec)]
    for option, name in (("len", "length"), ("ttl", "ttl"), ("tos", "tos"), ("frag", "frag")):
        words += _unless_default(option, spec, name)
    words += [flag for flag in ("df", "mf") if getattr(spec, flag)]
    for name in ("ipid", "vlan", "smac", "dmac"):
        words += _unless_default(name, spec, name)
    return " ".join(words)


def _end(spec: PacketSpec, address: IP, port: int) -> str:
    if spec.kind not in ("tcp", "udp") or spec.later_fragment:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _particulars(spec: PacketSpec) -> list[str]:
    if spec.later_fragment:
        return []
    if spec.kind == "tcp":
        return [*(spec.flags or ("none",)), *_unless_default("mss", spec, "mss")]
    if spec.kind not in ("icmp", "icmp6"):
        return []
    code = (spec.icmp_type, spec.icmp_code)
    word = next((w for (k, w), c in ICMP_WORDS.items() if k == spec.kind and c == code), None)
    words = [word or f"type {code[0]} code {code[1]}"]
    if word == "too-big":
        return [*words, f"mtu {spec.id << 16 | spec.seq}"]
    return [*words, *_unless_default("id", spec, "id"), *_unless_default("seq", spec, "seq")]


def _unless_default(option: str, spec: PacketSpec, name: str) -> list[str]:
    value = getattr(spec, name)
    return [] if value == _DEFAULTS[name] else [f"{option} {value}"]


# ---- answers --------------------------------------------------------------------------------


def mirror(spec: PacketSpec) -> PacketSpec:
    """What the receiver naturally answers: SYN-ACK, datagram, echo reply. Raises PacketError."""
    if spec.kind in RESOLVERS or spec.later_fragment:
        raise PacketError(f"nothing naturally answers {text_of(spec)!r}")
    changes: dict[str, Any] = {
        "src": spec.dst,
        "dst": spec.src,
        "sport": spec.dport,
        "dport": spec.sport,
        "smac": spec.dmac,
        "dmac": spec.smac,
        "ttl": 64,
    }
    if spec.kind == "tcp":
        changes["flags"] = ("syn", "ack") if spec.flags == ("syn",) else ("ack",)
        changes["length"] = 0
        changes["mss"] = spec.mss if "syn" in changes["flags"] else None
    elif spec.kind in ("icmp", "icmp6"):
        echo, reply = ICMP_WORDS[spec.kind, "echo"], ICMP_WORDS[spec.kind, "reply"]
        answers = {echo: reply, reply: echo}
        code = (spec.icmp_type, spec.icmp_code)
        if code not in answers:
            raise PacketError(f"nothing naturally answers {text_of(spec)!r}")
        changes["icmp_type"], changes["icmp_code"] = answers[code]
    return dataclasses.replace(spec, **changes)
