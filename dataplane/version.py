"""Versions: a policy, and what edits made of it: put together when somebody asks.

An edit of one remote subnet must not cost as much as all of them, so nobody makes the tuple anew.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from dataplane.model import Network, Node, RemoteSubnet

LONGEST = 4096  # edits on top of one another before they are put together anyway

Nodes = tuple[Node, Node]


class Edit(NamedTuple):
    """Remote subnets of a network that go, and what comes behind those that stay.

    Who goes is the same object as in the policy.
    """

    network: str
    gone: tuple[RemoteSubnet, ...]
    come: tuple[RemoteSubnet, ...]


class _Since(NamedTuple):
    parent: "Version"
    edits: tuple[Edit, ...]


class Version:
    """One policy, as it was given and with its defaults filled in (`given`, `resolved`)."""

    __slots__ = ("_depth", "_state")

    def __init__(self, given: Node, resolved: Node) -> None:
        self._state: Nodes | _Since = given, resolved  # swapped at once: threads look on
        self._depth = 0

    def edited(self, edits: tuple[Edit, ...]) -> "Version":
        if self._depth == LONGEST:
            self._nodes()
        made = Version.__new__(Version)
        made._state, made._depth = _Since(self, edits), self._depth + 1
        return made

    @property
    def given(self) -> Node:
        return self._nodes()[0]

    @property
    def resolved(self) -> Node:
        return self._nodes()[1]

    def _nodes(self) -> Nodes:
        behind: list[tuple[Edit, ...]] = []
        state = self._state
        while isinstance(state, _Since):
            behind.append(state.edits)
            state = state.parent._state
        if behind:
            given, resolved = state
            edits = [edit for edits in reversed(behind) for edit in edits]
            state = _with(given, edits), _with(resolved, edits)
            self._state, self._depth = state, 0
        return state


def _with(node: Node, edits: Iterable[Edit]) -> Node:
    gone: dict[str, set[int]] = {}
    come: dict[str, dict[int, RemoteSubnet]] = {}
    for edit in edits:
        went = gone.setdefault(edit.network, set())
        came = come.setdefault(edit.network, {})
        for subnet in edit.gone:
            if came.pop(id(subnet), None) is None:
                went.add(id(subnet))
        came.update((id(subnet), subnet) for subnet in edit.come)

    def changed(network: Network) -> Network:
        if network.name not in gone:
            return network
        went, came = gone[network.name], come[network.name]
        stay = [s for s in network.remote_subnets if id(s) not in went]
        return replace(network, remote_subnets=(*stay, *came.values()))

    return replace(node, networks=tuple(map(changed, node.networks)))
