"""What tables of resources show: for each kind its columns, and those that `-o wide` adds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dataplane.tables import table

Value = Mapping[str, Any]


class Column(NamedTuple):
    """`of`: the text of its cell."""

    title: str
    of: Callable[[Value], object]


class Columns(NamedTuple):
    usual: tuple[Column, ...]
    wide: tuple[Column, ...] = ()


def field(title: str, name: str | None = None) -> Column:
    key = name or title.lower()
    return Column(title, lambda value: cell(value.get(key)))


def cell(value: object) -> str:
    """Lists with commas, nothing as `-`."""
    if value is None or value in ([], ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(cell, value))
    if isinstance(value, dict):
        return " ".join(f"{k}={cell(v)}" for k, v in value.items())
    return str(value)


def size(octets: int) -> str:
    """1.2 GiB"""
    number, units = float(octets), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{octets} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def age(seconds: float | None) -> str:
    """0.2s, 5m, 3h, never"""
    if seconds is None:
        return "never"
    for limit, unit, of in ((60, 1.0, "s"), (3600, 60.0, "m"), (172_800, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if of == 's' and seconds < 10 else 0}f}{of}"
    return f"{seconds / 86_400:.0f}d"


def side(flow: Value, address: str, port: str) -> str:
    """10.1.1.2:80, [fd00::2]:80, of ICMP the address alone"""
    host = flow[address]
    if flow["protocol"] in ("icmp", "icmp6"):
        return str(host)
    return f"[{host}]:{flow[port]}" if ":" in host else f"{host}:{flow[port]}"


def rows(kind: str, items: Iterable[Value], wide: bool = False) -> list[str]:
    """Aligned lines, titles first."""
    columns = KINDS[kind].usual + (KINDS[kind].wide if wide else ())
    return table([[c.title for c in columns], *([c.of(item) for c in columns] for item in items)])


def _conditions(acl: Value) -> str:
    names = ("local", "remote", "local_ports", "remote_ports", "icmp_type", "icmp_code")
    told = [f"{name} {cell(acl[name])}" for name in names if acl[name] not in ([], None)]
    return "  ".join(told) or "any"


def _peer_state(peer: Value) -> str:
    if peer["state"] != "silent":
        return str(peer["state"])
    if peer["last_rx"] is None:
        return f"silent (sent {peer['tx_packets']}, got 0)"
    return f"silent for {age(peer['last_rx'])}"


def _count(name: str) -> Callable[[Value], object]:
    return lambda value: value["counters"].get(name, 0)


NAME = field("NAME")
ORIGIN = field("ORIGIN")
KINDS: Mapping[str, Columns] = {
    "networks": Columns(
        (
            NAME,
            field("VNI"),
            field("PREFIXES"),
            field("MTU"),
            field("ENDPOINTS"),
            field("SUBNETS", "remote_subnets"),
        ),
        (
            field("GATEWAYS"),
            field("DR MAC", "dr_mac"),
            field("ACLS"),
            field("HOST", "host_route"),
            ORIGIN,
        ),
    ),
    "endpoints": Columns(
        (
            NAME,
            field("ADDRESSES"),
            field("MAC"),
            Column("TAP", lambda e: e["tap"]["name"]),
            Column("RX", _count("rx_frames")),
            Column("TX", _count("tx_frames")),
            Column("DROPPED", _count("dropped")),
        ),
        (
            Column("NETNS", lambda e: cell(e["tap"]["netns"])),
            field("VNI"),
            field("IN", "default_in"),
            field("OUT", "default_out"),
            ORIGIN,
        ),
    ),
    "remote-subnets": Columns(
        (NAME, field("PEER", "provider_address"), field("DR MAC", "dr_mac"), field("VNI")),
        (field("DSR"), ORIGIN),
    ),
    "direct-subnets": Columns(
        (NAME, field("PEER", "provider_address"), field("VNI")),
        (ORIGIN,),
    ),
    "peers": Columns(
        (
            field("NAME"),
            field("NETWORKS"),
            field("SUBNETS"),
            field("MTU"),
            Column("LAST RX", lambda p: age(p["last_rx"])),
            Column("TX", lambda p: size(p["tx_bytes"])),
            Column("RX", lambda p: size(p["rx_bytes"])),
            Column("STATE", _peer_state),
        ),
        (field("TX PKTS", "tx_packets"), field("RX PKTS", "rx_packets")),
    ),
    "routes": Columns((NAME, field("TO"), field("TARGET")), (field("VNI"),)),
    "acls": Columns(
        (
            NAME,
            field("PRIORITY"),
            field("DIR", "direction"),
            field("ACTION"),
            field("PROTO", "protocol"),
            Column("MATCH", _conditions),
            field("HITS"),
        ),
        (field("STATEFUL"), field("TERMINATING"), ORIGIN),
    ),
    "nats": Columns(
        (
            NAME,
            field("TYPE"),
            field("VIP"),
            Column("PORTS", lambda n: cell(n.get("ports") or n.get("port"))),
            Column("TARGET", lambda n: cell(n.get("target_port"))),
            field("HITS"),
        ),
        (field("MAPPING"), field("EXCEPTIONS")),
    ),
    "load-balancers": Columns(
        (
            NAME,
            field("VIPS"),
            Column("PORT", lambda b: f"{b['protocol']}/{b['port']}"),
            Column("BACKENDS", lambda b: len(b["backends"])),
            field("AFFINITY"),
            field("DSR"),
            field("HITS"),
        ),
        (
            field("NODE PORT", "node_port"),
            Column("ADDRESSES", lambda b: cell([x["address"] for x in b["backends"]])),
            ORIGIN,
        ),
    ),
    "mtus": Columns(
        (
            NAME,
            field("LARGEST"),
            field("NETWORK"),
            field("OVERHEAD"),
            field("UNDERLAY"),
            field("ROUTE"),
            field("LEARNED"),
            Column("FOR", lambda v: "-" if v["learned"] is None else age(v["forgotten_in"])),
        )
    ),
    "layers": Columns((NAME, field("WALKED"), field("DROPPED"))),
    "drops": Columns((NAME, field("LAYER"), field("COUNT"), field("MEANS"))),
    "ports": Columns(
        (
            NAME,
            field("RX", "rx_frames"),
            field("RX BYTES", "rx_bytes"),
            field("TX", "tx_frames"),
            field("TX BYTES", "tx_bytes"),
            field("DROPPED"),
        ),
        (field("ORIGINATED"), field("CONSUMED")),
    ),
    "fdb": Columns((NAME, field("PORT"), field("PEER", "provider"))),
    "neigh": Columns((NAME, field("MAC"), field("OF"))),
    "flows": Columns(
        (
            field("VNI"),
            field("PROTO", "protocol"),
            Column("SRC", lambda f: side(f, "src", "sport")),
            Column("DST", lambda f: side(f, "dst", "dport")),
            field("STATE"),
            field("PKTS", "packets"),
            Column("BYTES", lambda f: size(f["bytes"])),
            Column("IDLE", lambda f: age(f["idle"])),
            field("ACTION"),
        ),
        (field("RULE"), field("GEN", "generation"), field("IN", "in_port")),
    ),
    "sums": Columns(
        (
            NAME,
            field("FLOWS"),
            field("PKTS", "packets"),
            Column("BYTES", lambda s: size(s["bytes"])),
        )
    ),
}
