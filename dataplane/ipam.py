"""IPAM: addresses for endpoints that name none, out of their network's own prefixes.

A free address is one that no endpoint has, no gateway, no service, and that lies behind no other
node. What was released is given again last, the longest released first, so that whoever still
remembers an address does not meet somebody else there at once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address

from dataplane.address import IP, Prefix
from dataplane.defaults import gateways
from dataplane.errors import DataplaneError
from dataplane.model import Endpoint, Network, Node, vips_of

MOST = 4096  # released addresses of a network that are remembered

Released = Mapping[str, tuple[str, ...]]  # by network, the longest released first


class ExhaustedError(DataplaneError):
    """No address of the network is free."""


def assigned(network: Network, released: Collection[str] = ()) -> tuple[IP, ...]:
    """One free address of each family that the network has prefixes of. Raises ExhaustedError."""
    families = dict.fromkeys(prefix.version for prefix in network.prefixes)
    if not families:
        raise ExhaustedError(f"network {network.name} has no prefixes to take addresses of")
    return tuple(_one(network, version, released) for version in families)


def _one(network: Network, version: int, released: Collection[str]) -> IP:
    taken = {*_taken(network)}
    far = [r.prefix for r in network.remote_subnets if r.prefix.version == version]
    own = [prefix for prefix in network.prefixes if prefix.version == version]
    waiting = {ip_address(text) for text in released}
    for address in _all(own, far):
        if address not in taken and address not in waiting:
            return address
    for text in released:
        address = ip_address(text)
        if address not in taken and any(address in prefix for prefix in own):
            return address
    raise ExhaustedError(f"network {network.name}: no IPv{version} address is free")


def _taken(network: Network) -> Iterator[IP]:
    yield from gateways(network)
    yield from vips_of(network)
    for endpoint in network.endpoints:
        yield from endpoint.addresses


def _all(own: Iterable[Prefix], far: Iterable[Prefix]) -> Iterator[IP]:
    """Host addresses in their order; what lies behind another node is stepped over whole."""
    for prefix in own:
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        hosts = prefix.num_addresses > 2
        number, end = first + hosts, last - (hosts and prefix.version == 4)
        behind = sorted((int(p.network_address), int(p.broadcast_address)) for p in far)
        while number <= end:
            over = [until for since, until in behind if since <= number <= until]
            if over:
                number = max(over) + 1
                continue
            yield type(prefix.network_address)(number)
            number += 1


def after(released: Released, before: Node | None, now: Node) -> Released:
    """What is released once a policy takes the place of another."""
    held = {n.name: _addresses(n.endpoints) for n in now.networks}
    gone = {n.name: _addresses(n.endpoints) for n in before.networks} if before else {}
    found: dict[str, tuple[str, ...]] = {}
    for name, own in held.items():
        old = [text for text in released.get(name, ()) if text not in own]
        fresh = [text for text in gone.get(name, {}) if text not in own]
        if old or fresh:
            found[name] = tuple(dict.fromkeys([*old, *fresh]))[-MOST:]
    return found


def _addresses(endpoints: Iterable[Endpoint]) -> dict[str, None]:
    return {str(address): None for endpoint in endpoints for address in endpoint.addresses}
