"""Lint: ACL rules that no packet can ever reach.

Exact: a rule is told of only if every packet that it could match is taken by earlier ones. Where
that would cost too much to find out, nothing is said.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from dataplane.address import Span, ip16, prefix16
from dataplane.groups import DIRECTIONS, acl_rule
from dataplane.model import Acl, Direction, Document, Network, Node
from dataplane.names import nodes_of
from dataplane.regions import Interval, Intervals, Region, common, cut, holds, join, less, meet
from dataplane.tree import Complaint, Path

MAX_PIECES = 256  # of what is left of a rule
MAX_CUTS = 4096  # made for one rule
SHOWN = 4

_V4: Interval = (0xFFFF << 32, (0x10000 << 32) - 1)  # as mapped into IPv6
_ANY: Intervals = ((0, (1 << 128) - 1),)
_FAMILIES: tuple[Intervals, ...] = ((_V4,), less(_ANY, (_V4,)))
_PORTS: Intervals = ((0, 65535),)
_PROTOCOLS: Intervals = ((0, 255),)


class _Rule(NamedTuple):
    """`regions`: what it matches, by IP version: source, destination, both ports, protocol."""

    name: str
    path: Path
    regions: tuple[Region, ...]
    ends: bool  # no later group is asked


class _TooMuch(Exception):
    """It cannot be told at a bearable cost."""


def check(document: Document) -> Iterator[Complaint]:
    """A warning for each rule of a checked document that can never match."""
    for i, node in enumerate(nodes_of(document)):
        yield from _node(node, ("node",) if document.node is not None else ("nodes", i))


def _node(node: Node, path: Path) -> Iterator[Complaint]:
    for i, network in enumerate(node.networks):
        for direction in DIRECTIONS:
            yield from _network(network, direction, (*path, "networks", i))


def _network(network: Network, direction: Direction, path: Path) -> Iterator[Complaint]:
    """Its own group, which is walked first, then those of its endpoints."""
    inside = _addresses(map(prefix16, network.prefixes))
    first = _group(network.acls, direction, inside, path)
    yield from _dead("network", first, ())
    tier = [rule._replace(name=f"{network.name}/{rule.name}") for rule in first]
    for i, endpoint in enumerate(network.endpoints):
        own = join((int.from_bytes(ip16(a)),) * 2 for a in endpoint.addresses)
        group = _group(endpoint.acls, direction, own, (*path, "endpoints", i))
        yield from _dead("endpoint", group, tier)


def _dead(whose: str, group: Sequence[_Rule], tier: Sequence[_Rule]) -> Iterator[Complaint]:
    """`tier`: the group before, of which only rules that end the walk take anything away."""
    near_tier, near_group = _near(tier, group), _near(group, group)
    for place, rule in enumerate(group):
        if not rule.regions:
            why = f"no address of the {whose} meets local and the IP version of remote"
        else:
            takers = _takers(rule, near_tier(place, len(tier)), near_group(place, place))
            if not takers:
                continue
            why = f"shadowed by {_listed(takers)}"
        yield Complaint(rule.path, f"rule {rule.name} can never match: {why}")


# ---- rules as regions --------------------------------------------------------------------------


def _group(acls: tuple[Acl, ...], direction: Direction, own: Intervals, path: Path) -> list[_Rule]:
    """The rules of a direction in the order they are asked."""
    found = [(i, acl) for i, acl in enumerate(acls) if acl.direction == direction]
    found.sort(key=lambda item: item[1].priority)
    return [_rule(acl, own, (*path, "acls", i)) for i, acl in found]


def _rule(acl: Acl, own: Intervals, path: Path) -> _Rule:
    row = acl_rule(acl, 0)
    src, dst = _addresses(row.src) or _ANY, _addresses(row.dst) or _ANY
    src, dst = (meet(src, own), dst) if acl.direction == "out" else (src, meet(dst, own))
    rest = join(row.sport) or _PORTS, join(row.dport) or _PORTS, join(row.protocol) or _PROTOCOLS
    ends = [(meet(src, family), meet(dst, family)) for family in _FAMILIES]
    regions = tuple((*pair, *rest) for pair in ends if all(pair))
    return _Rule(acl.name, path, regions, acl.terminating and acl.action != "pass")


def _addresses(spans: Iterable[Span]) -> Intervals:
    """Prefixes of IPv4 have at least 96 bits; a shorter one holds no IPv4 address."""
    found: list[Interval] = []
    for octets, length in spans:
        first = int.from_bytes(octets)
        whole = ((first, first | (1 << 128 - length) - 1),)
        found.extend(whole if length >= 96 else less(whole, (_V4,)))
    return join(found)


# ---- shadows -----------------------------------------------------------------------------------


def _takers(rule: _Rule, tier: Sequence[_Rule], earlier: Sequence[_Rule]) -> list[str]:
    """Names of the rules that leave nothing to this one; none if something is left."""
    for other in earlier:
        if _covers(other, rule):
            return [other.name]
    takers: list[_Rule] = []
    try:
        reach = _through(list(rule.regions), tier, takers)
        left = _cut_all(reach, earlier, takers)
    except _TooMuch:
        return []
    if left:
        return []
    alone = [other for other in takers if _covers(other, rule)] if all(r.ends for r in tier) else []
    return [other.name for other in alone[:1] or takers]


def _covers(other: _Rule, rule: _Rule) -> bool:
    return all(any(holds(outer, inner) for outer in other.regions) for inner in rule.regions)


def _through(live: list[Region], tier: Sequence[_Rule], takers: list[_Rule]) -> list[Region]:
    """What a group lets go on to the next: where its first match does not end the walk."""
    reach: list[Region] = []
    for other in tier:
        if not other.ends:
            met = (common(a, b) for a in live for b in other.regions)
            reach += [region for region in met if region]
            live = _cut_all(live, [other], [])
        else:
            live = _cut_all(live, [other], takers)
    return live + reach


def _cut_all(live: list[Region], rules: Sequence[_Rule], takers: list[_Rule]) -> list[Region]:
    """What is left outside of the rules; those that took something join the takers."""
    cuts = 0
    for other in rules:
        before = live
        for region in other.regions:
            cuts += len(live)
            live = [piece for mine in live for piece in cut(mine, region)]
            if len(live) > MAX_PIECES or cuts > MAX_CUTS:
                raise _TooMuch
        if live != before:
            takers.append(other)
    return live


def _near(rules: Sequence[_Rule], group: Sequence[_Rule]) -> Callable[[int, int], Sequence[_Rule]]:
    """For a place in the group: those of the first so many rules whose bounds meet its own.

    Of a thousand rules few meet; numbers of 128 bits are compared by their ranks.
    """
    if not rules or len(rules) * len(group) < 1000:
        return lambda place, count: rules[:count]
    import numpy as np

    def ranked(
        some: Sequence[_Rule], end: int
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
        return np.array([[ranks[d][b[d][end]] for d in dims] for b in map(_bounds, some)])

    dims = range(5)
    both = [_bounds(rule) for rule in (*rules, *group)]
    ranks = [
        {n: i for i, n in enumerate(sorted({end for b in both for end in b[d]}))} for d in dims
    ]
    low, high = ranked(rules, 0), ranked(rules, 1)
    my_low, my_high = ranked(group, 0), ranked(group, 1)

    def find(place: int, count: int) -> Sequence[_Rule]:
        meets = (low[:count] <= my_high[place]) & (high[:count] >= my_low[place])
        return [rules[i] for i in np.flatnonzero(meets.all(axis=1)).tolist()]

    return find


def _bounds(rule: _Rule) -> list[Interval]:
    """Least and greatest by dimension; of a rule without regions, far from all others."""
    if not rule.regions:
        return [(1 << 128, -1)] * 5
    return [
        (min(r[d][0][0] for r in rule.regions), max(r[d][-1][1] for r in rule.regions))
        for d in range(5)
    ]


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    shown = [*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]
    return f"{', '.join(shown[:-1])} and {shown[-1]} together"
