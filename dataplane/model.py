"""The policy model: what every front door produces and nothing but the compiler reads.

All values are frozen. An object is known by its name; names are unique among their siblings.
"""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec

from dataplane.address import IP, Mac, Malformed, Prefix, Vni

Action = Literal["allow", "block", "pass", "reject"]
Fallback = Literal["allow", "block"]
Direction = Literal["in", "out"]
Transport = Literal["tcp", "udp"]

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}  # and "any"

_PORTS = re.compile(r"(0|[1-9][0-9]{0,8})(?:-(0|[1-9][0-9]{0,8}))?")


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all documents' objects."""


class PortRange:
    """Transport ports, both ends included. Written `80` or `8000-8100`."""

    __slots__ = ("first", "last")
    first: int
    last: int

    def __init__(self, first: int, last: int) -> None:
        for port in (first, last):
            if not 0 <= port <= 65535:
                raise Malformed(f"{port} is not a port (0-65535)")
        if first > last:
            raise Malformed(f"{first}-{last} is no range of ports", f"write {last}-{first}")
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "last", last)

    @classmethod
    def parse(cls, text: str) -> "PortRange":
        match = _PORTS.fullmatch(text)
        if match is None:
            raise Malformed(f"{text!r} is not a port or range", "as 80 or 8000-8100")
        return cls(int(match[1]), int(match[2] or match[1]))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __reduce__(self) -> tuple[type["PortRange"], tuple[int, int]]:
        return type(self), (self.first, self.last)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PortRange):
            return NotImplemented
        return (self.first, self.last) == (other.first, other.last)

    def __hash__(self) -> int:
        return hash((self.first, self.last))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __repr__(self) -> str:
        return f"PortRange(first={self.first}, last={self.last})"


class Acl(Model, frozen=True, kw_only=True):
    """One ACL rule. Empty lists match anything; the values of a list are OR-ed, the fields AND-ed.

    `local` is the endpoint's side in both directions. Lower priorities are evaluated first.
    A rule that is not terminating leaves the last word to a later group (VFP semantics).
    `reject` blocks and tells the sender: TCP by a reset, all else by ICMP.
    """

    name: str
    direction: Direction
    action: Action
    priority: int = 1000
    protocol: str | int = "any"  # any, a name of PROTOCOLS, or an IP protocol number
    local: tuple[Prefix, ...] = ()
    remote: tuple[Prefix, ...] = ()
    local_ports: tuple[PortRange, ...] = ()
    remote_ports: tuple[PortRange, ...] = ()
    icmp_type: int | None = None
    icmp_code: int | None = None
    stateful: bool = True
    terminating: bool = True
    idle: int = 0  # seconds until its idle flows are forgotten; 0 = by protocol


class OutboundNat(Model, frozen=True, kw_only=True):
    """Source NAT of what leaves the overlay through the host port.

    Destinations in `exceptions`, and the network's own prefixes and remote subnets, are never
    translated; if `destinations` is given, only those are. `vip`: default the host port's address.
    `mapping`: one outside port for all remotes (RFC 4787 REQ-1), or one for each. `filtering`: who
    may send to it from outside: those it is connected to, or anyone (REQ-8).
    `max_ports`: bindings one endpoint may hold at a time (HNS MaxPortPoolUsage), 0 for no quota.
    """

    vip: IP | None = None
    exceptions: tuple[Prefix, ...] = ()
    destinations: tuple[Prefix, ...] = ()
    ports: PortRange = msgspec.field(default_factory=lambda: PortRange(1024, 65535))
    mapping: Literal["endpoint-independent", "symmetric"] = "endpoint-independent"
    filtering: Literal["connection", "endpoint-independent"] = "connection"
    max_ports: int = 0


class PortMapping(Model, frozen=True, kw_only=True):
    """An outside port that leads to an endpoint (HNS PortMapping)."""

    protocol: Transport
    port: int  # outside
    target_port: int | None = None  # default: the same
    vip: IP | None = None  # default: the host port's address


class Backend(Model, frozen=True, kw_only=True):
    """One server of a load balancer. One that drains keeps its flows and gets no new ones.

    May be written as its address alone.
    """

    SHORTHAND: ClassVar = "address"
    address: IP
    port: int | None = None  # default: the load balancer's target_port
    drain: bool = False


class LoadBalancer(Model, frozen=True, kw_only=True):
    """Spreads the flows to its VIPs over backends (HNS LoadBalancer).

    `source_vip`: the client that backends see where their answers would else not come this way.
    `dsr`: a backend on another node gets the packet as it came, and answers the client directly.
    """

    name: str
    protocol: Transport
    port: int
    vips: tuple[IP, ...] = ()
    target_port: int | None = None  # default: port
    backends: tuple[Backend, ...] = ()
    affinity: Literal["none", "source_ip", "source_ip_protocol"] = "none"
    source_vip: IP | None = None  # default: the network's gateway
    dsr: bool = False
    local_only: bool = False  # backends of this node only
    node_port: int | None = None  # also at the host port's address


