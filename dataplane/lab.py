"""Lab: nodes in memory, joined by an underlay of dictionaries, on a clock that stands still.

No root, no sockets, no waiting: a frame sent by an endpoint has arrived, or was dropped for a
reason, when `send` returns. Every hop is the engine that also forwards for real.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from dataplane import defaults
from dataplane.address import IP, Mac, Vni, ip_from16, parse_ip, parse_prefix
from dataplane.batch import Frame
from dataplane.clock import SimClock
from dataplane.engine import Engine, Outcome
from dataplane.errors import DataplaneError, PortError
from dataplane.ids import HOST, UNDERLAY
from dataplane.ipam import completed
from dataplane.model import Document, Endpoint, HostPort, Network, Node, RemoteSubnet, Tap, Underlay
from dataplane.names import nodes_of
from dataplane.packet import describe
from dataplane.reasons import Verdict
from dataplane.rules import host_mac
from dataplane.trace import Walk

MAX_HOPS = 16
INBOX = 65_536  # frames kept for recv(); older ones go

_Way = tuple["LabNode", bytes, str]  # a frame's next: node and port


class Received(bytes):
    """A frame as it left a port."""

    def __str__(self) -> str:
        return str(describe(self)["text"])

    def scapy(self) -> Any:
        """As a scapy packet; scapy has to be installed."""
        from scapy.layers.l2 import Ether

        return Ether(bytes(self))


@dataclass(frozen=True, slots=True)
class Hop:
    """What one node did. `walk` was taken before, so it shows the way that led to `outcome`."""

    node: str
    port: str
    outcome: Outcome
    walk: Walk


@dataclass(frozen=True, slots=True)
class Journey:
    """All that became of one frame, in order; what is answered or dropped ends it."""

    hops: tuple[Hop, ...]

    @property
    def last(self) -> Hop:
        return self.hops[-1]

    @property
    def verdict(self) -> Verdict:
        return self.last.outcome.verdict

    def __str__(self) -> str:
        return "\n\n".join(f"node  {hop.node}\n{hop.walk}" for hop in self.hops)

    def to_dict(self) -> list[dict[str, Any]]:
        return [{"node": hop.node, **hop.walk.to_dict()} for hop in self.hops]

    def mermaid(self) -> str:
        """A flow chart from port to port; a dropping node is red."""
        lines = ["flowchart LR"]
        for i, hop in enumerate(self.hops):
            out = hop.outcome
            told = str(out.reason) if out.verdict is Verdict.DROP else f"to {out.port}"
            lines.append(f'    n{i}["{hop.node}<br/>in {hop.port}<br/>{out.verdict} {told}"]')
            if i:
                by = "direct" if self.hops[i - 1].outcome.port == HOST else "VXLAN"
                lines.append(f"    n{i - 1} -- {by} --> n{i}")
            if out.verdict is Verdict.DROP:
                lines.append(f"    style n{i} fill:#f66")
        return "\n".join(lines)


class Lab:
    """A context manager that owns its nodes' engines."""

    def __init__(self, *, start_ns: int = 0, max_flows: int = 4_096) -> None:
        self.clock = SimClock(start_ns)
        self.nodes: dict[str, LabNode] = {}
        self.lost: deque[Received] = deque(maxlen=INBOX)  # underlay packets to no node of the lab
        self._max_flows = max_flows
        self._joined: dict[str, list[LabNode]] = {}  # networks whose remote subnets the lab keeps
        self._journey: Journey | None = None

    @classmethod
    def from_document(cls, document: Document) -> "Lab":
        """A lab of the document's node or nodes, committed. Raises DocumentError, EngineError."""
        lab = cls()
        try:
            for node in nodes_of(document):
                lab.add(node)
            lab.settle()
        except BaseException:
            lab.close()
            raise
        return lab

    def close(self) -> None:
        for node in self.nodes.values():
            node.engine.close()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- building ------------------------------------------------------------------------------

    def add(self, node: Node) -> "LabNode":
        """A node of a document."""
        if node.name in self.nodes:
            raise DataplaneError(f"the lab has a node {node.name!r} already")
        engine = Engine(max_flows=self._max_flows, max_bindings=self._max_flows, clock=self.clock)
        self.nodes[node.name] = LabNode(self, completed(node), engine)
        return self.nodes[node.name]

    def node(self, name: str, underlay: str, host: tuple[str, str] | None = None) -> "LabNode":
        """A new node. `host`: the two addresses of its host link, ours and the host's."""
        way_out = None
        if host is not None:
            ours, theirs = map(parse_ip, host)
            way_out = HostPort(address=ours, peer=theirs, tap=Tap(name="host"))
        address = parse_ip(underlay)
        return self.add(Node(name=name, underlay=Underlay(address=address), host_port=way_out))

    def network(
        self,
        name: str,
        vni: int,
        cidr: str | Sequence[str],
        nodes: Iterable["LabNode"],
        **fields: Any,
    ) -> None:
        """A network that reaches over the nodes; further `fields` as in `model.Network`.

        Each endpoint becomes a remote subnet of full length on all other nodes.
        """
        prefixes = tuple(map(parse_prefix, [cidr] if isinstance(cidr, str) else cidr))
        self._joined[name] = list(nodes)
        for node in self._joined[name]:
            made = Network(name=name, vni=Vni(vni), prefixes=prefixes, **fields)
            node.model = replace(node.model, networks=(*node.model.networks, made))

    def settle(self) -> None:
        """Commits what has changed since; `send` does it by itself."""
        for name, nodes in self._joined.items():
            for node in nodes:
                others = (other for other in nodes if other is not node)
                remote = tuple(subnet for other in others for subnet in other.subnets(name))
                if node.network(name).remote_subnets != remote:
                    node.change(name, remote_subnets=remote)
        for node in self.nodes.values():
            if node.engine.node is not node.model:
                node.engine.commit(node.model)

    # ---- frames --------------------------------------------------------------------------------

    def send(self, node: str, port: str, frame: Frame) -> Journey:
        """Puts a frame in at a port and follows it from node to node to its end."""
        self.settle()
        if node not in self.nodes:
            raise PortError(f"no node {node!r}; nodes are: {', '.join(self.nodes) or 'none'}")
        octets = frame if isinstance(frame, bytes) else bytes(frame)
        self._journey = Journey(tuple(self._follow(self.nodes[node], octets, port, MAX_HOPS)))
        return self._journey

    def _follow(self, at: "LabNode", frame: bytes, port: str, hops: int) -> Iterator[Hop]:
        """To the frame's end; what comes out with it on the way goes its own ways."""
        walk = at.engine.trace(frame, port)
        outcome = at.engine.process_one(frame, port)
        yield Hop(at.name, walk.port, outcome, walk)
        ways = [self._deliver(at, out) for out in (outcome, *outcome.more)]
        for i, way in enumerate(ways):
            if way is not None and hops > 1:
                rest = self._follow(*way, hops - 1)
                if i == 0:
                    yield from rest
                else:
                    deque(rest, maxlen=0)

    def last_walk(self) -> Journey:
        """How the last frame went: text, `to_dict()` and `mermaid()`."""
        if self._journey is None:
            raise DataplaneError("nothing has been sent yet")
        return self._journey

    def flush(self) -> None:
        """Forgets all flows and bindings, and all frames that wait."""
        self.lost.clear()
        for node in self.nodes.values():
            node.engine.flush()
            node.outside.clear()
            for inbox in node.inboxes.values():
                inbox.clear()

    def _deliver(self, node: "LabNode", outcome: Outcome) -> _Way | None:
        """To the port's inbox, or to the node that the frame goes on to."""
        frame = Received(outcome.frame)
        if outcome.port is None:
            return None
        if outcome.port == UNDERLAY:
            peer = self._at(destination(frame))
            if peer is None:
                self.lost.append(frame)
            return (peer, frame, UNDERLAY) if peer is not None else None
        if outcome.port != HOST:
            node.inbox(outcome.port).append(frame)
            return None
        node.outside.append(frame)
        return self._by_hosts(node, frame)

    def _by_hosts(self, node: "LabNode", frame: Received) -> _Way | None:
        """On to the node that the host has a direct route to; how many routers hosts are on the
        way, the packet's TTL does not say."""
        to = destination(frame)
        subnets = (s for n in node.model.networks for s in n.direct_subnets)
        direct = [s for s in subnets if to is not None and to in s.prefix]
        if not direct:
            return None
        peer = self._at(max(direct, key=lambda s: s.prefix.prefixlen).provider_address)
        if peer is None or peer.model.host_port is None:
            return None
        host = peer.model.host_port
        macs = host_mac(host.address).packed + host_mac(host.peer).packed
        return peer, macs + frame[12:], HOST

    def _at(self, address: IP | None) -> "LabNode | None":
        """The node with the provider address."""
        for node in self.nodes.values():
            if address in (node.model.underlay.address, node.model.underlay.address6):
                return node
        return None


