"""Single objects of a policy put and deleted, as the API's paths name them. Pure."""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from dataplane.convert import FAULTY, Converter
from dataplane.document import read_tree
from dataplane.errors import DocumentError, Fault, MissingError
from dataplane.model import LISTS, Network, Node
from dataplane.tree import Complaint, Tree, path_text

PARTS = {field.replace("_", "-"): field for field in LISTS}  # by their word in a path


def put(node: Node, path: Mapping[str, str], body: bytes) -> Node:
    """The node with the object as the body says, new or in place of the old one.

    Raises DocumentError, MissingError.
    """
    if "part" not in path:
        network = made(body, Network, "name", path["network"])
        return replace(node, networks=_with(node.networks, network, "name"))
    network, field = _network(node, path["network"]), _field(path["part"])
    kind, key = LISTS[field]
    items = _with(getattr(network, field), made(body, kind, key, path["name"]), key)
    return _replaced(node, replace(network, **{field: items}))


def delete(node: Node, path: Mapping[str, str]) -> Node:
    """The node without the object. Raises MissingError."""
    if "part" not in path:
        return replace(node, networks=_without(node.networks, "name", path["network"]))
    network, field = _network(node, path["network"]), _field(path["part"])
    items = _without(getattr(network, field), LISTS[field].key, path["name"])
    return _replaced(node, replace(network, **{field: items}))


def made(body: bytes, kind: type[Any], key: str, name: str) -> Any:
    """The object of a body, which need not repeat its name. Raises DocumentError."""
    converter = Converter()
    try:
        tree, complaints = read_tree(body)
        if isinstance(tree.value, dict):
            tree.value.setdefault(key, Tree(name, 1))
        item = converter.make(tree, kind)
        complaints += converter.complaints
    except Complaint as stop:
        item, complaints = FAULTY, [*converter.complaints, stop]
    if item is not FAULTY and str(getattr(item, key)) != name:
        complaints.append(Complaint((key,), f"is {getattr(item, key)}, but the path says {name}"))
    if complaints:
        faults = (Fault("body", c.line, path_text(c.path), c.message, c.fix) for c in complaints)
        raise DocumentError(tuple(faults))
    return item


def _with(items: tuple[Any, ...], item: Any, key: str) -> tuple[Any, ...]:
    name = getattr(item, key)
    if any(getattr(old, key) == name for old in items):
        return tuple(item if getattr(old, key) == name else old for old in items)
    return (*items, item)


def _without(items: tuple[Any, ...], key: str, name: str) -> tuple[Any, ...]:
    kept = tuple(item for item in items if str(getattr(item, key)) != name)
    if len(kept) == len(items):
        raise MissingError(f"there is no {name!r}")
    return kept


def _network(node: Node, name: str) -> Network:
    for network in node.networks:
        if network.name == name:
            return network
    raise MissingError(f"there is no network {name!r}")


def _field(part: str) -> str:
    if part not in PARTS:
        raise MissingError(f"a network has no {part!r}, but: {', '.join(PARTS)}")
    return PARTS[part]


def _replaced(node: Node, network: Network) -> Node:
    return replace(node, networks=_with(node.networks, network, "name"))