class Tap(Model, frozen=True, kw_only=True):
    """The TAP device of an endpoint or of the host port."""

    name: str
    netns: str | None = None  # a name of /run/netns or a path; default: where the forwarder runs
    persist: bool = False
    owner: int | None = None  # uid that may attach without root
    mtu: int | None = None  # default: the network's
    configure: bool = True  # set MAC, MTU, address and default route, and bring it up
    offload: bool = True  # its kernel hands over large packets before they are cut and summed


class Endpoint(Model, frozen=True, kw_only=True):
    """A container or virtual machine: one port, its MAC and its addresses."""

    name: str
    addresses: tuple[IP, ...] = ()  # default: free ones of the network's pool, kept by name
    mac: Mac | None = None  # default: 0e:2a + the IPv4 octets, as flannel does on Windows
    tap: Tap | None = None  # default: a TAP named as the endpoint
    acls: tuple[Acl, ...] = ()
    default_in: Fallback | None = (
        None  # where no rule matches: block if there are rules, else allow
    )
    default_out: Fallback | None = None
    outbound_nat: OutboundNat | None = None  # default: the network's
    port_mappings: tuple[PortMapping, ...] = ()
    max_flows: int = 0  # pairs it may have begun at a time, 0 for no quota


class RemoteSubnet(Model, frozen=True, kw_only=True):
    """A prefix behind another VTEP (HNS RemoteSubnetRoute)."""

    prefix: Prefix
    provider_address: IP
    dr_mac: Mac
    dsr: bool = False  # VIPs: any VTEP of the network may answer for them


class DirectSubnet(Model, frozen=True, kw_only=True):
    """A prefix of another node on the underlay's own link, which is reached without a tunnel: by a
    route of the host through the host port (flannel's DirectRouting; l2bridge on Windows)."""

    prefix: Prefix
    provider_address: IP


class Wire(Model, frozen=True, kw_only=True):
    """How a network's packets stand on the underlay, where RFC 7348 leaves a choice.

    The outer packet is never fragmented here, whatever `df` says. Through UDP sockets the kernel
    writes the outer headers: DF is set, and what `udp_checksum` and `udp6_zero_rx` ask for in one
    network holds for all packets of the node; with the underlay's `offload` the checksum is always
    full, since a kernel that cuts packets asks for it.
    """

    dscp: Literal["zero", "copy"] | int = "zero"  # outer DSCP: 0, the inner packet's, or 0-63
    dscp_decap: Literal["keep", "copy"] = "keep"  # RFC 2983: pipe, or uniform (outer to inner)
    ttl: int = 64  # outer TTL or hop limit
    df: Literal["set", "clear", "inherit"] = "set"  # outer DF; inherit: of inner IPv4, IPv6 sets it
    strict: bool = False  # drop a VXLAN header with any reserved bit set; else they are ignored
    udp6_zero_rx: bool = False  # accept a zero UDP checksum over IPv6 (RFC 6936)
    udp_checksum: Literal["zero", "full"] = "zero"  # over IPv4; over IPv6 it is always full
    inner_vlan: Literal["discard", "strip"] = "discard"  # a single tag on frames of endpoints


