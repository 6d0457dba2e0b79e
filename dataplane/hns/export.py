"""Any policy of the model as HNS documents, in the normal form. Pure.

What HNS has no word for is left out and told: `Exported.lost` names each.
"""

import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from dataplane import defaults
from dataplane.address import Mac
from dataplane.hns.balancers import AFFINITY
from dataplane.hns.normal import Document, normal
from dataplane.hns.values import ANY_PROTOCOL
from dataplane.model import (
    PROTOCOLS,
    Acl,
    Endpoint,
    LoadBalancer,
    Network,
    Node,
    OutboundNat,
    RemoteSubnet,
)

_NOT_SAID: dict[type, tuple[str, ...]] = {  # fields of the model that HNS has no word for
    Network: (
        "mtu",
        "max_flows",
        "routing_domain",
        "wire",
        "pool",
        "outbound_nat",
        "direct_subnets",
        "host_subnets",
    ),
    RemoteSubnet: ("dsr",),
    Endpoint: ("tap", "default_in", "default_out", "max_flows"),
    Acl: ("icmp_type", "icmp_code", "stateful", "terminating", "idle"),
    OutboundNat: ("mapping", "filtering", "ports"),
    LoadBalancer: ("dsr", "local_only"),
}
NO_NETWORK = "a load balancer without backends, which do not tell its network"


class Exported(NamedTuple):
    """Calls that make the same again, in order; and what could not be said."""

    calls: list[Document]
    lost: list[str]


def exported(node: Node) -> Exported:
    """A policy whose endpoints have their addresses."""
    calls: list[Document] = []
    for network in node.networks:
        calls += _network(network, node)
    return Exported(calls, list(_lost(node)))


def created(kind: str, document: Document) -> Document:
    """The call that makes a document of a store."""
    return {"Method": "POST", "Path": kind, "Body": document}


def detached(made: Document) -> Document:
    """An endpoint is made before its namespace, which names it."""
    body = {key: item for key, item in made["Body"].items() if key != "HostComputeNamespace"}
    return made | {"Body": body}


def _network(network: Network, node: Node) -> Iterator[Document]:
    guid = _guid(node, "networks", network.name)
    gateways = defaults.gateways(network)
    subnets = [
        {
            "IpAddressPrefix": str(prefix),
            "Policies": [{"Type": "VSID", "Settings": {"IsolationId": int(network.vni)}}],
            "Routes": [
                {
                    "NextHop": str(way),
                    "DestinationPrefix": "::/0" if way.version == 6 else "0.0.0.0/0",
                }
                for way in gateways
                if way in prefix
            ],
        }
        for prefix in network.prefixes
    ]
    router = {"Address": defaults.dr_mac(network, node)}
    policies = [{"Type": "DrMacAddress", "Settings": router}, *_policies(network)]
    made = {
        "ID": guid,
        "Name": network.name,
        "Type": "Overlay",
        "Policies": policies,
        "Ipams": [{"Type": "Static", "Subnets": subnets}],
    }
    yield created("networks", normal("networks", made))
    for endpoint in network.endpoints:
        yield created("endpoints", normal("endpoints", _endpoint(endpoint, guid, network, node)))
    yield from _services(network, guid, node)


def _policies(network: Network) -> Iterator[Document]:
    for subnet in network.remote_subnets:
        settings = {
            "DestinationPrefix": str(subnet.prefix),
            "IsolationId": int(network.vni),
            "ProviderAddress": str(subnet.provider_address),
            "DistributedRouterMacAddress": subnet.dr_mac,
        }
        yield {"Type": "RemoteSubnetRoute", "Settings": settings}
    if network.host_route:
        yield {"Type": "HostRoute", "Settings": {}}
    for acl in network.acls:
        yield {"Type": "NetworkACL", "Settings": _acl(acl)}


def _endpoint(endpoint: Endpoint, guid: str, network: Network, node: Node) -> Document:
    policies = [{"Type": "ACL", "Settings": _acl(acl)} for acl in endpoint.acls]
    nat = endpoint.outbound_nat or network.outbound_nat
    if nat is not None:
        policies.append({"Type": "OutBoundNAT", "Settings": _nat(nat)})
    for mapping in endpoint.port_mappings:
        settings: Document = {
            "Protocol": PROTOCOLS[mapping.protocol],
            "InternalPort": mapping.target_port or mapping.port,
            "ExternalPort": mapping.port,
            "VIP": str(mapping.vip or ""),
        }
        policies.append({"Type": "PortMapping", "Settings": settings})
    return {
        "ID": _guid(node, "endpoints", f"{network.name}/{endpoint.name}"),
        "Name": endpoint.name,
        "HostComputeNetwork": guid,
        "Policies": policies,
        "IpConfigurations": [
            {
                "IpAddress": str(address),
                "PrefixLength": next(p.prefixlen for p in network.prefixes if address in p),
            }
            for address in endpoint.addresses
        ],
        "MacAddress": defaults.endpoint_mac(endpoint),
    }


