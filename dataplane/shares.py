"""Shares: what each front door has in a node's policy, beside the document's own objects. Pure.

Each origin replaces its own share as a whole and cannot touch another's. One that puts objects into
a network of somebody else does so by a part; everything together is the policy that is committed.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from dataplane.errors import DocumentError, Fault
from dataplane.model import (
    LISTS,
    Acl,
    DirectSubnet,
    Endpoint,
    LoadBalancer,
    Model,
    Network,
    Node,
    RemoteSubnet,
)

DOCUMENT = "document"  # the origin of what `apply` and the API's paths say

KEYS = {field: of.key for field, of in LISTS.items()}  # what any origin may put into a network


class Part(Model, frozen=True, kw_only=True):
    """Objects in a network that is another origin's. ACLs in `endpoint_acls` go to endpoints of
    that name as long as there are such, behind those they have, whoever theirs they are."""

    network: str
    endpoints: tuple[Endpoint, ...] = ()
    remote_subnets: tuple[RemoteSubnet, ...] = ()
    direct_subnets: tuple[DirectSubnet, ...] = ()
    acls: tuple[Acl, ...] = ()
    load_balancers: tuple[LoadBalancer, ...] = ()
    endpoint_acls: dict[str, tuple[Acl, ...]] = {}  # noqa: RUF012 (msgspec copies it)


class Share(Model, frozen=True, kw_only=True):
    """All that one origin has. `kept`: what it wants to find again after a restart, in its own
    words; saved with the share, in one."""

    networks: tuple[Network, ...] = ()
    parts: tuple[Part, ...] = ()
    kept: str = ""


Shares = Mapping[str, Share]  # by origin


class Owned(NamedTuple):
    origin: str
    part: Part


class _Filtered(NamedTuple):
    """An endpoint, the ACLs that parts have for it, and both together."""

    given: Endpoint
    acls: tuple[Acl, ...]
    made: Endpoint


class _Composed(NamedTuple):
    source: tuple[str, Network, tuple[Owned, ...]]
    made: Network
    endpoints: dict[str, _Filtered]


class Composer:
    """Makes one policy of a document's and all shares. What nobody changed stays the same object,
    so that a plan has nothing to do for it."""

    def __init__(self) -> None:
        self._before: dict[str, _Composed] = {}

    def compose(self, base: Node, shares: Shares) -> Node:
        """Raises DocumentError, which names both origins, where two have an object of one name."""
        if not any(share.networks or share.parts for share in shares.values()):
            return base
        faults = list[Fault]()
        owner: dict[str, str] = {}
        made: dict[str, _Composed] = {}
        for origin, network in _networks(base, shares):
            name = network.name
            if owner.setdefault(name, origin) != origin:
                faults.append(_twice(origin, f"network {name}", owner[name]))
                continue
            source = origin, network, tuple(_parts_of(name, shares))
            old = self._before.get(name)
            same = old is not None and old.source == source
            made[name] = old if old and same else _composed(source, old, faults)
        faults += _homeless(owner, shares)
        if faults:
            raise DocumentError(tuple(faults))
        self._before = made
        return replace(base, networks=tuple(composed.made for composed in made.values()))


def compose(base: Node, shares: Shares) -> Node:
    """As `Composer.compose`, once."""
    return Composer().compose(base, shares)


def owners(shares: Shares) -> dict[tuple[str, str], str]:
    """The origin of what is not the document's, by kind (a field of Network, or "networks") and
    whole name, NETWORK/NAME."""
    found: dict[tuple[str, str], str] = {}
    for origin, share in shares.items():
        found |= {("networks", network.name): origin for network in share.networks}
        named = [(network.name, network) for network in share.networks]
        for name, holder in [*named, *((part.network, part) for part in share.parts)]:
            for field, key in KEYS.items():
                for item in getattr(holder, field):
                    found[field, f"{name}/{getattr(item, key)}"] = origin
        for part in share.parts:
            for endpoint, acls in part.endpoint_acls.items():
                found |= {("acls", f"{part.network}/{endpoint}/{a.name}"): origin for a in acls}
    return found


def _networks(base: Node, shares: Shares) -> Iterator[tuple[str, Network]]:
    for network in base.networks:
        yield DOCUMENT, network
    for origin, share in shares.items():
        for network in share.networks:
            yield origin, network


def _parts_of(network: str, shares: Shares) -> Iterator[Owned]:
    for origin, share in shares.items():
        for part in share.parts:
            if part.network == network:
                yield Owned(origin, part)


def _composed(
    source: tuple[str, Network, tuple[Owned, ...]], old: _Composed | None, faults: list[Fault]
) -> _Composed:
    origin, network, parts = source
    changed: dict[str, Any] = {}
    for field, key in KEYS.items():
        if any(getattr(owned.part, field) for owned in parts):
            sides = [(origin, getattr(network, field))]
            sides += [(owned.origin, getattr(owned.part, field)) for owned in parts]
            changed[field] = _joined(network.name, field, key, sides, faults)
    more = [owned.part.endpoint_acls for owned in parts if owned.part.endpoint_acls]
    filtered: dict[str, _Filtered] = {}
    if more:
        held = changed.get("endpoints", network.endpoints)
        filtered = dict(_filtered(held, more, old.endpoints if old else {}))
        changed["endpoints"] = tuple(
            filtered[e.name].made if e.name in filtered else e for e in held
        )
    if old is not None:
        known = {field: getattr(old.made, field) for field in changed}
        changed |= {field: known[field] for field in changed if known[field] == changed[field]}
    return _Composed(source, replace(network, **changed) if changed else network, filtered)


def _filtered(
    endpoints: tuple[Endpoint, ...],
    more: list[dict[str, tuple[Acl, ...]]],
    old: Mapping[str, _Filtered],
) -> Iterator[tuple[str, _Filtered]]:
    """Endpoints that parts have ACLs for, by name."""
    for endpoint in endpoints:
        acls = tuple(acl for part in more for acl in part.get(endpoint.name, ()))
        if not acls:
            continue
        kept = old.get(endpoint.name)
        if kept is None or kept[:2] != (endpoint, acls):
            whole = replace(endpoint, acls=(*endpoint.acls, *acls))
            kept = _Filtered(endpoint, acls, whole)
        yield endpoint.name, kept


def _joined(
    network: str,
    field: str,
    key: str,
    sides: list[tuple[str, tuple[Any, ...]]],
    faults: list[Fault],
) -> tuple[Any, ...]:
    taken: dict[Any, str] = {}
    items: list[Any] = []
    for origin, side in sides:
        for item in side:
            name = getattr(item, key)
            owner = taken.setdefault(name, origin)
            if owner == origin:
                items.append(item)
            else:
                what = field.removesuffix("s").replace("_", " ")
                faults.append(_twice(origin, f"{what} {name} of network {network}", owner))
    return tuple(items)


def _homeless(networks: Mapping[str, str], shares: Shares) -> Iterator[Fault]:
    for origin, share in shares.items():
        for number, part in enumerate(share.parts):
            if part.network not in networks:
                message = f"there is no network {part.network!r}, where {origin} has objects"
                yield Fault(origin, 0, f"$.parts[{number}].network", message)


def _twice(origin: str, what: str, owner: str) -> Fault:
    return Fault(
        origin,
        0,
        "$",
        f"{what} is {owner}'s already",
        f"let only one of {owner} and {origin} name it",
    )
