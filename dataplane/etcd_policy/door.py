"""The door of a policy in etcd: every node that watches has it, each revision by one commit."""

import logging
from typing import NamedTuple

from msgspec import json

from dataplane.daemon import Daemon
from dataplane.errors import DataplaneError
from dataplane.etcd_policy.common import ROOT, Answer, read, share
from dataplane.flannel.access import Access
from dataplane.flannel.etcd import Client, Item
from dataplane.flannel.follower import LONG, Follower

ORIGIN = "etcd"
RETRY = 5.0  # seconds until a refused policy is tried again: the node's own may fit by then

log = logging.getLogger("dataplane")


class Options(NamedTuple):
    """How the command line names it."""

    urls: tuple[str, ...]
    root: str = ROOT
    access: Access | None = None


class EtcdPolicy(Follower):
    """A key that is missing changes nothing; an empty document takes all back."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        """Raises EtcdError where a URL is none."""
        super().__init__(ORIGIN, daemon, Client(options.urls, options.access), options.urls)
        self._key = f"{options.root}/policy"
        self._place = f"{options.root}/nodes/{daemon.policy.name}"
        self._refused: tuple[Item, str] | None = None
        self._answer = b""

    def _follow(self) -> None:
        revision, items = self._client.list(self._key)
        found = [item for item in items if item.key == self._key]
        self._answer = b""
        for item in found:
            self._take(item)
        if not found:
            self._standing.sync()
        with self._client.watch(self._key, revision + 1) as self._watch:
            self._tell("" if found else f"{self._key} is missing; what was known last holds")
            while not self._ended.is_set():
                events = self._watch.next(RETRY if self._refused else LONG)
                fresh = [e for e in events if e.key == self._key and not e.deleted]
                if fresh:
                    self._take(fresh[-1])
                    self._tell("")
                elif self._refused:
                    self._take(self._refused[0])

    def _take(self, item: Item) -> None:
        """Commits it, and says in etcd what became of it. Raises EtcdError."""
        before, refused = self._refused, ""
        try:
            common = read(item.value, f"{self._key} of revision {item.revision}")
            self._contribute(share(common, self._daemon.committed.own, item.revision))
            self._refused = None
            self._standing.sync()
        except DataplaneError as error:  # a fault of its, or what this node's kernel refuses
            refused = str(error)
            self._refused = item, refused
        why = f"revision {item.revision} is refused: {refused}" if refused else ""
        self._standing.tell(why, of="policy")
        if refused and self._refused != before:
            log.warning("etcd: %s", why)
        _, shares, generation = self._daemon.committed
        holds = int(shares[ORIGIN].kept if ORIGIN in shares else 0)
        made = Answer(revision=item.revision, generation=generation, holds=holds, refused=refused)
        told = json.encode(made)
        if told != self._answer:
            self._client.put(self._place, told)
            self._answer = told
            if not refused:
                log.info("etcd: revision %d is generation %d", item.revision, generation)
