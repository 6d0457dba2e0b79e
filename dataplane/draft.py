"""Draft: a policy under change, for those who edit instead of declaring."""

from typing import Any, TypeVar

from msgspec.structs import replace

from dataplane.errors import DataplaneError
from dataplane.model import Endpoint, Network, Node

Named = TypeVar("Named", Network, Endpoint)


class Draft:
    """`node` is the policy so far; it may be replaced as a whole, or edited by the methods."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def network(self, name: str, **changes: Any) -> Network:
        """Changes fields of a network, and returns it as it is then.

        draft.network("blue", remote_subnets=draft.network("blue").remote_subnets + (subnet,))
        """
        networks, changed = _edit("network", self.node.networks, name, changes)
        self.node = replace(self.node, networks=networks)
        return changed

    def endpoint(self, network: str, name: str, **changes: Any) -> Endpoint:
        """Changes fields of an endpoint, and returns it as it is then."""
        endpoints, changed = _edit("endpoint", self.network(network).endpoints, name, changes)
        self.network(network, endpoints=endpoints)
        return changed


def _edit(
    kind: str, items: tuple[Named, ...], name: str, changes: dict[str, Any]
) -> tuple[tuple[Named, ...], Named]:
    done = {item.name: replace(item, **changes) if item.name == name else item for item in items}
    if name not in done:
        raise DataplaneError(f"no {kind} {name!r}; there are: {', '.join(done) or 'none'}")
    return tuple(done.values()), done[name]
