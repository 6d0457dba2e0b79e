"""What a node's policy says, looked up by what a frame carries. Every search is a linear scan.

Addresses are 16 bytes, prefixes (16 bytes, length over 128 bits), MACs 6 bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from msgspec.structs import asdict

from dataplane import model
from dataplane.address import IP, Prefix, ip16, prefix16
from dataplane.defaults import resolve
from tests.reference.pool import Pool
from tests.reference.services import domain_of, services_of, vips_of

HOST, UNDERLAY = "host", "underlay"
MAPPED = b"\0" * 10 + b"\xff\xff"
Span = tuple[bytes, int]


def within(address: bytes, prefix: Span) -> bool:
    if prefix[1] < 96 and address.startswith(MAPPED):
        return False  # of IPv6, however short
    shift = 128 - prefix[1]
    return int.from_bytes(address) >> shift == int.from_bytes(prefix[0]) >> shift


def span(prefix: Prefix) -> Span:
    return prefix16(prefix)


def of_version(addresses: tuple[IP, ...], version: int) -> bytes | None:
    return next((ip16(a) for a in addresses if a.version == version), None)


def tail(address: IP) -> bytes:
    """The last four octets: what MAC addresses are made of."""
    return address.packed[-4:]


@dataclass(frozen=True)
class Underlay:
    mac: bytes
    ip4: bytes | None
    ip6: bytes | None
    udp_port: int
    mtu: int


@dataclass(frozen=True)
class Host:
    mac: bytes
    peer_mac: bytes
    address: bytes
    mtu: int


@dataclass(frozen=True)
class Adjacency:
    vni: int
    remote: bytes
    dr_mac: bytes
    outer_mac: bytes
    mtu: int
    wire: model.Wire


@dataclass(frozen=True)
class Nat:
    exceptions: tuple[Span, ...]
    destinations: tuple[Span, ...]  # empty: any
    pool: Pool
    quota: int  # bindings of one endpoint, 0: any number


@dataclass(frozen=True)
class Endpoint:
    port: str  # its label
    name: str
    vni: int
    mac: bytes
    addresses: tuple[bytes, ...]
    groups: dict[str, tuple[tuple[str, tuple[model.Acl, ...]], ...]]  # by direction
    fallback: dict[str, str]
    nat: Nat | None
    max_flows: int  # 0: any number


@dataclass(frozen=True)
class Route:
    prefix: Span
    kind: str  # of KINDS
    endpoint: Endpoint | None = None
    adjacency: Adjacency | None = None
    any_vtep: bool = False  # whoever lives there may speak through any VTEP of the network


KINDS = (
    "subnet",
    "remote",
    "vip",
    "gateway",
    "direct",
    "host",
    "endpoint",
)  # the more particular the later


@dataclass(frozen=True)
class Network:
    vni: int
    mtu: int
    dr_mac: bytes
    gateways: dict[int, bytes | None]  # by IP version
    vteps: frozenset[bytes]
    max_flows: int
    wire: model.Wire
    domain: frozenset[int]  # VNIs of the networks it may route into, its own among them
    routes: list[Route] = field(default_factory=list)

    def route(self, address: bytes) -> Route | None:
        """The longest prefix; of equals the more particular kind."""
        found = [r for r in self.routes if within(address, r.prefix)]
        return max(found, key=lambda r: (r.prefix[1], KINDS.index(r.kind)), default=None)

    def kind(self, address: bytes) -> str | None:
        route = self.route(address)
        return route.kind if route else None


class Site:
    """All ports and networks of one node. `label`: what a port is known by, from its name."""

    def __init__(self, node: model.Node, label: Callable[[str], str] = str) -> None:
        node = resolve(node)
        self.underlay = _underlay(node.underlay)
        self.icmp_rate = node.icmp_rate or model.IcmpRate()
        self.host = None if node.host_port is None else _host(node.host_port)
        self.networks = {int(n.vni): _network(n, node) for n in node.networks}
        ends = {
            int(n.vni): [_endpoint(e, n, node, label) for e in n.endpoints] for n in node.networks
        }
        self.endpoints = {e.port: e for of in ends.values() for e in of}
        for network in node.networks:
            _add_routes(self.networks, ends, network, node)
        self.services = services_of(node)
        self.idle = {k: v for k, v in asdict(node.timers).items() if v is not None}

    def concerns(self, port: str) -> object:
        """All that decides what may pass an endpoint's port or the host port, and how; None: there
        is no such port."""
        endpoint = self.endpoints.get(port)
        if endpoint is None and port != HOST:
            return None
        domain = self.networks[endpoint.vni].domain if endpoint else set(self.networks)
        networks = [
            (replace(n, routes=[]), _told(n)) for n in self.networks.values() if n.vni in domain
        ]
        services = [s for s in self.services if s.vni in domain]
        return endpoint, networks, services, self.underlay, self.host

    def quotas(self, port: str, vni: int) -> tuple[int, int]:
        """Most flows of the port and of the network, 0 for any number."""
        endpoint, network = self.endpoints.get(port), self.networks.get(vni)
        return endpoint.max_flows if endpoint else 0, network.max_flows if network else 0

    @property
    def pool_addresses(self) -> set[bytes]:
        """NAT: what comes to them from outside is of a binding, or of no one."""
        nats = {e.nat.pool.address for e in self.endpoints.values() if e.nat}
        return nats | {s.source.address for s in self.services if s.source and s.met_at != UNDERLAY}


def _told(network: Network) -> list[object]:
    """Its routes, without what only the endpoints they lead to are concerned by."""
    return [replace(r, endpoint=r.endpoint and r.endpoint.port) for r in network.routes]  # type: ignore


def _underlay(underlay: model.Underlay) -> Underlay:
    addresses = tuple(a for a in (underlay.address, underlay.address6) if a is not None)
    return Underlay(
        mac=b"\x02\x00" + tail(underlay.address),
        ip4=of_version(addresses, 4),
        ip6=of_version(addresses, 6),
        udp_port=underlay.port,
        mtu=underlay.mtu,
    )


def _host(host: model.HostPort) -> Host:
    return Host(
        mac=b"\x02\x01" + tail(host.address),
        peer_mac=b"\x02\x01" + tail(host.peer),
        address=ip16(host.address),
        mtu=host.tap.mtu or 1500,
    )


def _network(source: model.Network, node: model.Node) -> Network:
    assert source.dr_mac is not None and isinstance(source.mtu, int)
    domain = domain_of(source, node)
    return Network(
        vni=int(source.vni),
        mtu=source.mtu,
        dr_mac=source.dr_mac.packed,
        gateways={v: of_version(source.gateways, v) for v in (4, 6)},
        vteps=frozenset(ip16(r.provider_address) for n in domain for r in n.remote_subnets),
        max_flows=source.max_flows,
        wire=source.wire,
        domain=frozenset(int(n.vni) for n in domain),
    )


def _add_routes(
    networks: dict[int, Network],
    ends: dict[int, list[Endpoint]],
    source: model.Network,
    node: model.Node,
) -> None:
    """Gateways and the host are a network's own affair; all else is its domain's."""
    routes = networks[int(source.vni)].routes
    for network in domain_of(source, node):
        for end in ends[int(network.vni)]:
            routes.extend(Route((a, 128), "endpoint", end) for a in end.addresses)
        for remote in network.remote_subnets:
            way = _adjacency(remote, network)
            routes.append(Route(span(remote.prefix), "remote", None, way, remote.dsr))
        routes.extend(Route(span(p), "subnet") for p in network.prefixes)
        routes.extend(Route((ip16(v), 128), "vip") for v in vips_of(network))
    routes.extend(Route((ip16(g), 128), "gateway") for g in source.gateways)
    if source.host_route and node.host_port is not None:
        routes.append(Route((ip16(node.host_port.peer), 128), "host"))
        routes.extend(Route(span(p), "host") for p in source.host_subnets)
        routes.extend(Route(span(d.prefix), "direct") for d in source.direct_subnets)


def _adjacency(remote: model.RemoteSubnet, network: model.Network) -> Adjacency:
    assert isinstance(network.mtu, int)
    return Adjacency(
        vni=int(network.vni),
        remote=ip16(remote.provider_address),
        dr_mac=remote.dr_mac.packed,
        outer_mac=b"\x02\x00" + tail(remote.provider_address),
        mtu=network.mtu,
        wire=network.wire,
    )


def _endpoint(
    source: model.Endpoint, network: model.Network, node: model.Node, label: Callable[[str], str]
) -> Endpoint:
    assert source.mac is not None
    name = f"{network.name}/{source.name}"
    groups, fallback = {}, {}
    for direction in ("out", "in"):
        owners = ((network.name, network.acls), (name, source.acls))
        groups[direction] = tuple(
            (owner, tuple(a for a in acls if a.direction == direction)) for owner, acls in owners
        )
    fallback = {"out": str(source.default_out), "in": str(source.default_in)}
    return Endpoint(
        port=label(name),
        name=name,
        vni=int(network.vni),
        mac=source.mac.packed,
        addresses=tuple(ip16(a) for a in source.addresses),
        groups=groups,
        fallback=fallback,
        nat=_nat(source, network, node),
        max_flows=source.max_flows,
    )


def _nat(endpoint: model.Endpoint, network: model.Network, node: model.Node) -> Nat | None:
    """None without an outside address, or an inside one of its family. What routes lead to is never
    translated."""
    source = endpoint.outbound_nat
    if source is None or source.vip is None:
        return None
    if all(a.version != source.vip.version for a in endpoint.addresses):
        return None
    domain = domain_of(network, node)
    routed = [p for n in domain for p in n.prefixes + tuple(r.prefix for r in n.remote_subnets)]
    single = [vip for n in domain for vip in vips_of(n)]
    if network.host_route and node.host_port is not None:
        single.append(node.host_port.peer)
        routed += [d.prefix for d in network.direct_subnets]
    return Nat(
        exceptions=(
            *(span(p) for p in routed),
            *((ip16(a), 128) for a in single),
            *(span(p) for p in source.exceptions),
        ),
        destinations=tuple(span(p) for p in source.destinations),
        pool=Pool(
            ip16(source.vip),
            source.ports.first,
            source.ports.last,
            symmetric=source.mapping == "symmetric",
            open=source.filtering == "endpoint-independent",
        ),
        quota=source.max_ports,
    )
