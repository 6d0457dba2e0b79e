"""ICMP errors: the packet one quotes, and what translation does to both (RFC 5508 section 4)."""

from typing import NamedTuple

from tests.reference.checksum import adjust, checksum, pseudo_header
from tests.reference.edit import edit
from tests.reference.wire import (
    AH,
    DESTINATION,
    ETHERNET,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP6,
    MAPPED,
    ROUTING,
    TCP,
    UDP,
    FlowId,
    Packet,
    unmapped,
)

ERRORS4 = (3, 4, 5, 11, 12)  # ICMP types
REDIRECT6 = 137


class Quote(NamedTuple):
    """`flow`: of the quoted packet. Offsets of its IP and transport headers in the frame."""

    flow: FlowId
    l3: int
    l4: int


def is_icmp_error(flow: FlowId) -> bool:
    """Of a packet that is no fragment (RFC 1122 section 3.2.2, RFC 4443 section 2.4)."""
    kind = flow.dport >> 8
    if not flow.is_icmp:
        return False
    return kind < 128 or kind == REDIRECT6 if flow.proto == ICMP6 else kind in ERRORS4


def is_redirect(flow: FlowId) -> bool:
    """From a router to its neighbour: of no flow's concern."""
    return flow.is_icmp and flow.dport >> 8 in (5, REDIRECT6)


def quoted(packet: Packet) -> Quote | None:
    """None: no ICMP error, its checksum or the quoted header's is wrong, or no flow can be told."""
    if packet.fragment or not is_icmp_error(packet.flow) or not _sum_is_right(packet):
        return None
    l3 = packet.l4 + 8
    quote = bytes(packet.data[l3:])
    header = _ip4_header(quote) if packet.version == 4 else _ip6_header(quote)
    if header is None or len(quote) < header + 8:
        return None
    addresses, proto = _addresses(packet.version, quote)
    ports = _ports(FlowId(*addresses, proto, 0, 0), quote[header:])
    return ports and Quote(ports, l3, l3 + header)


def _sum_is_right(packet: Packet) -> bool:
    message = bytes(packet.data[packet.l4 :])
    src, dst = unmapped(packet.flow.src), unmapped(packet.flow.dst)
    pseudo = pseudo_header(src, dst, ICMP6, len(message)) if packet.version == 6 else b""
    return checksum(pseudo + message) == 0


def _ip4_header(quote: bytes) -> int | None:
    """Length of the quoted header, unless it is of a later fragment."""
    if len(quote) < 20 or quote[0] >> 4 != 4:
        return None
    header = (quote[0] & 15) * 4
    if not 20 <= header <= len(quote) or checksum(quote[:header]) != 0:
        return None
    return None if int.from_bytes(quote[6:8]) & 0x1FFF else header


def _ip6_header(quote: bytes) -> int | None:
    """With its extension headers."""
    found = _walked(quote) if len(quote) >= 40 and quote[0] >> 4 == 6 else None
    return found and found[0]


def _walked(quote: bytes) -> tuple[int, int] | None:
    """Where the transport header is, and its protocol."""
    proto, at = quote[6], 40
    for nth in range(9):
        if proto not in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION):
            break
        if proto == HOP_BY_HOP and nth:
            break
        head = quote[at : at + 8]
        if len(head) < 8 or nth == 8 or (proto == ROUTING and head[2] == 0):
            return None
        if proto == FRAGMENT and int.from_bytes(head[2:4]) >> 3:
            return None
        at += {FRAGMENT: 8, AH: (head[1] + 2) * 4}.get(proto, (head[1] + 1) * 8)
        if at > len(quote):
            return None
        proto = head[0]
    return at, proto


def _addresses(version: int, quote: bytes) -> tuple[tuple[bytes, bytes], int]:
    if version == 4:
        return (MAPPED + quote[12:16], MAPPED + quote[16:20]), quote[9]
    found = _walked(quote)
    return (quote[8:24], quote[24:40]), found[1] if found else 0


def _ports(flow: FlowId, l4: bytes) -> FlowId | None:
    first, second, third = (int.from_bytes(l4[i : i + 2]) for i in (0, 2, 4))
    if flow.proto in (TCP, UDP):
        return flow._replace(sport=first, dport=second)
    echo = flow._replace(sport=third, dport=first)
    return echo if echo.is_echo else None


def translate(packet: Packet, quote: Quote, sent: FlowId, source: bytes) -> None:
    """As the addressee sees it: it had sent `sent`, and the quote shows what became of that."""
    data, message = packet.data, bytes(packet.data[packet.l4 + 4 :])
    _restore(packet, quote, sent)
    check_at = packet.l4 + 2
    check = int.from_bytes(data[check_at : check_at + 2])
    after = adjust(check, message, bytes(data[packet.l4 + 4 :]))
    data[check_at : check_at + 2] = after.to_bytes(2)
    src_at = ETHERNET + (12 if packet.version == 4 else 8)
    edit(data, src_at, unmapped(source) + unmapped(sent.src), packet.ip_check_at or check_at)


def _restore(packet: Packet, quote: Quote, sent: FlowId) -> None:
    """With the checksums, so far as they are quoted."""
    data, v4 = packet.data, packet.version == 4
    ports_at = (
        quote.l4 + 6 if sent.proto == UDP and any(data[quote.l4 + 6 : quote.l4 + 8]) else None
    )
    if sent.proto == TCP and quote.l4 + 18 <= len(data):
        ports_at = quote.l4 + 16
    echo_at = quote.l4 + 2 if sent.proto not in (TCP, UDP) else None
    addresses = unmapped(sent.src) + unmapped(sent.dst)
    pseudo_check = ports_at if v4 else ports_at or echo_at
    edit(data, quote.l3 + (12 if v4 else 8), addresses, quote.l3 + 10 if v4 else None, pseudo_check)
    if sent.proto in (TCP, UDP):
        edit(data, quote.l4, sent.sport.to_bytes(2) + sent.dport.to_bytes(2), ports_at)
    else:
        edit(data, quote.l4 + 4, sent.sport.to_bytes(2), echo_at)
