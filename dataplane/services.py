"""Services: load balancers and port mappings as rows, one for each place where they are met."""

from collections.abc import Iterator
from itertools import chain

from dataplane.address import IP, ip16
from dataplane.ids import Ids, RuleName
from dataplane.model import PROTOCOLS, Endpoint, LoadBalancer, Network, Node, PortMapping
from dataplane.names import mapping_name
from dataplane.routing import domain_of
from dataplane.rows import BackendRow, Memo, Pool, ServiceRow

AFFINITY = {"none": 0, "source_ip": 1, "source_ip_protocol": 2}  # enum dp_affinity
DSR, DRAINING = 1, 1  # enum dp_service_flag, enum dp_backend_flag
SOURCE_PORTS = 1024, 65535


def service_rows(node: Node, ids: Ids, memo: Memo) -> tuple[ServiceRow, ...]:
    return tuple(chain.from_iterable(_services(n, node, ids, memo) for n in node.networks))


def _services(network: Network, node: Node, ids: Ids, memo: Memo) -> tuple[ServiceRow, ...]:
    domain = domain_of(network, node)
    local = tuple(a for n in domain for e in n.endpoints for a in e.addresses)
    source = (
        network.load_balancers,
        network.gateways,
        local,
        tuple((e.name, e.addresses, e.port_mappings) for e in network.endpoints),
        tuple(n.vni for n in domain),
        node.host_port and node.host_port.address,
        tuple(ids.rules[name] for name in rule_names(network)),
    )
    return memo(
        ("services", network.name),
        source,
        lambda: tuple(_of_network(network, node, ids, frozenset(local))),
    )


def rule_names(network: Network) -> Iterator[RuleName]:
    """Services count what they decide as rules do."""
    for balancer in network.load_balancers:
        yield RuleName(network.name, None, "lb", balancer.name)
    for endpoint in network.endpoints:
        for mapping in endpoint.port_mappings:
            yield RuleName(network.name, endpoint.name, "lb", mapping_name(mapping))


def _of_network(
    network: Network, node: Node, ids: Ids, local: frozenset[IP]
) -> Iterator[ServiceRow]:
    for balancer in network.load_balancers:
        yield from _balancer(balancer, network, node, ids, local)
    for endpoint in network.endpoints:
        for mapping in endpoint.port_mappings:
            yield from _mapping(mapping, endpoint, network, node, ids)


def _balancer(
    balancer: LoadBalancer, network: Network, node: Node, ids: Ids, local: frozenset[IP]
) -> Iterator[ServiceRow]:
    rule = ids.rules[RuleName(network.name, None, "lb", balancer.name)]

    def row(address: IP, port: int, met_at: str, vni: int, near: bool) -> ServiceRow:
        underlay = met_at == "underlay"
        return ServiceRow(
            address=ip16(address),
            port=port,
            proto=PROTOCOLS[balancer.protocol],
            met_at=met_at,
            affinity=AFFINITY[balancer.affinity],
            flags=DSR if balancer.dsr else 0,
            vni=vni,
            rule=rule,
            pool=None if underlay else _source_pool(balancer, network, address),
            backends=_backends(balancer, address, local if near else None),
        )

    for vip in balancer.vips:
        for client in domain_of(network, node):
            yield row(vip, balancer.port, "endpoint", client.vni, balancer.local_only)
        if node.host_port is not None:
            yield row(vip, balancer.port, "host", network.vni, balancer.local_only)
        if balancer.dsr:
            yield row(vip, balancer.port, "underlay", network.vni, True)
    if balancer.node_port is not None and node.host_port is not None:
        own = node.host_port.address
        yield row(own, balancer.node_port, "host", network.vni, balancer.local_only)


def _backends(
    balancer: LoadBalancer, vip: IP, only: frozenset[IP] | None
) -> tuple[BackendRow, ...]:
    """Those of the VIP's family; `only`: those among these addresses."""
    port = balancer.target_port or balancer.port
    return tuple(
        BackendRow(ip16(b.address), b.port or port, DRAINING if b.drain else 0)
        for b in balancer.backends
        if b.address.version == vip.version and (only is None or b.address in only)
    )


def _source_pool(balancer: LoadBalancer, network: Network, vip: IP) -> Pool | None:
    candidates = [a for a in (balancer.source_vip, *network.gateways) if a is not None]
    source = next((a for a in candidates if a.version == vip.version), None)
    return None if source is None else Pool(ip16(source), *SOURCE_PORTS)


def _mapping(
    mapping: PortMapping, endpoint: Endpoint, network: Network, node: Node, ids: Ids
) -> Iterator[ServiceRow]:
    """At the host port, and for endpoints of its own network."""
    outside = mapping.vip
    if outside is None and node.host_port is not None:
        outside = node.host_port.address
    inside = next((a for a in endpoint.addresses if outside and a.version == outside.version), None)
    if outside is None or inside is None:
        return
    gateway = next((g for g in network.gateways if g.version == outside.version), None)
    for met_at in ("host", "endpoint"):
        yield ServiceRow(
            address=ip16(outside),
            port=mapping.port,
            proto=PROTOCOLS[mapping.protocol],
            met_at=met_at,
            affinity=0,
            flags=0,
            vni=network.vni,
            rule=ids.rules[RuleName(network.name, endpoint.name, "lb", mapping_name(mapping))],
            pool=None if gateway is None else Pool(ip16(gateway), *SOURCE_PORTS),
            backends=(BackendRow(ip16(inside), mapping.target_port or mapping.port, 0),),
        )
