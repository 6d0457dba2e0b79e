"""Expectations that could never be met: packets that cannot be read, names that do not exist."""

import re
from collections.abc import Collection, Iterator

from dataplane.convert import near
from dataplane.errors import PacketError
from dataplane.model import Document, Expect, Network
from dataplane.names import find_endpoint, mapping_name, nodes_of, short_names
from dataplane.packet_describe import HEADERS
from dataplane.packet_spec import parse
from dataplane.tree import Complaint, Path

WAYS_OUT = ("underlay", "host")  # what `to` may say besides an endpoint
NAT_RULES = ("nat-exceptions", "nat")

_REASON = re.compile(r"[a-z][a-z0-9_]*")


def check_expect(
    document: Document, reasons: Collection[str] | None, partial: bool = False
) -> Iterator[Complaint]:
    """Everything wrong with a document's expectations; arguments as of `validate.check`."""
    rules = _rule_names(document) if document.expect else set()
    for i, expect in enumerate(document.expect):
        path: Path = ("expect", i)
        yield from _packet(expect, path)
        if not partial:
            yield from _names(expect, document, rules, path)
        yield from _verdict(expect, reasons, path)


def _packet(expect: Expect, path: Path) -> Iterator[Complaint]:
    try:
        parse(expect.packet)
    except PacketError as error:
        yield Complaint((*path, "packet"), str(error))


def _names(expect: Expect, document: Document, rules: set[str], path: Path) -> Iterator[Complaint]:
    ends = [("at", expect.at)]
    if expect.to is not None and expect.to not in WAYS_OUT:
        ends.append(("to", expect.to))
    for key, name in ends:
        try:
            find_endpoint(document, name)
        except LookupError as error:
            yield Complaint(
                (*path, key), str(error.args[0]), "NAME, NETWORK/NAME or NODE/NETWORK/NAME"
            )
    if expect.rule is not None and expect.rule not in rules:
        yield Complaint(
            (*path, "rule"), f"no rule {expect.rule!r}", near(expect.rule, sorted(rules))
        )


def _rule_names(document: Document) -> set[str]:
    """Of every NETWORK/RULE and NETWORK/ENDPOINT/RULE, and shorter."""
    networks = [network for node in nodes_of(document) for network in node.networks]
    return {
        short for network in networks for rule in _rules(network) for short in short_names(rule)
    }


def _rules(network: Network) -> Iterator[str]:
    """Load balancers and port mappings among them."""
    own = [acl.name for acl in network.acls] + [lb.name for lb in network.load_balancers]
    yield from (f"{network.name}/{rule}" for rule in own)
    for endpoint in network.endpoints:
        group = f"{network.name}/{endpoint.name}"
        yield from (f"{group}/{acl.name}" for acl in endpoint.acls)
        yield from (f"{group}/{mapping_name(m)}" for m in endpoint.port_mappings)
        yield from (f"{group}/{rule}" for rule in NAT_RULES)


def _verdict(expect: Expect, reasons: Collection[str] | None, path: Path) -> Iterator[Complaint]:
    if expect.reason is not None:
        yield from _reason(expect.reason, reasons, (*path, "reason"))
        if expect.verdict != "drop":
            yield Complaint((*path, "reason"), "only what is dropped has a reason", "verdict: drop")
    if expect.verdict != "forward":
        for key in ("to", "encap", "vni", "reply"):
            if getattr(expect, key) is not None:
                message = f"{expect.verdict} and {key} exclude each other"
                yield Complaint((*path, key), message, "only what is forwarded has it")
        if expect.verdict == "drop" and expect.headers:
            yield Complaint(
                (*path, "headers"), "what is dropped does not leave", "leave headers out"
            )
    for name in expect.headers:
        if name not in HEADERS:
            yield Complaint((*path, "headers", name), f"no header {name!r}", near(name, HEADERS))


def _reason(reason: str, reasons: Collection[str] | None, path: Path) -> Iterator[Complaint]:
    if reasons is None:
        if not _REASON.fullmatch(reason):
            yield Complaint(path, f"{reason!r} is no reason", "snake_case, as acl_deny")
    elif reason not in reasons:
        yield Complaint(path, f"no reason {reason!r}", near(reason, reasons))
