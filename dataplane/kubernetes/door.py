"""The Kubernetes front door: follows an API server, and tells it of this node as flannel does.

Reflectors, a thread for each kind of objects, tell what changed; one thread makes a share of it,
and another one tells the server.
Whatever the server does, what was known last is forwarded.
"""

import ipaddress
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from msgspec.structs import replace

from dataplane.address import Mac, Prefix, host_prefix
from dataplane.daemon import Applied, Daemon
from dataplane.errors import BusyError, DataplaneError, DocumentError
from dataplane.flannel.documents import Config, Lease, read_config
from dataplane.flannel.link import LACKS_HOST, can_route
from dataplane.flannel.translate import network as overlay
from dataplane.flannel.translate import vtep_mac
from dataplane.kubernetes import nodes, policies
from dataplane.kubernetes.access import Access, KubeError
from dataplane.kubernetes.announcer import Announcer
from dataplane.kubernetes.client import Client
from dataplane.kubernetes.objects import Key, Object, Refused, pod_addresses, table
from dataplane.kubernetes.peers import Peers
from dataplane.kubernetes.reflector import Change, Reflector
from dataplane.kubernetes.services import Here, Services
from dataplane.model import Acl, Endpoint, Network, OutboundNat
from dataplane.shares import Part, Share
from dataplane.standing import UNFORESEEN

ORIGIN = NETWORK = "kubernetes"
BUSY = 0.002  # seconds until a successor, if there is one, is asked again
AGAIN = 1.0  # seconds until what was refused is tried once more
LEAVE = 1.0  # seconds until a thread that the server holds up is left alone
MOST_LEFT_OUT = 100  # objects that one commit leaves out

KINDS = {
    "nodes": "/api/v1/nodes",
    "services": "/api/v1/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
    "networkpolicies": "/apis/networking.k8s.io/v1/networkpolicies",
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
}

log = logging.getLogger("dataplane")


class Options(NamedTuple):
    """How the command line names the cluster. `config`: flannel's net-conf.json."""

    access: Access
    node: str
    config: Path


