"""The graph of nodes: their networks, the endpoints in them, and the VTEPs they send to.

Of what is many the first `MOST` are shown, and how many more there are.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dataplane.ids import HOST
from dataplane.model import Network, Node

MOST = 24  # endpoints of a network, and peers
LABELS = 2  # prefixes on one edge


class EndpointVertex(NamedTuple):
    """`name`: NODE/NETWORK/ENDPOINT."""

    name: str
    addresses: tuple[str, ...]


class NetworkVertex(NamedTuple):
    """`name`: NODE/NETWORK. `more`: endpoints that are not shown."""

    name: str
    vni: int
    prefixes: tuple[str, ...]
    endpoints: tuple[EndpointVertex, ...]
    more: int


class NodeVertex(NamedTuple):
    """`address`: of its VTEP. `host`: its address at the host port, if it has one."""

    name: str
    address: str
    networks: tuple[NetworkVertex, ...]
    host: str | None


class PeerVertex(NamedTuple):
    """A VTEP of which no node is told. `state` as of a running node's peers, else empty."""

    name: str
    state: str


class Edge(NamedTuple):
    """What a network sends to a peer, another node's network, or the host: `prefixes`."""

    source: str
    target: str
    prefixes: tuple[str, ...]

    @property
    def label(self) -> str:
        more = len(self.prefixes) - LABELS
        return ", ".join(self.prefixes[:LABELS]) + (f" +{more}" if more > 0 else "")


class Graph(NamedTuple):
    """`more`: peers that are not shown."""

    nodes: tuple[NodeVertex, ...]
    peers: tuple[PeerVertex, ...]
    edges: tuple[Edge, ...]
    more: int

    def networks(self) -> Iterator[NetworkVertex]:
        return (network for node in self.nodes for network in node.networks)


def graph(nodes: Iterable[Node], states: Mapping[str, str], most: int = MOST) -> Graph:
    """`states`: of a running node's peers, by address; silent ones are shown first."""
    nodes = tuple(nodes)
    homes = {
        (str(address), int(network.vni)): f"{node.name}/{network.name}"
        for node, network in _all(nodes)
        for address in (node.underlay.address, node.underlay.address6)
    }
    edges = [edge for node, network in _all(nodes) for edge in _edges(node, network, homes)]
    known = {*homes.values(), *(host_of(node.name) for node in nodes)}
    found = dict.fromkeys(edge.target for edge in edges if edge.target not in known)
    silent_first = sorted(found, key=lambda name: states.get(name) != "silent")
    shown = {*known, *silent_first[:most]}
    return Graph(
        tuple(_node(node, most) for node in nodes),
        tuple(PeerVertex(name, states.get(name, "")) for name in silent_first[:most]),
        tuple(edge for edge in edges if edge.target in shown),
        max(len(found) - most, 0),
    )


def _all(nodes: Iterable[Node]) -> Iterator[tuple[Node, Network]]:
    return ((node, network) for node in nodes for network in node.networks)


def host_of(node: str) -> str:
    """The vertex of a node's host."""
    return f"{node}/{HOST}"


def _node(node: Node, most: int) -> NodeVertex:
    host = str(node.host_port.address) if node.host_port is not None else None
    networks = tuple(_network(node.name, network, most) for network in node.networks)
    return NodeVertex(node.name, str(node.underlay.address), networks, host)


def _network(node: str, network: Network, most: int) -> NetworkVertex:
    name, many = f"{node}/{network.name}", len(network.endpoints)
    endpoints = tuple(
        EndpointVertex(f"{name}/{e.name}", tuple(map(str, e.addresses)))
        for e in network.endpoints[:most]
    )
    prefixes = tuple(map(str, network.prefixes))
    return NetworkVertex(name, int(network.vni), prefixes, endpoints, max(many - most, 0))


def _edges(node: Node, network: Network, homes: Mapping[tuple[str, int], str]) -> Iterator[Edge]:
    ways: dict[str, list[str]] = {}
    for subnet in network.remote_subnets:
        provider = str(subnet.provider_address)
        target = homes.get((provider, int(network.vni)), provider)
        ways.setdefault(target, []).append(str(subnet.prefix))
    source = f"{node.name}/{network.name}"
    for direct in network.direct_subnets:
        provider = str(direct.provider_address)
        target = homes.get((provider, int(network.vni)), provider)
        ways.setdefault(target, []).append(f"{direct.prefix} direct")
    for target, prefixes in ways.items():
        yield Edge(source, target, tuple(prefixes))
    nats = [network.outbound_nat, *(endpoint.outbound_nat for endpoint in network.endpoints)]
    if node.host_port is not None and (any(nats) or network.host_route):
        yield Edge(source, host_of(node.name), ("NAT",) if any(nats) else ("host route",))


# ---- what boxes say ----------------------------------------------------------------------------


def network_lines(network: NetworkVertex) -> list[str]:
    """What its box says."""
    return [network.name.partition("/")[2], f"VNI {network.vni}", *network.prefixes]


def endpoint_lines(network: NetworkVertex) -> list[list[str]]:
    """What the boxes of its endpoints say."""
    told = [[e.name.rpartition("/")[2], *e.addresses] for e in network.endpoints]
    return told + ([[f"{network.more} more"]] if network.more else [])
