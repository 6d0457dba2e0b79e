"""How documents and the command line point at objects: `web`, `blue/web`, `a/blue/web`.

A name may be cut from the left as long as it points at one thing.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.model import Document, Endpoint, Network, Node, PortMapping


class Place(NamedTuple):
    """An endpoint with all that it stands in."""

    node: Node
    network: Network
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{self.node.name}/{self.network.name}/{self.endpoint.name}"


def nodes_of(document: Document) -> tuple[Node, ...]:
    """The document's node or nodes."""
    return (document.node,) if document.node is not None else document.nodes


def places(document: Document) -> Iterator[Place]:
    """Every endpoint of the document, in its order."""
    for node in nodes_of(document):
        for network in node.networks:
            for endpoint in network.endpoints:
                yield Place(node, network, endpoint)


def short_names(name: str) -> Iterator[str]:
    """`a/blue/web`, `blue/web`, `web`."""
    parts = name.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def find_endpoint(document: Document, name: str) -> Place:
    """The endpoint called NAME, NETWORK/NAME or NODE/NETWORK/NAME. Raises LookupError."""
    found = [p for p in places(document) if name in short_names(str(p))]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(f"{name!r} is ambiguous: {', '.join(map(str, found))}")
    raise LookupError(f"no endpoint {name!r}")


def mapping_name(mapping: PortMapping) -> str:
    return f"map-{mapping.protocol}-{mapping.port}"
