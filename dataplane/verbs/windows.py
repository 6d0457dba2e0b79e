"""Documents of HNS into a node's policy and out of it."""

import sys
from collections.abc import Iterable

from dataplane.api.client import Client
from dataplane.hns.calls import calls_of
from dataplane.hns.normal import OBJECTS
from dataplane.tables import table
from dataplane.verbs.base import OK, read, show


def hns_import(client: Client, files: Iterable[str], form: str) -> int:
    """One line for each call; the documents as they are reported with -o json."""
    calls = [call for file in files for call in calls_of(*read(file))]
    answers = client.hns("POST", "batch", calls)
    if form == "json":
        show(answers, form)
        return OK
    for call, answer in zip(calls, answers, strict=True):
        name = answer.get("Name") or answer.get("ID", "")
        print(f"{call['Method']} {call['Path']}: {name}")
    return OK


def hns_export(client: Client) -> int:
    """What could not be said goes to stderr."""
    told = client.hns("GET", "export")
    show(told["Calls"], "json")
    for lost in told["Lost"]:
        print(f"HNS has no word for {lost}", file=sys.stderr)
    return OK


def hns_list(client: Client, kind: str | None, form: str) -> int:
    """ID, name and kind of each object."""
    kinds = [kind] if kind else list(OBJECTS)
    found = {kind: client.hns("GET", kind) for kind in kinds}
    if form == "json":
        show(found, form)
        return OK
    rows = [[k, item["ID"], item.get("Name", "")] for k, items in found.items() for item in items]
    print("\n".join(table([("KIND", "ID", "NAME"), *rows])))
    return OK
