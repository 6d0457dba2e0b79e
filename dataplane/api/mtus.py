"""How large packets may be on their way to the other VTEPs."""

import socket
from collections.abc import Iterator
from typing import Any

from dataplane.address import IP
from dataplane.defaults import OVERHEAD
from dataplane.engine import Engine

Resource = dict[str, Any]
_IP_MTU, _IPV6_MTU = 14, 24


def mtus(engine: Engine) -> Iterator[Resource]:
    """Of each network and peer: what limits packets on the way, in bytes.

    `route` is what the kernel knows of the way, its path MTU included, `learned` what ICMP told the
    engine, to be forgotten in so many seconds; `largest` is the largest inner IP packet that
    arrives whole.
    """
    policy = engine.resolved
    assert policy is not None, "a running node has a policy"
    for network in policy.networks:
        assert isinstance(network.mtu, int), "the policy is resolved"
        for peer in dict.fromkeys(r.provider_address for r in network.remote_subnets):
            route, path = _route_mtu(peer), engine.learned_path(peer)
            learned = path.mtu if path else None
            cost = OVERHEAD[peer.version]
            carried = min(filter(None, (policy.underlay.mtu, route, learned)))
            yield {
                "name": f"{network.name}/{peer}",
                "peer": str(peer),
                "underlay": policy.underlay.mtu,
                "route": route,
                "learned": learned,
                "forgotten_in": path.seconds if path else None,
                "overhead": cost,
                "network": network.mtu,
                "largest": min(network.mtu, carried - cost),
            }


def _route_mtu(peer: IP) -> int | None:
    """None: there is no route."""
    v6 = peer.version == 6
    family = socket.AF_INET6 if v6 else socket.AF_INET
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if v6 else (socket.IPPROTO_IP, _IP_MTU)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(peer), 9))  # sends nothing
            return sock.getsockopt(level, option)
        except OSError:
            return None
