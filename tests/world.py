"""The demo's hosts in namespaces: two nodes with control sockets and state directories."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from dataplane import demo, demo_live
from dataplane.api.client import Client
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from dataplane.document import dump, load
from dataplane.model import Document, Node
from tests.live_node import end_successor


class World(NamedTuple):
    site: Site
    document: Document
    nodes: dict[str, NodeProcess]
    state: Path

    def node(self, name: str) -> Node:
        return next(node for node in self.document.nodes if node.name == name)

    def client(self, name: str) -> Client:
        return Client(self.nodes[name].control)


@contextlib.contextmanager
def world_at(place: Path) -> Iterator[World]:
    """Nodes a and b, state directories in `place`; everything goes with the block."""
    with ExitStack() as stack:
        site = stack.enter_context(Site())
        document = demo_live.placed(load(demo.POLICY), site)
        policy = site.directory / "policy.yaml"
        policy.write_text(dump(document))
        nodes = {}
        for name in ("a", "b"):
            state = ("--state", str(place / name))
            nodes[name] = stack.enter_context(NodeProcess(site, name, name, policy, *state))
        made = World(site, document, nodes, place)
        stack.callback(end_successors, made)
        yield made


def end_successors(world: World) -> None:
    for node in world.nodes.values():
        end_successor(node.control)
