"""Ten thousand commits under a numbered stream: nothing lost, each frame judged by one policy.

The commits run on a second thread and flip one class of flows; the stream that no commit concerns
must come out whole and in order. Every result carries its generation, whose policy tells what the
verdict must have been.
"""

import threading
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from dataplane.address import Mac, Vni
from dataplane.batch import Batch
from dataplane.engine import Engine
from dataplane.model import Acl, Endpoint, Network, Node, PortRange, RemoteSubnet, Underlay
from dataplane.packet import build, parse
from dataplane.reasons import Verdict

COMMITS = 10_000
FRAMES = 1_000_000
BURST = 256
FLIPPED = BURST // 4  # so many frames of a burst belong to the class that commits flip
WEB, DR, PEER = (Mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
AT = 14 + 20 + 8  # the stream's number, 8 bytes at the start of the UDP payload
ENCAP = 50


def node(blocked: bool) -> Node:
    flip = Acl(
        name="flip",
        direction="out",
        action="block" if blocked else "allow",
        protocol="udp",
        remote_ports=(PortRange(first=2000, last=2000),),
    )
    web = Endpoint(
        name="web",
        addresses=(ip_address("10.1.1.2"),),
        mac=WEB,
        acls=(flip,),
        default_out="allow",
    )
    remote = RemoteSubnet(
        prefix=ip_network("10.1.2.0/24"), provider_address=ip_address("192.0.2.2"), dr_mac=PEER
    )
    blue = Network(
        name="blue",
        vni=Vni(70_000),
        prefixes=(ip_network("10.1.0.0/16"),),
        dr_mac=DR,
        remote_subnets=(remote,),
        endpoints=(web,),
    )
    return Node(name="a", underlay=Underlay(address=ip_address("192.0.2.1")), networks=(blue,))


class Stream:
    """Bursts whose frames carry consecutive numbers; the first ones are of the flipped class."""

    def __init__(self) -> None:
        kept = build(parse("udp 10.1.1.2:5000 > 10.1.2.2:1000 len 22"), WEB, DR)
        flipped = build(parse("udp 10.1.1.2:5000 > 10.1.2.2:2000 len 22"), WEB, DR)
        self.batch = Batch(capacity=BURST, slot=256)
        self.batch.load([flipped] * FLIPPED + [kept] * (BURST - FLIPPED), "blue/web")
        self.batch.arena[:, self.batch.headroom + AT - 2 : self.batch.headroom + AT] = 0  # no sum
        self.size = len(kept)

    def play(self, engine: Engine) -> None:
        batch = self.batch
        arena, frames = batch.arena.copy(), None
        rows = np.arange(BURST)
        sent = arrived = 0
        while sent < FRAMES or engine.generation < COMMITS + 1:
            batch.arena[:] = arena
            payload = slice(batch.headroom + AT, batch.headroom + AT + 8)
            numbers = (sent + rows).astype(">u8")
            batch.arena[:, payload] = numbers.view(np.uint8).reshape(BURST, 8)
            frames = self._restore(frames)
            result = engine.process(batch, now=sent)
            self._check(result, numbers)
            sent += BURST
            arrived += int((result.verdict == Verdict.FORWARD).sum())
        totals = engine.stats().totals
        assert totals["rx"] == sent and totals["forwarded"] == arrived
        assert totals["dropped"] == sent - arrived
        self.sent = sent

    def _restore(self, frames: "np.ndarray | None") -> np.ndarray:
        if frames is None:
            self.batch.prepare({"blue/web": 2}.__getitem__)
            return self.batch.frames.copy()
        self.batch.frames[:] = frames
        return frames

    def _check(self, result, numbers) -> None:
        verdict, generation = result.verdict, result.generation
        assert (verdict[FLIPPED:] == Verdict.FORWARD).all()
        wanted = np.where(generation % 2 == 1, Verdict.FORWARD, Verdict.DROP)
        assert (verdict[:FLIPPED] == wanted[:FLIPPED]).all()
        assert (np.diff(generation.astype(np.int64)) >= 0).all()
        kept = self.batch.arena[FLIPPED:, self.batch.headroom + AT :][:, :8]
        assert (np.ascontiguousarray(kept).view(">u8").ravel() == numbers[FLIPPED:]).all()
        assert (self.batch.frames["len"][FLIPPED:] == self.size + ENCAP).all()


@pytest.mark.conformance("T16")
def test_ten_thousand_commits_lose_nothing() -> None:
    policies = [node(blocked=False), node(blocked=True)]
    with Engine(max_flows=64) as engine:
        engine.commit(policies[0])
        failed: list[BaseException] = []

        def change() -> None:
            try:
                for i in range(COMMITS):
                    engine.commit(policies[1 - i % 2])
            except BaseException as error:
                failed.append(error)

        changer = threading.Thread(target=change)
        changer.start()
        stream = Stream()
        stream.play(engine)
        changer.join()
        assert not failed
        assert engine.generation == COMMITS + 1 and stream.sent >= FRAMES
        assert engine.stats().totals["reconciled"] > 1000
