"""What types cannot say: names that are taken, addresses out of place, sizes that do not fit."""

import re
from collections.abc import Collection, Hashable, Iterator

from msgspec.structs import asdict

from dataplane import defaults
from dataplane.address import IP
from dataplane.memo import Memo
from dataplane.model import (
    PROTOCOLS,
    Acl,
    Document,
    Endpoint,
    HostPort,
    IcmpRate,
    Network,
    Node,
    OutboundNat,
    PortRange,
    Tap,
    Underlay,
    Wire,
)
from dataplane.names import nodes_of
from dataplane.tree import Complaint, Path, path_text
from dataplane.validate_expect import WAYS_OUT, check_expect
from dataplane.validate_flannel import check_flannel
from dataplane.validate_host import direct_subnets, host_subnets
from dataplane.validate_remotes import remote_subnets
from dataplane.validate_services import host_services, network_services
from dataplane.validate_values import inside, named, station, taken, unicast, within

_DEVICE_NAME = re.compile(r"(?!\.\.?$)[^\s/:%\x00-\x1f]{1,15}")
_MIN_MTU = {4: 68, 6: 1280}  # RFC 791, RFC 8200 §5
_MAX_MTU = 65535
_MAX_IDLE = 1 << 31  # seconds
_MAX_QUOTA = (1 << 32) - 1
_MOST_RULES = 8192  # DP_GROUP_RULES: it bounds what one packet's lookup can cost


def check(
    document: Document,
    reasons: Collection[str] | None = None,
    partial: bool = False,
    memo: Memo | None = None,
) -> Iterator[Complaint]:
    """Everything wrong with a document of the right types.

    `reasons`: the known drop reasons, None to take any. `partial`: faulty objects were left out, so
    what refers to others cannot be judged. `memo`: what was found about an earlier document; what
    is as it was there is not looked at again.
    """
    memo = Memo() if memo is None else memo
    if not partial and (document.node is None) == (not document.nodes):
        yield Complaint((), "needs exactly one of node and nodes")
    yield from check_expect(document, reasons, partial)
    yield from taken("node", ((n.name, ("nodes", i)) for i, n in enumerate(document.nodes)))
    for path, node in _with_paths(document):
        yield from _node(node, path, memo)
    yield from _lab(document)


def _with_paths(document: Document) -> Iterator[tuple[Path, Node]]:
    if document.node is not None:
        yield ("node",), document.node
    for i, node in enumerate(document.nodes):
        yield ("nodes", i), node


# ---- node -----------------------------------------------------------------------------------


