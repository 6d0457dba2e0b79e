"""Whether a node is well: at one look, finding by finding, and as a bundle for a report."""

from collections.abc import Iterator

from dataplane import columns
from dataplane.api.client import Client
from dataplane.verbs.base import OK, PROBLEM, Value, show

LEVELS = {"ok": "ok", "warning": "WARN", "failure": "FAIL"}


def status(client: Client, form: str) -> int:
    """0 if the node is ready, 1 if not."""
    told = client.status()
    if form != "text":
        show(told, form)
        return OK if told["ready"] else PROBLEM
    underlay, totals = told["underlay"], told["totals"]
    second = f" {underlay['address6']}" if underlay["address6"] else ""
    state = "ready" if told["ready"] else "NOT READY (dataplane doctor)"
    lines = [
        ("node", f"{told['node']}  {state}  pid {told['pid']}  up {columns.age(told['uptime'])}"),
        ("policy", f"generation {told['generation']}"),
        ("version", told["version"]),
        (
            "underlay",
            f"{underlay['address']}{second}  port {underlay['port']}  mtu {underlay['mtu']}",
        ),
        *((("xdp", underlay["xdp"]),) if underlay["xdp"] else ()),
        ("objects", ", ".join(_counted_in(told, "network", "endpoint", "remote subnet"))),
        ("flows", f"{totals['flows']} of {told['max_flows']}, {totals['bindings']} NAT bindings"),
        (
            "packets",
            f"{totals['rx']} in, {totals['forwarded']} forwarded, {totals['dropped']} dropped",
        ),
        ("workers", str(told["workers"])),
        *(("door", _door(door)) for door in told["doors"]),
    ]
    print("\n".join(f"{name:<9} {text}" for name, text in lines))
    return OK if told["ready"] else PROBLEM


def _door(door: Value) -> str:
    trouble = door["trouble"] or ("followed" if door["synced"] else "no answer so far")
    return f"{door['name']}  {'' if door['synced'] else 'NOT SYNCED  '}{trouble}"


def _counted_in(told: Value, *nouns: str) -> Iterator[str]:
    for noun in nouns:
        count = told[noun.replace(" ", "_") + "s"]
        yield f"{count} {noun}{'' if count == 1 else 's'}"


def bundle(client: Client, file: str) -> int:
    """Writes a tar file of all that a report of a fault should have."""
    from dataplane import bundle as support

    print(f"{file}: {', '.join(support.write(client, file))}")
    return OK


def doctor(client: Client, form: str) -> int:
    """0 if nothing is wrong, 1 if anything."""
    found = client.findings()
    wrong = [f for f in found if f["level"] != "ok"]
    if form != "text":
        show({"findings": found}, form)
        return int(bool(wrong))
    for finding in found:
        fix = f"   fix: {finding['fix']}" if finding["fix"] else ""
        print(f"{LEVELS[finding['level']]:<5} {finding['subject']:<9} {finding['message']}{fix}")
    failures = sum(f["level"] == "failure" for f in found)
    print(f"{failures} failures, {len(wrong) - failures} warnings")
    return int(bool(wrong))