class LabNode:
    """One host of a lab. `outside` holds what left by the host port, oldest first."""

    def __init__(self, lab: Lab, model: Node, engine: Engine) -> None:
        self.lab = lab
        self.model = model
        self.engine = engine
        self.outside: deque[Received] = deque(maxlen=INBOX)
        self.inboxes: dict[str, deque[Received]] = {}

    @property
    def name(self) -> str:
        return self.model.name

    def endpoint(
        self, name: str, network: str, ip: str | None = None, **fields: Any
    ) -> "LabEndpoint":
        """A new endpoint with the address; without one, the endpoint that is there already."""
        if ip is not None:
            made = Endpoint(name=name, addresses=(parse_ip(ip),), **fields)
            self.change(network, endpoints=(*self.network(network).endpoints, made))
        if all(e.name != name for e in self.network(network).endpoints):
            raise DataplaneError(f"node {self.name!r} has no endpoint {network}/{name}")
        return LabEndpoint(self, network, name)

    def host_send(self, frame: Frame) -> Journey:
        """A frame from the host, by the host port."""
        return self.lab.send(self.name, HOST, frame)

    def network(self, name: str) -> Network:
        for network in self.model.networks:
            if network.name == name:
                return network
        raise DataplaneError(f"node {self.name!r} has no network {name!r}")

    def change(self, network: str, **fields: Any) -> None:
        """Changes fields of a network; takes effect with the next frame, or `Lab.settle`."""
        changed = replace(self.network(network), **fields)
        networks = tuple(changed if n.name == network else n for n in self.model.networks)
        self.model = replace(self.model, networks=networks)

    def subnets(self, network: str) -> Iterable[RemoteSubnet]:
        """Our endpoints as the other nodes see them."""
        own = self.network(network)
        dr_mac = defaults.dr_mac(own, self.model)
        for endpoint in own.endpoints:
            for address in endpoint.addresses:
                yield RemoteSubnet(
                    prefix=parse_prefix(str(address)),
                    provider_address=self.model.underlay.address,
                    dr_mac=dr_mac,
                )

    def inbox(self, port: str) -> deque[Received]:
        return self.inboxes.setdefault(port, deque(maxlen=INBOX))


