"""Remotes: the remote subnets of the committed policy, changed one by one.

The express lane of plans: it takes edits of which it is sure that they change nothing but routes
and adjacencies. Whatever else may be the matter with one, also that it is wrong, is for the whole
way to say.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, takewhile
from typing import NamedTuple

from dataplane.address import IP, Mac, Prefix, Span, prefix16
from dataplane.errors import DataplaneError
from dataplane.ids import AdjacencyName, Ids
from dataplane.memo import Memo
from dataplane.model import Network, Node, RemoteSubnet
from dataplane.routing import domain_of, mtu_of
from dataplane.tree import Path
from dataplane.validate_remotes import NOTHING, Sound, local_owners, vtep
from dataplane.version import Edit

Uses = Callable[[int, int], int]  # VNI of a network, adjacency: how many routes lead there


class RouteEdit(NamedTuple):
    """Routes to remote subnets in the table of one network; `come` with their adjacencies."""

    vni: int
    gone: tuple[RemoteSubnet, ...]
    come: tuple[tuple[RemoteSubnet, int], ...]


class NewVtep(NamedTuple):
    id: int
    name: AdjacencyName
    vni: int
    mtu: int


class Step(NamedTuple):
    """What edits change, all of them together."""

    edits: tuple[Edit, ...]
    routes: tuple[RouteEdit, ...]
    new: tuple[NewVtep, ...]
    gone: tuple[tuple[AdjacencyName, int], ...]


@dataclass(slots=True)
class _Place:
    """The remote subnets of one network, and what they must not contradict."""

    network: Network
    path: Path
    domain: tuple[Network, ...]  # who has routes to them, itself first
    fixed: tuple[Mapping[Span, object], ...]  # prefixes of others, or that others make way for
    subnets: dict[Span, RemoteSubnet]
    dr_macs: dict[IP, Mac]

    def name(self, subnet: RemoteSubnet) -> AdjacencyName:
        return AdjacencyName.of(self.network.vni, subnet.provider_address, subnet.dr_mac)


class Remotes:
    """Of one committed policy after another: `step` looks, `apply` changes. For one thread at a
    time."""

    def __init__(self, node: Node, ids: Ids, made: Memo, checked: Memo, quarantine: int) -> None:
        """`node`: with its defaults filled in; `made` with its tables; `checked`: what was found
        when it was judged. `quarantine`: generations until the number of a VTEP that is gone may be
        given again."""
        found = Memo(checked)
        self._underlay = node.underlay
        self._quarantine = quarantine
        self._places = {
            n.name: _place(n, node, ("node", "networks", i, "remote_subnets"), made, found)
            for i, n in enumerate(node.networks)
        }
        self._numbers = dict(ids.adjacencies)
        self._free: deque[tuple[int, int]] = deque()  # when it was given up, number
        self._next = max(self._numbers.values(), default=-1) + 1
        self.ids = Ids(ids.ports, ids.groups, ids.rules, self._numbers, ids.lineage + 1)
        self._names = self.ids.adjacency_names

    def find(self, network: str, prefix: Prefix) -> RemoteSubnet | None:
        """Raises DataplaneError where there is no such network."""
        return self._place(network).subnets.get(prefix16(prefix))

    def whole(self) -> tuple[Ids, Memo]:
        """For the whole way to go on from: numbers, and that nothing is wrong."""
        memo = Memo()
        for place in self._places.values():
            subnets = dict(place.subnets)
            sound = Sound(self._underlay, tuple(subnets.values()), subnets, dict(place.dr_macs))
            memo.keep(place.path, sound)
        i = self.ids
        return Ids(i.ports, i.groups, i.rules, dict(self._numbers), i.lineage), memo

    def _place(self, network: str) -> _Place:
        if network not in self._places:
            known = ", ".join(self._places) or "none"
            raise DataplaneError(f"no network {network!r}; there are: {known}")
        return self._places[network]

    # ---- looking -------------------------------------------------------------------------------

    def step(self, edits: tuple[Edit, ...], generation: int, uses: Uses) -> Step | None:
        """What the edits change, none of them of the same network; None: that is not sure.

        `generation`: the committed one.
        """
        numbers = self._unused(generation)
        routes: dict[int, tuple[list[RemoteSubnet], list[tuple[RemoteSubnet, int]]]] = {}
        new: list[NewVtep] = []
        gone: list[tuple[AdjacencyName, int]] = []
        for edit in edits:
            place = self._place(edit.network)
            vni = place.network.vni
            behind = Counter(map(place.name, edit.gone))
            ending = {n for n, lost in behind.items() if uses(vni, self._numbers[n]) == lost}
            if not self._is_plain(place, edit, ending):
                return None
            coming = dict.fromkeys(map(place.name, edit.come))
            to = {n: self._numbers[n] if n in self._numbers else next(numbers) for n in coming}
            new += [
                NewVtep(number, name, vni, mtu_of(place.network))
                for name, number in to.items()
                if name not in self._numbers
            ]
            gone += [(n, self._numbers[n]) for n in behind if n in ending and n not in coming]
            for member in place.domain:
                table = routes.setdefault(member.vni, ([], []))
                table[0].extend(edit.gone)
                table[1].extend((subnet, to[place.name(subnet)]) for subnet in edit.come)
        if any(len({s.prefix for s, _ in come}) != len(come) for _, come in routes.values()):
            return None
        tables = (RouteEdit(vni, tuple(g), tuple(c)) for vni, (g, c) in routes.items())
        return Step(edits, tuple(tables), tuple(new), tuple(gone))

    def _unused(self, generation: int) -> Iterator[int]:
        """Numbers for new VTEPs, in the order in which `apply` takes them."""
        ripe = takewhile(lambda freed: freed[0] + self._quarantine <= generation, self._free)
        return chain((number for _, number in ripe), count(self._next))

    def _is_plain(self, place: _Place, edit: Edit, ending: set[AdjacencyName]) -> bool:
        gone = {prefix16(s.prefix) for s in edit.gone}
        come = [prefix16(s.prefix) for s in edit.come]
        new = set(come) - gone
        others = [self._places[member.name].subnets for member in place.domain[1:]]
        return (
            all(place.subnets.get(prefix16(s.prefix)) is s for s in edit.gone)
            and not any(span in spans for span in chain(gone, come) for spans in place.fixed)
            and all(s.keys().isdisjoint(new) for s in (place.subnets, *others))
            and not place.network.direct_subnets  # which no tunnel has to fit
            and not any(self._may_change_mtu(s.provider_address) for s in (*edit.gone, *edit.come))
            and self._vteps_are_plain(place, edit.come, ending)
        )

    def _may_change_mtu(self, provider: IP) -> bool:
        """Where IPv4 is the rule, one VTEP over IPv6 makes less room for all (`defaults.mtu`)."""
        own = self._underlay
        return own.address.version == 4 and own.address6 is not None and provider.version == 6

    def _vteps_are_plain(
        self, place: _Place, come: Iterable[RemoteSubnet], ending: set[AdjacencyName]
    ) -> bool:
        """Each has one MAC, that of before unless nothing is behind it any more."""
        macs: dict[IP, Mac] = {}
        for subnet in come:
            provider, mac = subnet.provider_address, subnet.dr_mac
            known = place.dr_macs.get(provider, mac)
            if known != mac:
                before = AdjacencyName.of(place.network.vni, provider, known)
                if before in self._numbers and before not in ending:
                    return False
            if macs.setdefault(provider, mac) != mac or any(vtep(subnet, self._underlay, ())):
                return False
        return True

    # ---- changing ------------------------------------------------------------------------------

    def announce(self, step: Step) -> None:
        """Names what is new, before anything can be judged by it."""
        self._names.update((new.id, new.name) for new in step.new)

    def apply(self, step: Step, generation: int) -> None:
        """The step was taken; `generation`: the one it led to."""
        for number, name, _, _ in step.new:
            self._numbers[name] = number
            if self._free and self._free[0][1] == number:
                self._free.popleft()
            else:
                self._next = number + 1
        for name, number in step.gone:
            del self._numbers[name]
            self._free.append((generation, number))
        for edit in step.edits:
            place = self._place(edit.network)
            for subnet in edit.gone:
                del place.subnets[prefix16(subnet.prefix)]
            for subnet in edit.come:
                place.subnets[prefix16(subnet.prefix)] = subnet
                place.dr_macs[subnet.provider_address] = subnet.dr_mac


def _place(network: Network, node: Node, path: Path, made: Memo, found: Memo) -> _Place:
    domain, sound = domain_of(network, node), found.kept(path, NOTHING)
    own = dict.fromkeys(prefix16(p) for n in domain for p in n.prefixes)
    owners = chain.from_iterable(local_owners(n, node, made) for n in domain)
    return _Place(
        network=network,
        path=path,
        domain=domain,
        fixed=(own, *(spans for _, spans in owners)),
        subnets=dict(sound.by_prefix),
        dr_macs=dict(sound.dr_macs),
    )
