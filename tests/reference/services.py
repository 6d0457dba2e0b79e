"""Load balancers and port mappings: where clients meet them, and who serves."""

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane import model
from dataplane.address import IP, ip16
from tests.reference.maglev import Server
from tests.reference.pool import Pool

PROTOCOLS = {"tcp": 6, "udp": 17}
MAPPED_PORTS = 1024, 65535  # of those whose answers must come back here


@dataclass(frozen=True)
class Service:
    """`met_at`: endpoint, host or underlay. `vni`: of its clients, unless they come by the host
    port; its network's routes lead to the servers. `members` keep their flows, `takers` get new
    ones. `source`: what servers see where they would else answer another way."""

    met_at: str
    vni: int
    address: bytes
    proto: int
    port: int
    members: tuple[Server, ...]
    takers: tuple[Server, ...]
    affinity: str
    dsr: bool
    source: Pool | None
    rule: str


def domain_of(network: model.Network, node: model.Node) -> list[model.Network]:
    """The networks it may route into, itself first."""
    name = network.routing_domain
    others = [n for n in node.networks if name is not None and n.routing_domain == name]
    return [network, *(n for n in others if n is not network)]


def vips_of(network: model.Network) -> list[IP]:
    """And the addresses that backends may see in place of clients."""
    balancers = [vip for b in network.load_balancers for vip in (*b.vips, b.source_vip) if vip]
    mappings = [m.vip for e in network.endpoints for m in e.port_mappings if m.vip is not None]
    return balancers + mappings


def services_of(node: model.Node) -> tuple[Service, ...]:
    made: list[Service] = []
    for network in node.networks:
        for balancer in network.load_balancers:
            made.extend(_balanced(balancer, network, node))
        for endpoint in network.endpoints:
            for mapping in endpoint.port_mappings:
                made.extend(_mapped(mapping, endpoint, network, node))
    return tuple(made)


def _balanced(
    balancer: model.LoadBalancer, network: model.Network, node: model.Node
) -> Iterator[Service]:
    domain = domain_of(network, node)
    here = {a for n in domain for e in n.endpoints for a in e.addresses}

    def service(met_at: str, vni: int, address: IP, port: int) -> Service:
        near = balancer.local_only or met_at == "underlay"
        backends = [
            b
            for b in balancer.backends
            if b.address.version == address.version and (not near or b.address in here)
        ]
        serves = [
            Server(ip16(b.address), b.port or balancer.target_port or balancer.port)
            for b in backends
        ]
        return Service(
            met_at=met_at,
            vni=vni,
            address=ip16(address),
            proto=PROTOCOLS[balancer.protocol],
            port=port,
            members=tuple(serves),
            takers=tuple(s for s, b in zip(serves, backends, strict=True) if not b.drain),
            affinity=balancer.affinity,
            dsr=balancer.dsr,
            source=_source(network, address, balancer.source_vip),
            rule=f"{network.name}/{balancer.name}",
        )

    for vip in balancer.vips:
        for client in domain:
            yield service("endpoint", int(client.vni), vip, balancer.port)
        if node.host_port:
            yield service("host", int(network.vni), vip, balancer.port)
        if balancer.dsr:
            yield service("underlay", int(network.vni), vip, balancer.port)
    if node.host_port and balancer.node_port is not None:
        yield service("host", int(network.vni), node.host_port.address, balancer.node_port)


def _source(network: model.Network, address: IP, given: IP | None = None) -> Pool | None:
    """The given address, else the gateway; of the service's family."""
    for source in (given, *network.gateways):
        if source is not None and source.version == address.version:
            return Pool(ip16(source), *MAPPED_PORTS)
    return None


def _mapped(
    mapping: model.PortMapping,
    endpoint: model.Endpoint,
    network: model.Network,
    node: model.Node,
) -> Iterator[Service]:
    outside = mapping.vip or (node.host_port.address if node.host_port else None)
    inside = [a for a in endpoint.addresses if outside and a.version == outside.version]
    if outside is None or not inside:
        return
    server = Server(ip16(inside[0]), mapping.target_port or mapping.port)
    for met_at in ("host", "endpoint"):
        yield Service(
            met_at=met_at,
            vni=int(network.vni),
            address=ip16(outside),
            proto=PROTOCOLS[mapping.protocol],
            port=mapping.port,
            members=(server,),
            takers=(server,),
            affinity="none",
            dsr=False,
            source=_source(network, outside),
            rule=f"{network.name}/{endpoint.name}/map-{mapping.protocol}-{mapping.port}",
        )
