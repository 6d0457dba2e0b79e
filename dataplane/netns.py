"""Doing something inside another network namespace, without moving this process there."""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dataplane.errors import PortError

T = TypeVar("T")
Identity = tuple[int, int]  # what tells a namespace from others
_CLONE_NEWNET = 0x40000000
_here = threading.local()  # `netns`: where a thread of `inside` is


def path_of(name: str) -> str:
    """A namespace's file: a path as it is, else the name that `ip netns` knows."""
    return name if "/" in name else f"/run/netns/{name}"


def here() -> Identity:
    """Of the calling thread's namespace."""
    return _identity("/proc/thread-self/ns/net")


def moved(name: str, home: Identity) -> bool:
    """Whether the name is another namespace's by now."""
    try:
        return _identity(path_of(name)) != home
    except OSError:
        return False  # of none at all: what is there may live on


def _identity(path: str) -> Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PortError(f"{path}: {error.strerror}; make it with: ip netns add NAME") from error
    try:
        if libc.setns(fd, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise PortError(f"{path}: cannot enter: {os.strerror(code)} (CAP_SYS_ADMIN is needed)")
    finally:
        os.close(fd)


def inside(netns: str | None, work: Callable[[], T]) -> T:
    """Calls `work` in the namespace, on a thread that ends with it; right here if that is None, or
    one that `work` is in already.

    Descriptors that `work` opens keep belonging to that namespace.
    """
    if netns is None or netns == getattr(_here, "netns", None):
        return work()
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _enter(path_of(netns))
            _here.netns = netns
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=f"netns-{netns}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


class Visitor:
    """A thread that stays in a namespace until `close()`, for one who has work there often. It
    goes there with the first work; for one thread at a time."""

    def __init__(self, netns: str | None) -> None:
        self._netns = netns
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises there. Raises PortError where it cannot go there."""
        return self.begin(work).result()

    def begin(self, work: Callable[[], T]) -> "Future[T]":
        """Without waiting for its end. Raises PortError where it cannot go there."""
        if self._thread is None:
            thread = ThreadPoolExecutor(1, f"netns-{self._netns}")
            try:
                thread.submit(self._settle).result()
            except BaseException:
                thread.shutdown()
                raise
            self._thread = thread
        return self._thread.submit(work)

    def _settle(self) -> None:
        if self._netns is not None:
            _enter(path_of(self._netns))
            _here.netns = self._netns

    def close(self) -> None:
        """Again is harmless."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
