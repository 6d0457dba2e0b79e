"""What is measured on a joined wire. Each result is checked before its time counts."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.peers.site import OTHER, PODS, Wire
from bench.peers.tools import Server, Traffic
from dataplane import demo_traffic
from dataplane.errors import DataplaneError

Values = dict[str, float]  # by measure

TCP_PORT, UDP_PORT, PONG_PORT, CHECK_PORT = 6000, 7000, 6999, 5000
SOURCES, PORTS = 25, 40  # of 1,000 flows
CLOSE = 1.06  # a rate without loss and one with: near enough to each other
TRIALS = 14
CPU_SECOND = 100  # USER_HZ
BUSY = (0, 1, 2, 5, 6)  # of /proc/stat: user, nice, system, irq, softirq


class Knobs(NamedTuple):
    seconds: float  # of a TCP stream
    trial: float  # seconds of a search's step
    pings: int
    checked: int  # bytes that are compared
    first_rate: float  # of a search


def knobs(seconds: float, slow: bool) -> Knobs:
    """`slow`: for one who forwards a few thousand packets a second."""
    trial = max(0.1, seconds / 6)
    if slow:
        return Knobs(seconds, trial, 200, 1 << 20, 250)
    return Knobs(seconds, trial, round(max(500, 1500 * seconds)), 16 << 20, 20_000)


class Meter:
    """Measures on one site. Names of measures are those of `MEASURES`."""

    def __init__(self, site: Wire, program: Path, asked: Knobs) -> None:
        self._site, self._knobs = site, asked
        self._traffic = Traffic(site, program)
        self._ports = itertools.count()
        self._runs = itertools.count(1)

    # ---- is it right at all? -------------------------------------------------------------------

    def verify(self) -> None:
        """Random bytes arrive as they were sent, both ways. Raises DataplaneError."""
        blocks = max(1, self._knobs.checked // demo_traffic.BLOCK)
        for pod in PODS:
            to = PODS[OTHER[pod]], CHECK_PORT + next(self._ports)
            done = demo_traffic.transfer(self._site, pod, OTHER[pod], to, lambda n: n < blocks)
            if not done.intact or done.size != blocks * demo_traffic.BLOCK:
                raise DataplaneError(f"{done} from {pod}: what arrived is not what was sent")

    def no_wrong_checksums(self) -> None:
        """None came to any kernel. Raises DataplaneError."""
        if found := self._site.checksum_errors():
            raise DataplaneError(f"wrong checksums arrived: {found}")

    # ---- TCP -----------------------------------------------------------------------------------

    def tcp(self, name: str, streams: int, source: str) -> Values:
        """Gbit/s of payload, and processor seconds of the whole machine for 10^9 bytes of it."""
        port, target = TCP_PORT + next(self._ports), OTHER[source]
        seconds = self._knobs.seconds
        with self._traffic.serving(target, "tcp-sink", port, streams) as sink:
            before = _busy()
            words = "tcp-send", PODS[target], port, streams, seconds
            sent = self._traffic.ask(source, *words, seconds=seconds)
            got = sink.told()
            busy = _busy() - before
        if got["bytes"] != sent["bytes"] or not got["bytes"]:
            raise DataplaneError(f"TCP: {sent['bytes']} bytes were sent, {got['bytes']} came")
        return {name: got["bytes"] * 8 / got["ns"], f"cpu_{name}": busy / got["bytes"] * 1e9}

    # ---- datagrams -----------------------------------------------------------------------------

    def udp(self, name: str, flows: int) -> Values:
        """The most packets a second of which none is lost, in 10^6, of 18 bytes of payload."""
        sources, ports = (1, 1) if flows == 1 else (SOURCES, PORTS)
        with self._traffic.serving("pb", "udp-sink", UDP_PORT, ports) as sink:
            rate = lossless(lambda r: self._trial(sink, sources, ports, r), self._knobs.first_rate)
        return {name: rate / 1e6}

    def _trial(self, sink: Server, sources: int, ports: int, rate: float) -> tuple[float, bool]:
        """The rate at which it was sent and came, the lower one, and whether all of it came.

        What waits in queues at the end has not come yet: filling them is no way to be fast.
        """
        run, seconds = next(self._runs), self._knobs.trial
        words = "udp-send", PODS["pb"], UDP_PORT, ports, sources, run, rate, seconds
        sent = self._traffic.ask("pa", *words, seconds=seconds)
        got = _settled(sink, run, sent["sent"])
        if got["wrong"] or got["twice"] or got["received"] > sent["sent"]:
            raise DataplaneError(f"UDP: of {sent} came {got}")
        rate = sent["sent"] / max(sent["ns"], got["ns"]) * 1e9
        return rate, got["received"] == sent["sent"] > 0

    # ---- round trips ---------------------------------------------------------------------------

    def round_trip(self, name: str) -> Values:
        """Microseconds, one datagram at a time: the median and the 99th percentile."""
        with self._traffic.serving("pb", "pong", PONG_PORT):
            told = self._traffic.ask("pa", "ping", PODS["pb"], PONG_PORT, self._knobs.pings)
        took = sorted(told["ns"][:-1])
        if told["lost"] or len(took) != self._knobs.pings:
            raise DataplaneError(f"ping: {told['lost']} of {self._knobs.pings} are lost")
        return {
            f"{name}_p50": took[len(took) // 2] / 1e3,
            f"{name}_p99": took[len(took) * 99 // 100] / 1e3,
        }


MEASURES: dict[str, Callable[[Meter, str], Values]] = {
    "tcp_1": lambda meter, name: meter.tcp(name, 1, "pa"),
    "tcp_1_back": lambda meter, name: meter.tcp(name, 1, "pb"),
    "tcp_4": lambda meter, name: meter.tcp(name, 4, "pa"),
    "tcp_4_back": lambda meter, name: meter.tcp(name, 4, "pb"),
    "udp_1": lambda meter, name: meter.udp(name, 1),
    "udp_1000": lambda meter, name: meter.udp(name, 1000),
    "rtt": lambda meter, name: meter.round_trip(name),
}


def lossless(trial: Callable[[float], tuple[float, bool]], first: float) -> float:
    """The highest rate found that loses nothing; 0 if none. `trial`: rate → what came, no loss.

    A rate counts as lossy when it is so twice: a machine shared with others stumbles at times.
    """
    good, bad = 0.0, 0.0
    rate = first
    for _ in range(TRIALS):
        came, whole = trial(rate)
        if not whole:
            came, whole = trial(rate)
        if whole:
            good = max(good, came)
            if came < 0.9 * rate:
                break  # the sender gives no more
        else:
            bad = min(rate, bad or rate)
        if bad and good and bad < good * CLOSE:
            break
        rate = _next(good, bad, rate)
    return good


def _next(good: float, bad: float, rate: float) -> float:
    if not bad:
        return rate * 2
    return (good * bad) ** 0.5 if good else rate / 4


def _settled(sink: Server, run: int, wanted: int) -> dict[str, int]:
    """What came of a run, once nothing more comes."""
    before: dict[str, int] = {}
    for _ in range(40):
        told: dict[str, int] = sink.ask(run)
        if told == before or told["received"] == wanted:
            return told
        before = told
        time.sleep(0.05)
    return before


def _busy() -> float:
    """Seconds that all processors have worked."""
    ticks = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    return sum(int(ticks[i]) for i in BUSY) / CPU_SECOND


def wanted(only: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Meter, str], Values]]]:
    """Measures by name; none named: all."""
    return ((name, work) for name, work in MEASURES.items() if not only or name in only)
