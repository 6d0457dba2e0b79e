"""Strategies: policies, frames likely to meet them, and what happens over time.

All values come from small alphabets, so that rules, routes and frames meet. A scenario is a policy
and a list of steps; `play` leads one through a dataplane. A state machine uses `Player` alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise
from typing import Any, NamedTuple

from msgspec.structs import replace

from dataplane.address import IP, Mac, Prefix, Vni
from dataplane.model import (
    Acl,
    Backend,
    Direction,
    DirectSubnet,
    Endpoint,
    Fallback,
    Flannel,
    HostPort,
    IcmpRate,
    LoadBalancer,
    Network,
    Node,
    OutboundNat,
    PortMapping,
    PortRange,
    RemoteSubnet,
    Tap,
    Timers,
    Underlay,
    Wire,
)
from tests import dice as st
from tests.reference import Outcome, build, nd
from tests.reference.services import Service
from tests.reference.site import HOST, UNDERLAY, Adjacency, Site
from tests.reference.site import Endpoint as Place
from tests.reference.site import Network as Mesh
from tests.reference.wire import ICMP, ICMP6, IP6, MAPPED, TCP, UDP, Packet, parse, unmapped

SECOND = 10**9
VTEPS4 = [ip_address(f"192.0.2.{n}") for n in (2, 3, 4)]
VTEPS6 = [ip_address(f"2001:db8::{n}") for n in (2, 3)]


class Ground(NamedTuple):
    """Where a network stands: its own addresses, and what may lie behind VTEPs, or be reached
    directly."""

    local: list[tuple[IP, IP]]  # by NAMES
    gateways: tuple[IP, IP]
    prefixes: tuple[Prefix, ...]
    behind: list[Prefix]
    direct: list[Prefix]
    remote: list[IP]

    @property
    def all(self) -> list[IP]:
        return [a for pair in self.local for a in pair] + [*self.gateways, *self.remote]


def _ground(near: int, far: int, *wide: str) -> Ground:
    behind = f"10.0.{far}.0/24", f"10.0.{far}.128/25", f"fd00:{far}::/64", *wide
    direct = f"10.0.{near}.64/26", f"10.0.{near}.96/27", f"fd00:{near}:0:0:8000::/66"
    remote = f"10.0.{far}.2", f"10.0.{far}.200", f"fd00:{far}::2"
    remote = *remote, f"10.0.{near}.70", f"10.0.{near}.100", f"fd00:{near}:0:0:8000::2"
    return Ground(
        [(ip_address(f"10.0.{near}.{n}"), ip_address(f"fd00:{near}::{n}")) for n in (2, 3, 4)],
        (ip_address(f"10.0.{near}.1"), ip_address(f"fd00:{near}::1")),
        (ip_network(f"10.0.{near}.0/24"), ip_network(f"fd00:{near}::/64")),
        [ip_network(p) for p in behind],
        [ip_network(p) for p in direct],
        [ip_address(a) for a in remote],
    )


FAR_VIP = ip_address("10.96.0.12")  # of balancers on other nodes
GROUNDS = [_ground(1, 2, "10.0.0.0/16", f"{FAR_VIP}/32"), _ground(3, 4)]
LOCAL = GROUNDS[0].local
DR_MAC = Mac("02:00:00:00:0d:01")
LINK_LOCAL = [nd.link_local(DR_MAC.packed), nd.link_local(b"\x02\0\0\0\1\0"), bytes(16)]
OUTSIDE = [ip_address(a) for a in ("198.51.100.1", "203.0.113.9", "2001:db8:ffff::1")]
STRANGE = [
    ip_address(a)
    for a in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "ff02::1")
]
HOSTS = [
    (ip_address("169.254.1.1"), ip_address("169.254.1.2")),
    (ip_address("fd00:ff::1"), ip_address("fd00:ff::2")),
]
NAT_VIPS = [ip_address("192.0.2.100"), ip_address("2001:db8::100")]
VIPS = [ip_address(a) for a in ("10.96.0.10", "10.96.0.11", "fd00:96::10")]
SOURCE_VIPS = [ip_address(a) for a in ("10.0.1.250", "10.96.0.99", "fd00:96::99")]
PORTS = [53, 67, 80, 1000, 1001, 2000, 4789, 8472, 65535]
SERVED = [80, 2000, 5000, 5001]  # ports of services; the last are among those NAT would take
NAMES = ["a", "b", "c"]
DIRECTIONS: list[Direction] = ["in", "out"]
PROTOCOLS: list[str | int] = ["any", "tcp", "udp", "icmp", "icmp6", 6, 17, 47, 132]
FALLBACKS: list[Fallback | None] = [None, None, "allow", "block"]
ALL = [*GROUNDS[0].all, ip_address("10.0.9.9"), FAR_VIP, *OUTSIDE]


seldom = st.sampled_from([False] * 11 + [True])
sometimes = st.sampled_from([True, False, False])
likely = st.sampled_from([True] * 7 + [False])


# ---- policies --------------------------------------------------------------------------------


@st.composite
def acls(draw: st.Draw, prefix: str) -> tuple[Acl, ...]:
    """A few rules, often with a last one that lets everything through."""
    rules = [draw(_acl(f"{prefix}{n}")) for n in range(draw(st.sampled_from([0, 0, 1, 2, 4])))]
    for direction in DIRECTIONS:
        if draw(st.sampled_from([True, True, False])):
            stateful = draw(st.booleans())
            name = f"{prefix}-{direction}"
            rules.append(
                Acl(
                    name=name,
                    direction=direction,
                    action="allow",
                    priority=2000,
                    stateful=stateful,
                )
            )
    return tuple(rules)


@st.composite
def _acl(draw: st.Draw, name: str) -> Acl:
    protocol: str | int = draw(st.sampled_from(PROTOCOLS))
    ported = protocol in ("tcp", "udp", 6, 17)
    versions = {"icmp": [4], "icmp6": [6]}.get(str(protocol), [4, 6])
    version = draw(st.sampled_from(versions))
    known = [
        *(ip_network(a) for a in ALL),
        *(p for g in GROUNDS for p in (*g.prefixes, *g.behind)),
        *(ip_network(v) for v in VIPS),
        *[ip_network("0.0.0.0/0"), ip_network("::/0")] * 4,
    ]
    prefixes = _few([p for p in known if p.version == version])
    ranges = _few([PortRange(first=p, last=p) for p in PORTS] + [PortRange(first=0, last=1000)])
    icmp = protocol in ("icmp", "icmp6") and draw(st.booleans())
    return Acl(
        name=name,
        direction=draw(st.sampled_from(["in", "out"])),
        action=draw(st.sampled_from(["allow", "allow", "block", "pass", "reject"])),
        priority=draw(st.sampled_from([10, 10, 500, 1000])),
        protocol=protocol,
        local=draw(prefixes),
        remote=draw(prefixes),
        local_ports=draw(ranges) if ported else (),
        remote_ports=draw(ranges) if ported else (),
        icmp_type=draw(st.sampled_from([0, 3, 8, 128, 129])) if icmp else None,
        icmp_code=draw(st.sampled_from([None, 0, 1])) if icmp else None,
        stateful=draw(st.booleans()),
        terminating=draw(st.booleans()),
        idle=draw(st.sampled_from([0, 0, 0, 25])),
    )


def _few(values: list[Any]) -> st.Dice[tuple[Any, ...]]:
    """Often none, else one or two."""
    return st.just(()) | st.lists(st.sampled_from(values), min_size=1, max_size=2).map(tuple)


nats = st.builds(
    OutboundNat,
    vip=st.sampled_from([None, None, *NAT_VIPS]),
    exceptions=st.sampled_from([(), (), (), (ip_network("203.0.113.0/24"),)]),
    destinations=st.sampled_from([(), (), (), (ip_network("198.51.100.0/24"),)]),
    ports=st.sampled_from(
        [PortRange(1024, 65535), PortRange(5000, 5002), PortRange(1022, 1025), PortRange(7, 7)]
    ),
    mapping=st.sampled_from(["endpoint-independent", "symmetric"]),
    filtering=st.sampled_from(["connection", "endpoint-independent"]),
    max_ports=st.sampled_from([0, 0, 1, 2]),
)


RATES = [
    None,
    IcmpRate(port=1, port_burst=2, all=20, all_burst=20),
    IcmpRate(port=20, port_burst=20, all=1, all_burst=1),
]
wires = st.builds(
    Wire,
    dscp=st.sampled_from(["zero", "copy", 46]),
    dscp_decap=st.sampled_from(["keep", "copy"]),
    ttl=st.sampled_from([64, 1, 255]),
    df=st.sampled_from(["set", "clear", "inherit"]),
    strict=st.booleans(),
    udp6_zero_rx=st.booleans(),
    udp_checksum=st.sampled_from(["zero", "full"]),
    inner_vlan=st.sampled_from(["discard", "strip"]),
)


@st.composite
def mappings(draw: st.Draw, addresses: tuple[IP, ...], host: IP) -> tuple[PortMapping, ...]:
    """Of an endpoint, each with an outside address of a family that the endpoint has."""
    outsides = [
        v
        for v in (None, None, *NAT_VIPS)
        if any(a.version == (v or host).version for a in addresses)
    ]
    if not outsides or draw(st.booleans()):
        return ()
    return (
        PortMapping(
            protocol=draw(st.sampled_from(["tcp", "udp"])),
            port=draw(st.sampled_from(SERVED)),
            target_port=draw(st.sampled_from([None, 80, 1000])),
            vip=draw(st.sampled_from(outsides)),
        ),
    )


@st.composite
def balancers(draw: st.Draw, name: str, live: list[IP], host: HostPort | None) -> LoadBalancer:
    """`live`: who may be a backend. `host`: without one, there is no node port."""
    vips = draw(st.lists(st.sampled_from(VIPS), unique=True, min_size=1, max_size=2))
    node_port = draw(st.sampled_from([None, 5000, 5002, 80])) if host else None
    versions = {v.version for v in vips} | ({host.address.version} if host and node_port else set())
    return LoadBalancer(
        name=name,
        protocol=draw(st.sampled_from(["tcp", "tcp", "udp"])),
        port=draw(st.sampled_from(SERVED)),
        vips=tuple(vips),
        target_port=draw(st.sampled_from([None, 80, 2000])),
        backends=draw(backends(live, versions)),
        affinity=draw(st.sampled_from(["none", "none", "source_ip", "source_ip_protocol"])),
        source_vip=draw(st.sampled_from([None, None, *SOURCE_VIPS])),
        dsr=draw(st.booleans()),
        local_only=draw(_mostly([False], [True])),
        node_port=node_port,
    )


@st.composite
def backends(draw: st.Draw, live: list[IP], versions: set[int]) -> tuple[Backend, ...]:
    """Mostly such as live here or behind a VTEP."""
    rare = [a for g in GROUNDS for a in g.all] + [*OUTSIDE, *VIPS, *NAT_VIPS, HOSTS[0][1]]
    usual = [a for a in live if a.version in versions]
    other = [a for a in rare if a.version in versions]
    made = st.builds(
        Backend,
        address=_mostly(usual, other),
        port=st.sampled_from([None, None, 1000]),
        drain=st.sampled_from([False, False, False, True]),
    )
    some = [draw(made) for _ in range(draw(st.sampled_from([0, 1, 2, 2, 3, 4])))]
    return tuple({(b.address, b.port or 0): b for b in some}.values())


@st.composite
def endpoints(
    draw: st.Draw, name: str, vni: int, ground: Ground, host: HostPort | None
) -> Endpoint:
    ip4, ip6 = ground.local[NAMES.index(name)]
    addresses = draw(st.sampled_from([(ip4,), (ip4, ip6), (ip6, ip4)]))
    fallbacks = st.sampled_from(FALLBACKS)
    return Endpoint(
        name=name,
        addresses=addresses,
        mac=Mac(f"02:00:00:00:{1 + GROUNDS.index(ground):02x}:{NAMES.index(name):02x}"),
        tap=Tap(name=f"{name}{vni}"),
        acls=draw(acls(f"{name}")),
        default_in=draw(fallbacks),
        default_out=draw(fallbacks),
        outbound_nat=draw(st.none() | nats) if host else None,
        port_mappings=draw(mappings(addresses, host.address)) if host else (),
        max_flows=draw(st.sampled_from([0, 0, 0, 1, 2])),
    )


@st.composite
def remote_subnets(draw: st.Draw, family6: bool, behind: list[Prefix]) -> tuple[RemoteSubnet, ...]:
    prefixes = draw(st.lists(st.sampled_from(behind), unique=True, max_size=4))
    vteps = VTEPS4 + (VTEPS6 if family6 else [])
    made = []
    for prefix in prefixes:
        vtep = draw(st.sampled_from(vteps))
        mac = Mac.from_bytes(b"\x02\x0d" + vtep.packed[-4:])
        dsr = draw(_mostly([prefix.num_addresses == 1], [True, False]))
        made.append(RemoteSubnet(prefix=prefix, provider_address=vtep, dr_mac=mac, dsr=dsr))
    return tuple(made)


@st.composite
def host_routes(
    draw: st.Draw, ground: Ground, host: HostPort | None, family6: bool
) -> dict[str, Any]:
    """Behind the host are some of a network's own addresses, or all that are nobody's, and
    some are reached by its routes."""
    if host is None or not draw(st.booleans()):
        return {}
    whole = next(p for p in ground.prefixes if p.version == host.peer.version)
    low, high = whole.subnets()
    chosen = draw(st.sampled_from([(), (whole,), (low,), (high,), (low, high)]))
    direct = [p for p in ground.direct if p.version == host.peer.version]
    vtep = (VTEPS4 if host.peer.version == 4 else VTEPS6)[0]
    return {
        "host_route": True,
        "host_subnets": chosen,
        "direct_subnets": tuple(
            DirectSubnet(prefix=prefix, provider_address=vtep)
            for prefix in draw(st.lists(st.sampled_from(direct), unique=True, max_size=2))
            if family6 or vtep.version == 4
        ),
    }


@st.composite
def networks(draw: st.Draw, vni: int, outline: Node, domain: str | None) -> Network:
    """`outline`: the node that is to have it. With NAT only where there is a way out."""
    ground = GROUNDS[1 if domain and vni != VNIS[0] else 0]
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=3))
    host = outline.host_port
    family6 = outline.underlay.address6 is not None
    ends = tuple(draw(endpoints(n, vni, ground, host)) for n in names)
    subnets = draw(remote_subnets(family6, ground.behind))
    by_host = draw(host_routes(ground, host, family6))
    if domain:
        by_host.pop("direct_subnets", None)
    live = _lives_in(ends, (*subnets, *by_host.get("direct_subnets", ())), ground)
    return Network(
        name=f"net{vni}",
        vni=Vni(vni),
        prefixes=ground.prefixes,
        gateways=draw(st.sampled_from([ground.gateways, ground.gateways, ground.gateways[:1]])),
        dr_mac=DR_MAC,
        mtu=draw(st.sampled_from([1400, 1280])),
        remote_subnets=subnets,
        endpoints=ends,
        acls=draw(acls("n")),
        outbound_nat=draw(st.none() | nats) if host else None,
        load_balancers=tuple(
            draw(balancers(f"lb{i}", live, host))
            for i in range(draw(st.sampled_from([0, 1, 1, 2])))
        ),
        **by_host,
        routing_domain=domain,
        max_flows=draw(st.sampled_from([0, 0, 0, 1, 3])),
        wire=draw(st.just(Wire()) | wires),
    )


def _lives_in(
    ends: tuple[Endpoint, ...], subnets: tuple[RemoteSubnet | DirectSubnet, ...], ground: Ground
) -> list[IP]:
    near = [a for e in ends for a in e.addresses]
    return near + [a for a in ground.remote if any(a in s.prefix for s in subnets)]


VNIS = 100, 0xABCDEF


def apart(node: Node) -> Node:
    """The node without what its networks must not both have: an address, protocol and port of a
    service, a host route to the same prefix."""
    taken: set[tuple[IP | None, str, int]] = set()
    routed: set[Prefix] = set()
    made = []
    for network in node.networks:
        host_route = network.host_route and not routed & set(network.prefixes)
        routed |= set(network.prefixes) if host_route else set()
        kept = [b for b in network.load_balancers if _free(_met(b, node), taken)]
        ends = [
            replace(
                e, port_mappings=tuple(m for m in e.port_mappings if _free(_met(m, node), taken))
            )
            for e in network.endpoints
        ]
        made.append(
            replace(
                network,
                load_balancers=tuple(kept),
                endpoints=tuple(ends),
                host_route=host_route,
                host_subnets=network.host_subnets if host_route else (),
                direct_subnets=network.direct_subnets if host_route else (),
            )
        )
    return replace(node, networks=tuple(made))


def _met(service: LoadBalancer | PortMapping, node: Node) -> set[tuple[IP | None, str, int]]:
    """Address, protocol and port under which it is met."""
    own = node.host_port and node.host_port.address
    if isinstance(service, PortMapping):
        return {(service.vip or own, service.protocol, service.port)}
    vips = {(v, service.protocol, service.port) for v in service.vips}
    port = service.node_port
    return vips if port is None else vips | {(own, service.protocol, port)}


def _free(places: set[Any], taken: set[Any]) -> bool:
    """Takes them, if all are free."""
    free = not places & taken
    taken |= places if free else set()
    return free


timers = st.builds(
    Timers,
    tcp_established=st.sampled_from([None, None, 40]),
    tcp_transitory=st.sampled_from([None, None, 10]),
    tcp_half_open=st.sampled_from([None, None, 5]),
    udp=st.sampled_from([None, None, 2]),
)


OVERLAY = Flannel(etcd=("http://127.0.0.1:2379",), env="", endpoints=("web@pod", "db"))


@st.composite
def nodes(draw: st.Draw) -> Node:
    """One or two networks. The second has the first one's addresses, as tenants do, or is of its
    routing domain."""
    family6 = draw(st.booleans())
    vnis = draw(st.sampled_from([VNIS[:1], VNIS]))
    domain = draw(st.sampled_from([None, "shop"]))
    address, peer = draw(st.sampled_from([HOSTS[0], *HOSTS]))
    host = HostPort(address=address, peer=peer, tap=Tap(name="dp0", mtu=1300))
    outline = Node(
        name="n1",
        underlay=Underlay(
            address=ip_address("192.0.2.1"),
            address6=ip_address("2001:db8::1") if family6 else None,
            port=draw(st.sampled_from([4789, 8472])),
        ),
        host_port=draw(st.sampled_from([host, host, host, None])),
        icmp_rate=draw(st.sampled_from(RATES)),
        timers=draw(timers),
        flannel=draw(st.sampled_from([None, OVERLAY])),
    )
    return apart(replace(outline, networks=tuple(draw(networks(v, outline, domain)) for v in vnis)))


FIELDS = [
    *("acls", "endpoints", "remote_subnets", "outbound_nat", "mtu", "max_flows", "wire"),
    *("load_balancers", "backends", "backends", "host_route", "subnet", "subnet"),
]


@st.composite
def edits(draw: st.Draw, node: Node) -> Node:
    """The node after one change of one network, or with other timers."""
    if draw(seldom):
        return replace(node, timers=draw(timers))
    old = draw(st.sampled_from(node.networks))
    field = draw(st.sampled_from(FIELDS))
    if field == "backends" and old.load_balancers:
        changed = draw(_with_other_backends(old))
    elif field == "subnet":
        changed = draw(_with_other_subnet(old, node.underlay.address6 is not None))
    else:
        new = draw(networks(int(old.vni), node, old.routing_domain))
        field = "load_balancers" if field == "backends" else field
        together = ["host_route", "host_subnets", "direct_subnets"]
        fields = together if field == "host_route" else [field]
        changed = replace(old, **{key: getattr(new, key) for key in fields})
    return _replaced(node, old, changed)


def _replaced(node: Node, old: Network, new: Network) -> Node:
    return apart(replace(node, networks=tuple(new if n is old else n for n in node.networks)))


@st.composite
def _with_other_subnet(draw: st.Draw, network: Network, family6: bool) -> Network:
    """Of its remote subnets one goes, or one comes, maybe in place of one."""
    ground = GROUNDS[[g.prefixes for g in GROUNDS].index(network.prefixes)]
    come = draw(remote_subnets(family6, ground.behind))[:1]
    prefixes = [s.prefix for s in come]
    kept = [s for s in network.remote_subnets if s.prefix not in prefixes]
    if kept and draw(st.booleans()):
        kept.remove(draw(st.sampled_from(kept)))
    return replace(network, remote_subnets=(*kept, *come))


@st.composite
def _with_other_backends(draw: st.Draw, network: Network) -> Network:
    """Of one balancer, a backend begins or ends to drain, goes, or comes."""
    place = draw(st.integers(0, len(network.load_balancers) - 1))
    old = network.load_balancers[place]
    some = list(old.backends)
    at = draw(st.integers(0, max(len(some) - 1, 0)))
    if some and draw(st.booleans()):
        some[at] = replace(some[at], drain=not some[at].drain)
    elif some and draw(st.booleans()):
        del some[at]
    else:
        ground = GROUNDS[[g.prefixes for g in GROUNDS].index(network.prefixes)]
        subnets = *network.remote_subnets, *network.direct_subnets
        live = _lives_in(network.endpoints, subnets, ground)
        some.extend(draw(backends(live, {v.version for v in old.vips})))
    unique = {(b.address, b.port or 0): b for b in some}
    new = replace(old, backends=tuple(unique.values()))
    others = network.load_balancers
    return replace(network, load_balancers=(*others[:place], new, *others[place + 1 :]))


# ---- frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """`flags`: enum dp_frame_flag, as the port sets them."""

    port: str
    data: bytes
    flags: int = 0
    gso_type: int = 0
    gso_size: int = 0


@st.composite
def frames(draw: st.Draw, node: Node) -> Frame:
    """A frame at one of the node's ports, sometimes damaged."""
    site = Site(node)
    ports = [*site.endpoints, *site.endpoints, UNDERLAY, *([HOST] if site.host else [])]
    port = draw(st.sampled_from(ports))
    if port == UNDERLAY:
        frame = draw(_from_underlay(site))
    elif port == HOST:
        frame = draw(_from_host(site))
    else:
        frame = draw(_from_endpoint(site, site.endpoints[port]))
    if draw(seldom):
        frame = Frame(frame.port, draw(damaged(frame.data)), frame.flags)
    return draw(supers(frame)) if draw(seldom) else frame


