"""Every drop reason, provoked: a loop over the table that fails where a reason has no recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from dataplane import engine as engine_module
from dataplane._engine import lib
from dataplane.address import Mac, Vni
from dataplane.batch import Batch
from dataplane.engine import Engine
from dataplane.model import (
    Acl,
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
    Wire,
)
from dataplane.packet import build, parse
from dataplane.reasons import Reason, Verdict
from dataplane.stats import adds_up
from tests.reference import build as octets
from tests.reference import nd
from tests.reference.checksum import checksum
from tests.reference.wire import ICMP6, IP6

DR, WEB, DB, PEER, HOST, STRANGER = (Mac(f"02:00:00:00:00:0{n}") for n in range(1, 7))
OUR_HOST = Mac("02:01:a9:fe:01:01")
ETH, IP_CHECK = 14, 24  # where the IP header and its checksum stand

WEB_ACLS = (
    Acl(
        name="no-ssh",
        direction="out",
        action="reject",
        protocol="tcp",
        remote_ports=(PortRange(22, 22),),
    ),
    Acl(
        name="no-telnet",
        direction="out",
        action="block",
        protocol="tcp",
        remote_ports=(PortRange(23, 23),),
    ),
)
ONE_PORT = OutboundNat(ports=PortRange(5000, 5000))


def node(nat: OutboundNat | None = ONE_PORT, host: bool = True, max_flows: int = 0) -> Node:
    web = Endpoint(
        name="web",
        addresses=(ip_address("10.0.1.2"),),
        mac=WEB,
        acls=WEB_ACLS,
        default_out="allow",
        max_flows=max_flows,
    )
    db = Endpoint(name="db", addresses=(ip_address("10.0.1.3"),), mac=DB)
    remotes = tuple(
        RemoteSubnet(prefix=ip_network(p), provider_address=ip_address(a), dr_mac=PEER)
        for p, a in (("10.2.0.0/16", "192.0.2.2"), ("10.3.0.0/16", "192.0.2.3"))
    )
    idle = LoadBalancer(
        name="idle", protocol="tcp", port=80, vips=(ip_address("10.96.0.1"),), backends=()
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"),),
        dr_mac=DR,
        remote_subnets=remotes,
        endpoints=(web, db),
        outbound_nat=nat,
        load_balancers=(idle,),
    )
    port = HostPort(
        address=ip_address("169.254.1.1"), peer=ip_address("169.254.1.2"), tap=Tap(name="h")
    )
    under = Underlay(address=ip_address("192.0.2.1"), address6=ip_address("2001:db8::1"))
    return Node(name="a", underlay=under, host_port=port if host else None, networks=(blue,))


def replace_wire(wire: Wire) -> Node:
    plain = node()
    return replace(plain, networks=(replace(plain.networks[0], wire=wire),))


@dataclass
class Case:
    """One frame that must be dropped; `before` are let through first, then `answers`, from the
    underlay."""

    frame: bytes
    port: str | int = "blue/web"
    before: tuple[bytes, ...] = ()
    answers: tuple[bytes, ...] = ()
    node: Node | None = None
    limits: dict[str, int] | None = None


def web(text: str, dmac: Mac = DR, smac: Mac = WEB) -> bytes:
    return build(parse(text), smac, dmac)


def edited(frame: bytes, at: int, new: bytes, sums: bool = True) -> bytes:
    """New bytes at an offset, and the IPv4 header's checksum made right."""
    data = bytearray(frame)
    data[at : at + len(new)] = new
    if sums:
        data[IP_CHECK : IP_CHECK + 2] = b"\0\0"
        head = data[ETH : ETH + (data[ETH] & 15) * 4]
        data[IP_CHECK : IP_CHECK + 2] = checksum(bytes(head)).to_bytes(2)
    return bytes(data)


def vxlan(inner: bytes, src: str = "192.0.2.2", vni: int = 100, flags: int = 8) -> bytes:
    payload = bytes([flags, 0, 0, 0]) + vni.to_bytes(3) + b"\0" + inner
    size = len(payload) + 28
    ip = b"\x45\0" + size.to_bytes(2) + b"\0\0\x40\0\x40\x11\0\0"
    ip += ip_address(src).packed + ip_address("192.0.2.1").packed
    udp = b"\xc0\0" + (4789).to_bytes(2) + (size - 20).to_bytes(2) + b"\0\0"
    return edited(DR.packed + PEER.packed + b"\x08\0" + ip + udp + payload, 0, DR.packed)


