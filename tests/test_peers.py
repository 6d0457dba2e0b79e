"""Whether a peer is up, silent or idle: by the times of what either side sent last."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from dataplane.api.peers import RESTED, UNANSWERED, peers
from dataplane.clock import SimClock
from dataplane.engine import Engine
from tests import blue

OUT, BACK = "tcp 10.1.0.2:7 > 10.2.0.9:80", "tcp 10.2.0.9:80 > 10.1.0.2:7"


class Talk(NamedTuple):
    """Endpoint web with somebody behind the peer."""

    engine: Engine
    clock: SimClock

    def sent(self, words: str = f"{OUT} ack") -> None:
        blue.forwarded(self.engine.process_one(blue.web(words), "web"), "underlay")

    def received(self, words: str = f"{BACK} ack") -> None:
        blue.forwarded(self.engine.process_one(blue.peer(words), "underlay"), "blue/web")

    def established(self) -> "Talk":
        self.sent(f"{OUT} syn")
        self.received(f"{BACK} syn ack")
        self.sent()
        return self

    @property
    def peer(self) -> dict[str, object]:
        (found,) = (peer for peer in peers(self.engine) if peer["name"] == blue.VTEP)
        return found


@pytest.fixture
def talk() -> Iterator[Talk]:
    clock = SimClock(10**9)
    with blue.engine(clock=clock) as engine:
        yield Talk(engine, clock)


def test_who_never_spoke_is_idle_and_who_never_answered_silent(talk: Talk) -> None:
    assert (talk.peer["state"], talk.peer["last_rx"], talk.peer["last_tx"]) == ("idle", None, None)
    talk.sent(f"{OUT} syn")
    talk.clock.advance(seconds=1)
    assert (talk.peer["state"], talk.peer["last_rx"], talk.peer["last_tx"]) == ("silent", None, 1)


def test_a_peer_that_dies_is_silent_though_its_flow_stands(talk: Talk) -> None:
    talk.established()
    talk.clock.advance(seconds=UNANSWERED)
    talk.sent()
    assert talk.peer["state"] == "up"
    talk.clock.advance(seconds=1)
    talk.sent()
    assert talk.peer["state"] == "silent"
    assert (talk.peer["last_rx"], talk.peer["last_tx"]) == (UNANSWERED + 1, 0)
    assert (talk.peer["rx_packets"], talk.peer["tx_packets"]) == (1, 4)
    talk.received()
    assert talk.peer["state"] == "up"


def test_a_pause_of_both_is_no_silence(talk: Talk) -> None:
    talk.established().clock.advance(seconds=RESTED)
    assert talk.peer["state"] == "up"
    talk.clock.advance(seconds=1)
    assert talk.peer["state"] == "idle"


def test_silence_ends_with_the_attempts(talk: Talk) -> None:
    talk.established().clock.advance(seconds=UNANSWERED + 1)
    talk.sent()
    talk.clock.advance(seconds=RESTED)
    assert talk.peer["state"] == "silent"
    talk.clock.advance(seconds=1)
    assert talk.peer["state"] == "idle"


def test_flows_that_the_peer_began_count_the_other_way(talk: Talk) -> None:
    talk.received("udp 10.2.0.9:5 > 10.1.0.2:9")
    assert (talk.peer["state"], talk.peer["rx_packets"], talk.peer["last_tx"]) == ("up", 1, None)
    talk.clock.advance(seconds=UNANSWERED + 1)
    talk.sent("udp 10.1.0.2:9 > 10.2.0.9:5")
    assert talk.peer["state"] == "silent"


def test_one_flow_that_is_answered_is_enough(talk: Talk) -> None:
    talk.established().clock.advance(seconds=UNANSWERED + 1)
    talk.sent()
    talk.received("udp 10.2.0.9:5 > 10.1.0.2:9")
    assert talk.peer["state"] == "up"
    assert (talk.peer["rx_packets"], talk.peer["tx_packets"]) == (2, 3)
