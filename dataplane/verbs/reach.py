"""The way to a peer: how large packets may be on it, and whether it answers."""

import json
import time
from typing import Any

from dataplane import columns
from dataplane.api.client import Client
from dataplane.errors import MissingError
from dataplane.verbs.base import OK, PROBLEM, Value, show


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
