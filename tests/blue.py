"""Network blue, for tests of single rules: two endpoints, VTEPs of both families, a way out.

Frames are written in words (`dataplane.packet.parse`) or given as bytes; outer headers are made by
`carried`, and `patched` changes bytes of a frame without mending anything else.
"""

from ipaddress import ip_address, ip_network
from typing import Any

from msgspec.structs import replace

from dataplane.address import Mac, Vni
from dataplane.engine import Engine, Outcome
from dataplane.model import (
    Acl,
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet import build, parse, vxlan
from dataplane.reasons import Reason, Verdict
from tests import setting
from tests.reference.build import reply_to
from tests.reference.checksum import checksum, pseudo_header

DR, WEB, DB, PEER, HOST, STRANGER = (Mac(f"02:00:00:00:00:0{n}") for n in range(1, 7))
OUR_HOST = Mac("02:01:a9:fe:01:01")
OURS, OURS6, VTEP, VTEP6 = "192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"
NAT = "169.254.1.1"
VNI = 0x123456
ETH, IP4, IP6, UDP, VXLAN = 14, 20, 40, 8, 8  # sizes of headers
KEY = bytes(range(32))


def endpoint(name: str, last: int, mac: Mac, **fields: Any) -> Endpoint:
    addresses = (ip_address(f"10.1.0.{last}"), ip_address(f"fd00:1::{last}"))
    return Endpoint(name=name, addresses=addresses, mac=mac, **fields)


def remote(prefix: str, provider: str = VTEP, mac: Mac = PEER) -> RemoteSubnet:
    return RemoteSubnet(
        prefix=ip_network(prefix), provider_address=ip_address(provider), dr_mac=mac
    )


REMOTES = (  # the second number says which VTEP: 2 and 3 over IPv4, 6 over IPv6
    remote("10.2.0.0/16"),
    remote("fd00:2::/64"),
    remote("10.3.0.0/16", "192.0.2.3"),
    remote("10.6.0.0/16", VTEP6),
    remote("fd00:6::/64", VTEP6),
)


def node(**fields: Any) -> Node:
    """Fields of the network, and `underlay` for the node's."""
    web, db = endpoint("web", 2, WEB), endpoint("db", 3, DB)
    underlay = Underlay(address=ip_address(OURS), address6=ip_address(OURS6))
    underlay = replace(underlay, **fields.pop("underlay", {}))
    host = HostPort(address=ip_address(NAT), peer=ip_address("169.254.1.2"), tap=Tap(name="h"))
    network: dict[str, Any] = {
        "name": "blue",
        "vni": Vni(VNI),
        "prefixes": (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")),
        "dr_mac": DR,
        "remote_subnets": REMOTES,
        "endpoints": (web, db),
        "outbound_nat": OutboundNat(),
    }
    return Node(
        name="a", underlay=underlay, host_port=host, networks=(Network(**network | fields),)
    )


def rule(name: str, direction: str, action: str, ports: int | None = None, **fields: Any) -> Acl:
    if ports is not None:
        fields["remote_ports"] = (PortRange(ports, ports),)
    return Acl(name=name, direction=direction, action=action, **fields)  # type: ignore[arg-type]


def engine(policy: Node | None = None, **options: Any) -> Engine:
    made = setting.Engine(**{"max_flows": 1024, "max_bindings": 1024, "key": KEY} | options)
    made.commit(policy or node())
    return made


# ---- frames ------------------------------------------------------------------------------------


def web(words: str, dmac: Mac = DR) -> bytes:
    """What endpoint web sends."""
    return build(parse(words), WEB, dmac)


def db(words: str, dmac: Mac = DR) -> bytes:
    """What its neighbour sends."""
    return build(parse(words), DB, dmac)


def outside(words: str) -> bytes:
    """What the host sends into the host port."""
    return build(parse(words), HOST, OUR_HOST)


def carried(inner: bytes, src: str = VTEP, **outer: Any) -> bytes:
    """The frame in VXLAN, as it comes from the underlay."""
    ends = {"src": ip_address(src), "dst": ip_address(OURS6 if ":" in src else OURS)}
    return vxlan(inner, **ends, **{"vni": VNI, "smac": PEER, "dmac": DR} | outer)


def peer(words: str, src: str = VTEP, **outer: Any) -> bytes:
    """What a workload behind a VTEP sends."""
    return carried(build(parse(words), PEER, DR), src, **outer)


def mirrored(frame: bytes) -> bytes:
    """What the receiver of the frame answers, its checksums right."""
    answer = reply_to(frame)
    assert answer is not None
    return answer


def patched(frame: bytes, at: int, new: bytes) -> bytes:
    assert at + len(new) <= len(frame)
    return frame[:at] + new + frame[at + len(new) :]


def mended(frame: bytes, at: int = ETH) -> bytes:
    """The IPv4 header at that place with its checksum made anew."""
    frame = patched(frame, at + 10, b"\0\0")
    return patched(frame, at + 10, checksum(frame[at : at + (frame[at] & 15) * 4]).to_bytes(2))


def udp_summed(frame: bytes) -> bytes:
    """A UDP packet, without options or extension headers, with its checksum made anew."""
    v4 = frame[ETH] >> 4 == 4
    at = ETH + (IP4 if v4 else IP6)
    ends = frame[26:34] if v4 else frame[22:54]
    half = len(ends) // 2
    frame = patched(frame, at + 6, b"\0\0")
    pseudo = pseudo_header(ends[:half], ends[half:], 17, len(frame) - at)
    return patched(frame, at + 6, (checksum(pseudo + frame[at:]) or 0xFFFF).to_bytes(2))


# ---- outcomes ----------------------------------------------------------------------------------


def dropped(outcome: Outcome) -> str:
    """The reason; nothing may have been sent."""
    assert outcome.verdict is Verdict.DROP and outcome.port is None, outcome
    return str(outcome.reason)


def forwarded(outcome: Outcome, port: str) -> bytes:
    """The frame as it left by that port."""
    assert (outcome.verdict, outcome.port) == (Verdict.FORWARD, port), outcome
    return outcome.frame


def told(outcome: Outcome, reason: Reason) -> bytes:
    """The ICMP error that the sender of a dropped frame was told."""
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, reason), outcome
    assert outcome.port is not None, "nobody was told"
    return outcome.frame


def inner_of(frame: bytes) -> bytes:
    """Behind the outer headers of a VXLAN frame."""
    return frame[ETH + (IP4 if frame[12:14] == b"\x08\0" else IP6) + UDP + VXLAN :]


def sums(frame: bytes) -> set[int]:
    """What is left of each checksum of an IP packet in Ethernet: {0} if all are right."""
    ip = frame[ETH:]
    v4 = ip[0] >> 4 == 4
    head = (ip[0] & 15) * 4 if v4 else IP6
    proto, ends, body = ip[9 if v4 else 6], ip[12:20] if v4 else ip[8:40], ip[head:]
    left = {checksum(ip[:head])} if v4 else {0}
    if (proto, v4) == (1, True):
        return left | {checksum(body)}
    if proto == 17 and v4 and body[6:8] == b"\0\0":
        return left  # none was made
    half = len(ends) // 2
    assert proto in (6, 17, 58) and (proto != 17 or body[6:8] != b"\0\0")
    return left | {checksum(pseudo_header(ends[:half], ends[half:], proto, len(body)) + body)}
