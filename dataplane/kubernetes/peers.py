"""The overlay's other nodes as remote subnets, found anew where one of them says something else."""

from dataplane.flannel.documents import Config, Lease
from dataplane.flannel.translate import remote_subnets
from dataplane.kubernetes import nodes
from dataplane.kubernetes.objects import Key, Object, Refused
from dataplane.model import RemoteSubnet, Underlay


class Peers:
    """`own`: the name of this node, which is none."""

    def __init__(self, config: Config, own: str) -> None:
        self._config, self._own = config, own
        self._nodes: dict[Key, Object] = {}
        self._given: tuple[Lease, Underlay] | None = None  # None: to be found anew
        self._found: tuple[tuple[RemoteSubnet, ...], Refused] = (), {}

    def put(self, key: Key, node: Object | None) -> None:
        """None: it is gone. Kubelets write their nodes' status again and again."""
        old = self._nodes.pop(key, None)
        if node is not None:
            self._nodes[key] = node
        if old is None or node is None or nodes.said_of(old) != nodes.said_of(node):
            self._given = None

    def replace(self, listed: dict[Key, Object]) -> None:
        self._nodes, self._given = dict(listed), None

    def remote(self, own: Lease, underlay: Underlay) -> tuple[tuple[RemoteSubnet, ...], Refused]:
        """And by name why some cannot be followed."""
        if self._given != (own, underlay):
            known = ((key[1], node) for key, node in self._nodes.items())
            leases, unread = nodes.leases(known, self._own)
            remote, wrong = remote_subnets(self._config, own, leases, underlay)
            self._found = remote, unread | {f"subnet {key}": why for key, why in wrong.items()}
            self._given = own, underlay
        return self._found
