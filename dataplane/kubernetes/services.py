"""Services and EndpointSlices as load balancers: kube-proxy's part. Pure.

kubernetes.io/docs/reference/networking/virtual-ips. What the model has no word for is left out, and
told by name; no object of the server's can have all others refused.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple

from msgspec.structs import replace

from dataplane.address import IP, Malformed
from dataplane.kubernetes.endpoints import (
    UNREADABLE,
    Slices,
    backends_of,
    port_of,
    reason_of,
    servers_of,
    station,
)
from dataplane.kubernetes.objects import Key, Object, Refused, labels_of, short, table
from dataplane.model import LoadBalancer, Transport
from dataplane.validate_values import named

OF_SERVICE = "kubernetes.io/service-name"  # the label of a slice
HEADLESS = "service.kubernetes.io/headless"
OTHERS = "service.kubernetes.io/service-proxy-name"  # the label of a service that is not for us
TRANSPORTS: dict[str, Transport] = {"TCP": "tcp", "UDP": "udp"}
AFFINITY = 10800  # seconds, where a service does not say; ours lasts as long as the backends do


class Here(NamedTuple):
    """This node: what Kubernetes calls it, and its host port's address, for node ports."""

    node: str
    host: IP | None = None


class Made(NamedTuple):
    """Of one service. `claims`: what only one load balancer of all may have."""

    balancers: tuple[LoadBalancer, ...] = ()
    claims: tuple[tuple[str, ...], ...] = ()  # of each of them
    refused: tuple[tuple[str, str], ...] = ()


