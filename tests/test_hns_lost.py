"""Export of the model: each of its fields is said by HNS documents, or named as lost."""

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from dataplane.address import Mac, Vni, parse_prefix
from dataplane.hns.calls import call
from dataplane.hns.export import NO_NETWORK, exported
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.model import (
    Acl,
    Backend,
    DirectSubnet,
    Endpoint,
    LoadBalancer,
    Network,
    OutboundNat,
    PortMapping,
    PortRange,
    RemoteSubnet,
    Tap,
    Wire,
)
from tests.test_hns import NODE

IP, OTHER_IP = ip_address("10.1.0.9"), ip_address("10.1.0.10")
PREFIX, OTHER_PREFIX = parse_prefix("10.2.0.0/16"), parse_prefix("10.3.0.0/16")
MAC, OTHER_MAC = Mac("02:00:00:00:00:01"), Mac("02:00:00:00:00:02")
PORTS = (PortRange(80, 80),)
PROVIDER = ip_address("192.0.2.9")
MAPPING = PortMapping(protocol="tcp", port=8000)
RULE = Acl(name="web", direction="in", action="allow")
PEER = RemoteSubnet(prefix=PREFIX, provider_address=PROVIDER, dr_mac=MAC)
BACKEND = Backend(address=IP)
BALANCER = LoadBalancer(
    name="shop", protocol="tcp", port=80, vips=(ip_address("10.96.0.1"),), backends=(BACKEND,)
)
POD = Endpoint(
    name="pod",
    addresses=(IP,),
    acls=(RULE,),
    outbound_nat=OutboundNat(),
    port_mappings=(MAPPING,),
)
NETWORK = Network(
    name="blue",
    vni=Vni(4096),
    prefixes=(parse_prefix("10.1.0.0/16"),),
    remote_subnets=(PEER,),
    endpoints=(POD,),
    load_balancers=(BALANCER,),
)
BASES: dict[type, Any] = {
    type(made): made
    for made in (NETWORK, POD, RULE, POD.outbound_nat, MAPPING, PEER, BALANCER, BACKEND)
}
CHANGES: dict[type, dict[str, Any]] = {  # another value of each field
    Network: {
        "name": "red",
        "vni": Vni(4097),
        "prefixes": (parse_prefix("10.0.0.0/15"),),
        "gateways": (ip_address("10.1.0.254"),),
        "pool": (parse_prefix("10.1.9.0/24"),),
        "dr_mac": OTHER_MAC,
        "mtu": 1400,
        "remote_subnets": (),
        "direct_subnets": (DirectSubnet(prefix=OTHER_PREFIX, provider_address=PROVIDER),),
        "endpoints": (),
        "acls": (RULE,),
        "outbound_nat": OutboundNat(max_ports=9),
        "load_balancers": (),
        "host_route": True,
        "host_subnets": (OTHER_PREFIX,),
        "routing_domain": "all",
        "max_flows": 9,
        "wire": Wire(ttl=9),
    },
    Endpoint: {
        "name": "db",
        "addresses": (OTHER_IP,),
        "mac": OTHER_MAC,
        "tap": Tap(name="tap9", netns="blue"),
        "acls": (),
        "default_in": "allow",
        "default_out": "block",
        "outbound_nat": None,
        "port_mappings": (),
        "max_flows": 9,
    },
    Acl: {
        "name": "db",
        "direction": "out",
        "action": "reject",
        "priority": 9,
        "protocol": "tcp",
        "local": (PREFIX,),
        "remote": (PREFIX,),
        "local_ports": PORTS,
        "remote_ports": PORTS,
        "icmp_type": 8,
        "icmp_code": 1,
        "stateful": False,
        "terminating": False,
        "idle": 9,
    },
    OutboundNat: {
        "vip": PROVIDER,
        "exceptions": (PREFIX,),
        "destinations": (PREFIX,),
        "ports": PortRange(2000, 3000),
        "mapping": "symmetric",
        "filtering": "endpoint-independent",
        "max_ports": 9,
    },
    PortMapping: {"protocol": "udp", "port": 8001, "target_port": 81, "vip": PROVIDER},
    RemoteSubnet: {
        "prefix": OTHER_PREFIX,
        "provider_address": ip_address("192.0.2.10"),
        "dr_mac": OTHER_MAC,
        "dsr": True,
    },
    LoadBalancer: {
        "name": "db",
        "protocol": "udp",
        "port": 81,
        "vips": (ip_address("10.96.0.2"),),
        "target_port": 8080,
        "backends": (),
        "affinity": "source_ip",
        "source_vip": OTHER_IP,
        "dsr": True,
        "local_only": True,
        "node_port": 30080,
    },
    Backend: {"address": OTHER_IP, "port": 8081, "drain": True},
}


def with_(changed: Any) -> Network:
    """The network with this part in place of its own."""
    match changed:
        case Network():
            return changed
        case Endpoint():
            return replace(NETWORK, endpoints=(changed,))
        case RemoteSubnet():
            return replace(NETWORK, remote_subnets=(changed,))
        case LoadBalancer():
            return replace(NETWORK, load_balancers=(changed,))
        case Backend():
            return with_(replace(BALANCER, backends=(changed,)))
        case Acl():
            return with_(replace(POD, acls=(changed,)))
        case OutboundNat():
            return with_(replace(POD, outbound_nat=changed))
        case PortMapping():
            return with_(replace(POD, port_mappings=(changed,)))
    raise AssertionError(changed)


@pytest.mark.parametrize("kind", CHANGES)
def test_every_field_is_tried(kind: type) -> None:
    assert CHANGES[kind].keys() == {field.name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, changes in CHANGES.items() for field in changes]
)
def test_every_field_is_said_or_lost(kind: type, field: str) -> None:
    """What is lost is named by its field; what is not is other documents."""
    before = exported(replace(NODE, networks=(NETWORK,)))
    changed = replace(BASES[kind], **{field: CHANGES[kind][field]})
    after = exported(replace(NODE, networks=(with_(changed),)))
    lost = set(after.lost) - set(before.lost)
    assert after.calls != before.calls or any(field in told for told in lost)
    assert not before.lost


def test_of_two_networks_a_balancer_without_backends_is_lost() -> None:
    """HNS knows a load balancer's network by its endpoints."""
    empty = replace(NETWORK, load_balancers=(replace(BALANCER, backends=()),))
    other = Network(name="red", vni=Vni(4097), prefixes=(OTHER_PREFIX,))
    made = exported(replace(NODE, networks=(empty, other)))
    assert made.lost == [f"blue/shop: {NO_NETWORK}"]
    store = Store(NODE)
    for one in made.calls:
        call(store, one["Method"], one["Path"], one["Body"])
    assert [network.name for network in share(store).networks] == ["blue", "red"]
