"""Merging: a policy that names some settings, laid over one that stands. Pure.

What is not named stays. The model cannot tell what a document leaves out from what it gives its
default, so a field with its default is not named: only a policy that is put whole (`--prune`), or
its network that is (PUT), sets it back.

The node, its networks by name, and single objects in them (timers, wire, outbound_nat, …) are
merged field by field. Of a network's lists of objects each that is named, endpoints, ACLs and load
balancers by name, remote and direct subnets by prefix, is as the upper policy says, whole; what is
direct now is no longer remote, and the other way round. Other lists are values.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import NODEFAULT
from msgspec.structs import FieldInfo, fields, replace

from dataplane.model import LISTS, Model, Network, Node

Object = TypeVar("Object", bound=Model)
Both = Callable[[Any, Any], Any]


def merge(lower: Node, upper: Node) -> Node:
    """Of two policies of one node."""
    made = _merged(lower, upper)
    moved = {n.name: n for n in upper.networks if n.remote_subnets or n.direct_subnets}
    if not moved:
        return made
    networks = (_moved(n, moved[n.name]) if n.name in moved else n for n in made.networks)
    return replace(made, networks=tuple(networks))


def _moved(made: Network, upper: Network) -> Network:
    """A prefix that is direct now is no longer remote, and the other way round."""
    direct = {s.prefix for s in upper.direct_subnets}
    remote = {s.prefix for s in upper.remote_subnets} - direct
    return replace(
        made,
        remote_subnets=tuple(s for s in made.remote_subnets if s.prefix not in direct),
        direct_subnets=tuple(s for s in made.direct_subnets if s.prefix not in remote),
    )


def _merged(lower: Object, upper: Object) -> Object:
    named = {
        field.name: _laid(type(upper), field.name)(getattr(lower, field.name), value)
        for field in fields(upper)
        if (value := getattr(upper, field.name)) != _default(field)
    }
    return replace(lower, **named)


def _default(field: FieldInfo) -> Any:
    """NODEFAULT, which equals nothing else, where it is required."""
    return field.default if field.default_factory is NODEFAULT else field.default_factory()


def _laid(kind: type[Model], field: str) -> Both:
    """How a value of the field is laid over another."""
    if kind not in KNOWN or field not in KNOWN[kind]:
        return _value
    key, both = KNOWN[kind][field]
    return lambda lower, upper: _over(lower, upper, key, both)


def _value(lower: Any, upper: Any) -> Any:
    return _merged(lower, upper) if isinstance(lower, Model) else upper


def _whole(lower: Any, upper: Any) -> Any:
    return upper


KNOWN: dict[type[Model], dict[str, tuple[str, Both]]] = {  # lists whose objects have names
    Node: {"networks": ("name", _merged)},
    Network: {field: (of.key, _whole) for field, of in LISTS.items()},
}


def _over(lower: tuple[Any, ...], upper: tuple[Any, ...], key: str, both: Both) -> tuple[Any, ...]:
    """In the order of `lower`, what is new behind it."""
    fresh = {getattr(item, key): item for item in upper}
    kept = (
        both(item, fresh.pop(name)) if (name := getattr(item, key)) in fresh else item
        for item in lower
    )
    return (*kept, *fresh.values())
