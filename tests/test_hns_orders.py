"""HNS calls in the order in which flannel, win-overlay and kube-proxy make them."""

from dataplane.hns.calls import call
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from dataplane.ids import HOST
from dataplane.lab import Lab
from dataplane.reasons import Verdict
from tests import hns_documents as d
from tests.test_hns import DR, NODE, Replay, network, outer, text

OWN = "10.0.133.170"


def settings(document: d.Document, kind: str) -> d.Document:
    """Of the policy of a type."""
    (found,) = [p["Settings"] for p in document["Policies"] if p["Type"] == kind]
    return dict(found)


def flannel(store: Store) -> str:
    """Section 7.3: External first; its network unless it is there; ready once HNS tells the
    management address; the lease needs the router's MAC; then the host route."""
    assert store.enumerate("networks", {"Name": "flannel.4096"}) == []
    external = d.network(9999) | {"Name": "External"}
    external["Ipams"][0]["Subnets"][0] |= {
        "IpAddressPrefix": "192.168.255.0/30",
        "Routes": [{"NextHop": "192.168.255.1", "DestinationPrefix": "0.0.0.0/0"}],
    }
    call(store, "POST", "networks", external)
    made = call(store, "POST", "networks", d.FLANNEL_NETWORK)
    assert settings(made, "ProviderAddress") == {"ProviderAddress": OWN}  # nothing to poll for
    assert settings(call(store, "GET", f"networks/{made['ID']}"), "DrMacAddress")["Address"]
    call(store, "POST", f"networks/{made['ID']}/modify", d.HOST_ROUTE)
    return str(made["ID"])


def added(store: Store, guid: str, prefix: str, provider: str, mac: str) -> None:
    """A lease that flannel sees: what has the prefix is removed by HNS's own value, then added, but
    for leases whose MAC is not known yet."""
    path = f"networks/{guid}/modify"
    for policy in call(store, "GET", f"networks/{guid}")["Policies"]:
        if policy["Settings"].get("DestinationPrefix") == prefix:
            request = {"Settings": {"Policies": [policy]}, "ResourceType": "Policy"}
            call(store, "POST", path, request | {"RequestType": "Remove"})
    if mac:
        call(store, "POST", path, d.remote_subnet(prefix, provider, mac))


def test_flannel_win_overlay_kube_proxy() -> None:
    store = Store(NODE)
    guid = flannel(store)
    added(store, guid, "10.244.4.0/24", "192.168.2.19", "")
    added(store, guid, "10.244.4.0/24", "192.168.2.19", DR)
    added(store, guid, "10.244.4.0/24", "192.168.2.20", DR)  # the peer has another address now
    end = d.pod("10.244.3.9", guid)
    namespace = call(store, "POST", "namespaces", {"Type": "Guest"})["ID"]
    pod = call(store, "POST", "endpoints", end)["ID"]
    attach = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod}}
    call(store, "POST", f"namespaces/{namespace}/modify", attach)
    kube_proxy(store, guid, pod)
    with Lab() as lab:
        replay = Replay(store, lab)
        own = next(n for n in replay.node.networks if n.name == "flannel.4096")
        assert len(own.endpoints) == 1 and len(own.remote_subnets) == 1
        direct = replay.send("tcp 10.244.3.9:4000 > 10.244.4.5:80 syn")
        assert outer(direct) == ("192.168.2.20", 4096)
        served = [replay.send(f"tcp 10.244.3.9:{p} > 10.96.0.10:80 syn") for p in range(5000, 5040)]
        seen = {text(out).split(" > ")[1].split()[0] for out in served}
        assert seen == {"10.244.3.9:8080", "10.244.4.5:8080"}
        assert {out.verdict for out in served} == {Verdict.FORWARD}
        outside = replay.send("tcp 169.254.9.2:4000 > 169.254.9.1:30080 syn", HOST)
        assert outside.verdict is Verdict.FORWARD and "> 10.244.3.9:8080" in text(outside)


def kube_proxy(store: Store, guid: str, pod: str) -> None:
    """Section 8: old load balancers go; an endpoint for the source address; a remote one for the
    cluster address, handed to this host; backends that are not here; one balancer a way in."""
    for balancer in call(store, "GET", "loadbalancers"):
        call(store, "DELETE", f"loadbalancers/{balancer['ID']}")
    source = d.pod("10.244.3.2", guid, guid="0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0e003")
    call(store, "POST", "endpoints", source | {"MacAddress": "00-15-5D-00-00-01", "Policies": []})
    cluster = d.remote_endpoint("10.96.0.10", OWN, guid, "00-15-5D-00-00-01")
    call(store, "POST", "endpoints", cluster)
    far = call(store, "POST", "endpoints", d.remote_endpoint("10.244.4.5", "192.168.2.20", guid))
    again = call(store, "POST", "endpoints", d.remote_endpoint("10.244.4.5", "192.168.2.20", guid))
    assert again == far  # Windows Server 2019 would make a second one
    port = {"InternalPort": 8080, "ExternalPort": 80}
    both = [far["ID"], pod]
    first = call(store, "POST", "loadbalancers", d.balancer(both, "10.96.0.10", Flags=1, port=port))
    port = {"InternalPort": 8080, "ExternalPort": 30080}
    call(store, "POST", "loadbalancers", d.balancer([pod], port=port))
    known = call(store, "GET", f"loadbalancers/{first['ID']}")
    assert known["FrontendVIPs"] == ["10.96.0.10"]


def test_flannel_again_finds_its_network() -> None:
    """A restart of flanneld makes no second network, and changes nothing."""
    store = Store(NODE)
    guid = flannel(store)
    added(store, guid, "10.244.4.0/24", "192.168.2.19", DR)
    before = share(store)
    assert store.enumerate("networks", {"Name": "flannel.4096"}) == [guid]
    call(store, "POST", f"networks/{guid}/modify", d.HOST_ROUTE)
    call(
        store,
        "POST",
        f"networks/{guid}/modify",
        d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR),
    )
    assert share(store) == before


def test_2000_services_in_one_batch() -> None:
    store = Store(NODE)
    call(store, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    ends = [
        d.remote_endpoint(f"10.245.{i >> 8}.{i & 255}", OWN)
        | {"ID": f"00000000-0000-0000-0000-{i:012}"}
        for i in range(1, 5001)
    ]
    balancers = [
        d.balancer([ends[2 * i]["ID"], ends[2 * i + 1]["ID"]], f"10.96.{i >> 8}.{i & 255}")
        | {"ID": f"00000000-0000-0000-0001-{i:012}"}
        for i in range(1, 2001)
    ]
    calls = [{"Path": "endpoints", "Body": end} for end in ends]
    calls += [{"Path": "loadbalancers", "Body": balancer} for balancer in balancers]
    call(store, "POST", "batch", calls)
    assert len(network(store).load_balancers) == 2000
