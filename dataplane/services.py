"""Services: load balancers and port mappings as rows, one for each place where they are met."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from dataplane.address import IP, ip16
from dataplane.ids import Ids, RuleName
from dataplane.memo import Memo
from dataplane.model import PROTOCOLS, Endpoint, LoadBalancer, Network, Node, PortMapping
from dataplane.names import mapping_name
from dataplane.routing import domain_of
from dataplane.rows import BACKEND, Pool, ServiceRow

AFFINITY = {"none": 0, "source_ip": 1, "source_ip_protocol": 2}  # enum dp_affinity
DSR, DRAINING = 1, 1  # enum dp_service_flag, enum dp_backend_flag
SOURCE_PORTS = 1024, 65535


class _Met(NamedTuple):
    """What the services of a network depend on besides themselves."""

    vni: int
    clients: tuple[int, ...]  # VNIs of its routing domain
    gateways: tuple[IP, ...]
    host: IP | None
    local: frozenset[IP]  # addresses of this node's endpoints

    def gateway(self, version: int) -> IP | None:
        return next((g for g in self.gateways if g.version == version), None)


def service_rows(node: Node, ids: Ids, memo: Memo) -> tuple[ServiceRow, ...]:
    found = (each for n in node.networks for each in _services(n, node, ids, memo))
    return tuple(chain.from_iterable(found))


def _services(network: Network, node: Node, ids: Ids, memo: Memo) -> Iterator[Iterable[ServiceRow]]:
    domain = domain_of(network, node)
    local = tuple(a for n in domain for e in n.endpoints for a in e.addresses)
    clients = tuple(n.vni for n in domain)
    host = node.host_port.address if node.host_port is not None else None
    met = memo(
        ("met", network.name),
        (network.vni, clients, network.gateways, host, local),
        lambda: _Met(network.vni, clients, network.gateways, host, frozenset(local)),
    )

    def rows(balancer: LoadBalancer) -> tuple[ServiceRow, ...]:
        rule = ids.rules[RuleName(network.name, None, "lb", balancer.name)]
        return tuple(_balancer(balancer, met, rule, memo))

    of_each = memo.each(("services", network.name), network.load_balancers, met, rows)
    yield chain.from_iterable(of_each)
    for endpoint in network.endpoints:
        for mapping in endpoint.port_mappings:
            name = RuleName(network.name, endpoint.name, "lb", mapping_name(mapping))
            yield _mapping(mapping, endpoint, met, ids.rules[name])


def rule_names(network: Network, memo: Memo) -> Iterator[Iterable[RuleName]]:
    """Services count what they decide as rules do."""
    yield memo.counted(
        ("names", network.name, "lb"),
        network.load_balancers,
        network.name,
        lambda balancer: (RuleName(network.name, None, "lb", balancer.name),),
    )
    for endpoint in network.endpoints:
        yield tuple(
            RuleName(network.name, endpoint.name, "lb", mapping_name(mapping))
            for mapping in endpoint.port_mappings
        )


def _balancer(balancer: LoadBalancer, met: _Met, rule: int, memo: Memo) -> Iterator[ServiceRow]:
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
            pool=None if underlay else _pool(_source(balancer, met, address)),
            backends=_backends(balancer, address.version, met.local if near else None, memo),
        )

    for vip in balancer.vips:
        for client in met.clients:
            yield row(vip, balancer.port, "endpoint", client, balancer.local_only)
        if met.host is not None:
            yield row(vip, balancer.port, "host", met.vni, balancer.local_only)
        if balancer.dsr:
            yield row(vip, balancer.port, "underlay", met.vni, True)
    if balancer.node_port is not None and met.host is not None:
        yield row(met.host, balancer.node_port, "host", met.vni, balancer.local_only)


def _backends(
    balancer: LoadBalancer, version: int, only: frozenset[IP] | None, memo: Memo
) -> bytes:
    """Those of the IP version; `only`: those among these addresses. Made once for all services that
    share them."""
    port = balancer.target_port or balancer.port
    shared = balancer.backends
    return memo(
        ("backends", id(shared), port, version, only is None),
        (shared, only),
        lambda: b"".join(
            BACKEND.pack(ip16(b.address), b.port or port, DRAINING if b.drain else 0)
            for b in shared
            if b.address.version == version and (only is None or b.address in only)
        ),
    )


def _source(balancer: LoadBalancer, met: _Met, vip: IP) -> IP | None:
    own = balancer.source_vip
    return own if own is not None and own.version == vip.version else met.gateway(vip.version)


def _pool(source: IP | None) -> Pool | None:
    return None if source is None else Pool(ip16(source), *SOURCE_PORTS)


def _mapping(
    mapping: PortMapping, endpoint: Endpoint, met: _Met, rule: int
) -> Iterator[ServiceRow]:
    """At the host port, and for endpoints of its own network."""
    outside = mapping.vip or met.host
    inside = next((a for a in endpoint.addresses if outside and a.version == outside.version), None)
    if outside is None or inside is None:
        return
    for met_at in ("host", "endpoint"):
        yield ServiceRow(
            address=ip16(outside),
            port=mapping.port,
            proto=PROTOCOLS[mapping.protocol],
            met_at=met_at,
            affinity=0,
            flags=0,
            vni=met.vni,
            rule=rule,
            pool=_pool(met.gateway(outside.version)),
            backends=BACKEND.pack(ip16(inside), mapping.target_port or mapping.port, 0),
        )
