"""Direct routing: routes of the host to other nodes on its own link, past the overlay.

They are known by a protocol number of their own, so that those of a node that was killed are found.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import Any

from dataplane.address import IP, Prefix, parse_ip
from dataplane.errors import PortError
from dataplane.model import Node
from dataplane.netns import inside

PROTOCOL = 87  # RTA protocol: none of /etc/iproute2/rt_protos
MAIN = 254  # RT_TABLE_MAIN
FAMILY = {4: AF_INET, 6: AF_INET6}

Ways = Mapping[Prefix, IP]  # by which peer each prefix is reached

log = logging.getLogger("dataplane")


def ways_of(node: Node) -> Ways:
    """What a resolved node has of them."""
    return {s.prefix: s.provider_address for n in node.networks for s in n.direct_subnets}


class DirectRoutes:
    """The routes of one node, in the network namespace of its host port. For one thread at a time.
    Methods raise PortError where the kernel refuses."""

    def __init__(self) -> None:
        self._netns: str | None = None
        self._made: dict[Prefix, IP] = {}

    def adopt(self, node: Node) -> None:
        """Those of a predecessor are ours now, and stay or go as our own."""
        if node.host_port is None:
            return
        within = [p for n in node.networks if n.host_route for p in n.prefixes]
        self._netns = node.host_port.tap.netns
        self._made = inside(self._netns, lambda: dict(_standing(within))) if within else {}

    @contextlib.contextmanager
    def changed(self, node: Node) -> Iterator[None]:
        """Inside the block there are the node's routes, beside those that stood before; after it,
        only the node's. If the block raises they are as they were."""
        before, after = dict(self._made), ways_of(node)
        if node.host_port is not None:
            self._netns = node.host_port.tap.netns
        new = {prefix: via for prefix, via in after.items() if before.get(prefix) != via}
        try:
            self._set(new)
            yield
        except BaseException:
            with contextlib.suppress(PortError):
                self._set({prefix: before[prefix] for prefix in new.keys() & before.keys()})
                self._remove([prefix for prefix in self._made if prefix not in before])
            raise
        self._remove([prefix for prefix in before if prefix not in after])

    def close(self) -> None:
        """Removes them."""
        self._remove(list(self._made))

    def leave(self) -> None:
        """They are another process's."""
        self._made = {}

    def _set(self, ways: Ways) -> None:
        if ways:
            inside(self._netns, lambda: self._set_here(ways))

    def _set_here(self, ways: Ways) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        with IPRoute() as kernel:
            for prefix, via in ways.items():
                known = self._made.get(prefix)
                try:
                    kernel.route("add" if known is None else "replace", **_route(prefix, via))
                except NetlinkError as error:
                    why = (
                        "there is a route of somebody else's"
                        if error.code == errno.EEXIST
                        else error
                    )
                    raise PortError(f"direct subnet {prefix} via {via}: {why}") from error
                self._made[prefix] = via
                log.info("direct: %s via %s", prefix, via)

    def _remove(self, prefixes: list[Prefix]) -> None:
        if prefixes:
            inside(self._netns, lambda: self._remove_here(prefixes))

    def _remove_here(self, prefixes: list[Prefix]) -> None:
        """What somebody else has removed, or the link took with it, is gone."""
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        with IPRoute() as kernel:
            for prefix in prefixes:
                with contextlib.suppress(NetlinkError):
                    kernel.route("del", **_route(prefix, self._made[prefix]))
                del self._made[prefix]
                log.info("direct: %s no longer", prefix)


def _standing(within: list[Prefix]) -> Iterator[tuple[Prefix, IP]]:
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        for version in dict.fromkeys(prefix.version for prefix in within):
            for route in kernel.get_routes(family=FAMILY[version], proto=PROTOCOL, table=MAIN):
                gateway, at = route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_DST")
                if not gateway or not at:
                    continue
                prefix = ip_network(f"{at}/{route['dst_len']}")
                if any(prefix.version == w.version and prefix.subnet_of(w) for w in within):  # type: ignore[arg-type]
                    yield prefix, parse_ip(gateway)


def _route(prefix: Prefix, via: IP) -> dict[str, Any]:
    family = FAMILY[prefix.version]
    return {"dst": str(prefix), "gateway": str(via), "proto": PROTOCOL, "family": family}
