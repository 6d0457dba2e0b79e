"""Direct routing: routes of the host to other nodes on its own link, past the overlay.

They are known by a protocol number of their own, so that those of a node that was killed are found.
"""

import contextlib
import errno
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple, Self

from dataplane.address import IP, Prefix, is_within, parse_ip
from dataplane.errors import PortError
from dataplane.model import Node
from dataplane.netns import inside

PROTOCOL = 87  # RTA protocol: none of /etc/iproute2/rt_protos
MAIN = 254  # RT_TABLE_MAIN
FAMILY = {4: AF_INET, 6: AF_INET6}
LOOK = 5.0  # seconds between looks at what the kernel has

Ways = Mapping[Prefix, IP]  # by which peer each prefix is reached

log = logging.getLogger("dataplane")


class _Wanted(NamedTuple):
    """The routes of a policy; `within`: where no other routes of our protocol may be."""

    netns: str | None
    ways: Ways
    within: frozenset[Prefix]

    @classmethod
    def of(cls, node: Node) -> Self:
        """Of a resolved one."""
        if node.host_port is None:
            return cls(None, {}, frozenset())
        ways = {s.prefix: s.provider_address for n in node.networks for s in n.direct_subnets}
        within = frozenset(p for n in node.networks if n.host_route for p in n.prefixes)
        return cls(node.host_port.tap.netns, ways, within)


_NOTHING = _Wanted(None, {}, frozenset())


class DirectRoutes:
    """The routes of one node, in the network namespace of its host port. For one thread at a time,
    but for `lacking` and `is_due`."""

    def __init__(self) -> None:
        self._wanted = _NOTHING
        self._next_look = 0.0  # time.monotonic()
        self._lacking: Mapping[Prefix, str] = {}

    @property
    def lacking(self) -> Mapping[Prefix, str]:
        """What the kernel refused when it was looked at last, and why."""
        ways = self._wanted.ways
        return {prefix: why for prefix, why in self._lacking.items() if prefix in ways}

    @property
    def is_due(self) -> bool:
        """Whether `mend` would look. For any thread."""
        return bool(self._wanted.ways) and time.monotonic() >= self._next_look

    def begin(self, node: Node) -> None:
        """Those of a killed predecessor are ours, and stay or go as our own. What the kernel
        refuses does without, until it is mended."""
        before, self._wanted = self._wanted, _Wanted.of(node)
        _remove(self._wanted.netns, _left_over(before, self._wanted))
        self._next_look = 0.0
        self.mend()

    def inherit(self, node: Node) -> None:
        """Those that a predecessor with the same policy hands over."""
        self._wanted = _Wanted.of(node)

    @contextlib.contextmanager
    def changed(self, node: Node) -> Iterator[None]:
        """Inside the block there are the node's routes, beside those that stood before; after it,
        only the node's. If the block raises they are as they were.

        Raises PortError where the kernel refuses one that the policy changes.
        """
        before, after = self._wanted, _Wanted.of(node)
        old = before.ways if before.netns == after.netns else {}
        fresh = {prefix: via for prefix, via in after.ways.items() if old.get(prefix) != via}
        left_over = _left_over(before, after)
        try:
            for why in _set(after.netns, fresh).values():
                raise PortError(why)
            self._wanted = after
            yield
        except BaseException:
            self._wanted = before
            _remove(after.netns, {p: via for p, via in fresh.items() if p not in old})
            with _told():
                _set(before.netns, {p: via for p, via in old.items() if p in fresh})
            raise
        kept = after.ways if before.netns == after.netns else {}
        _remove(before.netns, {p: via for p, via in before.ways.items() if p not in kept})
        _remove(after.netns, left_over)

    def mend(self) -> None:
        """Sets what the kernel has not, now and then: with a link its routes go, and nobody brings
        them back. Of what it refuses the log tells once."""
        netns, ways, _ = self._wanted
        if not self.is_due:
            return
        self._next_look = time.monotonic() + LOOK
        try:
            refused = _set(netns, ways)
        except PortError as error:
            refused = dict.fromkeys(ways, str(error))
        for why in {why: None for p, why in refused.items() if self._lacking.get(p) != why}:
            log.warning("%s; trying again", why)
        self._lacking = refused

    def close(self) -> None:
        """Removes them."""
        _remove(self._wanted.netns, self._wanted.ways)
        self.leave()

    def leave(self) -> None:
        """They are another process's."""
        self._wanted = _NOTHING


