"""The flannel front door: follows an overlay's leases in etcd, and keeps this node's own.

A thread of its own; whatever etcd does, what was known last is forwarded.
"""

import logging
import time
from pathlib import Path
from typing import NamedTuple

from msgspec import json as msgspec_json
from msgspec.structs import replace

from dataplane.address import IP, Mac
from dataplane.daemon import Daemon
from dataplane.errors import DocumentError
from dataplane.flannel import subnet_env
from dataplane.flannel.access import Access, EtcdError
from dataplane.flannel.documents import (
    OLD_MAX_VNI,
    Config,
    Lease,
    Subnet,
    read_config,
    read_lease,
    read_subnet,
)
from dataplane.flannel.etcd import Client, Item, Watch
from dataplane.flannel.follower import LONG, Follower
from dataplane.flannel.keeper import Held, Identity, Keeper, lease_clock
from dataplane.flannel.link import LACKS_HOST, Link, can_route
from dataplane.flannel.peers import Peers
from dataplane.flannel.translate import mtu, network, remote_subnets, vtep_mac
from dataplane.model import Endpoint
from dataplane.shares import Share

ORIGIN = "flannel"
BURST = 0.02  # seconds in which events of a burst come together, for one commit
RETRY = 5.0  # seconds until subnet.env is tried again, where it cannot be written
MOST_PATIENCE = 300.0  # seconds until our lease is written over somebody's who writes over it
HALF_BEHIND = "dual stack: only IPv{} leads to the host, as its host_port is; pods need endpoints"

log = logging.getLogger("dataplane")


class Options(NamedTuple):
    """How the command line names the overlay. `margin`: seconds before the end of a lease."""

    urls: tuple[str, ...]
    root: str = "/coreos.com/network"
    endpoints: tuple[Endpoint, ...] = ()
    env: Path | None = Path(subnet_env.PLACE)
    margin: float = 3600.0
    access: Access | None = None


class Kept(NamedTuple):
    """What is found again after a restart."""

    subnet: str
    mac: str


