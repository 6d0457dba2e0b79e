"""Commands that ask or change a running node, over its control socket; their exit codes."""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from dataplane import columns
from dataplane.api.client import Client
from dataplane.api.sockets import find_socket
from dataplane.errors import DataplaneError, MissingError, PortError
from dataplane.hns.calls import calls_of
from dataplane.hns.normal import OBJECTS
from dataplane.tables import table

Value = dict[str, Any]
OK, PROBLEM = 0, 1
ALIASES = {
    "network": "networks",
    "net": "networks",
    "endpoint": "endpoints",
    "ep": "endpoints",
    "remote-subnet": "remote-subnets",
    "rs": "remote-subnets",
    "peer": "peers",
    "route": "routes",
    "acl": "acls",
    "rule": "acls",
    "rules": "acls",
    "nat": "nats",
    "load-balancer": "load-balancers",
    "lb": "load-balancers",
    "layer": "layers",
    "drop": "drops",
    "port": "ports",
    "neighbour": "neigh",
    "neighbor": "neigh",
    "mtu": "mtus",
}


def connect(node: str | None, socket: str | None) -> Client:
    """Raises NoNodeError."""
    return Client(socket if socket is not None else find_socket(node))


def kind_of(word: str) -> str:
    """Raises DataplaneError."""
    kind = ALIASES.get(word.lower(), word.lower())
    if kind not in columns.KINDS or kind in ("flows", "sums"):
        known = ", ".join(k for k in columns.KINDS if k not in ("flows", "sums"))
        raise DataplaneError(f"no kind {word!r}; there are: {known}")
    return kind


def show(value: Any, form: str) -> None:
    """As JSON or YAML."""
    if form == "json":
        print(json.dumps(value, indent=1))
        return
    import yaml

    print(yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100), end="")


# ---- policy ------------------------------------------------------------------------------------


def apply(
    client: Client, file: str, *, prune: bool, dry_run: bool, base: int | None, form: str
) -> int:
    """Commits a document; one line for each object that changes."""
    text, name = _read(file)
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
    text, name = _read(file)
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


def hns_import(client: Client, files: Iterable[str], form: str) -> int:
    """One line for each call; the documents as they are reported with -o json."""
    calls = [call for file in files for call in calls_of(*_read(file))]
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


def _read(file: str) -> tuple[bytes, str]:
    if file == "-":
        return sys.stdin.buffer.read(), "stdin"
    try:
        with open(file, "rb") as stream:
            return stream.read(), file
    except OSError as error:
        raise DataplaneError(f"{file}: cannot be read: {error.strerror}") from None


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


# ---- looking -----------------------------------------------------------------------------------


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


def mtu(client: Client, peer: str | None, form: str) -> int:
    """Of all peers or one. 1 where a network's packets are too large for the way."""
    items = [item for item in client.get("mtus") if peer in (None, item["peer"])]
    if not items:
        raise MissingError(f"no peer {peer}: dataplane get peers" if peer else "no peers")
    if form != "text":
        show(items, form)
    else:
        print("\n".join(columns.rows("mtus", items)))
    return int(any(item["largest"] < item["network"] for item in items))


def ping_peer(
    client: Client, peer: str, *, count: int, seconds: float, form: str, **asked: Any
) -> int:
    """0 if an answer came, 1 if none."""
    times, sent = [], 0
    while sent < count or not count:
        if sent:
            time.sleep(seconds)
        sent += 1
        got = client.ping(peer, sequence=sent & 0xFFFF, **asked)
        if form != "text":
            print(json.dumps(got), flush=True)
        else:
            head = [f"PING {got['to']} behind {peer} from {got['from']}"] if sent == 1 else []
            print("\n".join([*head, _echo(got)]), flush=True)
        times += [got["milliseconds"]] if got["answer"] == "reply" else []
    if form == "text":
        lost = 100 * (sent - len(times)) // sent
        print(f"{sent} sent, {len(times)} answered, {lost} % lost")
        if times:
            mean = sum(times) / len(times)
            print(f"rtt min/avg/max {min(times):.3f}/{mean:.3f}/{max(times):.3f} ms")
    return OK if times else PROBLEM


def _echo(got: Value) -> str:
    if got["answer"] == "reply":
        octets = f"{got['size'] + 8} bytes from {got['by']}"
        return f"{octets}: seq={got['sequence']} time={got['milliseconds']:.3f} ms"
    told = {
        "too_big": "too big" + (f": the way carries {got['mtu']}" if got["mtu"] else ""),
        "unreachable": f"unreachable, says {got['by']}",
        "refused": "the endpoint's kernel has no route",
        "none": "no answer",
    }
    return f"seq={got['sequence']} {told[got['answer']]}"


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


# ---- the web page ------------------------------------------------------------------------------


