"""The slow, obviously right dataplane: one frame in, one outcome out.

Judges straight from the policy model: no compiled tables, no cache but the flows the semantics
demand. Three things the engine may choose are taken from what it did (`Choices`), once they are
checked to be allowed: the outside port of a NAT binding, the outer UDP source port of a flow, and
which half-open flow gives way to a new one.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from dataplane.model import Node
from tests.reference import answer, guard, rewrite
from tests.reference.flows import Chooser, FlowTable, Key, Pair, Timers, Way
from tests.reference.fragments import Fragments, Held, Ready, pieces, take_flow
from tests.reference.guard import Arrival, Gso, packets_of
from tests.reference.keyed import stretched
from tests.reference.limit import Limit
from tests.reference.nat import SECOND, Bindings
from tests.reference.related import Quote, is_redirect, quoted, translate
from tests.reference.site import HOST, UNDERLAY, Site
from tests.reference.tcp import BOTH, CLOSING, SIDES, judge, segment_of
from tests.reference.verdict import Drop, Outcome
from tests.reference.walk import Walk, World
from tests.reference.wire import ETHERNET, IP4, TCP, FlowId, Packet, is_mapped, parse


@dataclass
class Choices:
    """What the engine chose. `frame`: as it let it out, if so. `evicted`: finds among half-open
    flows the one that it no longer has. `port`: the outside port of the flow with the key, if it
    has that flow."""

    frame: bytes | None = None
    evicted: Chooser = lambda pairs: pairs[0]
    port: Callable[[Key], int | None] = lambda key: None


SPREAD = 4  # the purpose of the key that balancers use


class Twin:
    def __init__(
        self,
        node: Node,
        timers: Timers | None = None,
        max_flows: int = 1 << 16,
        max_bindings: int = 1 << 16,
        key: bytes = bytes(32),
        max_datagrams: int = 4096,
        max_kept: int = 1024,
        number: Callable[[str], int] | None = None,
    ) -> None:
        """`key`: the engine's. `number`: its ports' numbers, by which it knows them: one whose
        number has changed is another port."""
        self.number = number or defaultdict(count(2).__next__).__getitem__
        self.site = Site(node, self._label)
        self.timers = timers or Timers()
        self.flows = FlowTable(max_flows, self._idle_times())
        self.choices = Choices()
        self.bindings = Bindings(max_bindings)
        self.generation = 1
        self.stamps = dict.fromkeys([*self.site.endpoints, HOST], 1)
        self.now = 0
        self.limit = Limit(key)
        self.spread = stretched(key, SPREAD)
        self.icmp_limited = 0
        self.fragments = Fragments(max_datagrams, max_kept)
        self.paths: dict[bytes, tuple[int, int]] = {}  # by VTEP: MTU, and until when
        self.outer_ids = (n & 0xFFFF for n in count(1))

    def commit(self, node: Node) -> None:
        """A new policy. Flows of the endpoints it concerns are reconciled on their next packet."""
        old, self.site = self.site, Site(node, self._label)
        self.generation += 1
        self.flows.timers = self._idle_times()
        for port in [*self.site.endpoints, HOST]:
            if self.site.concerns(port) != old.concerns(port):
                self.stamps[port] = self.generation

    def _label(self, port: str) -> str:
        return port if port in (HOST, UNDERLAY) else f"port {self.number(port)}"

    def _name(self, label: str) -> str:
        endpoint = self.site.endpoints.get(label)
        return endpoint.name if endpoint else label

    def _idle_times(self) -> Timers:
        return replace(self.timers, **self.site.idle)

    def _is_fresh(self, pair: Pair, half: int) -> bool:
        """Nothing that concerns this half's ports has changed since it was walked."""
        ports = {pair.keys()[half].port, pair.ways[half].egress} - {UNDERLAY}
        known = ports <= {*self.site.endpoints, HOST}
        return known and all(self.stamps[p] <= pair.generation for p in ports)

    def expire(self, now_ns: int) -> int:
        """Forgets idle flows and bindings; returns how many."""
        self.now = max(self.now, now_ns)
        self.fragments.expire(self.now, self.flows.timers.fragment)
        return self.flows.expire(self.now) + self.bindings.expire(self.now, self._held())

    def learn_path(self, remote: bytes, vni: int | None, mtu: int, now_ns: int) -> bool:
        """ICMP says so of the way to a VTEP; `remote` has 16 bytes (RFC 1191, RFC 8201)."""
        self.now = max(self.now, now_ns)
        networks = self.site.networks
        told = networks.values() if vni is None else [networks[vni]] if vni in networks else []
        if not any(remote in n.vteps for n in told) or not 68 <= mtu < self.site.underlay.mtu:
            return False
        known, until = self.paths.get(remote, (1 << 16, 0))
        new = max(mtu, 576 if is_mapped(remote) else 1280)
        if until > self.now and known <= new:
            return False
        self.paths[remote] = new, self.now + self.flows.timers.path_mtu * SECOND
        return True

    def _on_path(self, packet: Packet, way: Way) -> Way:
        """With the MTU that was learned of the path between here and the VTEP."""
        mtu, until = self.paths.get(way.adjacency.remote if way.adjacency else b"", (0, 0))
        if until <= self.now:
            return way
        inner = mtu - (50 if is_mapped(way.adjacency.remote) else 70) if way.adjacency else 0
        inner = max(inner, 1280) if packet.version == 6 else inner
        out = way.mtu is not None and way.egress == UNDERLAY
        return replace(
            way,
            mtu=min(way.mtu or 0, inner) if out else way.mtu,
            mss_mtu=min(way.mss_mtu, inner),
        )

    def process(
        self,
        frame: bytes,
        port: str,
        now_ns: int,
        flags: int = 0,
        *,
        gso_type: int = 0,
        gso_size: int = 0,
        choices: Choices | None = None,
    ) -> Outcome:
        """`flags`: enum dp_frame_flag. `gso_type`, `gso_size`: as in struct dp_frame."""
        self.choices = choices or Choices()
        self.now = max(self.now, now_ns)
        return self._judge(frame, port, flags, Gso(gso_type, gso_size))

    def more(self, choices: Choices | None = None) -> Outcome | None:
        """What came out with the frame before: the next of them, or None."""
        self.choices = choices or Choices()
        if not self.fragments.queue:
            return None
        ready = self.fragments.queue.pop(0)
        return self._judge(ready.frame, self._name(ready.port), ready.flags, Gso(), ready.flow)

    def _judge(
        self,
        frame: bytes,
        port: str,
        flags: int,
        gso: Gso,
        known: FlowId | None = None,
    ) -> Outcome:
        """`known`: the flow of the datagram that the frame is a later fragment of."""
        arrival: Arrival | None = None
        try:
            arrival = guard.receive(self.site, frame, self._label(port), flags, gso)
            reply = guard.check_frame(self.site, arrival)
            if reply is None:
                self._track(arrival, frame, flags, known)
                return self._by_flow(arrival)
            return Outcome("answer", egress=port, frame=reply)
        except Held:
            return Outcome("held")
        except Drop as drop:
            told = arrival and self._tell_sender(arrival, drop)
            count = packets_of(arrival)
            out = Outcome("drop", drop.reason, port if told else None, told or None, drop.rule)
            return out._replace(packets=count)

    def _track(self, arrival: Arrival, frame: bytes, flags: int, known: FlowId | None) -> None:
        """A later fragment gets the flow of its datagram. Raises Drop or Held."""
        packet = arrival.packet
        if not isinstance(packet, Packet) or packet.part is None:
            return
        if guard.is_multicast(packet.flow.dst):
            raise Drop("multicast")
        if arrival.endpoint and packet.flow.src not in arrival.endpoint.addresses:
            raise Drop("guard_ip")
        if known:
            take_flow(packet, known)
            return
        self.fragments.expire(self.now, self.flows.timers.fragment)
        arrived = frame if arrival.outer else bytes(packet.data)
        self.fragments.judge(arrival, arrived, flags, self.now)

    def _tell_sender(self, arrival: Arrival, drop: Drop) -> bytes | None:
        """The ICMP error or the reset that goes with the drop, never into the underlay."""
        packet = arrival.packet
        if drop.reason not in answer.KINDS or not isinstance(packet, Packet) or arrival.outer:
            return None
        if drop.reason == "acl_reject" and packet.flow.proto == TCP and not packet.fragment:
            return answer.reset(packet)
        if arrival.network is not None:
            source, mac = arrival.network.gateways[packet.version], arrival.network.dr_mac
        else:
            assert self.site.host
            same = is_mapped(self.site.host.address) == (packet.version == 4)
            source, mac = self.site.host.address if same else None, self.site.host.mac
        told = source and answer.error(packet, drop.reason, drop.mtu, source, mac)
        number = self.number(self._name(arrival.port))
        if not told or self.limit.take(self.site.icmp_rate, number, self.now):
            return told or None
        self.icmp_limited += 1
        return None

    # ---- flows -----------------------------------------------------------------------------

    def _by_flow(self, arrival: Arrival) -> Outcome:
        packet = arrival.packet
        assert isinstance(packet, Packet)
        key = Key(arrival.port, arrival.vni, packet.flow)
        related = None if key in self.flows.index else self._related(arrival)
        if related:
            return self._forward_error(arrival, *related)
        found = None if self._opens_again(arrival, key) else self._find(key)
        if found is None:
            reply = guard.gateway_echo(arrival) if arrival.endpoint else None
            if reply is not None:
                return Outcome("answer", egress=self._name(arrival.port), frame=reply)
            found = self._new_flow(arrival, key), 0
        pair, half = found
        way = pair.ways[half]
        try:
            self._check_vtep(arrival, way)
            self._note(pair, half, packet)
            way = self._on_path(packet, way)
            self._check_or_cut(arrival, way)
        except Drop as drop:
            drop.rule = pair.rule
            raise
        packet = arrival.packet
        assert isinstance(packet, Packet)
        self._settle(pair, half, way)
        leaves_as = pair.leaves_as if half == 0 else pair.key.flow.reply()
        rewrite.rewrite(self.site, arrival, way, leaves_as)
        frame = rewrite.outgoing(self.site, packet, pair, half, way, self.outer_ids)
        out = Outcome("forward", None, self._name(way.egress), frame, pair.rule, packet.partial)
        return out._replace(gso_size=packet.size, packets=packet.count)

    def _opens_again(self, arrival: Arrival, key: Key) -> bool:
        """A connection from where the last one is over is a flow of its own."""
        packet = arrival.packet
        assert isinstance(packet, Packet)
        pair, half = self.flows.find(key, self.now) or (None, 0)
        if pair is None or half or not pair.state & CLOSING or packet.later:
            return False
        segment = segment_of(packet)
        again = segment.opening and not segment.rst and not _speaks_for_another(arrival, pair.way)
        if again:
            self.flows.remove(pair)
        return again

    def _related(self, arrival: Arrival) -> tuple[Quote, Pair, int] | None:
        """The standing flow an ICMP error speaks of, and the half whose way the error goes."""
        packet = arrival.packet
        assert isinstance(packet, Packet)
        quote = quoted(packet)
        if quote is None or quote.flow.src != packet.flow.dst or is_redirect(packet.flow):
            return None
        if arrival.endpoint and packet.flow.src not in arrival.endpoint.addresses:
            return None
        found = self.flows.index.get(Key(arrival.port, arrival.vni, quote.flow.reply()))
        if not found or self.flows.is_idle(found[0], self.now) or not self._is_fresh(*found):
            return None
        way = found[0].ways[found[1]]
        return None if _speaks_for_another(arrival, way) else (quote, *found)

    def _forward_error(
        self,
        arrival: Arrival,
        quote: Quote,
        pair: Pair,
        half: int,
    ) -> Outcome:
        """The same way, but no ACL is asked, and the flow neither lives longer nor ends for it."""
        packet = arrival.packet
        assert isinstance(packet, Packet)
        way = self._on_path(packet, pair.ways[half])
        try:
            self._check_way(arrival, way)
        except Drop as drop:
            drop.rule = pair.rule
            raise
        self._settle(pair, half, way)
        if pair.translated:
            ends = pair.key.flow, pair.leaves_as.reply()
            own, sent = ends[half], ends[1 - half]
            translated = own.src != sent.dst
            translate(packet, quote, sent, sent.dst if translated else packet.flow.src)
        rewrite.hop(self.site, arrival, way)
        frame = rewrite.outgoing(self.site, packet, pair, half, way, self.outer_ids)
        return Outcome("forward", None, self._name(way.egress), frame, pair.rule, packet.partial)

    def _find(self, key: Key) -> tuple[Pair, int] | None:
        """A known flow, brought up to the policy of today; None: to be judged as a new one."""
        found = self.flows.find(key, self.now)
        if found is None or self._is_fresh(*found):
            return found
        pair, half = found
        try:
            self._reconcile(pair)
            self._claim_answers(pair)
        except Drop as drop:
            self.flows.remove(pair)
            if half == 1 or drop.reason != "to_gateway":
                raise
        return self.flows.find(key, self.now)

    def _claim_answers(self, pair: Pair) -> None:
        """An older policy's pair that holds the flow id of this one's answers is judged again."""
        holder, half = self.flows.index.get(pair.keys()[-1], (pair, 1))
        if holder is pair or self._is_fresh(holder, half):
            return
        try:
            self._reconcile(holder)
        except Drop:
            self.flows.remove(holder)
        self.flows.enter(pair, self.now)

    def _check_vtep(self, arrival: Arrival, way: Way) -> None:
        """Another VTEP than the flow's neither speaks for it nor keeps it alive."""
        if _speaks_for_another(arrival, way):
            raise Drop("source_not_behind_vtep")

    def _check_way(self, arrival: Arrival, way: Way) -> None:
        """What no flow id holds, so each packet is asked: MAC, TTL, size, ECN."""
        neighbour = way.receiver is not None and arrival.dmac == way.receiver.mac
        if arrival.switched and not neighbour:
            raise Drop("not_our_mac")
        rewrite.check(arrival, way)

    def _check_or_cut(self, arrival: Arrival, way: Way) -> None:
        try:
            self._check_way(arrival, way)
        except Drop as drop:
            if drop.reason != "needs_fragmentation" or not self._cut(arrival, way):
                raise
            self._check_way(arrival, way)

    def _cut(self, arrival: Arrival, way: Way) -> bool:
        """The first piece goes on, the others come after it; not if there is no room for them."""
        whole = arrival.packet
        assert isinstance(whole, Packet) and way.mtu is not None
        cut = pieces(rewrite.completed(whole) if whole.partial else bytes(whole.data), way.mtu)
        if not cut or len(cut) - 1 > self.fragments.max_kept - self.fragments.held:
            return False
        self.fragments.queue += [Ready(piece, arrival.port, 0, whole.flow) for piece in cut[1:]]
        first = parse(cut[0])
        assert isinstance(first, Packet)
        take_flow(first, whole.flow)
        arrival.packet = first
        return True

    def _new_flow(self, arrival: Arrival, key: Key) -> Pair:
        walk = self._walk(key, outer_src=arrival.outer.src if arrival.outer else None)
        pair = walk.pair(self.generation)
        pair.last = self.now
        quotas = self.site.quotas(key.port, key.vni)
        try:
            victim = self.flows.make_room(pair, quotas, self.choices.evicted)
        except Drop:
            walk.undo()
            raise
        self.flows.add(pair, self.now)
        if victim and not any(p.binding is victim.binding for p in self.flows.pairs):
            self.bindings.drop(victim.binding)
        self._claim_answers(pair)
        return pair

    def _walk(self, key: Key, outer_src: bytes | None = None, held: Pair | None = None) -> Walk:
        self.bindings.expire(self.now, self._held())
        world = World(
            self.site,
            self.bindings,
            self.now,
            self.spread,
            self.choices.port,
            lambda proto: self.flows.timers.of(proto, BOTH | CLOSING),
        )
        return Walk(world, key, outer_src, held).lead()

    def _reconcile(self, pair: Pair) -> None:
        """Walks the initiator's flow again; both directions change together."""
        new = self._walk(pair.key, held=pair).pair(self.generation)
        self.flows.leave(pair)
        if pair.binding is not new.binding:
            pair.let_binding_go()
        for field in ("leaves_as", "way", "reply_way", "answered", "rule", "idle"):
            setattr(pair, field, getattr(new, field))
        pair.binding, pair.translated = new.binding, new.translated
        pair.generation = new.generation
        self.flows.enter(pair, self.now)

    def _note(self, pair: Pair, half: int, packet: Packet) -> None:
        pair.packets[half] += packet.count
        if packet.flow.proto == TCP:
            if packet.later:
                return
            rested = self.now - pair.last > self.flows.timers.tcp_transitory * SECOND
            state = judge(pair.state, half, pair.tcp, segment_of(packet), rested)
            if state is None:
                return
            pair.state = state
        else:
            pair.state |= SIDES[half]
        pair.last = self.now

    def _held(self) -> set[int]:
        return {id(p.binding) for p in self.flows.pairs if p.binding}

    # ---- what the engine may choose -----------------------------------------------------------

    def _settle(self, pair: Pair, half: int, way: Way) -> None:
        if way.egress == UNDERLAY and pair.entropy[half] is None:
            seen = self.choices.frame and _outer_sport(self.choices.frame)
            pair.entropy[half] = (
                seen or 49152 + zlib.crc32(repr(pair.keys()[half]).encode()) % 16384
            )
            assert (pair.entropy[half] or 0) >= 49152, f"outer source port {pair.entropy[half]}"


def _speaks_for_another(arrival: Arrival, way: Way) -> bool:
    """It came from another VTEP than the flow's, and the flow has one."""
    if arrival.outer is None or way.adjacency is None or way.any_vtep:
        return False
    return arrival.outer.src != way.adjacency.remote


def _outer_sport(frame: bytes) -> int:
    at = ETHERNET + (20 if frame[12:14] == IP4.to_bytes(2) else 40)
    return int.from_bytes(frame[at : at + 2])
