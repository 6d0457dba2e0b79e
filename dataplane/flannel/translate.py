"""A flannel overlay in the words of our policy: one network, the peers' subnets as remote subnets.

Pure. What a peer writes is judged here, so that no lease of somebody else can refuse all others.
"""

import hashlib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from msgspec.structs import replace

from dataplane.address import IP, Mac, Prefix, Vni
from dataplane.flannel.documents import LONGEST, Config, Family, Lease
from dataplane.flannel.link import can_route
from dataplane.model import DirectSubnet, Endpoint, HostPort, Network, RemoteSubnet, Underlay
from dataplane.validate_remotes import vtep

NETWORK = "flannel"
OVERHEAD = {4: 50, 6: 70}  # octets that VXLAN adds, by the family of the underlay


class Way(NamedTuple):
    """A remote subnet that a lease asks for."""

    prefix: IPv4Network | IPv6Network
    provider: IP
    mac: Mac


def vtep_mac(node: str, address: int) -> Mac:
    """The same whenever the node begins without a state directory: local, of one station."""
    digest = hashlib.sha256(f"{node} {address}".encode()).digest()
    return Mac.from_bytes(bytes([digest[0] & 0xFC | 2, *digest[1:6]]))


def mtu(config: Config, underlay: Underlay) -> int:
    """Of inner packets, over whichever family they go."""
    return (config.mtu or underlay.mtu) - OVERHEAD[4 if config.v6 is None else 6]


def _wide(endpoint: Endpoint, config: Config, underlay: Underlay) -> Endpoint:
    """Of a dual-stack overlay: its TAP takes what a flannel node sends it over IPv4."""
    if config.v6 is None or endpoint.tap is None:
        return endpoint
    size = (config.mtu or underlay.mtu) - OVERHEAD[4]
    return replace(endpoint, tap=replace(endpoint.tap, mtu=size))


def network(
    config: Config,
    own: Lease,
    remote: tuple[RemoteSubnet, ...],
    direct: tuple[DirectSubnet, ...],
    endpoints: tuple[Endpoint, ...],
    underlay: Underlay,
    host: HostPort | None,
) -> Network:
    """Endpoints take their addresses out of the lease; its first address is their gateway.

    Where there are none, but a host port, the host has the lease, as behind flannel's own device.
    """
    subnets = [s for s in (own.subnet.v4, own.subnet.v6) if s is not None]
    families = [f for f in (config.v4, config.v6) if f is not None]
    behind: tuple[Prefix, ...] = ()
    gateways: tuple[IP, ...] = tuple(subnet.network_address + 1 for subnet in subnets)
    if host is not None and not endpoints:
        behind = tuple(s for s in subnets if s.version == host.address.version)
        gateways = tuple(map(_router, families, subnets))  # the first address is the bridge's
    return Network(
        name=NETWORK,
        vni=Vni(config.vni),
        prefixes=tuple(family.network for family in families),
        gateways=gateways,
        pool=tuple(subnets),
        dr_mac=own.mac,
        mtu=mtu(config, underlay),
        remote_subnets=remote,
        direct_subnets=direct,
        endpoints=tuple(_wide(endpoint, config, underlay) for endpoint in endpoints),
        host_route=bool(behind) or (config.direct and can_route(config, host)),
        host_subnets=behind,
    )


def _router(family: Family, subnet: IPv4Network | IPv6Network) -> IP:
    """An address of the overlay's that no node has: its first one, as the first subnet is none."""
    first = family.network[1]
    return first if first not in subnet else subnet[-2]


def remote_subnets(
    config: Config, own: Lease, peers: Iterable[Lease], underlay: Underlay
) -> tuple[tuple[RemoteSubnet, ...], dict[str, str]]:
    """Those of all peers whose leases can be followed, and by key why others cannot.

    `peers`: the latest lease first. A node has one VtepMAC: that of its latest lease.
    """
    macs: dict[IP, Mac] = {}
    found: dict[IPv4Network | IPv6Network, RemoteSubnet] = {}
    refused: dict[str, str] = {}
    for lease in peers:
        for way in _ways(lease):
            why = _fault(way, config, own, underlay)
            if why:
                refused[lease.subnet.key()] = why
                continue
            mac = macs.setdefault(way.provider, way.mac)
            found.setdefault(
                way.prefix,
                RemoteSubnet(prefix=way.prefix, provider_address=way.provider, dr_mac=mac),
            )
    ordered = sorted(found, key=lambda p: (p.version, int(p.network_address), p.prefixlen))
    return tuple(found[prefix] for prefix in ordered), refused


def _ways(lease: Lease) -> Iterator[Way]:
    """None yet where a Windows node does not know its VtepMAC."""
    if lease.mac is not None:
        yield Way(lease.subnet.v4, lease.public_ip, lease.mac)
    if lease.subnet.v6 is not None and lease.public_ip6 is not None and lease.mac6 is not None:
        yield Way(lease.subnet.v6, lease.public_ip6, lease.mac6)


def _fault(way: Way, config: Config, own: Lease, underlay: Underlay) -> str:
    """Why it cannot be followed; empty if it can."""
    family = config.v4 if way.prefix.version == 4 else config.v6
    mine = own.subnet.v4 if way.prefix.version == 4 else own.subnet.v6
    if family is None or mine is None:
        return f"the overlay has no IPv{way.prefix.version}"
    first, last = _span(way.prefix)
    least, most = _span(family.network)
    if not least <= first <= last <= most:
        return f"{way.prefix} is not in {family.network}"
    if way.prefix.prefixlen > (longest := LONGEST[way.prefix.version]):
        return f"{way.prefix} is no subnet: at most a /{longest}"  # it may be one of our gateways
    own_first, own_last = _span(mine)
    if own_first <= last and first <= own_last:
        return f"{way.prefix} overlaps our own {mine}"
    remote = RemoteSubnet(prefix=way.prefix, provider_address=way.provider, dr_mac=way.mac)
    return "; ".join(complaint.message for complaint in vtep(remote, underlay, ()))


def _span(prefix: IPv4Network | IPv6Network) -> tuple[int, int]:
    return int(prefix.network_address), int(prefix.broadcast_address)
