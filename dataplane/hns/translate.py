"""A store's objects as a share of the policy model. Pure.

What did not change since is the same object of the model, so that a plan has nothing to do for it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from dataplane.address import Mac, Prefix, Vni, parse_ip, parse_prefix
from dataplane.hns.balancers import Served, balancers
from dataplane.hns.errors import HcnError
from dataplane.hns.normal import Document
from dataplane.hns.rules import Sets, rules, sets_of
from dataplane.hns.store import Store, vsids
from dataplane.model import (
    Endpoint,
    Network,
    Node,
    OutboundNat,
    PortMapping,
    RemoteSubnet,
    Tap,
)
from dataplane.shares import Share

ORIGIN = "hns"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_WAYS_OUT = ("underlay", "host")
_FAKE = "02-11-"  # how MACs begin that kube-proxy makes up, for backends
_SOURCE = "source_vip"  # what kube-proxy calls the endpoint that reserves its source address


class _Made(NamedTuple):
    source: tuple[Any, ...]
    result: Any


class Translator:
    """Remembers what it made of each document."""

    def __init__(self) -> None:
        self._made: dict[Any, _Made] = {}
        self._seen: set[Any] = set()

    def share(self, store: Store) -> Share:
        """Raises HcnError for what the model cannot say."""
        self._seen.clear()
        networks = tuple(self._networks(store))
        for key in self._made.keys() - self._seen:
            del self._made[key]
        return Share(networks=networks, kept=store.dumps())

    def _networks(self, store: Store) -> Iterator[Network]:
        served = Served(store.objects)
        names = _names(store.objects["networks"].values())
        by_network: dict[str, list[Document]] = {}
        for endpoint in store.objects["endpoints"].values():
            by_network.setdefault(endpoint["HostComputeNetwork"], []).append(endpoint)
        routes = _routes(store.objects["routes"].values())
        for guid, document in store.objects["networks"].items():
            sets = sets_of(document.get("Policies", []))
            held = by_network.get(guid, [])
            named = _names(held, _WAYS_OUT)
            local = tuple(
                self.kept(
                    ("endpoint", e["ID"]),
                    (e, sets, named[e["ID"]], routes.get(e["ID"], ()), store.node),
                    _endpoint,
                )
                for e in held
                if not (e.get("Flags", 0) & 1 or served.is_source(e) or e.get("Name") == _SOURCE)
            )
            remote = [e for e in held if e.get("Flags", 0) & 1]
            services = tuple(
                balancer
                for lb in served.of(guid)
                for balancer in self.kept(
                    ("balancer", lb["ID"]), (lb, served.backends(lb), store.node), balancers
                )
            )
            base = self.kept(("network", guid), (document, names[guid], store.node), _network)
            subnets = self.kept(
                ("subnets", guid), (base.remote_subnets, _far(remote), store.node), _subnets
            )
            yield self.kept(("whole", guid), (base, local, services, subnets), _whole)

    def kept(self, key: Any, source: tuple[Any, ...], make: Callable[..., Any]) -> Any:
        """What was made of the same source before."""
        self._seen.add(key)
        made = self._made.get(key)
        if made is None or made.source != source:
            made = self._made[key] = _Made(source, make(*source))
        return made.result


def share(store: Store) -> Share:
    """As `Translator.share`, once."""
    return Translator().share(store)


# ---- networks ----------------------------------------------------------------------------------


def _whole(
    base: Network,
    endpoints: tuple[Endpoint, ...],
    services: tuple[Any, ...],
    subnets: tuple[RemoteSubnet, ...],
) -> Network:
    return replace(base, endpoints=endpoints, load_balancers=services, remote_subnets=subnets)


def _network(document: Document, name: str, node: Node) -> Network:
    where = f"networks {document.get('Name') or document['ID']}"
    numbers = list(vsids(document))
    if len(numbers) != 1:
        told = f"has VSIDs {', '.join(map(str, numbers))}" if numbers else "has no VSID"
        message = f"{where}: {told}; one for all of its subnets, 0 to 16777215"
        raise HcnError("HCN_E_INVALID_NETWORK", message)
    subnets = [s for ipam in document.get("Ipams", ()) for s in ipam.get("Subnets", ())]
    policies = document.get("Policies", [])
    _fits(policies, node, where)
    return Network(
        name=name,
        vni=Vni(numbers[0]),
        prefixes=tuple(parse_prefix(s["IpAddressPrefix"]) for s in subnets),
        gateways=tuple(_gateways(subnets, where)),
        dr_mac=next(Mac(p["Settings"]["Address"]) for p in policies if p["Type"] == "DrMacAddress"),
        remote_subnets=tuple(_remote(policies, numbers[0], where)),
        acls=rules(policies, sets_of(policies), node.underlay.port, "NetworkACL"),
        host_route=any(p["Type"] == "HostRoute" for p in policies),
    )


def _gateways(subnets: list[Document], where: str) -> Iterator[Any]:
    """Each subnet's way out, which HNS wants named."""
    for subnet in subnets:
        ways = [
            route["NextHop"]
            for route in subnet.get("Routes", ())
            if route.get("DestinationPrefix") in ("0.0.0.0/0", "::/0") and "NextHop" in route
        ]
        if not ways:
            message = (
                f"{where}: no default gateway: subnet {subnet['IpAddressPrefix']} has no route"
            )
            raise HcnError("HCN_E_INVALID_NETWORK", f"{message} to 0.0.0.0/0 or ::/0")
        yield parse_ip(ways[0])


