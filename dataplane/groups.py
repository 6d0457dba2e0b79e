"""Groups: an endpoint's rules, of its network's ACLs, its own and its outbound NAT."""

from collections.abc import Iterable
from itertools import chain

from dataplane.address import Prefix, Span, ip16, prefix16
from dataplane.ids import GroupName, Ids, RuleName
from dataplane.memo import Memo
from dataplane.model import (
    PROTOCOLS,
    Acl,
    Direction,
    Endpoint,
    Network,
    Node,
    OutboundNat,
    PortRange,
)
from dataplane.routing import Ways, domain_of, ways_of
from dataplane.rows import EndpointRow, Group, Pool, Range, Rule
from dataplane.vips import vip_spans

DIRECTIONS: tuple[Direction, ...] = ("out", "in")  # in the engine's order
NAT_RULES = ("nat-exceptions", "nat")  # in the order they are evaluated


def endpoint_rows(network: Network, node: Node, ids: Ids, memo: Memo) -> tuple[EndpointRow, ...]:
    """Of a resolved network."""
    rows = memo.each(
        ("endpoint rows", network.name),
        network.endpoints,
        (network.vni, network.acls),
        lambda endpoint: _endpoint_row(endpoint, network, ids, memo),
    )
    inner = _inner_group(network, node, ids, memo)
    key = "translated rows", network.name
    return memo(key, (rows, inner), lambda: tuple(_translated(row, inner) for row in rows))


def _translated(row: EndpointRow, inner: Group | None) -> EndpointRow:
    """What stays inside comes before what the endpoint has translated."""
    out, into = row.groups
    nat = tuple(group for group in out if group.layer == "nat")
    if not nat or inner is None:
        return row
    return row._replace(groups=((*out[: len(out) - len(nat)], inner, *nat), into))


def _endpoint_row(e: Endpoint, network: Network, ids: Ids, memo: Memo) -> EndpointRow:
    """Without what all endpoints have in common of NAT."""
    assert e.mac is not None and e.default_in is not None and e.default_out is not None
    groups = tuple(
        (
            *_acl_group(network.acls, GroupName(network.name, None, "acl", direction), ids, memo),
            *_acl_group(e.acls, GroupName(network.name, e.name, "acl", direction), ids, memo),
            *(_nat_group(e, network, ids) if direction == "out" else ()),
        )
        for direction in DIRECTIONS
    )
    return EndpointRow(
        vni=network.vni,
        port=ids.ports[f"{network.name}/{e.name}"],
        mac=e.mac.packed,
        addresses=tuple(map(ip16, e.addresses)),
        groups=groups,
        fallback=(e.default_out, e.default_in),
        max_flows=e.max_flows,
    )


def _acl_group(acls: tuple[Acl, ...], name: GroupName, ids: Ids, memo: Memo) -> tuple[Group, ...]:
    """One group, or none where no rule is of the direction."""
    return memo(name, acls, lambda: _make_acl_group(acls, name, ids))


def _make_acl_group(acls: tuple[Acl, ...], name: GroupName, ids: Ids) -> tuple[Group, ...]:
    rules = tuple(
        acl_rule(acl, ids.rules[RuleName(name.network, name.endpoint, name.layer, acl.name)])
        for acl in acls
        if acl.direction == name.direction
    )
    return (Group(ids.groups[name], name.layer, rules),) if rules else ()


def acl_rule(acl: Acl, number: int) -> Rule:
    """`local` and `remote` become source and destination by direction."""
    local, remote = _spans(acl.local), _spans(acl.remote)
    local_ports, remote_ports = _ranges(acl.local_ports), _ranges(acl.remote_ports)
    out = acl.direction == "out"
    icmp = _icmp_ranges(acl)
    return Rule(
        id=number,
        priority=acl.priority,
        action=acl.action,
        terminating=acl.terminating,
        stateful=acl.stateful,
        idle=acl.idle,
        src=local if out else remote,
        dst=remote if out else local,
        sport=local_ports if out else remote_ports,
        dport=icmp or (remote_ports if out else local_ports),
        protocol=_protocols(acl),
    )


