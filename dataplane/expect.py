"""Expect: proves what a document says about its packets, with the engine that forwards for real.

Every expectation starts from empty flow tables, so their order means nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dataplane import defaults
from dataplane.address import parse_ip
from dataplane.errors import DataplaneError, PacketError
from dataplane.ids import HOST, UNDERLAY
from dataplane.lab import Hop, Journey, Lab, LabNode
from dataplane.model import Document, Expect
from dataplane.names import Place, find_endpoint, short_names
from dataplane.packet import build, describe, mirror, parse, vxlan
from dataplane.reasons import Verdict


@dataclass(frozen=True, slots=True)
class Finding:
    """How one expectation fared; `faults` is empty if it was met."""

    path: str  # into the document: $.expect[3]
    expect: Expect
    faults: tuple[str, ...]
    journey: Journey

    @property
    def passed(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        title = f"{self.expect.name}: " if self.expect.name else ""
        line = f"{'ok' if self.passed else 'FAIL':<5} {self.path}  {title}{self.expect.packet}"
        return "\n".join([line, *(f"      {fault}" for fault in self.faults)])

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "name": self.expect.name,
            "packet": self.expect.packet,
            "passed": self.passed,
            "faults": list(self.faults),
            "walk": self.journey.to_dict(),
        }


def prove(document: Document) -> list[Finding]:
    """One finding for each expectation of a checked document. Raises DataplaneError."""
    with Lab.from_document(document) as lab:
        return [
            _prove(document, lab, expect, f"$.expect[{i}]")
            for i, expect in enumerate(document.expect)
        ]


def _prove(document: Document, lab: Lab, expect: Expect, path: str) -> Finding:
    try:
        at = find_endpoint(document, expect.at)
        spec = parse(expect.packet)
    except (LookupError, PacketError) as error:
        raise DataplaneError(f"{path}: {error.args[0]}") from None
    lab.flush()
    mac, router = defaults.endpoint_mac(at.endpoint), defaults.dr_mac(at.network, at.node)
    journey = lab.send(at.node.name, _port(at), build(spec, mac, router))
    faults = tuple(_faults(document, lab, expect, at, journey))
    return Finding(path, expect, faults, journey)


def _port(place: Place) -> str:
    return f"{place.network.name}/{place.endpoint.name}"


def _faults(
    document: Document, lab: Lab, expect: Expect, at: Place, journey: Journey
) -> Iterator[str]:
    hop = _judged(expect, journey)
    if str(hop.outcome.verdict) != expect.verdict:
        yield f"verdict: expected {expect.verdict}, found {_said(hop)}"
        return
    yield from _reason_faults(expect, journey, hop)
    frame = describe(hop.outcome.frame, lab.nodes[hop.node].model.underlay.port)
    if expect.verdict == "forward":
        yield from _way_faults(document, expect, lab, journey, hop)
    for name, wanted in expect.headers.items():
        found = frame.get(name)
        if str(found) != str(wanted):
            yield f"headers.{name}: expected {wanted}, found {'none' if found is None else found}"
    if expect.reply is not None:
        yield from _reply_faults(expect.reply, lab, at, hop)


def _judged(expect: Expect, journey: Journey) -> Hop:
    """The hop an expectation speaks of: the last, or the one that sent out of the overlay."""
    if expect.to in (UNDERLAY, HOST):
        return next((h for h in journey.hops if h.outcome.port == expect.to), journey.last)
    return journey.last


def _said(hop: Hop) -> str:
    outcome = hop.outcome
    rule = f" by rule {outcome.rule}" if outcome.rule else ""
    if outcome.verdict is Verdict.DROP:
        why = f"{outcome.reason}{rule} at {hop.node}: {outcome.reason.sentence}"
        return f"drop for {why}"
    to = f" to {outcome.port}" if outcome.port else ""
    return f"{outcome.verdict}{to}{rule} at {hop.node}"


def _reason_faults(expect: Expect, journey: Journey, hop: Hop) -> Iterator[str]:
    reason = str(hop.outcome.reason)
    if expect.reason is not None and reason != expect.reason:
        yield f"reason: expected {expect.reason}, found {_said(hop)}"
    rules = [h.outcome.rule or "no rule" for h in journey.hops]
    if expect.rule is not None and all(expect.rule not in short_names(rule) for rule in rules):
        found = ", ".join(rules)
        yield f"rule: expected {expect.rule}, found {found}"


def _way_faults(
    document: Document, expect: Expect, lab: Lab, journey: Journey, hop: Hop
) -> Iterator[str]:
    if expect.to is not None:
        found = f"{hop.node}/{hop.outcome.port}"
        wanted = expect.to
        if wanted in (UNDERLAY, HOST):
            met = hop.outcome.port == wanted
        else:
            met = found == str(find_endpoint(document, wanted))
        if not met:
            yield f"to: expected {wanted}, found {found}"
    outer = [_outer(lab.nodes[h.node], h) for h in journey.hops if h.outcome.port == UNDERLAY]
    for name, key, wanted_value in (("encap", "dst", expect.encap), ("vni", "vni", expect.vni)):
        values = [str(headers.get(key)) for headers in outer]
        if wanted_value is not None and str(wanted_value) not in values:
            found = ", ".join(values) or "no encapsulation"
            yield f"{name}: expected {wanted_value}, found {found}"


def _outer(node: LabNode, hop: Hop) -> dict[str, Any]:
    outer: dict[str, Any] = describe(hop.outcome.frame, node.model.underlay.port).get("outer", {})
    return outer


def _reply_faults(wanted: str, lab: Lab, at: Place, hop: Hop) -> Iterator[str]:
    """The mirrored packet is sent from where the packet came out."""
    node = lab.nodes[hop.node]
    headers = describe(hop.outcome.frame, node.model.underlay.port)
    try:
        spec = mirror(parse(str(headers["text"])))
    except PacketError as error:
        yield f"reply: {error}"
        return
    assert spec.smac is not None and spec.dmac is not None
    answer = build(spec, spec.smac, spec.dmac)
    back = lab.send(node.name, hop.outcome.port or "", _wrapped(answer, headers, node, hop))
    home = f"{back.last.node}/{back.last.outcome.port}" == str(at)
    found = "forward" if back.verdict is Verdict.FORWARD and home else "drop"
    if found != wanted:
        yield f"reply: expected {wanted}, found {_said(back.last)}"


def _wrapped(answer: bytes, headers: dict[str, Any], node: LabNode, hop: Hop) -> bytes:
    """Of a packet that left the lab by the underlay, the answer as its VTEP would send it."""
    if hop.outcome.port != UNDERLAY:
        return answer
    outer = headers["outer"]
    return vxlan(
        answer,
        src=parse_ip(outer["dst"]),
        dst=parse_ip(outer["src"]),
        vni=outer["vni"],
        smac=outer["dmac"],
        dmac=outer["smac"],
        dport=node.model.underlay.port,
    )
