"""The demo's network namespaces: hosts, pods, the routed underlay, and host C as flannel makes it.

             r  (routes between the underlay's subnets)
     ┌───────┼─────────┬──────────┐
     a       b         c          o        hosts; o is the outside
   a1 a2   b1 b2       c1                  pods: 1 of tenant blue, 2 of tenant green

All names carry a prefix and the pid of this run, so that it removes what it made and nothing else,
and a later run recognises what a killed one left behind.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from dataplane.errors import DataplaneError
from dataplane.netns import inside

PREFIX = "dpdemo"
LEFTOVER = r"(\d+)-\w+"  # behind a prefix: who made it, and what
HOSTS = {"a": "192.0.2.1/26", "b": "192.0.2.65/26", "c": "192.0.2.129/26", "o": "203.0.113.9/24"}
ROUTER = {"a": "192.0.2.62", "b": "192.0.2.126", "c": "192.0.2.190", "o": "203.0.113.1"}
PODS = ("a1", "a2", "b1", "b2", "c1")

Made = TypeVar("Made")


class Namespaces:
    """Owns network namespaces and a directory for files; a context manager.

    `prefix`: whose they are, letters.
    """

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = f"{prefix}{os.getpid()}-"
        self.names: list[str] = []
        self.directory = Path(tempfile.mkdtemp(prefix=self.prefix))

    def __enter__(self) -> Self:
        try:
            self.make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make(self) -> None:
        """Namespaces, and what is in them from the start."""

    def close(self) -> None:
        """Removes every namespace that was made, and what runs in it. Again is harmless."""
        while self.names:
            remove(self.full(self.names.pop()))
        shutil.rmtree(self.directory, ignore_errors=True)

    def full(self, name: str) -> str:
        return self.prefix + name

    def ip(self, name: str, *lines: str) -> None:
        """Runs lines of `ip` in a namespace. Raises DataplaneError with what ip said."""
        run("ip", "-n", self.full(name), "-batch", "-", text="\n".join(lines))

    def command(self, name: str, *words: str) -> list[str]:
        """The words of a command that runs inside a namespace."""
        return ["ip", "netns", "exec", self.full(name), *words]

    def inside(self, name: str, work: Callable[[], Made]) -> Made:
        """Calls `work` in a namespace: a socket made there stays there."""
        return inside(self.full(name), work)

    def checksum_errors(self) -> dict[str, int]:
        """Wrong checksums that the kernels of all namespaces received, by namespace and counter."""
        found = {}
        for name in self.names:
            for counter, value in self.inside(name, _snmp):
                if value and counter.endswith("InCsumErrors"):
                    found[f"{name} {counter}"] = value
        return found

    def add(self, name: str) -> None:
        """One more namespace."""
        self.names.append(name)  # first: an interrupt may come any time
        run("ip", "netns", "add", self.full(name))
        self.ip(name, "link set lo up")

    def forward(self, name: str) -> None:
        """Its kernel routes."""
        switch = Path("/proc/sys/net/ipv4/ip_forward")
        self.inside(name, lambda: switch.write_text("1"))


class Site(Namespaces):
    """The demo's."""

    def make(self) -> None:
        for name in ("r", *HOSTS, *PODS):
            self.add(name)
        self._underlay()
        self._flannel_host()

    def _underlay(self) -> None:
        """One veth from each host to the router, with the offloads it has by default."""
        for host, address in HOSTS.items():
            router, length = ROUTER[host], address.partition("/")[2]
            end = f"netns {self.full(host)}"
            self.ip(
                "r",
                f"link add name to-{host} type veth peer name uplink {end}",
                f"addr add {router}/{length} dev to-{host}",
                f"link set to-{host} up",
            )
            self.ip(
                host,
                f"addr add {address} dev uplink",
                "link set uplink up",
                f"route add default via {router}",
            )
        self.forward("r")

    def _flannel_host(self) -> None:
        """Host C: a kernel VXLAN device with flannel's three entries for each other host."""
        peers = {
            "10.1.1.0": ("02:aa:00:00:10:01", "192.0.2.1"),
            "10.1.2.0": ("02:aa:00:00:10:02", "192.0.2.65"),
        }
        self.ip(
            "c",
            "link add flannel.4096 address 02:aa:00:00:10:03 type vxlan id 4096"
            " local 192.0.2.129 dev uplink dstport 4789 nolearning",
            "link set flannel.4096 mtu 1450 up",
            "addr add 10.1.3.0/32 dev flannel.4096",
            f"link add pod type veth peer name eth0 netns {self.full('c1')}",
            "addr add 10.1.3.1/24 dev pod",
            "link set pod mtu 1450 up",
        )
        for subnet, (mac, vtep) in peers.items():
            self.ip("c", f"neigh replace {subnet} lladdr {mac} dev flannel.4096 nud permanent")
            fdb = ["fdb", "replace", mac, "dst", vtep, "dev", "flannel.4096", "self", "permanent"]
            run("bridge", "-n", self.full("c"), *fdb)
            self.ip("c", f"route replace {subnet}/24 via {subnet} dev flannel.4096 onlink")
        self.ip(
            "c1",
            "addr add 10.1.3.2/24 dev eth0",
            "link set eth0 mtu 1450 up",
            "route add default via 10.1.3.1",
        )
        self.forward("c")