def ui(client: Client, listen: str, snapshot: str | None) -> int:
    """Serves the page to a browser of this host; or writes it, with what the node says now."""
    if snapshot is not None:
        return _snapshot(client, snapshot)
    from dataplane.api.bridge import Bridge

    client.status()  # a node that is not there is said now
    with contextlib.closing(Bridge(client.path, listen)) as bridge:
        print(bridge.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            bridge.run()
    return OK


def _snapshot(client: Client, file: str) -> int:
    from dataplane.api import page

    first = {path: client.ask(f"/{path}") for path in page.ASKED}
    time.sleep(1)
    answers = {path: [answer, client.ask(f"/{path}")] for path, answer in first.items()}
    text = page.snapshot(answers, time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    if file == "-":
        print(text, end="")
        return OK
    try:
        with open(file, "w") as out:
            out.write(text)
    except OSError as error:
        raise PortError(f"{file}: {error.strerror}") from None
    return OK


# ---- as it happens -----------------------------------------------------------------------------


def monitor(
    client: Client, kinds: tuple[str, ...], filters: list[str], *, count: int, form: str
) -> int:
    """One line for each event, until `count` of them came."""
    for event in client.events(kinds, filters):
        if event["kind"] == "listening":
            continue
        line = json.dumps(event) if form == "json" else _event_line(event)
        print(line, flush=True)
        count -= event["kind"] != "lost"
        if count == 0:
            break
    return OK


def _event_line(event: Value) -> str:
    """The moment, the kind, and what makes it out."""
    kind = event["kind"]
    if kind == "lost":
        return f"{event['count']} events lost: they came faster than they were read"
    begin = f"{event['time'][11:23]}  {kind:<6}"
    if kind == "config":
        return f"{begin}  generation {event['generation']}  {len(event['changes'])} objects changed"
    if kind == "peers":
        return f"{begin}  {event['name']}  {event['before'] or '-'} -> {event['state']}"
    way = f"{event['in_port'] or '-'} > {event['out_port'] or '-'}"
    vni = f"vni {event['vni']}" if event["vni"] is not None else "vni -"
    rule = f"  rule {event['rule']}" if event["rule"] else ""
    if kind == "end":
        sides = f"{event['protocol']} {event['src']}:{event['sport']} > "
        sides += f"{event['dst']}:{event['dport']}"
        return f"{begin}  {vni}  {sides}  {event['packets']} packets  {event['bytes']} bytes{rule}"
    told = f"{begin}  {vni}  {event['text'] or 'a packet'}  {way}"
    if kind == "drop":
        return f"{told}  layer {event['layer']}  reason {event['reason']}{rule}"
    return f"{told}{rule}"


def trace_live(
    client: Client, filters: list[str], *, drops: bool, count: int, mermaid: bool, form: str
) -> int:
    """Walks of packets that begin flows, or are dropped, as they come."""
    kinds = ("drop",) if drops else ("drop", "new")
    for event in client.events(kinds, filters, frames=True):
        if not event.get("frame") or not event["in_port"]:
            continue
        walk = client.trace_frame(event["frame"], event["in_port"])
        if form == "json":
            print(json.dumps({"event": event, "walk": walk}), flush=True)
        else:
            print(walk["mermaid" if mermaid else "text"] + "\n", flush=True)
        count -= 1
        if count == 0:
            break
    return OK


def capture(
    client: Client,
    points: tuple[str, ...],
    filters: list[str],
    *,
    count: int,
    snap: int | None,
    file: str,
) -> int:
    """Writes pcapng into a file, or to stdout for a pipe into tshark."""
    with contextlib.ExitStack() as made:
        out = sys.stdout.buffer
        if file != "-":
            try:
                out = made.enter_context(open(file, "wb"))
            except OSError as error:
                raise PortError(f"{file}: {error.strerror}") from None
        try:
            for part in client.capture(points, filters, count=count, snap=snap):
                out.write(part)
                out.flush()
        except KeyboardInterrupt:
            return OK
    return OK


# ---- counters ----------------------------------------------------------------------------------

TABLES = ("ports", "layers", "drops", "peers", "io", "totals")


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


def top(
    client: Client,
    filters: list[str],
    *,
    plain: bool,
    seconds: float,
    count: int,
    form: str,
) -> int:
    """A live screen; plain, or as JSON, a block or a line for each moment."""
    from dataplane import top as moments

    if not plain and form == "text":
        from dataplane.top_screen import TopScreen

        TopScreen(lambda asked: moments.read(client, asked), seconds, filters).run()
        return OK
    before = moments.read(client, filters)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(seconds)
            now = moments.read(client, filters)
            told = moments.moment(before, now)
            print(json.dumps(told) if form == "json" else f"{moments.text(told)}\n", flush=True)
            before = now
            count -= 1
            if count == 0:
                break
    return OK


# ---- health ------------------------------------------------------------------------------------


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
    ]
    print("\n".join(f"{name:<9} {text}" for name, text in lines))
    return OK if told["ready"] else PROBLEM


def _counted_in(told: Value, *nouns: str) -> Iterator[str]:
    for noun in nouns:
        count = told[noun.replace(" ", "_") + "s"]
        yield f"{count} {noun}{'' if count == 1 else 's'}"


def bundle(client: Client, file: str) -> int:
    """Writes a tar file of all that a report of a fault should have."""
    from dataplane import bundle as support

    print(f"{file}: {', '.join(support.write(client, file))}")
    return OK


LEVELS = {"ok": "ok", "warning": "WARN", "failure": "FAIL"}


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
