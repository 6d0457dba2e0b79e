"""What a shell completes in commands of a running node; without a node, in silence, no names."""

import contextlib
from collections.abc import Iterable
from typing import Any

import click

PATIENCE = 0.5  # seconds until a node that is busy is not waited for: somebody has pressed a key
PARTS = ("endpoints", "remote-subnets", "direct-subnets", "acls", "load-balancers")
SUMS = ("pair", "src", "dst", "proto", "vni", "endpoint", "peer")


def kinds(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Of what `get` lists."""
    from dataplane.verbs.base import KINDS

    return _beginning(KINDS, begun)


def removable(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Kinds of objects of a policy."""
    return _beginning(("networks", *PARTS), begun)


def names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Of the kind that stands before."""
    return _beginning((item["name"] for item in _listed(context)), begun)


def removable_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Of the document's own objects of the kind that stands before; an endpoint's ACLs are its."""
    items = _listed(context)
    own = (i for i in items if i.get("origin") == "document" and "/" not in i.get("group", ""))
    return _beginning((item["name"] for item in own), begun)


def peers(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Provider addresses."""
    return _beginning((item["name"] for item in _listed(context, "peers")), begun)


def _listed(context: click.Context, kind: str | None = None) -> list[dict[str, Any]]:
    """Of the node and the kind that the line names. Nothing where none answers at once."""
    from dataplane.api.client import Client
    from dataplane.api.sockets import find_socket
    from dataplane.errors import DataplaneError
    from dataplane.verbs.base import kind_of

    with contextlib.suppress(DataplaneError):
        path = context.params.get("socket") or find_socket(context.params.get("node"))
        with Client(path, timeout=PATIENCE) as client:
            return client.get(kind_of(kind or context.params.get("kind") or ""))
    return []


def _beginning(words: Iterable[str], begun: str) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(begun)]
