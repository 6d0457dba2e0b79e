"""The bytes of an Ethernet frame to its headers by name, and to words that `parse` reads back.

Never raises: what is cut or wrong is said under `error`.
"""

from ipaddress import IPv6Address
from struct import unpack_from
from typing import Any

from dataplane.address import Mac, ip_from16
from dataplane.packet_build import build, checksum, pseudo_header
from dataplane.packet_spec import FLAGS, ND_FLAGS, PROTOCOLS, PacketSpec, text_of

HEADERS = (
    *(
        "src",
        "dst",
        "sport",
        "dport",
        "ttl",
        "smac",
        "dmac",
        "proto",
        "mss",
        "flags",
        "type",
        "code",
    ),
    *("id", "seq", "len", "tos", "df", "mf", "frag", "ipid", "vlan", "mtu", "bad_checksum"),
    *("target", "lladdr"),
)
_KINDS = {number: name for name, number in PROTOCOLS.items()}
_EXTENSIONS = (0, 43, 44, 60)
_V4 = b"\0" * 10 + b"\xff\xff"

Headers = dict[str, Any]


class _Cut(Exception):
    """A header is not all there, or lies about its size."""


def describe(frame: bytes, vxlan_port: int = 4789, length: int = 0) -> Headers:
    """The frame's headers: names of HEADERS as str or int, and `text`, the frame in words.

    A VXLAN packet is described by its inner frame; `outer` holds the outer headers and the VNI.
    `error` says what was cut or wrong; `text` then names what could be read.
    `length`: bytes it had where a snap length has cut it, which is no error: `cut` says how many
    its packet lacks, and its transport checksum is not judged.
    """
    found = _frame(frame, max(length - len(frame), 0))
    payload = found.pop("payload", b"")
    if found.get("proto") == "udp" and found.get("dport") == vxlan_port and len(payload) >= 8:
        flags, vni = unpack_from("!B3xI", payload)
        if flags & 8:
            outer = found | {"vni": vni >> 8}
            outer["text"] = f"{found.get('text', '')} vni {vni >> 8}"
            found = _frame(payload[8:], found.get("cut", 0))
            found.pop("payload", None)
            found["outer"] = outer
    return found


def _frame(frame: bytes, cut: int) -> Headers:
    found: Headers = {"cut": cut} if cut else {}
    fields: dict[str, Any] = {}
    try:
        _ethernet(frame, found, fields)
    except _Cut as fault:
        found["error"] = str(fault)
    if "src" in fields and "error" not in found:
        found["text"] = text_of(_neighbours(frame, found, fields) or PacketSpec(**fields))
    else:
        known = (f"{name} {value}" for name, value in found.items() if name != "payload")
        found["text"] = ", ".join(known) or "nothing"
    return found


def _ethernet(frame: bytes, found: Headers, fields: dict[str, Any]) -> None:
    _need(frame, 14, "Ethernet header")
    dmac, smac = Mac.from_bytes(frame[:6]), Mac.from_bytes(frame[6:12])
    found |= {"dmac": str(dmac), "smac": str(smac)}
    fields |= {"dmac": dmac, "smac": smac}
    (ethertype,) = unpack_from("!H", frame, 12)
    body = frame[14:]
    if ethertype == 0x8100:
        _need(body, 4, "VLAN tag")
        tag, ethertype = unpack_from("!HH", body)
        found["vlan"] = fields["vlan"] = tag & 0xFFF
        body = body[4:]
    if ethertype == 0x0806:
        _arp(body, found, fields)
    elif ethertype == 0x0800:
        _ip4(body, found, fields)
    elif ethertype == 0x86DD:
        _ip6(body, found, fields)
    else:
        found["error"] = f"ethertype {ethertype:#06x}"