def _fits(policies: list[Document], node: Node, where: str) -> None:
    for policy in policies:
        if policy["Type"] == "VxlanPort" and policy["Settings"]["Port"] != node.underlay.port:
            port = policy["Settings"]["Port"]
            message = f"{where}: VxlanPort {port}, but this node's is {node.underlay.port}"
            raise HcnError("HCN_E_INVALID_POLICY", f"{message}: set underlay.port")
        if policy["Type"] == "HostRoute" and node.host_port is None:
            message = f"{where}: HostRoute needs a way to the host: give the node a host_port"
            raise HcnError("HCN_E_INVALID_POLICY", message)


def _remote(policies: list[Document], vni: int, where: str) -> Iterator[RemoteSubnet]:
    for policy in policies:
        if policy["Type"] != "RemoteSubnetRoute":
            continue
        settings = policy["Settings"]
        if settings.get("IsolationId", vni) != vni:
            message = f"{where}: RemoteSubnetRoute {settings['DestinationPrefix']} has IsolationId"
            rest = f"{settings['IsolationId']}, but the network's VSID is {vni}: one network a VSID"
            raise HcnError("HCN_E_INVALID_POLICY", f"{message} {rest}")
        yield RemoteSubnet(
            prefix=parse_prefix(settings["DestinationPrefix"]),
            provider_address=parse_ip(settings["ProviderAddress"]),
            dr_mac=Mac(settings["DistributedRouterMacAddress"]),
        )


def _far(remote: list[Document]) -> tuple[tuple[str, str, str], ...]:
    """Address, provider address and MAC of remote endpoints that tell all three. kube-proxy's MACs
    are made up."""
    return tuple(
        (config["IpAddress"], provider, endpoint["MacAddress"])
        for endpoint in remote
        for provider in (_setting(endpoint, "ProviderAddress", "ProviderAddress"),)
        if provider and not endpoint.get("MacAddress", _FAKE).startswith(_FAKE)
        for config in endpoint.get("IpConfigurations", ())
    )


def _subnets(
    own: tuple[RemoteSubnet, ...], far: tuple[tuple[str, str, str], ...], node: Node
) -> tuple[RemoteSubnet, ...]:
    """Remote endpoints outside of every remote subnet are one each, as Docker's overlay has them;
    within one they are only backends, whose provider address kube-proxy has guessed."""
    if not far:
        return own
    mine = {str(node.underlay.address), str(node.underlay.address6)}
    found: dict[Prefix, RemoteSubnet] = {}
    for address, provider, mac in far:
        prefix = parse_prefix(address)
        covered = any(
            subnet.prefix.version == prefix.version and prefix.subnet_of(subnet.prefix)  # type: ignore[arg-type]
            for subnet in own
        )
        if provider not in mine and not covered:
            found.setdefault(
                prefix,
                RemoteSubnet(prefix=prefix, provider_address=parse_ip(provider), dr_mac=Mac(mac)),
            )
    return own + tuple(found.values())


def _setting(document: Document, kind: str, name: str) -> Any:
    for policy in document.get("Policies", ()):
        if policy["Type"] == kind:
            return policy["Settings"].get(name)
    return None


# ---- endpoints ---------------------------------------------------------------------------------


def _routes(documents: Iterable[Document]) -> dict[str, tuple[Document, ...]]:
    """What route objects say of an endpoint."""
    found: dict[str, tuple[Document, ...]] = {}
    for document in documents:
        for guid in document.get("HostComputeEndpoints", ()):
            found[guid] = (*found.get(guid, ()), *document.get("Setting", ()))
    for document in documents:
        if not document.get("HostComputeEndpoints"):
            _encapsulated(document.get("Setting", ()), f"routes {document['ID']}")
    return found


