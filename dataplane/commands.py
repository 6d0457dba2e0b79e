"""check, diff, trace and version: what they print, and their exit codes."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dataplane import graph as graphs
from dataplane import lint
from dataplane.document import load
from dataplane.engine import Engine, choose
from dataplane.errors import DataplaneError, PacketError
from dataplane.expect import Finding, prove
from dataplane.graph_forms import FORMS
from dataplane.ids import UNDERLAY
from dataplane.ingress import frame_at, owner_of, place_of
from dataplane.ipam import completed_document
from dataplane.lab import Journey, Lab
from dataplane.model import Document, Node
from dataplane.names import nodes_of
from dataplane.packet import parse
from dataplane.plan import Plan
from dataplane.reasons import REASON_NAMES, Verdict
from dataplane.tree import Complaint, Tree, path_text

ETHERNET = 1  # of pcap link types
MAX_FRAME = 65_535 + 64  # bytes: the largest IP packet, and headers around it


# ---- check -------------------------------------------------------------------------------------


def check(files: tuple[str, ...], form: str) -> int:
    """0 if all that the files expect is so, 1 if not, 2 if a file cannot be used."""
    proved: dict[str, list[Finding]] = {}
    warned: dict[str, list[Complaint]] = {}
    broken = False
    for file in files:
        try:
            document = completed_document(load(file, REASON_NAMES))
            proved[file], warned[file] = prove(document), list(lint.check(document))
        except DataplaneError as error:
            print(error, file=sys.stderr)
            broken = True
    failed = any(not finding.passed for findings in proved.values() for finding in findings)
    if form == "json":
        told = {
            file: {
                "findings": [finding.to_dict() for finding in findings],
                "warnings": [
                    {"path": path_text(w.path), "message": w.message} for w in warned[file]
                ],
            }
            for file, findings in proved.items()
        }
        print(json.dumps(told, indent=1))
    else:
        for file, findings in proved.items():
            print("\n".join(_told(file, findings, warned[file])))
    return 2 if broken else int(failed)


def _told(file: str, findings: list[Finding], warnings: list[Complaint]) -> Iterator[str]:
    """One line for each warning and fault, and one for the file."""
    bad = [finding for finding in findings if not finding.passed]
    tree = _tree(file) if warnings or bad else Tree(None, 0)
    for warning in warnings:
        place = f"{file}:{tree.line_of(warning.path)} {path_text(warning.path)}"
        yield f"{place}: warning: {warning.message}"
    for finding in bad:
        title = f"{finding.expect.name or finding.expect.packet}: "
        for fault in finding.faults:
            line = tree.line_of(("expect", int(finding.path.rpartition("[")[2].rstrip("]"))))
            yield f"{file}:{line} {finding.path}: {title}{fault}"
    met = len(findings) - len(bad)
    yield f"{'FAIL' if bad else 'ok':<5} {file}  {met} of {len(findings)} expectations met"


def _tree(file: str) -> Tree:
    """What is written in the file, with its lines; of a file that cannot be read, nothing."""
    from dataplane import yamltree

    try:
        return yamltree.read(Path(file).read_text())[0]
    except (OSError, UnicodeError, Complaint):
        return Tree(None, 0)


# ---- diff --------------------------------------------------------------------------------------


def diff(file_a: str, file_b: str | None, node: str | None, form: str) -> int:
    """0 if nothing would change, 1 if something would."""
    after = _nodes(load(file_b or file_a, REASON_NAMES), node)
    before = _nodes(load(file_a, REASON_NAMES), node) if file_b else {}
    plans = {name: _plan(before.get(name), target) for name, target in after.items()}
    gone = [name for name in before if name not in after]
    changed = bool(gone) or any(not plan.is_empty for plan in plans.values())
    for warning in (warning for plan in plans.values() for warning in plan.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if form == "json":
        told = {name: plan.to_dict()["changes"] for name, plan in plans.items()}
        print(
            json.dumps({"nodes": told, "removed": gone, "changed": changed}, indent=1, default=str)
        )
        return int(changed)
    for name, plan in plans.items():
        text = plan.diff()
        if text:
            print(f"  node {name}\n{text}" if len(after) > 1 else text)
    for name in gone:
        print(f"- node/{name}")
    return int(changed)


def _nodes(document: Document, name: str | None) -> dict[str, Node]:
    if name is not None:
        return {name: choose(document, name)}
    return {node.name: node for node in nodes_of(document)}


def _plan(before: Node | None, after: Node) -> Plan:
    with Engine(max_flows=64, max_bindings=64) as engine:
        if before is not None:
            engine.commit(before)
        return engine.plan(after)


# ---- trace -------------------------------------------------------------------------------------


def trace(
    packet: str,
    *,
    form: str,
    file: str,
    node: str | None,
    entry: str | None,
    vni: int | None,
    pcap: str | None,
    frame: int,
    mermaid: bool,
) -> int:
    """0 if the packet is forwarded or answered, 1 if it is dropped."""
    document = completed_document(load(file, REASON_NAMES))
    if mermaid and form == "json":
        raise PacketError("--mermaid and -o json exclude each other")
    if bool(packet) == bool(pcap):
        raise PacketError("give either a packet in words or --pcap FILE")
    octets = _captured(pcap, frame) if pcap else b""
    entry = entry or (UNDERLAY if pcap else owner_of(document, node, parse(packet)))
    at, port = place_of(document, node, entry)
    if packet:
        octets = frame_at(parse(packet), document, at, port, vni)
    with Lab.from_document(document) as lab:
        journey = lab.send(at.name, port, octets)
    print(_shown(journey, form, mermaid))
    return int(journey.verdict is Verdict.DROP)


def _shown(journey: Journey, form: str, mermaid: bool) -> str:
    if mermaid:
        return journey.mermaid() if len(journey.hops) > 1 else journey.last.walk.mermaid()
    if form == "json":
        return json.dumps(journey.to_dict(), indent=1, default=str)
    return str(journey) if len(journey.hops) > 1 else str(journey.last.walk)


def _captured(pcap: str, number: int) -> bytes:
    """A frame of a capture, counted from 1."""
    from dataplane import pcap as captures

    found = next(islice(captures.read(pcap), number - 1, None), None)
    if found is None:
        raise PacketError(f"{pcap}: has no frame {number}")
    if found.linktype != ETHERNET:
        raise PacketError(f"{pcap}: frame {number} is of link type {found.linktype}, not Ethernet")
    if len(found.data) > MAX_FRAME:
        raise PacketError(f"{pcap}: frame {number} of {len(found.data)} bytes is larger than any")
    return found.data


# ---- graph -------------------------------------------------------------------------------------


def graph(file: str, node: str | None, form: str) -> int:
    """All nodes of a document, or one."""
    document = completed_document(load(file, REASON_NAMES))
    nodes = nodes_of(document) if node is None else (choose(document, node),)
    print(FORMS[form](graphs.graph(nodes, {})).rstrip())
    return 0


# ---- version -----------------------------------------------------------------------------------


def versions() -> dict[str, str | int]:
    """Of the package, the engine's interface, Python and the processor."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from dataplane._engine import lib

    try:
        number = version_of("vxlan-dataplane")
    except PackageNotFoundError:
        number = "from source"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = platform.machine()
    return {"dataplane": number, "engine_abi": lib.dp_abi(), "python": python, "machine": machine}


def version(form: str) -> str:
    told = versions()
    if form == "json":
        return json.dumps(told)
    return "dataplane {dataplane}  engine abi {engine_abi}  {python}  {machine}".format(**told)
