"""Rules: the policy model as tables of ports, networks, endpoints, adjacencies, groups and routes.

Pure: no C object is made here.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from dataplane.address import IP, Mac
from dataplane.defaults import HOST_MTU
from dataplane.groups import DIRECTIONS, NAT_RULES, endpoint_rows
from dataplane.ids import (
    FIRST_ENDPOINT_PORT,
    HOST,
    HOST_PORT,
    UNDERLAY,
    UNDERLAY_PORT,
    GroupName,
    Ids,
    RuleName,
    allot,
)
from dataplane.memo import Memo
from dataplane.model import Acl, Endpoint, HostPort, Network, Node, Underlay
from dataplane.routing import UNDERLAY_MAC, adjacencies_of, mtu_of, network_row, of_version, ways_of
from dataplane.rows import NetworkRow, PortRow, ServiceRow, Tables
from dataplane.services import rule_names as service_names
from dataplane.services import service_rows

HOST_MAC = b"\x02\x01"

# ---- a node ------------------------------------------------------------------------------------


def compile_node(node: Node, old: Tables | None = None, known: Ids | None = None) -> Tables:
    """The tables of a node whose defaults are filled in (`dataplane.defaults.resolve`).

    With the tables of the generation before, numbers are kept and unchanged parts are shared.
    `known`: numbers that are kept where there are no such tables.
    """
    memo = Memo(old.memo if old else None)
    ids = _number(node, old.ids if old else known or Ids(), memo)
    networks = tuple(network_row(n, node, ids, memo) for n in node.networks)
    endpoints = [row for n in node.networks for row in endpoint_rows(n, node, ids, memo)]
    return Tables(
        ids=ids,
        ports=_ports(node, ids, memo),
        networks=networks,
        endpoints=tuple(sorted(endpoints, key=lambda row: row.port)),
        adjacencies=tuple(adjacencies_of(n, ids, memo) for n in node.networks),
        services=service_rows(node, ids, memo),
        timers=node.timers,
        icmp_rate=node.icmp_rate,
        memo=memo,
    )


def stamps(
    new: Tables, old: Tables | None, known: dict[int, int], generation: int
) -> dict[int, int]:
    """By port id: the generation that last changed what may pass the port, or how.

    `known` are the stamps of `old`. A changed underlay or host port touches every endpoint, any
    change of a network or service what comes in at the host port.
    """
    if old is None or _common(new) != _common(old):
        return {row.port: generation for row in new.endpoints} | {HOST_PORT: generation}
    rows = {row.port: row for row in old.endpoints}
    standing = _standing(new, old)
    same = new.networks == old.networks and new.services == old.services
    changed = {HOST_PORT: known[HOST_PORT] if same else generation}
    for row in new.endpoints:
        stands = row.vni in standing and rows.get(row.port) == row
        changed[row.port] = known[row.port] if stands else generation
    return changed


def stamps_of_edit(
    tables: Tables, vnis: Collection[int], known: dict[int, int], generation: int
) -> dict[int, int]:
    """As `stamps`, where routes of networks have changed and nothing else."""
    touched = {row.port: generation for row in tables.endpoints if row.vni in vnis}
    return known | touched | {HOST_PORT: generation}


def _common(tables: Tables) -> list[PortRow]:
    return [p for p in tables.ports if p.kind != "endpoint"]


def _standing(new: Tables, old: Tables) -> set[int]:
    """VNIs of networks that are as they were, with all of their routing domain and the services
    that are met there."""
    head, tail = new.memo.ends(old.services, new.services)
    before, now = (_by_domain(t, t.services[head : len(t.services) - tail]) for t in (old, new))
    return {
        network.vni
        for domain, (networks, services) in now.items()
        if before.get(domain) == (networks, services)
        for network in networks
    }


def _by_domain(
    tables: Tables, services: tuple[ServiceRow, ...]
) -> dict[tuple[int, int], tuple[list[NetworkRow], list[ServiceRow]]]:
    """Networks, and some services, by number of the domain, and VNI where that stands alone."""
    domain = {n.vni: (n.domain, 0 if n.domain else n.vni) for n in tables.networks}
    found: dict[tuple[int, int], tuple[list[NetworkRow], list[ServiceRow]]] = {}
    for network in tables.networks:
        found.setdefault(domain[network.vni], ([], []))[0].append(network)
    for service in services:
        found[domain[service.vni]][1].append(service)
    return found


# ---- numbers -----------------------------------------------------------------------------------


def _number(node: Node, old: Ids, memo: Memo) -> Ids:
    fixed = {UNDERLAY: UNDERLAY_PORT} | ({HOST: HOST_PORT} if node.host_port is not None else {})
    ends = tuple(_names(n, memo) for n in node.networks)
    vteps = tuple(ways_of(n, memo).names for n in node.networks)
    return Ids(
        ports=memo(
            "ports",
            (fixed, ends),
            lambda: allot(
                fixed | dict(old.ports), fixed, *(e.ports for e in ends), first=FIRST_ENDPOINT_PORT
            ),
        ),
        groups=memo("groups", ends, lambda: allot(old.groups, *(e.groups for e in ends))),
        rules=_allot_rules(node, old, memo),
        adjacencies=memo(
            ("adjacencies", old.lineage),
            vteps,
            lambda: allot(old.adjacencies, *vteps),
        ),
        lineage=old.lineage,
    )


class _Names(NamedTuple):
    """Of a network's endpoints."""

    ports: tuple[str, ...]
    groups: tuple[GroupName, ...]