@st.composite
def supers(draw: st.Draw, frame: Frame) -> Frame:
    """The frame as one that stands for many; mostly one that may be said to."""
    outer = frame.port == UNDERLAY
    at = 0 if not outer else 50 if frame.data[12:14] == b"\x08\0" else 70
    ip = frame.data[at + 14 :]
    proto = ip[9:10] if ip[:1] and ip[0] >> 4 == 4 else ip[6:7]
    tcp = [1, 0x81] if ip[:1] and ip[0] >> 4 == 4 else [4, 0x84]
    right = {bytes([TCP]): tcp, bytes([UDP]): [5]}
    kind = draw(_mostly(right.get(proto, [1]), [0, 1, 4, 5, 0x85, 3]))
    size = draw(_mostly([100, 500, 1200, 1300, 1400], [0, 1, 65535]))
    flags = draw(_mostly([frame.flags & 2 | (5 if outer else 1)], [0, 1, 4]))
    return with_fields(frame, flags=flags, gso_type=kind, gso_size=size)


@st.composite
def datagrams(draw: st.Draw, node: Node) -> list[Frame]:
    """The fragments of a packet in some order, some of them lost, twice there, or overlapping."""
    site = Site(node)
    port = draw(st.sampled_from([*site.endpoints, *site.endpoints, UNDERLAY]))
    if port == UNDERLAY:
        network = draw(st.sampled_from(list(site.networks.values())))
        everyone, smac = _everyone(site, network), b"\x02\x0d\0\0\0\1"
        remote = [a for a in everyone if getattr(network.route(_ip16(a)), "adjacency", None)]
        src = draw(st.sampled_from(remote or everyone))
    else:
        sender = site.endpoints[port]
        network, smac = site.networks[sender.vni], sender.mac
        src = ip_of(draw(st.sampled_from(sorted(sender.addresses))))
    met_at = UNDERLAY if port == UNDERLAY else "endpoint"
    aims = _aims(site, met_at, network)
    targets = _known(site, network, None) if draw(likely) else _everyone(site, network)
    packet = draw(packets(src, targets, aims, whole=True))
    frame = build.ethernet(network.dr_mac, smac, build.ip_type(packet), packet)
    parts = [
        build.part(frame, *draw(_overlapping(p)), ident=draw(_mostly([1], [2])))
        for p in draw(_parts(frame))
    ]
    if port != UNDERLAY:
        return [Frame(port, p) for p in parts]
    return [Frame(UNDERLAY, _tunnelled(site, network, src, p)) for p in parts]


