"""The engine against its slow twin: same verdict, reason, rule, egress and bytes, frame by frame.

Policies, frames, answers, ICMP errors, policy changes, time and expiry are drawn by Hypothesis.
Each frame is traced first: what a trace foretells is what then happens, and it changes nothing.
"""

import os
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.address import Mac, Vni, ip16, parse_prefix
from dataplane.engine import Outcome as EngineOutcome
from dataplane.engine import Timers
from dataplane.model import Backend, Endpoint, LoadBalancer, Network, Node, Underlay
from dataplane.packet import build, parse
from dataplane.reasons import Verdict
from dataplane.stats import adds_up
from tests import strategies
from tests.reference import Choices, Outcome, Twin
from tests.reference.flows import Key
from tests.reference.flows import Pair as FlowPair
from tests.reference.flows import Timers as TwinTimers
from tests.setting import WORKERS, Engine
from tests.strategies import Step

EXAMPLES = int(os.environ.get("DATAPLANE_EXAMPLES", "0"))  # 0: the same 300 each time
SECONDS = {
    "tcp_established": 100,
    "tcp_transitory": 25,
    "tcp_half_open": 9,
    "udp": 10,
    "icmp": 5,
    "other": 10,
    "fragment": 8,
    "path_mtu": 20,
}
SMALL = 64  # pairs, or bindings: an eviction looks at no more, so it finds one if there is one
KEY = bytes(range(32))
VERDICTS = {verdict: str(verdict) for verdict in Verdict}


class Pair:
    """Both dataplanes, asked the same."""

    def __init__(self, node: Node, max_flows: int = SMALL) -> None:
        self.engine = Engine(
            max_flows=max_flows,
            max_bindings=SMALL,
            max_ports=SMALL,  # that all counters are soon read
            max_rules=1 << 10,
            key=KEY,
            timers=Timers(**SECONDS),
        )
        self.engine.commit(node)
        self.ports = dict(self.engine.ids.ports)
        self.twin = Twin(
            node, TwinTimers(**SECONDS), max_flows, SMALL, key=KEY, number=self.ports.__getitem__
        )

    def evicted(self, half_open: list[FlowPair]) -> FlowPair | None:
        """The one among them that the engine no longer has.

        None: with several workers a table has places beside those of its pairs, so that a look for
        pairs of one owner may find none; in a full table it does."""
        left = self.leaves_by_key()
        gone = [pair for pair in half_open if self.numbered(pair.key) not in left]
        if not gone and WORKERS > 1 and len(left) < self.twin.flows.limit:
            return None
        assert len(gone) == 1, "which pair was evicted is not clear"
        return gone[0]

    def outside_port(self, key: Key) -> int | None:
        """The port that the engine's flow with the key leaves from."""
        return self.leaves_by_key().get(self.numbered(key))

    def numbered(self, key: Key) -> tuple[object, ...]:
        label = key.port.removeprefix("port ")
        return *key.flow[:5], self.ports.get(label) if label == key.port else int(label), key.vni

    def leaves_by_key(self) -> dict[tuple[object, ...], int]:
        fields = ("proto", "sport", "dport", "in_port", "vni")
        return {
            (r["src"].tobytes(), r["dst"].tobytes(), *(int(r[f]) for f in fields)): int(
                r["new_sport"]
            )
            for r in self.engine.flow_records()
        }

    def flows_of_engine(self) -> list[tuple[object, ...]]:
        """Who began each pair, its state, its packets both ways, and when it was last used."""
        records = self.engine.flow_records()
        return sorted(
            (
                *(r["src"].tobytes(), r["dst"].tobytes()),
                *(int(r[f]) for f in ("proto", "sport", "dport", "in_port", "vni", "state")),
                *(r["packets"].tolist(), int(r["last_ns"].max())),
            )
            for r in records
        )

    def flows_of_twin(self) -> list[tuple[object, ...]]:
        pairs = self.twin.flows.pairs
        return sorted((*self.numbered(p.key), p.state, p.packets, p.last) for p in pairs)

    def do(self, event: strategies.Event) -> Outcome | None:
        if event.commit is not None:
            commit(self.engine, event.commit)
            self.ports |= self.engine.ids.ports
            self.twin.commit(event.commit)
            return None
        if event.learn is not None:
            remote, vni, mtu = event.learn
            learned = self.engine.learn_path(remote, mtu, vni=vni, now=event.now_ns)
            assert learned == self.twin.learn_path(ip16(remote), vni, mtu, event.now_ns)
            return None
        if event.expire:
            self.engine.expire(now=event.now_ns)
            self.twin.expire(event.now_ns)
            assert self.engine.stats().totals["bindings"] == len(self.twin.bindings.all)
            return None
        assert event.frame is not None
        if event.frame.port not in self.engine.ids.ports:
            return None  # a policy since took the port away: there is nowhere to send from
        return self.judge(event.frame, event.now_ns)

    def judge(self, frame: strategies.Frame, now: int) -> Outcome:
        before = self.engine.stats()
        gso = {"gso_type": frame.gso_type, "gso_size": frame.gso_size}
        walk = self.engine.trace(frame.data, frame.port, now=now, flags=frame.flags, **gso)
        assert self.engine.stats().totals == before.totals
        got = self.engine.process_one(frame.data, frame.port, now=now, flags=frame.flags, **gso)
        assert (walk.verdict, walk.reason, walk.egress, walk.after, walk.rule) == (
            (got.verdict, got.reason, got.port, got.frame, got.rule)
        )
        seen = as_twin_says(got)
        choices = Choices(seen.frame, self.evicted, self.outside_port)
        wanted = self.twin.process(frame.data, frame.port, now, frame.flags, **gso, choices=choices)
        assert seen == wanted._replace(partial=False, packets=1)
        for out in map(as_twin_says, got.more):
            told = self.twin.more(Choices(out.frame, self.evicted, self.outside_port))
            assert told and out == told._replace(partial=False, packets=1)
        assert self.twin.more() is None
        totals = self.engine.stats().totals
        assert totals["icmp_limited"] == self.twin.icmp_limited
        assert totals["held"] == self.twin.fragments.held
        assert self.flows_of_engine() == self.flows_of_twin()
        near = [
            out.verdict == "forward" and strategies.UNDERLAY not in (frame.port, out.egress)
            for out in (seen, *map(as_twin_says, got.more))
        ]
        packets = wanted.packets
        assert totals["local"] == before.totals["local"] + sum(near) * packets
        assert totals["rx"] == before.totals["rx"] + packets
        assert adds_up(totals)
        return seen