def _icmp_ranges(acl: Acl) -> tuple[Range, ...]:
    """ICMP's destination port is type << 8 | code; a code of any type takes a range for each."""
    kind, code = acl.icmp_type, acl.icmp_code
    if kind is None and code is None:
        return ()
    kinds = range(256) if kind is None else (kind,)
    return tuple((k << 8 | (code or 0), k << 8 | (255 if code is None else code)) for k in kinds)


def _protocols(acl: Acl) -> tuple[Range, ...]:
    if acl.protocol == "any":
        return ()
    number = acl.protocol if isinstance(acl.protocol, int) else PROTOCOLS[acl.protocol]
    return ((number, number),)


def _spans(prefixes: tuple[Prefix, ...]) -> tuple[Span, ...]:
    return tuple(map(prefix16, prefixes))


def _ranges(ports: tuple[PortRange, ...]) -> tuple[Range, ...]:
    return tuple((p.first, p.last) for p in ports)


def _nat_group(e: Endpoint, network: Network, ids: Ids) -> tuple[Group, ...]:
    """Own exceptions first, then the translation; none without an outside address."""
    nat = e.outbound_nat
    if nat is None or nat.vip is None:
        return ()
    pool = Pool(ip16(nat.vip), nat.ports.first, nat.ports.last, _pool_flags(nat), nat.max_ports)
    inside = tuple((ip16(a), 128) for a in e.addresses if a.version == nat.vip.version)
    name = GroupName(network.name, e.name, "nat", "out")
    keep, translate = (
        ids.rules[RuleName(name.network, name.endpoint, name.layer, rule)] for rule in NAT_RULES
    )
    exceptions = Rule(keep, 0, "allow", True, dst=_spans(nat.exceptions))
    snat = Rule(translate, 1, "snat", True, pool=pool, src=inside, dst=_spans(nat.destinations))
    rules = (exceptions, snat) if nat.exceptions else (snat,)
    return (Group(ids.groups[name], name.layer, rules),) if inside else ()


def _inner_group(network: Network, node: Node, ids: Ids, memo: Memo) -> Group | None:
    """Nothing is translated that stays inside: one group for all endpoints of the network, none
    where nothing is translated at all."""
    if all(e.outbound_nat is None for e in network.endpoints):
        return None
    name = GroupName(network.name, None, "nat", "out")
    number = ids.rules[RuleName(network.name, None, "nat", NAT_RULES[0])]
    inner = _inner_prefixes(network, node, memo)
    rule = Rule(number, 0, "allow", True, dst=inner)
    return memo(name, (number, inner), lambda: Group(ids.groups[name], name.layer, (rule,)))


def _pool_flags(nat: OutboundNat) -> int:
    """Values of `enum dp_pool_flag`."""
    return (nat.mapping == "symmetric") | (nat.filtering == "endpoint-independent") << 1


def _inner_prefixes(network: Network, node: Node, memo: Memo) -> tuple[Span, ...]:
    """All that routes lead to: prefixes, remote subnets outside of all of them, VIPs, the host, and
    what is reached by it."""
    domain = domain_of(network, node)
    routed = [
        memo(
            ("inner", n.name),
            (n.prefixes, n.remote_subnets),
            lambda n=n: _make_inner(_spans(n.prefixes), ways_of(n, memo)),  # type: ignore[misc]
        )
        for n in domain
    ]
    single: list[Iterable[Span]] = [vip_spans(n, memo) for n in domain]
    if network.host_route and node.host_port is not None:
        single.append(((ip16(node.host_port.peer), 128),))
        single.append(tuple(prefix16(s.prefix) for s in network.direct_subnets))
    spans = (*routed, *single)
    return memo(
        ("inner spans", network.name),
        spans,
        lambda: tuple(dict.fromkeys(chain.from_iterable(spans))),
    )


def _make_inner(prefixes: tuple[Span, ...], ways: Ways) -> tuple[Span, ...]:
    import numpy as np

    outside = np.ones(len(ways.length), np.bool_)
    for octets, length in prefixes:
        mask = np.frombuffer(((1 << 128) - (1 << 128 - length)).to_bytes(16), np.uint8)
        under = ((ways.prefix & mask) == np.frombuffer(octets, np.uint8)).all(axis=1)
        outside &= ~(under & (ways.length >= length))
    rest = zip(ways.prefix[outside], ways.length[outside].tolist(), strict=True)
    return prefixes + tuple((octets.tobytes(), length) for octets, length in rest)