class Kubernetes:
    """A context manager; see run.Door."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        """Raises DataplaneError where flannel's configuration cannot be used here."""
        self._daemon, self._options = daemon, options
        self._client = Client(options.access)
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        look = f"kubectl --server={options.access.server} get --raw /readyz"
        self._standing = daemon.door(ORIGIN, look)
        self._reflectors = [
            Reflector(self._client, kind, path, self._changes.put, self._standing)
            for kind, path in KINDS.items()
        ]
        self._announcer = Announcer(self._client, KINDS["nodes"], options.node)
        self._ended = threading.Event()
        self._known: dict[str, dict[Key, Object]] = {}  # of each kind that was listed
        self._config = _config(options.config)
        host = daemon.policy.host_port
        self._services = Services(Here(options.node, host.address if host else None))
        self._network: Network | None = None
        self._peers = Peers(self._config, options.node)
        self._told: Refused = {}
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="kubernetes", daemon=True)
        underlay = daemon.policy.underlay
        if underlay.address.version != 4:
            raise KubeError("flannel names nodes by IPv4: underlay.address has to be one")
        if self._config.v6 is not None and underlay.address6 is None:
            text = "EnableIPv6, but the node has none (set underlay.address6)"
            raise KubeError(f"{options.config}: {text}")
        if self._config.port != underlay.port:
            text = f"flannel's port is {self._config.port}, this node's {underlay.port}"
            raise KubeError(f"{options.config}: {text} (set underlay.port)")
        if self._config.direct and not can_route(self._config, host):
            log.warning("kubernetes: %s", LACKS_HOST)

    def __enter__(self) -> Self:
        self._daemon.on_commit.append(self._committed)
        for reflector in self._reflectors:
            reflector.start()
        self._announcer.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._daemon.on_commit.remove(self._committed)
        for reflector in self._reflectors:
            reflector.end()
        self._announcer.end()
        self._client.close()
        self._changes.put(None)
        self._thread.join(LEAVE)
        self._announcer.join(LEAVE)

    def _committed(self, applied: Applied) -> None:
        """Endpoints may have come or gone: policies may be about them."""
        if threading.current_thread() is not self._thread:
            self._changes.put(None)

    def _run(self) -> None:
        due: float | None = None
        while not self._ended.is_set():
            self._take(self._wait(due))
            due = None
            if not self._known.keys() >= KINDS.keys():
                continue
            try:
                self._commit()
                self._standing.sync()
                self._announcer.tell(self._own_node(), self._own_lease())
                self._say("")
            except BusyError:
                due = BUSY
            except DataplaneError as error:
                self._say(str(error))
                due = AGAIN
            except Exception:
                log.exception("kubernetes: unforeseen; trying again")
                self._standing.tell(UNFORESEEN)
                due = AGAIN

    def _wait(self, due: float | None) -> float | None:
        """Seconds, at most, until there is something to do."""
        change = self._peers.next_change()
        if change is None:
            return due
        left = max(change - time.monotonic(), 0)
        return left if due is None else min(left, due)

    def _take(self, timeout: float | None) -> None:
        """Waits for changes, and notes all that came during the commit before."""
        try:
            self._note(self._changes.get(timeout=timeout))
        except queue.Empty:
            return
        while not self._changes.empty():
            self._note(self._changes.get())

    def _note(self, change: Change | None) -> None:
        if change is None:
            return
        known = self._known.setdefault(change.kind, {})
        if change.listed is not None:
            self._known[change.kind] = change.listed
        elif change.object is None:
            known.pop(change.key, None)
        else:
            known[change.key] = change.object
        now = time.monotonic()
        put: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
            "nodes": (partial(self._peers.replace, now=now), partial(self._peers.put, now=now)),
            "services": (self._services.replace_services, self._services.put_service),
            "endpointslices": (self._services.replace_slices, self._services.put_slice),
        }
        if change.kind in put:
            whole, one = put[change.kind]
            if change.listed is not None:
                whole(change.listed)
            else:
                one(change.key, change.object)

    # ---- the share -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """Raises DataplaneError."""
        refused: Refused = {}
        lease = self._own_lease()
        made = self._overlay(lease, refused)
        balancers, unsaid = self._services.balancers()
        acls = self._acls(refused)
        left_out: set[str] = set()
        while True:
            kept = tuple(b for b in balancers if b.name not in left_out) if left_out else balancers
            self._network = _same(self._network, replace(made, load_balancers=kept))
            parts = [Part(network=name, endpoint_acls=each) for name, each in acls.items()]
            share = Share(networks=(self._network,), parts=tuple(parts), kept=str(lease.mac))
            try:
                if share != self._daemon.share(ORIGIN):
                    self._daemon.contribute(ORIGIN, share)
                break
            except DocumentError as error:
                found = _balancers_in(error, self._network)
                if not found or len(left_out) + len(found) > MOST_LEFT_OUT:
                    raise
                left_out |= found.keys()
                refused |= {f"service {name}": why for name, why in found.items()}
        self._tell(refused | unsaid)

    def _own_node(self) -> Object:
        """Raises KubeError."""
        name = self._options.node
        node = self._known["nodes"].get(("", name))
        if node is None:
            raise KubeError(f"node {name} is not known to the API server (--node-name)")
        return node

    def _own_lease(self) -> Lease:
        """Raises KubeError."""
        name, node = self._options.node, self._own_node()
        underlay = self._daemon.policy.underlay
        public, six = underlay.address, underlay.address6
        assert isinstance(public, ipaddress.IPv4Address)
        wanted = self._config.v6 is not None
        public6 = six if wanted and isinstance(six, ipaddress.IPv6Address) else None
        kept = self._daemon.share(ORIGIN).kept
        mac = nodes.stored_mac(node) or (Mac(kept) if kept else vtep_mac(name, int(public)))
        try:
            return nodes.own_lease(node, public, public6, mac, self._config.vni)
        except ValueError as error:
            raise KubeError(f"node {name}: {error}") from error

    def _overlay(self, own: Lease, refused: Refused) -> Network:
        underlay, host = self._daemon.policy.underlay, self._daemon.policy.host_port
        found = self._peers.subnets(own, underlay, host, time.monotonic())
        refused |= found.refused
        made = overlay(self._config, own, found.remote, found.direct, (), underlay, None)
        nat = OutboundNat() if host is not None else None  # as flanneld's --ip-masq
        return replace(made, name=NETWORK, host_route=host is not None, outbound_nat=nat)

    def _acls(self, refused: Refused) -> dict[str, dict[str, tuple[Acl, ...]]]:
        """By network and endpoint, for those endpoints that are pods of this node."""
        if not self._known["networkpolicies"]:
            return {}
        pods = self._known["pods"]
        local = {
            address: key
            for key, pod in pods.items()
            if table(pod, "spec").get("nodeName") == self._options.node
            for address in pod_addresses(pod)
        }
        cluster = policies.Cluster(
            policies=self._known["networkpolicies"],
            pods=pods,
            namespaces={key[1]: item for key, item in self._known["namespaces"].items()},
            balancers=self._services.balancers()[0],
            own=self._own_addresses(),
        )
        found: dict[str, dict[str, tuple[Acl, ...]]] = {}
        for name, endpoint in self._endpoints():
            key = next((local[a] for a in endpoint.addresses if a in local), None)
            if key is not None:
                acls, unsaid = policies.acls_of(cluster, key)
                refused |= unsaid
                if acls:
                    found.setdefault(name, {})[endpoint.name] = acls
        return found

    def _endpoints(self) -> list[tuple[str, Endpoint]]:
        policy = self._daemon.engine.node
        assert policy is not None
        return [(n.name, e) for n in policy.networks for e in n.endpoints]

    def _own_addresses(self) -> tuple[Prefix, ...]:
        """Whence this node, its kubelet among others, reaches its pods."""
        host = self._daemon.policy.host_port
        return (host_prefix(host.peer),) if host is not None else ()

    # ---- what is told --------------------------------------------------------------------------

    def _say(self, trouble: str) -> None:
        """Once per change."""
        if trouble and trouble != self._trouble:
            log.warning("kubernetes: %s; what was known last holds", trouble)
        self._trouble = trouble
        self._standing.tell(trouble)

    def _tell(self, refused: Refused) -> None:
        """Of each once, until it is another."""
        for name, why in refused.items():
            if self._told.get(name) != why:
                log.warning("kubernetes: %s is not followed: %s", name, why)
        self._told = refused


def _same(old: Network | None, new: Network) -> Network:
    """The one of before, if nothing changed: then there is nothing to plan."""
    return old if old is not None and old == new else new


def _balancers_in(error: DocumentError, network: Network) -> dict[str, str]:
    """Load balancers of ours that a document is refused for, and why."""
    names = {balancer.name for balancer in network.load_balancers}
    found: dict[str, str] = {}
    for fault in error.faults:
        _, _, place = fault.path.partition(".load_balancers[")
        number = place.partition("]")[0]
        if number.isdecimal() and int(number) < len(network.load_balancers):
            name = network.load_balancers[int(number)].name
            if name in names:
                found[name] = fault.message
    return found


def _config(place: Path) -> Config:
    try:
        return read_config(place.read_bytes(), str(place))
    except OSError as error:
        raise KubeError(f"{place}: {error.strerror} (flannel's net-conf.json)") from error
