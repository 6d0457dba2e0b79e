"""What happens, as it happens: events, walks and frames of real packets, a live screen."""

import contextlib
import json
import sys
import time

from dataplane.api.client import Client
from dataplane.errors import PortError
from dataplane.pcap import Tally
from dataplane.verbs.base import OK, Value


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
    """Writes pcapng into a file, or to stdout for a pipe into tshark; tells at its end how much."""
    tally = Tally()
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
                tally.add(part)
        except KeyboardInterrupt:
            pass
        finally:
            print(f"captured {tally.packets}, lost {tally.lost}", file=sys.stderr)
    return OK


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
