"""The overlay's other nodes as subnets, found anew where one of them says something else."""

from typing import NamedTuple

from dataplane.flannel.documents import Config, Lease
from dataplane.flannel.link import Link
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
    """`own`: the name of this node, which is none."""

    def __init__(self, config: Config, own: str) -> None:
        self._config, self._own = config, own
        self._nodes: dict[Key, Object] = {}
        self._given: tuple[Lease, Underlay, HostPort | None] | None = None  # to be found anew
        self._found = Subnets()
        self._link = Link()

    def put(self, key: Key, node: Object | None) -> None:
        """None: it is gone. Kubelets write their nodes' status again and again."""
        old = self._nodes.pop(key, None)
        if node is not None:
            self._nodes[key] = node
        if old is None or node is None or nodes.said_of(old) != nodes.said_of(node):
            self._given = None

    def replace(self, listed: dict[Key, Object]) -> None:
        self._nodes, self._given = dict(listed), None
        self._link.forget()

    def subnets(self, own: Lease, underlay: Underlay, host: HostPort | None) -> Subnets:
        """Raises PortError where the kernel does not say who is near."""
        if self._given != (own, underlay, host):
            known = ((key[1], node) for key, node in self._nodes.items())
            leases, unread = nodes.leases(known, self._own)
            remote, wrong = remote_subnets(self._config, own, leases, underlay)
            unread |= {f"subnet {key}": why for key, why in wrong.items()}
            direct: tuple[DirectSubnet, ...] = ()
            if self._config.direct:
                remote, direct = self._link.split(remote, host)
            self._found = Subnets(remote, direct, unread)
            self._given = own, underlay, host
        return self._found