class LabEndpoint:
    """A container of a lab, as seen from inside."""

    def __init__(self, node: LabNode, network: str, name: str) -> None:
        self.node = node
        self.network = network
        self.name = name

    @property
    def model(self) -> Endpoint:
        endpoints = self.node.network(self.network).endpoints
        return next(e for e in endpoints if e.name == self.name)

    @property
    def port(self) -> str:
        return f"{self.network}/{self.name}"

    @property
    def ip(self) -> str:
        """The first address."""
        return str(self.model.addresses[0])

    @property
    def mac(self) -> Mac:
        return defaults.endpoint_mac(self.model)

    @property
    def gateway_mac(self) -> Mac:
        """Of the distributed router."""
        return defaults.dr_mac(self.node.network(self.network), self.node.model)

    def send(self, frame: Frame) -> Journey:
        """Bytes go as they are; a scapy packet gets the addresses it does not name."""
        return self.node.lab.send(self.node.name, self.port, self._addressed(frame))

    def recv(self) -> Received:
        """The oldest frame that arrived. Raises DataplaneError when there is none."""
        inbox = self.node.inbox(self.port)
        if not inbox:
            journey = self.node.lab._journey
            why = f"; the last frame went:\n{journey}" if journey else ""
            raise DataplaneError(f"{self.port} has received nothing{why}")
        return inbox.popleft()

    def _addressed(self, frame: Frame) -> Frame:
        if isinstance(frame, bytes | bytearray | memoryview) or not hasattr(frame, "getlayer"):
            return frame
        scapy: Any = frame
        packet = scapy.copy()
        sources = {a.version: str(a) for a in reversed(self.model.addresses)}
        given: dict[str, dict[str, str | None]] = {
            "Ether": {"src": str(self.mac), "dst": str(self.gateway_mac)},
            "IP": {"src": sources.get(4)},
            "IPv6": {"src": sources.get(6)},
        }
        for name, fields in given.items():
            layer = packet.getlayer(name)
            for field, value in fields.items():
                if layer is not None and value is not None and field not in layer.fields:
                    layer.setfieldval(field, value)
        return bytes(packet)


def destination(frame: bytes) -> IP | None:
    """Where the packet in the frame goes to; of an underlay packet, the outer one."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        return ip_from16(b"\0" * 10 + b"\xff\xff" + frame[30:34])
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 54:
        return ip_from16(frame[38:54])
    return None
