"""What a node has now: objects, flows, the walk of a packet, the graph."""

import sys
import time
from collections.abc import Iterator

from dataplane import columns
from dataplane.api.client import Client
from dataplane.verbs.base import OK, Value, kind_of, show


def get(client: Client, kind: str, form: str) -> int:
    """All of a kind."""
    kind = kind_of(kind)
    items = client.get(kind)
    if form in ("json", "yaml"):
        show({"apiVersion": "v1", "kind": kind, "items": items}, form)
    elif form == "name":
        print("\n".join(f"{kind}/{item['name']}" for item in items))
    else:
        print("\n".join(columns.rows(kind, items, form == "wide")))
    return OK


def watch(client: Client, kind: str, form: str, seconds: float) -> int:
    """All of a kind, again whenever they changed."""
    before = None
    while True:
        items = client.get(kind_of(kind))
        if items != before:
            get(client, kind, form)
            sys.stdout.flush()
        before = items
        time.sleep(seconds)


def describe(client: Client, kind: str, name: str, form: str) -> int:
    """One of a kind, field by field."""
    found = client.describe(kind_of(kind), name)
    if form != "text":
        show(found, form)
    else:
        print("\n".join(_fields(found, "")))
    return OK


def _fields(value: Value, indent: str) -> Iterator[str]:
    width = max(map(len, value), default=0)
    for name, item in value.items():
        if isinstance(item, dict):
            yield f"{indent}{name}:"
            yield from _fields(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield f"{indent}{name}:"
            yield from (f"{indent}  - {columns.cell(each)}" for each in item)
        else:
            yield f"{indent}{name + ':':<{width + 1}}  {columns.cell(item)}"


def flows(client: Client, filters: list[str], *, top: int, by: str | None, form: str) -> int:
    """The flow table, or its sums."""
    found = client.flows(filters, limit=top, by=by)
    if form in ("json", "yaml"):
        show(found, form)
        return OK
    kind = "sums" if by else "flows"
    print("\n".join(columns.rows(kind, found["items"], form == "wide")))
    what = by + "s" if by else "flows"
    print(f"{found['shown']} of {found['matched']} {what} shown; {found['flows']} flows in all")
    return OK


def trace(
    client: Client, packet: str, *, entry: str | None, vni: int | None, mermaid: bool, form: str
) -> int:
    """0 if the packet would be forwarded or answered, 1 if it would be dropped."""
    walk = client.trace(packet, entry, vni)
    if mermaid:
        print(walk["mermaid"])
    elif form == "json":
        show({k: v for k, v in walk.items() if k not in ("text", "mermaid")}, form)
    else:
        print(walk["text"])
    return int(walk["verdict"] == "drop")


def graph(client: Client, form: str) -> int:
    """Networks, endpoints and peers of the node."""
    print(client.graph(form).rstrip())
    return OK
