"""ACL, NetworkACL and TierAcl policies as rules of the model, and sets of addresses by name."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from dataplane.address import Prefix, parse_prefix
from dataplane.hns.errors import HcnError
from dataplane.hns.normal import Document
from dataplane.hns.values import ANY_PROTOCOL, VXLAN_PROTOCOL
from dataplane.model import Acl, PortRange

Sets = Mapping[str, tuple[str, ...]]  # values by the Id of a SetPolicy
LOWEST = 65535
_MOST_TIERS = 64  # of a direction
_MOST = 20_000  # rules that tiers may come to


def sets_of(policies: list[Document]) -> Sets:
    """The SetPolicy policies of a network."""
    return {
        policy["Settings"]["Id"]: tuple(
            filter(None, policy["Settings"].get("Values", "").split(","))
        )
        for policy in policies
        if policy["Type"] == "SetPolicy"
    }


def rules(
    policies: list[Document], sets: Sets, vxlan_port: int, kind: str = "ACL"
) -> tuple[Acl, ...]:
    """All of an endpoint or, with kind NetworkACL, of a network. Tiers come before plain ACLs, the
    lowest Order first; what no tier decides goes on to the next, and last to the ACLs."""
    plain = [
        rule
        for policy in policies
        if policy["Type"] == kind
        for rule in _rules(policy["Settings"], sets, vxlan_port)
    ]
    tiers = [p["Settings"] for p in policies if p["Type"] == "TierAcl" and kind == "ACL"]
    if not tiers:
        return tuple(_distinct(plain))
    made: list[Acl] = []
    for direction in ("In", "Out"):
        own = [tier for tier in tiers if tier["Direction"] == direction]
        stages = [
            [
                rule
                for each in tier.get("TierAclRules", ())
                for rule in _rules(_of_tier(each, direction), sets, vxlan_port)
            ]
            for tier in sorted(own, key=lambda tier: tier.get("Order", 0))
        ]
        last = [rule for rule in plain if rule.direction == direction.lower()]
        if len(stages) > _MOST_TIERS:
            message = f"TierAcl: {len(stages)} tiers, but {_MOST_TIERS} are the most"
            raise HcnError("HCN_E_INVALID_POLICY", message)
        flat = _flat([_sorted(stage) for stage in stages] + [_sorted(last)])
        made += _numbered(flat) if stages else last
    return tuple(_distinct(made))


def _of_tier(rule: Document, direction: str) -> Document:
    rest = {key: item for key, item in rule.items() if key != "TierAclRuleAction"}
    return {**rest, "Action": rule["TierAclRuleAction"], "Direction": direction}


def _rules(settings: Document, sets: Sets, vxlan_port: int) -> Iterator[Acl]:
    """One for each protocol."""
    local = _prefixes(settings.get("LocalAddresses", ""), sets)
    remote = _prefixes(settings.get("RemoteAddresses", ""), sets)
    if local is None or remote is None:
        return  # an empty set: nobody is in it
    name = _named(settings)
    protocols = settings.get("Protocols", "").split(",")
    for text in protocols:
        number = int(text) if text else ANY_PROTOCOL
        ours, theirs = _ports(settings, "LocalPorts"), _ports(settings, "RemotePorts")
        if number == VXLAN_PROTOCOL:  # a tunnel of the endpoint's own
            number, theirs = 17, (PortRange(vxlan_port, vxlan_port),)
        yield Acl(
            name=name if len(protocols) == 1 else f"{name}-{number}",
            direction="in" if settings["Direction"] == "In" else "out",
            action=settings["Action"].lower(),
            priority=settings.get("Priority", 0),
            protocol="any" if number == ANY_PROTOCOL else number,
            local=local,
            remote=remote,
            local_ports=ours,
            remote_ports=theirs,
        )


def _named(settings: Document) -> str:
    """Its own name, or one of what it says."""
    given = settings.get("Id") or settings.get("Name") or ""
    if (
        given
        and len(given) <= 40
        and all(c.isascii() and (c.isalnum() or c in "_.-") for c in given)
    ):
        return given if given[0] not in ".-" else f"_{given}"
    text = json.dumps(settings, sort_keys=True).encode()
    return f"acl-{hashlib.sha256(text).hexdigest()[:12]}"


def _ports(settings: Document, key: str) -> tuple[PortRange, ...]:
    return tuple(map(PortRange.parse, filter(None, settings.get(key, "").split(","))))


def _prefixes(text: str, sets: Sets) -> tuple[Prefix, ...] | None:
    """None: of sets that are all empty."""
    if not text:
        return ()
    found = tuple(dict.fromkeys(p for part in text.split(",") for p in _members(part, sets, 0)))
    return found or None


def _members(part: str, sets: Sets, depth: int) -> Iterator[Prefix]:
    if part not in sets and (":" in part or (part[0].isdigit() and "." in part)):
        yield parse_prefix(part)
    elif part not in sets or depth > 8:
        why = "no SetPolicy of the network has this Id" if depth <= 8 else "sets in a circle"
        raise HcnError("HCN_E_INVALID_POLICY", f"ACL: {part[:60]!r} is no address, and {why}")
    else:
        for value in sets[part]:
            yield from _members(value, sets, depth + 1)


# ---- tiers -------------------------------------------------------------------------------------


def _sorted(stage: list[Acl]) -> list[Acl]:
    return sorted(stage, key=lambda rule: rule.priority)


def _flat(stages: list[list[Acl]]) -> list[Acl]:
    """First match of the result is what walking tier by tier comes to. A rule that passes stands
    for what the later tiers say about its packets."""
    if not stages:
        return []
    later = _flat(stages[1:])
    made: list[Acl] = []
    for rule in stages[0]:
        if rule.action != "pass":
            made.append(rule)
            continue
        made += filter(None, (_both(rule, other) for other in later))
        made.append(rule)  # what no later tier decides
        if len(made) > _MOST:
            break
    if len(made) + len(later) > _MOST:
        message = f"TierAcl: the tiers come to more than {_MOST} rules; pass less"
        raise HcnError("HCN_E_INVALID_POLICY", message)
    return made + later


def _both(one: Acl, other: Acl) -> Acl | None:
    """The packets that both match, and what the other does; None if there are none."""
    if "any" not in (one.protocol, other.protocol) and one.protocol != other.protocol:
        return None
    parts: dict[str, Any] = {}
    for key, meet in (
        ("local", _common_prefixes),
        ("remote", _common_prefixes),
        ("local_ports", _common_ports),
        ("remote_ports", _common_ports),
    ):
        first, second = getattr(one, key), getattr(other, key)
        parts[key] = meet(first, second) if first and second else first or second
        if (first or second) and not parts[key]:
            return None
    parts["protocol"] = other.protocol if one.protocol == "any" else one.protocol
    return replace(other, **parts)


def _common_prefixes(one: tuple[Prefix, ...], other: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    found = [
        max(a, b, key=lambda prefix: prefix.prefixlen)
        for a in one
        for b in other
        if a.version == b.version and a.overlaps(b)
    ]
    return tuple(dict.fromkeys(found))


def _common_ports(
    one: tuple[PortRange, ...], other: tuple[PortRange, ...]
) -> tuple[PortRange, ...]:
    return tuple(
        PortRange(max(a.first, b.first), min(a.last, b.last))
        for a in one
        for b in other
        if a.first <= b.last and b.first <= a.last
    )


def _numbered(flat: list[Acl]) -> Iterator[Acl]:
    """In their order, by priorities."""
    for place, rule in enumerate(flat):
        yield replace(rule, priority=place + 1)


def _distinct(made: list[Acl]) -> Iterator[Acl]:
    """Names are unique; a rule that says what one before says is that one."""
    taken: dict[str, int] = {}
    for rule in made:
        count = taken[rule.name] = taken.get(rule.name, 0) + 1
        yield rule if count == 1 else replace(rule, name=f"{rule.name}.{count}")
