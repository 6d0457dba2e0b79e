"""Rows: what the tables of a node are made of. Plain values that compare by content.

Rows refer to each other by stable numbers (`dataplane.ids`), never by their place, so that a row
changes only when what it says changes. Addresses are 16 bytes, IPv4 v4-mapped; prefix lengths count
those 128 bits.
"""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dataplane.address import Span
from dataplane.ids import Ids
from dataplane.memo import Memo
from dataplane.model import Fallback, IcmpRate, Timers, Wire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Range = tuple[int, int]  # both ends included

NO_ADDRESS = bytes(16)
NO_MAC = bytes(6)


class Pool(NamedTuple):
    """Outside address and ports of a source NAT."""

    address: bytes
    first: int
    last: int
    flags: int = 0  # enum dp_pool_flag
    max_bindings: int = 0  # of one endpoint, 0 for no quota


class Rule(NamedTuple):
    """Empty conditions match anything. `action` adds `snat` to the model's."""

    id: int
    priority: int
    action: str
    terminating: bool = False
    stateful: bool = False
    idle: int = 0  # seconds
    pool: Pool | None = None
    src: tuple[Span, ...] = ()
    dst: tuple[Span, ...] = ()
    sport: tuple[Range, ...] = ()
    dport: tuple[Range, ...] = ()
    protocol: tuple[Range, ...] = ()


class Group(NamedTuple):
    id: int
    layer: str
    rules: tuple[Rule, ...]


class PortRow(NamedTuple):
    id: int
    kind: str  # endpoint, underlay, host
    mtu: int  # bytes of the largest IP packet
    udp_port: int = 0
    mac: bytes = NO_MAC
    peer_mac: bytes = NO_MAC
    ip4: bytes = NO_ADDRESS
    ip6: bytes = NO_ADDRESS


@dataclass(frozen=True, slots=True, eq=False)
class Adjacencies:
    """The VTEPs of one network as columns of equal length."""

    vni: int
    mtu: int
    id: "NDArray[np.uint32]"
    remote: "NDArray[np.uint8]"  # [n, 16]
    dr_mac: "NDArray[np.uint8]"  # [n, 6]
    outer_mac: "NDArray[np.uint8]"  # [n, 6]

    @property
    def columns(self) -> "tuple[NDArray[Any], ...]":
        return self.id, self.remote, self.dr_mac, self.outer_mac


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Longest-prefix routes as columns of equal length; equal when their bytes are.

    `kind` is a value of `RouteKind`, `target` a port id, an adjacency id, or 0.
    """

    digest: bytes
    prefix: "NDArray[np.uint8]" = field(compare=False, repr=False)  # [n, 16]
    length: "NDArray[np.uint8]" = field(compare=False, repr=False)  # [n]
    kind: "NDArray[np.uint8]" = field(compare=False, repr=False)
    target: "NDArray[np.uint32]" = field(compare=False, repr=False)
    flags: "NDArray[np.uint16]" = field(compare=False, repr=False)


class NetworkRow(NamedTuple):
    vni: int
    mtu: int
    dr_mac: bytes
    gateway4: bytes
    gateway6: bytes
    routes: RouteTable
    domain: int  # 0: alone
    max_flows: int  # 0 for no quota
    wire: Wire


BACKEND = struct.Struct("=16sHH")  # address, port, flags (enum dp_backend_flag)


class ServiceRow(NamedTuple):
    """One address, protocol and port, and where clients of one kind of port meet it."""

    address: bytes
    port: int
    proto: int
    met_at: str  # endpoint, underlay, host
    affinity: int  # enum dp_affinity
    flags: int  # enum dp_service_flag
    vni: int
    rule: int
    pool: Pool | None
    backends: bytes  # of BACKEND each: bytes know their hash, however many they are


class EndpointRow(NamedTuple):
    vni: int
    port: int
    mac: bytes
    addresses: tuple[bytes, ...]
    groups: tuple[tuple[Group, ...], ...]  # by direction
    fallback: tuple[Fallback, ...]  # by direction
    max_flows: int  # 0 for no quota


@dataclass(frozen=True, slots=True)
class Tables:
    """A whole policy. `endpoints` are in order of their ports."""

    ids: Ids
    ports: tuple[PortRow, ...]
    networks: tuple[NetworkRow, ...]
    endpoints: tuple[EndpointRow, ...]
    adjacencies: tuple[Adjacencies, ...]  # by network
    services: tuple[ServiceRow, ...]
    timers: Timers
    icmp_rate: IcmpRate | None
    memo: Memo = field(compare=False, repr=False)


class RouteKind:
    """As `enum dp_route_kind`."""

    ENDPOINT, REMOTE, GATEWAY, SUBNET, VIP, HOST, DIRECT = range(7)
