"""The graph as SVG: endpoints, their networks in the node's box, the VTEPs they send to.

Edges bear what they stand for (`data-endpoint`, `data-peer`, `data-host`), so that a page can give
them the width of their rate.
"""

from collections import Counter
from html import escape
from typing import NamedTuple

from dataplane.graph import (
    Edge,
    Graph,
    NetworkVertex,
    NodeVertex,
    endpoint_lines,
    host_of,
    network_lines,
)
from dataplane.ids import HOST

CHAR, LINE, PAD, GAP = 6.7, 15, 8, 10  # a character's width, a line's height, around and between
ROOM = 220  # between networks and peers: curves and their prefixes
Point = tuple[float, float]
Curve = tuple[Point, Point, float]  # its ends, and where it turns
STYLE = """
svg.graph:root{color:#222}
@media (prefers-color-scheme: dark){svg.graph:root{color:#ddd}}
.graph text{font:11px ui-monospace,monospace;fill:currentColor}
.graph rect{fill:none;stroke:currentColor;rx:4}
.graph .node rect{stroke-dasharray:3 3;opacity:.6}
.graph path{fill:none;stroke:currentColor;opacity:.45}
.graph .name{font-weight:bold}
.graph .label{font-size:10px;paint-order:stroke;stroke:Canvas;stroke-width:3px}
.graph .silent,.graph .silent rect{color:#e5484d;stroke:currentColor;opacity:1}
.graph .silent text{stroke:none}
"""


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        return self.x + self.width, self.y + self.height / 2


def svg(shown: Graph) -> str:
    """A picture of its own, dark or light as its viewer is; or part of a page, in its colours."""
    drawing = _Drawing(shown)
    style = f"<style>{STYLE}</style>"
    size = f"{drawing.width:.0f} {drawing.height:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="0 0 {size}" role="img"'
    return f'{head} aria-label="topology">{style}{"".join(drawing.parts)}</svg>\n'


