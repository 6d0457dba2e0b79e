"""Walk: what a frame meets on its way, step by step and by name, as `Engine.trace` tells it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dataplane._engine import ffi, lib
from dataplane.address import IP, ip_from16
from dataplane.ids import Ids
from dataplane.layers import LAYERS
from dataplane.model import PROTOCOLS
from dataplane.reasons import Reason, Verdict
from dataplane.snapshot import ACTIONS

KINDS = {
    lib.DP_STEP_PARSE: "parse",
    lib.DP_STEP_FLOW: "flow",
    lib.DP_STEP_LAYER: "layer",
    lib.DP_STEP_GROUP: "group",
    lib.DP_STEP_RULE: "rule",
    lib.DP_STEP_VERDICT: "verdict",
}
LAYER_NAMES = {number: name for name, number in LAYERS.items()}
ACTION_NAMES = {number: name for name, number in ACTIONS.items()}
DIRECTION_NAMES = {lib.DP_OUT: "out", lib.DP_IN: "in"}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
ICMP = (1, 58)
AWAY = ("vnet", "underlay")  # the layers that know where a VTEP is


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowId:
    """Of ICMP, `dport` is type << 8 | code and `sport` the echo id."""

    vni: int
    protocol: int
    src: IP
    sport: int
    dst: IP
    dport: int

    def __str__(self) -> str:
        name = PROTOCOL_NAMES.get(self.protocol, f"ip {self.protocol}")
        if self.protocol in ICMP:
            told = f"type {self.dport >> 8} code {self.dport & 255} id {self.sport}"
            return f"{name} {self.src} > {self.dst} {told}"
        return f"{name} {_side(self.src, self.sport)} > {_side(self.dst, self.dport)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was tried. `id` is the flow id after it."""

    kind: str  # parse, flow, rule, group, layer, verdict
    layer: str
    direction: str
    group: str | None
    rule: str | None
    matched: bool
    action: str
    reason: Reason
    port: str | None
    provider: IP | None
    id: FlowId


