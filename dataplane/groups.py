"""Groups: an endpoint's rules, of its network's ACLs, its own and its outbound NAT."""

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
from dataplane.rows import EndpointRow, Group, Pool, Range, Rule

DIRECTIONS: tuple[Direction, ...] = ("out", "in")  # in the engine's order
NAT_RULES = ("nat-exceptions", "nat")  # in the order they are evaluated


def endpoint_rows(network: Network, node: Node, ids: Ids, memo: Memo) -> tuple[EndpointRow, ...]:
    """Of a resolved network."""
    return memo.each(
        ("endpoint rows", network.name),
        network.endpoints,
        (network.vni, network.acls),
        lambda endpoint: _endpoint_row(endpoint, network, ids, memo),
    )


def _endpoint_row(e: Endpoint, network: Network, ids: Ids, memo: Memo) -> EndpointRow:
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
    """Exceptions first, then the translation; none without an outside address. What routes lead to
    never comes here."""
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


def _pool_flags(nat: OutboundNat) -> int:
    """Values of `enum dp_pool_flag`."""
    return (nat.mapping == "symmetric") | (nat.filtering == "endpoint-independent") << 1