def _arp(body: bytes, found: Headers, fields: dict[str, Any]) -> None:
    _need(body, 28, "ARP packet")
    hardware, kind, sizes, operation = unpack_from("!HHHH", body)
    if (hardware, kind, sizes) != (1, 0x0800, 0x0604) or operation not in (1, 2):
        raise _Cut("not an ARP request or reply for IPv4")
    sha, tha = Mac.from_bytes(body[8:14]), Mac.from_bytes(body[18:24])
    src, dst = ip_from16(_V4 + body[14:18]), ip_from16(_V4 + body[24:28])
    found |= {"proto": "arp", "op": operation, "src": str(src), "dst": str(dst)}
    found |= {"sha": str(sha), "tha": str(tha)}
    fields |= {"kind": "arp", "proto": operation, "src": src, "dst": dst}
    if operation == 2:
        fields["is_at"] = sha


def _ip4(body: bytes, found: Headers, fields: dict[str, Any]) -> None:
    _need(body, 20, "IPv4 header")
    first, tos, total, ipid, fragment, ttl, proto = unpack_from("!BBHHHBB", body)
    size = (first & 15) * 4
    if first >> 4 != 4 or size < 20 or total < size or _lacks(body, total, found):
        raise _Cut("IPv4 header of wrong version or length")
    _need(body, size, "IPv4 header")
    if checksum(body[:size]):
        found["bad_checksum"] = "ip"
    src, dst = ip_from16(_V4 + body[12:16]), ip_from16(_V4 + body[16:20])
    values = {"df": bool(fragment & 0x4000), "mf": bool(fragment & 0x2000), "ipid": ipid}
    frag = (fragment & 0x1FFF) * 8
    fields |= values | {"frag": frag or None}
    found |= {key: int(value) for key, value in values.items()} | {"frag": frag}
    _ip({"src": src, "dst": dst, "ttl": ttl, "tos": tos}, found, fields)
    _transport(body[size:total], proto, found, fields)


def _ip6(body: bytes, found: Headers, fields: dict[str, Any]) -> None:
    _need(body, 40, "IPv6 header")
    word, length, proto, ttl = unpack_from("!IHBB", body)
    if word >> 28 != 6 or _lacks(body, 40 + length, found):
        raise _Cut("IPv6 header of wrong version or length")
    src, dst = ip_from16(body[8:24]), ip_from16(body[24:40])
    _ip({"src": src, "dst": dst, "ttl": ttl, "tos": word >> 20 & 255}, found, fields)
    rest = body[40 : 40 + length]
    while proto in _EXTENSIONS and not fields.get("frag"):
        _need(rest, 8, "IPv6 extension header")
        size = 8
        if proto == 44:
            offset, ipid = unpack_from("!2xHI", rest)
            fields |= {"frag": offset & 0xFFF8, "mf": bool(offset & 1), "ipid": ipid}
            found |= {"frag": offset & 0xFFF8, "mf": offset & 1, "ipid": ipid}
        else:
            size = (rest[1] + 1) * 8
            _need(rest, size, "IPv6 extension header")
        proto, rest = rest[0], rest[size:]
    _transport(rest, proto, found, fields)


def _ip(values: dict[str, Any], found: Headers, fields: dict[str, Any]) -> None:
    fields |= values
    found |= values | {"src": str(values["src"]), "dst": str(values["dst"])}


def _transport(body: bytes, proto: int, found: Headers, fields: dict[str, Any]) -> None:
    kind = _KINDS.get(proto, "ip")
    if kind in ("icmp", "icmp6") and (kind == "icmp") != (fields["src"].version == 4):
        kind = "ip"
    fields |= {"kind": kind, "proto": proto}
    found["proto"] = kind if kind != "ip" else proto
    size = 0
    if kind != "ip" and not fields.get("frag"):
        size = {"tcp": _tcp, "udp": _ports}.get(kind, _icmp)(body, found, fields)
        whole = body[: unpack_from("!H", body, 4)[0]] if kind == "udp" else body
        if "cut" not in found:
            _verify(whole, kind, found, fields)
    found["payload"] = body[size:]
    found["len"] = fields["length"] = len(body) + found.get("cut", 0) - size