class _Drawing:
    """Three columns: endpoints and networks inside the boxes of their nodes, and peers."""

    def __init__(self, shown: Graph) -> None:
        self.parts: list[str] = []
        self._boxes: dict[str, Box] = {}
        endpoints = [line for n in shown.networks() for told in endpoint_lines(n) for line in told]
        networks = [line for n in shown.networks() for line in network_lines(n)]
        hosts = [f"host {node.host}" for node in shown.nodes]
        self._endpoint_width = _width(endpoints)
        self._network_width = _width([*networks, *hosts])
        self._network_x = 2 * PAD + self._endpoint_width + 8 * GAP
        inner = self._network_x + self._network_width + PAD
        self._inner = max(inner, *(PAD + _width([_title(node)]) for node in shown.nodes), 0)
        bottom = float(GAP)
        for node in shown.nodes:
            bottom = self._node(node, bottom) + 2 * GAP
        self.width = self._peers(shown, bottom) + GAP
        self._edges(shown)
        self.height = max(bottom, *(box.y + box.height + GAP for box in self._boxes.values()), 0)

    def _node(self, node: NodeVertex, top: float) -> float:
        """Its lower edge."""
        at = top + LINE + 2 * PAD
        for network in node.networks:
            at = self._network(network, at) + GAP
        if node.host is not None:
            host = Box(self._network_x, at, self._network_width, LINE + PAD)
            self._box(host_of(node.name), host, [f"host {node.host}"])
            at += host.height + GAP
        frame = Box(PAD, top, self._inner, at - top)
        self.parts.append(f'<g class="node">{_rect(frame)}</g>')
        self.parts.append(_text(2 * PAD, top + PAD + LINE - 4, _title(node), "name"))
        return at

    def _network(self, network: NetworkVertex, top: float) -> float:
        told, at = endpoint_lines(network), top
        names = [endpoint.name for endpoint in network.endpoints] + [f"{network.name}/more"]
        for name, lines in zip(names, told, strict=False):
            box = Box(2 * PAD, at, self._endpoint_width, LINE * len(lines) + PAD)
            self._box(name, box, lines)
            at += box.height + GAP / 2
        lines = network_lines(network)
        height = max(at - GAP / 2 - top, LINE * len(lines) + PAD)
        whole = Box(self._network_x, top, self._network_width, height)
        self._box(network.name, whole, lines)
        for name in names[: len(network.endpoints)]:
            x, y = self._boxes[name].right
            key = escape(name.partition("/")[2])
            self.parts.append(
                f'<path data-endpoint="{key}" d="M{x:.0f} {y:.0f}H{whole.x:.0f}"><title>{key}'
                "</title></path>"
            )
        return top + height

    def _peers(self, shown: Graph, height: float) -> float:
        """In the middle of the nodes' height. The right edge of all."""
        names = [f"VTEP {peer.name}" for peer in shown.peers]
        names += [f"{shown.more} more VTEPs"] * bool(shown.more)
        x, row = PAD + self._inner + ROOM, LINE + PAD + 2 * GAP
        top = max((height - row * len(names)) / 2 + GAP, GAP)
        states = [peer.state for peer in shown.peers] + [""]
        for i, (name, state) in enumerate(zip(names, states, strict=False)):
            box = Box(x, top + i * row, _width(names), LINE + PAD)
            self._box(name.removeprefix("VTEP "), box, [name], state)
        return x + _width(names) if names else PAD + self._inner + 1.5 * ROOM * bool(shown.edges)

    def _edges(self, shown: Graph) -> None:
        peers = {peer.name: peer.state for peer in shown.peers}
        leaving = Counter(edge.source for edge in shown.edges)
        left = Counter[str]()
        for edge in shown.edges:
            left[edge.source] += 1
            box, to = self._boxes[edge.source], self._boxes[edge.target]
            start = (
                box.right[0],
                box.y + box.height * left[edge.source] / (leaving[edge.source] + 1),
            )
            if edge.target in peers:
                end, middle = to.left, (start[0] + to.x) / 2
            else:  # of the same column: out at the right, and in again; up further out than down
                end, middle = to.right, start[0] + ROOM * (0.6 if to.y < box.y else 0.3)
            kind = "peer"
            if edge.target.endswith(f"/{HOST}"):
                kind, middle = "host", start[0] + 3 * GAP
            data = f'class="{peers.get(edge.target, "")}" data-{kind}="{escape(edge.target)}"'
            self._edge(edge, data, (start, end, middle))

    def _edge(self, edge: Edge, data: str, curve: Curve) -> None:
        """A curve that leaves and arrives level, its prefixes at the first third."""
        (x1, y1), (x2, y2), middle = curve
        way = f"M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
        told = escape(f"{edge.source} > {edge.target}: {', '.join(edge.prefixes)}")
        self.parts.append(f'<path {data} d="{way}"><title>{told}</title></path>')
        x, y = (8 * x1 + 18 * middle + x2) / 27, (20 * y1 + 7 * y2) / 27  # of Bézier, at t = 1/3
        self.parts.append(_text(x + 4, y - 3, edge.label, "label"))

    def _box(self, name: str, box: Box, lines: list[str], state: str = "") -> None:
        self._boxes[name] = box
        self.parts.append(f'<g data-box="{escape(name)}" class="{state}">{_rect(box)}')
        for i, line in enumerate(lines):
            y = box.y + PAD / 2 + LINE * (i + 1) - 4
            self.parts.append(_text(box.x + PAD, y, line, "" if i else "name"))
        self.parts.append("</g>")


def _title(node: NodeVertex) -> str:
    return f"{node.name}  {node.address}"


def _width(lines: list[str]) -> float:
    return max(map(len, lines), default=0) * CHAR + 2 * PAD


def _rect(box: Box) -> str:
    return (
        f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}"/>'
    )


def _text(x: float, y: float, text: str, style: str = "") -> str:
    extra = f' class="{style}"' if style else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{extra}>{escape(text)}</text>'