def _node(node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    yield from named(node.name, path)
    yield from _underlay(node.underlay, (*path, "underlay"))
    if node.host_port is not None:
        yield from _host_port(node.host_port, node.underlay, (*path, "host_port"))
    for key, seconds in asdict(node.timers).items():
        if seconds is not None:
            yield from within("idle time", seconds, 1, _MAX_IDLE, (*path, "timers", key))
    if node.flannel is not None:
        yield from check_flannel(node.flannel, (*path, "flannel"))
    if node.icmp_rate is not None:
        yield from _icmp_rate(node.icmp_rate, (*path, "icmp_rate"))
    places = [((*path, "networks", i), n) for i, n in enumerate(node.networks)]
    yield from taken("network", ((n.name, p) for p, n in places))
    yield from taken("VNI", ((int(n.vni), (*p, "vni")) for p, n in places))
    ends = tuple(n.endpoints for n in node.networks)
    yield from memo(
        (*path, "TAPs"), (node.host_port, ends), lambda: tuple(taken("TAP", _taps(node, path)))
    )
    for place, network in places:
        yield from _network(network, node, place, memo)
    yield from host_services(node, path, memo)


def _icmp_rate(rate: IcmpRate, path: Path) -> Iterator[Complaint]:
    for key, value in asdict(rate).items():
        yield from within("number of ICMP errors", value, 1, 1_000_000, (*path, key))


def _underlay(underlay: Underlay, path: Path) -> Iterator[Complaint]:
    yield from unicast(underlay.address, (*path, "address"), loopback=True)
    if underlay.address6 is not None:
        yield from unicast(underlay.address6, (*path, "address6"), loopback=True)
        if underlay.address6.version != 6:
            yield Complaint((*path, "address6"), f"{underlay.address6} is not IPv6")
        elif underlay.address.version == 6:
            yield Complaint((*path, "address6"), "a second IPv6 address", "address is IPv6 already")
    if not 1 <= underlay.port <= 65535:
        yield Complaint((*path, "port"), f"{underlay.port} is not a port (1-65535)")
    yield from within("MTU", underlay.mtu, _MIN_MTU[4] + 50, _MAX_MTU, (*path, "mtu"))
    if underlay.xdp is not None:
        yield from _device_name(underlay.xdp, (*path, "xdp"))


def _host_port(host: HostPort, underlay: Underlay, path: Path) -> Iterator[Complaint]:
    for key, address in (("address", host.address), ("peer", host.peer)):
        yield from unicast(address, (*path, key))
        if address in (underlay.address, underlay.address6):
            yield Complaint((*path, key), f"{address} is the underlay's address")
    if host.address == host.peer:
        yield Complaint((*path, "peer"), f"both sides have {host.peer}", "one address each")
    if host.address.version != host.peer.version:
        yield Complaint((*path, "peer"), "address and peer are of different IP versions")
    yield from _tap(host.tap, (*path, "tap"))


def _taps(node: Node, path: Path) -> Iterator[tuple[Hashable, Path]]:
    if node.host_port is not None:
        tap = node.host_port.tap
        yield (tap.name, tap.netns), (*path, "host_port", "tap")
    for i, network in enumerate(node.networks):
        for j, endpoint in enumerate(network.endpoints):
            tap = defaults.endpoint_tap(endpoint)
            place = (*path, "networks", i, "endpoints", j)
            yield (tap.name, tap.netns), (*place, "tap") if endpoint.tap else place


def _device_name(name: str, path: Path) -> Iterator[Complaint]:
    if not _DEVICE_NAME.fullmatch(name) or len(name.encode()) > 15:
        yield Complaint(path, f"{name[:40]!r} is no device name", "1-15 bytes, no space, / : %")


def _tap(tap: Tap, path: Path) -> Iterator[Complaint]:
    yield from _device_name(tap.name, (*path, "name"))
    if tap.netns is not None and (not tap.netns or "\0" in tap.netns):
        yield Complaint((*path, "netns"), "empty", "a name in /run/netns, or a path")
    if tap.owner is not None:
        yield from within("uid", tap.owner, 0, (1 << 32) - 2, (*path, "owner"))
    if tap.mtu is not None:
        yield from within("MTU", tap.mtu, _MIN_MTU[4], _MAX_MTU, (*path, "mtu"))


# ---- network --------------------------------------------------------------------------------


def _network(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    yield from named(network.name, path)
    yield from _prefixes(network, path)
    yield from _mtu(network, node, path)
    if network.dr_mac is not None:
        yield from station(network.dr_mac, (*path, "dr_mac"))
    yield from remote_subnets(network, node, (*path, "remote_subnets"), memo)
    yield from host_subnets(network, node, path)
    yield from direct_subnets(network, node, path, memo)
    yield from memo(
        (*path, "twice"),
        (network.endpoints, network.gateways, network.prefixes, defaults.dr_mac(network, node)),
        lambda: tuple(_twice(network, node, path)),
    )
    yield from memo((*path, "acls"), network.acls, lambda: tuple(_acls(network.acls, path)))
    yield from _nat(network.outbound_nat, node, (*path, "outbound_nat"))
    yield from within("quota", network.max_flows, 0, _MAX_QUOTA, (*path, "max_flows"))
    yield from _wire(network.wire, (*path, "wire"))
    yield from _endpoints(network, node, path, memo)
    yield from network_services(network, node, path, memo)


def _prefixes(network: Network, path: Path) -> Iterator[Complaint]:
    if not network.prefixes:
        yield Complaint((*path, "prefixes"), "a network needs a prefix", "as [10.1.0.0/16]")
    for i, prefix in enumerate(network.prefixes):
        for j, other in enumerate(network.prefixes[:i]):
            if prefix.version == other.version and prefix.overlaps(other):
                fix = f"already covered by prefixes[{j}]"
                yield Complaint((*path, "prefixes", i), f"{prefix} overlaps {other}", fix)
    for i, gateway in enumerate(network.gateways):
        yield from inside(gateway, network, (*path, "gateways", i))
    for key in ("pool", "host_subnets"):
        for i, part in enumerate(getattr(network, key)):
            for address in dict.fromkeys((part.network_address, part.broadcast_address)):
                yield from inside(address, network, (*path, key, i))


def _mtu(network: Network, node: Node, path: Path) -> Iterator[Complaint]:
    cost = defaults.overhead(network, node)
    tunnels = bool(network.remote_subnets) or not network.direct_subnets
    fits = node.underlay.mtu - cost * tunnels
    least = max((_MIN_MTU[p.version] for p in network.prefixes), default=_MIN_MTU[4])
    size = defaults.mtu(network, node)
    where = (*path, "mtu") if network.mtu != "auto" else path
    if size > fits:
        why = f"the underlay carries {node.underlay.mtu}, VXLAN takes {cost}"
        yield Complaint(where, f"mtu {size} does not fit: {why}", f"at most {fits}, or auto")
    if size < least:
        if network.mtu == "auto":
            fix = f"underlay.mtu must be at least {least + cost}"
        else:
            fix = f"{least} to {fits}, or auto"
        yield Complaint(where, f"mtu {size} is less than IP needs ({least})", fix)


def _twice(network: Network, node: Node, path: Path) -> Iterator[Complaint]:
    places = ((e.name, (*path, "endpoints", i)) for i, e in enumerate(network.endpoints))
    yield from taken("endpoint", places)
    yield from taken("MAC", _macs(network, node, path))
    yield from taken("address", _addresses(network, path))


def _macs(network: Network, node: Node, path: Path) -> Iterator[tuple[Hashable, Path]]:
    yield defaults.dr_mac(network, node), (*path, "dr_mac")
    for i, endpoint in enumerate(network.endpoints):
        place = (*path, "endpoints", i)
        if endpoint.mac is not None or endpoint.addresses:
            mac = defaults.endpoint_mac(endpoint)
            yield mac, (*place, "mac") if endpoint.mac is not None else place


def _addresses(network: Network, path: Path) -> Iterator[tuple[Hashable, Path]]:
    for i, gateway in enumerate(defaults.gateways(network)):
        yield gateway, (*path, "gateways", i)
    for i, endpoint in enumerate(network.endpoints):
        for j, address in enumerate(endpoint.addresses):
            yield address, (*path, "endpoints", i, "addresses", j)


def _wire(wire: Wire, path: Path) -> Iterator[Complaint]:
    if isinstance(wire.dscp, int):
        yield from within("DSCP", wire.dscp, 0, 63, (*path, "dscp"))
    yield from within("TTL", wire.ttl, 1, 255, (*path, "ttl"))


# ---- endpoint -------------------------------------------------------------------------------


def _endpoints(network: Network, node: Node, path: Path, memo: Memo) -> Iterator[Complaint]:
    """Those that were sound before are not looked at again."""
    sound = memo.each(
        (*path, "endpoints"),
        network.endpoints,
        (network.prefixes, node.host_port),
        lambda endpoint: not any(_endpoint(endpoint, network, node, path)),
    )
    if not all(sound):
        for i, endpoint in enumerate(network.endpoints):
            yield from _endpoint(endpoint, network, node, (*path, "endpoints", i))


def _endpoint(endpoint: Endpoint, network: Network, node: Node, path: Path) -> Iterator[Complaint]:
    yield from named(endpoint.name, path)
    if endpoint.name in WAYS_OUT:
        fix = f"{' and '.join(WAYS_OUT)} are ways out"
        yield Complaint((*path, "name"), f"{endpoint.name!r} is reserved", fix)
    for i, address in enumerate(endpoint.addresses):
        yield from inside(address, network, (*path, "addresses", i))
    if endpoint.mac is not None:
        yield from station(endpoint.mac, (*path, "mac"))
    if endpoint.tap is not None:
        yield from _tap(endpoint.tap, (*path, "tap"))
    elif len(endpoint.name) > 15:
        message = f"{endpoint.name[:40]!r} is too long for a TAP's name (15)"
        yield Complaint((*path, "name"), message, "shorten it, or give tap: {name: …}")
    yield from _nat(endpoint.outbound_nat, node, (*path, "outbound_nat"))
    yield from within("quota", endpoint.max_flows, 0, _MAX_QUOTA, (*path, "max_flows"))
    yield from _acls(endpoint.acls, path)


def _acls(acls: tuple[Acl, ...], path: Path) -> Iterator[Complaint]:
    yield from taken("rule", ((acl.name, (*path, "acls", i)) for i, acl in enumerate(acls)))
    if len(acls) > _MOST_RULES:
        fix = "rules that differ in prefixes or ports alone can be one rule with lists"
        yield Complaint((*path, "acls"), f"{len(acls)} rules, but {_MOST_RULES} are the most", fix)
    for i, acl in enumerate(acls):
        yield from _acl(acl, (*path, "acls", i))


def _acl(acl: Acl, path: Path) -> Iterator[Complaint]:
    yield from named(acl.name, path)
    yield from within("priority", acl.priority, 0, 65535, (*path, "priority"))
    yield from within("idle time", acl.idle, 0, (1 << 32) - 1, (*path, "idle"))
    protocol = acl.protocol
    if isinstance(protocol, str) and protocol not in ("any", *PROTOCOLS):
        known = ", ".join(("any", *PROTOCOLS))
        yield Complaint(
            (*path, "protocol"), f"{protocol[:40]!r} is no protocol", f"{known}, or a number"
        )
        return
    number = PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol
    if number is not None and not 0 <= number <= 255:
        yield from within("IP protocol", number, 0, 255, (*path, "protocol"))
        return
    for key, ports in (("local_ports", acl.local_ports), ("remote_ports", acl.remote_ports)):
        if ports and number not in (6, 17):
            message = f"protocol {protocol} has no ports here"
            yield Complaint((*path, key), message, "ports need protocol: tcp or udp")
    yield from _icmp(acl, number, path)
    yield from _families(acl, number, path)


def _icmp(acl: Acl, number: int | None, path: Path) -> Iterator[Complaint]:
    for key, value in (("icmp_type", acl.icmp_type), ("icmp_code", acl.icmp_code)):
        if value is None:
            continue
        yield from within(key, value, 0, 255, (*path, key))
        if number not in (1, 58):
            message = f"protocol {acl.protocol} has no {key}"
            yield Complaint((*path, key), message, "it needs protocol: icmp or icmp6")
    if acl.icmp_code is not None and acl.icmp_type is None:
        yield Complaint(
            (*path, "icmp_code"), "a code means nothing without its type", "add icmp_type"
        )


def _families(acl: Acl, number: int | None, path: Path) -> Iterator[Complaint]:
    possible = {1: {4}, 58: {6}}.get(-1 if number is None else number, {4, 6})
    for key, prefixes in (("local", acl.local), ("remote", acl.remote)):
        if prefixes:
            possible = possible & {prefix.version for prefix in prefixes}
            if not possible:
                yield Complaint(
                    (*path, key), "can never match: IPv4 meets IPv6", "one rule a version"
                )


def _nat(nat: OutboundNat | None, node: Node, path: Path) -> Iterator[Complaint]:
    if nat is None:
        return
    if node.host_port is None:
        yield Complaint(
            path, "NAT leaves through the host port, but the node has none", "add host_port"
        )
    if nat.vip is not None:
        yield from unicast(nat.vip, (*path, "vip"))
    yield from within("quota", nat.max_ports, 0, _MAX_QUOTA, (*path, "max_ports"))
    if nat.ports.first == 0:
        yield Complaint((*path, "ports"), "0 is no port to translate to", _no_zero(nat.ports))


def _no_zero(ports: PortRange) -> str:
    return f"as 1-{ports.last}" if ports.last else "as 1024-65535"


# ---- lab ------------------------------------------------------------------------------------


def _lab(document: Document) -> Iterator[Complaint]:
    """Nodes that share an underlay must agree on who is who."""
    nodes = nodes_of(document)
    if len(nodes) < 2:
        return
    path: Path = ("nodes",)
    yield from taken(
        "underlay address",
        (
            (address, (*path, i, "underlay"))
            for i, node in enumerate(nodes)
            for address in (node.underlay.address, node.underlay.address6)
            if address is not None
        ),
    )
    owners: dict[tuple[int, IP], Path] = {}
    for i, node in enumerate(nodes):
        mine: dict[tuple[int, IP], Path] = {}
        for j, network in enumerate(node.networks):
            place = (*path, i, "networks", j)
            yield from _dr_macs(network, nodes, place)
            mine |= {
                (int(network.vni), a): (*place, "endpoints", k)
                for k, e in enumerate(network.endpoints)
                for a in e.addresses
            }
        for key in mine.keys() & owners.keys():
            message = f"address {key[1]} of VNI {key[0]} is taken"
            yield Complaint(mine[key], message, f"also at {path_text(owners[key])}")
        owners |= mine


def _dr_macs(network: Network, nodes: tuple[Node, ...], path: Path) -> Iterator[Complaint]:
    routers = {
        address: defaults.dr_mac(there, node)
        for node in nodes
        for there in node.networks
        if there.vni == network.vni
        for address in (node.underlay.address, node.underlay.address6)
    }
    for i, remote in enumerate(network.remote_subnets):
        router = routers.get(remote.provider_address, remote.dr_mac)
        if router != remote.dr_mac:
            message = f"{remote.dr_mac} is not the DR MAC of {remote.provider_address}"
            yield Complaint((*path, "remote_subnets", i, "dr_mac"), message, f"write {router}")