def vxlan6() -> bytes:
    payload = b"\x08\0\0\0\0\0\x64\0" + INNER
    udp = b"\xc0\0" + (4789).to_bytes(2) + (len(payload) + 8).to_bytes(2) + b"\0\0"
    ends = ip_address("2001:db8::2").packed + ip_address("2001:db8::1").packed
    ip = b"\x60\0\0\0" + (len(payload) + 8).to_bytes(2) + b"\x11\x40" + ends
    return DR.packed + PEER.packed + b"\x86\xdd" + ip + udp + payload


def ip6(payload: bytes, next_header: int) -> bytes:
    ends = ip_address("fd00::2").packed + ip_address("fd00::3").packed
    head = b"\x60\0\0\0" + len(payload).to_bytes(2) + bytes([next_header, 64])
    return DR.packed + WEB.packed + b"\x86\xdd" + head + ends + payload


def discovery(kind: int, target: bytes, src: bytes, hops: int = 255) -> bytes:
    """Of web, or in its name."""
    option = nd.TARGET_MAC if kind == nd.ADVERT else nd.SOURCE_MAC
    message = nd.message_of(kind, target, [(option, WEB.packed)])
    message = octets.summed(src, nd.ALL_NODES, ICMP6, message)
    packet = octets.ip(src, nd.ALL_NODES, ICMP6, message, ttl=hops)
    return octets.ethernet(nd.ALL_NODES_MAC, WEB.packed, IP6, packet)


def options() -> bytes:
    """A packet with a loose source route."""
    plain = UDP[ETH:]
    head = b"\x46" + plain[1:2] + (len(plain) + 4).to_bytes(2) + plain[4:20] + b"\x83\x03\x04\0"
    return edited(UDP[:ETH] + head + plain[20:], 0, DR.packed)


OWN, ROUTER = (nd.link_local(mac.packed) for mac in (WEB, DR))
UDP = web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 20")
TCP = web("tcp 10.0.1.2:1000 > 10.2.0.9:2000 syn")
OUT = web("udp 10.0.1.2:1000 > 203.0.113.9:2000 len 20")
INNER = web("udp 10.2.0.9:2000 > 10.0.1.2:1000 len 20", smac=PEER)
ARP = web("arp who-has 10.0.1.1 tell 10.0.1.2", dmac=Mac("ff:ff:ff:ff:ff:ff"))
FROM_HOST = web("udp 203.0.113.9:2000 > 169.254.1.1:5000", dmac=OUR_HOST, smac=HOST)
FIRST = web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 24 ipid 7 mf")
LATER = web("ip 17 10.0.1.2 > 10.2.0.9 len 16 ipid 7 frag 32 mf")
OTHER = web("ip 17 10.0.1.2 > 10.2.0.9 len 16 ipid 8 frag 32 mf")
BIG = "udp 10.0.1.2:1000 > 10.2.0.9:2000 len 1500"