def _acl(acl: Acl) -> Document:
    protocol = acl.protocol
    number = PROTOCOLS.get(protocol, ANY_PROTOCOL) if isinstance(protocol, str) else protocol
    return {
        "Id": acl.name,
        "Protocols": str(number),
        "Action": "Block" if acl.action == "reject" else acl.action,
        "Direction": acl.direction,
        "LocalAddresses": ",".join(map(str, acl.local)),
        "RemoteAddresses": ",".join(map(str, acl.remote)),
        "LocalPorts": ",".join(map(str, acl.local_ports)),
        "RemotePorts": ",".join(map(str, acl.remote_ports)),
        "Priority": acl.priority,
    }


def _nat(nat: OutboundNat) -> Document:
    return {
        "VirtualIP": str(nat.vip or ""),
        "Exceptions": [str(prefix) for prefix in nat.exceptions],
        "Destinations": [str(prefix) for prefix in nat.destinations],
        "MaxPortPoolUsage": nat.max_ports,
    }


def _services(network: Network, guid: str, node: Node) -> Iterator[Document]:
    local = {
        str(address): _guid(node, "endpoints", f"{network.name}/{endpoint.name}")
        for endpoint in network.endpoints
        for address in endpoint.addresses
    }
    for balancer in network.load_balancers:
        if not balancer.backends:
            continue
        for address in dict.fromkeys(str(backend.address) for backend in balancer.backends):
            if address in local:
                continue
            local[address] = _guid(node, "endpoints", f"{network.name}//{address}")
            far = {
                "ID": local[address],
                "HostComputeNetwork": guid,
                "IpConfigurations": [{"IpAddress": address}],
                "MacAddress": Mac("02:11:22:33:44:55"),  # as kube-proxy's, never on the wire
                "Flags": 1,
            }
            yield created("endpoints", normal("endpoints", far))
        name = _guid(node, "loadbalancers", f"{network.name}/{balancer.name}")
        for document in _balancers(balancer, name, local):
            yield created("loadbalancers", normal("loadbalancers", document))


def _balancers(balancer: LoadBalancer, guid: str, guids: dict[str, str]) -> Iterator[Document]:
    """A document for its VIPs, and one for its node port."""
    node_port = str(uuid.uuid5(uuid.UUID(guid), "node port"))
    for name, vips, port in (
        (guid, balancer.vips, balancer.port),
        (node_port, (), balancer.node_port),
    ):
        if port is None or (name == guid and not vips):
            continue
        mapping = {
            "Protocol": PROTOCOLS[balancer.protocol],
            "InternalPort": balancer.target_port or balancer.port,
            "ExternalPort": port,
            "DistributionType": AFFINITY.index(balancer.affinity),
        }
        yield {
            "ID": name,
            "HostComputeEndpoints": [guids[str(b.address)] for b in balancer.backends],
            "SourceVIP": str(balancer.source_vip or ""),
            "FrontendVIPs": [str(vip) for vip in vips],
            "PortMappings": [mapping],
        }


def _guid(node: Node, kind: str, name: str) -> str:
    """The same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dataplane:{node.name}/{kind}/{name}"))


# ---- what HNS cannot say -----------------------------------------------------------------------


def _lost(node: Node) -> Iterator[str]:
    for network in node.networks:
        yield from _fields(network, network.name)
        for endpoint in network.endpoints:
            where = f"{network.name}/{endpoint.name}"
            yield from _fields(endpoint, where)
            if endpoint.outbound_nat is not None:
                yield from _fields(endpoint.outbound_nat, f"{where} outbound_nat")
            for acl in endpoint.acls:
                yield from _acl_lost(acl, f"{where}/{acl.name}")
        for acl in network.acls:
            yield from _acl_lost(acl, f"{network.name}/{acl.name}")
        for subnet in network.remote_subnets:
            yield from _fields(subnet, f"{network.name} remote subnet {subnet.prefix}")
        for balancer in network.load_balancers:
            where = f"{network.name}/{balancer.name}"
            if not balancer.backends:
                yield f"{where}: {NO_NETWORK}"
            yield from _fields(balancer, where)
            for backend in balancer.backends:
                if backend.drain or backend.port not in (None, balancer.target_port):
                    yield f"{where} backend {backend.address}: drain, port"


def _acl_lost(acl: Acl, where: str) -> Iterator[str]:
    yield from _fields(acl, where)
    if acl.action == "reject":
        yield f"{where}: reject (said as Block)"


def _fields(value: Any, where: str) -> Iterator[str]:
    for field in msgspec.structs.fields(value):
        made = field.default_factory
        default = field.default if made is msgspec.NODEFAULT else made()
        if field.name in _NOT_SAID[type(value)] and getattr(value, field.name) != default:
            yield f"{where}: {field.name}"
