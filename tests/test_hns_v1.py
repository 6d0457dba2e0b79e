"""HNS v1 and PowerShell: documents of theirs, what they become, and how they are told again."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from dataplane.hns.calls import call, call_v1, calls_of
from dataplane.hns.errors import HcnError
from dataplane.hns.normal import normal
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.hns.v1 import object_of_v1
from tests import hns_documents as d
from tests.test_hns import NODE

ROUTE = {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}


@pytest.fixture
def store() -> Store:
    made = Store(NODE)
    call(made, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    call(made, "POST", "endpoints", d.pod("10.244.3.9"))
    return made


def test_an_endpoint_becomes_v2s(store: Store) -> None:
    made = call_v1(store, "POST", "/endpoints/", d.V1_POD)["Output"]
    told = store.get("endpoints", made["ID"])
    del told["ID"]
    assert told == {
        "Name": "cbr0_vxlan0",
        "HostComputeNetwork": d.NET,
        "IpConfigurations": [{"IpAddress": "10.244.3.21"}],
        "Routes": [{"NextHop": "10.244.3.1", "DestinationPrefix": "0.0.0.0/0"}],
        "MacAddress": "0E-2A-0A-F4-03-15",
        "Dns": {"Domain": "svc.cluster.local", "ServerList": ["10.96.0.10", "10.96.0.11"]},
        "Policies": [
            {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.244.0.0/16", "10.43.0.0/16"]}},
            {
                "Type": "SDNRoute",
                "Settings": {"DestinationPrefix": "10.43.0.0/16", "NeedEncap": True},
            },
            {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "10.0.133.170"}},
            {
                "Type": "PortMapping",
                "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8000},
            },
            {
                "Type": "ACL",
                "Settings": {
                    "Protocols": "6",
                    "LocalPorts": "22",
                    "Action": "Block",
                    "Direction": "In",
                },
            },
            {"Type": "EncapOverhead", "Settings": {"Overhead": 50}},
        ],
        "SchemaVersion": d.VERSION,
    }


def test_an_endpoint_is_told_as_v1s(store: Store) -> None:
    made = call_v1(store, "POST", "/endpoints/", d.V1_POD)["Output"]
    assert made == {
        "ID": made["ID"],
        "Name": "cbr0_vxlan0",
        "VirtualNetwork": d.NET,
        "IPAddress": "10.244.3.21",
        "MacAddress": "0E-2A-0A-F4-03-15",
        "IsRemoteEndpoint": False,
        "Policies": [
            {"Type": "OutBoundNAT", "ExceptionList": ["10.244.0.0/16", "10.43.0.0/16"]},
            {"Type": "ROUTE", "DestinationPrefix": "10.43.0.0/16", "NeedEncap": True},
            {"Type": "PA", "PA": "10.0.133.170"},
            {"Type": "NAT", "Protocol": 6, "InternalPort": 80, "ExternalPort": 8000},
            {
                "Type": "ACL",
                "Protocol": "6",
                "LocalPort": "22",
                "Action": "Block",
                "Direction": "In",
            },
            {"Type": "EncapOverhead", "Overhead": 50},
        ],
    }
    assert call_v1(store, "GET", f"/endpoints/{made['ID']}")["Output"] == made


def test_a_policy_list_is_a_balancer_and_told_again(store: Store) -> None:
    made = call_v1(store, "POST", "/policylists/", d.V1_SERVICE)["Output"]
    told = d.V1_SERVICE | {"ID": made["ID"], "References": [f"/endpoints/{d.POD.lower()}"]}
    assert made == told
    assert call_v1(store, "GET", "/policylists/") == {"Success": True, "Output": [told]}
    assert store.get("loadbalancers", made["ID"]) == {
        "ID": made["ID"],
        "HostComputeEndpoints": [d.POD.lower()],
        "SourceVIP": "10.244.3.2",
        "FrontendVIPs": ["10.96.0.10"],
        "PortMappings": [{"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "Flags": 1}],
        "Flags": 1,
        "SchemaVersion": d.VERSION,
    }
    (service,) = share(store).networks[0].load_balancers
    assert (service.port, service.target_port) == (80, 8080)
    assert call_v1(store, "DELETE", f"/policylists/{made['ID']}") == {"Success": True, "Output": {}}
    assert share(store).networks[0].load_balancers == ()


def test_a_remote_endpoint(store: Store) -> None:
    remote = {
        "VirtualNetwork": d.NET,
        "IPAddress": "10.244.4.5",
        "MacAddress": "02-11-0a-f4-04-05",
        "IsRemoteEndpoint": True,
        "Policies": [{"Type": "PA", "PA": "192.168.2.19"}],
    }
    made = call_v1(store, "POST", "/endpoints/", remote)["Output"]
    assert made["IsRemoteEndpoint"] is True and made["Policies"] == remote["Policies"]
    assert len(share(store).networks[0].endpoints) == 1  # the pod alone


def test_dns_of_its_own_is_refused_by_name(store: Store) -> None:
    with pytest.raises(HcnError, match="EnableInternalDNS: is not supported"):
        call_v1(store, "POST", "/endpoints/", d.V1_POD | {"EnableInternalDNS": True})
    call_v1(store, "POST", "/endpoints/", d.V1_POD | {"EnableInternalDNS": False})


# ---- PowerShell --------------------------------------------------------------------------------


def test_routes_of_powershell(store: Store) -> None:
    """New-HnsRoute writes every field, empty or false."""
    setting = ROUTE | {"NextHop": "", "AutomaticEndpointMonitor": False}
    document = {"HostComputeEndpoints": [d.POD], "Routes": [setting]}
    (made,) = calls_of(json.dumps(document).encode(), "route.json")
    told = call(store, made["Method"], made["Path"], made["Body"])
    assert told["Setting"] == [ROUTE]
    setting["AutomaticEndpointMonitor"] = True
    with pytest.raises(HcnError, match="AutomaticEndpointMonitor: is not supported") as caught:
        call(store, "POST", "routes", document)
    assert caught.value.symbol == "HCN_E_REQUEST_UNSUPPORTED"


# ---- names have no case ------------------------------------------------------------------------


def renamed(value: Any, case: Callable[[str], str]) -> Any:
    """With the names of all fields in another case."""
    if isinstance(value, dict):
        return {case(key): renamed(item, case) for key, item in value.items()}
    return [renamed(item, case) for item in value] if isinstance(value, list) else value


SENT = {
    "networks": [d.FLANNEL_NETWORK, d.V1_NETWORK],
    "endpoints": [
        d.pod("10.244.3.9", d.NET, d.ACL, *d.TIERS),
        d.pod("10.244.3.9") | {"Policies": d.CNI["delegate"]["Policies"]},
        d.V1_POD,
    ],
    "loadbalancers": [d.balancer([d.POD], "10.96.0.10"), d.V1_SERVICE],
    "routes": [d.SDN_ROUTE, {"HostComputeEndpoints": [d.POD], "Routes": [ROUTE]}],
    "namespaces": [{"Type": "Guest", "Resources": [{"Type": "Endpoint", "Data": {"ID": d.POD}}]}],
}


@pytest.mark.parametrize("case", [str.lower, str.upper, str.swapcase])
@pytest.mark.parametrize(
    ("kind", "document"), [(kind, made) for kind, sent in SENT.items() for made in sent]
)
def test_names_have_no_case(kind: str, document: Any, case: Callable[[str], str]) -> None:
    read = normal(kind, object_of_v1(kind, document))
    assert normal(kind, object_of_v1(kind, renamed(document, case))) == read
    (made,) = calls_of(json.dumps(renamed(document, case)).encode(), "sent.json")
    assert made["Path"] == kind
