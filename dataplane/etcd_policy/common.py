"""What all nodes have in common, as a document: networks, and objects in theirs. Pure."""

from typing import Any, Literal, TypeVar

from msgspec.structs import replace

from dataplane.convert import FAULTY, Converter
from dataplane.document import faults_of, read_tree
from dataplane.errors import DocumentError
from dataplane.model import Model, Network, Node
from dataplane.shares import Part, Share
from dataplane.tree import Complaint

Holder = TypeVar("Holder", Network, Part)
ROOT = "/dataplane"  # below it: policy, and nodes/NAME


class Common(Model, frozen=True, kw_only=True):
    """Endpoints are of one node each, and have no place here."""

    version: Literal[1] = 1
    networks: tuple[Network, ...] = ()
    parts: tuple[Part, ...] = ()


def read(text: bytes, name: str) -> Common:
    """A document in YAML or JSON. Raises DocumentError with all faults of its form."""
    tree, converter = None, Converter()
    try:
        tree, complaints = read_tree(text)
        made: Any = converter.make(tree, Common)
        complaints += converter.complaints
    except Complaint as stop:
        raise DocumentError(faults_of(name, tree, [*converter.complaints, stop])) from None
    if made is not FAULTY:
        for field in ("networks", "parts"):
            for i, holder in enumerate(getattr(made, field)):
                if holder.endpoints:
                    message = "an endpoint is of one node, this is of all of them"
                    fix = "name it in the node's own document"
                    complaints.append(Complaint((field, i, "endpoints"), message, fix))
    if complaints:
        raise DocumentError(faults_of(name, tree, complaints))
    return made  # type: ignore[no-any-return]


def share(common: Common, node: Node, revision: int) -> Share:
    """A node's part of it: what lies behind the node itself is nothing remote."""
    return Share(
        networks=tuple(_seen_from(node, network) for network in common.networks),
        parts=tuple(_seen_from(node, part) for part in common.parts),
        kept=str(revision),
    )


def _seen_from(node: Node, holder: Holder) -> Holder:
    own = (node.underlay.address, node.underlay.address6)
    remote = tuple(r for r in holder.remote_subnets if r.provider_address not in own)
    direct = tuple(d for d in holder.direct_subnets if d.provider_address not in own)
    if (remote, direct) == (holder.remote_subnets, holder.direct_subnets):
        return holder
    return replace(holder, remote_subnets=remote, direct_subnets=direct)


class Answer(Model, frozen=True, kw_only=True):
    """What a node says of a revision: the generation that holds, and why it refused, if it did;
    `holds`: the revision that it has."""

    revision: int
    generation: int
    holds: int
    refused: str = ""