def _left_over(before: _Wanted, after: _Wanted) -> Ways:
    """What a killed predecessor left where the policy has just come to. Raises PortError."""
    known = before.within if before.netns == after.netns else frozenset()
    within = after.within - known
    if not within:
        return {}
    standing = inside(after.netns, lambda: _standing(within))
    return {
        prefix: via
        for prefix, via in standing.items()
        if prefix not in after.ways and any(is_within(prefix, whole) for whole in within)
    }


def _set(netns: str | None, ways: Ways) -> Mapping[Prefix, str]:
    """In place of routes of ours, but of nobody else's. Returns what the kernel refuses, and why;
    raises PortError where it cannot be asked."""
    return inside(netns, lambda: _set_here(ways)) if ways else {}


def _set_here(ways: Ways) -> Mapping[Prefix, str]:
    from pyroute2.netlink.exceptions import NetlinkError

    standing = _standing(ways)
    refused: dict[Prefix, str] = {}
    with asked_kernel() as kernel:
        for prefix, via in ways.items():
            if standing.get(prefix) == via:
                continue
            try:
                kernel.route("replace" if prefix in standing else "add", **_route(prefix, via))
            except NetlinkError as error:
                others = error.code == errno.EEXIST
                why = "there is a route of somebody else's" if others else error
                refused[prefix] = f"direct subnet {prefix} via {via}: {why}"
                continue
            log.info("direct: %s via %s", prefix, via)
    return refused


def _remove(netns: str | None, ways: Ways) -> None:
    """What somebody else has removed, or the link took with it, is gone."""
    if ways:
        with _told():
            inside(netns, lambda: _remove_here(ways))


def _remove_here(ways: Ways) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    with asked_kernel() as kernel:
        for prefix, via in ways.items():
            with contextlib.suppress(NetlinkError):
                kernel.route("del", **_route(prefix, via))
                log.info("direct: %s no longer", prefix)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Cleanup goes on without what fails here, a namespace that is gone for one."""
    try:
        yield
    except PortError as error:
        log.warning("direct: %s", error)


@contextlib.contextmanager
def asked_kernel() -> Iterator[Any]:
    """A pyroute2.IPRoute; raises PortError where it does not answer."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as kernel:
            yield kernel
    except NetlinkError as error:
        raise PortError(f"direct routes: {error}") from error


def routes_of(kernel: Any, like: Iterable[Prefix], **match: int) -> Iterator[tuple[Prefix, Any]]:
    """The main table's, but for default ones, of the IP versions of `like`."""
    for version in {prefix.version for prefix in like}:
        for route in kernel.get_routes(family=FAMILY[version], table=MAIN, **match):
            if at := route.get_attr("RTA_DST"):
                yield ip_network(f"{at}/{route['dst_len']}"), route


def _standing(like: Iterable[Prefix]) -> Ways:
    """Routes of our protocol."""
    with asked_kernel() as kernel:
        return {
            prefix: parse_ip(gateway)
            for prefix, route in routes_of(kernel, like, proto=PROTOCOL)
            if (gateway := route.get_attr("RTA_GATEWAY"))
        }


def _route(prefix: Prefix, via: IP) -> dict[str, Any]:
    family = FAMILY[prefix.version]
    return {"dst": str(prefix), "gateway": str(via), "proto": PROTOCOL, "family": family}
