"""Counters, and their rates."""

import time
from typing import Any

from dataplane.api.client import Client
from dataplane.tables import table
from dataplane.verbs.base import OK, Value, show
from dataplane.verbs.look import get


def stats(client: Client, what: str | None, rate: float | None, form: str) -> int:
    """Counters, or their rates over some seconds."""
    if what in ("peers", "layers"):
        return get(client, what, form)
    before = None
    if rate is not None:
        before = client.stats()
        time.sleep(rate)
    now = client.stats()
    if form != "text":
        show(_rates(before, now) if before else now, form)
        return OK
    tables = [what] if what else ["ports", "drops", "totals"]
    for name in tables:
        print("\n".join(_TABLES[name](client, before, now)))
    if what is None:
        from dataplane.report import law

        print(f"law    {law(now['totals'])}")
    return OK


def _rates(before: Value, now: Value) -> Value:
    """Of each counter, what it moved a second."""
    seconds = (now["now_ns"] - before["now_ns"]) / 1e9 or 1.0

    def rate(old: Any, new: Any) -> Any:
        if isinstance(new, dict):
            return {
                k: rate(old.get(k) if isinstance(old, dict) else None, v) for k, v in new.items()
            }
        if isinstance(new, int) and not isinstance(new, bool):
            return round((new - (old or 0)) / seconds, 1)
        return new

    return {k: rate(before.get(k), v) for k, v in now.items() if k != "now_ns"} | {
        "seconds": round(seconds, 3)
    }


def _counted(before: Value | None, now: Value, section: str) -> Value:
    counted: Value = (_rates(before, now) if before else now)[section]
    return counted


def _ports(client: Client, before: Value | None, now: Value) -> list[str]:
    found = _counted(before, now, "ports")
    fields = list(next(iter(found.values()), {}))
    unit = "/s" if before else ""
    lines = [(f"port{unit}", *fields)]
    return table([*lines, *((name, *(c[f] for f in fields)) for name, c in found.items())])


def _io(client: Client, before: Value | None, now: Value) -> list[str]:
    found = _counted(before, now, "io")
    fields = list(next(iter(found.values()), {}))
    return table([("io", *fields), *((n, *(c[f] for f in fields)) for n, c in found.items())])


def _drops(client: Client, before: Value | None, now: Value) -> list[str]:
    """Those that counted, with what they mean."""
    rates = _counted(before, now, "reasons") if before else {}
    items = [item for item in client.get("drops") if item["count"]]
    head = ("REASON", "LAYER", "COUNT", *(("RATE/s",) if before else ()), "MEANS")
    rows = [
        (
            item["name"],
            item["layer"],
            item["count"],
            *((rates.get(item["name"], 0.0),) if before else ()),
            item["means"],
        )
        for item in items
    ]
    return table([head, *rows]) if rows else []


def _totals(client: Client, before: Value | None, now: Value) -> list[str]:
    unit = "total/s" if before else "total"
    return table([(unit, name, n) for name, n in _counted(before, now, "totals").items()])


_TABLES = {"ports": _ports, "io": _io, "drops": _drops, "totals": _totals}
