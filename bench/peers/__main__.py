"""`make bench-peers`: this forwarder beside others, on one wire, in turns; as root.

Each round every opponent has its turn, in an order that moves on, on namespaces of its own: it is
checked, then measured with the underlay's offloads on and off. Ratios are of one round.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from bench.peers import report, tools
from bench.peers.measure import Meter, Values, knobs, wanted
from bench.peers.opponents import KERNEL, OPPONENTS, Opponent
from bench.peers.site import PREFIX, Wire
from bench.results import RESULTS, today, write
from dataplane import bench, demo_net
from dataplane.errors import DataplaneError

FAULTS = (DataplaneError, OSError, ValueError)


def main(words: list[str] | None = None) -> int:
    """0: all went well; 1: an opponent failed, the others' results stand; 2: not possible here."""
    asked = _parser().parse_args(words)
    if asked.quick:
        asked.rounds, asked.seconds = 1, 0.5
    if why := demo_net.why_not():
        print(f"bench-peers needs root and network namespaces: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    for name in demo_net.remove_leftovers(PREFIX):
        _say(f"removed {name}, which an earlier run left")
    names = _able([name for name in OPPONENTS if name == KERNEL or name in asked.opponents])
    failures: list[str] = []
    rounds = [
        _round(names[i % len(names) :] + names[: i % len(names)], asked, failures)
        for i in range(asked.rounds)
    ]
    return _tell(asked, rounds, failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="of a TCP transfer; the rest goes with it")
    add("--quick", action="store_true", help="one round, half a second a transfer")
    add(
        "--opponents",
        nargs="+",
        choices=[*OPPONENTS],
        default=[*OPPONENTS],
        metavar="NAME",
        help="beside the kernel: " + ", ".join(name for name in OPPONENTS if name != KERNEL),
    )
    add("--underlays", nargs="+", choices=[*report.UNDERLAYS], default=[*report.UNDERLAYS])
    add("--router", action="store_true", help="a routing namespace between the hosts")
    add("--results", type=Path, default=RESULTS, help="directory for what is written")
    return parser


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _able(names: list[str]) -> list[str]:
    """Without those that this machine lacks."""
    lacks = {name: OPPONENTS[name].lacks() for name in names}
    for name, why in lacks.items():
        if why:
            _say(f"{name}: left out: {why}")
    return [name for name in names if not lacks[name]]


def _round(names: list[str], asked: argparse.Namespace, failures: list[str]) -> report.Round:
    found: report.Round = {}
    for name in names:
        _say(f"{name} ...")
        try:
            found[name] = _turn(OPPONENTS[name], asked)
        except FAULTS as error:
            failures.append(f"{name}: {error}")
            _say(f"FAILED  {failures[-1]}")
    return found


def _turn(opponent: Opponent, asked: argparse.Namespace) -> dict[str, Values]:
    """By underlay."""
    found: dict[str, Values] = {}
    with Wire(asked.router) as site:
        program = tools.built("traffic", site.directory)
        meter = Meter(site, program, knobs(asked.seconds, opponent.slow))
        with opponent.join(site):
            for underlay in asked.underlays:
                site.offloads(underlay == "on")
                meter.verify()
                found[underlay] = {}
                for name, work in wanted(opponent.only):
                    found[underlay] |= work(meter, name)
            meter.no_wrong_checksums()
    return found


def _tell(asked: argparse.Namespace, rounds: list[report.Round], failures: list[str]) -> int:
    machine = bench.machine(-1)
    del machine["core"]
    told: dict[str, Any] = {
        "command": "make bench-peers" + (" QUICK=1" if asked.quick else ""),
        "date": today(),
        "machine": machine,
        "rounds": len(rounds),
        "seconds": asked.seconds,
        "router": asked.router,
        "compared_with": KERNEL,
        "failures": failures,
        "results": list(report.rows(rounds)),
    }
    text = report.render(told)
    print(text)
    for path in write("peers", told, text, report.charts(told), asked.results):
        _say(str(path))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
