"""Documents into a node's policy and out of it; objects removed; a successor for its process."""

import sys
from collections.abc import Iterable, Iterator

from dataplane.api.client import Client
from dataplane.verbs.base import OK, Value, kind_of, read, show


def apply(
    client: Client, file: str, *, prune: bool, dry_run: bool, base: int | None, form: str
) -> int:
    """Commits a document; one line for each object that changes."""
    text, name = read(file)
    done = client.apply(text, name=name, prune=prune, dry_run=dry_run, base=base)
    if form != "text":
        show(done, form)
        return OK
    for line in _changes(done["changes"]):
        print(line)
    for warning in done["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(_summary(done))
    return OK


def diff(client: Client, file: str, *, prune: bool, form: str) -> int:
    """0 if the document would change nothing, 1 if something."""
    text, name = read(file)
    plan = client.apply(text, name=name, prune=prune, dry_run=True)
    if form != "text":
        show(plan, form)
        return int(plan["changed"])
    for change in plan["changes"]:
        whole = f"{change['kind']}/{change['name']}"
        if change["verb"] in ("removed", "changed"):
            print(f"- {whole:<30}  {change['before']}")
        if change["verb"] in ("created", "changed"):
            print(f"+ {whole:<30}  {change['after']}")
    return int(plan["changed"])


def export(client: Client, form: str) -> int:
    """The committed policy, as `apply` takes it."""
    if form == "json":
        show(client.policy(), form)
    else:
        print(client.export(), end="")
    return OK


def delete(client: Client, kind: str, name: str, form: str) -> int:
    """Removes one object: NETWORK, or NETWORK/NAME of an endpoint and so on."""
    kind, (network, _, rest) = kind_of(kind), name.partition("/")
    done = client.delete(network) if kind == "networks" else client.delete(network, kind, rest)
    if form != "text":
        show(done, form)
        return OK
    print("\n".join([*_changes(done["changes"]), _summary(done)]))
    return OK


def restart(client: Client, form: str) -> int:
    """Returns when the new process serves."""
    told = client.restart()
    if form != "text":
        show(told, form)
    else:
        print(f"pid {told['pid']} took over, generation {told['generation']}")
    return OK


def _changes(changes: Iterable[Value]) -> Iterator[str]:
    for change in changes:
        told = change["after"] or change["before"]
        if change["verb"] == "changed" and change["before"] != change["after"]:
            told = f"{change['before']} -> {change['after']}"
        yield f"{change['kind'] + '/' + change['name']:<30}  {change['verb']:<9}  {told}"


def _summary(done: Value) -> str:
    count = len(done["changes"])
    objects = f"{count} object{'' if count == 1 else 's'} changed"
    if not done["changed"]:
        return f"generation {done['generation']} stays, nothing changed"
    if done["dry_run"]:
        return f"generation {done['base']} -> {done['base'] + 1}, {objects}, not applied (dry run)"
    took = f"applied in {done['seconds'] * 1e3:.1f} ms"
    return f"generation {done['base']} -> {done['generation']}, {objects}, {took}"