@st.composite
def _parts(draw: st.Draw, frame: bytes) -> list[tuple[int, int]]:
    size = len(frame) - 54 if frame[14] >> 4 == 6 else len(frame) - 14 - (frame[14] & 15) * 4
    cuts = draw(st.lists(st.integers(1, 8) | st.integers(1, max(1, size // 8)), max_size=5))
    bounds = sorted({0, size, *(8 * c for c in cuts if 8 * c < size)})
    parts = draw(st.permutations(list(pairwise(bounds))))
    again = draw(st.lists(st.sampled_from(parts), max_size=1)) if draw(seldom) and parts else []
    lost = draw(st.integers(0, 1)) if draw(seldom) else 0
    return parts[lost:] + again


def _overlapping(part: tuple[int, int]) -> st.Dice[tuple[int, int]]:
    begin, end = part
    return _mostly(
        [part], [(begin, end + 8), (max(0, begin - 8), end), (begin, max(end - 8, begin + 8))]
    )


def _tunnelled(site: Site, network: Mesh, src: IP, inner: bytes) -> bytes:
    route = network.route(_ip16(src))
    any_vtep = [ip_of(v) for v in sorted(network.vteps)] or VTEPS4
    vtep = ip_of(route.adjacency.remote) if route and route.adjacency else any_vtep[0]
    own = site.underlay.ip4 if vtep.version == 4 else site.underlay.ip6
    dst = unmapped(own) if own else vtep.packed
    return build.vxlan(vtep.packed, dst, site.underlay.udp_port, network.vni, inner, 0)


@st.composite
def _from_endpoint(draw: st.Draw, site: Site, sender: Place) -> Frame:
    network = site.networks[sender.vni]
    neighbours = [e.mac for e in site.endpoints.values() if e.vni == sender.vni]
    own = sorted(sender.addresses)
    if draw(seldom):
        spa = draw(_mostly([unmapped(a) for a in own if len(unmapped(a)) == 4], [bytes(4)]))
        tpa = draw(st.sampled_from([a.packed for a in ALL if a.version == 4]))
        opcode = draw(_mostly([1], [2]))
        return Frame(sender.port, build.arp(opcode, sender.mac, spa, tpa) + draw(_trailers))
    if draw(seldom):
        packet = draw(discoveries([ip_of(a) for a in own], sender.mac))
        smac = draw(_mostly([sender.mac], neighbours))
        data = build.ethernet(b"\x33\x33\xff\0\0\1", smac, IP6, packet)
        return Frame(sender.port, data + draw(_trailers), draw(_mostly([0], [1])))
    src = draw(_mostly([ip_of(a) for a in own], ALL))
    targets = _known(site, network, sender) if draw(likely) else _everyone(site, network)
    packet = draw(packets(src, targets, _aims(site, "endpoint", network)))
    dmac = draw(_mostly([network.dr_mac], [*neighbours, b"\xff" * 6, b"\x02\0\0\0\0\x66"]))
    smac = draw(_mostly([sender.mac], neighbours))
    data = build.ethernet(dmac, smac, build.ip_type(packet), packet)
    data = data[:12] + draw(_mostly([b""], TAGS)) + data[12:]
    flags = draw(_mostly([0], [1]))
    return Frame(sender.port, data + draw(_trailers), flags)


@st.composite
def _from_underlay(draw: st.Draw, site: Site) -> Frame:
    network = draw(st.sampled_from(list(site.networks.values())))
    ways = [r.adjacency for r in network.routes if r.adjacency]
    inside = [r.endpoint for r in network.routes if r.endpoint]
    locals_ = sorted(a for e in inside for a in e.addresses)
    everyone = _everyone(site, network)
    remote = [a for a in everyone if getattr(network.route(_ip16(a)), "adjacency", None)]
    direct = _aims(site, UNDERLAY, network)
    src = draw(
        _mostly([*(remote or everyone), *(OUTSIDE if direct else [])], [*everyone, *OUTSIDE])
    )
    same = [ip_of(a) for a in locals_ if ip_of(a).version == src.version] or ALL
    same = draw(_mostly([same], [everyone]))
    discovery = draw(seldom)
    aimed = packets(src, same, direct)
    packet = draw(discoveries([src], DR_MAC.packed) if discovery else aimed)
    dmac = draw(_mostly([network.dr_mac], [e.mac for e in inside] + [b"\xff" * 6]))
    inner = build.ethernet(dmac, b"\x02\x0d\0\0\0\1", build.ip_type(packet), packet)
    route = network.route(_ip16(src))
    any_vtep = [ip_of(v) for v in sorted(network.vteps)] or VTEPS4
    right = [ip_of(route.adjacency.remote)] if route and route.adjacency else any_vtep
    vtep = draw(_mostly(right, [ip_of(w.remote) for w in ways] or VTEPS4))
    own = site.underlay.ip4 if vtep.version == 4 else site.underlay.ip6
    vni = draw(_mostly([network.vni], [100, 0xABCDEF, 7]))
    dst = unmapped(own) if own else vtep.packed
    tos = draw(st.sampled_from([0, 0, 1, 2, 3, 0xB9]))
    data = build.vxlan(vtep.packed, dst, site.underlay.udp_port, vni, inner, tos)
    data = draw(_mostly([data], [_unsummed(data), _reserved(data)]))
    return Frame(UNDERLAY, data + draw(_trailers), draw(st.sampled_from([0, 0, 2, 4, 6])))


TAGS = [b"\x81\0\0\0", b"\x81\0\x20\5", b"\x81\0\0\1\x81\0\0\2", b"\x88\xa8\0\5", b"\x81"]


def _unsummed(data: bytes) -> bytes:
    """Without outer UDP checksum."""
    at = 40 if data[12:14] == b"\x08\0" else 60
    return data[:at] + b"\0\0" + data[at + 2 :]


def _reserved(data: bytes) -> bytes:
    """With a reserved bit of the VXLAN header set, and no checksum that minds."""
    at = 45 if data[12:14] == b"\x08\0" else 65
    return _unsummed(data[:at] + b"\1" + data[at + 1 :])


@st.composite
def _from_host(draw: st.Draw, site: Site) -> Frame:
    assert site.host
    address = ip_of(site.host.address)
    peer = dict(HOSTS)[address]
    if draw(seldom):
        spa, tpa = HOSTS[0][1].packed, draw(st.sampled_from(HOSTS[0])).packed
        return Frame(HOST, build.arp(1, site.host.peer_mac, spa, tpa))
    if draw(seldom):
        packet = draw(discoveries([peer], site.host.peer_mac, [address]))
        return Frame(HOST, build.ethernet(nd.ALL_NODES_MAC, site.host.peer_mac, IP6, packet))
    lives = [a for n in site.networks.values() for a in _everyone(site, n)]
    routed = [n for n in site.networks.values() if n.route(_ip16(peer))]
    known = [a for n in routed for a in _known(site, n, None)]
    near = [a for n in routed for a in lives if n.kind(_ip16(a)) == "direct"]
    src = draw(_mostly([*OUTSIDE, *near, *([peer] * 4 if routed else [peer])], lives))
    packet = draw(packets(src, [address, *NAT_VIPS, *(known or lives)], _aims(site, HOST, None)))
    dmac = draw(_mostly([site.host.mac], [b"\x02\0\0\0\0\x66", b"\xff" * 6]))
    return Frame(HOST, build.ethernet(dmac, site.host.peer_mac, build.ip_type(packet), packet))


Aim = tuple[IP, int, int]  # address, protocol, port


def _everyone(site: Site, network: Mesh) -> list[IP]:
    """Addresses that somebody may have who is met from the network."""
    grounds = GROUNDS if len(network.domain) > 1 else GROUNDS[:1]
    known = [a for g in grounds for a in g.all] + [ip_address("10.0.9.9"), FAR_VIP, *OUTSIDE]
    vips = {ip_of(s.address) for s in site.services}
    return [*known, *sorted(vips, key=str), *(p for pair in HOSTS for p in pair if site.host)]


def _known(site: Site, network: Mesh, sender: Place | None) -> list[IP]:
    """Those of them that it has a way to, oftenest such as answer."""
    ways = {a: network.route(_ip16(a)) for a in _everyone(site, network)}
    own = [(a, r.kind) for a, r in ways.items() if r and (not sender or r.endpoint != sender)]
    often = [a for a, kind in own if kind in ("endpoint", "remote", "host", "direct")]
    seldom = [a for a, kind in own if kind in ("gateway", "vip")]
    pool = ip_of(sender.nat.pool.address) if sender and sender.nat else None
    outside = [a for a in OUTSIDE if pool and a.version == pool.version]
    return often * 4 + seldom + outside * 10


def _aims(site: Site, met_at: str, network: Mesh | None) -> list[Aim]:
    """Services that are met there, and outside ports that NAT may have taken."""
    met = [
        (ip_of(s.address), s.proto, s.port)
        for s in site.services
        if s.met_at == met_at and (network is None or s.vni == network.vni)
    ]
    pools = [e.nat.pool for e in site.endpoints.values() if e.nat] if met_at != UNDERLAY else []
    ports = [
        (ip_of(p.address), proto, port)
        for p in dict.fromkeys(pools)
        if p.last - p.first < 10
        for port in range(p.first, p.last + 1)
        for proto in (TCP, UDP)
    ]
    many = [a for a in ports if any(p.open and p.address == _ip16(a[0]) for p in pools)]
    return met * 4 + many * 2 + ports


@st.composite
def packets(
    draw: st.Draw,
    src: IP,
    targets: list[IP] | None = None,
    aims: list[Aim] | None = None,
    whole: bool = False,
) -> bytes:
    """An IP packet from `src` to an address of its family, with right checksums; often to one of
    the aims. `whole`: no fragment."""
    near = [a for a in aims or [] if a[0].version == src.version]
    aim = draw(st.sampled_from(near)) if near and draw(sometimes) else None
    dst = draw(
        _mostly(
            [a for a in targets or ALL if a.version == src.version] or ALL,
            [a for a in STRANGE if a.version == src.version],
        )
    )
    dst = dst if dst.version == src.version else src
    dst = aim[0] if aim else dst
    proto, segment = draw(_segments(src.version, aim))
    segment = build.summed(src.packed, dst.packed, proto, segment)
    if proto == UDP and draw(_mostly([False], [True])):
        segment = segment[:6] + b"\0\0" + segment[8:]
    options = b""
    fragment = draw(_mostly([0x4000, 0], [] if whole else [0x2000, 1, 3, 0x2001, 0x1FFF]))
    if src.version == 4:
        options = draw(
            _mostly(
                [b""], [b"\1\1\1\0", b"\x07\3\4\0", b"\x07\4\4\0", b"\x83\3\4\0", b"\x07\1\0\0"]
            )
        )
    elif fragment not in (0, 0x4000):
        field = ((fragment & 0x1FFF) << 3 | (fragment >> 13 & 1)).to_bytes(2)
        options, proto = bytes([proto, 0]) + field + bytes(4), 44
    elif draw(_mostly([False], [True])):
        chain = draw(st.sampled_from([0, 43, 44, 51, 60]))
        options, proto = bytes([proto, 0, chain == 43]) + bytes(5), chain
    return build.ip(
        src.packed,
        dst.packed,
        proto,
        segment,
        ttl=draw(_mostly([64], [0, 1, 2, 255])),
        tos=draw(st.sampled_from([0, 1, 2, 3, 0xB8])),
        fragment=fragment,
        options=options,
    )


@st.composite
def discoveries(draw: st.Draw, own: list[IP], mac: bytes, known: list[IP] = ALL) -> bytes:
    """Neighbour discovery of one who has these addresses, often with one thing wrong."""
    kind = draw(_mostly([nd.SOLICIT, nd.SOLICIT, nd.ADVERT], [133, 134, 137]))
    mine = [a.packed for a in own if a.version == 6] + LINK_LOCAL[1:]
    others = [a.packed for a in known if a.version == 6] + LINK_LOCAL[:2]
    src = draw(_mostly(mine, others))
    target = draw(_mostly(others if kind == nd.SOLICIT else mine, [*mine, *STRANGE_TARGETS]))
    asks = kind == nd.SOLICIT
    usual = nd.solicited_node(target) if asks else nd.ALL_NODES
    dst = draw(_mostly([usual], [target, *others, nd.ALL_NODES, nd.solicited_node(others[0])]))
    probe = asks and src == bytes(16)
    flags = draw(_mostly([0 if asks else nd.OVERRIDE], [nd.SOLICITED, 0xE0]))
    option = bytes([nd.SOURCE_MAC if asks else nd.TARGET_MAC, 1])
    options = draw(_mostly([b"" if probe else option + mac], _nd_options(option, mac)))
    message = bytes([kind, draw(_mostly([0], [1])), 0, 0, flags, 0, 0, 0]) + target + options
    message = message[: draw(_mostly([len(message)], [8, 23, 24, 31]))]
    message = build.summed(src, dst, ICMP6, message)
    message = draw(_mostly([message], [message[:2] + b"\0\0" + message[4:]]))
    proto, front = draw(_mostly([(ICMP6, b"")], EXTENSIONS))
    return build.ip(src, dst, proto, message, ttl=draw(_mostly([255], [254, 64])), options=front)


STRANGE_TARGETS = [bytes(16), b"\0" * 15 + b"\1", nd.ALL_NODES, MAPPED + LOCAL[0][0].packed]
EXTENSIONS = [
    (of, bytes([ICMP6, 0]) + rest)
    for of, rest in (
        (0, b"\1\4\0\0\0\0"),
        (60, b"\1\4\0\0\0\0"),
        (44, bytes(6)),
        (44, b"\0\1\0\0\0\7"),
        (44, b"\0\x08\0\0\0\7"),
    )
]


def _nd_options(option: bytes, mac: bytes) -> list[bytes]:
    """None, of others, twice, and each way to lie about a length."""
    nonce = b"\x0e\1" + bytes(6)
    other = bytes([3 - option[0], 1]) + mac
    liar = option + b"\2\0\0\0\0\x66"
    kind = option[:1]
    return [
        *(b"", nonce, other, liar, nonce + option + mac, option + mac + nonce, option + mac + liar),
        *(
            kind + b"\0" + mac,
            kind + b"\2" + mac,
            kind + b"\2" + mac + bytes(8),
            kind + b"\xff" + mac,
        ),
        *(option + mac + b"\x0e\0" + bytes(6), b"\x0e\2" + bytes(6), option + mac[:5], kind),
    ]


@st.composite
def _segments(draw: st.Draw, version: int, aim: Aim | None) -> tuple[int, bytes]:
    """Protocol number and transport segment, its checksum still to be made."""
    ports = st.sampled_from(PORTS)
    data = draw(st.sampled_from([b"", b"x", b"data", bytes(540), *LARGE]))
    kind = draw(st.sampled_from(["tcp", "tcp", "udp", "udp", "echo", "echo", "icmp", "other"]))
    to = st.just(aim[2]) if aim else ports
    kind = {TCP: "tcp", UDP: "udp"}[aim[1]] if aim else kind
    if kind == "tcp":
        flags = draw(tcp_flags)
        options = draw(st.sampled_from(MSS_OPTIONS))
        numbers = draw(st.sampled_from(SEQUENCES)), draw(st.sampled_from(SEQUENCES))
        return TCP, build.tcp(draw(ports), draw(to), flags, options, data, *numbers)
    if kind == "udp":
        return UDP, build.udp(draw(ports), draw(to), data)
    proto, types = (ICMP, [8, 0]) if version == 4 else (ICMP6, [128, 129])
    if kind == "echo":
        return proto, build.icmp(draw(st.sampled_from(types)), 0, draw(ports), data or b"ping")
    if kind == "icmp":
        other = draw(st.sampled_from([3, 8, 11, 13, 1, 2, 128, 137]))
        return proto, build.icmp(other, draw(st.sampled_from([0, 1, 4])), 5, data)
    return draw(st.sampled_from([47, 50, 132, 255, ICMP6 if version == 4 else ICMP])), data


LARGE = [bytes(n) for n in (1232, 1252, 1271, 1272, 1352, 1372, 1373, 5000)]  # about an MTU
MSS_OPTIONS = [
    b"",
    b"\x02\x04\x23\x00",
    b"\x01\x02\x04\x23\x00\x01\x01\x00",
    b"\x02\x04\x00\x40",
    b"\x02\x03\x23\x00",
    b"\x08\x00\x02\x04",
    b"\x03\x03\x07\x02\x04\xff\xff\x00",
    b"\x01\x01\x01\x02",
]


SEQUENCES = [0, 0, 1, 2**32 - 1, 2**31]
tcp_flags = st.sampled_from([0x02, 0x12, 0x10, 0x10, 0x11, 0x04, 0x14, 0x00, 0x03])


def _mostly(usual: list[Any], rare: list[Any]) -> st.Dice[Any]:
    """A usual value, seldom a rare one."""
    if not usual or not rare:
        return st.sampled_from(usual or rare)
    return seldom.flatmap(lambda is_rare: st.sampled_from(rare if is_rare else usual))


_trailers = _mostly([b""], [bytes(1), b"\xab" * 18])


def ip_of(octets: bytes) -> IP:
    plain = unmapped(octets)
    return IPv4Address(plain) if len(plain) == 4 else IPv6Address(plain)


def _ip16(address: IP) -> bytes:
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


# ---- damage ----------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.Draw, data: bytes) -> bytes:
    """Cut, grown, or with some octets changed, mostly among the headers."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "set", "insert", "grow"]))
    at = draw(st.integers(0, min(len(data), 120)) | st.integers(0, len(data)))
    if kind == "cut":
        return data[:at]
    if kind == "grow":
        return data + draw(st.binary(max_size=40))
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:]
    out = bytearray(data or b"\0")
    at %= len(out)
    if kind == "flip":
        out[at] ^= 1 << draw(st.integers(0, 7))
    else:
        out[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(out)


# ---- what happens over time ------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    frame: Frame


@dataclass(frozen=True)
class Repeat:
    """The frame sent `back` sends ago, once more."""

    back: int


@dataclass(frozen=True)
class Reply:
    """What the receiver of the frame forwarded `back` forwards ago answers."""

    back: int
    tcp_flags: int = 0x10
    skew: int = 0  # of its sequence number from the one that is waited for
    ack_skew: int = 0
    elsewhere: bool = False  # through another VTEP, if it lives behind one


@dataclass(frozen=True)
class Proceed:
    """The sender of the frame sent `back` sends ago goes on where that one ended."""

    back: int
    tcp_flags: int = 0x10
    skew: int = 0


@dataclass(frozen=True)
class Complain:
    """The receiver of the frame forwarded `back` forwards ago answers with an ICMP error."""

    back: int


@dataclass(frozen=True)
class Intrude:
    """Somebody else sends to where the frame forwarded to the host `back` forwards ago came from:
    one outside, or (`inside`) an endpoint."""

    back: int
    inside: bool = False


@dataclass(frozen=True)
class Wait:
    ns: int


@dataclass(frozen=True)
class Expire:
    """Idle flows and bindings are swept."""


@dataclass(frozen=True)
class Learn:
    """ICMP of the underlay: the way to a VTEP carries no more."""

    remote: IP
    vni: int | None
    mtu: int


@dataclass(frozen=True)
class Commit:
    node: Node


Step = Send | Repeat | Reply | Proceed | Complain | Intrude | Wait | Expire | Learn | Commit

waits = st.sampled_from(
    [
        *(0, 1, SECOND // 25, 1 * SECOND, 2 * SECOND, 5 * SECOND, 9 * SECOND, 10 * SECOND),
        *(10 * SECOND + 1, 25 * SECOND, 26 * SECOND, 101 * SECOND),
    ]
)
repeats = st.builds(Repeat, st.integers(0, 3))
complaints = st.builds(Complain, st.integers(0, 3))
skews = st.sampled_from([0] * 8 + [1, -1, 5000, (1 << 22) - 1, 1 << 22, -(1 << 22), 1 << 31])
replies = st.builds(Reply, st.integers(0, 3), tcp_flags, skews, skews, seldom)
progress = st.builds(Proceed, st.integers(0, 3), tcp_flags, skews)


SIMPLE: dict[str, st.Dice[Step]] = {
    "reply": replies,
    "proceed": progress,
    "repeat": repeats,
    "complain": complaints,
    "wait": waits.map(Wait),
    "learn": st.builds(
        Learn,
        st.sampled_from([*VTEPS4, *VTEPS4, *VTEPS6]),
        st.sampled_from([None, None, 100, 0xABCDEF, 7]),
        st.sampled_from([0, 68, 577, 1000, 1279, 1281, 1350, 1400, 1499, 1500, 9000]),
    ),
}


KINDS = (
    ["send"] * 8
    + ["datagram", "commit", "rebalance", "translate"] * 2
    + ["reply", "proceed", "repeat", "complain", "wait", "learn", "expire"]
)
AFTERWARDS: list[list[Step]] = [  # what often follows a frame
    [],
    [Reply(0, 0x12)],
    [Reply(0, 0x12), Repeat(0), Complain(0)],
    [Reply(0), Proceed(0), Reply(0), Complain(1)],
    [Complain(0), Reply(0), Wait(10 * SECOND + 1), Repeat(0), Reply(0)],
    [Repeat(0), Repeat(1), Reply(0), Reply(1)],
    [Reply(0, elsewhere=True), Reply(0), Wait(10 * SECOND), Reply(0)],
    [Wait(26 * SECOND), Repeat(0), Repeat(1), Reply(0)],
    [Reply(0, 0x12), Proceed(0), Reply(0, 0x10, 5000, 1 << 31), Reply(0, 0x04), Reply(1)],
]
TAKEN: list[list[Step]] = [  # … and a flow that is translated
    [Reply(0), Intrude(0), Repeat(0), Intrude(0, inside=True), Reply(0)],
    [Intrude(0), Reply(0), Complain(0), Wait(25 * SECOND), Intrude(0), Repeat(0)],
    [Wait(10 * SECOND), Intrude(0), Reply(0, 0x12), Wait(10 * SECOND), Reply(1)],
    [Intrude(0, inside=True), Reply(0), Complain(0), Repeat(0)],
    [Wait(20 * SECOND), Expire(), Wait(5 * SECOND), Intrude(0), Repeat(0)],
]
SINCE: list[list[Step]] = [  # … and a change of the policy
    [],
    [Repeat(0), Repeat(1), Repeat(2)],
    [Reply(0), Reply(1), Reply(2), Complain(0)],
    [Complain(0), Repeat(1), Reply(0), Repeat(3)],
]


@st.composite
def _to_service(draw: st.Draw, site: Site, service: Service) -> tuple[Service, Frame] | None:
    """The first packet of a client where the service is met; None: it has none there."""
    vip, network = ip_of(service.address), site.networks[service.vni]
    clients = [
        (ip_of(a), e.name, network.dr_mac + e.mac)
        for e in site.endpoints.values()
        for a in e.addresses
        if e.vni == service.vni
    ]
    if service.met_at == HOST:
        assert site.host
        clients = [(a, HOST, site.host.mac + site.host.peer_mac) for a in OUTSIDE]
    elif service.met_at == UNDERLAY:
        far = [
            a for a in _everyone(site, network) if getattr(network.route(_ip16(a)), "adjacency", 0)
        ]
        clients = [(a, UNDERLAY, network.dr_mac + bytes(6)) for a in far + OUTSIDE]
    clients = [c for c in clients if c[0].version == vip.version]
    if not clients:
        return None
    src, port, macs = draw(st.sampled_from(clients))
    packet = _plain(src, vip, service.proto, draw(st.sampled_from(PORTS)), service.port)
    data = macs + build.ip_type(packet).to_bytes(2) + packet
    tunnelled = service.met_at == UNDERLAY
    return service, Frame(port, _tunnelled(site, network, src, data) if tunnelled else data)


@st.composite
def rebalanced(draw: st.Draw, node: Node) -> tuple[Node, list[Step]]:
    """A flow to a service goes on while the backends change."""
    site = Site(node)
    met = [s for s in site.services if s.members]
    sent = draw(_to_service(site, draw(st.sampled_from(met)))) if met else None
    if sent is None:
        return node, []
    service, frame = sent
    old = next(n for n in node.networks if n.name == service.rule.partition("/")[0])
    new = draw(_with_other_backends(old)) if old.load_balancers else old
    node = _replaced(node, old, new)
    return node, [Send(frame), Commit(node), Repeat(0), Reply(0), Complain(0), Repeat(1)]


@st.composite
def translated(draw: st.Draw, node: Node) -> list[Step]:
    """A flow to the outside, and what others make of its source."""
    site = Site(node)
    senders = [e for e in site.endpoints.values() if e.nat]
    if not senders:
        return []
    sender = draw(st.sampled_from(senders))
    assert sender.nat
    version = ip_of(sender.nat.pool.address).version
    src = draw(st.sampled_from([ip_of(a) for a in sender.addresses if ip_of(a).version == version]))
    dst = draw(st.sampled_from([a for a in OUTSIDE if a.version == version]))
    packet = _plain(src, dst, draw(st.sampled_from([TCP, UDP])), draw(st.sampled_from(PORTS)), 80)
    macs = site.networks[sender.vni].dr_mac + sender.mac
    frame = Frame(sender.name, macs + build.ip_type(packet).to_bytes(2) + packet)
    return [Send(frame), *draw(st.sampled_from(TAKEN))]


def _plain(src: IP, dst: IP, proto: int, sport: int, dport: int) -> bytes:
    """The first packet of a flow."""
    segment = build.udp(sport, dport, b"ask") if proto == UDP else build.tcp(sport, dport, 0x02)
    ends = src.packed, dst.packed
    return build.ip(*ends, proto, build.summed(*ends, proto, segment))


@st.composite
def scenarios(draw: st.Draw, max_steps: int = 60) -> tuple[Node, list[Step]]:
    """A policy, and steps that hit it, each commit changing what the one before left."""
    first = node = draw(nodes())
    steps: list[Step] = []
    while len(steps) < max_steps:
        kind = draw(st.sampled_from(KINDS))
        if kind == "commit":
            node = draw(edits(node))
            steps += [Commit(node), *draw(st.sampled_from(SINCE))]
        elif kind == "send":
            steps += [Send(draw(frames(node))), *draw(st.sampled_from(AFTERWARDS))]
        elif kind == "datagram":
            for frame in draw(datagrams(node)):
                steps += [Wait(9 * SECOND)] if draw(seldom) else []
                steps.append(Send(frame))
        elif kind == "rebalance":
            node, some = draw(rebalanced(node))
            steps += some
        elif kind == "translate":
            steps += draw(translated(node))
        elif kind == "expire":
            steps.append(Expire())
        else:
            steps.append(draw(SIMPLE[kind]))
    return first, steps


@dataclass(frozen=True)
class Event:
    """One thing a dataplane is asked to do."""

    now_ns: int
    frame: Frame | None = None
    commit: Node | None = None
    expire: bool = False
    learn: tuple[IP, int | None, int] | None = None


class Player:
    """Turns steps into events: replies need to know what was forwarded, which `saw` is told."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.now = SECOND
        self.sent: list[Frame] = []
        self.forwarded: list[tuple[str, bytes]] = []

    def event(self, step: Step) -> Event | None:
        """None: the step has nothing to refer to."""
        if isinstance(step, Wait):
            self.now += step.ns
            return None
        if isinstance(step, Expire):
            return Event(self.now, expire=True)
        if isinstance(step, Learn):
            return Event(self.now, learn=(step.remote, step.vni, step.mtu))
        if isinstance(step, Commit):
            self.node = step.node
            return Event(self.now, commit=step.node)
        frame = self._frame(step)
        if frame is None:
            return None
        self.sent.append(frame)
        return Event(self.now, frame)

    def _frame(self, step: Send | Repeat | Reply | Proceed | Complain | Intrude) -> Frame | None:
        if isinstance(step, Send):
            return step.frame
        past = self.sent if isinstance(step, Repeat | Proceed) else self.forwarded
        if step.back >= len(past):
            return None
        if isinstance(step, Repeat):
            return self.sent[-1 - step.back]
        if isinstance(step, Proceed):
            last = self.sent[-1 - step.back]
            if last.port == UNDERLAY:
                return None
            data = build.next_after(last.data, step.tcp_flags, step.skew)
            return None if data is None else Frame(last.port, data, last.flags)
        if isinstance(step, Intrude):
            out = [data for egress, data in self.forwarded if egress == HOST]
            back = step.back < len(out)
            return intruder(Site(self.node), out[-1 - step.back], step.inside) if back else None
        egress, data = self.forwarded[-1 - step.back]
        if isinstance(step, Complain):
            return answer_from(Site(self.node), egress, data, build.error_about)
        return answer_from(
            Site(self.node),
            egress,
            data,
            lambda inner: build.reply_to(inner, step.tcp_flags, step.skew, step.ack_skew),
            step.elsewhere,
        )

    def saw(self, outcome: Outcome) -> None:
        if outcome.verdict == "forward":
            assert outcome.egress is not None and outcome.frame is not None
            self.forwarded.append((outcome.egress, outcome.frame))


def play(node: Node, steps: list[Step], do: Callable[[Event], Outcome | None]) -> list[Outcome]:
    """Hands each event to `do`, which returns the outcome of a frame."""
    player, outcomes = Player(node), []
    for step in steps:
        event = player.event(step)
        outcome = do(event) if event else None
        if outcome is not None:
            player.saw(outcome)
            outcomes.append(outcome)
    return outcomes


def answer_from(
    site: Site,
    egress: str,
    data: bytes,
    make: Callable[[bytes], bytes | None],
    elsewhere: bool = False,
) -> Frame | None:
    """What `make` answers to a forwarded inner frame, entering where that one left; `elsewhere`:
    through another VTEP of the network."""
    if egress != UNDERLAY:
        answer = make(data)
        return None if answer is None else Frame(egress, _towards_router(site, egress, answer))
    head = 50 if data[12:14] == b"\x08\0" else 70
    vni, remote = int.from_bytes(data[head - 4 : head - 1]), _outer_dst(data, head)
    answer = make(data[head:])
    network = site.networks.get(vni)
    own = site.underlay.ip4 if len(remote) == 4 else site.underlay.ip6
    if answer is None or network is None or own is None:
        return None
    inner = network.dr_mac + answer[6:]
    if elsewhere:
        others = (unmapped(v) for v in sorted(network.vteps) if unmapped(v) != remote)
        remote = next((v for v in others if len(v) == len(remote)), remote)
    outer = build.vxlan(remote, unmapped(own), site.underlay.udp_port, vni, inner)
    return Frame(UNDERLAY, outer)


def intruder(site: Site, data: bytes, inside: bool) -> Frame | None:
    """A packet to the source of one that left for the outside."""
    packet = parse(data)
    if not isinstance(packet, Packet) or packet.fragment or packet.flow.proto not in (TCP, UDP):
        return None
    flow, dst = packet.flow, ip_of(packet.flow.src)
    ends = [(e, ip_of(a)) for e in site.endpoints.values() if e.nat for a in e.addresses]
    near = [(e, a) for e, a in ends if a.version == dst.version]
    if inside and near:
        sender, src = near[-1]
        port, macs = sender.name, site.networks[sender.vni].dr_mac + sender.mac
    elif site.host and not inside:
        src = next(a for a in reversed(OUTSIDE) if a.version == dst.version)
        port, macs = HOST, site.host.mac + site.host.peer_mac
    else:
        return None
    answer = _plain(src, dst, flow.proto, 1001, flow.sport)
    return Frame(port, macs + build.ip_type(answer).to_bytes(2) + answer)


def _outer_dst(data: bytes, head: int) -> bytes:
    return data[30:34] if head == 50 else data[38:54]


def _towards_router(site: Site, port: str, answer: bytes) -> bytes:
    """A switched frame has the neighbour's MAC as its source; it is answered through the router."""
    endpoint = site.endpoints.get(port)
    return answer if endpoint is None else site.networks[endpoint.vni].dr_mac + answer[6:]


__all__ = [
    "Adjacency",
    "Commit",
    "Complain",
    "Event",
    "Expire",
    "Frame",
    "Player",
    "Repeat",
    "Reply",
    "Send",
    "Step",
    "Wait",
    "damaged",
    "edits",
    "frames",
    "nodes",
    "play",
    "scenarios",
]
