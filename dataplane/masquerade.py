"""The host's part of outbound NAT: it forwards, and masquerades the host port's link address.

One nftables table of our own name in the host port's network namespace; nothing else is touched but
the sysctl that lets the host forward, and that only if it is off.
"""

import re
import subprocess
from pathlib import Path

from dataplane.errors import PortError
from dataplane.model import HostPort, Node, outbound_nats
from dataplane.netns import inside

FORWARDING = {4: Path("ipv4/ip_forward"), 6: Path("ipv6/conf/all/forwarding")}
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
    return node.host_port is not None and any(nat.vip is None for nat in outbound_nats(node))


def forward(host: HostPort) -> str:
    """Lets the host port's namespace forward, if it does not; says what was or should be done."""
    return inside(host.tap.netns, lambda: _forward(FORWARDING[host.address.version]))


class Masquerade:
    """Owns the table of one node."""

    def __init__(self, node: str, host: HostPort) -> None:
        self.host = host
        self._netns = host.tap.netns
        self._family = "ip" if host.address.version == 4 else "ip6"
        self._name = f"dataplane-{host.tap.name}"  # which no other run here can have
        self._nft(
            RULES.format(
                family=self._family,
                table=self._name,
                node=re.sub(r"[^A-Za-z0-9_.-]", "_", node),
                address=host.address,
                tap=host.tap.name,
            )
        )

    def __str__(self) -> str:
        return f"nftables table {self._family} {self._name}"

    def close(self) -> None:
        """Removes the table."""
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


def _forward(switch: Path) -> str:
    place = Path("/proc/sys/net", switch)
    name = ".".join(("net", *switch.parts))
    if place.read_text().strip() != "0":
        return ""
    try:
        place.write_text("1")
    except OSError as error:
        return f"{name} is off and cannot be set: {error.strerror} (sysctl {name}=1)"
    return f"{name} was off and is on now, and stays so: others may rely on it by then"
