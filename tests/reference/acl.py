"""ACL groups, rule by rule (semantics 5a)."""

from typing import NamedTuple

from dataplane.address import Prefix
from dataplane.model import Acl, PortRange
from tests.reference.site import Endpoint, Span, span, within
from tests.reference.verdict import Drop
from tests.reference.wire import FlowId

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}


class Decision(NamedTuple):
    rule: str | None
    stateful: bool
    idle: int


def judge(endpoint: Endpoint, direction: str, flow: FlowId) -> Decision:
    """Allowed, or Drop. In each group the first match counts; the last group has the last word."""
    decided: tuple[Acl, str] | None = None
    for owner, rules in endpoint.groups[direction]:
        rule = _first_match(rules, flow)
        if rule is None or rule.action == "pass":
            continue
        decided = rule, f"{owner}/{rule.name}"
        if rule.terminating:
            break
    if decided is None:
        if endpoint.fallback[direction] == "block":
            raise Drop("acl_deny")
        return Decision(None, stateful=True, idle=0)
    rule, name = decided
    if rule.action in ("block", "reject"):
        raise Drop("acl_deny" if rule.action == "block" else "acl_reject", name)
    return Decision(name, rule.stateful, rule.idle)


def _first_match(rules: tuple[Acl, ...], flow: FlowId) -> Acl | None:
    for rule in sorted(rules, key=lambda r: r.priority):  # stable: equals keep their order
        if _matches(rule, flow):
            return rule
    return None


def _matches(rule: Acl, flow: FlowId) -> bool:
    """All conditions that are given hold."""
    out = rule.direction == "out"
    local, remote = (flow.src, flow.dst) if out else (flow.dst, flow.src)
    local_port, remote_port = (flow.sport, flow.dport) if out else (flow.dport, flow.sport)
    if rule.protocol not in ("any", flow.proto) and PROTOCOLS.get(str(rule.protocol)) != flow.proto:
        return False
    if not _any_prefix(rule.local, local) or not _any_prefix(rule.remote, remote):
        return False
    return (
        _any_port(rule.local_ports, local_port)
        and _any_port(rule.remote_ports, remote_port)
        and rule.icmp_type in (None, flow.dport >> 8)
        and rule.icmp_code in (None, flow.dport & 0xFF)
    )


def _any_prefix(prefixes: tuple[Prefix, ...], address: bytes) -> bool:
    spans: list[Span] = [span(p) for p in prefixes]
    return not spans or any(within(address, s) for s in spans)


def _any_port(ranges: tuple[PortRange, ...], port: int) -> bool:
    return not ranges or any(r.first <= port <= r.last for r in ranges)
