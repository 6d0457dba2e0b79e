"""Plan: what a commit would change, shown before it is done. Pure until `commit`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from msgspec import Struct, to_builtins
from msgspec.structs import asdict, replace

from dataplane import lint
from dataplane.address import IP
from dataplane.model import (
    Acl,
    Document,
    Endpoint,
    HostPort,
    Network,
    Node,
    RemoteSubnet,
    Wire,
)
from dataplane.tree import path_text
from dataplane.version import Edit, Version

SHOWN_PREFIXES = 3

Commit = Callable[[], int]
ObjectName = tuple[str, str]  # kind, name


class Object(NamedTuple):
    """What `get` would list: compared by `value`, shown as `line`."""

    value: object
    line: str


class Change(NamedTuple):
    """`verb` is created, changed, removed or unchanged; `before` and `after` are its lines."""

    kind: str
    name: str
    verb: str
    before: str
    after: str

    def __str__(self) -> str:
        told = self.after or self.before
        if self.verb == "changed" and self.before != self.after:
            told = f"{self.before} -> {self.after}"
        return f"{self.kind + '/' + self.name:<30}  {self.verb:<9}  {told}"


@dataclass(frozen=True)
class Plan:
    """A policy ready to be committed on top of generation `base`."""

    base: int
    was: Version | None
    now: Version
    edits: tuple[Edit, ...] | None  # all that was changed; None: anything may have been
    make: Callable[["Plan"], Commit] = field(repr=False)

    @property
    def target(self) -> Node:
        """The policy as given."""
        return self.now.given

    @property
    def resolved(self) -> Node:
        """The policy with all defaults filled in."""
        return self.now.resolved

    @property
    def source(self) -> Node | None:
        """The committed policy, with all defaults filled in."""
        return self.was.resolved if self.was is not None else None

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """All objects of both policies, those of the new one first."""
        return tuple(compare(self.source, self.resolved))

    @cached_property
    def is_empty(self) -> bool:
        if self.edits is not None:
            return not self.edits
        return self.source == self.resolved

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Rules of the new policy that can never match, each with its place."""
        found = lint.check(Document(node=self.target))
        return tuple(f"{path_text(w.path)}: {w.message}" for w in found)

    def text(self, unchanged: bool = False) -> str:
        """One line for each object that changes, each warning, and a last one with their number."""
        shown = [c for c in self.changes if unchanged or c.verb != "unchanged"]
        n = sum(c.verb != "unchanged" for c in self.changes)
        objects = f"{n} object{'' if n == 1 else 's'} changed"
        if self.is_empty:
            last = f"generation {self.base} stays, nothing changed"
        else:
            last = f"generation {self.base} -> {self.base + 1}, {objects}"
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*map(str, shown), *warnings, last])

    def diff(self) -> str:
        """Lines that go (-) and come (+); empty when nothing changes."""
        lines = []
        for c in self.changes:
            name = f"{c.kind}/{c.name}"
            if c.verb in ("removed", "changed"):
                lines.append(f"- {name:<30}  {c.before}")
            if c.verb in ("created", "changed"):
                lines.append(f"+ {name:<30}  {c.after}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        changes = [c._asdict() for c in self.changes if c.verb != "unchanged"]
        return {"generation": self.base, "changes": changes, "warnings": list(self.warnings)}

    def commit(self) -> int:
        """Publishes the policy, all or nothing; returns its generation.

        Raises EngineError, also when another commit came first; the old policy then stays.
        """
        return self.prepare()()

    def prepare(self) -> Commit:
        """Makes what takes time and is not seen yet, for who has something else done meanwhile;
        what it returns does the rest of `commit`. Both raise as that does."""
        return self.make(self)


def compare(old: Node | None, new: Node) -> Iterator[Change]:
    """Of nodes with their defaults filled in."""
    before = dict(_objects(old)) if old is not None else {}
    after = dict(_objects(new))
    for (kind, name), found in after.items():
        known = before.get((kind, name))
        if known is None:
            yield Change(kind, name, "created", "", found.line)
        elif known.value == found.value:
            yield Change(kind, name, "unchanged", known.line, found.line)
        else:
            lines = known.line, found.line
            if known.line == found.line:  # what differs is not of what the line shows
                lines = _with_particulars(known, found)
            yield Change(kind, name, "changed", *lines)
    for (kind, name), gone in before.items():
        if (kind, name) not in after:
            yield Change(kind, name, "removed", gone.line, "")


def _with_particulars(known: "Object", found: "Object") -> tuple[str, str]:
    parts = list(_particulars(known.value, found.value, ""))
    before = ", ".join(f"{path} {old}".strip() for path, old, _ in parts)
    after = ", ".join(f"{path} {new}".strip() for path, _, new in parts)
    return f"{known.line}  {before}", f"{found.line}  {after}"


def _particulars(old: Any, new: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Where two values differ, and both as text."""
    if old == new:
        return
    if isinstance(old, Struct) and type(old) is type(new):
        for name in old.__struct_fields__:
            yield from _particulars(getattr(old, name), getattr(new, name), name)
    elif isinstance(old, tuple | list) and isinstance(new, tuple | list) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            yield from _particulars(one, other, path)
    else:
        yield path, _plain(old), _plain(new)


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_plain, value)) or "none"
    return str(to_builtins(value, enc_hook=str))


# ---- objects of a node -------------------------------------------------------------------------


def _objects(node: Node) -> Iterator[tuple[ObjectName, Object]]:
    own = node.underlay, node.timers, node.icmp_rate, node.flannel
    yield ("node", node.name), Object(own, _node_line(node) + _icmp_line(node))
    if node.host_port is not None:
        yield ("host", node.name), Object(node.host_port, _host_line(node.host_port))
    for network in node.networks:
        yield from _network_objects(network)


def _network_objects(network: Network) -> Iterator[tuple[ObjectName, Object]]:
    order = tuple(e.name for e in network.endpoints), tuple(acl.name for acl in network.acls)
    own = replace(network, endpoints=(), remote_subnets=(), direct_subnets=(), acls=())
    yield ("network", network.name), Object((own, order), _network_line(network))
    for acl in network.acls:
        yield ("acl", f"{network.name}/{acl.name}"), Object(acl, _acl_line(acl))
    for endpoint in network.endpoints:
        name = f"{network.name}/{endpoint.name}"
        value = replace(endpoint, acls=()), tuple(acl.name for acl in endpoint.acls)
        yield ("endpoint", name), Object(value, _endpoint_line(endpoint))
        for acl in endpoint.acls:
            yield ("acl", f"{name}/{acl.name}"), Object(acl, _acl_line(acl))
    for direct in network.direct_subnets:
        line = f"via {direct.provider_address}"
        yield ("direct", f"{network.name}/{direct.prefix}"), Object(direct, line)
    peers: dict[IP, list[RemoteSubnet]] = {}
    for subnet in network.remote_subnets:
        peers.setdefault(subnet.provider_address, []).append(subnet)
    for provider, subnets in peers.items():
        yield ("peer", f"{network.name}/{provider}"), Object(subnets, _peer_line(subnets))


def _node_line(node: Node) -> str:
    underlay, timers = node.underlay, asdict(node.timers)
    second = f" {underlay.address6}" if underlay.address6 else ""
    told = "".join(f"  {name} {n} s" for name, n in timers.items() if n is not None)
    return f"{underlay.address}{second}  port {underlay.port}  mtu {underlay.mtu}{told}"


def _icmp_line(node: Node) -> str:
    rate = node.icmp_rate
    return f"  icmp {rate.port}/s of {rate.all}/s" if rate else ""


def _host_line(host: HostPort) -> str:
    return f"{host.address} peer {host.peer}  tap {host.tap.name}"


def _network_line(network: Network) -> str:
    prefixes = " ".join(map(str, network.prefixes))
    usual = asdict(Wire())
    chosen = [f"{k} {v}" for k, v in asdict(network.wire).items() if v != usual[k]]
    wire = "  ".join(["", *chosen])
    quota = _quota_text(network.max_flows)
    return f"vni {network.vni}  {prefixes}  mtu {network.mtu}  dr {network.dr_mac}{quota}{wire}"


def _quota_text(max_flows: int) -> str:
    return f"  at most {max_flows} flows" if max_flows else ""


def _endpoint_line(endpoint: Endpoint) -> str:
    addresses = " ".join(map(str, endpoint.addresses))
    told = ("  nat" if endpoint.outbound_nat else "") + _quota_text(endpoint.max_flows)
    default = f"in {endpoint.default_in}  out {endpoint.default_out}"
    return f"{addresses}  {endpoint.mac}  {default}{told}"


def _peer_line(subnets: list[RemoteSubnet]) -> str:
    shown = " ".join(str(s.prefix) for s in subnets[:SHOWN_PREFIXES])
    more = f" and {len(subnets) - SHOWN_PREFIXES} more" if len(subnets) > SHOWN_PREFIXES else ""
    return f"{shown}{more}  dr {' '.join(sorted({s.dr_mac for s in subnets}))}"


def _acl_line(acl: Acl) -> str:
    conditions = {
        "local": acl.local,
        "remote": acl.remote,
        "local_ports": acl.local_ports,
        "remote_ports": acl.remote_ports,
        "icmp_type": () if acl.icmp_type is None else (acl.icmp_type,),
        "icmp_code": () if acl.icmp_code is None else (acl.icmp_code,),
    }
    told = [f"{key} {','.join(map(str, values))}" for key, values in conditions.items() if values]
    flags = [
        word for word, on in (("stateless", not acl.stateful), ("soft", not acl.terminating)) if on
    ]
    words = [acl.direction, str(acl.priority), acl.action, str(acl.protocol), *told, *flags]
    return "  ".join(words)