def _snmp() -> list[tuple[str, int]]:
    """The calling thread's namespace's counters of /proc/net/snmp and netstat."""
    return [
        (f"{head[0]}{counter}", int(value))
        for file in ("snmp", "netstat")
        for head, values in _pairs(Path(f"/proc/thread-self/net/{file}").read_text().splitlines())
        for counter, value in zip(head[1:], values[1:], strict=True)
    ]


def _pairs(lines: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        yield names.split(), values.split()


# ---- processes and leftovers -------------------------------------------------------------------


def run(*words: str, text: str = "") -> str:
    """What a command prints. Raises DataplaneError with its complaint."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataplaneError(f"the command {words[0]} is not installed") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise DataplaneError(f"{' '.join(words)} {text}".strip() + f": {said}")
    return done.stdout


def why_not() -> str:
    """Empty if network namespaces and TAPs can be had here."""
    probe = f"{PREFIX}{os.getpid()}-probe"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        run("ip", "netns", "add", probe)
        try:
            run("ip", "netns", "exec", probe, "ping", "-V")
        finally:
            remove(probe)
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    except DataplaneError as error:
        return str(error).splitlines()[0]
    return ""


def remove(namespace: str) -> None:
    """Ends what runs in a namespace of ours and deletes it."""
    for number, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + wait
        pids = _inhabitants(namespace)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while pids and time.monotonic() < deadline:
            time.sleep(0.02)
            pids = _inhabitants(namespace)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def remove_leftovers(prefix: str = PREFIX) -> list[str]:
    """Namespaces and directories of runs whose process is gone; returns the namespaces' names."""
    stale = [name for name in namespaces(prefix) if _is_stale(name, prefix)]
    for name in stale:
        remove(name)
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*-*"):
        if _is_stale(path.name, prefix):
            shutil.rmtree(path, ignore_errors=True)
    return stale


def namespaces(prefix: str = PREFIX) -> list[str]:
    """Those of a prefix that exist, of any run."""
    lines = run("ip", "netns", "list").splitlines()
    return [name for line in lines if re.fullmatch(prefix + LEFTOVER, name := line.split()[0])]


def _inhabitants(namespace: str) -> list[int]:
    """Processes inside, but never this one: a thread of it may just be looking."""
    done = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
    )
    return [pid for pid in map(int, done.stdout.split()) if pid != os.getpid()]


def _is_stale(name: str, prefix: str) -> bool:
    match = re.match(prefix + LEFTOVER, name)
    return match is not None and not Path("/proc", match[1]).exists()
