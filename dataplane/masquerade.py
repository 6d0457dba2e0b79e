"""The host's part of outbound NAT: what leaves the host port under its link address is masqueraded.

One nftables table of our own name in the host port's network namespace; nothing else is touched but
ip_forward, and that only if it is off.
"""

import re
import subprocess
from pathlib import Path

from dataplane.errors import PortError
from dataplane.model import HostPort, Node
from dataplane.netns import inside

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
RULES = """\
table {family} {table}
delete table {family} {table}
table {family} {table} {{
  comment "outbound NAT of dataplane node {node}"
  chain postrouting {{
    type nat hook postrouting priority srcnat
    {family} saddr {address} oifname != "{tap}" masquerade
  }}
}}
"""


def is_wanted(node: Node) -> bool:
    """Whether some outbound NAT has no VIP, and so uses the host port's link address."""
    nats = [n.outbound_nat for n in node.networks]
    nats += [e.outbound_nat for n in node.networks for e in n.endpoints]
    return node.host_port is not None and any(nat and nat.vip is None for nat in nats)


class Masquerade:
    """Owns the table of one node."""

    def __init__(self, node: str, host: HostPort) -> None:
        self.host = host
        self._netns = host.tap.netns
        self._family = "ip" if host.address.version == 4 else "ip6"
        self._name = "dataplane-" + re.sub(r"[^A-Za-z0-9_.-]", "_", node)
        self.note = ""  # what else was changed, or should be
        self._nft(
            RULES.format(
                family=self._family,
                table=self._name,
                node=self._name.removeprefix("dataplane-"),
                address=host.address,
                tap=host.tap.name,
            )
        )
        if host.address.version == 4:
            self.note = inside(self._netns, _forward)

    def __str__(self) -> str:
        return f"nftables table {self._family} {self._name}"

    def close(self) -> None:
        """Removes the table; ip_forward stays on, for others may rely on it by now."""
        self._nft(f"delete table {self._family} {self._name}\n")

    def _nft(self, text: str) -> None:
        fix = "or give outbound_nat a vip"
        try:
            done = inside(self._netns, lambda: _run(text))
        except FileNotFoundError:
            raise PortError(f"outbound NAT: nft is not installed (nftables; {fix})") from None
        if done.returncode:
            raise PortError(f"{self}: {done.stderr.strip()} ({fix})")


def _run(text: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )


def _forward() -> str:
    """Turns forwarding on if it is off; says what was done."""
    if IP_FORWARD.read_text().strip() != "0":
        return ""
    try:
        IP_FORWARD.write_text("1")
    except OSError as error:
        return (
            f"ip_forward is off and cannot be set: {error.strerror} (sysctl net.ipv4.ip_forward=1)"
        )
    return "ip_forward was off and is on now"
