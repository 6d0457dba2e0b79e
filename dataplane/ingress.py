"""Packets in words as the frames that reach a port, for those who trace them."""

from typing import Any

from dataplane import defaults
from dataplane.engine import choose
from dataplane.errors import PacketError
from dataplane.ids import HOST, UNDERLAY
from dataplane.model import Document, Node
from dataplane.names import find_endpoint, nodes_of
from dataplane.packet import PacketSpec, build, vxlan
from dataplane.rules import host_mac, underlay_mac


def place_of(document: Document, node: str | None, entry: str) -> tuple[Node, str]:
    """The node and its port: `underlay`, `host`, or an endpoint by its name, as far as needed.

    Raises PacketError.
    """
    if entry in (UNDERLAY, HOST):
        return choose(document, node), entry
    wanted = f"{node}/{entry}" if node and entry.count("/") == 1 else entry
    within = Document(node=choose(document, node)) if node else document
    try:
        place = find_endpoint(within, wanted)
    except LookupError as error:
        raise PacketError(f"in {entry}: {error.args[0]}") from None
    return place.node, f"{place.network.name}/{place.endpoint.name}"


def owner_of(document: Document, node: str | None, spec: PacketSpec) -> str:
    """The endpoint that has the packet's source address. Raises PacketError."""
    within = [choose(document, node)] if node is not None else nodes_of(document)
    found = [
        f"{n.name}/{network.name}/{e.name}"
        for n in within
        for network in n.networks
        for e in network.endpoints
        if spec.src in e.addresses
    ]
    if len(found) != 1:
        told = ", ".join(found) or "none"
        raise PacketError(f"in where? Endpoints that have {spec.src}: {told}")
    return found[0]


def frame_at(
    spec: PacketSpec, document: Document, node: Node, port: str, vni: int | None = None
) -> bytes:
    """The packet as it would reach the port; `vni` where its addresses do not tell it.

    Raises PacketError.
    """
    if port == HOST:
        if node.host_port is None:
            raise PacketError(f"node {node.name} has no host port")
        return build(spec, host_mac(node.host_port.peer), host_mac(node.host_port.address))
    if port == UNDERLAY:
        return _tunnelled(spec, node, vni)
    place = find_endpoint(document, f"{node.name}/{port}")
    router = defaults.dr_mac(place.network, node)
    return build(spec, defaults.endpoint_mac(place.endpoint), router)


def _tunnelled(spec: PacketSpec, node: Node, vni: int | None) -> bytes:
    """As the VTEP sends it that has the packet's source behind it."""
    ways = [
        (network, subnet)
        for network in node.networks
        for subnet in network.remote_subnets
        if spec.src in subnet.prefix and vni in (None, network.vni)
    ]
    if len({network.name for network, _ in ways}) != 1:
        told = ", ".join(sorted({f"{n.name} (--vni {n.vni})" for n, _ in ways})) or "none"
        raise PacketError(f"networks with {spec.src} behind a remote subnet: {told}")
    network, subnet = max(ways, key=lambda way: way[1].prefix.prefixlen)
    return vxlan(
        build(spec, subnet.dr_mac, defaults.dr_mac(network, node)),
        src=subnet.provider_address,
        dst=_own_address(node, subnet.provider_address.version),
        vni=network.vni,
        smac=underlay_mac(subnet.provider_address),
        dmac=underlay_mac(node.underlay.address),
        dport=node.underlay.port,
    )


def _own_address(node: Node, version: int) -> Any:
    own = (node.underlay.address, node.underlay.address6)
    return next((a for a in own if a is not None and a.version == version), own[0])
