"""The way of a new flow through the layers: ACL out, NAT, VNET, ACL in (semantics 5)."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.reference import acl
from tests.reference.flows import Way
from tests.reference.guard import check_source, is_multicast
from tests.reference.nat import Binding, Bindings, Inside, check_translatable, has_port, translates
from tests.reference.site import HOST, UNDERLAY, Endpoint, Network, Pool, Route, Site
from tests.reference.verdict import Drop
from tests.reference.wire import UDP, FlowId


class Translation(NamedTuple):
    inside: Inside
    pool: Pool
    rule: str
    binding: Binding | None  # None: still to be made


@dataclass
class Draft:
    """What the layers decided."""

    way: Way
    reply_way: Way | None
    reply_vni: int
    rule: str | None
    idle: int
    translated: Translation | None = None


def from_endpoint(site: Site, bindings: Bindings, sender: Endpoint, flow: FlowId) -> Draft:
    network = site.networks[sender.vni]
    check_source(sender, flow)
    route = network.route(flow.dst)
    if route and route.kind == "gateway":
        raise Drop("to_gateway")
    decision = acl.judge(sender, "out", flow)
    if sender.nat and translates(sender.nat, flow):
        return _to_host(site, bindings, network, sender, flow, decision)
    if route is None:
        raise Drop("no_route", decision.rule)
    if route.kind == "subnet" or route.endpoint is sender:
        raise Drop("no_such_endpoint", decision.rule)
    if route.endpoint:
        return _to_neighbour(network, sender, route.endpoint, flow, decision)
    return _to_remote(network, sender, route, flow, decision)


def _to_host(
    site: Site,
    bindings: Bindings,
    network: Network,
    sender: Endpoint,
    flow: FlowId,
    decision: acl.Decision,
) -> Draft:
    assert sender.nat
    pool, rule = sender.nat.pool, nat_rule(sender)
    check_translatable(flow, rule)
    if flow.proto == UDP and flow.dport == site.underlay.udp_port:
        raise Drop("nat_vxlan", rule)
    if site.host is None:
        raise Drop("no_host_port", rule)
    sport = flow.sport if has_port(flow) else 0
    inside = Inside(sender.vni, sender.port, flow.proto, flow.src, sport, not has_port(flow))
    binding = bindings.find(inside, pool)
    if binding is None:
        bindings.check_quota(inside, sender.nat.quota, rule)
        bindings.check_free(pool, inside, rule)
    if flow.dst in site.pool_addresses:
        raise Drop("nat_no_binding", decision.rule)
    reply = _reply_allowed(sender, "in", flow, decision)
    return Draft(
        way=Way(HOST, site.host.mtu, site.host.mtu),
        reply_way=_back_to(sender, network) if reply else None,
        reply_vni=0,
        rule=decision.rule,
        idle=decision.idle,
        translated=Translation(inside, pool, rule, binding),
    )


def nat_rule(endpoint: Endpoint) -> str:
    return f"{endpoint.port}/nat"


def _to_neighbour(
    network: Network, sender: Endpoint, receiver: Endpoint, flow: FlowId, out: acl.Decision
) -> Draft:
    into = acl.judge(receiver, "in", flow)
    reply = _reply_allowed(receiver, "out", flow, out, into) and _reply_allowed(
        sender, "in", flow, out, into
    )
    return Draft(
        way=_back_to(receiver, network),
        reply_way=_back_to(sender, network) if reply else None,
        reply_vni=network.vni,
        rule=into.rule or out.rule,
        idle=into.idle or out.idle,
    )


def _to_remote(
    network: Network, sender: Endpoint, route: Route, flow: FlowId, decision: acl.Decision
) -> Draft:
    assert route.adjacency
    mtu = route.adjacency.mtu
    reply = _reply_allowed(sender, "in", flow, decision)
    return Draft(
        way=Way(UNDERLAY, mtu, mtu, adjacency=route.adjacency),
        reply_way=Way(sender.port, None, mtu, sender, route.adjacency) if reply else None,
        reply_vni=network.vni,
        rule=decision.rule,
        idle=decision.idle,
    )


def from_underlay(network: Network, flow: FlowId, outer_src: bytes | None) -> Draft:
    """`outer_src`: of the first packet, or None when a known flow is walked again."""
    back = network.route(flow.src)
    if back is None or back.adjacency is None:
        raise Drop("source_not_behind_vtep")
    if outer_src is not None and back.adjacency.remote != outer_src:
        raise Drop("source_not_behind_vtep")
    if is_multicast(flow.dst):
        raise Drop("multicast")
    there = network.route(flow.dst)
    if there is None or there.kind == "remote":
        raise Drop("not_local")
    if there.endpoint is None:
        raise Drop("to_gateway" if there.kind == "gateway" else "no_such_endpoint")
    receiver = there.endpoint
    decision = acl.judge(receiver, "in", flow)
    mtu = back.adjacency.mtu
    reply = _reply_allowed(receiver, "out", flow, decision)
    return Draft(
        way=Way(receiver.port, None, mtu, receiver, back.adjacency),
        reply_way=Way(UNDERLAY, mtu, mtu, adjacency=back.adjacency) if reply else None,
        reply_vni=network.vni,
        rule=decision.rule,
        idle=decision.idle,
    )


def _back_to(receiver: Endpoint, network: Network) -> Way:
    return Way(receiver.port, network.mtu, network.mtu, receiver)


def _reply_allowed(
    endpoint: Endpoint, direction: str, flow: FlowId, *decisions: acl.Decision
) -> bool:
    """Stateful decisions let answers in; otherwise the opposite ACL says now (semantics 5d)."""
    if all(d.stateful for d in decisions):
        return True
    try:
        acl.judge(endpoint, direction, flow.reply())
    except Drop:
        return False
    return True
