"""The demo in network namespaces: every claim is measured on real traffic.

The first step that fails is explained and ends it. However it ends, all it made is removed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from msgspec.structs import replace

from dataplane import demo_net
from dataplane import demo_traffic as traffic
from dataplane.demo_base import DB, OUTSIDE, RELOADS, WEB, C, expect, say, with_telnet
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from dataplane.document import dump
from dataplane.errors import DataplaneError, DocumentError
from dataplane.model import Document, Endpoint, Network, Node
from dataplane.report import law
from dataplane.stats import adds_up

PODS = {("a", "blue"): "a1", ("a", "green"): "a2", ("b", "blue"): "b1", ("b", "green"): "b2"}
NAT_ADDRESS = "192.0.2.1"
TRANSFER = 100  # blocks of 1 MiB
DATAGRAMS = 1000
PACE = 15_000_000  # bytes a second, of the transfer under which the policy changes
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(document: Document) -> int:
    """0 if all went as it should, else 1; then it has said what was expected and what was seen."""
    begin = time.monotonic()
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    nodes: list[NodeProcess] = []
    try:
        leftovers = demo_net.remove_leftovers()
        if leftovers:
            say("note", "removed what an earlier run left", " ".join(leftovers))
        with ExitStack() as stack:
            try:
                _story(document, stack, nodes)
            finally:
                _ignore_interrupts()
        left = [
            n for n in demo_net.namespaces() if n.startswith(f"{demo_net.PREFIX}{os.getpid()}-")
        ]
        expect(not left, "all namespaces removed", ", ".join(left))
    except (DataplaneError, OSError, subprocess.SubprocessError) as error:
        if isinstance(error, DocumentError):
            raise
        say("FAIL", str(error))
        return 1
    except KeyboardInterrupt:
        say("FAIL", "interrupted; all it made is removed")
        return 1
    say("ok", "everything it made is removed", f"{time.monotonic() - begin:.0f} s in all")
    return 0


def _interrupt(number: int, frame: object) -> None:
    _ignore_interrupts()
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """Nothing stops the clean-up."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)


def _story(document: Document, stack: ExitStack, nodes: list[NodeProcess]) -> None:
    site = stack.enter_context(Site())
    policy = site.directory / "policy.yaml"
    policy.write_text(dump(placed(document, site)))
    story = Story(site, document, policy, nodes)
    say("ok", "namespaces", f"{len(site.names)}: hosts a, b, c, outside, a router, pods")
    for host in ("a", "b"):
        nodes.append(stack.enter_context(NodeProcess(site, host, host, policy)))
        say("ok", f"host {host}: dataplane run", nodes[-1].wait_for("ready: ")[7:])
    say("ok", "host c: kernel VXLAN device", "flannel.4096, as flannel sets it up")
    for what, step in story.steps():
        try:
            say("ok", what, step())
        except (DataplaneError, OSError, subprocess.SubprocessError) as error:
            tails = "".join(node.tail() for node in nodes)
            kind = "" if isinstance(error, DataplaneError) else f"{type(error).__name__}: "
            raise DataplaneError(f"{what}\n      {kind}{error}{tails}") from error


def placed(document: Document, site: Site) -> Document:
    """Every TAP in the namespace of its pod. The host port stays in the host's."""

    def endpoint(e: Endpoint, pod: str) -> Endpoint:
        assert e.tap is not None, "the demo's endpoints name their TAPs"
        return replace(e, tap=replace(e.tap, netns=site.full(pod)))

    def network(n: Network, node: Node) -> Network:
        pod = PODS[node.name, n.name]
        return replace(n, endpoints=tuple(endpoint(e, pod) for e in n.endpoints))

    nodes = tuple(
        replace(node, networks=tuple(network(n, node) for n in node.networks))
        for node in document.nodes
    )
    return replace(document, nodes=nodes, expect=())


