"""What a node does now, out of two readings of its API: rates, drops, busiest flows, peers."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dataplane.api.client import Client
from dataplane.columns import Column, age, cell, field, side
from dataplane.tables import table

Value = Mapping[str, Any]
LOOKED_AT = 500  # flows: those of the most packets, since they began
FLOW_KEY = ("vni", "protocol", "src", "sport", "dst", "dport", "in_port")


class Reading(NamedTuple):
    """What the API tells at one moment: /v1/stats, /v1/drops, /v1/flows and /v1/peers."""

    stats: Value
    drops: list[dict[str, Any]]
    flows: list[dict[str, Any]]
    peers: list[dict[str, Any]]


def read(client: Client, filters: Iterable[str] = ()) -> Reading:
    """`filters`: on the flows. Raises DataplaneError."""
    flows = client.flows(filters, limit=LOOKED_AT)["items"]
    return Reading(client.stats(), client.get("drops"), flows, client.get("peers"))


def moment(before: Reading, now: Reading) -> dict[str, Any]:
    """What happened in between, a second: packets and bits.

    Flows and peers that were not there before count from zero; what was reset counts nothing.
    `hit_share` is that of packets whose flow was known, or null without packets.
    """
    seconds = (now.stats["now_ns"] - before.stats["now_ns"]) / 1e9 or 1.0

    def rate(old: float, new: float) -> float:
        return round(max(new - old, 0) / seconds, 1)

    old, new = before.stats["totals"], now.stats["totals"]
    looked_up = [max(new[name] - old[name], 0) for name in ("hits", "misses")]
    told: dict[str, Any] = {"node": now.stats["node"], "seconds": round(seconds, 3)}
    for way in ("rx", "tx"):
        frames, octets = (
            [
                sum(port[f"{way}_{unit}"] for port in r.stats["ports"].values())
                for r in (before, now)
            ]
            for unit in ("frames", "bytes")
        )
        told[way] = {"packets": rate(*frames), "bits": rate(*(8 * n for n in octets))}
    told |= {"dropped": rate(old["dropped"], new["dropped"]), "flows": new["flows"]}
    told["hit_share"] = round(looked_up[0] / sum(looked_up), 4) if sum(looked_up) else None
    counted = {drop["name"]: drop["count"] for drop in before.drops}
    drops = [
        drop | {"rate": rate(counted.get(drop["name"], 0), drop["count"])} for drop in now.drops
    ]
    told["drops"] = _most([drop for drop in drops if drop["count"]], "rate", "count")
    told["busiest"] = _moved(before.flows, now.flows, FLOW_KEY, ("packets", "bytes"), rate)
    counters = ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")
    told["peers"] = _moved(before.peers, now.peers, ("name",), counters, rate)
    return told


def _moved(
    before: list[dict[str, Any]],
    now: list[dict[str, Any]],
    key: tuple[str, ...],
    counters: tuple[str, ...],
    rate: Any,
) -> list[dict[str, Any]]:
    """Each with its `rates`, those that moved most first."""
    known = {tuple(item[name] for name in key): item for item in before}
    found = []
    for item in now:
        old = known.get(tuple(item[name] for name in key), {})
        rates = {name: rate(old.get(name, 0), item[name]) for name in counters}
        found.append(item | {"rates": rates, "moved": sum(rates.values())})
    return [{k: v for k, v in item.items() if k != "moved"} for item in _most(found, "moved")]


def _most(items: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: [-item[name] for name in names])


# ---- in words ----------------------------------------------------------------------------------


def quantity(number: float, unit: str) -> str:
    """812 kpps, 9.1 Gbit/s"""
    prefixes = ["", "k", "M", "G", "T"]
    while number >= 999.5 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    digits = 1 if number < 9.95 and number % 1 else 0
    return f"{number:.{digits}f} {prefixes[0]}{unit}".rstrip()


def _packets(name: str) -> Column:
    return Column("PPS", lambda item: quantity(item["rates"][name], ""))


def _bits(title: str, name: str) -> Column:
    return Column(title, lambda item: quantity(8 * item["rates"][name], "bit/s"))


TABLES: Mapping[str, tuple[Column, ...]] = {
    "drops": (
        field("REASON", "name"),
        field("LAYER"),
        Column("RATE/s", lambda drop: quantity(drop["rate"], "")),
        field("COUNT"),
        field("MEANS"),
    ),
    "busiest": (
        field("VNI"),
        field("PROTO", "protocol"),
        Column("SRC", lambda flow: side(flow, "src", "sport")),
        Column("DST", lambda flow: side(flow, "dst", "dport")),
        field("STATE"),
        _packets("packets"),
        _bits("BIT/S", "bytes"),
        field("ACTION"),
    ),
    "peers": (
        field("PEER", "name"),
        field("STATE"),
        _bits("TX", "tx_bytes"),
        _bits("RX", "rx_bytes"),
        Column("LAST RX", lambda peer: age(peer["last_rx"])),
        field("NETWORKS"),
    ),
}


def head(now: Value) -> str:
    """rx 812 kpps 9.1 Gbit/s  tx …  drop 1.2 kpps  flows 1204  hit 99.7%"""
    told = [
        f"{way} {quantity(now[way]['packets'], 'pps')} {quantity(now[way]['bits'], 'bit/s')}"
        for way in ("rx", "tx")
    ]
    share = now["hit_share"]
    hit = "-" if share is None else f"{share:.1%}"
    drop = quantity(now["dropped"], "pps")
    return "  ".join([*told, f"drop {drop}", f"flows {now['flows']}", f"hit {hit}"])


def rows(name: str, now: Value, most: int) -> list[list[str]]:
    """Of one of TABLES, without its titles."""
    return [[cell(column.of(item)) for column in TABLES[name]] for item in now[name][:most]]


def text(now: Value, most: int = 10) -> str:
    """One block of lines."""
    lines = [f"{time.strftime('%H:%M:%S')}  {now['node']}  {head(now)}"]
    for name, columns in TABLES.items():
        found = rows(name, now, most)
        lines += table([[column.title for column in columns], *found]) if found else []
    return "\n".join(lines)
