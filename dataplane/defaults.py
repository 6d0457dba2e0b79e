"""What the model leaves out, filled in: the only place that knows defaults which need a rule."""

import hashlib

from msgspec.structs import replace

from dataplane.address import IP, Mac, Prefix
from dataplane.memo import Memo
from dataplane.model import (
    Acl,
    Direction,
    Endpoint,
    Fallback,
    HostPort,
    Network,
    Node,
    OutboundNat,
    Tap,
)

HOST_MTU = 1500
OVERHEAD = {4: 50, 6: 70}  # Ethernet 14 + IP 20 or 40 + UDP 8 + VXLAN 8


def resolve(node: Node, memo: Memo | None = None) -> Node:
    """The node with nothing left to default: what the compiler reads. Endpoints that are as they
    were for the memo stay the same objects."""
    memo, host = memo or Memo(), node.host_port
    return replace(
        node,
        host_port=host and replace(host, tap=_with_mtu(host.tap, HOST_MTU)),
        networks=tuple(_network(network, node, memo) for network in node.networks),
    )


def gateways(network: Network) -> tuple[IP, ...]:
    """The first address of each prefix; a prefix of one address has none."""
    if network.gateways:
        return network.gateways
    return tuple(_first_address(p) for p in network.prefixes if p.num_addresses > 1)


def overhead(network: Network, node: Node) -> int:
    """Bytes that encapsulation adds to an inner IP packet, on the costliest way out."""
    v6 = node.underlay.address.version == 6
    if node.underlay.address6 is not None:  # else no VTEP can be reached over IPv6
        v6 = v6 or any(r.provider_address.version == 6 for r in network.remote_subnets)
    return OVERHEAD[6 if v6 else 4]


def mtu(network: Network, node: Node) -> int:
    """The largest inner IP packet."""
    if network.mtu == "auto":
        return node.underlay.mtu - overhead(network, node)
    return network.mtu


def dr_mac(network: Network, node: Node) -> Mac:
    """The distributed router's MAC: the same after a restart, another on every node and VNI."""
    if network.dr_mac is not None:
        return network.dr_mac
    digest = hashlib.sha256(f"{node.name}/{int(network.vni)}".encode()).digest()
    return Mac.from_bytes(b"\x02" + digest[:5])


def endpoint_mac(endpoint: Endpoint) -> Mac:
    """0e:2a and the IPv4 octets, as flannel does on Windows; IPv6 only: 0e:2b and a hash."""
    if endpoint.mac is not None:
        return endpoint.mac
    for address in endpoint.addresses:
        if address.version == 4:
            return Mac.from_bytes(b"\x0e\x2a" + address.packed)
    digest = hashlib.sha256(endpoint.addresses[0].packed).digest()
    return Mac.from_bytes(b"\x0e\x2b" + digest[:4])


def endpoint_tap(endpoint: Endpoint) -> Tap:
    """The endpoint's TAP: one named as the endpoint."""
    return endpoint.tap or Tap(name=endpoint.name)


def fallback(acls: tuple[Acl, ...], direction: Direction) -> Fallback:
    """What befalls a packet that no rule matches: with rules in its direction it is blocked."""
    return "block" if any(acl.direction == direction for acl in acls) else "allow"


def _network(network: Network, node: Node, memo: Memo) -> Network:
    full = replace(
        network,
        gateways=gateways(network),
        dr_mac=dr_mac(network, node),
        mtu=mtu(network, node),
        outbound_nat=_nat(network.outbound_nat, node.host_port),
    )
    endpoints = memo.each(
        ("endpoints", network.name),
        network.endpoints,
        (full.acls, full.mtu, full.outbound_nat, node.host_port),
        lambda endpoint: _endpoint(endpoint, full, node),
    )
    return replace(full, endpoints=endpoints)


def _endpoint(endpoint: Endpoint, network: Network, node: Node) -> Endpoint:
    acls = network.acls + endpoint.acls
    assert isinstance(network.mtu, int)
    return replace(
        endpoint,
        mac=endpoint_mac(endpoint),
        tap=_with_mtu(endpoint_tap(endpoint), network.mtu),
        default_in=endpoint.default_in or fallback(acls, "in"),
        default_out=endpoint.default_out or fallback(acls, "out"),
        outbound_nat=_nat(endpoint.outbound_nat or network.outbound_nat, node.host_port),
    )


def _nat(nat: OutboundNat | None, host: HostPort | None) -> OutboundNat | None:
    if nat is None or nat.vip is not None or host is None:
        return nat
    return replace(nat, vip=host.address)


def _with_mtu(tap: Tap, size: int) -> Tap:
    return tap if tap.mtu is not None else replace(tap, mtu=size)


def _first_address(prefix: Prefix) -> IP:
    return prefix[1] if prefix.num_addresses > 2 else prefix[0]
