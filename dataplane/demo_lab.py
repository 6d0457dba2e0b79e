"""The demo's story in memory, for those who may not make namespaces: the same engine and policy,
frame by frame, on a simulated clock. Throughput, the kernel peer and real sockets it cannot show.
"""

import struct
from collections.abc import Callable, Iterator

from dataplane import defaults
from dataplane.demo_base import DB, OUTSIDE, RELOADS, WEB, C, expect, say, with_telnet
from dataplane.errors import DataplaneError
from dataplane.ids import UNDERLAY
from dataplane.lab import Journey, Lab
from dataplane.model import Document
from dataplane.names import find_endpoint
from dataplane.packet import build, describe, mirror, parse
from dataplane.reasons import Verdict
from dataplane.report import law
from dataplane.stats import adds_up

STREAM = 2000  # frames under which the policy changes


def main(document: Document, why: str) -> int:
    """0 if all went as it should, else 1."""
    say("note", "in the in-memory lab", f"no namespaces: {why}")
    with Lab.from_document(document) as lab:
        for what, step in InMemory(lab, document).steps():
            try:
                say("ok", what, step())
            except DataplaneError as error:
                say("FAIL", what, f"\n      {error}")
                return 1
    say("ok", "the lab's part is shown", "not shown: sockets, the kernel peer, throughput")
    return 0


class InMemory:
    """The steps, in order; each returns what it measured, or raises."""

    def __init__(self, lab: Lab, document: Document) -> None:
        self._lab, self._document = lab, document

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "ping a -> b and back", self._ping
        yield "a -> c, the kernel's peer", self._kernel_peer
        yield "denied port dropped, reason named", self._denied
        yield "tenants with equal addresses apart", self._tenants
        yield "to the outside under the NAT address", self._outside
        yield "too-large packet with DF answered", self._too_large
        yield "TCP MSS clamped", self._mss
        yield f"{RELOADS} policy changes under traffic", self._reload
        yield "counters add up", self._law

    def _send(self, at: str, packet: str, payload: bytes = b"") -> Journey:
        place = find_endpoint(self._document, at)
        router = defaults.dr_mac(place.network, place.node)
        frame = build(parse(packet), defaults.endpoint_mac(place.endpoint), router)
        if payload:
            frame = frame[: -len(payload)] + payload
        return self._lab.send(place.node.name, f"{place.network.name}/{place.endpoint.name}", frame)

    def _ping(self) -> str:
        there = self._send("a/blue/web", f"icmp {WEB} > {DB} echo id 7 seq 1")
        _arrived(there, "blue/db")
        back = self._send("b/blue/db", f"icmp {DB} > {WEB} reply id 7 seq 1")
        _arrived(back, "blue/web")
        return str(describe(back.last.outcome.frame)["text"])

    def _kernel_peer(self) -> str:
        journey = self._send("a/blue/web", f"tcp {WEB}:40000 > {C}:5001")
        expect(journey.last.outcome.port == UNDERLAY, "a VXLAN packet", journey)
        outer = describe(journey.last.outcome.frame)["outer"]
        return f"encapsulated for {outer['dst']}, vni {outer['vni']}"

    def _denied(self) -> str:
        journey = self._send("a/blue/web", f"tcp {WEB}:40000 > {DB}:23")
        out = journey.last.outcome
        expect(str(out.reason) == "acl_deny", "acl_deny", out.reason)
        return f"{out.reason}, rule {out.rule} of node {journey.last.node}"

    def _tenants(self) -> str:
        ports = []
        for tenant in ("blue", "green"):
            journey = self._send(f"a/{tenant}/web", f"tcp {WEB}:40001 > {DB}:5100")
            _arrived(journey, f"{tenant}/db")
            ports.append(str(journey.last.outcome.port))
        return f"{DB} is two machines: {' and '.join(ports)}"

    def _outside(self) -> str:
        journey = self._send("a/blue/web", f"tcp {WEB}:40002 > {OUTSIDE}:80")
        _arrived(journey, "host")
        leaving = parse(str(describe(journey.last.outcome.frame)["text"]))
        node = self._lab.nodes["a"].model
        assert node.host_port is not None and leaving.smac is not None and leaving.dmac is not None
        expect(leaving.src == node.host_port.address, node.host_port.address, leaving.src)
        answer = build(mirror(leaving), leaving.dmac, leaving.smac)
        _arrived(self._lab.send("a", "host", answer), "blue/web")
        return f"left as {leaving.src}:{leaving.sport}, and the answer came back"

    def _too_large(self) -> str:
        packet = f"icmp {WEB} > {DB} echo id 8 len 1472 df"
        journey = self._send("a/blue/web", packet)
        expect(str(journey.last.outcome.reason) == "too_big", "too_big", journey)
        return str(describe(journey.last.outcome.frame)["text"])

    def _mss(self) -> str:
        journey = self._send("a/blue/web", f"tcp {WEB}:40003 > {DB}:5200 syn mss 1460")
        found = describe(journey.last.outcome.frame).get("mss")
        expect(found == 1410, 1410, found)
        return f"the SYN left with 1460 and arrived with {found}"

    def _reload(self) -> str:
        """Numbered datagrams; the rule on the denied port flips while they pass."""
        seen = set()
        before = self._lab.nodes["b"].engine.generation
        for i in range(STREAM):
            if i % (STREAM // RELOADS) == 0:
                action = "block" if i // (STREAM // RELOADS) % 2 else "allow"
                changed = with_telnet(self._document, action)
                for node in changed.nodes:
                    self._lab.nodes[node.name].model = node
            packet = f"udp {WEB}:5003 > {DB}:5003 len 8"
            journey = self._send("a/blue/web", packet, struct.pack("!Q", i))
            seen.add(journey.last.outcome.frame[-8:])
        expect(len(seen) == STREAM, f"{STREAM} datagrams", len(seen))
        steps = self._lab.nodes["b"].engine.generation - before
        return f"{STREAM} numbered datagrams, 0 lost, {steps} new generations"

    def _law(self) -> str:
        told = []
        for name, node in self._lab.nodes.items():
            totals = dict(node.engine.stats().totals)
            expect(adds_up(totals), "what came in to be what went out", totals)
            told.append(f"{name}: {law(totals)}")
        return "; ".join(told)


def _arrived(journey: Journey, port: str) -> None:
    out = journey.last.outcome
    there = out.verdict is Verdict.FORWARD and out.port == port
    expect(there, f"delivery to {port}", journey)