class Story:
    """The steps, in order; each returns what it measured, or raises."""

    def __init__(
        self, site: Site, document: Document, policy: Path, nodes: list[NodeProcess]
    ) -> None:
        self._site, self._document, self._policy, self._nodes = site, document, policy, nodes

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        b, c = ("a1", "b1", DB), ("a1", "c1", C)
        ways = {"a -> b": b, "b -> a": ("b1", "a1", WEB), "a -> c": c, "c -> a": ("c1", "a1", WEB)}
        for what, (source, _, address) in ways.items():
            yield f"ping {what}", partial(self._ping, source, address)
        for what, way in ways.items():
            yield f"TCP {what}", partial(self._tcp, *way)
        for what, way in ways.items():
            yield f"UDP {what}", partial(self._udp, *way)
        yield "denied port dropped, reason named", self._denied
        yield "tenants with equal addresses apart", self._tenants
        yield "to the outside under the NAT address", self._outside
        yield "TCP MSS clamped", self._mss
        yield "too-large packet with DF answered", self._too_large
        yield f"{RELOADS} policy changes under traffic", self._reload
        yield "a broken policy changes nothing", self._broken
        yield "no checksum error in any namespace", self._checksums
        for node in ("a", "b"):
            yield f"node {node}: counters add up", partial(self._law, node)

    # ---- steps ---------------------------------------------------------------------------------

    def _ping(self, source: str, address: str) -> str:
        code, text = traffic.ping(self._site, source, address, "-c", "3", "-i", "0.05")
        expect(code == 0, f"3 answers of {address}", text.strip())
        return text.strip().splitlines()[-1]

    def _tcp(self, source: str, target: str, address: str) -> str:
        to = (address, 5001)
        done = traffic.transfer(self._site, source, target, to, lambda sent: sent < TRANSFER)
        _intact(done)
        return f"{done}, sha256 {done.received[:12]} at both ends"

    def _udp(self, source: str, target: str, address: str) -> str:
        lost = traffic.datagrams(self._site, source, target, (address, 5002), DATAGRAMS)
        expect(lost == 0, "every datagram arrives", f"{lost} of about {DATAGRAMS} lost")
        return f"{DATAGRAMS} numbered datagrams, 0 lost"

    def _denied(self) -> str:
        before = self._nodes[1].stats()
        with closing(traffic.server(self._site, "b1", 23)):
            expect(not self._connects("a1", DB, 23), "port 23 closed to a", "it answered")
        after = self._nodes[1].stats()
        count = after["reasons"].get("acl_deny", 0) - before["reasons"].get("acl_deny", 0)
        rules = {name: n - before["rules"].get(name, 0) for name, n in after["rules"].items()}
        told = {k: v for k, v in after["reasons"].items() if v != before["reasons"].get(k, 0)}
        expect(count > 0, "node b to count acl_deny", told)
        rule = next((name for name, n in rules.items() if n and name.endswith("/telnet")), "none")
        expect(rule != "none", "rule blue/db/telnet to be hit", rules)
        return f"acl_deny {count}, rule {rule} of node b"

    def _tenants(self) -> str:
        """The same address and port asked from both tenants: each hears its own server."""
        heard = {}
        with (
            self._answering("b1", 5100, b"blue"),
            self._answering("b2", 5100, b"green"),
        ):
            for pod in ("a1", "a2"):
                heard[pod] = self._ask(pod, DB, 5100)
        expect(heard == {"a1": b"blue", "a2": b"green"}, "each its own server", heard)
        with self._answering("b2", 5101, b"green"):
            expect(not self._connects("a1", DB, 5101), "green's server out of reach", "blue got in")
            own = self._ask("a2", DB, 5101)
        expect(own == b"green", "green reaches its server", own)
        return f"{DB} is two machines: blue hears blue, green hears green"

    def _outside(self) -> str:
        to = (OUTSIDE, 8080)
        done = traffic.transfer(self._site, "a1", "o", to, lambda sent: sent < TRANSFER // 10)
        _intact(done)
        expect(done.peer == NAT_ADDRESS, f"the client to be {NAT_ADDRESS}", done.peer)
        return f"{done}; the server saw {done.peer}"

    def _too_large(self) -> str:
        """1500 bytes of IP, which the pod's device lets pass and the overlay does not."""
        _, text = traffic.ping(self._site, "a1", DB, "-M", "do", "-c", "1", "-s", "1472")
        told = [line for line in text.splitlines() if "mtu" in line.lower()]
        expect(bool(told), "ICMP fragmentation needed", text.strip())
        code, text = traffic.ping(self._site, "a1", DB, "-M", "do", "-c", "1", "-s", "1422")
        expect(code == 0, "1450 bytes to pass", text.strip())
        return told[0]

    def _mss(self) -> str:
        site = self._site
        with (
            closing(traffic.SynWatch(site, "a1", "web")) as left,
            closing(traffic.SynWatch(site, "b1", "db")) as arrived,
            closing(traffic.server(site, "b1", 5200)),
        ):
            expect(self._connects("a1", DB, 5200), "a connection", "none")
            seen = left.mss(5200), arrived.mss(5200)
        expect(seen == (1460, 1410), "the SYN's MSS to go from 1460 to 1410", seen)
        return f"the SYN left with {seen[0]} and arrived with {seen[1]}"

    def _reload(self) -> str:
        """Flips the denied port's rule on both nodes while a transfer and a numbered stream run."""
        site, policy = self._site, self._policy
        before = [node.stats() for node in self._nodes]
        stream = traffic.Stream(site, "b1", "a1", (WEB, 5003))
        own = placed(self._document, site)
        over = Event()
        with stream.running(0.0005), traffic.Background() as background:
            running = background.submit(
                traffic.transfer,
                site,
                "a1",
                "b1",
                (DB, 5004),
                lambda _: not over.is_set(),
                rate=PACE,
            )
            try:
                for i in range(RELOADS):
                    action = "block" if i % 2 else "allow"
                    policy.write_text(dump(with_telnet(own, action)))
                    for node in self._nodes:
                        node.reload()
                    self._telnet(open_=action == "allow")
            finally:
                over.set()
            done = running.result()
        after = [node.stats() for node in self._nodes]
        _intact(done)
        expect(stream.lost == 0, "every datagram arrives", f"{stream.lost} of {stream.sent} lost")
        steps = after[1]["totals"]["generation"] - before[1]["totals"]["generation"]
        expect(steps == RELOADS, f"{RELOADS} new generations", steps)
        kept = f"{done.size / 1e6:.0f} MB intact, {done.retransmits} retransmitted"
        return f"{kept}; {stream.sent} numbered datagrams, 0 lost"

    def _telnet(self, open_: bool) -> None:
        with closing(traffic.server(self._site, "b1", 23)):
            got = self._connects("a1", DB, 23, 0.15 if not open_ else 2.0)
        expect(got == open_, f"port 23 {'open' if open_ else 'closed'}", "the old policy at work")

    def _broken(self) -> str:
        generation = self._nodes[1].stats()["totals"]["generation"]
        self._policy.write_text("version: 1\nnode: {name: b}\n")
        line = self._nodes[1].refuse()
        now = self._nodes[1].stats()["totals"]["generation"]
        expect(now == generation, f"generation {generation}", now)
        self._ping("a1", DB)
        return line

    def _checksums(self) -> str:
        errors = self._site.checksum_errors()
        expect(not errors, "no InCsumErrors", errors)
        return f"InCsumErrors 0 in {len(self._site.names)}"

    def _law(self, name: str) -> str:
        node = next(node for node in self._nodes if node.name == name)
        code = node.stop()
        expect(code == 0, "exit code 0 after SIGTERM", code)
        stats = node.final()
        totals = stats["totals"]
        told = law(totals)
        expect(adds_up(totals), "what came in to be what went out", told)
        by_reason = sum(stats["reasons"].values())
        expect(by_reason == totals["dropped"], f"{totals['dropped']} drops with reason", by_reason)
        return told

    # ---- small traffic -------------------------------------------------------------------------

    def _connects(self, source: str, address: str, port: int, patience: float = 0.7) -> bool:
        try:
            traffic.connect(self._site, source, (address, port), patience).close()
        except OSError:
            return False
        return True

    def _ask(self, source: str, address: str, port: int) -> bytes:
        with closing(traffic.connect(self._site, source, (address, port), 2.0)) as client:
            return client.recv(64)

    @contextmanager
    def _answering(self, place: str, port: int, word: bytes) -> Iterator[None]:
        """A server that says one word to one client."""

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(word)

        with (
            closing(traffic.server(self._site, place, port)) as listener,
            traffic.Background() as background,
        ):
            answered = background.submit(serve)
            yield
            answered.result()


def _intact(done: traffic.Transfer) -> None:
    expect(done.intact, f"sha256 {done.sent}", f"{done.received} after {done.size} bytes")