def _endpoint(
    document: Document, sets: Sets, name: str, routes: tuple[Document, ...], node: Node
) -> Endpoint:
    where = f"endpoints {document.get('Name') or document['ID']}"
    policies = document.get("Policies", [])
    routed = [p["Settings"] for p in policies if p["Type"] == "SDNRoute"]
    addresses = tuple(parse_ip(c["IpAddress"]) for c in document.get("IpConfigurations", ()))
    given = document.get("MacAddress")
    return Endpoint(
        name=name,
        addresses=addresses,
        mac=Mac(given) if given else None,
        tap=_tap(document, policies, node),
        acls=rules(policies, sets, node.underlay.port),
        outbound_nat=_nat(policies, addresses, _encapsulated((*routed, *routes), where), where),
        port_mappings=tuple(_mappings(policies, node, where)),
    )


def _tap(document: Document, policies: list[Document], node: Node) -> Tap:
    """In the network namespace whose name is the HCN namespace's GUID, else beside the node."""
    overhead = next(
        (p["Settings"]["Overhead"] for p in policies if p["Type"] == "EncapOverhead"), None
    )
    return Tap(
        name=tap_name(document["ID"]),
        netns=document.get("HostComputeNamespace"),
        mtu=None if overhead is None else node.underlay.mtu - overhead,
    )


def tap_name(guid: str) -> str:
    """Of an endpoint's device, from its ID; 15 bytes are the most."""
    return f"hns{hashlib.sha256(guid.encode()).hexdigest()[:12]}"


def _encapsulated(routes: Iterable[Document], where: str) -> tuple[Prefix, ...]:
    """Prefixes that are never sent to the underlay as they are."""
    found = []
    for route in routes:
        if not route.get("NeedEncap"):
            message = f"{where}: SDNRoute {route['DestinationPrefix']} without NeedEncap is not"
            rest = "supported: next hops outside of the overlay are the host's (ip route)"
            raise HcnError("HCN_E_REQUEST_UNSUPPORTED", f"{message} {rest}")
        found.append(parse_prefix(route["DestinationPrefix"]))
    return tuple(found)


def _nat(
    policies: list[Document], own: tuple[Any, ...], encapsulated: tuple[Prefix, ...], where: str
) -> OutboundNat | None:
    """A policy whose only destinations are the endpoint's own addresses is loopback DSR, which
    load balancers do without."""
    hairpin = {str(parse_prefix(str(address))) for address in own}
    asked = [p["Settings"] for p in policies if p["Type"] == "OutBoundNAT"]
    nats = [s for s in asked if not s.get("Destinations") or set(s["Destinations"]) - hairpin]
    if not nats:
        return None
    if len(nats) > 1:
        message = f"{where}: {len(nats)} OutBoundNAT policies; write one with all exceptions"
        raise HcnError("HCN_E_INVALID_POLICY", message)
    (settings,) = nats
    exceptions = tuple(map(parse_prefix, settings.get("Exceptions", ())))
    vip = settings.get("VirtualIP")
    return OutboundNat(
        vip=parse_ip(vip) if vip else None,
        exceptions=tuple(dict.fromkeys((*exceptions, *encapsulated))),
        destinations=tuple(map(parse_prefix, settings.get("Destinations", ()))),
        max_ports=settings.get("MaxPortPoolUsage", 0),
    )


def _mappings(policies: list[Document], node: Node, where: str) -> Iterator[PortMapping]:
    for policy in policies:
        if policy["Type"] != "PortMapping":
            continue
        settings = policy["Settings"]
        vip = settings.get("VIP")
        yield PortMapping(
            protocol="tcp" if settings["Protocol"] == 6 else "udp",
            port=settings["ExternalPort"],
            target_port=settings["InternalPort"],
            vip=parse_ip(vip) if vip and vip != str(node.underlay.address) else None,
        )


# ---- names -------------------------------------------------------------------------------------


def _names(documents: Iterable[Document], reserved: tuple[str, ...] = ()) -> dict[str, str]:
    """The model's name of each, by ID: its own where that is a name and nobody had it first."""
    taken, found = set(reserved), dict[str, str]()
    for document in documents:
        given = document.get("Name", "")
        name = given if _NAME.fullmatch(given) and given not in taken else document["ID"]
        taken.add(name)
        found[document["ID"]] = name
    return found