def commit(engine: Engine, target: Node) -> None:
    """By an edit where only remote subnets change, and not just their order."""
    given = engine.node
    assert given is not None
    draft = engine.draft()
    for old, new in zip(given.networks, target.networks, strict=True):
        gone = set(old.remote_subnets) - set(new.remote_subnets)
        draft.remove(old.name, *(s.prefix for s in gone))
        draft.add(old.name, *(s for s in new.remote_subnets if s not in old.remote_subnets))
    only = without_subnets(given) == without_subnets(target)
    engine.commit(draft if only and draft.edits else target)


def without_subnets(node: Node) -> Node:
    return replace(node, networks=tuple(replace(n, remote_subnets=()) for n in node.networks))


def as_twin_says(got: EngineOutcome) -> Outcome:
    return Outcome(
        VERDICTS[got.verdict],
        str(got.reason) if got.verdict is Verdict.DROP else None,
        got.port,
        got.frame if got.port is not None else None,
        got.rule,
        gso_size=got.gso_size if got.port is not None else 0,
    )


def failure(node: Node, steps: list[Step], max_flows: int) -> AssertionError | None:
    """Of the first step on which the two do not agree."""
    pair = Pair(node, max_flows)
    try:
        strategies.play(node, steps, pair.do)
    except AssertionError as error:
        return error
    finally:
        pair.engine.close()
    return None


@pytest.mark.conformance("T5")
@settings(
    max_examples=EXAMPLES or 300,
    derandomize=not EXAMPLES,
    deadline=None,
    phases=[Phase.generate],  # a seed cannot be shrunk, the steps it stands for can
    suppress_health_check=[HealthCheck.too_slow],
)
@given(strategies.scenarios().thrown(), st.sampled_from([1, 2, 4, SMALL, SMALL]))
def test_engine_does_what_its_twin_does(scenario: tuple[Node, list[Step]], max_flows: int) -> None:
    node, steps = scenario
    error = failure(node, steps, max_flows)
    if error is None:
        return
    for at in reversed(range(len(steps))):
        fewer = steps[:at] + steps[at + 1 :]
        if (found := failure(node, fewer, max_flows)) is not None:
            steps, error = fewer, found
    note(f"{node}\n{steps}\n{max_flows=}")
    raise error


def test_both_take_a_connection_after_the_last_one_for_a_new_flow() -> None:
    """Too seldom drawn: a client that uses its port again, by a service, after a reset."""
    backends = tuple(Backend(address=ip_address(f"10.1.0.{n}"), port=80) for n in (3, 4))
    balancer = LoadBalancer(
        name="shop", protocol="tcp", port=80, vips=(ip_address("10.96.0.1"),), backends=backends
    )
    ends = tuple(
        Endpoint(
            name=name, addresses=(ip_address(f"10.1.0.{n}"),), mac=Mac(f"02:00:00:00:00:{n:02}")
        )
        for n, name in enumerate("abc", 2)
    )
    blue = Network(
        name="blue",
        vni=Vni(1),
        prefixes=(parse_prefix("10.1.0.0/24"),),
        dr_mac=strategies.DR_MAC,
        endpoints=ends,
        load_balancers=(balancer,),
    )
    us = Node(name="us", underlay=Underlay(address=ip_address("192.0.2.1")), networks=(blue,))
    pair = Pair(us)

    def ask(flags: str) -> Outcome:
        frame = build(parse(f"tcp 10.1.0.2:9 > 10.96.0.1:80 {flags}"), ends[0].mac, blue.dr_mac)
        return pair.judge(strategies.Frame("blue/a", frame), 0)

    server = ask("syn").egress
    index = "abc".index(str(server)[-1])
    back = parse(f"tcp 10.1.0.{index + 2}:80 > 10.1.0.2:9 syn ack")
    pair.judge(strategies.Frame(str(server), build(back, ends[index].mac, ends[0].mac)), 0)
    drained = tuple(replace(b, drain=b.address in ends[index].addresses) for b in backends)
    drains = replace(balancer, backends=drained)
    after = replace(us, networks=(replace(blue, load_balancers=(drains,)),))
    pair.do(strategies.Event(0, commit=after))
    assert ask("rst ack").egress == server
    assert ask("syn").egress not in (None, server)


pytestmark = pytest.mark.timeout(600)
