"""NetworkPolicies (networking.k8s.io/v1) as ACLs of this node's pods. Pure.

A direction in which a policy selects a pod is closed but for what the union of its policies allows,
what comes from its own node, and itself; replies pass, as rules are stateful. What cannot be said
stays closed, and is told by name.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import collapse_addresses
from typing import Any, Literal, NamedTuple

from dataplane.address import IP, Prefix, host_prefix, parse_prefix
from dataplane.kubernetes.objects import (
    Key,
    Object,
    Refused,
    items,
    labels_of,
    pod_addresses,
    short,
    table,
)
from dataplane.model import Acl, Direction, LoadBalancer, PortRange

ALLOW, CLOSED = 2000, 3000  # priorities
PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
NAMESPACE = "kubernetes.io/metadata.name"  # the label that every namespace has

Side = Literal["ingress", "egress"]


class Opening(NamedTuple):
    """What one rule allows: from or to `remote`, None for anybody, on `ports` of the protocol, None
    for all."""

    remote: frozenset[Prefix] | None
    protocol: str
    ports: tuple[PortRange, ...] | None


class UnsayableError(ValueError):
    """The policy asks for what our rules have no word for."""


class Cluster(NamedTuple):
    """What policies are about. `own`: this node's addresses, whence its pods can be reached."""

    policies: Mapping[Key, Object]
    pods: Mapping[Key, Object]
    namespaces: Mapping[str, Object]
    balancers: tuple[LoadBalancer, ...] = ()
    own: tuple[Prefix, ...] = ()


def acls_of(cluster: Cluster, pod: Key) -> tuple[tuple[Acl, ...], Refused]:
    """Of one pod; none, if no policy selects it."""
    item, refused = cluster.pods[pod], Refused()
    found: dict[Side, list[tuple[str, list[Opening]]]] = {}
    for key, policy in sorted(cluster.policies.items()):
        spec, name = table(policy, "spec"), "/".join(key)
        try:
            if key[0] != pod[0] or not selects(table(spec, "podSelector"), labels_of(item)):
                continue
            for side in _sides(spec):
                found.setdefault(side, []).append((f"{key[0]}.{key[1]}", []))
                for i, rule in enumerate(items(spec, side)):
                    openings = _openings(cluster, pod, side, rule, f"$.spec.{side}[{i}]")
                    found[side][-1][1].extend(openings)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            refused[f"networkpolicy {name}"] = str(error)
            for side in _sides(spec):
                found.setdefault(side, [])
    acls = [acl for side, named in found.items() for acl in _acls(cluster, item, side, named)]
    return tuple(acls), refused


def _sides(spec: Object) -> list[Side]:
    """In which directions it closes."""
    told = spec.get("policyTypes")
    types = (
        told if isinstance(told, list) and told else ["Ingress"] + ["Egress"] * ("egress" in spec)
    )
    sides: dict[str, Side] = {"Ingress": "ingress", "Egress": "egress"}
    return [side for name, side in sides.items() if name in types]


# ---- selectors ---------------------------------------------------------------------------------


def selects(selector: Object, labels: Object) -> bool:
    """Whether a label selector matches; an empty one matches everything. Raises UnsayableError."""
    if any(labels.get(key) != value for key, value in table(selector, "matchLabels").items()):
        return False
    return all(_holds(each, labels) for each in items(selector, "matchExpressions"))


def _holds(expression: Object, labels: Object) -> bool:
    key, values = expression.get("key"), expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case other:
            raise UnsayableError(f"operator {other!r} of a selector is not known")


# ---- rules -------------------------------------------------------------------------------------


def _openings(cluster: Cluster, pod: Key, side: Side, rule: Object, path: str) -> Iterator[Opening]:
    peers = rule.get("from" if side == "ingress" else "to")
    chosen = [*_peers(cluster, pod[0], peers)] if peers else None
    blocks = frozenset(p for peer in chosen or () for p in peer.prefixes)
    known = {key: each for peer in chosen or () for key, each in peer.pods.items()}
    remote = None if chosen is None else blocks | _prefixes(known.values())
    ports = rule.get("ports")
    if not ports:
        yield Opening(remote, "any", None)
        return
    numbers: dict[tuple[str, frozenset[Prefix] | None], list[PortRange] | None] = {}
    for i, port in enumerate(ports):
        protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
        if protocol is None or (protocol == "sctp" and port.get("port") is not None):
            raise UnsayableError(f"{path}.ports[{i}]: ports of {port.get('protocol')} are not told")
        for where, span in _spans(cluster, pod, side, port, remote, known, protocol):
            if span is None:
                numbers[protocol, where] = None
            elif (held := numbers.setdefault((protocol, where), [])) is not None:
                held.append(span)
    for (protocol, where), spans in numbers.items():
        yield Opening(where, protocol, None if spans is None else tuple(spans))


class _Peer(NamedTuple):
    prefixes: tuple[Prefix, ...]
    pods: dict[Key, Object]


def _peers(cluster: Cluster, namespace: str, peers: Any) -> Iterator[_Peer]:
    for peer in peers:
        if "ipBlock" in peer:
            yield _Peer(tuple(_block(peer["ipBlock"])), {})
            continue
        spaces = peer.get("namespaceSelector")
        pods = peer.get("podSelector") or {}
        found = {
            key: item
            for key, item in cluster.pods.items()
            if (
                key[0] == namespace
                if spaces is None
                else selects(spaces, _space(cluster.namespaces, key[0]))
            )
            and selects(pods, labels_of(item))
        }
        yield _Peer((), found)


