"""A running node for tests: `dataplane run` in a network namespace, and who sends frames to it.

Its fixtures are in conftest.py: `running`, `node`, `wire`, `traffic`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dataplane.address import Mac, Vni, parse_prefix
from dataplane.api.client import Client
from dataplane.errors import NoNodeError
from dataplane.model import Endpoint, Network, Node, RemoteSubnet, Underlay
from dataplane.netns import inside
from dataplane.packet import build, parse

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 15.0
DENIED = "udp 10.1.1.2:4000 > 10.1.77.1:53"  # by the policy: nobody is there
PICTURES = os.environ.get("DATAPLANE_PICTURES") == "1"  # take those of docs/ anew


def policy(*endpoints: str, **fields: Any) -> Node:
    made = tuple(
        Endpoint(name=name, addresses=(ip_address(f"10.1.1.{i + 2}"),))
        for i, name in enumerate(endpoints)
    )
    network = Network(
        name="blue",
        vni=Vni(4096),
        prefixes=(parse_prefix("10.1.0.0/16"),),
        endpoints=made,
        remote_subnets=(
            RemoteSubnet(
                prefix=parse_prefix("10.1.2.0/24"),
                provider_address=ip_address("127.0.0.2"),
                dr_mac=Mac("02:00:00:00:00:02"),
            ),
        ),
        **fields,
    )
    return Node(name="a", underlay=Underlay(address=ip_address("127.0.0.1")), networks=(network,))


class Process:
    """`dataplane run` in a namespace."""

    def __init__(self, netns: str, place: Path, *words: str) -> None:
        self.netns, self.place = netns, place
        self.socket, self.state = place / "a.sock", place / "state"
        self.reading = place / "reading.sock"
        self.file, self.log = place / "policy.yaml", place / "log"
        self.words = words
        self.before: tuple[str, ...] = ()  # words in front of the command
        self.saves = True  # to `state`
        self.home = ROOT  # of the code
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> "Process":
        """Until it is ready, or answers at all."""
        command = ["ip", "netns", "exec", self.netns, *self.before]
        command += [sys.executable, "-m", "dataplane", "run"]
        command += [str(self.file), "--control", str(self.socket)]
        command += ["--state", str(self.state)] if self.saves else []
        command += ["--read-control", str(self.reading)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.words], stdout=log, stderr=log, cwd=self.home
            )
        deadline = time.monotonic() + PATIENCE
        while not self.answers(ready):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def answers(self, ready: bool = True) -> bool:
        try:
            with Client(self.socket, timeout=5) as client:
                return bool(client.status()["ready"]) or not ready
        except NoNodeError:
            return False

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def cpu(self) -> float:
        """Seconds of all its threads so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime

    def links(self) -> set[str]:
        return {link["ifname"] for link in self._links()}

    def mtu(self, link: str) -> int:
        return int(self._links(link)[0]["mtu"])

    def addresses(self, link: str) -> set[str]:
        """Of IPv4."""
        return {a["local"] for a in self._links(link)[0]["addr_info"] if a["family"] == "inet"}

    def _links(self, *name: str) -> list[dict[str, Any]]:
        command = ["ip", "-n", self.netns, "-json", "addr", "show", *name]
        told: list[dict[str, Any]] = json.loads(subprocess.check_output(command))
        return told


def end_all(processes: Mapping[str, Process]) -> None:
    """Each ends well when it is asked to."""
    for process in processes.values():
        assert process.end() == 0, process.log.read_text()


def kill_all(processes: Mapping[str, Process]) -> None:
    """Those that still run."""
    for process in processes.values():
        if process.process is not None and process.process.poll() is None:
            process.process.kill()


def end_successor(control: Path) -> None:
    """Whoever took over is no child of ours: it is gone when its socket is."""
    with contextlib.suppress(NoNodeError), Client(control) as client:
        os.kill(client.status()["pid"], signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while control.exists() and time.monotonic() < deadline:
            time.sleep(0.02)


class Wire:
    """Sends frames as endpoint web, whose TAP is in the node's namespace."""

    def __init__(self, running: Process, device: str = "web") -> None:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            made.bind((device, 0))
            return made

        self.socket = inside(running.netns, opened)
        self.mac = Mac.from_bytes(b"\x0e\x2a" + ip_address("10.1.1.2").packed)

    def send(self, words: str, router: str) -> bytes:
        frame = build(parse(words), self.mac, Mac(router))
        self.socket.send(frame)
        return frame
