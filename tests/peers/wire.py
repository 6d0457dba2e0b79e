"""The wires between two network namespaces: raw frames at either end of a veth pair."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dataplane.address import Mac
from dataplane.netns import inside

_ETH_P_ALL = 3
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_IGNORE_OUTGOING = 33, 263, 23
_PATIENCE = 2.0  # seconds until a frame is lost


def ip(netns: str, *lines: str) -> None:
    """Runs lines of `ip` in a namespace."""
    words = ["ip", "-n", netns, "-batch", "-"]
    done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, f"{lines}: {done.stderr}"


def run(netns: str, *words: str, text: str = "") -> str:
    """What a command in a namespace prints."""
    command = ["ip", "netns", "exec", netns, *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def sysctl(netns: str, **values: int) -> None:
    """`net__ipv4__ip_forward=1`; a name that does not exist yet is an error."""

    def write() -> None:
        for name, value in values.items():
            Path("/proc/sys", *name.split("__")).write_text(str(value))

    inside(netns, write)


def mac(netns: str, device: str) -> Mac:
    return Mac(json.loads(run(netns, "ip", "-json", "link", "show", device))[0]["address"])


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Frames sent one after the other from one processor arrive in that order."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def is_ip(frame: bytes) -> bool:
    return frame[12:14] in (b"\x08\0", b"\x86\xdd")


class Wire:
    """A device's raw socket: `send` puts a frame on the wire, `waiting` takes what came from it.

    Opening and closing one costs 25 ms. Only frames that are `wanted` are received.
    """

    def __init__(
        self, netns: str, device: str, wanted: Callable[[bytes], bool] = lambda _: True
    ) -> None:
        self._wanted = wanted
        self._socket = inside(netns, lambda: self._open(device))

    @staticmethod
    def _open(device: str) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.bind((device, _ETH_P_ALL))
        sock.settimeout(_PATIENCE)
        return sock

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._socket.send(frame)

    def waiting(self) -> list[bytes]:
        """What has arrived by now."""
        found = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(70_000)
                if self._wanted(frame):
                    found.append(frame)
        return found

    def until(self, mark: bytes) -> list[bytes]:
        """What arrives before a frame that holds `mark`. Fails when that does not come."""
        found, end = [], time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            for frame in self.waiting():
                if mark in frame:
                    return found
                found.append(frame)
            time.sleep(0.0005)
        raise AssertionError(f"the mark {mark!r} was lost after {len(found)} frames")


def udp_counter(name: str) -> int:
    """Of the kernel, in the calling thread's network namespace: as `nstat -az UdpNAME`."""
    told = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in told if line.startswith("Udp: "))
    return int(values[names.index(name)])
