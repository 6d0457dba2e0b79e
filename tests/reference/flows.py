"""The flow table: a dict from key to pair and half (semantics 4)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.reference.nat import SECOND, Binding
from tests.reference.site import UNDERLAY, Adjacency, Endpoint
from tests.reference.tcp import BOTH, Side
from tests.reference.verdict import Drop
from tests.reference.wire import ICMP, ICMP6, TCP, UDP, FlowId

Chooser = Callable[[list["Pair"]], "Pair | None"]  # which of several it was; None: none was found


@dataclass(frozen=True)
class Timers:
    """Idle seconds, as in `struct dp_timers`."""

    tcp_established: int = 7440
    tcp_transitory: int = 240
    tcp_half_open: int = 30
    udp: int = 300
    icmp: int = 60
    other: int = 300
    fragment: int = 30
    path_mtu: int = 600

    def of(self, proto: int, state: int) -> int:
        if proto == TCP:
            if state == BOTH:
                return self.tcp_established
            return self.tcp_transitory if state & BOTH == BOTH else self.tcp_half_open
        return {UDP: self.udp, ICMP: self.icmp, ICMP6: self.icmp}.get(proto, self.other)


class Key(NamedTuple):
    """`port`: where the packet came in; `vni` is 0 on the host port."""

    port: str
    vni: int
    flow: FlowId


@dataclass(frozen=True)
class Way:
    """Where the packets of one direction go. `mtu`: None where nothing is checked. `adjacency`: the
    VTEP they go to, or come from; from `any_vtep` of the network, if so."""

    egress: str
    mtu: int | None
    mss_mtu: int
    receiver: Endpoint | None = None
    adjacency: Adjacency | None = None
    any_vtep: bool = False


@dataclass(eq=False)
class Pair:
    """A flow: the initiator's direction, and the responder's, which may be allowed by itself."""

    key: Key
    leaves_as: FlowId  # the initiator's packets, after translation
    way: Way
    reply_way: Way
    answered: bool  # else answers are judged on their own
    rule: str | None
    idle: int
    binding: Binding | None
    translated: bool
    generation: int
    state: int = 0
    last: int = 0
    packets: list[int] = field(default_factory=lambda: [0, 0])
    entropy: list[int | None] = field(default_factory=lambda: [None, None])
    tcp: list[Side] = field(default_factory=lambda: [Side(), Side()])

    @property
    def half_open(self) -> bool:
        return self.state & BOTH != BOTH

    @property
    def ways(self) -> list[Way]:
        return [self.way, self.reply_way]

    def let_binding_go(self) -> None:
        if self.binding:
            self.binding.last = max(self.binding.last, self.last)

    @property
    def reply_key(self) -> Key:
        """Of the answers, where they come in."""
        vni = 0
        if self.way.receiver:
            vni = self.way.receiver.vni
        elif self.way.egress == UNDERLAY and self.way.adjacency:
            vni = self.way.adjacency.vni
        return Key(self.way.egress, vni, self.leaves_as.reply())

    def keys(self) -> list[Key]:
        """Under which it is found; [0] is the initiator's."""
        return [self.key, self.reply_key] if self.answered else [self.key]


class FlowTable:
    def __init__(self, limit: int, timers: Timers) -> None:
        self.limit = limit
        self.timers = timers
        self.pairs: list[Pair] = []
        self.index: dict[Key, tuple[Pair, int]] = {}

    def is_idle(self, pair: Pair, now: int) -> bool:
        seconds = pair.idle or self.timers.of(pair.key.flow.proto, pair.state)
        return now - pair.last > seconds * SECOND

    def find(self, key: Key, now: int) -> tuple[Pair, int] | None:
        """The pair and the half (0: from the initiator); an idle one is forgotten on the way."""
        found = self.index.get(key)
        if found and self.is_idle(found[0], now):
            self.remove(found[0])
            return None
        return found

    def make_room(self, new: Pair, quotas: tuple[int, int], choose: Chooser) -> Pair | None:
        """`quotas` of the new pair's port and network, 0 for none. A half-open pair of the same
        owner gives way and is returned, or else the new one is refused."""
        of_network = [p for p in self.pairs if p.key.vni == new.key.vni]
        of_port = [p for p in self.pairs if p.key.port == new.key.port]
        if quotas[0] and len(of_port) >= quotas[0]:
            held, reason = [p for p in of_port if p in of_network], "flow_quota"
        elif quotas[1] and len(of_network) >= quotas[1]:
            held, reason = of_network, "flow_quota"
        elif len(self.pairs) >= self.limit:
            held, reason = self.pairs, "flow_table_full"
        else:
            return None
        weak = [p for p in held if p.half_open]
        victim = choose(weak) if weak else None
        if victim is None:
            raise Drop(reason)
        self.remove(victim)
        return victim

    def add(self, pair: Pair, now: int) -> None:
        self.pairs.append(pair)
        self.enter(pair, now)

    def enter(self, pair: Pair, now: int) -> None:
        """A key that a living pair holds already stays with that pair."""
        for half, key in enumerate(pair.keys()):
            if self.find(key, now) is None:
                self.index[key] = pair, half

    def leave(self, pair: Pair) -> None:
        self.index = {k: v for k, v in self.index.items() if v[0] is not pair}

    def remove(self, pair: Pair) -> None:
        self.leave(pair)
        pair.let_binding_go()
        self.pairs = [p for p in self.pairs if p is not pair]

    def expire(self, now: int) -> int:
        idle = [p for p in self.pairs if self.is_idle(p, now)]
        for pair in idle:
            self.remove(pair)
        return len(idle)
