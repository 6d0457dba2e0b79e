"""What both forms of the demo share: its policy's addresses and changes, and how a step is told."""

from msgspec.structs import replace

from dataplane.errors import DataplaneError
from dataplane.model import Acl, Document, Endpoint, Network

WEB, DB, C, OUTSIDE = "10.1.1.2", "10.1.2.2", "10.1.3.2", "203.0.113.9"
RELOADS = 10


class Unexpected(DataplaneError):
    """A step saw something else than it should."""

    def __init__(self, expected: object, seen: object) -> None:
        super().__init__(f"expected {expected}\n      seen     {seen}")


def expect(true: bool, expected: object, seen: object) -> None:
    if not true:
        raise Unexpected(expected, seen)


def say(word: str, what: str, measured: object = "") -> None:
    print(f"{word:<5} {what:<41} {measured}".rstrip(), flush=True)


def with_telnet(document: Document, action: str) -> Document:
    """Another word on the denied port: how the demo changes the policy."""

    def acl(a: Acl) -> Acl:
        return replace(a, action=action) if a.name == "telnet" else a

    def endpoint(e: Endpoint) -> Endpoint:
        return replace(e, acls=tuple(map(acl, e.acls)))

    def network(n: Network) -> Network:
        return replace(n, endpoints=tuple(map(endpoint, n.endpoints)))

    nodes = (replace(n, networks=tuple(map(network, n.networks))) for n in document.nodes)
    return replace(document, nodes=tuple(nodes))
