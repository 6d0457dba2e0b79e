"""HNS calls in the order in which flannel, win-overlay and kube-proxy make them."""

from collections.abc import Callable
from typing import Any

from tests import hns_documents as d

OWN = "10.0.133.170"  # the node's underlay address, as d.pod tells it
FLANNEL, SOURCE = "flannel.4096", "0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0e003"

Ask = Callable[..., Any]  # method, path, body: what HNS answers


def settings(document: d.Document, kind: str) -> d.Document:
    """Of the policy of a type."""
    (found,) = [p["Settings"] for p in document["Policies"] if p["Type"] == kind]
    return dict(found)


def flannel(ask: Ask) -> str:
    """Section 7.3: External first; its network unless it is there; ready once HNS tells the
    management address; the lease needs the router's MAC; then the host route."""
    assert all(made["Name"] != FLANNEL for made in ask("GET", "networks"))
    external = d.network(9999) | {"Name": "External"}
    external["Ipams"][0]["Subnets"][0] |= {
        "IpAddressPrefix": "192.168.255.0/30",
        "Routes": [{"NextHop": "192.168.255.1", "DestinationPrefix": "0.0.0.0/0"}],
    }
    ask("POST", "networks", external)
    made = ask("POST", "networks", d.FLANNEL_NETWORK)
    assert settings(made, "ProviderAddress") == {"ProviderAddress": OWN}  # nothing to poll for
    assert settings(ask("GET", f"networks/{made['ID']}"), "DrMacAddress")["Address"]
    ask("POST", f"networks/{made['ID']}/modify", d.HOST_ROUTE)
    return str(made["ID"])


def added(ask: Ask, guid: str, prefix: str, provider: str, mac: str) -> None:
    """A lease that flannel sees: what has the prefix is removed by HNS's own value, then added, but
    for leases whose MAC is not known yet."""
    path = f"networks/{guid}/modify"
    for policy in ask("GET", f"networks/{guid}")["Policies"]:
        if policy["Settings"].get("DestinationPrefix") == prefix:
            request = {"Settings": {"Policies": [policy]}, "ResourceType": "Policy"}
            ask("POST", path, request | {"RequestType": "Remove"})
    if mac:
        ask("POST", path, d.remote_subnet(prefix, provider, mac))


def win_overlay(ask: Ask, guid: str, ip: str, namespace: str = "") -> str:
    """A namespace, of that ID if any, a pod's endpoint, and both together; the endpoint's ID."""
    given = {"ID": namespace} if namespace else {}
    namespace = ask("POST", "namespaces", {"Type": "Guest", **given})["ID"]
    pod = str(ask("POST", "endpoints", d.pod(ip, guid))["ID"])
    attach = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod}}
    ask("POST", f"namespaces/{namespace}/modify", attach)
    return pod


def kube_proxy(ask: Ask, guid: str, pod: str) -> None:
    """Section 8: old load balancers go; an endpoint for the source address; a remote one for the
    cluster address, handed to this host; backends that are not here; one balancer a way in."""
    for balancer in ask("GET", "loadbalancers"):
        ask("DELETE", f"loadbalancers/{balancer['ID']}")
    source = d.pod("10.244.3.2", guid, guid=SOURCE)
    ask("POST", "endpoints", source | {"MacAddress": "00-15-5D-00-00-01", "Policies": []})
    cluster = d.remote_endpoint("10.96.0.10", OWN, guid, "00-15-5D-00-00-01")
    ask("POST", "endpoints", cluster)
    far = ask("POST", "endpoints", d.remote_endpoint("10.244.4.5", "192.168.2.20", guid))
    again = ask("POST", "endpoints", d.remote_endpoint("10.244.4.5", "192.168.2.20", guid))
    assert again == far  # Windows Server 2019 would make a second one
    port = {"InternalPort": 8080, "ExternalPort": 80}
    both = [far["ID"], pod]
    first = ask("POST", "loadbalancers", d.balancer(both, "10.96.0.10", Flags=1, port=port))
    port = {"InternalPort": 8080, "ExternalPort": 30080}
    ask("POST", "loadbalancers", d.balancer([pod], port=port))
    known = ask("GET", f"loadbalancers/{first['ID']}")
    assert known["FrontendVIPs"] == ["10.96.0.10"]
