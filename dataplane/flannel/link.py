"""Which peers are on the node's own link, as flannel asks for DirectRouting."""

from collections.abc import Iterable
from typing import Any

from dataplane.address import IP, Prefix
from dataplane.direct import FAMILY, PROTOCOL, Ways, asked_kernel, routes_of
from dataplane.flannel.documents import Config
from dataplane.model import DirectSubnet, HostPort, RemoteSubnet

_UNICAST = 1  # RTN_UNICAST

LACKS_HOST = (
    "DirectRouting: the host has no way to us (give the node a host_port of the overlay's IP "
    "version); peers are sent VXLAN, and those on this link that send none do not reach us"
)


def can_route(config: Config, host: HostPort | None) -> bool:
    """Whether the host, here, has a way to us in a family of the overlay."""
    families = [family for family in (config.v4, config.v6) if family is not None]
    return _version(host) in [family.network.version for family in families]


def _version(host: HostPort | None) -> int | None:
    return host.address.version if host is not None and not host.tap.netns else None


def _around(parts: Iterable[Prefix], wholes: set[Prefix]) -> set[Prefix]:
    """Those of the wholes, all of one IP version, in which one of the parts lies."""
    shorter = {(whole.version, whole.prefixlen) for whole in wholes}
    return {
        part.supernet(new_prefix=length)
        for part in parts
        for version, length in shorter
        if version == part.version and length < part.prefixlen
    }


class Link:
    """Near is to whom the way has no gateway. In the namespace of the calling thread."""

    def __init__(self) -> None:
        self._near: dict[IP, bool] = {}

    def forget(self) -> None:
        """Who is on the link may have changed."""
        self._near.clear()

    def split(
        self, remote: tuple[RemoteSubnet, ...], host: HostPort | None
    ) -> tuple[tuple[RemoteSubnet, ...], tuple[DirectSubnet, ...]]:
        """Those that take a tunnel, and those that do not: none that a part of takes one, as the
        host has no route to that. Raises PortError."""
        version = _version(host)
        near = self._near_of(
            {r.prefix: r.provider_address for r in remote if r.prefix.version == version}
        )
        near -= _around((r.prefix for r in remote if r.prefix not in near), near)
        direct = (
            DirectSubnet(prefix=r.prefix, provider_address=r.provider_address)
            for r in remote
            if r.prefix in near
        )
        return tuple(r for r in remote if r.prefix not in near), tuple(direct)

    def _near_of(self, ways: Ways) -> set[Prefix]:
        """But where somebody else has a route."""
        if not ways:
            return set()
        with asked_kernel() as kernel:
            foreign = {p for p, r in routes_of(kernel, ways) if r["proto"] != PROTOCOL}
            return {p for p, via in ways.items() if p not in foreign and self._is_near(kernel, via)}

    def _is_near(self, kernel: Any, peer: IP) -> bool:
        from pyroute2.netlink.exceptions import NetlinkError

        if peer not in self._near:
            try:
                (found,) = kernel.route("get", dst=str(peer), family=FAMILY[peer.version])
            except NetlinkError:  # there is no way at all
                return False
            gateway = found.get_attr("RTA_GATEWAY") or found.get_attr("RTA_VIA")
            self._near[peer] = found["type"] == _UNICAST and not gateway
        return self._near[peer]
