"""Followers: doors that do what etcd says, on a thread of their own, whatever becomes of etcd."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from dataplane.daemon import Daemon
from dataplane.errors import BusyError, DataplaneError
from dataplane.flannel.etcd import Client, CompactedError, Watch
from dataplane.shares import Share
from dataplane.standing import UNFORESEEN

BACK_OFF = 0.1, 5.0  # seconds between attempts: the first, and the longest
LEAVE = 1.0  # seconds until a thread that etcd holds up is left alone
LONG = 3600.0  # seconds to wait for events, if nothing else is due

log = logging.getLogger("dataplane")


class Follower(ABC):
    """A context manager; see run.Door."""

    def __init__(self, origin: str, daemon: Daemon, client: Client, urls: Iterable[str]) -> None:
        """`origin`: of its share, and how the log calls it. `urls`: those of the client."""
        self._origin, self._daemon, self._client = origin, daemon, client
        look = f"etcdctl --endpoints={','.join(urls)} endpoint health"
        self._standing = daemon.door(origin, look)
        self._ended = threading.Event()
        self._watch: Watch | None = None
        self._state = ""
        self._thread = threading.Thread(target=self._run, name=origin, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended.set()
        if (watch := self._watch) is not None:
            watch.wake()
        self._client.close()
        self._thread.join(LEAVE)

    @abstractmethod
    def _follow(self) -> None:
        """From a listing on, until all has to be listed again. Raises DataplaneError."""

    def _run(self) -> None:
        wait = BACK_OFF[0]
        while not self._ended.is_set():
            begin = time.monotonic()
            try:
                self._follow()
            except CompactedError as error:
                log.info("%s: %s; listing again", self._origin, error)
            except DataplaneError as error:
                self._tell(f"{error}; what was known last holds")
            except Exception:
                log.exception("%s: unforeseen; trying again", self._origin)
                self._standing.tell(UNFORESEEN)
            if time.monotonic() - begin > BACK_OFF[1]:  # it lasted
                wait = BACK_OFF[0]
            self._ended.wait(wait)
            wait = min(wait * 2, BACK_OFF[1])

    def _contribute(self, share: Share) -> None:
        """Raises DataplaneError, but not while a successor takes over: it waits then."""
        while share != self._daemon.share(self._origin) and not self._ended.is_set():
            try:
                self._daemon.contribute(self._origin, share)
                break
            except BusyError:
                self._ended.wait(BACK_OFF[0])

    def _tell(self, trouble: str) -> None:
        """Once per change."""
        if trouble != self._state:
            if trouble:
                log.warning("%s: %s", self._origin, trouble)
            else:
                log.info("%s: follows etcd", self._origin)
            self._state = trouble
        self._standing.tell(trouble)
