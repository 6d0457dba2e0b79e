"""`make bench-peers`: the same topology under this dataplane and its peers, interleaved in one run.

Each round measures every opponent once, in another order; what is told are medians of the rounds'
ratios to the kernel's VXLAN device, with their spread. What is measured is checked: streams by
iperf3's counts on both sides, datagrams one by one, checksum errors of all kernels. As root.
"""

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from bench.peers_net import ADDRESS, OPPONENTS, Site
from dataplane import demo_net
from dataplane.errors import DataplaneError
from dataplane.tables import table

RESULTS = Path(__file__).resolve().parent / "results"
PINGS = 2000
UDP_MS = 500  # of a try at a rate
STREAMS = ("tcp1", "tcp1_reverse", "tcp4", "tcp4_reverse")
WORSE = ("rtt_p50_us", "rtt_p99_us", "cpu_s_per_gb")  # the less the better
SLOW = ("naive", "scapy")  # streams of them are measured for a second


# ---- measures ----------------------------------------------------------------------------------


@contextmanager
def server(site: Site, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        site.command("p2", "iperf3", "-s", "-1", "-p", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.15)
        yield
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def iperf(site: Site, *words: str) -> dict[str, Any]:
    port = random.randrange(5000, 5999)
    command = ["iperf3", "-J", "-c", ADDRESS["p2"], "-p", str(port), *words]
    with server(site, port):
        done = subprocess.run(
            site.command("p1", *command), capture_output=True, timeout=60, check=False
        )
    told: dict[str, Any] = json.loads(done.stdout)
    if "error" in told:
        raise DataplaneError(f"iperf3: {told['error']}")
    return told


def tcp(site: Site, seconds: int, streams: int, reverse: bool) -> tuple[float, float]:
    """Bits a second that arrived, and CPU seconds of the whole machine a gigabyte."""
    words = ["-t", str(seconds), "-P", str(streams), *(["-R"] if reverse else [])]
    before = busy_seconds()
    end = iperf(site, *words)["end"]
    cpu = busy_seconds() - before
    arrived = end["sum_received"]["bytes"]
    return float(end["sum_received"]["bits_per_second"]), cpu / (arrived / 1e9)


def busy_seconds() -> float:
    """Of all cores: user, nice, system, irq, softirq."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    ticks = [int(word) for word in words[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


def lossless(site: Site, flows: int, most: float) -> float:
    """The highest rate of small datagrams, packets a second, of which not one was lost."""
    good, bad, rate = 0.0, most, most / 4
    while bad - good > 0.08 * bad:
        sent, came = datagrams(site, flows, rate)
        if came > sent:
            raise DataplaneError(f"{came} datagrams came of {sent}")
        enough = sent > 0.95 * rate * UDP_MS / 1000  # else the sender is the bottle's neck
        good, bad = (rate, bad) if came == sent and enough else (good, rate)
        rate = min(2 * rate, (good + bad) / 2)
    return good


def datagrams(site: Site, flows: int, rate: float) -> tuple[int, int]:
    """How many were sent, and how many came."""
    program = str(site.udp_program)
    with subprocess.Popen(
        site.command("p2", program, "count", "7100"), stdout=subprocess.PIPE, text=True
    ) as counter:
        assert counter.stdout is not None
        counter.stdout.readline()
        words = (ADDRESS["p2"], "7100", str(flows), f"{rate:.0f}", str(UDP_MS))
        sent = int(demo_net.run(*site.command("p1", program, "send", *words)))
        time.sleep(0.3)
        counter.terminate()
        return sent, int(counter.stdout.read())


def round_trips(site: Site) -> tuple[float, float]:
    """p50 and p99 of a datagram and its answer, in microseconds."""
    sockets = {p: site.inside(p, lambda: socket.socket(type=socket.SOCK_DGRAM)) for p in ADDRESS}
    near, far = sockets["p1"], sockets["p2"]
    with closing(near), closing(far):
        far.bind(("", 7000))
        child = os.fork()
        if child == 0:
            while True:
                data, peer = far.recvfrom(64)
                far.sendto(data, peer)
        try:
            near.settimeout(1)
            near.connect((ADDRESS["p2"], 7000))
            times = [_round_trip(near, i) for i in range(PINGS)]
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
    cuts = statistics.quantiles(times[PINGS // 10 :], n=100)
    return cuts[49], cuts[98]


def _round_trip(near: socket.socket, i: int) -> float:
    begin = time.perf_counter_ns()
    near.send(i.to_bytes(8))
    if int.from_bytes(near.recv(64)) != i:
        raise DataplaneError("a datagram came out of order")
    return (time.perf_counter_ns() - begin) / 1000


def measure(site: Site, name: str, seconds: int) -> dict[str, float]:
    """One round of one opponent."""
    found: dict[str, float] = {}
    seconds = min(seconds, 1) if name in SLOW else seconds
    for key in STREAMS:
        bits, cpu = tcp(site, seconds, int(key[3]), key.endswith("reverse"))
        found[f"{key}_mbps"] = bits / 1e6
        if key == "tcp1":
            found["cpu_s_per_gb"] = cpu
    most = 50_000 if name in SLOW else 1_600_000
    for flows in (1, 1000):
        found[f"udp_{flows}_pps"] = lossless(site, flows, most)
    found["rtt_p50_us"], found["rtt_p99_us"] = round_trips(site)
    return found


# ---- the run -----------------------------------------------------------------------------------


def run(names: list[str], offloads: bool, rounds: int, seconds: int) -> list[dict[str, Any]]:
    """Rows of one underlay, by opponent and measure."""
    with ExitStack() as made:
        sites = {}
        for name in names:
            sites[name] = made.enter_context(Site(name, offloads))
            OPPONENTS[name](sites[name])
            wait_until_it_works(sites[name], name)
        order = list(names)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for i in range(rounds):
            for name in order:
                say(f"offloads {'on' if offloads else 'off'}, round {i + 1} of {rounds}: {name}")
                found[name].append(measure(sites[name], name, seconds))
            order = [*order[1:], order[0]]
        for name, site in sites.items():
            if errors := site.checksum_errors():
                raise DataplaneError(f"{name}: checksum errors {errors}")
    return [row(name, key, found, offloads) for name in names for key in found[name][0]]


def row(
    name: str, key: str, found: dict[str, list[dict[str, float]]], offloads: bool
) -> dict[str, Any]:
    own = [measured[key] for measured in found[name]]
    pairs = zip(own, found["kernel"], strict=True)
    ratios = [value / base[key] if base[key] else 0.0 for value, base in pairs]
    return {
        "opponent": name,
        "offloads": offloads,
        "measure": key,
        "median": statistics.median(own),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def wait_until_it_works(site: Site, name: str) -> None:
    for _ in range(20):
        command = site.command("p1", "ping", "-c", "1", "-W", "1", ADDRESS["p2"])
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    raise DataplaneError(f"{name}: no ping comes through, see {site.directory}")


def say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def render(rows: list[dict[str, Any]]) -> str:
    lines = []
    for offloads in (True, False):
        some = [r for r in rows if r["offloads"] is offloads]
        if some:
            cells = [(r["opponent"], r["measure"], f"{r['median']:.1f}", *_ratio(r)) for r in some]
            head = ("opponent", "measure", "median", "to_kernel", "least", "most", "")
            kind = "with" if offloads else "without"
            lines += [f"underlay {kind} offloads", *table([head, *cells]), ""]
    return "\n".join(lines)


def _ratio(r: dict[str, Any]) -> tuple[str, ...]:
    less = "less is better" if r["measure"] in WORSE else ""
    return *(f"{r[k]:.3f}" for k in ("ratio", "least", "most")), less


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each stream")
    parser.add_argument("--quick", action="store_true", help="one round, kernel and dataplane")
    parser.add_argument("--only", default=",".join(OPPONENTS), help="opponents, with commas")
    options = parser.parse_args()
    if why := demo_net.why_not():
        print(f"bench-peers needs root and network namespaces: {why}", file=sys.stderr)
        return 2
    demo_net.remove_leftovers()
    names = ["kernel", "dataplane"] if options.quick else options.only.split(",")
    names = ["kernel", *(n for n in names if n != "kernel")]
    rounds, seconds = (1, 1) if options.quick else (options.rounds, options.seconds)
    rows = run(names, True, rounds, seconds) + run(names, False, rounds, seconds)
    say("")
    print(render(rows))
    RESULTS.mkdir(exist_ok=True)
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "rounds": rounds}
    report = {"machine": machine, "seconds": seconds, "results": rows}
    (RESULTS / "peers.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
