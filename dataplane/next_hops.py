"""By which neighbour packets of one interface leave, as the kernel's tables have it."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from dataplane.address import IP, Mac, parse_ip
from dataplane.errors import PortError

_ETHERNET = 1  # ARPHRD_ETHER
_WORKS = 0x1 | 0x10000  # IFF_UP, IFF_LOWER_UP
_STALE, _USABLE = 0x04, 0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02  # NUD_*: all but failed, incomplete
_USE = 0x01  # NTF_USE
_UNICAST = 1  # RTN_UNICAST
_NOT_THERE = (errno.ENODEV, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
_NEIGHBOURS = 0x4  # RTMGRP_*
_WAYS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, addresses and routes of both families


class Link(NamedTuple):
    """`works`: up, with a carrier."""

    mac: Mac
    mtu: int
    works: bool


class NextHops:
    """For use on one thread, in the network namespace that it was made in.

    One of `events` is readable once something changed; `refresh` then reads what did.
    """

    def __init__(self, interface: str) -> None:
        """Raises PortError."""
        from pyroute2 import IPRoute

        self._made = contextlib.ExitStack()
        self._index = index_of(interface)
        self._gateways: dict[tuple[IP, IP], IP | None] = {}
        self._neighbours: dict[IP, tuple[int, str | None]] = {}
        self._links = self._made.enter_context(_listener(_WAYS))
        self._others = self._made.enter_context(_listener(_NEIGHBOURS))
        self._ipr = self._made.enter_context(IPRoute())

    @property
    def events(self) -> tuple[socket.socket, socket.socket]:
        return self._links, self._others

    def refresh(self) -> Link | None:
        """Reads what changed; None: the interface is gone. Raises OSError: try again."""
        _drain(self._others)
        if _drain(self._links):
            self._gateways.clear()
        with _unless_refused():
            (link,) = self._ipr.link("get", index=self._index)
            self._neighbours = {
                parse_ip(found.get_attr("NDA_DST")): (found["state"], found.get_attr("NDA_LLADDR"))
                for found in self._ipr.neigh("dump", ifindex=self._index)
                if found.get_attr("NDA_DST")
            }
            mac, mtu = Mac(link.get_attr("IFLA_ADDRESS")), link.get_attr("IFLA_MTU")
            return Link(mac, mtu, link["flags"] & _WORKS == _WORKS)
        return None

    def find(self, remote: IP, source: IP) -> Mac | None:
        """Of the next hop to the address, if packets from that source leave here and it is known.

        Asking keeps the kernel's entry alive, which else sees nothing of what is sent past it.
        """
        hop = self._gateway(remote, source)
        state, mac = self._neighbours.get(hop, (0, None)) if hop else (0, None)
        if hop and state & _STALE:
            with _unless_refused():
                family = socket.AF_INET if hop.version == 4 else socket.AF_INET6
                where = {"dst": str(hop), "ifindex": self._index, "family": family}
                self._ipr.neigh("replace", **where, flags=_USE, state=0)
        return Mac(mac) if mac and state & _USABLE else None

    def _gateway(self, remote: IP, source: IP) -> IP | None:
        key = remote, source
        if key not in self._gateways:
            self._gateways[key] = None
            with _unless_refused():
                self._gateways[key] = self._route(remote, source)
        return self._gateways[key]

    def _route(self, remote: IP, source: IP) -> IP | None:
        family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
        (route,) = self._ipr.route("get", dst=str(remote), src=str(source), family=family)
        if route["type"] != _UNICAST or route.get_attr("RTA_OIF") != self._index:
            return None
        via: Mapping[str, Any] = route.get_attr("RTA_VIA") or {}
        gateway = route.get_attr("RTA_GATEWAY") or via.get("addr")
        return parse_ip(gateway) if gateway else remote

    def close(self) -> None:
        self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def index_of(interface: str) -> int:
    """Its number, in the calling thread's namespace, if it is Ethernet. Raises PortError."""
    from pyroute2 import IPRoute

    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        raise PortError(f"{interface}: no such interface") from None
    with IPRoute() as ipr:
        (link,) = ipr.link("get", index=index)
    if link["ifi_type"] != _ETHERNET:
        raise PortError(f"{interface}: is no Ethernet interface")
    return index


def _listener(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    sock.bind((0, groups))
    return sock


def _drain(sock: socket.socket) -> bool:
    """Whether there was anything. What was lost for want of room counts as something."""
    found = False
    while True:
        try:
            sock.recv(65_536)
        except BlockingIOError:
            return found
        except OSError:  # ENOBUFS
            pass
        found = True


@contextlib.contextmanager
def _unless_refused() -> Iterator[None]:
    """What is not there, or unreachable, is no error; other refusals are an OSError."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in _NOT_THERE:
            raise OSError(error.code, os.strerror(error.code)) from error
