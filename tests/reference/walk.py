"""The way of a new flow through the layers (semantics 5).

from an endpoint:  guard, ACL out, services, NAT, VNET, ACL in of the receiver
from the underlay: source, services, VNET, ACL in of the receiver
from the host:     services or bindings or a host route, source, VNET, ACL in of the receiver
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tests.reference import acl, maglev
from tests.reference.flows import Key, Pair, Way
from tests.reference.guard import check_source, is_multicast
from tests.reference.maglev import Server
from tests.reference.nat import (
    Binding,
    Bindings,
    Inside,
    Terms,
    check_translatable,
    has_port,
    translates,
)
from tests.reference.pool import Pool
from tests.reference.services import Service
from tests.reference.site import HOST, UNDERLAY, Adjacency, Endpoint, Network, Route, Site
from tests.reference.verdict import Drop
from tests.reference.wire import TCP, UDP


class Place(NamedTuple):
    """An end of a flow: an endpoint, somebody behind a VTEP (of no remote subnet: None), or neither
    at the host port."""

    port: str
    endpoint: Endpoint | None = None
    adjacency: Adjacency | None = None


AT_HOST = Place(HOST)


@dataclass(frozen=True)
class World:
    """What a walk may ask. `spread`: the engine's key for balancers. `chosen`: the outside port
    that the engine gave the flow with the key, if it has it. `idle`: seconds of a protocol's
    bindings."""

    site: Site
    bindings: Bindings
    now: int
    spread: list[int]
    chosen: Callable[[Key], int | None]
    idle: Callable[[int], int]


class Walk:
    """`outer_src`: of the first packet, or None when a known flow, `held`, is walked again."""

    def __init__(
        self, world: World, key: Key, outer_src: bytes | None = None, held: Pair | None = None
    ) -> None:
        self.world, self.site, self.key = world, world.site, key
        self.outer_src, self.held = outer_src, held
        self.flow = key.flow  # as it is after the layers so far
        self.rule: str | None = None  # the last one that decided
        self.idle = 0
        self.stateful = True
        self.any_vtep = False
        self.service: Service | None = None
        self.server: Server | None = None
        self.handed_on = False  # with the VIP, to the node of the server, which answers (DSR)
        self.outside = False  # translated by outbound NAT
        self.binding: Binding | None = None
        self.made: list[Binding] = []

    def lead(self) -> "Walk":
        """Raises Drop; the bindings it made are gone then."""
        try:
            self._lead()
        except Drop as drop:
            drop.rule = drop.rule or self.rule
            self.undo()
            raise
        return self

    def undo(self) -> None:
        for binding in self.made:
            self.world.bindings.drop(binding)

    def _lead(self) -> None:
        if self.key.port == HOST:
            if self.site.host is None:
                raise Drop("port_not_configured")
            self._from_host()
        elif self.key.port == UNDERLAY:
            network = self.site.networks.get(self.key.vni)
            if network is None:
                raise Drop("unknown_vni")
            self.network = network
            self._from_underlay()
        else:
            sender = self.site.endpoints.get(self.key.port)
            if sender is None or sender.vni != self.key.vni:
                raise Drop("port_not_configured")
            self.network = self.site.networks[sender.vni]
            self._from_endpoint(sender)
        if self.end.endpoint:
            self._judge(self.end.endpoint, "in")

    # ---- the three ways in -------------------------------------------------------------------

    def _from_endpoint(self, sender: Endpoint) -> None:
        self.start = self.back = Place(sender.port, sender)
        check_source(sender, self.flow)
        if self._kind(self.flow.dst) == "gateway":
            raise Drop("to_gateway")
        self._judge(sender, "out")
        self._balance("endpoint")
        if sender.nat and not self.handed_on and translates(sender.nat, self.flow):
            self._translate(sender)
            self.end = self._to_binding() or AT_HOST
        else:
            self.end = self._to_route()
        self._show_source()

    def _from_underlay(self) -> None:
        back = self.network.route(self.flow.src)
        way = back.adjacency if back else None
        self.start = Place(UNDERLAY, None, way)
        self.back = self.start if way else AT_HOST
        balanced = self._services("underlay")
        self.any_vtep = bool(balanced or (back and way and back.any_vtep))
        if balanced:
            beyond = back is None or back.kind == "direct"
            good = way is not None or (beyond and self.site.host is not None)
        else:
            sent_by = self.outer_src
            good = way is not None and (self.any_vtep or sent_by in (None, way.remote))
        if not good:
            raise Drop("source_not_behind_vtep")
        self._balance("underlay")
        if is_multicast(self.flow.dst):
            raise Drop("multicast")
        if self._kind(self.flow.dst) in (None, "remote", "direct"):
            raise Drop("not_local")
        self.end = self._to_route()

    def _from_host(self) -> None:
        self.start = self.back = AT_HOST
        self._balance("host")
        bound = None if self.service else self._to_binding()
        if not self.service and not bound:
            self.network = self._host_routed()
        if self._kind(self.flow.src) not in (None, "host", "direct"):
            raise Drop("guard_ip")
        self.end = bound or self._to_route()
        self._show_source()

    def _host_routed(self) -> Network:
        """The first network where the host may be the source, and somebody lives there, or a node
        that is reached directly, and somebody lives here."""
        ways = ("host", "endpoint"), ("host", "remote"), ("direct", "endpoint")
        for network in self.site.networks.values():
            if (network.kind(self.flow.src), network.kind(self.flow.dst)) in ways:
                return network
        raise Drop("no_route")

    # ---- layers ------------------------------------------------------------------------------

    def _judge(self, endpoint: Endpoint, direction: str) -> None:
        try:
            decision = acl.judge(endpoint, direction, self.flow)
        except Drop as drop:
            self.rule = drop.rule
            raise
        self.rule = decision.rule or self.rule
        self.idle = decision.idle or self.idle
        self.stateful = self.stateful and decision.stateful

    def _services(self, met_at: str) -> list[Service]:
        """Those that are met there under the destination, whatever the port."""
        return [
            s
            for s in self.site.services
            if s.met_at == met_at
            and s.address == self.flow.dst
            and (met_at == HOST or s.vni == self.network.vni)
        ]

    def _balance(self, met_at: str) -> None:
        flow = self.flow
        met = self._services(met_at)
        found = [s for s in met if (s.proto, s.port) == (flow.proto, flow.dport)]
        if not found:
            return
        service = self.service = found[0]
        self.network = self.site.networks[service.vni]
        self.rule = service.rule
        server = self._held_server(service)
        if server is None and service.takers:
            server = maglev.choose(service.takers, service.affinity, flow, self.world.spread)
        if server is None:
            raise Drop("lb_no_backend")
        self.server = server
        remote = self._kind(server.address) == "remote"
        self.handed_on = service.dsr and met_at != UNDERLAY and remote
        if not self.handed_on:
            self.flow = flow._replace(dst=server.address, dport=server.port)

    def _held_server(self, service: Service) -> Server | None:
        """The one that a known flow has, while it is a member; of a flow that was handed on, one
        on the node it goes to."""
        if self.held is None:
            return None
        has = Server(self.held.leaves_as.dst, self.held.leaves_as.dport)
        if has in service.members:
            return has
        if not service.dsr or self.held.way.egress != UNDERLAY:
            return None
        node = _node(self.held.way.adjacency)
        for server in sorted(service.members):
            route = self.network.route(server.address)
            if route and route.adjacency and _node(route.adjacency) == node:
                return server
        return None

    def _translate(self, sender: Endpoint) -> None:
        nat = sender.nat
        assert nat
        try:
            check_translatable(self.flow, self.site.underlay.udp_port)
            if self.site.host is None:
                raise Drop("no_host_port")
            self._bind(nat.pool, nat.quota, sender.vni)
        except Drop as drop:
            drop.rule = nat_rule(sender)
            raise
        self.outside = True

    def _to_binding(self) -> Place | None:
        """Whoever is behind the outside address and port that the flow goes to, if its NAT takes
        in anyone. None: nobody's outside address."""
        flow, site = self.flow, self.site
        if flow.dst not in site.pool_addresses:
            return None
        known = self.world.bindings.of(flow.dst, flow.proto, flow.dport)
        if known is None or known in self.made or flow.proto not in (TCP, UDP):
            raise Drop("nat_no_binding")
        end = site.endpoints.get(known.inside.port)
        if end is None or end.nat is None or known.inside.address not in end.addresses:
            raise Drop("nat_no_binding")
        if not end.nat.pool.open or not end.nat.pool.holds(flow.dst, flow.dport):
            raise Drop("nat_no_binding")
        self.flow = flow._replace(dst=known.inside.address, dport=known.inside.sport)
        self.network = site.networks[end.vni]
        return Place(end.port, end)

    def _kind(self, address: bytes) -> str | None:
        return self.network.kind(address)

    def _to_route(self) -> Place:
        """Where the destination lives; of a flow handed on, its server."""
        handed = self.server if self.handed_on else None
        route = self.network.route(handed.address if handed else self.flow.dst)
        if route is None:
            raise Drop("no_route")
        return self._follow(route)

    def _follow(self, route: Route) -> Place:
        if route.kind in ("host", "direct"):
            return AT_HOST
        if route.adjacency:
            self.any_vtep = route.any_vtep
            return Place(UNDERLAY, None, route.adjacency)
        refused = {"gateway": "to_gateway", "vip": "lb_no_service", "subnet": "no_such_endpoint"}
        if route.kind in refused:
            raise Drop(refused[route.kind])
        end = route.endpoint
        assert end
        if end == self.start.endpoint and not self.service:
            raise Drop("no_such_endpoint")
        return Place(end.port, end)

    def _show_source(self) -> None:
        """Another source than the client's, where the server's answers would not come back here:
        to a client that is its own server, and to one outside from another node's."""
        if self.service is None or self.handed_on or self.outside:
            return
        hairpin = self.end.endpoint is not None and self.end == self.start
        astray = self.start == AT_HOST and self.end.endpoint is None
        if hairpin and self.service.source is None:
            raise Drop("no_such_endpoint")
        if (hairpin or astray) and self.service.source:
            self._bind(self.service.source, 0, self._vni_of(self.end))

    def _vni_of(self, place: Place) -> int:
        lives = place.endpoint or place.adjacency
        return lives.vni if lives else 0

    def _bind(self, pool: Pool, quota: int, vni: int) -> None:
        flow = self.flow
        portless = not has_port(flow)
        dport = flow.dport if flow.proto in (TCP, UDP) else 0
        inside = Inside(
            vni,
            self.start.port,
            flow.proto,
            flow.src,
            0 if portless else flow.sport,
            portless,
            (flow.dst, dport) if pool.symmetric else None,
        )
        binding = self.world.bindings.find(inside, pool)
        if binding is None:
            owned = {
                s.port
                for s in self.site.services
                if (s.met_at, s.address, s.proto) == (HOST, pool.address, flow.proto)
            }
            terms = Terms(quota, owned, self.world.idle(flow.proto))
            seen = self.world.chosen(self.key)
            binding = self.world.bindings.bind(inside, pool, self.world.now, terms, seen)
            self.made.append(binding)
        self.binding = binding
        self.flow = flow._replace(src=binding.address, sport=binding.port)

    # ---- what came of it ---------------------------------------------------------------------

    def pair(self, generation: int) -> Pair:
        return Pair(
            key=self.key,
            leaves_as=self.flow,
            way=self._way(self.start, self.end),
            reply_way=self._way(self.end, self.back),
            answered=self._answers_allowed(),
            rule=self.rule,
            idle=self.idle,
            binding=self.binding,
            translated=self.flow != self.key.flow,
            generation=generation,
        )

    def _way(self, start: Place, end: Place) -> Way:
        """The size of what comes from the underlay is not looked at: the sender has."""
        if end.endpoint:
            mtu = (start.adjacency or self.site.networks[end.endpoint.vni]).mtu
        elif end.adjacency:
            mtu = end.adjacency.mtu
        else:
            assert self.site.host
            mtu = self.site.host.mtu
        from_underlay = start.port == UNDERLAY
        return Way(
            egress=end.port,
            mtu=None if from_underlay else mtu,
            mss_mtu=mtu,
            receiver=end.endpoint,
            adjacency=end.adjacency or start.adjacency,
            any_vtep=from_underlay and self.any_vtep,
        )

    def _answers_allowed(self) -> bool:
        """Stateful decisions let answers in; else the opposite ACLs say now (semantics 5d)."""
        if self.stateful:
            return True
        try:
            if self.end.endpoint:
                acl.judge(self.end.endpoint, "out", self.flow.reply())
            if self.start.endpoint:
                acl.judge(self.start.endpoint, "in", self.key.flow.reply())
        except Drop:
            return False
        return True


def _node(adjacency: Adjacency | None) -> object:
    """A VTEP of one network."""
    return adjacency and (adjacency.vni, adjacency.remote, adjacency.dr_mac)


def nat_rule(endpoint: Endpoint) -> str:
    return f"{endpoint.name}/nat"