CASES: dict[str, Case] = {
    "port_not_configured": Case(UDP, 77),
    "short_ethernet": Case(UDP[:13]),
    "vlan_tagged": Case(UDP[:12] + b"\x81\0\0\x05" + UDP[12:]),
    "not_ip": Case(UDP[:12] + b"\x88\xcc" + UDP[14:]),
    "bad_ip4": Case(edited(UDP, ETH, b"\x44", sums=False)),
    "bad_ip4_checksum": Case(edited(UDP, IP_CHECK, b"\0\0", sums=False)),
    "bad_ip6": Case(ip6(bytes(8), 17)[:-1]),
    "bad_extension": Case(ip6(b"\x11\x05" + bytes(6), 60)),
    "source_route": Case(options()),
    "bad_transport": Case(edited(TCP, ETH + 32, b"\x10")),
    "bad_fragment": Case(edited(TCP, ETH + 6, b"\0\x01")),
    "fragment_overlap": Case(LATER, before=(FIRST, LATER)),
    "fragment_room": Case(OTHER, before=(FIRST,), limits={"max_datagrams": 1}),
    "bad_address": Case(edited(UDP, ETH + 12, b"\x7f\0\0\x01")),
    "bad_arp": Case(edited(ARP, ETH, b"\0\x02", sums=False)),
    "bad_nd": Case(discovery(nd.SOLICIT, ROUTER, OWN, hops=254)),
    "outer_not_vxlan": Case(edited(vxlan(INNER), 36, b"\x12\xb6"), "underlay"),
    "outer_malformed": Case(vxlan(INNER)[:-1], "underlay"),
    "outer_fragment": Case(edited(vxlan(INNER), ETH + 6, b"\x20\0"), "underlay"),
    "outer_checksum": Case(edited(vxlan(INNER), 40, b"\x12\x34"), "underlay"),
    "udp6_zero_checksum": Case(vxlan6(), "underlay"),
    "no_vni_flag": Case(vxlan(INNER, flags=0xF7), "underlay"),
    "vxlan_reserved_bits": Case(
        vxlan(INNER, flags=9), "underlay", node=replace_wire(Wire(strict=True))
    ),
    "unknown_vni": Case(vxlan(INNER, vni=101), "underlay"),
    "unknown_vtep": Case(vxlan(INNER, "192.0.2.9"), "underlay"),
    "source_not_behind_vtep": Case(vxlan(INNER, "192.0.2.3"), "underlay"),
    "ecn_ce_on_not_ect": Case(edited(vxlan(INNER), ETH + 1, b"\x03"), "underlay"),
    "not_our_mac": Case(web("udp 10.0.1.2:1 > 10.0.1.3:2", dmac=STRANGER)),
    "guard_mac": Case(web("udp 10.0.1.2:1 > 10.2.0.9:2", smac=STRANGER)),
    "guard_ip": Case(web("udp 10.0.1.9:1 > 10.2.0.9:2")),
    "guard_arp": Case(edited(ARP, ETH + 6, b"\0\x02", sums=False)),
    "guard_nd": Case(discovery(nd.ADVERT, ROUTER, OWN)),
    "guard_ra": Case(discovery(nd.ROUTER_ADVERT, OWN, OWN)),
    "guard_dhcp": Case(web("udp 10.0.1.2:67 > 10.2.0.9:68")),
    "arp_announcement": Case(web("arp who-has 10.0.1.2 tell 10.0.1.2", dmac=DR)),
    "arp_unknown_target": Case(web("arp who-has 10.0.1.99 tell 10.0.1.2", dmac=DR)),
    "nd_announcement": Case(discovery(nd.ADVERT, OWN, OWN)),
    "nd_unknown_target": Case(discovery(nd.SOLICIT, nd.link_local(DB.packed), OWN)),
    "nd_router_solicit": Case(discovery(nd.ROUTER_SOLICIT, OWN, OWN)),
    "multicast": Case(web("udp 10.0.1.2:1 > 10.2.0.9:2", dmac=Mac("01:00:5e:00:00:01"))),
    "to_gateway": Case(web("tcp 10.0.1.2:1 > 10.0.1.1:80 syn")),
    "acl_deny": Case(web("tcp 10.0.1.2:1 > 10.2.0.9:23 syn")),
    "acl_reject": Case(web("tcp 10.0.1.2:1 > 10.2.0.9:22 syn")),
    "nat_exhausted": Case(web("udp 10.0.1.2:1001 > 203.0.113.9:2000 len 20"), before=(OUT,)),
    "nat_table_full": Case(
        web("udp 10.0.1.2:1001 > 203.0.113.9:2000 len 20"),
        before=(OUT,),
        node=node(OutboundNat()),
        limits={"max_bindings": 1},
    ),
    "nat_quota": Case(
        web("udp 10.0.1.2:1001 > 203.0.113.9:2000 len 20"),
        before=(OUT,),
        node=node(OutboundNat(max_ports=1)),
    ),
    "nat_untranslatable": Case(web("icmp 10.0.1.2 > 203.0.113.9 type 13")),
    "lb_no_service": Case(web("tcp 10.0.1.2:1 > 10.96.0.1:81")),
    "lb_no_backend": Case(web("tcp 10.0.1.2:1 > 10.96.0.1:80")),
    "nat_vxlan": Case(web("udp 10.0.1.2:1 > 203.0.113.9:4789")),
    "nat_no_binding": Case(FROM_HOST, "host"),
    "no_route": Case(OUT, node=node(nat=None)),
    "no_such_endpoint": Case(web("udp 10.0.1.2:1 > 10.0.1.99:2")),
    "not_local": Case(vxlan(web("udp 10.2.0.9:1 > 10.3.0.9:2", smac=PEER)), "underlay"),
    "no_host_port": Case(OUT, node=node(OutboundNat(vip=ip_address("198.51.100.1")), host=False)),
    "ttl_expired": Case(web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 20 ttl 1")),
    "too_big": Case(edited(web(BIG), ETH + 6, b"\x40\0")),
    "needs_fragmentation": Case(web(f"{BIG}0"), limits={"max_kept": 1}),
    "flow_table_full": Case(TCP, before=(UDP,), answers=(vxlan(INNER),), limits={"max_flows": 1}),
    "flow_quota": Case(TCP, before=(UDP,), answers=(vxlan(INNER),), node=node(max_flows=1)),
}


def off_the_arena(engine: Engine, off: int) -> Reason:
    batch = Batch(capacity=1).load([UDP], "blue/web")
    batch.frames["off"][0] = off
    return engine.process(batch).reason_of(0)


def refused_at_egress(engine: Engine, reason: str) -> Reason:
    """As the loop does for a frame that its device would not take."""
    got = engine.process_one(UDP, "blue/web")
    number = Reason[reason.upper()]
    lib.dp_egress_drop(engine.handle, 0, engine.port_id("underlay"), number, 1, len(got.frame))
    return number


def abandoned(engine: Engine) -> Reason:
    assert engine.process_one(LATER, "blue/web", now=0).verdict is Verdict.HELD
    engine.expire(now=31 * 10**9)
    return Reason["FRAGMENT_TIMEOUT"]


def called_super(engine: Engine) -> Reason:
    """A descriptor that says TCP of what is UDP."""
    got = engine.process_one(UDP, "blue/web", flags=lib.DP_CSUM_PARTIAL, gso_type=1, gso_size=1)
    return got.reason


BY_HAND: dict[str, Callable[[Engine], Reason]] = {
    "bad_descriptor": lambda e: off_the_arena(e, 1 << 31),
    "no_headroom": lambda e: off_the_arena(e, lib.DP_HEADROOM - 1),
    "bad_gso": called_super,
    "fragment_timeout": abandoned,
    "egress_down": lambda e: refused_at_egress(e, "egress_down"),
    "egress_busy": lambda e: refused_at_egress(e, "egress_busy"),
    "egress_too_big": lambda e: refused_at_egress(e, "egress_too_big"),
}


def provoke(engine: Engine, reason: str) -> Reason:
    if reason in BY_HAND:
        return BY_HAND[reason](engine)
    case = CASES[reason]
    for frame in case.before:
        assert engine.process_one(frame, case.port).verdict is Verdict.FORWARD
    for frame in case.answers:
        assert engine.process_one(frame, "underlay").verdict is Verdict.FORWARD
    got = engine.process_one(case.frame, case.port)
    assert got.verdict is Verdict.DROP
    return got.reason


@pytest.mark.parametrize("reason", [str(r) for r in Reason if r])
def test_every_reason_can_be_met(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly this reason, counted once, and all that came in accounted for."""
    case = CASES.get(reason, Case(b""))
    if reason == "no_host_port":  # documents refuse it; the engine does not rely on them
        monkeypatch.setattr(engine_module.validate, "check", lambda *_, **__: ())
    with Engine(**{"max_flows": 16, **(case.limits or {})}) as engine:
        engine.commit(case.node or node())
        assert provoke(engine, reason) is Reason[reason.upper()]
        stats = engine.stats()
        assert {str(r): n for r, n in stats.reasons.items()} == {reason: 1}
        totals = stats.totals
        assert adds_up(totals)


@pytest.mark.parametrize("reason", [r for r in CASES if r.startswith(("nat_", "flow_", "frag"))])
def test_a_trace_knows_what_is_full(reason: str) -> None:
    """It changes nothing, and yet says what would become of the frame."""
    case = CASES[reason]
    with Engine(**{"max_flows": 16, **(case.limits or {})}) as engine:
        engine.commit(case.node or node())
        for frames, port in ((case.before, case.port), (case.answers, "underlay")):
            for frame in frames:
                assert engine.process_one(frame, port).verdict is Verdict.FORWARD
        for _ in range(2):
            assert engine.trace(case.frame, case.port).reason is Reason[reason.upper()]


def test_no_recipe_is_left_over() -> None:
    assert {*CASES, *BY_HAND} == {str(r) for r in Reason if r}
