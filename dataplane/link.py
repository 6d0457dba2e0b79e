"""A link by its name, over netlink: itself, and the routes to what is behind it."""

import contextlib
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from dataplane.address import IP, Prefix
from dataplane.errors import PortError
from dataplane.netns import Visitor

_ONLINK = 4  # RTNH_F_ONLINK
_NODAD = 0x02  # IFA_F_NODAD: usable at once, the guard makes it unique


class Route(NamedTuple):
    """`source`: an address that the host has for it, and uses where it may choose."""

    prefix: Prefix
    gateway: IP
    source: IP | None = None


@contextlib.contextmanager
def linked(name: str, kernel: Any = None) -> Iterator[tuple[Any, int]]:
    """A pyroute2.IPRoute, that one if it is given, and the link's index. Raises PortError, also for
    what the kernel refuses inside the block."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        index = socket.if_nametoindex(name)
    except OSError:
        raise PortError(f"{name}: the interface is gone") from None
    with contextlib.nullcontext(kernel) if kernel else IPRoute() as asked:
        try:
            yield asked, index
        except NetlinkError as error:
            raise PortError(f"{name}: {error}") from error


def replace_address(
    kernel: Any, index: int, address: IP, length: int, peer: IP | None = None
) -> None:
    """With `peer`, a point-to-point one."""
    extra: dict[str, Any] = {"local": str(address)} if peer else {}
    if address.version == 6:
        extra["flags"] = _NODAD
    kernel.addr("replace", index=index, prefixlen=length, address=str(peer or address), **extra)


def replace_route(
    kernel: Any, index: int, prefix: Prefix | str, gateway: IP, source: IP | None = None
) -> None:
    kernel.route("replace", **_way(index, prefix, gateway, source))


def _way(index: int, prefix: Prefix | str, gateway: IP, source: IP | None) -> dict[str, Any]:
    """On link by decree: the kernel knows the gateway's prefix only once it sees a carrier."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    own = {"prefsrc": str(source)} if source is not None else {}
    to = {"dst": str(prefix), "gateway": str(gateway), "family": family}
    return to | {"oif": index, "flags": _ONLINK} | own


class LinkRoutes:
    """By these its namespace finds what is behind the link. They change with every service, so a
    thread stays there, with its connection to the kernel. For one thread at a time."""

    def __init__(self, name: str, netns: str | None) -> None:
        self._name, self._visitor = name, Visitor(netns)
        self._kernel: Any = None  # of the visitor's thread

    def add(self, routes: Iterable[Route]) -> None:
        """With the addresses that they are used from. Raises PortError."""
        self.begin(routes)()

    def begin(self, routes: Iterable[Route]) -> Callable[[], None]:
        """As `add`, without waiting for the kernel: what is returned does, and raises PortError,
        as `begin` may."""
        told = list(routes)

        def work(kernel: Any, index: int) -> None:
            for source in _sources(told):
                replace_address(kernel, index, source, source.max_prefixlen)
            for route in told:
                replace_route(kernel, index, *route)

        return self._there(work, told)

    def remove(self, routes: Iterable[Route], kept: Collection[Route]) -> None:
        """Those that are still there, as is nothing of a namespace that is gone. One to a prefix
        that is among `kept`, too, by another source, is that one by now, and stays."""
        from pyroute2.netlink.exceptions import NetlinkError

        told = list(routes)
        stay = {route.prefix for route in kept} if told else set()

        def work(kernel: Any, index: int) -> None:
            for route in told:
                if route.prefix in stay:
                    continue
                with contextlib.suppress(NetlinkError):
                    kernel.route("del", **_way(index, *route))
            for source in _sources(told) - _sources(kept):
                with contextlib.suppress(NetlinkError):
                    length = source.max_prefixlen
                    kernel.addr("del", index=index, address=str(source), prefixlen=length)

        with contextlib.suppress(PortError):
            self._there(work, told)()

    def _there(self, work: Callable[[Any, int], None], told: list[Route]) -> Callable[[], None]:
        """What waits for its end."""
        from pyroute2 import IPRoute

        def visit() -> None:
            self._kernel = self._kernel or IPRoute()
            with linked(self._name, self._kernel) as (kernel, index):
                work(kernel, index)

        return self._visitor.begin(visit).result if told else lambda: None

    def close(self) -> None:
        """The routes stay; again is harmless."""
        if self._kernel is not None:
            self._visitor(self._kernel.close)
            self._kernel = None
        self._visitor.close()


def _sources(routes: Iterable[Route]) -> set[IP]:
    return {route.source for route in routes if route.source is not None}
