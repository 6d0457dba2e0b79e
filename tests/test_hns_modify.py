"""Modify requests of HCN: every verb of every kind of object, and what is refused."""

import json
from typing import Any

import pytest

from dataplane.hns.calls import call
from dataplane.hns.errors import HcnError
from dataplane.hns.store import KINDS, RESOURCES, Store
from dataplane.hns.translate import share
from tests import hns_documents as d
from tests.test_hns import DR, NODE

SPACE, SERVICE, ROUTE = (f"0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0f00{i}" for i in range(3))
PATHS = {
    "networks": d.NET,
    "endpoints": d.POD.lower(),
    "loadbalancers": SERVICE,
    "routes": ROUTE,
    "namespaces": SPACE,
}


def policies(*made: d.Document) -> d.Document:
    return {"Policies": list(made)}


ROUTER_MAC = {"Type": "DrMacAddress", "Settings": {"Address": "02-00-00-00-00-01"}}
OTHER_MAC = {"Type": "DrMacAddress", "Settings": {"Address": "02-00-00-00-00-02"}}
FOREIGN = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "10.9.9.9"}}
ROUTED: d.Document = d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR)["Settings"]
BALANCER = d.balancer([d.POD], "10.96.0.10") | {"ID": SERVICE}
REQUESTS: list[tuple[str, str, d.Document]] = [  # kind, ResourceType, Settings
    ("networks", "Policy", ROUTED),
    ("networks", "Policy", policies({"Type": "HostRoute", "Settings": {}})),
    ("networks", "DNS", {"Domain": "cluster.local", "ServerList": ["10.96.0.10"]}),
    ("endpoints", "Policy", policies(d.ACL)),
    ("namespaces", "Endpoint", {"EndpointId": d.POD.lower()}),
    ("namespaces", "Container", {"ContainerId": "c1"}),
]


@pytest.fixture
def store() -> Store:
    """One object of each kind."""
    made = Store(NODE)
    call(made, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK, "Policies": [ROUTER_MAC]})
    call(made, "POST", "endpoints", d.pod("10.244.3.9"))
    call(made, "POST", "loadbalancers", BALANCER)
    setting = {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}
    route = {"ID": ROUTE, "HostComputeEndpoints": [d.POD], "Setting": [setting]}
    call(made, "POST", "routes", route)
    call(made, "POST", "namespaces", {"ID": SPACE, "Type": "Guest"})
    return made


def modify(store: Store, kind: str, verb: str, resource: Any, settings: Any) -> d.Document:
    request = {"RequestType": verb, "Settings": settings}
    if resource is not None:
        request["ResourceType"] = resource
    made: d.Document = call(store, "POST", f"{kind}/{PATHS[kind]}/modify", request)
    return made


def refused(store: Store, kind: str, verb: str, resource: Any, settings: Any) -> HcnError:
    """Nothing is changed then."""
    before = store.copy().objects
    with pytest.raises(HcnError) as caught:
        modify(store, kind, verb, resource, settings)
    assert store.objects == before
    return caught.value


def test_every_resource_is_asked_for() -> None:
    asked = {(kind, resource) for kind, resource, _ in REQUESTS} | {("loadbalancers", "")}
    assert asked == {(kind, resource) for kind in KINDS for resource in RESOURCES[kind]}


@pytest.mark.parametrize(("kind", "resource", "settings"), REQUESTS)
def test_verbs(store: Store, kind: str, resource: str, settings: d.Document) -> None:
    before = store.get(kind, PATHS[kind])

    def told(verb: str) -> d.Document:
        """Twice is once."""
        made = modify(store, kind, verb, resource, settings)
        saved = store.dumps()
        assert modify(store, kind, verb, resource, settings) == made
        assert store.dumps() == saved
        share(store)
        return made

    assert told("Remove") == before  # which is not there
    assert told("Refresh") == before
    added = told("Add")
    assert added != before
    assert told("Update") == told("Refresh") == added
    assert told("Remove") == before
    assert told("Update") == added  # also of what is not there


def test_a_balancer_is_updated_by_its_document_alone(store: Store) -> None:
    other = d.balancer([d.POD], "10.96.0.11")
    made = modify(store, "loadbalancers", "Update", None, other)
    assert (made["ID"], made["FrontendVIPs"]) == (SERVICE, ["10.96.0.11"])
    assert modify(store, "loadbalancers", "Update", None, other) == made
    assert call(store, "POST", f"loadbalancers/{SERVICE}/modify", BALANCER) != made
    assert call(store, "POST", f"loadbalancers/{SERVICE}/modify", other) == made


