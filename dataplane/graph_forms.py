"""Forms of a graph: JSON, Mermaid, DOT, SVG."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from dataplane.graph import Graph, endpoint_lines, host_of, network_lines
from dataplane.graph_svg import svg


def mermaid(shown: Graph) -> str:
    """A flow chart; silent peers are red."""
    ids = {host_of(node.name): f"h{i}" for i, node in enumerate(shown.nodes)}
    ids |= {network.name: f"n{i}" for i, network in enumerate(shown.networks())}
    ids |= {peer.name: f"p{i}" for i, peer in enumerate(shown.peers)}
    lines = ["flowchart LR"]
    for i, node in enumerate(shown.nodes):
        lines.append(f'    subgraph v{i}["{node.name}<br/>{node.address}"]')
        for network in node.networks:
            at = ids[network.name]
            lines.append(f'        {at}["{"<br/>".join(network_lines(network))}"]')
            for j, told in enumerate(endpoint_lines(network)):
                lines.append(f'        {at}e{j}(["{"<br/>".join(told)}"]) --- {at}')
        lines += [f'        {ids[host_of(node.name)]}["host<br/>{node.host}"]'] * bool(node.host)
        lines.append("    end")
    lines += [f'    {ids[peer.name]}["VTEP {peer.name}"]' for peer in shown.peers]
    lines += [f'    more["{shown.more} more VTEPs"]'] * bool(shown.more)
    lines += [f'    {ids[e.source]} -- "{e.label}" --> {ids[e.target]}' for e in shown.edges]
    silent = [ids[peer.name] for peer in shown.peers if peer.state == "silent"]
    return "\n".join([*lines, *(f"    style {at} fill:#f66" for at in silent)])


def dot(shown: Graph) -> str:
    """For Graphviz; silent peers are red."""
    lines = ["digraph dataplane {", "  rankdir=LR; node [shape=box fontname=sans fontsize=10];"]
    for i, node in enumerate(shown.nodes):
        lines.append(f"  subgraph cluster_{i} {{ label={_quoted(f'{node.name} {node.address}')};")
        for network in node.networks:
            at = _quoted(network.name)
            lines.append(f"    {at} [label={_quoted(*network_lines(network))} style=bold];")
            for told in endpoint_lines(network):
                name = _quoted(f"{network.name}/{told[0]}")
                lines.append(f"    {name} [label={_quoted(*told)}]; {name} -> {at} [dir=none];")
        if node.host:
            lines.append(f"    {_quoted(host_of(node.name))} [label={_quoted('host', node.host)}];")
        lines.append("  }")
    for peer in shown.peers:
        colour = " color=red fontcolor=red" * (peer.state == "silent")
        lines.append(f"  {_quoted(peer.name)} [label={_quoted('VTEP', peer.name)}{colour}];")
    lines += [f"  more [label={_quoted(f'{shown.more} more VTEPs')}];"] * bool(shown.more)
    for edge in shown.edges:
        ends = f"{_quoted(edge.source)} -> {_quoted(edge.target)}"
        lines.append(f"  {ends} [label={_quoted(edge.label)} fontsize=9];")
    return "\n".join([*lines, "}"])


def _quoted(*lines: str) -> str:
    text = "\n".join(lines).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'


def values(shown: Graph) -> str:
    """As JSON."""
    return json.dumps(_plain(shown), indent=1)


def _plain(value: Any) -> Any:
    """Of plain values: tuples with names are objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


FORMS: Mapping[str, Callable[[Graph], str]] = {
    "mermaid": mermaid,
    "dot": dot,
    "svg": svg,
    "json": values,
}
MEDIA_TYPES = {"svg": "image/svg+xml", "json": "application/json"}  # else text/plain