class Services:
    """What is known of services, and the load balancers they are. Those of a service that did not
    change stay the same objects."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._services: dict[Key, Object] = {}
        self._slices: dict[Key, Object] = {}
        self._of: dict[Key, dict[Key, None]] = {}  # slices by service
        self._changed: set[Key] = set()
        self._order: list[Key] = []  # of those that there are
        self._made: list[Made] = []  # of each of them
        self._counts: list[int] = []  # of the load balancers of each
        self._balancers: list[LoadBalancer] = []  # of all of them
        self._claims = Counter[str]()  # by how many each is claimed
        self._clashes = 0  # claims beyond the first of their kind
        self._refused: dict[Key, Made] = {}  # those of which something is

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
            self._of[owner].pop(key)
            if not self._of[owner]:
                del self._of[owner]
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
        """All of them, in the order of their services' names. Where two claim the same, the first
        one has it."""
        for key in self._changed:
            self._change(key)
        self._changed.clear()
        in_order = map(self._refused.__getitem__, sorted(self._refused))
        refused = dict(chain.from_iterable(made.refused for made in in_order))
        if self._clashes:
            return tuple(_first_come(self._made, refused)), refused
        return tuple(self._balancers), refused

    def _change(self, key: Key) -> None:
        """In its place; what is as it was stays the same object."""
        made, begin = self._make(key), bisect_left(self._order, key)
        end = begin + (self._order[begin : begin + 1] == [key])
        old, new = self._made[begin:end], [] if made is None else [made]
        if old != new:
            self._order[begin:end] = [key] * len(new)
            self._made[begin:end] = new
            first = sum(self._counts[:begin])
            last = first + sum(self._counts[begin:end])
            self._balancers[first:last] = chain.from_iterable(made.balancers for made in new)
            self._counts[begin:end] = [len(made.balancers) for made in new]
            self._account(key, old, new)

    def _account(self, key: Key, old: list[Made], new: list[Made]) -> None:
        for claim in chain.from_iterable(map(_claimed, old)):
            self._claims[claim] -= 1
            self._clashes -= self._claims[claim] > 0
            if not self._claims[claim]:
                del self._claims[claim]
        for claim in chain.from_iterable(map(_claimed, new)):
            self._clashes += self._claims[claim] > 0
            self._claims[claim] += 1
        self._refused.pop(key, None)
        for made in new:
            if made.refused:
                self._refused[key] = made

    def _make(self, key: Key) -> Made | None:
        """None where there is no such service."""
        service = self._services.get(key)
        if service is None:
            return None
        slices = {of: self._slices[of] for of in sorted(self._of.get(key, ()))}
        return _made(key, service, slices, self._here)


def _claimed(made: Made) -> Iterator[str]:
    return chain.from_iterable(made.claims)


def _first_come(ordered: Iterable[Made], refused: Refused) -> Iterator[LoadBalancer]:
    taken: dict[str, str] = {}
    for made in ordered:
        for balancer, claims in zip(made.balancers, made.claims, strict=True):
            clash = next((claim for claim in claims if claim in taken), None)
            if clash is None and len(set(claims)) == len(claims):
                taken |= dict.fromkeys(claims, balancer.name)
                yield balancer
            else:
                whose = taken.get(clash or "", "its own")
                refused[f"service {balancer.name}"] = f"{clash or claims} is {whose} already"


def _claims(balancer: LoadBalancer, here: Here) -> tuple[str, ...]:
    protocol = balancer.protocol
    met = [("host" if ip == here.host else ip, balancer.port) for ip in balancer.vips]
    if balancer.node_port is not None:
        met.append(("host", balancer.node_port))
    return (balancer.name, *(f"{protocol} {address}:{port}" for address, port in met))


def _owner(key: Key, item: Object) -> Key | None:
    """The service that a slice is of."""
    labels = labels_of(item)
    name = labels.get(OF_SERVICE)
    return (key[0], name) if isinstance(name, str) and HEADLESS not in labels else None


def _made(key: Key, service: Object, slices: Slices, here: Here) -> Made:
    refused: list[tuple[str, str]] = []
    try:
        balancers = tuple(_balancers(key, service, slices, here, refused))
    except UNREADABLE as error:
        return Made(refused=((f"service {'/'.join(key)}", reason_of(error)),))
    return Made(balancers, tuple(_claims(b, here) for b in balancers), tuple(refused))


def _balancers(
    key: Key, service: Object, slices: Slices, here: Here, refused: list[tuple[str, str]]
) -> Iterator[LoadBalancer]:
    spec, labels = table(service, "spec"), labels_of(service)
    cluster = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip]
    if spec.get("type") == "ExternalName" or labels.keys() & {OTHERS, HEADLESS}:
        return
    if "None" in cluster:
        return
    whole = f"service {'.'.join(key)}"
    inside = tuple(dict.fromkeys(map(station, cluster)))
    outside = tuple(v for v in dict.fromkeys(_outside(service, whole, refused)) if v not in inside)
    near = spec.get("internalTrafficPolicy") == "Local"
    far_near = spec.get("externalTrafficPolicy") == "Local"
    affinity = _affinity(spec, whole, refused)
    for port in spec.get("ports") or ():
        name = f"{key[0]}.{key[1]}.{port.get('name') or port['port']}"
        transport = TRANSPORTS.get(port.get("protocol") or "TCP")
        if transport is None:
            refused.append((f"service {name}", f"{port['protocol']} is not balanced"))
            continue
        node_port = port_of(port["nodePort"]) if port.get("nodePort") else None
        if node_port and here.host is None:
            refused.append((f"service {name}", "its nodePort needs a host_port of the node"))
            node_port = None
        made = LoadBalancer(
            name=_name(name), protocol=transport, port=port_of(port["port"]), affinity=affinity
        )
        if near == far_near:
            parts = [(made.name, inside + outside, node_port, near)]
        else:
            parts = [(made.name, inside, None, near)]
            parts += [(_name(f"{name}.outside"), outside, node_port, far_near)]
        servers = list(servers_of(port, slices, refused))
        for own, vips, number, only in parts:
            if vips or number:
                met = (*vips, here.host) if number and here.host else vips
                backends = tuple(backends_of(servers, {v.version for v in met}, only, here.node))
                yield replace(
                    made, name=own, vips=vips, node_port=number, local_only=only, backends=backends
                )


def _affinity(
    spec: Object, whole: str, refused: list[tuple[str, str]]
) -> Literal["source_ip", "none"]:
    if spec.get("sessionAffinity") != "ClientIP":
        return "none"
    seconds = table(spec, "sessionAffinityConfig", "clientIP").get("timeoutSeconds", AFFINITY)
    if seconds != AFFINITY:
        why = "a client keeps its backend as long as these are the same"
        refused.append((f"{whole}: timeoutSeconds {seconds}", why))
    return "source_ip"


def _outside(service: Object, whole: str, refused: list[tuple[str, str]]) -> Iterator[IP]:
    """Addresses by which clients outside the cluster know it. Where only some may use those of the
    cloud's balancer, none of them is taken."""
    spec = table(service, "spec")
    yield from map(station, spec.get("externalIPs") or ())
    ingress = table(service, "status", "loadBalancer").get("ingress") or ()
    given = [each["ip"] for each in ingress if each.get("ip") and each.get("ipMode") != "Proxy"]
    if given and spec.get("loadBalancerSourceRanges"):
        why = "its addresses of a load balancer are left out"
        refused.append((f"{whole}: loadBalancerSourceRanges", why))
        return
    yield from map(station, given)


def _name(text: str) -> str:
    """Of a load balancer."""
    name = short(text)
    for complaint in named(name, ()):
        raise Malformed(complaint.message)
    return name
