"""Direct routing: routes of the host to peers on its own link, past the overlay.

They are known by a protocol number of their own, so that those of a node that was killed are found.
"""

import logging
import socket
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from dataplane.address import IP, Prefix, parse_ip
from dataplane.errors import PortError
from dataplane.model import HostPort, Network

PROTOCOL = 87  # RTA protocol: none of /etc/iproute2/rt_protos
_MAIN, _UNICAST = 254, 1  # RT_TABLE_MAIN, RTN_UNICAST
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

LACKS_HOST = (
    "DirectRouting: the host has not the lease (give the node a host_port, and no endpoints); "
    "peers are sent VXLAN, and those on this link that send none do not reach us"
)

log = logging.getLogger("dataplane")


class DirectRoutes:
    """All of them within some prefixes, in the namespace of the calling thread. For one thread at a
    time. Methods raise PortError where the kernel refuses."""

    def __init__(self) -> None:
        self._within: tuple[Prefix, ...] = ()
        self._on_link: dict[IP, bool] = {}
        self._may_stand = True  # of one that was killed

    def forget(self) -> None:
        """Who is on the link may have changed."""
        self._on_link.clear()

    def follow(self, is_wanted: bool, network: Network, host: HostPort | None) -> str:
        """Routes to remote subnets of the families that the host has of the lease. Why there are
        none though they are wanted; empty if all is well."""
        behind = {s.version for s in network.host_subnets} if host and not host.tap.netns else ()
        remote = network.remote_subnets if is_wanted else ()
        wanted = {r.prefix: r.provider_address for r in remote if r.prefix.version in behind}
        if wanted or self._may_stand:
            self.apply(network.prefixes, wanted)
            self._may_stand = bool(wanted)
        return LACKS_HOST if is_wanted and not behind else ""

    def apply(self, within: tuple[Prefix, ...], wanted: Mapping[Prefix, IP]) -> None:
        """Routes by prefix, each via its peer if that is on the link: these, and no others."""
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        self._within = within
        with IPRoute() as kernel:
            try:
                near = {p: via for p, via in wanted.items() if self._is_on_link(kernel, via)}
                there = dict(self._there(kernel))
                for prefix in there.keys() - near.keys():
                    kernel.route("del", **_way(prefix, there[prefix]))
                    log.info("flannel: %s: no longer direct", prefix)
                for prefix, via in near.items():
                    if there.get(prefix) != via:
                        kernel.route("replace", **_way(prefix, via))
                        log.info("flannel: %s: direct, via %s", prefix, via)
            except NetlinkError as error:
                raise PortError(f"direct routes: {error}") from error

    def close(self) -> None:
        """Removes them."""
        if self._may_stand and self._within:
            self.apply(self._within, {})

    def _is_on_link(self, kernel: Any, peer: IP) -> bool:
        """As flannel asks: the way to it has no gateway."""
        from pyroute2.netlink.exceptions import NetlinkError

        if peer not in self._on_link:
            try:
                (found,) = kernel.route("get", dst=str(peer), family=_FAMILY[peer.version])
            except NetlinkError:  # there is no way at all
                return False
            gateway = found.get_attr("RTA_GATEWAY") or found.get_attr("RTA_VIA")
            self._on_link[peer] = found["type"] == _UNICAST and not gateway
        return self._on_link[peer]

    def _there(self, kernel: Any) -> Iterator[tuple[Prefix, IP]]:
        for version in dict.fromkeys(prefix.version for prefix in self._within):
            for route in kernel.get_routes(family=_FAMILY[version], proto=PROTOCOL, table=_MAIN):
                gateway, at = route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_DST")
                if not gateway or not at:
                    continue
                prefix = ip_network(f"{at}/{route['dst_len']}")
                if any(prefix.version == w.version and prefix.subnet_of(w) for w in self._within):  # type: ignore[arg-type]
                    yield prefix, parse_ip(gateway)


def _way(prefix: Prefix, via: IP) -> dict[str, Any]:
    family = _FAMILY[prefix.version]
    return {"dst": str(prefix), "gateway": str(via), "proto": PROTOCOL, "family": family}
