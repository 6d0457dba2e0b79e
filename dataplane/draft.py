"""Draft: a policy under change, for those who edit instead of declaring."""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from dataplane.address import Prefix
from dataplane.errors import DataplaneError
from dataplane.model import Endpoint, Network, Node, RemoteSubnet
from dataplane.version import Edit, Version

Named = TypeVar("Named", Network, Endpoint)
Finder = Callable[[str, Prefix], RemoteSubnet | None]  # in a network; None: it has none such


class Draft:
    """`node` is the policy so far; it may be replaced as a whole, or edited by the methods.

    Remote subnets that are added and removed cost no more than they are, as long as nothing else is
    changed and nobody asks for the node.
    """

    def __init__(self, version: Version, base: int, find: Finder) -> None:
        """`base`: the generation of the version, whose remote subnets `find` finds."""
        self.base = base
        self._version = version
        self._find = find
        self._gone: dict[str, dict[Prefix, RemoteSubnet]] = {}
        self._come: dict[str, list[RemoteSubnet]] = {}
        self._node: Node | None = None

    @property
    def node(self) -> Node:
        if self._node is None:
            self._node = self._version.edited(self.edits or ()).given
        return self._node

    @node.setter
    def node(self, node: Node) -> None:
        self._node = node

    @property
    def edits(self) -> tuple[Edit, ...] | None:
        """All that was changed; None: more than remote subnets may have been."""
        if self._node is not None:
            return None
        names = dict.fromkeys((*self._gone, *self._come))
        edits = (
            Edit(n, tuple(self._gone.get(n, {}).values()), tuple(self._come.get(n, ())))
            for n in names
        )
        return tuple(edit for edit in edits if edit.gone or edit.come)

    def add(self, network: str, *subnets: RemoteSubnet) -> None:
        """Puts remote subnets into a network, behind those it has. Raises DataplaneError."""
        if self._node is not None:
            self.network(network, remote_subnets=(*self._subnets(network), *subnets))
            return
        for subnet in subnets:
            self._find(network, subnet.prefix)  # raises where there is no such network
            self._come.setdefault(network, []).append(subnet)

    def remove(self, network: str, *prefixes: Prefix) -> None:
        """Takes remote subnets out of a network. Raises DataplaneError where it has none such."""
        for prefix in prefixes:
            if self._node is not None:
                self._remove_from_node(network, prefix)
            else:
                self._remove(network, prefix)

    def network(self, name: str, **changes: Any) -> Network:
        """Changes fields of a network, and returns it as it is then.

        draft.network("blue", mtu=1400)
        """
        networks, changed = _edit("network", self.node.networks, name, changes)
        self.node = replace(self.node, networks=networks)
        return changed

    def endpoint(self, network: str, name: str, **changes: Any) -> Endpoint:
        """Changes fields of an endpoint, and returns it as it is then."""
        endpoints, changed = _edit("endpoint", self.network(network).endpoints, name, changes)
        self.network(network, endpoints=endpoints)
        return changed

    def _remove(self, network: str, prefix: Prefix) -> None:
        """Of the policy, of what this draft had added, or of both."""
        found = self._find(network, prefix)
        gone, come = self._gone.setdefault(network, {}), self._come.get(network, [])
        kept = [subnet for subnet in come if subnet.prefix != prefix]
        stands = found is not None and prefix not in gone
        if not stands and len(kept) == len(come):
            raise _no_subnet(network, prefix)
        if found is not None:
            gone[prefix] = found
        self._come[network] = kept

    def _remove_from_node(self, network: str, prefix: Prefix) -> None:
        subnets = self._subnets(network)
        kept = tuple(subnet for subnet in subnets if subnet.prefix != prefix)
        if len(kept) == len(subnets):
            raise _no_subnet(network, prefix)
        self.network(network, remote_subnets=kept)

    def _subnets(self, network: str) -> tuple[RemoteSubnet, ...]:
        return self.network(network).remote_subnets


def _no_subnet(network: str, prefix: Prefix) -> DataplaneError:
    return DataplaneError(f"no remote subnet {prefix} in network {network!r}")


def _edit(
    kind: str, items: tuple[Named, ...], name: str, changes: dict[str, Any]
) -> tuple[tuple[Named, ...], Named]:
    done = {item.name: replace(item, **changes) if item.name == name else item for item in items}
    if name not in done:
        raise DataplaneError(f"no {kind} {name!r}; there are: {', '.join(done) or 'none'}")
    return tuple(done.values()), done[name]