def _names(n: Network, memo: Memo) -> _Names:
    return memo(
        ("names", n.name),
        n.endpoints,
        lambda: _Names(
            tuple(f"{n.name}/{e.name}" for e in n.endpoints),
            tuple(_group_names(n)),
        ),
    )


def _group_names(n: Network) -> Iterator[GroupName]:
    for direction in DIRECTIONS:
        yield GroupName(n.name, None, "acl", direction)
        for e in n.endpoints:
            yield GroupName(n.name, e.name, "acl", direction)
    for e in n.endpoints:
        yield GroupName(n.name, e.name, "nat", "out")


def _allot_rules(node: Node, old: Ids, memo: Memo) -> Mapping[RuleName, int]:
    names = tuple(chain.from_iterable(_rule_names(n, memo) for n in node.networks))
    return memo("rules", names, lambda: allot(old.rules, *names))


def _rule_names(n: Network, memo: Memo) -> Iterator[Iterable[RuleName]]:
    yield from service_names(n, memo)
    yield memo(("names", n.name, "acl"), n.acls, lambda: tuple(_acl_names(n.acls, n.name, None)))
    yield memo.counted(
        ("names", n.name, "endpoints"), n.endpoints, n.name, lambda e: _endpoint_names(e, n.name)
    )


def _acl_names(acls: tuple[Acl, ...], network: str, endpoint: str | None) -> Iterator[RuleName]:
    return (RuleName(network, endpoint, "acl", acl.name) for acl in acls)


def _endpoint_names(e: Endpoint, network: str) -> Iterator[RuleName]:
    yield from _acl_names(e.acls, network, e.name)
    if e.outbound_nat is not None:
        yield from (RuleName(network, e.name, "nat", rule) for rule in NAT_RULES)


# ---- ports -------------------------------------------------------------------------------------


def underlay_mac(address: IP) -> Mac:
    """Of a VTEP: 02:00 and the last four octets of its provider address."""
    return Mac.from_bytes(UNDERLAY_MAC + address.packed[-4:])


def host_mac(address: IP) -> Mac:
    """Of a side of the host link: 02:01 and the last four octets of its address."""
    return Mac.from_bytes(HOST_MAC + address.packed[-4:])


def _ports(node: Node, ids: Ids, memo: Memo) -> tuple[PortRow, ...]:
    host = () if node.host_port is None else (_host_port(node.host_port),)
    ends = (_endpoint_ports(n, ids, memo) for n in node.networks)
    return _underlay_port(node.underlay), *host, *chain.from_iterable(ends)


def _endpoint_ports(network: Network, ids: Ids, memo: Memo) -> tuple[PortRow, ...]:
    def row(e: Endpoint) -> PortRow:
        mtu = e.tap.mtu if e.tap else None
        return PortRow(ids.ports[f"{network.name}/{e.name}"], "endpoint", mtu or mtu_of(network))

    return memo.each(("port rows", network.name), network.endpoints, mtu_of(network), row)


def _underlay_port(underlay: Underlay) -> PortRow:
    addresses = [a for a in (underlay.address, underlay.address6) if a is not None]
    return PortRow(
        UNDERLAY_PORT,
        "underlay",
        underlay.mtu,
        underlay.port,
        mac=underlay_mac(underlay.address).packed,
        ip4=of_version(addresses, 4),
        ip6=of_version(addresses, 6),
    )


def _host_port(host: HostPort) -> PortRow:
    return PortRow(
        HOST_PORT,
        "host",
        host.tap.mtu or HOST_MTU,
        mac=host_mac(host.address).packed,
        peer_mac=host_mac(host.peer).packed,
        ip4=of_version([host.address], 4),
        ip6=of_version([host.address], 6),
    )
