"""The host's part: it forwards, masquerades the link address, and hands on mapped ports.

One nftables table of our own name in the host port's network namespace; nothing else is touched but
the sysctl that lets the host forward, and that only if it is off.
"""

import re
import subprocess
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from dataplane.errors import PortError
from dataplane.memo import Memo
from dataplane.model import HostPort, LoadBalancer, Node, outbound_nats
from dataplane.netns import inside

FORWARDING = {4: Path("ipv4/ip_forward"), 6: Path("ipv6/conf/all/forwarding")}
LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}


def needs_host(node: Node) -> bool:
    """Whether the host has to forward what leaves or enters by its port."""
    behind = any(network.host_subnets or network.direct_subnets for network in node.networks)
    balanced = (map(attrgetter("node_port"), n.load_balancers) for n in node.networks)
    mapped = any(map(any, balanced)) or any(
        m.vip is None for n in node.networks for e in n.endpoints for m in e.port_mappings
    )
    return node.host_port is not None and (behind or any(outbound_nats(node)) or mapped)


def forward(host: HostPort) -> str:
    """Lets the host port's namespace forward, if it does not; says what was or should be done."""
    return inside(host.tap.netns, lambda: _forward(FORWARDING[host.address.version]))


def forwards(host: HostPort) -> bool:
    """Whether the host port's namespace forwards. Raises PortError."""
    switch = FORWARDING[host.address.version]
    return inside(host.tap.netns, lambda: _is_on(Path("/proc/sys/net", switch)))


def switch_of(host: HostPort) -> str:
    """The sysctl that lets it."""
    return _sysctl(FORWARDING[host.address.version])


def _mapped(node: Node, memo: Memo) -> Iterator[tuple[str, int]]:
    """Protocols and ports of the host's own addresses that lead inside."""
    for network in node.networks:
        yield from memo.counted(network.name, network.load_balancers, None, _node_port)
        for endpoint in network.endpoints:
            yield from ((m.protocol, m.port) for m in endpoint.port_mappings if m.vip is None)


def _node_port(balancer: LoadBalancer) -> Iterator[tuple[str, int]]:
    if balancer.node_port is not None:
        yield balancer.protocol, balancer.node_port


class HostTable:
    """Owns the nftables table of one node; a reload replaces it in one transaction."""

    def __init__(self, host: HostPort) -> None:
        self._host = host
        self._family = "ip" if host.address.version == 4 else "ip6"
        self._name = f"dataplane-{host.tap.name}"  # which no other run here can have
        self._rules = ""
        self._memo = Memo()

    def __str__(self) -> str:
        return f"nftables table {self._family} {self._name}"

    def fits(self, host: HostPort | None) -> bool:
        return self._host == host

    def apply(self, node: Node) -> bool:
        """True: the table is another one now. Raises PortError."""
        self._memo = Memo(self._memo)
        rules = "\n".join(self._chains(node))
        if rules == self._rules:
            return False
        empty = f"table {self._family} {self._name}\ndelete table {self._family} {self._name}\n"
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", node.name)
        table = (
            f'table {self._family} {self._name} {{\ncomment "dataplane node {name}"\n{rules}\n}}\n'
        )
        self._nft(empty + (table if rules else ""))
        self._rules = rules
        return True

    def close(self) -> None:
        """Removes the table."""
        if self._rules:
            self._nft(f"delete table {self._family} {self._name}\n")

    def _chains(self, node: Node) -> Iterator[str]:
        tap, address, ip = self._host.tap.name, self._host.address, self._family
        if any(nat.vip is None for nat in outbound_nats(node)):
            yield "chain postrouting { type nat hook postrouting priority srcnat"
            yield f'{ip} saddr {address} oifname != "{tap}" masquerade\n}}'
        ports: dict[str, set[int]] = {}
        for protocol, port in _mapped(node, self._memo):
            ports.setdefault(protocol, set()).add(port)
        for hook in ("prerouting", "output") if ports else ():
            yield f"chain {hook} {{ type nat hook {hook} priority -100"
            for protocol, numbers in sorted(ports.items()):
                listed = ", ".join(map(str, sorted(numbers)))
                meant = f"fib daddr type local {ip} daddr != {LOOPBACK[address.version]}"
                yield f"{meant} {protocol} dport {{ {listed} }} dnat to {address}"
            yield "}"

    def _nft(self, text: str) -> None:
        try:
            done = inside(self._host.tap.netns, lambda: _run(text))
        except FileNotFoundError:
            raise PortError("NAT at the host port: nft is not installed (nftables)") from None
        if done.returncode:
            raise PortError(f"{self}: {done.stderr.strip()}")


def _run(text: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )


def _sysctl(switch: Path) -> str:
    return ".".join(("net", *switch.parts))


def _is_on(place: Path) -> bool:
    return place.read_text().strip() != "0"


def _forward(switch: Path) -> str:
    place = Path("/proc/sys/net", switch)
    name = _sysctl(switch)
    if _is_on(place):
        return ""
    try:
        place.write_text("1")
    except OSError as error:
        return f"{name} is off and cannot be set: {error.strerror} (sysctl {name}=1)"
    return f"{name} was off and is on now, and stays so: others may rely on it by then"