def _neighbours(frame: bytes, found: Headers, fields: dict[str, Any]) -> PacketSpec | None:
    """Names what neighbour discovery says; the spec if its words say all of it."""
    said = found.get("payload", b"")
    if fields["kind"] != "icmp6" or fields.get("icmp_type") not in (135, 136) or len(said) < 16:
        return None
    asks, target = fields["icmp_type"] == 135, IPv6Address(said[:16])
    flags = tuple(flag for bit, flag in enumerate(ND_FLAGS) if found["id"] >> bit + 13 & 1)
    found |= {"target": str(target), "flags": " ".join(flags)}
    lladdr = Mac.from_bytes(said[18:24]) if said[17:18] == b"\x01" and len(said) >= 24 else None
    if lladdr:
        found["lladdr"] = str(lladdr)
    same = {name: fields[name] for name in ("smac", "dmac", "vlan") if name in fields}
    if asks:
        spec = PacketSpec(kind="nd", proto=1, src=fields["src"], dst=target, **same)
    else:
        ends = {"src": fields["src"], "dst": fields["dst"], "is_at": lladdr}
        spec = PacketSpec(kind="nd", proto=2, **ends, flags=flags, **same)
    return spec if build(spec, fields["smac"], fields["dmac"]) == frame else None


def _tcp(body: bytes, found: Headers, fields: dict[str, Any]) -> int:
    _need(body, 20, "TCP header")
    size = (body[12] >> 4) * 4
    if size < 20:
        raise _Cut("TCP header of impossible length")
    _need(body, size, "TCP header")
    sport, dport = unpack_from("!HH", body)
    flags = tuple(flag for bit, flag in enumerate(FLAGS) if body[13] >> bit & 1)
    fields |= {"sport": sport, "dport": dport, "flags": flags, "mss": _mss(body[20:size])}
    found |= {"sport": sport, "dport": dport, "flags": " ".join(flags)}
    if fields["mss"] is not None:
        found["mss"] = fields["mss"]
    return size


def _mss(options: bytes) -> int | None:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        if options[at] == 2 and size == 4:
            return int(unpack_from("!H", options, at + 2)[0])
        at += size
    return None


def _ports(body: bytes, found: Headers, fields: dict[str, Any]) -> int:
    _need(body, 8, "UDP header")
    sport, dport, length = unpack_from("!HHH", body)
    if length < 8 or (length > len(body) + found.get("cut", 0) and not fields.get("mf")):
        raise _Cut("UDP header of impossible length")
    fields |= {"sport": sport, "dport": dport}
    found |= {"sport": sport, "dport": dport}
    return 8


def _icmp(body: bytes, found: Headers, fields: dict[str, Any]) -> int:
    _need(body, 8, "ICMP header")
    values = dict(
        zip(("icmp_type", "icmp_code", "id", "seq"), unpack_from("!BB2xHH", body), strict=True)
    )
    fields |= values
    found |= {"type": values["icmp_type"], "code": values["icmp_code"]}
    found |= {"id": values["id"], "seq": values["seq"]}
    if (fields["kind"], values["icmp_type"]) in (("icmp", 3), ("icmp6", 2)):
        found["mtu"] = values["id"] << 16 | values["seq"]
    return 8


def _verify(body: bytes, kind: str, found: Headers, fields: dict[str, Any]) -> None:
    """Names a wrong transport checksum; UDP over IPv4 need not have one, fragments cannot tell."""
    src, dst = fields["src"], fields["dst"]
    if fields.get("mf") or (kind == "udp" and body[6:8] == b"\0\0" and src.version == 4):
        return
    pseudo = b"" if kind == "icmp" else pseudo_header(src, dst, fields["proto"], len(body))
    if checksum(pseudo + body):
        found.setdefault("bad_checksum", kind)


def _lacks(body: bytes, size: int, found: Headers) -> bool:
    """Whether a packet of that size lacks more than was cut of its frame; else names what."""
    missing, cut = max(size - len(body), 0), found.pop("cut", 0)
    if 0 < missing <= cut:
        found["cut"] = missing
    return bool(missing > cut)


def _need(octets: bytes, size: int, what: str) -> None:
    if len(octets) < size:
        raise _Cut(f"{what} cut: {len(octets)} of {size} bytes")