class Flannel(Follower):
    """The lease stays when it is left: a node that comes again has it again."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        """Raises EtcdError where a URL is none, DocumentError where the node cannot take part."""
        super().__init__(ORIGIN, daemon, Client(options.urls, options.access), options.urls)
        self._options = options
        self._peers, self._link = Peers(), Link()
        self._config: Config | None = None
        self._held: Held | None = None
        self._refused: dict[str, str] = {}  # why leases are not followed, by key
        self._lacks_env = ""  # why there is no subnet.env
        self._contests = 0  # times that somebody wrote over our lease since it was renewed
        self._restoring: float | None = None  # when we write over that, time.monotonic()
        underlay = daemon.policy.underlay
        if underlay.address.version != 4:
            raise EtcdError("flannel names nodes by IPv4: underlay.address has to be one")
        kept = _kept(daemon.share(ORIGIN))
        mac = Mac(kept.mac) if kept else vtep_mac(daemon.policy.name, int(underlay.address))
        six = underlay.address6
        public6 = six if six is not None and six.version == 6 else None
        self._keeper = Keeper(self._client, options.root, Identity(underlay.address, public6, mac))
        self._previous = read_subnet(kept.subnet) if kept else None

    def _follow(self) -> None:
        config = self._config = self._config or self._read_config()
        previous = self._previous or self._from_env()
        self._hold(config, self._keeper.acquire(config, previous, self._held))
        revision, items = self._client.list(self._keeper.prefix)
        own = self._own()
        listed = {self._name(item): item for item in items if self._name(item) != own}
        self._peers.reset(listed, time.monotonic())
        self._link.forget()
        self._commit(config)
        self._standing.sync()
        with self._client.watch(self._keeper.prefix, revision + 1) as self._watch:
            self._tell("")
            while self._held is not None and not self._ended.is_set():
                self._step(config, self._watch)

    def _step(self, config: Config, watch: Watch) -> None:
        """One wait for events or for what is due. Nothing is held where our lease is lost: a
        listing tells whose the subnet is by then. Raises DataplaneError."""
        held = self._held
        assert held is not None
        renewal = held.until - self._options.margin - lease_clock()
        change = self._peers.next_change()
        dues = [due - time.monotonic() for due in (change, self._restoring) if due is not None]
        events = watch.next(min(RETRY if self._lacks_env else LONG, renewal, *dues))
        if events:
            time.sleep(BURST)
            while more := watch.next(0):
                events += more
        lost = self._note(events)
        if self._peers.expire(time.monotonic()) or events or self._lacks_env:
            self._commit(config)
        if lost:
            self._held = None
        elif renewal <= 0:
            self._contests = 0
            self._renew(config)
        elif self._restoring is not None and self._restoring <= time.monotonic():
            self._renew(config)

    def _note(self, events: list[Item]) -> bool:
        """Whether our own lease is gone."""
        lost = False
        for item in events:
            name = self._name(item)
            if name == self._own():
                lost = self._note_own(name, item, lost)
            elif item.deleted:
                self._peers.delete(name, time.monotonic())
            else:
                self._peers.put(name, item.value, item.revision)
        return lost

    def _note_own(self, name: str, item: Item, lost: bool) -> bool:
        """Whether it is gone: removed, or another node's, as all peers go there by now. What nobody
        can read, or says something else of us, is nobody's, and ours is written over it."""
        held = self._held
        assert held is not None
        if item.revision <= held.revision:
            return lost
        found = _lease_of(name, item)
        self._held = held._replace(revision=item.revision)
        if found == held.lease:  # as a successor of ours writes it
            return False
        text = "has been removed" if item.deleted else "was written by somebody else"
        log.warning("flannel: our lease %s %s", name, text)
        if item.deleted or (found is not None and found.public_ip != held.lease.public_ip):
            return True
        self._restoring = time.monotonic() + min(2.0**self._contests - 1, MOST_PATIENCE)
        self._contests = min(self._contests + 1, 16)
        return False

    def _renew(self, config: Config) -> None:
        assert self._held is not None
        self._hold(config, self._keeper.renew(self._held))

    def _hold(self, config: Config, held: Held) -> None:
        before, self._held = self._held, held
        self._previous, self._restoring = held.lease.subnet, None
        if before is None or before.lease != held.lease:
            log.info("flannel: lease %s, VNI %d", held.lease.subnet.key(), config.vni)

    def _read_config(self) -> Config:
        """Once, as flannel does: one that is changed is for nodes that begin after it."""
        place = f"{self._options.root}/config"
        found = self._client.get(place)
        if found is None:
            raise EtcdError(f"{place} is missing (write the network's config there)")
        config = read_config(found.value, place)
        underlay = self._daemon.policy.underlay
        if config.port != underlay.port:
            raise EtcdError(
                f"{place}: flannel's port is {config.port}, this node's {underlay.port}"
                f" (set underlay.port to {config.port})"
            )
        if config.v6 is not None and underlay.address6 is None:
            raise EtcdError(f"{place}: EnableIPv6, but the node has none (set underlay.address6)")
        host = self._daemon.policy.host_port
        if config.direct and not can_route(config, host):
            log.warning("flannel: %s", LACKS_HOST)
        if config.v6 is not None and host is not None and not self._options.endpoints:
            log.warning("flannel: %s", HALF_BEHIND.format(host.address.version))
        if config.vni > OLD_MAX_VNI:
            log.warning("flannel: VNI %d: nodes before 0.24 and on Windows refuse it", config.vni)
        return config

    def _commit(self, config: Config) -> None:
        """Raises DataplaneError."""
        assert self._held is not None
        own, underlay = self._held.lease, self._daemon.policy.underlay
        remote, refused = remote_subnets(config, own, self._peers.in_order(), underlay)
        self._tell_refused(refused | self._peers.refused)
        now = self._daemon.share(ORIGIN)
        host = self._daemon.policy.host_port
        remote, direct = self._link.split(remote, host) if config.direct else (remote, ())
        made = network(
            config, own, remote, direct, self._endpoints(now, own.subnet), underlay, host
        )
        kept = msgspec_json.encode(Kept(own.subnet.key(), str(own.mac))).decode()
        share = Share(networks=(made,), kept=kept)
        if _addressed(now) - _addressed(share):  # an open TAP has no other addresses
            staying = tuple(e for e in made.endpoints if e.addresses)
            self._contribute(replace(share, networks=(replace(made, endpoints=staying),)))
        self._contribute(share)
        if self._options.env is not None:
            self._write_env(subnet_env.text(config, own.subnet, mtu(config, underlay)))

    def _endpoints(self, now: Share, subnet: Subnet) -> tuple[Endpoint, ...]:
        """Those asked for, with the addresses they have, if these are of the lease."""
        had = {e.name: e.addresses for n in now.networks for e in n.endpoints}
        whole = [s for s in subnet if s is not None]
        return tuple(
            replace(e, addresses=had[e.name])
            if len(had.get(e.name, ())) == len(whole)
            and all(any(a in s for s in whole) for a in had[e.name])
            else e
            for e in self._options.endpoints
        )

    def _write_env(self, words: str) -> None:
        """What keeps it from that is told, once per change, and keeps it from nothing else."""
        place = self._options.env
        assert place is not None
        before, self._lacks_env = self._lacks_env, ""
        try:
            if not place.is_file() or place.read_text(errors="replace") != words:
                subnet_env.write(place, words)
        except OSError as error:
            self._lacks_env = f"{place}: {error.strerror}"
            if self._lacks_env != before:
                log.warning("flannel: %s; trying again", self._lacks_env)
        self._standing.tell(self._lacks_env, of="env")

    def _from_env(self) -> Subnet | None:
        return subnet_env.previous(self._options.env) if self._options.env is not None else None

    def _own(self) -> str:
        return self._held.lease.subnet.key() if self._held is not None else ""

    def _name(self, item: Item) -> str:
        return item.key.removeprefix(f"{self._keeper.prefix}/")

    def _tell_refused(self, refused: dict[str, str]) -> None:
        for key, why in refused.items():
            if self._refused.get(key) != why:
                log.warning("flannel: lease %s is not followed: %s", key, why)
        self._refused = refused


def _lease_of(name: str, item: Item) -> Lease | None:
    try:
        return None if item.deleted else read_lease(name, item.value)
    except DocumentError:
        return None


def _addressed(share: Share) -> set[tuple[str, IP]]:
    """What its endpoints have."""
    return {(e.name, a) for n in share.networks for e in n.endpoints for a in e.addresses}


def _kept(share: Share) -> Kept | None:
    if not share.kept:
        return None
    try:
        kept = msgspec_json.decode(share.kept, type=Kept)
        read_subnet(kept.subnet), Mac(kept.mac)
    except (ValueError, DocumentError) as error:
        log.warning("flannel: what was kept cannot be read: %s", error)
        return None
    return kept
