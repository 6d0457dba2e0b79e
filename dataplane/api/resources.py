"""What a node has and does, as plain values: the resources that can be got, by kind.

Objects of the policy are told with all defaults filled in and the field names of documents; `name`
is the whole one, NETWORK/ENDPOINT/…. Addresses are text, counters exact integers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from dataplane.api.mtus import mtus
from dataplane.api.peers import peers
from dataplane.convert import encode
from dataplane.engine import Engine
from dataplane.layers import LAYERS
from dataplane.model import Model, Network, Node
from dataplane.reasons import Reason
from dataplane.shares import DOCUMENT, KEYS, Shares, owners

Resource = dict[str, Any]


def plain(value: Any) -> Any:
    """A model's object, or what holds some, as JSON has it: with the defaults that documents leave
    out."""
    if isinstance(value, Model):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=encode)


# ---- of the policy -----------------------------------------------------------------------------


def networks(engine: Engine) -> Iterator[Resource]:
    for network in _policy(engine).networks:
        counts: Resource = {part: len(getattr(network, part)) for part in KEYS}
        yield _own(network, network.name, tuple(KEYS)) | counts


def endpoints(engine: Engine) -> Iterator[Resource]:
    ports = engine.stats().ports
    for network in _policy(engine).networks:
        for endpoint in network.endpoints:
            name = f"{network.name}/{endpoint.name}"
            counts = ports.get(name, {})
            yield _own(endpoint, name, ()) | {"vni": int(network.vni), "counters": dict(counts)}


def remote_subnets(engine: Engine) -> Iterator[Resource]:
    return _subnets(engine, "remote_subnets")


def direct_subnets(engine: Engine) -> Iterator[Resource]:
    return _subnets(engine, "direct_subnets")


def _subnets(engine: Engine, field: str) -> Iterator[Resource]:
    for network in _policy(engine).networks:
        for subnet in getattr(network, field):
            name = f"{network.name}/{subnet.prefix}"
            yield _own(subnet, name, ()) | {"vni": int(network.vni)}


def acls(engine: Engine) -> Iterator[Resource]:
    """In the order they are evaluated: a network's own before its endpoints'."""
    hits = engine.stats().rules
    for network in _policy(engine).networks:
        groups = [(network.name, network.acls)]
        groups += [(f"{network.name}/{e.name}", e.acls) for e in network.endpoints]
        for owner, rules in groups:
            for acl in sorted(rules, key=lambda acl: acl.priority):
                name = f"{owner}/{acl.name}"
                yield _own(acl, name, ()) | {"group": owner, "hits": hits.get(name, 0)}


def nats(engine: Engine) -> Iterator[Resource]:
    hits = engine.stats().rules
    for network in _policy(engine).networks:
        for endpoint in network.endpoints:
            name = f"{network.name}/{endpoint.name}"
            if endpoint.outbound_nat is not None:
                own = _own(endpoint.outbound_nat, f"{name}/nat", ())
                yield own | {"type": "outbound", "hits": hits.get(f"{name}/nat", 0)}
            for mapping in endpoint.port_mappings:
                whole = f"{name}/map-{mapping.protocol}-{mapping.port}"
                own = _own(mapping, whole, ())
                yield own | {"type": "port_mapping", "hits": hits.get(whole, 0)}


def load_balancers(engine: Engine) -> Iterator[Resource]:
    hits = engine.stats().rules
    for network in _policy(engine).networks:
        for balancer in network.load_balancers:
            name = f"{network.name}/{balancer.name}"
            yield _own(balancer, name, ()) | {"hits": hits.get(name, 0)}


def routes(engine: Engine) -> Iterator[Resource]:
    """Of each network, the longest prefix decides."""
    for network in _policy(engine).networks:
        for endpoint in network.endpoints:
            for address in endpoint.addresses:
                prefix = f"{address}/{address.max_prefixlen}"
                yield _route(network, prefix, "endpoint", endpoint.name)
        for gateway in network.gateways:
            yield _route(network, f"{gateway}/{gateway.max_prefixlen}", "gateway", "")
        for subnet in network.remote_subnets:
            yield _route(network, str(subnet.prefix), "remote", str(subnet.provider_address))
        for direct in network.direct_subnets:
            yield _route(network, str(direct.prefix), "direct", str(direct.provider_address))
        for own in network.prefixes:
            yield _route(network, str(own), "subnet", "")


def _route(network: Network, prefix: str, way: str, target: str) -> Resource:
    name = f"{network.name}/{prefix}"
    return {"name": name, "vni": int(network.vni), "prefix": prefix, "to": way, "target": target}


def neighbours(engine: Engine) -> Iterator[Resource]:
    """What ARP and neighbour discovery are answered with."""
    for network in _policy(engine).networks:
        entries = [(gateway, network.dr_mac, "gateway") for gateway in network.gateways]
        entries += [(a, e.mac, "endpoint") for e in network.endpoints for a in e.addresses]
        for address, mac, owner in entries:
            yield {"name": f"{network.name}/{address}", "mac": str(mac), "of": owner}


def fdb(engine: Engine) -> Iterator[Resource]:
    """Where frames to a MAC address go: endpoints here, distributed routers of other nodes."""
    for network in _policy(engine).networks:
        for endpoint in network.endpoints:
            port = f"{network.name}/{endpoint.name}"
            yield {"name": f"{network.name}/{endpoint.mac}", "port": port, "provider": None}
        far = {(str(r.dr_mac), str(r.provider_address)) for r in network.remote_subnets}
        for mac, provider in sorted(far):
            yield {"name": f"{network.name}/{mac}", "port": "underlay", "provider": provider}


# ---- of the engine -----------------------------------------------------------------------------


def layers(engine: Engine) -> Iterator[Resource]:
    """How often each layer was walked for a new flow, and what it dropped."""
    stats = engine.stats()
    drops: dict[str, int] = {}
    for reason, count in stats.reasons.items():
        drops[reason.layer] = drops.get(reason.layer, 0) + count
    for name in LAYERS:
        yield {"name": name, "walked": stats.layers[name], "dropped": drops.get(name, 0)}


def drops(engine: Engine) -> Iterator[Resource]:
    """Every reason there is, those that counted first."""
    counted = engine.stats().reasons
    reasons = sorted(Reason, key=lambda reason: -counted.get(reason, 0))
    for reason in reasons:
        if reason:
            yield {
                "name": str(reason),
                "layer": reason.layer,
                "count": counted.get(reason, 0),
                "means": reason.sentence,
            }


def ports(engine: Engine) -> Iterator[Resource]:
    for name, counters in engine.stats().ports.items():
        yield {"name": name, **counters}


KINDS: Mapping[str, Callable[[Engine], Iterator[Resource]]] = {
    "networks": networks,
    "endpoints": endpoints,
    "remote-subnets": remote_subnets,
    "direct-subnets": direct_subnets,
    "peers": peers,
    "routes": routes,
    "acls": acls,
    "nats": nats,
    "load-balancers": load_balancers,
    "layers": layers,
    "drops": drops,
    "ports": ports,
    "fdb": fdb,
    "neigh": neighbours,
    "mtus": mtus,
}


def listed(kind: str, engine: Engine, shares: Shares) -> Iterator[Resource]:
    """Resources of a kind; what documents and front doors put in tells by whom: `origin`."""
    found = KINDS[kind](engine)
    field = kind.replace("-", "_")
    if field not in (*KEYS, "networks"):
        return found
    owned = owners(shares)
    return (each | {"origin": owned.get((field, each["name"]), DOCUMENT)} for each in found)


def _policy(engine: Engine) -> Node:
    policy = engine.resolved
    assert policy is not None, "a running node has a policy"
    return policy


def _own(value: Model, name: str, without: tuple[str, ...]) -> Resource:
    fields = {f: getattr(value, f) for f in value.__struct_fields__ if f not in without}
    return {"name": name, **{k: plain(v) for k, v in fields.items() if k != "name"}}
