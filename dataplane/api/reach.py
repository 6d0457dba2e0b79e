"""Whether packets reach what is behind another VTEP: echo requests through the overlay."""

from typing import Any

from dataplane import ping
from dataplane.address import IP, Malformed, parse_ip
from dataplane.api import filters, flow_table
from dataplane.daemon import Daemon
from dataplane.errors import DataplaneError, MissingError
from dataplane.model import Endpoint, Network

Resource = dict[str, Any]
MOST_DATA = 65_000  # bytes of an echo request


def echo(daemon: Daemon, asked: Resource) -> Resource:
    """One echo request from an endpoint of ours to an address behind a peer, through the overlay.

    Raises MissingError where there is no such peer or endpoint, DataplaneError, PortError.
    """
    peer = _address(asked.get("peer", ""), "peer")
    size, sequence = asked.get("size", 56), asked.get("sequence", 1)
    if not 0 <= size <= MOST_DATA or not 0 <= sequence < 1 << 16:
        raise DataplaneError(f"size is 0 to {MOST_DATA}, sequence 0 to 65535")
    network = _network(daemon, peer, asked.get("from"))
    to = _address(asked["to"], "to") if "to" in asked else _behind(daemon, network, peer)
    endpoint, source = _source(network, asked.get("from"), to)
    netns = endpoint.tap.netns if endpoint.tap else None
    if netns is None:
        told = f"endpoint {network.name}/{endpoint.name} is in no network namespace of its own"
        raise DataplaneError(f"{told}: ping from inside it")
    done = ping.echo(source, to, netns=netns, sequence=sequence, size=size)
    whole = {"peer": str(peer), "from": f"{network.name}/{endpoint.name}", "source": str(source)}
    return {**whole, "to": str(to), "size": size, "sequence": sequence, **done._asdict()}


def _network(daemon: Daemon, peer: IP, entry: str | None) -> Network:
    """One that has the peer, and endpoints here: the one that `entry` is in."""
    reaching = [
        network
        for network in daemon.policy.networks
        if any(r.provider_address == peer for r in network.remote_subnets)
    ]
    if not reaching:
        raise MissingError(f"no remote subnet is behind {peer}: dataplane get peers")
    wanted = entry.partition("/")[0] if entry else None
    for network in reaching:
        if network.endpoints and wanted in (None, network.name):
            return network
    raise MissingError(f"no endpoint here is in a network with {peer}, to ping from")


def _behind(daemon: Daemon, network: Network, peer: IP) -> IP:
    """An address that talks with us; else where Linux nodes have their own: the subnet's first."""
    conditions = filters.parse([f"peer={peer}", f"vni={int(network.vni)}"])
    for flow in flow_table.listed(daemon.engine, conditions, 1)["items"]:
        return parse_ip(flow["src"] if flow["in_port"] == "underlay" else flow["dst"])
    return next(
        r.prefix.network_address for r in network.remote_subnets if r.provider_address == peer
    )


def _source(network: Network, entry: str | None, to: IP) -> tuple[Endpoint, IP]:
    for endpoint in network.endpoints:
        if entry in (None, f"{network.name}/{endpoint.name}"):
            for address in endpoint.addresses:
                if address.version == to.version:
                    return endpoint, address
    raise MissingError(f"no endpoint {entry or network.name} with an IPv{to.version} address")


def _address(text: str, field: str) -> IP:
    try:
        return parse_ip(text)
    except Malformed as error:
        raise DataplaneError(f"{field}: {error}") from None