def test_a_balancer_is_not_replaced_by_other_verbs(store: Store) -> None:
    before, other = store.get("loadbalancers", SERVICE), d.balancer([d.POD], "10.96.0.11")
    assert modify(store, "loadbalancers", "Refresh", None, other) == before
    for verb in ("Add", "Remove"):
        error = refused(store, "loadbalancers", verb, None, other)
        assert error.symbol == "HCN_E_REQUEST_UNSUPPORTED" and verb in error.message
    assert refused(store, "loadbalancers", "Burn", None, other).symbol == "HCN_E_INVALID_JSON"
    assert "'Policy'" in refused(store, "loadbalancers", "Update", "Policy", other).message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["Add", "Remove", "Update", "Refresh"])
def test_unknown_resources_are_named(store: Store, kind: str, verb: str) -> None:
    error = refused(store, kind, verb, "Port", {})
    assert (error.symbol, error.message) == (
        "HCN_E_REQUEST_UNSUPPORTED",
        f"ResourceType 'Port' of {kind} is not supported",
    )


def test_requests_have_no_other_fields(store: Store) -> None:
    assert "'Colour'" in refused(store, "networks", "Add", "Policy", {"Colour": 1}).message
    request = {"RequestType": "Add", "ResourceType": "Policy", "Colour": 1}
    with pytest.raises(HcnError, match="'Colour'"):
        call(store, "POST", f"networks/{d.NET}/modify", request)


def test_names_of_a_request_have_no_case(store: Store) -> None:
    request = json.loads(json.dumps(d.HOST_ROUTE).replace("RequestType", "requestType"))
    call(store, "POST", f"networks/{d.NET}/modify", request)
    assert share(store).networks[0].host_route


# ---- what HNS reports --------------------------------------------------------------------------


def test_the_routers_mac_changes_and_stays(store: Store) -> None:
    error = refused(store, "networks", "Remove", "Policy", policies(ROUTER_MAC))
    assert error.symbol == "HCN_E_INVALID_POLICY" and "DrMacAddress" in error.message
    modify(store, "networks", "Remove", "Policy", policies(OTHER_MAC))  # which it does not have
    for verb, policy in (("Add", OTHER_MAC), ("Update", ROUTER_MAC)):
        modify(store, "networks", verb, "Policy", policies(policy))
        (made,) = share(store).networks
        assert str(made.dr_mac).upper().replace(":", "-") == policy["Settings"]["Address"]


@pytest.mark.parametrize("verb", ["Add", "Update"])
def test_a_foreign_provider_address_is_refused(store: Store, verb: str) -> None:
    error = refused(store, "networks", verb, "Policy", policies(FOREIGN))
    assert error.symbol == "HCN_E_INVALID_POLICY" and "10.9.9.9" in error.message
    own = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "10.0.133.170"}}
    made = modify(store, "networks", verb, "Policy", policies(own))
    assert made["Policies"].count(own) == 1
    assert (
        "ProviderAddress" in refused(store, "networks", "Remove", "Policy", policies(own)).message
    )


def test_settings_are_checked_as_on_create(store: Store) -> None:
    """A policy of an endpoint is none of a network, whichever way it comes."""
    for verb in ("Add", "Update", "Remove"):
        error = refused(store, "networks", verb, "Policy", policies(d.ACL))
        assert error.symbol == "HCN_E_INVALID_POLICY_TYPE"
    modify(store, "endpoints", "Add", "Policy", policies(FOREIGN))  # as CNI plugins send it


@pytest.mark.parametrize("verb", ["POST", "PUT", "Update"])
def test_no_policy_hides_another(store: Store, verb: str) -> None:
    """Two of one key are refused by its name, whichever way they come."""
    both = policies(ROUTER_MAC, OTHER_MAC)
    with pytest.raises(HcnError, match="DrMacAddress: two policies") as caught:
        if verb == "Update":
            modify(store, "networks", verb, "Policy", both)
        elif verb == "PUT":
            call(store, verb, f"networks/{d.NET}", d.FLANNEL_NETWORK | both)
        else:
            call(store, verb, "networks", d.FLANNEL_NETWORK | both | {"Name": "other"})
    assert caught.value.symbol == "HCN_E_POLICY_ALREADY_EXISTS"
