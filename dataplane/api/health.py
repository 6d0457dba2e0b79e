"""Whether a node works: its status, what is wrong with it, and the command that mends it."""

import functools
import os
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from dataplane.api import host
from dataplane.api.finding import FAILURE, FULL, OK, WARNING, Finding
from dataplane.api.mtus import mtus
from dataplane.api.peers import peers
from dataplane.daemon import Daemon
from dataplane.ids import UNDERLAY
from dataplane.standing import Standing
from dataplane.stats import adds_up

BAD_SUMS = ("bad_ip4_checksum", "outer_checksum")


@functools.cache
def version() -> str:
    """Of the package; looked up in its files once."""
    try:
        return metadata.version("vxlan-dataplane")
    except metadata.PackageNotFoundError:
        return "from source"


def status(daemon: Daemon) -> dict[str, Any]:
    """One look at the whole node."""
    policy, stats = daemon.policy, daemon.engine.stats()
    underlay = policy.underlay
    return {
        "node": policy.name,
        "version": version(),
        "generation": daemon.engine.generation,
        "forwarding": daemon.is_forwarding,
        "ready": not unready(daemon),
        "underlay": {
            "address": str(underlay.address),
            "address6": str(underlay.address6) if underlay.address6 else None,
            "port": underlay.port,
            "mtu": underlay.mtu,
            "xdp": daemon.xdp,
        },
        "networks": len(policy.networks),
        "endpoints": sum(len(n.endpoints) for n in policy.networks),
        "remote_subnets": sum(len(n.remote_subnets) for n in policy.networks),
        "workers": daemon.tuning.workers,
        "pid": os.getpid(),
        "uptime": round(time.monotonic() - daemon.began, 1),
        "totals": dict(stats.totals),
        "max_flows": daemon.engine.max_flows,
        "doors": [
            {"name": name, "synced": door.synced, "trouble": door.trouble}
            for name, door in daemon.doors.items()
        ],
    }


def unready(daemon: Daemon) -> list[str]:
    """Why the node cannot do its work; empty if it can."""
    faults = [] if daemon.is_forwarding else ["forwarding has ended"]
    lost = daemon.lost_devices()
    faults += [f"{name}: {device} is gone" for name, device in sorted(lost.items())]
    doors = daemon.doors.items()
    return faults + [_unsynced(name, door) for name, door in doors if not door.synced]


def _unsynced(name: str, door: Standing) -> str:
    return f"{name}: not synced yet: {door.trouble or 'no answer so far'}"


def examine(daemon: Daemon) -> list[Finding]:
    """Everything that is looked at, what is wrong first."""
    of_host = (host.state_directory, host.descriptors, host.forwarding, host.errors)
    looks = (_engine, _devices, _doors, _mtus, _peers, _drops, *of_host)
    found = [finding for look in looks for finding in look(daemon)]
    order = (FAILURE, WARNING, OK)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _engine(daemon: Daemon) -> Iterator[Finding]:
    totals = daemon.engine.stats().totals
    if not daemon.is_forwarding:
        fix = f"systemctl restart dataplane@{daemon.policy.name}"
        yield Finding(FAILURE, "engine", "forwarding has ended", fix)
    if not adds_up(totals):
        yield Finding(WARNING, "engine", "counters do not add up, or moved while they were read")
    used, room = totals["flows"], daemon.engine.max_flows
    if used > FULL * room:
        told = f"{used:,} of {room:,} flows are in use; a full table refuses new ones"
        yield Finding(WARNING, "flows", told, f"dataplane run --max-flows {2 * room}")
    else:
        told = f"generation {daemon.engine.generation}, {used:,} of {room:,} flows in use"
        yield Finding(OK, "engine", told)


def _devices(daemon: Daemon) -> Iterator[Finding]:
    lost = daemon.lost_devices()
    for name, device in sorted(lost.items()):
        address = f"ip address add {daemon.policy.underlay.address} dev DEV"
        fix = address if name == UNDERLAY else "dataplane apply -f FILE"
        yield Finding(FAILURE, "device", f"{name}: {device} is gone", fix)
    if daemon.lacks_xdp:
        told = f"no AF_XDP on {daemon.lacks_xdp}: packets take the sockets"
        yield Finding(WARNING, "xdp", told, f"ip link show {daemon.lacks_xdp}")
    elif daemon.xdp:
        yield Finding(OK, "xdp", daemon.xdp)
    for refused in daemon.lacking_routes():
        yield Finding(WARNING, "route", refused, "ip route")
    if not lost:
        yield Finding(OK, "device", "every TAP is there, and the underlay's address")


def _doors(daemon: Daemon) -> Iterator[Finding]:
    for name, door in daemon.doors.items():
        if not door.synced:
            yield Finding(FAILURE, "door", _unsynced(name, door), door.look)
        elif door.trouble:
            yield Finding(WARNING, "door", f"{name}: {door.trouble}", door.look)
        else:
            yield Finding(OK, "door", f"{name} is followed")


def _mtus(daemon: Daemon) -> Iterator[Finding]:
    """Of each network the narrowest way: many peers are behind the same route."""
    narrowest: dict[str, dict[str, Any]] = {}
    unreachable: list[str] = []
    for way in mtus(daemon.engine):
        network = way["name"].rpartition("/")[0]
        if way["route"] is None:
            unreachable.append(way["peer"])
        before = narrowest.get(network, way)
        if way["largest"] < way["network"] and way["largest"] <= before["largest"]:
            narrowest[network] = way
    for network, way in narrowest.items():
        told = f"network {network}: its packets have up to {way['network']} bytes, but"
        told = f"{told} {way['largest']} arrive at {way['peer']}: {_limit(way)}"
        yield Finding(WARNING, "mtu", told, f"mtu: {way['largest']}")
    for peer in sorted(set(unreachable)):
        yield Finding(WARNING, "route", f"no route to {peer}", f"ip route get {peer}")
    if not narrowest and not unreachable:
        yield Finding(OK, "mtu", "the packets of every network arrive whole at its peers")


def _limit(way: dict[str, Any]) -> str:
    """What carries the least of a way."""
    if way["learned"] is not None and way["learned"] <= (way["route"] or way["learned"]):
        return f"ICMP told of {way['learned']} on the way, {way['forgotten_in']:.0f} s are left"
    return f"the route carries {way['route']}, VXLAN takes {way['overhead']}"


def _peers(daemon: Daemon) -> Iterator[Finding]:
    silent = [peer for peer in peers(daemon.engine) if peer["state"] == "silent"]
    for peer in silent:
        heard, port = peer["last_rx"], daemon.policy.underlay.port
        told = (
            f"{peer['tx_packets']} packets sent, none received"
            if heard is None
            else f"sent to {peer['last_tx']:.0f} s ago, received from {heard:.0f} s ago"
        )
        fix = f"tcpdump -ni any host {peer['name']} and udp port {port}"
        yield Finding(WARNING, "peer", f"{peer['name']}: {told}", fix)
    if not silent:
        yield Finding(OK, "peer", "no peer is silent")


def _drops(daemon: Daemon) -> Iterator[Finding]:
    counted = {str(reason): n for reason, n in daemon.engine.stats().reasons.items()}
    for name in BAD_SUMS:
        if counted.get(name):
            told = f"{counted[name]} packets dropped as {name}"
            yield Finding(WARNING, "checksum", told, "ethtool -K DEV tx off, on the sender")
    if counted.get("unknown_vtep"):
        told = f"{counted['unknown_vtep']} packets of nodes that are no remote subnet's"
        yield Finding(WARNING, "vtep", told, "dataplane capture --point drop -w drops.pcapng")