class Network(Model, frozen=True, kw_only=True):
    """An overlay network: one VNI, its prefixes, and who lives where."""

    name: str
    vni: Vni
    prefixes: tuple[Prefix, ...]
    gateways: tuple[IP, ...] = ()  # default: the first address of each prefix
    pool: tuple[Prefix, ...] = ()  # where addresses are taken from; default: the prefixes
    dr_mac: Mac | None = None  # default: derived from node name and VNI
    mtu: int | Literal["auto"] = "auto"  # auto: underlay MTU less 50 (IPv4) or 70 (IPv6)
    remote_subnets: tuple[RemoteSubnet, ...] = ()
    direct_subnets: tuple[DirectSubnet, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    acls: tuple[Acl, ...] = ()  # a group of its own, walked before each endpoint's
    outbound_nat: OutboundNat | None = None
    load_balancers: tuple[LoadBalancer, ...] = ()
    host_route: bool = False  # the host reaches the network through its host port, and is reached
    host_subnets: tuple[Prefix, ...] = ()  # behind the host, which has the lowest address of each
    routing_domain: str | None = None  # networks of one domain route into each other
    max_flows: int = 0  # pairs it may hold at a time, 0 for no quota
    wire: Wire = Wire()


class Underlay(Model, frozen=True, kw_only=True):
    """How this node reaches the other VTEPs."""

    address: IP  # provider address
    address6: IP | None = None
    port: int = 4789
    mtu: int = 1500
    offload: bool = True  # the kernel cuts and joins packets (UDP_SEGMENT, UDP_GRO)
    xdp: str | None = None  # an interface, for AF_XDP beside the sockets


class HostPort(Model, frozen=True, kw_only=True):
    """The way out: a TAP into the host's own namespace, with a link address on each side."""

    address: IP  # the dataplane's side
    peer: IP  # the host's side
    tap: Tap


class Timers(Model, frozen=True, kw_only=True):
    """Seconds until an idle flow is forgotten, 1 to 2^31; default: as the RFCs ask.

    TCP is half-open until both sides were seen, and transitory once it closes.
    """

    tcp_established: int | None = None  # 7440: RFC 5382 REQ-5
    tcp_transitory: int | None = None  # 240: RFC 5382 REQ-5
    tcp_half_open: int | None = None  # 30
    udp: int | None = None  # 300: RFC 4787 REQ-5
    icmp: int | None = None  # 60: RFC 5508 REQ-2
    other: int | None = None  # 300
    fragment: int | None = None  # 30: until an incomplete datagram is given up
    path_mtu: int | None = None  # 600: until a learned one is forgotten, RFC 1191 section 6.3


class IcmpRate(Model, frozen=True, kw_only=True):
    """ICMP errors a second, and at once after a pause: to one ingress port, and in all."""

    port: int = 100
    port_burst: int = 50
    all: int = 1000
    all_burst: int = 200


class Flannel(Model, frozen=True, kw_only=True):
    """The flannel overlay that the node is of, as the options of `run --flannel` name it. Read when
    the node begins. A password stands in no document: FLANNELD_ETCD_PASSWORD."""

    etcd: tuple[str, ...]  # URLs of servers
    prefix: str = "/coreos.com/network"  # of its keys
    env: str = "/run/flannel/subnet.env"  # for flannel's CNI plugin; empty: nowhere
    endpoints: tuple[str, ...] = ()  # NAME[@NETNS] of TAPs with an address of the lease each
    ca: str | None = None  # files in PEM, for https
    cert: str | None = None
    key: str | None = None
    username: str | None = None


class Listed(NamedTuple):
    """A list of objects: their type, and the field that names one."""

    type: type[Model]
    key: str


LISTS: Mapping[str, Listed] = {  # of a network's objects, by field
    "endpoints": Listed(Endpoint, "name"),
    "remote_subnets": Listed(RemoteSubnet, "prefix"),
    "direct_subnets": Listed(DirectSubnet, "prefix"),
    "acls": Listed(Acl, "name"),
    "load_balancers": Listed(LoadBalancer, "name"),
}


class Node(Model, frozen=True, kw_only=True):
    """One host: its underlay, its way out, and its networks."""

    name: str
    underlay: Underlay
    host_port: HostPort | None = None
    icmp_rate: IcmpRate | None = (
        None  # default: as the engine was made, 100/s a port, 1000/s in all
    )
    networks: tuple[Network, ...] = ()
    timers: Timers = Timers()
    flannel: Flannel | None = None


def outbound_nats(node: Node) -> Iterator[OutboundNat]:
    """Of its networks and endpoints."""
    for network in node.networks:
        nats = (network.outbound_nat, *(e.outbound_nat for e in network.endpoints))
        yield from filter(None, nats)


def vips_of(network: Network) -> Iterator[IP]:
    """What load balancers and port mappings of the network are met under."""
    for balancer in network.load_balancers:
        yield from balancer.vips
    for endpoint in network.endpoints:
        yield from (m.vip for m in endpoint.port_mappings if m.vip is not None)


class Expect(Model, frozen=True, kw_only=True):
    """A packet and what must become of it; proved by `dataplane check`.

    In a lab of several nodes a packet sent into the underlay is followed to the node it is sent to,
    unless `to: underlay` asks for the packet on the wire; likewise one that hosts route directly,
    and `to: host`. Each packet meets a fresh engine.
    """

    packet: str  # as in `dataplane trace`: tcp 10.1.1.2:40000 > 10.1.2.2:80 syn
    at: str  # endpoint where it enters: NAME, NETWORK/NAME or NODE/NETWORK/NAME
    verdict: Literal["forward", "drop", "answer", "held"]
    name: str = ""
    reason: str | None = None  # drop: the reason's symbol
    rule: str | None = None  # the rule that decided: NETWORK/ENDPOINT/NAME, or its end
    to: str | None = None  # where it leaves: an endpoint (delivered), "underlay" or "host"
    encap: IP | None = None  # outer destination
    vni: Vni | None = None
    headers: dict[str, str | int] = {}  # as the inner packet leaves: names of packet.HEADERS
    reply: Literal["forward", "drop"] | None = None  # what becomes of the mirrored answer packet


class Document(Model, frozen=True, kw_only=True):
    """A policy document: one node, or a lab of several."""

    version: Literal[1] = 1
    node: Node | None = None
    nodes: tuple[Node, ...] = ()
    expect: tuple[Expect, ...] = ()
