"""What is known of the other nodes' leases, as events tell. Pure.

A lease that goes stays for a grace: a node that begins anew deletes its lease and writes it again,
and its traffic must not stop in between.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dataplane.errors import DocumentError
from dataplane.flannel.documents import Lease, read_lease
from dataplane.flannel.etcd import Item

GRACE = 5.0  # seconds


@dataclass
class Peers:
    """Leases by key (its last part), with the revision that wrote each."""

    leases: dict[str, tuple[Lease, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # key → why it cannot be read
    _leaving: dict[str, float] = field(default_factory=dict)  # key → when it goes

    def put(self, key: str, value: bytes, revision: int) -> None:
        """A lease that cannot be read leaves what was known of its subnet, one without a VtepMAC
        that of before, as long as the node is the same."""
        self.refused.pop(key, None)
        try:
            lease = read_lease(key, value)
            known, told = self.leases.get(key, (lease, revision))
            completed = _completed(lease, known)
            self.leases[key] = completed, revision if completed == lease else told
        except DocumentError as error:
            self.refused[key] = str(error)
        self._leaving.pop(key, None)

    def delete(self, key: str, now: float) -> None:
        self.refused.pop(key, None)
        if key in self.leases:
            self._leaving.setdefault(key, now + GRACE)

    def reset(self, listed: Mapping[str, Item], now: float) -> None:
        """To what a listing tells, by key; what it does not name leaves."""
        for key, item in listed.items():
            self.put(key, item.value, item.revision)
        for key in [*self.leases, *self.refused]:
            if key not in listed:
                self.delete(key, now)

    def next_change(self) -> float | None:
        """When `expire` has something to do."""
        return min(self._leaving.values(), default=None)

    def expire(self, now: float) -> bool:
        """Whether any lease has gone for good."""
        gone = [key for key, at in self._leaving.items() if at <= now]
        for key in gone:
            del self._leaving[key], self.leases[key]
        return bool(gone)

    def in_order(self) -> Iterable[Lease]:
        """The latest first: what it says of a node holds."""
        ordered = sorted(self.leases.values(), key=lambda known: -known[1])
        return [lease for lease, _ in ordered]


def _completed(lease: Lease, known: Lease) -> Lease:
    """With the MACs known of it, where it does not tell one."""
    mac, mac6 = lease.mac, lease.mac6
    if mac is None and lease.public_ip == known.public_ip:
        mac = known.mac
    if mac6 is None and lease.public_ip6 == known.public_ip6:
        mac6 = known.mac6
    return lease._replace(mac=mac, mac6=mac6)
