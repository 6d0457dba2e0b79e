"""Whether a node works: its status, what is wrong with it, and the command that mends it."""

import functools
import os
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

from dataplane.api.resources import peers
from dataplane.daemon import Daemon
from dataplane.defaults import overhead
from dataplane.ids import UNDERLAY
from dataplane.stats import adds_up

OK, WARNING, FAILURE = "ok", "warning", "failure"
FULL = 0.9  # of a table
BAD_SUMS = ("bad_ip4_checksum", "outer_checksum")


class Finding(NamedTuple):
    """`level` is ok, warning or failure; `fix` a command or a change of the policy."""

    level: str
    subject: str
    message: str
    fix: str = ""


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
    }


def unready(daemon: Daemon) -> list[str]:
    """Why the node cannot do its work; empty if it can."""
    faults = [] if daemon.is_forwarding else ["forwarding has ended"]
    lost = daemon.lost_devices()
    return faults + [f"{name}: {device} is gone" for name, device in sorted(lost.items())]


def examine(daemon: Daemon) -> list[Finding]:
    """Everything that is looked at, what is wrong first."""
    found = [*_engine(daemon), *_devices(daemon), *_mtus(daemon), *_peers(daemon), *_drops(daemon)]
    order = (FAILURE, WARNING, OK)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _engine(daemon: Daemon) -> Iterator[Finding]:
    totals = daemon.engine.stats().totals
    if not daemon.is_forwarding:
        yield Finding(FAILURE, "engine", "forwarding has ended", "dataplane run … (see its log)")
    if not adds_up(totals):
        yield Finding(WARNING, "engine", "counters do not add up, or moved while they were read")
    used, room = totals["flows"], daemon.engine.max_flows
    if used > FULL * room:
        told = f"{used:,} of {room:,} flows are in use; a full table refuses new ones"
        yield Finding(WARNING, "flows", told, "dataplane run … --max-flows N")
    else:
        told = f"generation {daemon.engine.generation}, {used:,} of {room:,} flows in use"
        yield Finding(OK, "engine", told)


def _devices(daemon: Daemon) -> Iterator[Finding]:
    lost = daemon.lost_devices()
    for name, device in sorted(lost.items()):
        fix = "ip address add …" if name == UNDERLAY else "dataplane apply -f FILE"
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


def _mtus(daemon: Daemon) -> Iterator[Finding]:
    policy = daemon.policy
    wrong = False
    for network in policy.networks:
        most = policy.underlay.mtu - overhead(network, policy)
        assert isinstance(network.mtu, int), "the policy is resolved"
        if network.mtu > most:
            wrong = True
            told = (
                f"network {network.name} says {network.mtu}, but the underlay of "
                f"{policy.underlay.mtu} carries {most} at most"
            )
            yield Finding(WARNING, "mtu", told, f"mtu: {most}")
    if not wrong:
        yield Finding(OK, "mtu", f"all networks fit the underlay's {policy.underlay.mtu} bytes")


def _peers(daemon: Daemon) -> Iterator[Finding]:
    silent = [peer for peer in peers(daemon.engine) if peer["state"] == "silent"]
    for peer in silent:
        told = (
            f"{peer['name']}: {peer['tx_packets']} packets sent, none received on "
            f"udp/{daemon.policy.underlay.port}"
        )
        fix = "is it up, does a firewall drop the port, has it this node as remote subnet?"
        yield Finding(WARNING, "peer", told, fix)
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
        yield Finding(WARNING, "vtep", told, "dataplane capture --point drop: who sends them?")