def _space(namespaces: Mapping[str, Object], name: str) -> Object:
    """The labels of a namespace."""
    return {**labels_of(namespaces.get(name, {})), NAMESPACE: name}


def _block(block: Object) -> Iterator[Prefix]:
    """Its prefix without the exceptions."""
    whole = [parse_prefix(str(block.get("cidr")))]
    for text in block.get("except") or ():
        hole = parse_prefix(str(text))
        whole = [rest for prefix in whole for rest in _without(prefix, hole)]
    yield from whole


def _without(prefix: Prefix, hole: Prefix) -> Iterable[Prefix]:
    if prefix.version != hole.version or not prefix.overlaps(hole):
        return [prefix]
    if hole.prefixlen <= prefix.prefixlen:
        return []
    found: Iterable[Prefix] = prefix.address_exclude(hole)  # type: ignore[arg-type]
    return found


def _spans(
    cluster: Cluster,
    pod: Key,
    side: Side,
    port: Object,
    remote: frozenset[Prefix] | None,
    known: Mapping[Key, Object],
    protocol: str,
) -> Iterator[tuple[frozenset[Prefix] | None, PortRange | None]]:
    """Whom a port is of, and the port's numbers. A name is what the pod that is reached says."""
    number = port.get("port")
    if number is None:
        yield remote, None
    elif isinstance(number, int):
        yield remote, PortRange(number, int(port.get("endPort") or number))
    elif side == "ingress":
        for own in _named_port(cluster.pods[pod], number, protocol):
            yield remote, PortRange(own, own)
    else:
        reached: dict[int, list[Object]] = {}
        for each in (cluster.pods if remote is None else known).values():
            for own in _named_port(each, number, protocol):
                reached.setdefault(own, []).append(each)
        for own, pods in reached.items():
            yield _prefixes(pods), PortRange(own, own)


def _named_port(pod: Object, name: str, protocol: str) -> Iterator[int]:
    for container in items(table(pod, "spec"), "containers"):
        for port in items(container, "ports"):
            if port.get("name") == name and PROTOCOLS[port.get("protocol") or "TCP"] == protocol:
                yield int(port["containerPort"])


def _prefixes(pods: Iterable[Object]) -> frozenset[Prefix]:
    return frozenset(host_prefix(address) for pod in pods for address in pod_addresses(pod))


# ---- ACLs --------------------------------------------------------------------------------------


def _acls(
    cluster: Cluster, pod: Object, side: Side, named: list[tuple[str, list[Opening]]]
) -> Iterator[Acl]:
    direction: Direction = "in" if side == "ingress" else "out"
    itself = tuple(map(host_prefix, pod_addresses(pod)))
    always = (*cluster.own, *itself)
    if always:
        yield Acl(name=f"kube.{direction}.node", direction=direction, action="allow",
                  priority=ALLOW, remote=always)  # fmt: skip
    for policy, openings in named:
        for i, opening in enumerate(openings):
            if opening.remote is not None and not opening.remote:
                continue  # nobody, as empty lists match everybody
            yield _acl(short(f"kube.{direction}.{policy}.{i}"), direction, opening)
    if side == "egress":
        yield from _services(cluster, [each for _, openings in named for each in openings])
    yield Acl(name=f"kube.{direction}.closed", direction=direction, action="block", priority=CLOSED)


def _acl(name: str, direction: Direction, opening: Opening) -> Acl:
    ports = opening.ports or ()
    return Acl(
        name=name,
        direction=direction,
        action="allow",
        priority=ALLOW,
        protocol=opening.protocol,
        remote=() if opening.remote is None else _ordered(opening.remote),
        local_ports=ports if direction == "in" else (),
        remote_ports=ports if direction == "out" else (),
    )


def _ordered(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Each family's, joined where they touch."""
    fours = [p for p in prefixes if p.version == 4]
    sixes = [p for p in prefixes if p.version == 6]
    return (*collapse_addresses(fours), *collapse_addresses(sixes))


def _services(cluster: Cluster, openings: list[Opening]) -> Iterator[Acl]:
    """VIPs, which a pod's ACLs see before the balancer: those whose backends are all allowed."""
    vips: dict[tuple[str, int], list[Prefix]] = {}
    for balancer in cluster.balancers:
        port = balancer.target_port or balancer.port
        if balancer.backends and all(
            any(_allows(o, b.address, balancer.protocol, b.port or port) for o in openings)
            for b in balancer.backends
        ):
            held = vips.setdefault((balancer.protocol, balancer.port), [])
            held.extend(map(host_prefix, balancer.vips))
    for (protocol, number), prefixes in sorted(vips.items()):
        if prefixes:
            opening = Opening(frozenset(prefixes), protocol, (PortRange(number, number),))
            yield _acl(f"kube.out.vips.{protocol}.{number}", "out", opening)


def _allows(opening: Opening, address: IP, protocol: str, port: int) -> bool:
    if opening.protocol not in ("any", protocol):
        return False
    if opening.ports is not None and not any(s.first <= port <= s.last for s in opening.ports):
        return False
    if opening.remote is None or host_prefix(address) in opening.remote:
        return True
    return any(p.version == address.version and address in p for p in opening.remote)
