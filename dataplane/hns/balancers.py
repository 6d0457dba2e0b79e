"""HostComputeLoadBalancers as load balancers of the model."""

from collections.abc import Mapping

from dataplane.address import parse_ip
from dataplane.hns.errors import HcnError
from dataplane.hns.normal import Document
from dataplane.model import Backend, LoadBalancer, Node

AFFINITY = ("none", "source_ip_protocol", "source_ip")  # by DistributionType


class Served:
    """Which network a load balancer is of, and whom it spreads flows over."""

    def __init__(self, objects: Mapping[str, Mapping[str, Document]]) -> None:
        self._objects = objects
        self._shared: dict[tuple[str, ...], tuple[Backend, ...]] = {}
        self._sources = {lb.get("SourceVIP") for lb in objects["loadbalancers"].values()} - {None}
        self._of: dict[str, list[Document]] = {}
        for lb in objects["loadbalancers"].values():
            self._of.setdefault(self._network(lb), []).append(lb)

    def of(self, network: str) -> list[Document]:
        return self._of.get(network, [])

    def is_source(self, endpoint: Document) -> bool:
        """Whether it only reserves the address that some load balancer translates to."""
        configs = endpoint.get("IpConfigurations", ())
        return any(config["IpAddress"] in self._sources for config in configs)

    def backends(self, balancer: Document) -> tuple[Backend, ...]:
        """The same object for those of the same endpoints."""
        guids = tuple(balancer.get("HostComputeEndpoints", ()))
        made = self._shared.get(guids)
        if made is None:
            endpoints = map(self._objects["endpoints"].__getitem__, guids)
            addresses = [c["IpAddress"] for e in endpoints for c in e.get("IpConfigurations", ())]
            made = tuple(Backend(address=parse_ip(a)) for a in dict.fromkeys(addresses))
            self._shared[guids] = made
        return made

    def _network(self, balancer: Document) -> str:
        found: set[str] = {
            self._objects["endpoints"][guid]["HostComputeNetwork"]
            for guid in balancer.get("HostComputeEndpoints", ())
        } or set(self._objects["networks"])
        if len(found) != 1:
            message = (
                f"loadbalancers {balancer['ID']}: its endpoints are of {len(found)} networks"
                if balancer.get("HostComputeEndpoints")
                else f"loadbalancers {balancer['ID']} names no endpoint: of which network is it?"
            )
            raise HcnError("HCN_E_INVALID_ENDPOINT", message)
        return found.pop()


def balancers(
    document: Document, backends: tuple[Backend, ...], node: Node
) -> tuple[LoadBalancer, ...]:
    """One for each port mapping. DSR of HNS means that clients of this node are translated here,
    and seen by the backend with their own address: which is so with and without it."""
    mappings = document.get("PortMappings", [])
    if not mappings:
        message = f"loadbalancers {document['ID']}: no PortMappings"
        raise HcnError("HCN_E_INVALID_JSON_REFERENCE", message)
    vips = tuple(map(parse_ip, document.get("FrontendVIPs", ())))
    source = document.get("SourceVIP")
    own = str(node.underlay.address)
    versions = {vip.version for vip in vips} or {4}
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
