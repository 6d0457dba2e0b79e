"""One of 100 backends goes, drains and comes back while 20,000 flows run, on another thread.

Two engines under the same key, one with all backends and one with one less, say what a new flow
must get; each result's generation says which of them judged it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import numpy as np
import pytest

from dataplane import Engine
from dataplane.batch import Batch
from dataplane.defaults import dr_mac, endpoint_mac
from dataplane.model import Backend, Node
from dataplane.packet import build, parse
from dataplane.reasons import Verdict
from tests.test_services import VIP, WEB, balancer, network, node

BACKENDS = tuple(f"10.1.2.{i}" for i in range(1, 101))
GONE = BACKENDS[17]
FLOWS, NEW = 20_000, 2_000
ROUNDS = 12  # of comings and goings
DST = 30  # of an IPv4 destination in a frame


def policy(*, without: bool = False, drain: bool = False) -> Node:
    kept = [
        Backend(address=ip_address(a), drain=drain and a == GONE)
        for a in BACKENDS
        if not (without and a == GONE)
    ]
    return node(network(balancer(*kept, protocol="udp")))


ALL, LESS, DRAINING = policy(), policy(without=True), policy(drain=True)


def engine_of(first: Node) -> Engine:
    made = Engine(max_flows=1 << 17, max_bindings=64, key=bytes(range(32)))
    made.commit(first)
    return made


class Flows:
    """One frame of each flow, and the backend that it went to when it was last played."""

    def __init__(self, first: int, count: int) -> None:
        frame = build(
            parse(f"udp 10.1.1.2:1 > {VIP}:80 len 8"),
            endpoint_mac(WEB),
            dr_mac(ALL.networks[0], ALL),
        )
        self.batch = Batch(count, slot=256)
        self.batch.load([frame] * count, "blue/web")
        ports = (first + np.arange(count)).astype(">u2")
        at = self.batch.headroom + 34
        self.batch.arena[:, at : at + 2] = ports.view(np.uint8).reshape(count, 2)
        self.batch.arena[:, at + 6 : at + 8] = 0  # no checksum
        self._arena, self._frames = self.batch.arena.copy(), None

    def play(self, engine: Engine) -> tuple[np.ndarray, np.ndarray]:
        """By flow: the backend's address, and the generation that judged it."""
        if self._frames is None:
            self.batch.prepare(engine.port_id)
            self._frames = self.batch.frames.copy()
        self.batch.arena[:], self.batch.frames[:] = self._arena, self._frames
        result = engine.process(self.batch)
        assert (result.verdict == Verdict.FORWARD).all()
        at = self.batch.headroom + DST
        chosen = np.ascontiguousarray(self.batch.arena[:, at : at + 4]).view(">u4").ravel()
        return chosen.astype(np.int64), result.generation.copy()


@contextmanager
def committing(engine: Engine, policies: list[Node]) -> Iterator[threading.Thread]:
    """On a second thread, one after the other."""
    failed: list[BaseException] = []

    def change() -> None:
        try:
            for policy in policies:
                engine.commit(policy)
                time.sleep(0.01)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    assert not failed


@pytest.mark.conformance("N6")
def test_no_established_flow_moves_but_those_of_the_backend_that_is_gone() -> None:
    gone = int(ip_address(GONE))
    with engine_of(ALL) as engine:
        flows = Flows(1024, FLOWS)
        at, _ = flows.play(engine)
        first, passes = at.copy(), 0
        with committing(engine, [LESS, ALL] * ROUNDS + [LESS]) as thread:
            while thread.is_alive() or passes < 2 or (at == gone).any():
                now, generation = flows.play(engine)
                moved = now != at
                assert (at[moved] == gone).all()  # and later they stay where they went
                assert (generation[moved] % 2 == 0).all()  # even: without it
                at, passes = now, passes + 1
                assert passes < 10_000
        hit = int((first == gone).sum())
        assert FLOWS // 200 < hit == int((at != first).sum()) < FLOWS // 50
        totals = engine.stats().totals
        assert totals["flows"] == FLOWS == totals["misses"]
        assert totals["reconciled"] >= FLOWS


@pytest.mark.conformance("N6")
def test_a_backend_that_drains_first_loses_no_flow() -> None:
    gone = int(ip_address(GONE))
    with engine_of(ALL) as engine:
        flows = Flows(1024, FLOWS)
        at, _ = flows.play(engine)
        with committing(engine, [DRAINING, ALL] * ROUNDS + [DRAINING]) as thread:
            while thread.is_alive():
                assert (flows.play(engine)[0] == at).all()
        assert (Flows(30_000, NEW).play(engine)[0] != gone).all()
        assert (flows.play(engine)[0] == at).all()


@pytest.mark.conformance("N6")
def test_new_flows_get_what_their_policy_says_and_few_get_another() -> None:
    gone = int(ip_address(GONE))
    news = [Flows(first, NEW) for first in range(2000, 2000 + 20 * NEW, NEW)]
    with engine_of(ALL) as full, engine_of(LESS) as less, engine_of(ALL) as engine:
        of_all = [n.play(full)[0] for n in news]
        of_less = [n.play(less)[0] for n in news]
        with committing(engine, [LESS, ALL] * ROUNDS):
            for new, with_it, without in zip(news, of_all, of_less, strict=True):
                chosen, generation = new.play(engine)
                assert (chosen == np.where(generation % 2 == 1, with_it, without)).all()
                time.sleep(0.005)
    many, few = np.concatenate(of_all), np.concatenate(of_less)
    assert (few != gone).all()
    moved, own = (many != few).mean(), (many == gone).mean()
    assert 0.005 < own <= moved < 3 * own  # about 1 in 100 and its like
