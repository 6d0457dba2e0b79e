"""What a node has of its host: disk, descriptors, forwarding, devices that take packets."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from dataplane.api.finding import FAILURE, FULL, OK, WARNING, Finding
from dataplane.daemon import Daemon
from dataplane.errors import PortError
from dataplane.host_nat import forwards, needs_host, switch_of

LEAST = 16 << 20  # bytes: less than this is nearly nothing for a state directory
BETWEEN = 0.5  # seconds between two readings of counters that should stand still
ERRORS = {  # of I/O, and where to look
    "tx_errors": ("packets that a device refused", "ip -s -s link"),
    "rx_lost": ("packets that found the underlay's sockets full", "dataplane stats io --rate 1"),
    "xdp_lost": ("packets that found AF_XDP's rings full", "dataplane stats io --rate 1"),
}


def state_directory(daemon: Daemon) -> Iterator[Finding]:
    path = daemon.state_path
    if path is None:
        return
    try:
        disk = os.statvfs(path)
    except OSError as error:
        told = f"{path}: {error.strerror}: no policy can be committed"
        yield Finding(FAILURE, "state", told, f"mkdir -p -m 700 {path}")
        return
    free = disk.f_bavail * disk.f_frsize
    if disk.f_flag & os.ST_RDONLY:
        told = f"{path} is on a read-only file system: no policy can be committed"
        yield Finding(FAILURE, "state", told, f"mount -o remount,rw {_mount(path)}")
    elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        told = f"{path} cannot be written: no policy can be committed"
        yield Finding(FAILURE, "state", told, f"chown {os.geteuid()} {path}; chmod 700 {path}")
    elif free < LEAST:
        told = f"{path}: {free >> 10:,} KiB are left on its disk"
        yield Finding(WARNING, "state", told, f"du -xhd1 {_mount(path)}")
    else:
        yield Finding(OK, "state", f"{path} can be written")


def _mount(path: Path) -> Path:
    whole = path.resolve()
    return next(place for place in (whole, *whole.parents) if place.is_mount())


def descriptors(daemon: Daemon) -> Iterator[Finding]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # it takes one to count them
        used = limit
    if used > FULL * limit:
        told = f"{used:,} of {limit:,} file descriptors are in use"
        fix = f"prlimit --pid {os.getpid()} --nofile={2 * limit}"
        yield Finding(WARNING, "files", told, fix)


def forwarding(daemon: Daemon) -> Iterator[Finding]:
    policy = daemon.policy
    host = policy.host_port
    if host is None or not needs_host(policy):
        return
    try:
        on = forwards(host)
    except PortError:
        return  # the host port's namespace is gone, and a finding about devices
    if not on:
        told = f"{switch_of(host)} is off: what enters or leaves by the host port is not forwarded"
        inside = f"ip netns exec {host.tap.netns} " if host.tap.netns else ""
        yield Finding(WARNING, "host", told, f"{inside}sysctl -w {switch_of(host)}=1")


def errors(daemon: Daemon) -> Iterator[Finding]:
    """Only of counters that move, which takes a second reading where one is not zero."""
    before = daemon.forwarder.stats()
    if not any(counters[name] for counters in before.values() for name in ERRORS):
        return
    time.sleep(BETWEEN)
    now = daemon.forwarder.stats()
    for port, counters in now.items():
        for name, (words, look) in ERRORS.items():
            grown = counters[name] - before.get(port, counters)[name]
            if grown > 0:
                told = f"{port}: {grown:,} {words} in {BETWEEN} s, {counters[name]:,} in all"
                yield Finding(WARNING, "io", told, look)