class Outcome(Protocol):
    """As `dataplane.engine.Outcome`."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def port(self) -> str | None: ...
    @property
    def frame(self) -> bytes: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def generation(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Steps in their order, and how it ended. `before` and `after` are the frame's bytes."""

    port: str
    before: bytes
    steps: tuple[Step, ...]
    verdict: Verdict
    reason: Reason
    rule: str | None
    egress: str | None
    after: bytes
    generation: int

    @property
    def hit(self) -> bool:
        """Whether a flow was known."""
        return any(step.kind == "flow" and step.matched for step in self.steps)

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """As an operator reads it: each layer, group and rule tried, and why it ended so."""
        return "\n".join([self._entry(), *self._body(), self._end()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the frames in hex."""
        return {
            "port": self.port,
            "before": self.before.hex(),
            "flow": "hit" if self.hit else "miss",
            "steps": [_plain(step) for step in self.steps],
            "verdict": str(self.verdict),
            "reason": str(self.reason),
            "rule": self.rule,
            "egress": self.egress,
            "after": self.after.hex(),
            "generation": self.generation,
        }

    def mermaid(self) -> str:
        """A flow chart of the layers; the one that drops is red."""
        boxes = [f"{self.port}<br/>{len(self.before)} bytes"]
        if self.hit:
            boxes.append("flow table<br/>hit")
        layers = [step for step in self.steps if step.kind == "layer"]
        first, last = len(boxes), len(boxes) + len(layers)
        boxes += [f"{step.layer} {step.direction}<br/>{self._said(step)}" for step in layers]
        boxes.append(self._end().replace('"', "#quot;"))
        lines = ["flowchart LR", *(f'    s{i}["{text}"]' for i, text in enumerate(boxes))]
        lines += [f"    s{i} --> s{i + 1}" for i in range(last)]
        if self.verdict is Verdict.DROP:
            saying = (first + i for i, step in enumerate(layers) if step.reason)
            lines.append(f"    style s{next(saying, last)} fill:#f66")
        return "\n".join(lines)

    # ---- lines ---------------------------------------------------------------------------------

    def _entry(self) -> str:
        parsed = next((step for step in self.steps if step.kind == "parse"), None)
        size = f"{len(self.before)} bytes"
        if parsed is None:
            return f"in    {self.port}  {size}"
        flow = "hit" if self.hit else "miss"
        return f"in    {self.port}  vni {parsed.id.vni}  {size}  {parsed.id}  flow: {flow}"

    def _body(self) -> Iterator[str]:
        number = 0
        pending: list[Step] = []
        known = next((step.id for step in self.steps), None)
        for step in self.steps:
            if step.kind in ("rule", "group"):
                pending.append(step)
            elif step.kind == "flow" and step.matched:
                yield f"      flow table: hit, decided by {step.rule or 'no rule'}"
            elif step.kind == "layer":
                number += 1
                yield from self._layer_lines(number, step, pending, known)
                pending, known = [], step.id

    def _layer_lines(
        self, number: int, step: Step, tried: list[Step], before: FlowId | None
    ) -> Iterator[str]:
        title = f"{number:<5} {step.layer + ' ' + step.direction:<13}"
        for rule in tried:
            group = f"group {rule.group or '?':<15}"
            said = rule.action.upper() if rule.matched else "no match"
            if rule.kind == "rule" or rule.matched:
                yield f"{title} {group} rule {rule.rule or '?':<24} {said}"
            else:
                yield f"{title} {group} no rule matches"
            title = " " * len(title)
        changed = f"  now {step.id}" if before is not None and step.id != before else ""
        way = f"  to {step.port}" if step.port and step.layer == "vnet" else ""
        peer = f" at {step.provider}" if step.provider and step.layer in AWAY else ""
        yield f"{title} {self._said(step)}{way}{peer}{changed}"

    def _said(self, step: Step) -> str:
        if not step.reason:
            return "ok"
        return "answered here" if self.verdict is Verdict.ANSWER else f"drop: {step.reason}"

    def _end(self) -> str:
        rule = f", rule {self.rule}" if self.rule else ""
        if self.verdict is not Verdict.DROP:
            size = f"{len(self.after)} bytes"
            return f"{self.verdict.name:<7} to {self.egress}  {size}{rule}"
        told = f", ICMP error to {self.egress}" if self.egress else ""
        why = f"layer {self.reason.layer}{rule}, reason {self.reason}: {self.reason.sentence}"
        return f"DROP    {why}{told}"


def _side(address: IP, port: int) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{port}"


def _plain(step: Step) -> dict[str, Any]:
    plain = asdict(step)
    plain["reason"] = str(step.reason)
    plain["provider"] = str(step.provider) if step.provider else None
    plain["id"] |= {"src": str(step.id.src), "dst": str(step.id.dst)}
    return plain


# ---- from C ------------------------------------------------------------------------------------


def walk_of(steps: Sequence[Any], ids: Ids, port: str, before: bytes, outcome: Outcome) -> Walk:
    """Of an array of `struct dp_step`."""
    return Walk(
        port=port,
        before=before,
        steps=tuple(_step(step, ids) for step in steps),
        verdict=outcome.verdict,
        reason=outcome.reason,
        rule=outcome.rule,
        egress=outcome.port,
        after=outcome.frame,
        generation=outcome.generation,
    )


def _step(step: Any, ids: Ids) -> Step:
    adjacency = ids.adjacency_names.get(step.adjacency)
    group = ids.group_names.get(step.group)
    actions: Callable[[int], str | None] = ACTION_NAMES.get
    return Step(
        kind=KINDS[step.kind],
        layer=LAYER_NAMES[step.layer],
        direction=DIRECTION_NAMES[step.direction],
        group=str(group) if group else None,
        rule=ids.rule_names.get(step.rule),
        matched=bool(step.matched),
        action=actions(step.action) or "",
        reason=Reason(step.reason),
        port=ids.port_names.get(step.port),
        provider=adjacency.provider if adjacency else None,
        id=FlowId(
            vni=step.vni,
            protocol=step.proto,
            src=_address(step.src),
            sport=step.sport,
            dst=_address(step.dst),
            dport=step.dport,
        ),
    )


def _address(octets: Any) -> IP:
    return ip_from16(bytes(ffi.buffer(octets)))
