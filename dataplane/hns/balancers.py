"""HostComputeLoadBalancers as load balancers of the model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dataplane.address import parse_ip
from dataplane.hns.errors import HcnError
from dataplane.hns.flags import IPV6
from dataplane.hns.normal import Document
from dataplane.memo import Memo
from dataplane.model import Backend, LoadBalancer, Node

AFFINITY = ("none", "source_ip_protocol", "source_ip")  # by DistributionType


class Served(NamedTuple):
    """A load balancer's network, and what the model says of it."""

    network: str
    balancers: tuple[LoadBalancer, ...]


Shared = dict[tuple[str, ...], tuple[Backend, ...]]  # backends by the IDs of their endpoints


class _Round(NamedTuple):
    """What was made the last time, by ID, each with its document; and of what else."""

    made: Mapping[str, tuple[Document, Served]]
    endpoints: Mapping[str, Document]
    others: tuple[tuple[str, ...], Node | None]


_FIRST = _Round({}, {}, ((), None))


def served(
    objects: Mapping[str, Mapping[str, Document]], node: Node, memo: Memo
) -> Iterator[Served]:
    """All load balancers. Raises HcnError."""
    endpoints, others = objects["endpoints"], (tuple(objects["networks"]), node)
    before: _Round = memo.kept("balancers", _FIRST)
    known = before.made if before.others == others else {}
    fresh = {guid for guid, made in endpoints.items() if before.endpoints.get(guid) is not made}
    shared: Shared = {}
    found: dict[str, tuple[Document, Served]] = {}
    for guid, document in objects["loadbalancers"].items():
        old, guids = known.get(guid), document.get("HostComputeEndpoints", ())
        if old is None or old[0] is not document or not fresh.isdisjoint(guids):
            old = document, _served(document, endpoints, *others, shared)
        found[guid] = old
    memo.keep("balancers", _Round(found, dict(endpoints), others))
    return (made for _, made in found.values())


def sources(documents: Iterable[Document]) -> set[str]:
    """The addresses that load balancers translate to."""
    return {document["SourceVIP"] for document in documents if "SourceVIP" in document}


def _served(
    document: Document,
    objects: Mapping[str, Document],
    networks: tuple[str, ...],
    node: Node,
    shared: Shared,
) -> Served:
    guids = tuple(document.get("HostComputeEndpoints", ()))
    endpoints = [objects[guid] for guid in guids]
    found = {endpoint["HostComputeNetwork"] for endpoint in endpoints} or set(networks)
    if len(found) != 1:
        message = (
            f"loadbalancers {document['ID']}: its endpoints are of {len(found)} networks"
            if endpoints
            else f"loadbalancers {document['ID']} names no endpoint: of which network is it?"
        )
        raise HcnError("HCN_E_INVALID_ENDPOINT", message)
    if guids not in shared:
        shared[guids] = _backends(endpoints)
    return Served(found.pop(), _balancers(document, shared[guids], node))


def _backends(endpoints: list[Document]) -> tuple[Backend, ...]:
    addresses = [c["IpAddress"] for e in endpoints for c in e.get("IpConfigurations", ())]
    return tuple(Backend(address=parse_ip(a)) for a in dict.fromkeys(addresses))


def _balancers(
    document: Document, backends: tuple[Backend, ...], node: Node
) -> tuple[LoadBalancer, ...]:
    """One for each port mapping. DSR of HNS means that clients of this node are translated here,
    and seen by the backend with their own address: which is so with and without it."""
    mappings = document.get("PortMappings", [])
    if not mappings:
        message = f"loadbalancers {document['ID']}: no PortMappings"
        raise HcnError("HCN_E_INVALID_JSON_REFERENCE", message)
    vips = tuple(map(parse_ip, document.get("FrontendVIPs", ())))
    ipv6 = bool(document.get("Flags", 0) & IPV6)
    if ipv6 and any(vip.version != 6 for vip in vips):
        message = f"loadbalancers {document['ID']}: the flag IPv6, but a VIP of IPv4"
        raise HcnError("HCN_E_INVALID_IP", message)
    source = document.get("SourceVIP")
    own = str(node.underlay.address)
    versions = {vip.version for vip in vips} or {6 if ipv6 else 4}
    fit = [b for b in backends if b.address.version in versions]
    served = backends if len(fit) == len(backends) else tuple(fit)  # the same object is shared
    return tuple(
        LoadBalancer(
            name=document["ID"] if len(mappings) == 1 else f"{document['ID']}.{i}",
            protocol="tcp" if mapping["Protocol"] == 6 else "udp",
            port=mapping["ExternalPort"],
            target_port=mapping.get("InternalPort") or None,
            vips=vips,
            backends=served,
            affinity=AFFINITY[mapping.get("DistributionType", 0)],  # type: ignore[arg-type]
            source_vip=parse_ip(source) if source and source != own else None,
            node_port=None if vips else mapping["ExternalPort"],
        )
        for i, mapping in enumerate(mappings)
    )
