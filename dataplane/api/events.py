"""What is seen on a node, as events of plain values and as packets of a capture."""

import functools
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dataplane.api.flow_table import told
from dataplane.engine import Engine
from dataplane.ids import UNDERLAY
from dataplane.observe import Seen
from dataplane.packet_describe import describe
from dataplane.pcap import Packet

Event = dict[str, Any]
FRAME_POINTS = ("rx", "tx", "drop", "encap", "decap")  # of captures
POINTS = ("drop", "new", "end")  # of events that frames cause
NOWHERE = "none"  # the interface of what has no port
KINDS = (*POINTS, "config", "peers")
MEANS = {
    "drop": "a packet was dropped",
    "new": "a flow began",
    "end": "a flow was forgotten",
    "config": "a policy was committed",
    "peers": "a peer came, fell silent or left the policy",
}


def stamp(wall_ns: int) -> str:
    """RFC 3339, in UTC."""
    return f"{_second(wall_ns // 1_000_000_000)}.{wall_ns // 1000 % 1_000_000:06d}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def wall_ns(engine: Engine, now_ns: int) -> int:
    """An engine's time as that of the wall."""
    return time.time_ns() - engine.clock.now_ns() + now_ns


def event_of(seen: Seen, engine: Engine, vnis: Mapping[str, int], port: int) -> Event:
    """`vnis`: of endpoints' networks, by port name; `port`: VXLAN's."""
    event: Event = {"time": stamp(wall_ns(engine, seen.now_ns)), "kind": seen.point}
    if seen.flow is not None:
        return event | told(seen.flow, seen.now_ns)
    found = describe(seen.frame, port, seen.length) if seen.frame else {"text": ""}
    outer = found.get("outer")
    vni = outer.get("vni") if isinstance(outer, dict) else None
    sides = {key: found.get(key) for key in ("src", "sport", "dst", "dport")}
    event |= {"vni": vni if vni is not None else vnis.get(seen.in_port or "")}
    event |= {"protocol": found.get("proto"), **sides}
    event |= {"in_port": seen.in_port, "out_port": seen.out_port, "provider": None}
    if isinstance(outer, dict):
        event["provider"] = outer.get("src") if seen.in_port == UNDERLAY else outer.get("dst")
    event |= {"rule": seen.rule, "generation": seen.generation}
    event |= {"length": seen.length, "packets": seen.packets, "text": found.get("text", "")}
    if seen.point == "drop":
        event |= {"reason": str(seen.reason), "layer": seen.reason.layer}
        event |= {"means": seen.reason.sentence}
    return event


def packet_of(seen: Seen, engine: Engine, snap: int, lost: int) -> Packet:
    """With the port as its interface, and why it was dropped as its comment.

    `snap`: bytes of the frame that are kept. `lost`: how many before it, which the comment says.
    """
    port = seen.in_port if seen.point in ("rx", "drop", "new") else seen.out_port
    return Packet(
        time_ns=wall_ns(engine, seen.now_ns),
        data=seen.frame[:snap],
        interface=port or NOWHERE,
        comment=_comment(seen) + (f" lost={lost}" if lost else ""),
        length=seen.length,
    )


def _comment(seen: Seen) -> str:
    words = [seen.point]
    if seen.point == "drop":
        words += [f"layer={seen.reason.layer}", f"reason={seen.reason}"]
    words += [
        f"{name}={value}"
        for name, value in (("rule", seen.rule), ("in", seen.in_port), ("out", seen.out_port))
        if value is not None
    ]
    return " ".join(words)
