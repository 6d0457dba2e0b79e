"""A store's objects as a share of the policy model. Pure.

What did not change since is the same object of the model, so that a plan has nothing to do for it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from msgspec.structs import replace

from dataplane.address import Mac, Prefix, Vni, is_within, parse_ip, parse_prefix
from dataplane.hns.balancers import served, sources
from dataplane.hns.errors import HcnError
from dataplane.hns.flags import IPV6, REMOTE
from dataplane.hns.normal import Document
from dataplane.hns.rules import Sets, rules, sets_of
from dataplane.hns.store import Store, vsids
from dataplane.memo import Memo
from dataplane.model import (
    Endpoint,
    LoadBalancer,
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


class Translator:
    """Remembers what it made of each document."""

    def __init__(self) -> None:
        self._memo = Memo()

    def share(self, store: Store) -> Share:
        """Raises HcnError for what the model cannot say."""
        memo = Memo(self._memo)
        made = Share(networks=tuple(_networks(store, memo)), kept=store.dumps(memo))
        self._memo = memo
        return made


def _networks(store: Store, memo: Memo) -> Iterator[Network]:
    objects, node = store.objects, store.node
    names = _names(objects["networks"].values())
    reserved = sources(objects["loadbalancers"].values())
    balancers: dict[str, list[LoadBalancer]] = {}
    for served_ in served(objects, node, memo):
        balancers.setdefault(served_.network, []).extend(served_.balancers)
    routes = _routes(objects["routes"].values())
    held: dict[tuple[str, int], list[Document]] = {}
    for endpoint in objects["endpoints"].values():
        is_remote = endpoint.get("Flags", 0) & REMOTE
        held.setdefault((endpoint["HostComputeNetwork"], is_remote), []).append(endpoint)
    for guid, document in objects["networks"].items():
        far = tuple(held.get((guid, 1), ()))
        near = [e for e in held.get((guid, 0), ()) if not _is_source(e, reserved)]
        sets, named = sets_of(document.get("Policies", [])), _names(near, _WAYS_OUT)
        local = tuple(
            _kept(
                memo,
                ("endpoint", e["ID"]),
                (e, sets, named[e["ID"]], routes.get(e["ID"], ()), node),
                _endpoint,
            )
            for e in near
        )
        base = _kept(memo, ("network", guid), (document, names[guid], node), _network)
        told = tuple(chain.from_iterable(memo.each(("far", guid), far, None, _far)))
        subnets = _kept(memo, ("subnets", guid), (base.remote_subnets, told, node), _subnets)
        source = base, local, tuple(balancers.get(guid, ())), subnets
        yield _kept(memo, ("whole", guid), source, _whole)


def _kept(
    memo: Memo, key: tuple[str, str], source: tuple[Any, ...], make: Callable[..., Any]
) -> Any:
    return memo(key, source, partial(make, *source))


def _is_source(endpoint: Document, reserved: set[str]) -> bool:
    """Whether it only reserves the address that some load balancer translates to."""
    configs = endpoint.get("IpConfigurations", ())
    return endpoint.get("Name") == _SOURCE or any(c["IpAddress"] in reserved for c in configs)


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
            if _is_default(route, where) and "NextHop" in route
        ]
        if not ways:
            message = (
                f"{where}: no default gateway: subnet {subnet['IpAddressPrefix']} has no route"
            )
            raise HcnError("HCN_E_INVALID_NETWORK", f"{message} to 0.0.0.0/0 or ::/0")
        yield parse_ip(ways[0])


def _is_default(route: Document, where: str) -> bool:
    destination = route.get("DestinationPrefix")
    if destination not in (None, "0.0.0.0/0", "::/0"):
        message = f"{where}: a subnet's route to {destination} is not supported, only the default"
        raise HcnError("HCN_E_REQUEST_UNSUPPORTED", f"{message}: add a RemoteSubnetRoute")
    return destination is not None


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


def _far(endpoint: Document) -> tuple[tuple[str, str, str], ...]:
    """Addresses of a remote endpoint, each with its provider address and MAC, if it tells both.
    kube-proxy's MACs are made up."""
    provider = _setting(endpoint, "ProviderAddress", "ProviderAddress")
    mac = endpoint.get("MacAddress", _FAKE)
    if not provider or mac.startswith(_FAKE):
        return ()
    return tuple((c["IpAddress"], provider, mac) for c in endpoint.get("IpConfigurations", ()))


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
        covered = any(is_within(prefix, subnet.prefix) for subnet in own)
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
        if "NextHop" in route:
            message = f"{where}: SDNRoute {route['DestinationPrefix']}: NextHop is not supported"
            rest = "beside NeedEncap: the provider addresses of remote subnets are the next hops"
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
        if settings.get("Flags", 0) & IPV6 and parse_ip(vip or _host(node)).version != 6:
            message = f"{where}: PortMapping {settings['ExternalPort']} has the flag IPv6, but is"
            raise HcnError("HCN_E_INVALID_POLICY", f"{message} met at {vip or _host(node)}")
        yield PortMapping(
            protocol="tcp" if settings["Protocol"] == 6 else "udp",
            port=settings["ExternalPort"],
            target_port=settings["InternalPort"],
            vip=parse_ip(vip) if vip and vip != str(node.underlay.address) else None,
        )


def _host(node: Node) -> str:
    """Where a mapping without a VIP is met."""
    return str(node.underlay.address if node.host_port is None else node.host_port.address)


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
