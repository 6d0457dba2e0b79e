"""Services and EndpointSlices as load balancers: kube-proxy's part. Pure.

kubernetes.io/docs/reference/networking/virtual-ips. What the model has no word for is left out, and
told by name.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from msgspec.structs import replace

from dataplane.address import IP, Malformed, parse_ip
from dataplane.kubernetes.objects import Key, Object, Refused, labels_of, short, table
from dataplane.model import Backend, LoadBalancer, Transport

OF_SERVICE = "kubernetes.io/service-name"  # the label of a slice
HEADLESS = "service.kubernetes.io/headless"
OTHERS = "service.kubernetes.io/service-proxy-name"  # the label of a service that is not for us
TRANSPORTS: dict[str, Transport] = {"TCP": "tcp", "UDP": "udp"}


class Made(NamedTuple):
    """Of one service."""

    balancers: tuple[LoadBalancer, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


class Services:
    """What is known of services, and the load balancers they are. Those of a service that did not
    change stay the same objects."""

    def __init__(self, host_port: bool) -> None:
        """`host_port`: whether the node has one, for node ports."""
        self._host_port = host_port
        self._services: dict[Key, Object] = {}
        self._slices: dict[Key, Object] = {}
        self._of: dict[Key, dict[Key, None]] = {}  # slices by service
        self._made: dict[Key, Made] = {}
        self._order: list[Key] = []  # of what is made
        self._changed: set[Key] = set()

    def put_service(self, key: Key, item: Object | None) -> None:
        """None: it is gone."""
        if item is None:
            self._services.pop(key, None)
        else:
            self._services[key] = item
        self._changed.add(key)

    def put_slice(self, key: Key, item: Object | None) -> None:
        """None: it is gone."""
        old = self._slices.pop(key, None)
        if old is not None and (owner := _owner(key, old)) is not None:
            self._of[owner].pop(key, None)
            self._changed.add(owner)
        if item is not None:
            self._slices[key] = item
            if (owner := _owner(key, item)) is not None:
                self._of.setdefault(owner, {})[key] = None
                self._changed.add(owner)

    def replace_services(self, items: dict[Key, Object]) -> None:
        for key in {*self._services} | {*items}:
            if self._services.get(key) != items.get(key):
                self.put_service(key, items.get(key))

    def replace_slices(self, items: dict[Key, Object]) -> None:
        for key in {*self._slices} | {*items}:
            if self._slices.get(key) != items.get(key):
                self.put_slice(key, items.get(key))

    def balancers(self) -> tuple[tuple[LoadBalancer, ...], Refused]:
        """All of them, in the order of their services' names."""
        for key in self._changed:
            service = self._services.get(key)
            if service is None:
                if self._made.pop(key, None):
                    self._order.remove(key)
                continue
            slices = [self._slices[of] for of in sorted(self._of.get(key, ()))]
            made = _made(key, service, slices, self._host_port)
            if key not in self._made:
                insort(self._order, key)
            if made != self._made.get(key):
                self._made[key] = made
        self._changed.clear()
        ordered = [self._made[key] for key in self._order]
        refused = {name: why for made in ordered for name, why in made.refused}
        return tuple(b for made in ordered for b in made.balancers), refused


def _owner(key: Key, item: Object) -> Key | None:
    """The service that a slice is of."""
    labels = labels_of(item)
    name = labels.get(OF_SERVICE)
    return (key[0], name) if isinstance(name, str) and HEADLESS not in labels else None


def _made(key: Key, service: Object, slices: list[Object], host_port: bool) -> Made:
    refused: list[tuple[str, str]] = []
    try:
        balancers = tuple(_balancers(key, service, slices, host_port, refused))
    except (Malformed, ValueError, TypeError, KeyError, AttributeError) as error:
        return Made(refused=((f"service {'/'.join(key)}", f"cannot be read: {error!r}"),))
    return Made(balancers, tuple(refused))


def _balancers(
    key: Key,
    service: Object,
    slices: list[Object],
    host_port: bool,
    refused: list[tuple[str, str]],
) -> Iterator[LoadBalancer]:
    spec, labels = table(service, "spec"), labels_of(service)
    cluster = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip]
    if spec.get("type") == "ExternalName" or OTHERS in labels or "None" in cluster:
        return
    inside = tuple(map(parse_ip, cluster))
    outside = tuple(dict.fromkeys(_outside(service, spec)))
    local = spec.get("internalTrafficPolicy") == "Local"
    far_local = spec.get("externalTrafficPolicy") == "Local"
    affinity: Literal["source_ip", "none"] = (
        "source_ip" if spec.get("sessionAffinity") == "ClientIP" else "none"
    )
    for port in spec.get("ports") or ():
        name = f"{key[0]}.{key[1]}.{port.get('name') or port['port']}"
        transport = TRANSPORTS.get(port.get("protocol") or "TCP")
        if transport is None:
            refused.append((f"service {name}", f"{port['protocol']} is not balanced"))
            continue
        node_port = port.get("nodePort") or None
        if node_port and not host_port:
            refused.append((f"service {name}", "its nodePort needs a host_port of the node"))
            node_port = None
        made = LoadBalancer(
            name=short(name),
            protocol=transport,
            port=port["port"],
            affinity=affinity,
            backends=tuple(_backends(port, slices)),
        )
        if local == far_local:
            parts = [(made.name, inside + outside, node_port, local)]
        else:
            parts = [(made.name, inside, None, local)]
            parts += [(short(f"{name}.outside"), outside, node_port, far_local)]
        for own, vips, number, only in parts:
            if vips or number:
                yield replace(made, name=own, vips=vips, node_port=number, local_only=only)


def _outside(service: Object, spec: Object) -> Iterator[IP]:
    """Addresses by which clients outside the cluster know it."""
    yield from map(parse_ip, spec.get("externalIPs") or ())
    for each in table(service, "status", "loadBalancer").get("ingress") or ():
        if each.get("ip") and each.get("ipMode") != "Proxy":
            yield parse_ip(each["ip"])


class _Server(NamedTuple):
    backend: tuple[IP, int]
    ready: bool
    serving: bool


def _backends(port: Object, slices: Iterable[Object]) -> Iterator[Backend]:
    """Ready ones, and those that end but still serve, which keep their flows; where none is ready
    the latter get new ones, too (KEP-1669)."""
    servers = list(dict.fromkeys(_servers(port, slices)))
    ready = {server.backend for server in servers if server.ready}
    ending = {s.backend: None for s in servers if s.serving and s.backend not in ready}
    for server in servers:
        if server.ready:
            yield Backend(address=server.backend[0], port=server.backend[1])
    for address, number in ending:
        yield Backend(address=address, port=number, drain=bool(ready))


def _servers(port: Object, slices: Iterable[Object]) -> Iterator[_Server]:
    wanted = port.get("name") or "", port.get("protocol") or "TCP"
    for item in slices:
        if item.get("addressType") not in ("IPv4", "IPv6"):
            continue
        numbers = [
            each["port"]
            for each in item.get("ports") or ()
            if (each.get("name") or "", each.get("protocol") or "TCP") == wanted
            and each.get("port") is not None
        ]
        for endpoint in item.get("endpoints") or ():
            told = table(endpoint, "conditions")
            ready = told.get("ready") is not False
            ending = told.get("terminating") is True
            serving = ending and (told.get("serving", ready) is not False)
            for address in endpoint.get("addresses") or ():
                for number in numbers:
                    yield _Server((parse_ip(address), number), ready and not ending, serving)
