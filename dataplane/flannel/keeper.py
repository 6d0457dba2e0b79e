"""Acquires and renews this node's lease as flannel's tryAcquireLease does; nothing else is written.

Each step leaves etcd so that a node which begins again finds its lease by its public IP: at most a
grant without a key is left over, which runs out by itself.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeVar

from dataplane.address import Mac
from dataplane.errors import DocumentError
from dataplane.flannel.access import EtcdError
from dataplane.flannel.documents import Config, Family, Lease, Subnet, read_lease, read_subnet
from dataplane.flannel.etcd import Client, Item

TTL = 24 * 3600  # seconds a lease lives
ATTEMPTS = 10
CHOICE = 100  # so many free subnets are looked at, one of them is taken

log = logging.getLogger("dataplane")

Net = TypeVar("Net", IPv4Network, IPv6Network)


class Identity(NamedTuple):
    """What tells this node from all others, and where it is reached."""

    public_ip: IPv4Address
    public_ip6: IPv6Address | None
    mac: Mac


class Held(NamedTuple):
    """The lease that is ours, the revision that wrote it, and when it ends (`lease_clock`)."""

    lease: Lease
    revision: int
    until: float


def lease_clock() -> float:
    """Seconds, as etcd counts those of a lease: whoever sets this machine's clock, and while it
    sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Keeper:
    """`root`: the prefix of the overlay's keys, as /coreos.com/network."""

    def __init__(self, client: Client, root: str, me: Identity) -> None:
        self._client, self._me = client, me
        self.prefix = f"{root}/subnets"

    def acquire(self, config: Config, previous: Subnet | None, known: Held | None = None) -> Held:
        """The lease we have, else the `previous` one, though it cannot be read, else a free one. A
        lease that is `known` and stands is not written again. Raises EtcdError."""
        for _ in range(ATTEMPTS):
            _, items = self._client.list(self.prefix)
            if known is not None and any(_is_written(known, item, self.prefix) for item in items):
                return known
            held = self._try(config, previous, list(self._leases(items)))
            if held is not None:
                return held
        raise EtcdError(f"others took {ATTEMPTS} free subnets just before us")

    def renew(self, held: Held) -> Held:
        """A fresh grant. Raises EtcdError, also where somebody else wrote the key meanwhile."""
        fresh = self._put(held.lease, held.revision)
        if fresh is None:
            raise EtcdError(f"lease {held.lease.subnet.key()} is no more as we wrote it")
        return fresh

    def _try(
        self,
        config: Config,
        previous: Subnet | None,
        leases: list[tuple[Item, Subnet, Lease | None]],
    ) -> Held | None:
        """None: somebody was faster."""
        for item, subnet, lease in leases:
            if lease is None or lease.public_ip != self._me.public_ip:
                continue
            if _fits(config, subnet):
                if lease.mac not in (None, self._me.mac):
                    log.warning(
                        "flannel: lease %s of %s had VtepMAC %s: is this public IP another's, too?",
                        subnet.key(), lease.public_ip, lease.mac,
                    )  # fmt: skip
                return self._put(self._lease(config, subnet), item.revision)
            log.info("flannel: lease %s does not fit the config any more: removed", subnet.key())
            self._client.delete_if(item.key, item.revision)
        for item, subnet, lease in leases:
            if lease is None and subnet == previous and _fits(config, subnet):
                return self._put(self._lease(config, subnet), item.revision)
        taken = [subnet for _, subnet, _ in leases]
        if previous is None or not _fits(config, previous) or _overlaps(previous, taken):
            previous = _free(config, taken)
        return self._put(self._lease(config, previous), 0)

    def _leases(self, items: Iterable[Item]) -> Iterator[tuple[Item, Subnet, Lease | None]]:
        for item in items:
            name = item.key.removeprefix(f"{self.prefix}/")
            try:
                subnet = read_subnet(name)
            except DocumentError:
                continue
            try:
                yield item, subnet, read_lease(name, item.value)
            except DocumentError:
                yield item, subnet, None  # taken all the same

    def _put(self, lease: Lease, revision: int) -> Held | None:
        until = lease_clock() + TTL
        grant = self._client.grant(TTL)
        written = self._client.put_if(self._key(lease.subnet), lease.text(), grant, revision)
        if written is None:
            self._client.revoke(grant)
            return None
        return Held(lease, written, until)

    def _lease(self, config: Config, subnet: Subnet) -> Lease:
        me, six = self._me, subnet.v6 is not None
        public6, mac6 = (me.public_ip6, me.mac) if six else (None, None)
        return Lease(subnet, me.public_ip, public6, me.mac, mac6, config.vni)

    def _key(self, subnet: Subnet) -> str:
        return f"{self.prefix}/{subnet.key()}"


def _is_written(held: Held, item: Item, prefix: str) -> bool:
    lease = held.lease
    own = item.key == f"{prefix}/{lease.subnet.key()}"
    return own and item.revision == held.revision and held.until > lease_clock()


def _fits(config: Config, subnet: Subnet) -> bool:
    if (config.v6 is None) != (subnet.v6 is None) or not config.v4.fits(subnet.v4):
        return False
    return config.v6 is None or subnet.v6 is None or config.v6.fits(subnet.v6)


def _overlaps(subnet: Subnet, taken: Iterable[Subnet]) -> bool:
    return any(
        subnet.v4.overlaps(t.v4)
        or (subnet.v6 is not None and t.v6 is not None and subnet.v6.overlaps(t.v6))
        for t in taken
    )


def _free(config: Config, taken: list[Subnet]) -> Subnet:
    v4 = _pick(config.v4, [t.v4 for t in taken], IPv4Network)
    if config.v6 is None:
        return Subnet(v4)
    return Subnet(v4, _pick(config.v6, [t.v6 for t in taken if t.v6 is not None], IPv6Network))


def _pick(family: Family, taken: list[Net], kind: type[Net]) -> Net:
    """One by chance, so that nodes which begin together seldom meet. Raises EtcdError."""
    step = 1 << (family.network.max_prefixlen - family.length)
    spans = sorted((int(t.network_address), int(t.broadcast_address)) for t in taken)
    free: list[int] = []
    at, next_span = family.first, 0
    while at <= family.last and len(free) < CHOICE:
        while next_span < len(spans) and spans[next_span][1] < at:
            next_span += 1
        if next_span < len(spans) and spans[next_span][0] < at + step:
            at = (spans[next_span][1] // step + 1) * step
            continue
        free.append(at)
        at += step
    if not free:
        raise EtcdError(f"no subnet of {family.network} is free")
    return kind((random.choice(free), family.length))
