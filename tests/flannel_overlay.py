"""For tests of a live flannel overlay: kernels' nodes, as flannel sets them up, and traffic."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

from dataplane.netns import inside
from tests.peers.wire import ip


class KernelDevice(NamedTuple):
    """A VXLAN device of the kernel's in one address family; its underlay device is `under`."""

    netns: str
    name: str
    subnet: IPv4Network | IPv6Network
    mac: str
    public_ip: str

    def make(self, vni: int, port: int) -> None:
        """As flannel does; over IPv6 the kernel takes 20 off the MTU itself."""
        at = self.subnet.network_address
        vxlan = f"type vxlan id {vni} local {self.public_ip} dev under dstport {port} nolearning"
        nodad = "nodad" if at.version == 6 else ""
        ip(
            self.netns,
            f"link add name {self.name} mtu 1450 address {self.mac} {vxlan}",
            f"link set {self.name} up",
            f"addr add {at}/{at.max_prefixlen} dev {self.name} {nodad}",
        )

    def follow(self, subnet: IPv4Network | IPv6Network, mac: str, public_ip: str) -> None:
        """What flannel does for a lease of another node's, in its order."""
        at, device = subnet.network_address, f"dev {self.name}"
        ip(self.netns, f"neigh replace {at} lladdr {mac} {device} nud permanent")
        fdb = f"fdb replace {mac} dst {public_ip} {device} self permanent"
        run("bridge", "-n", self.netns, *fdb.split())
        ip(self.netns, f"route replace {subnet} via {at} {device} onlink")


class Ping:
    """Echo requests from one namespace, so many seconds apart, until it ends; what they tell."""

    def __init__(self, netns: str, to: str, interval: float) -> None:
        self._interval, self._told = interval, tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = ["ip", "netns", "exec", netns, "ping", "-n", f"-i{interval}", to]
        self.process = subprocess.Popen(command, stdout=self._told)

    def lost(self) -> int:
        """How many had no answer; of those of the last 0.1 s it may be on its way."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=30)
        self._told.seek(0)
        told = self._told.read()
        self._told.close()
        sent = int(told.partition(" packets transmitted")[0].split()[-1])
        answered = {int(n) for n in re.findall(r"bytes from .* icmp_seq=(\d+)", told)}
        last = max(answered, default=0)
        late = sent - last if (sent - last) * self._interval > 0.1 else 0
        assert sent > 20, told
        return last - len(answered) + late


def ping_every_pair(pods: Mapping[str, str], octets: int) -> None:
    """Both ways, by packets of so many octets that are not to be fragmented.

    `pods`: addresses by network namespace."""
    for source, target in itertools.permutations(pods, 2):
        headers = 48 if ":" in pods[target] else 28
        words = ["-c1", "-W5", "-Mdo", f"-s{octets - headers}", pods[target]]
        run("ip", "netns", "exec", source, "ping", *words)


def tcp_every_pair(pods: Mapping[str, str]) -> None:
    """256 KiB there and back, equal to the last octet. `pods`: addresses by network namespace."""
    words = os.urandom(1 << 18)

    def server(netns: str, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return inside(netns, lambda: socket.create_server((address, 8080), family=family))

    with contextlib.ExitStack() as made:
        servers = [made.enter_context(server(*pod)) for pod in pods.items()]
        for listening in servers:
            threading.Thread(target=_echo, args=(listening, len(pods) - 1), daemon=True).start()
        for source, target in itertools.permutations(pods, 2):
            place = pods[target], 8080
            client = inside(source, lambda place=place: socket.create_connection(place, 5))
            with client, client.makefile("rb") as told:
                threading.Thread(target=client.sendall, args=(words,), daemon=True).start()
                assert told.read(len(words)) == words, (source, target)


def _echo(listening: socket.socket, clients: int) -> None:
    for _ in range(clients):
        with listening.accept()[0] as client:
            while words := client.recv(1 << 16):
                client.sendall(words)


def address(netns: str, device: str, version: int = 4) -> str:
    """The one it has; of IPv6, that is not of its link alone."""
    told = json.loads(run("ip", "-n", netns, f"-{version}", "-json", "addr", "show", device))
    (found,) = (a for a in told[0]["addr_info"] if a["scope"] == "global")
    return str(found["local"])


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
