"""The overlay's other nodes as subnets, found anew where one of them says something else.

A node that goes stays for a grace: a cloud's controller deletes one that was away and makes it
anew, and its traffic must not stop in between.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.address import IP, Mac
from dataplane.flannel.documents import Config, Lease
from dataplane.flannel.link import Link
from dataplane.flannel.peers import GRACE
from dataplane.flannel.translate import remote_subnets
from dataplane.kubernetes import nodes
from dataplane.kubernetes.objects import Key, Object, Refused
from dataplane.model import DirectSubnet, HostPort, RemoteSubnet, Underlay


class Subnets(NamedTuple):
    """Of the peers, and by name why some cannot be followed."""

    remote: tuple[RemoteSubnet, ...] = ()
    direct: tuple[DirectSubnet, ...] = ()
    refused: Refused = {}  # noqa: RUF012 (nobody changes it)


class Peers:
    """`own`: the name of this node, which is none. `now`: seconds of any one clock."""

    def __init__(self, config: Config, own: str) -> None:
        self._config, self._own = config, own
        self._nodes: dict[Key, Object] = {}
        self._leaving: dict[Key, tuple[Object, float]] = {}  # and when they go
        self._macs: dict[IP, Mac] = {}  # by public address
        self._given: tuple[Lease, Underlay, HostPort | None] | None = None  # to be found anew
        self._found = Subnets()
        self._link = Link()

    def put(self, key: Key, node: Object | None, now: float) -> None:
        """None: it is gone. Kubelets write their nodes' status again and again."""
        old = self._nodes.pop(key, None)
        if node is not None:
            self._nodes[key] = node
        elif old is not None:
            self._leaving[key] = old, now + GRACE
        if old is None or node is None or nodes.said_of(old) != nodes.said_of(node):
            self._given = None

    def replace(self, listed: dict[Key, Object], now: float) -> None:
        for key in self._nodes.keys() - listed.keys():
            self.put(key, None, now)
        self._nodes, self._given = dict(listed), None
        self._link.forget()

    def next_change(self) -> float | None:
        """When `subnets` are others, though nobody says anything."""
        return min((until for _, until in self._leaving.values()), default=None)

    def _expire(self, now: float) -> None:
        gone = [key for key, (_, until) in self._leaving.items() if until <= now]
        for key in gone:
            del self._leaving[key]
            self._given = None

    def subnets(self, own: Lease, underlay: Underlay, host: HostPort | None, now: float) -> Subnets:
        """Raises PortError where the kernel does not say who is near."""
        self._expire(now)
        if self._given != (own, underlay, host):
            leases, unread = nodes.leases(_named(self._nodes), self._own)
            leaving = {key: node for key, (node, _) in self._leaving.items()}
            leases = self._with_macs(leases + nodes.leases(_named(leaving), self._own)[0])
            remote, wrong = remote_subnets(self._config, own, leases, underlay)
            unread |= {f"subnet {key}": why for key, why in wrong.items()}
            direct: tuple[DirectSubnet, ...] = ()
            if self._config.direct:
                remote, direct = self._link.split(remote, host)
            self._found = Subnets(remote, direct, unread)
            self._given = own, underlay, host
        return self._found

    def _with_macs(self, leases: list[Lease]) -> list[Lease]:
        """Each without a VtepMAC has that of before, if its public address is the same: a Windows
        node that begins anew writes none at first."""
        before, self._macs = self._macs, {}

        def known(address: IP | None, told: Mac | None) -> Mac | None:
            if address is None or (mac := told or before.get(address)) is None:
                return None
            self._macs.setdefault(address, mac)
            return mac

        return [
            lease._replace(
                mac=known(lease.public_ip, lease.mac), mac6=known(lease.public_ip6, lease.mac6)
            )
            for lease in leases
        ]


def _named(known: dict[Key, Object]) -> Iterator[tuple[str, Object]]:
    return ((key[1], node) for key, node in known.items())
