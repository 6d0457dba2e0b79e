"""Doors that follow etcd: how long they wait until they try again. No etcd, and no time, passes."""

import threading
from collections.abc import Iterator
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from dataplane.daemon import Daemon
from dataplane.flannel import follower
from dataplane.flannel.access import EtcdError
from dataplane.flannel.etcd import Client, CompactedError
from dataplane.flannel.follower import Follower
from dataplane.model import Node, Underlay
from dataplane.state_dir import Saved

URL = "http://127.0.0.1:2379"
SHORT, LONG = 0.01, 3600.0


class Clock(threading.Event):
    """Waiting takes no time; nobody is waited for any more once there is nothing more to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.waits = 0.0, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return False


class Door(Follower):
    """Follows for so many seconds each time, until the next trouble."""

    def __init__(self, daemon: Daemon, clock: Clock, story: Iterator[tuple[float, Exception]]):
        super().__init__("door", daemon, Client([URL]), [URL])
        self._ended = self.clock = clock
        self.story = story

    def _follow(self) -> None:
        lasts, error = next(self.story, (0.0, None))
        self.clock.now += lasts
        if error is None:
            self.clock.set()
        else:
            raise error


def test_attempts_become_rarer_until_one_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended it; a trouble of long ago is no reason to be late."""
    lost, again = EtcdError("lost"), CompactedError("compacted")
    story = [*7 * [(SHORT, lost)], (LONG, lost), (SHORT, lost), (LONG, again), (SHORT, again)]
    clock = Clock()
    monkeypatch.setattr(follower, "time", SimpleNamespace(monotonic=lambda: clock.now))
    node = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.77"), port=4794))
    with Daemon(Saved(1, node)) as daemon:
        Door(daemon, clock, iter(story))._run()
    waits = clock.waits[: len(story)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 0.1, 0.2, 0.1, 0.2])
