"""EndpointSlices as the servers behind a service's port: who gets new flows. Pure.

What is wrong with a value raises Malformed, or one of UNREADABLE where it is of another kind.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dataplane.address import IP, Malformed, parse_ip
from dataplane.kubernetes.objects import Key, Object, table
from dataplane.model import Backend
from dataplane.validate_values import unicast

UNREADABLE = ValueError, TypeError, KeyError, AttributeError

Slices = dict[Key, Object]


def reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, Malformed) else f"cannot be read: {error!r}"


class Server(NamedTuple):
    address: IP
    port: int
    node: str | None
    ready: bool
    ending: bool  # and serves

    @property
    def rank(self) -> int:
        """0: ready; 1: may be used where none is; 2: keeps the flows it has."""
        return 0 if self.ready else 1 if self.ending else 2


def backends_of(
    servers: Iterable[Server], versions: set[int], only: bool, node: str
) -> Iterator[Backend]:
    """Ready ones; where none is, those that end but still serve (KEP-1669). All others keep their
    flows, as they do behind kube-proxy. `only`: of this node."""
    rank: dict[tuple[IP, int], int] = {}
    for server in servers:
        if server.address.version in versions and (server.node == node or not only):
            where = server.address, server.port
            rank[where] = min(server.rank, rank.get(where, 2))
    best = {v: min((r for (a, _), r in rank.items() if a.version == v), default=0) for v in (4, 6)}
    for (address, port), own in rank.items():
        taken = own == best[address.version] and own < 2
        yield Backend(address=address, port=port, drain=not taken)


def servers_of(port: Object, slices: Slices, refused: list[tuple[str, str]]) -> Iterator[Server]:
    """A slice that cannot be read has none."""
    for key, item in slices.items():
        try:
            yield from list(_of_slice(port, item))
        except UNREADABLE as error:
            refused.append((f"endpointslice {'/'.join(key)}", reason_of(error)))


def _of_slice(port: Object, item: Object) -> Iterator[Server]:
    wanted = port.get("name") or "", port.get("protocol") or "TCP"
    if item.get("addressType") not in ("IPv4", "IPv6"):
        return
    numbers = [
        port_of(each["port"])
        for each in item.get("ports") or ()
        if (each.get("name") or "", each.get("protocol") or "TCP") == wanted
        and each.get("port") is not None
    ]
    for endpoint in item.get("endpoints") or ():
        told = table(endpoint, "conditions")
        ready, serving = (told.get(word) is not False for word in ("ready", "serving"))
        ending = serving and told.get("terminating") is True
        for address in endpoint.get("addresses") or ():
            for number in numbers:
                yield Server(station(address), number, endpoint.get("nodeName"), ready, ending)


def station(text: Any) -> IP:
    if not isinstance(text, str):
        raise Malformed(f"{text!r} is no address")
    address = parse_ip(text)
    for complaint in unicast(address, ()):
        raise Malformed(complaint.message)
    return address


def port_of(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 65535:
        raise Malformed(f"{number!r} is not a port (1-65535)")
    return number
