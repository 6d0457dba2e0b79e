"""HNS documents: what they become, how a node then forwards, and what is refused by name."""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane.address import parse_prefix
from dataplane.engine import Outcome
from dataplane.hns.calls import call, call_v1
from dataplane.hns.errors import HcnError
from dataplane.hns.normal import POLICIES, normal
from dataplane.hns.store import Store
from dataplane.hns.translate import Translator, share
from dataplane.ids import HOST, UNDERLAY
from dataplane.ingress import frame_at, owner_of, place_of
from dataplane.lab import Lab
from dataplane.model import Document, HostPort, Network, Node, Tap, Underlay
from dataplane.packet import describe, parse
from dataplane.reasons import Verdict
from dataplane.shares import compose
from tests import hns_documents as d

NODE = Node(
    name="win",
    underlay=Underlay(address=ip_address("10.0.133.170")),
    host_port=HostPort(
        address=ip_address("169.254.9.1"), peer=ip_address("169.254.9.2"), tap=Tap(name="host")
    ),
)
DR = "00:15:5d:67:64:7d"
OTHER = "0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0e002"


@pytest.fixture
def store() -> Store:
    """A node as flannel sets it up: a network, a host route, a peer; and win-overlay's pod."""
    made = Store(NODE)
    call(made, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    path = f"networks/{d.NET}/modify"
    call(made, "POST", path, d.HOST_ROUTE)
    call(made, "POST", path, d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR))
    call(made, "POST", "endpoints", d.pod("10.244.3.9"))
    return made


def network(store: Store) -> Network:
    (made,) = share(store).networks
    return made


class Replay:
    """A store's node in memory: packets in words, as endpoints and the underlay send them."""

    def __init__(self, store: Store, lab: Lab) -> None:
        self.node = compose(NODE, {"hns": share(store)})
        self.at = lab.add(self.node)
        lab.settle()

    def send(self, words: str, port: str | None = None) -> Outcome:
        spec, document = parse(words), Document(node=self.node)
        at, name = place_of(document, None, port or owner_of(document, None, spec))
        return self.at.engine.process_one(frame_at(spec, document, at, name), name)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def outer(outcome: Outcome) -> tuple[str, int]:
    """Outer destination and VNI."""
    assert (outcome.verdict, outcome.port) == (Verdict.FORWARD, UNDERLAY)
    return str(ip_address(outcome.frame[30:34])), int.from_bytes(outcome.frame[46:49])


def text(outcome: Outcome) -> str:
    return str(describe(outcome.frame)["text"])


# ---- the samples, in order ---------------------------------------------------------------------


def test_a_network_as_flannel_makes_it() -> None:
    store = Store(NODE)
    told = call(store, "POST", "networks", d.FLANNEL_NETWORK)
    by_type = {policy["Type"]: policy["Settings"] for policy in told["Policies"]}
    assert by_type["ProviderAddress"] == {"ProviderAddress": "10.0.133.170"}
    assert by_type["DrMacAddress"]["Address"].startswith("02-")
    assert by_type["NetAdapterName"] == {"NetworkAdapterName": "Ethernet"}
    assert call(store, "POST", "networks", d.FLANNEL_NETWORK) == told  # again is that one
    made = network(store)
    assert (made.name, int(made.vni)) == ("flannel.4096", 4096)
    assert made.prefixes == (parse_prefix("10.244.3.0/24"),)
    assert str(made.dr_mac).upper().replace(":", "-") == by_type["DrMacAddress"]["Address"]


def test_b_v1_network() -> None:
    store = Store(NODE)
    told = call_v1(store, "POST", "/networks", d.V1_NETWORK)
    assert told["Success"] is True
    assert told["Output"]["Subnets"] == d.V1_NETWORK["Subnets"]
    assert told["Output"]["ManagementIP"] == "10.0.133.170"
    assert int(network(store).vni) == 4096
    listed = call_v1(store, "GET", "/networks/")["Output"]
    assert [one["Name"] for one in listed] == ["vxlan0"]


def test_c_remote_subnets_by_value(store: Store) -> None:
    path = f"networks/{d.NET}/modify"
    assert [str(r.prefix) for r in network(store).remote_subnets] == ["10.244.4.0/24"]
    other = d.remote_subnet("10.244.4.0/24", "192.168.2.20", "00-15-5D-67-64-7E")
    call(store, "POST", path, other)  # the same prefix: in its place, in one step
    assert [str(r.provider_address) for r in network(store).remote_subnets] == ["192.168.2.20"]
    stale = d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR, verb="Remove")
    call(store, "POST", path, stale)  # what is not there any more takes nothing with it
    assert len(network(store).remote_subnets) == 1
    gone = d.remote_subnet("10.244.4.0/24", "192.168.2.20", "00:15:5d:67:64:7e", verb="Remove")
    call(store, "POST", path, gone)  # another spelling of the MAC
    call(store, "POST", path, gone)
    assert network(store).remote_subnets == ()


def test_c_update_replaces_all_of_a_type(store: Store) -> None:
    request = d.remote_subnet("10.244.7.0/24", "192.168.2.7", DR, verb="Update")
    call(store, "POST", f"networks/{d.NET}/modify", request)
    made = network(store)
    assert [str(r.prefix) for r in made.remote_subnets] == ["10.244.7.0/24"]
    assert made.host_route  # of another type


def test_c_vni_has_24_bits() -> None:
    store = Store(NODE)
    guid = call(store, "POST", "networks", d.network(16777215))["ID"]
    request = d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR, 16777215)
    call(store, "POST", f"networks/{guid}/modify", request)
    assert int(network(store).vni) == 16777215
    with pytest.raises(HcnError, match="0 to 16777215"):
        request = d.remote_subnet("10.244.4.0/24", "192.168.2.19", DR, 1 << 24)
        call(store, "POST", f"networks/{guid}/modify", request)


def test_d_host_route(store: Store, lab: Lab) -> None:
    assert network(store).host_route
    replay = Replay(store, lab)
    out = replay.send("icmp 169.254.9.2 > 10.244.3.9 echo", HOST)
    assert out.verdict is Verdict.FORWARD, out


def test_e_pod_reaches_peers_and_the_world(store: Store, lab: Lab) -> None:
    replay = Replay(store, lab)
    out = replay.send("tcp 10.244.3.9:4000 > 10.244.4.7:80 syn")
    assert outer(out) == ("192.168.2.19", 4096) and f"dmac {DR}" in text(out)
    world = replay.send("udp 10.244.3.9:4000 > 8.8.8.8:53")
    assert (world.verdict, world.port) == (Verdict.FORWARD, HOST)
    assert "169.254.9.1" in text(world)
    ping = replay.send("icmp 10.244.3.9 > 8.8.8.8 echo")  # which HNS cannot translate
    assert (ping.verdict, ping.port) == (Verdict.FORWARD, HOST)
    assert "169.254.9.1" in text(ping)


def serve(store: Store, *vips: str, **fields: Any) -> str:
    """Two backends: the pod of this node, and one elsewhere as kube-proxy knows it."""
    far = call(store, "POST", "endpoints", d.remote_endpoint("10.244.4.5", "192.168.2.19"))
    made = d.balancer([d.POD, far["ID"]], *vips, **fields)
    return str(call(store, "POST", "loadbalancers", made)["ID"])


def test_f_remote_endpoints_are_backends_and_no_ports(store: Store) -> None:
    serve(store, "10.96.0.10")
    made = network(store)
    assert len(made.endpoints) == 1 and len(made.remote_subnets) == 1
    (service,) = made.load_balancers
    assert [str(b.address) for b in service.backends] == ["10.244.3.9", "10.244.4.5"]


def test_f_outside_of_remote_subnets_it_is_one_itself(store: Store) -> None:
    far = d.remote_endpoint("10.9.9.9", "192.168.2.30", mac="02-42-0a-09-09-09")
    call(store, "POST", "endpoints", far)
    added = network(store).remote_subnets[-1]
    assert (str(added.prefix), str(added.provider_address)) == ("10.9.9.9/32", "192.168.2.30")
    assert added.dr_mac == "02:42:0a:09:09:09"


def test_g_balances_as_kube_proxy_asks(store: Store, lab: Lab) -> None:
    serve(store, "10.96.0.10", Flags=1, port={"DistributionType": 2})
    replay = Replay(store, lab)
    assert network(store).load_balancers[0].affinity == "source_ip"
    seen = set()
    for port in range(4000, 4040):
        out = replay.send(f"tcp 10.244.3.9:{port} > 10.96.0.10:8090 syn")
        seen.add(out.port)
        assert out.verdict is Verdict.FORWARD
        if out.port == UNDERLAY:  # a backend elsewhere sees the pod itself
            assert f"10.244.3.9:{port} > 10.244.4.5:8080" in text(out), text(out)
    assert len(seen) == 1  # one client, one backend


def test_g_spreads_flows_without_affinity(store: Store, lab: Lab) -> None:
    serve(store, "10.96.0.10")
    replay = Replay(store, lab)
    ways = [
        replay.send(f"tcp 10.244.3.9:{p} > 10.96.0.10:8090 syn").port for p in range(4000, 4100)
    ]
    assert 20 < ways.count(UNDERLAY) < 80


def test_g_no_front_end_is_a_node_port(store: Store, lab: Lab) -> None:
    serve(store, port={"ExternalPort": 30080})
    (service,) = network(store).load_balancers
    assert (service.vips, service.node_port) == ((), 30080)
    out = Replay(store, lab).send("tcp 169.254.9.2:4000 > 169.254.9.1:30080 syn", HOST)
    assert out.verdict is Verdict.FORWARD, out


def test_g_edits(store: Store) -> None:
    guid = serve(store, "10.96.0.10")
    changed = d.balancer([d.POD], "10.96.0.11")
    call(store, "POST", f"loadbalancers/{guid.upper()}/modify", changed)
    (service,) = network(store).load_balancers
    assert [str(vip) for vip in service.vips] == ["10.96.0.11"] and len(service.backends) == 1
    call(store, "DELETE", f"endpoints/{d.POD}")
    assert network(store).load_balancers == ()


def test_source_vip_endpoint_is_no_port(store: Store) -> None:
    """kube-proxy reserves its source address by an endpoint."""
    reserved = d.pod("10.244.3.2", guid=OTHER)
    call(store, "POST", "endpoints", reserved | {"Name": "source_vip"})
    assert len(network(store).endpoints) == 1


def policy_of_pod(store: Store, *policies: Any, verb: str = "Add") -> None:
    request = {
        "ResourceType": "Policy",
        "RequestType": verb,
        "Settings": {"Policies": list(policies)},
    }
    call(store, "POST", f"endpoints/{d.POD}/modify", request)


def test_h_acl(store: Store) -> None:
    policy_of_pod(store, d.ACL)
    policy_of_pod(store, d.ACL)
    (rule,) = network(store).endpoints[0].acls
    assert (rule.direction, rule.action, rule.priority, rule.protocol) == ("in", "allow", 200, 6)
    assert [str(p) for p in rule.local] == ["10.0.0.21/32", "192.168.100.0/24"]
    assert [str(p) for p in rule.remote_ports] == ["80", "8080"]
    other = json.loads(json.dumps(d.ACL))
    other["Settings"]["LocalAddresses"] = " 10.0.0.21/32, 192.168.100.0/24"
    policy_of_pod(store, other, verb="Remove")
    assert network(store).endpoints[0].acls == ()


def acl(action: str, direction: str, priority: int, **settings: Any) -> dict[str, Any]:
    told = {"Action": action, "Direction": direction, "Priority": priority, **settings}
    return {"Type": "ACL", "Settings": told}


def test_h_filters(store: Store, lab: Lab) -> None:
    policy_of_pod(
        store,
        acl("Block", "Out", 100, Protocols="6", RemotePorts="25,1000-1100"),
        acl("Block", "Out", 101, Protocols="252"),
        acl("Allow", "Out", 900, Protocols="256"),
    )
    replay = Replay(store, lab)
    verdicts = {
        words: replay.send(words).verdict
        for words in (
            "tcp 10.244.3.9:4000 > 10.244.4.7:25 syn",
            "tcp 10.244.3.9:4000 > 10.244.4.7:1050 syn",
            "tcp 10.244.3.9:4000 > 10.244.4.7:80 syn",
            "udp 10.244.3.9:4000 > 10.244.4.7:4789",
            "udp 10.244.3.9:4000 > 10.244.4.7:53",
        )
    }
    drop, forward = Verdict.DROP, Verdict.FORWARD
    assert list(verdicts.values()) == [drop, drop, forward, drop, forward]


def test_h_sets(store: Store, lab: Lab) -> None:
    sets = [
        {"Id": "bad", "PolicyType": "IPSET", "Values": "10.244.4.7,10.244.4.8"},
        {"Id": "worse", "PolicyType": "NESTEDIPSET", "Values": "bad"},
    ]
    policies = [{"Type": "SetPolicy", "Settings": settings} for settings in sets]
    request = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": policies}}
    call(store, "POST", f"networks/{d.NET}/modify", request)
    policy_of_pod(store, acl("Block", "Out", 1, RemoteAddresses="worse"), acl("Allow", "Out", 2))
    replay = Replay(store, lab)
    assert replay.send("udp 10.244.3.9:4000 > 10.244.4.8:53").verdict is Verdict.DROP
    assert replay.send("udp 10.244.3.9:4000 > 10.244.4.9:53").verdict is Verdict.FORWARD


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        ("udp 10.244.3.7:9 > 10.244.3.9:8080", Verdict.FORWARD),  # passed twice, then allowed
        ("udp 10.244.3.7:9 > 10.244.3.9:53", Verdict.DROP),  # passed twice, then blocked
        ("tcp 10.244.3.7:9 > 10.244.3.9:8080 syn", Verdict.DROP),  # by the last
        ("udp 10.244.4.7:9 > 10.244.3.9:8080", Verdict.DROP),  # by the first
    ],
)
def test_i_tiers(store: Store, lab: Lab, packet: str, verdict: Verdict) -> None:
    call(store, "POST", "endpoints", d.pod("10.244.3.7", guid=OTHER))
    policy_of_pod(store, *reversed(d.TIERS))  # Order tells, not the place
    replay = Replay(store, lab)
    at = UNDERLAY if "10.244.4.7" in packet else None
    assert replay.send(packet, at).verdict is verdict


@pytest.mark.parametrize("name", [n for n, kind in POLICIES.items() if kind.fate == "refused"])
def test_refused_by_name(store: Store, name: str) -> None:
    scope = POLICIES[name].scopes[-1]
    policy = {"Type": name, "Settings": {}}
    document = {"HostComputeNetwork": d.NET, "Policies": [policy]}
    with pytest.raises(HcnError, match=name) as caught:
        if scope == "endpoint":
            call(store, "POST", "endpoints", document)
        else:
            call(store, "POST", "networks", {"Policies": [policy]})
    assert caught.value.symbol == "HCN_E_REQUEST_UNSUPPORTED"
    assert caught.value.record()["ErrorCode"] == 0x803B0015


def test_j_proxy_is_refused_by_name(store: Store) -> None:
    with pytest.raises(HcnError, match="L4WFPPROXY is not supported: there is no L4 proxy"):
        policy_of_pod(store, d.PROXY)


def test_k_routes(store: Store, lab: Lab) -> None:
    trial = store.copy()
    call(trial, "POST", "routes", d.SDN_ROUTE)
    with pytest.raises(HcnError, match=r"169\.254\.169\.0/24 without NeedEncap is not supported"):
        share(trial)
    settings = {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}
    made = call(store, "POST", "routes", {"HostComputeEndpoints": [d.POD], "Setting": [settings]})
    assert made["Setting"] == [settings]
    nat = network(store).endpoints[0].outbound_nat
    assert nat is not None and parse_prefix("10.96.0.0/12") in nat.exceptions
    out = Replay(store, lab).send("udp 10.244.3.9:4000 > 10.96.0.1:53")
    assert out.verdict is Verdict.DROP or "udp 10.244.3.9:4000" in text(out)  # untranslated


def test_l_loopback_dsr(store: Store, lab: Lab) -> None:
    """A pod that is its own backend reaches itself by the VIP."""
    policy_of_pod(store, d.LOOPBACK)
    call(store, "POST", "loadbalancers", d.balancer([d.POD], "10.96.0.10", Flags=1))
    replay = Replay(store, lab)
    out = replay.send("tcp 10.244.3.9:4000 > 10.96.0.10:8090 syn")
    assert out.verdict is Verdict.FORWARD
    assert "> 10.244.3.9:8080" in text(out) and "10.244.3.2" in text(out), text(out)


def test_m_lease_data_is_a_remote_subnet(store: Store) -> None:
    """What a peer's lease says is what flannel writes into the policy."""
    request = d.remote_subnet("10.244.8.0/24", "192.168.2.8", d.LEASE["VtepMAC"], d.LEASE["VNI"])
    call(store, "POST", f"networks/{d.NET}/modify", request)
    assert network(store).remote_subnets[-1].dr_mac == d.LEASE["VtepMAC"]


def test_n_policies_of_cni(store: Store) -> None:
    """The delegate hands its policies on as they are written."""
    document = d.pod("10.244.3.7", guid=OTHER) | {"Policies": d.CNI["delegate"]["Policies"]}
    told = call(store, "POST", "endpoints", document)
    assert told["Policies"] == [
        {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["11.0.0.0/8", "192.168.0.0/16"]}},
        {
            "Type": "SDNRoute",
            "Settings": {"DestinationPrefix": "11.0.0.0/8", "NeedEncap": True},
        },
    ]


# ---- longest prefix, make before break ---------------------------------------------------------


def test_longest_prefix_and_not_the_last(store: Store, lab: Lab) -> None:
    path = f"networks/{d.NET}/modify"
    call(store, "POST", path, d.remote_subnet("10.244.4.128/25", "192.168.2.21", DR))
    call(store, "POST", path, d.remote_subnet("10.244.0.0/16", "192.168.2.22", DR))
    replay = Replay(store, lab)
    for address, provider in (("4.7", "2.19"), ("4.200", "2.21"), ("9.9", "2.22")):
        out = replay.send(f"udp 10.244.3.9:4000 > 10.244.{address}:53")
        assert outer(out) == (f"192.168.{provider}", 4096)


def test_what_stays_is_the_same_object(store: Store) -> None:
    serve(store, "10.96.0.10")
    translator = Translator()
    before = translator.share(store).networks[0]
    request = d.remote_subnet("10.244.9.0/24", "192.168.2.9", DR)
    call(store, "POST", f"networks/{d.NET}/modify", request)
    after = translator.share(store).networks[0]
    assert after.remote_subnets != before.remote_subnets
    assert after.endpoints[0] is before.endpoints[0]
    assert after.load_balancers[0] is before.load_balancers[0]


# ---- queries, errors ---------------------------------------------------------------------------


def test_queries(store: Store) -> None:
    serve(store, "10.96.0.10")
    query = {"SchemaVersion": d.VERSION, "Flags": 0, "Filter": '{"Name":"FLANNEL.4096"}'}
    assert store.enumerate("networks", query) == [d.NET]
    of_network = json.dumps({"Filter": json.dumps({"VirtualNetwork": d.NET.upper()})})
    assert len(store.enumerate("endpoints", of_network)) == 2
    assert store.enumerate("endpoints", {"ID": d.POD}) == [d.POD.lower()]
    assert store.enumerate("endpoints", {"Name": "nobody"}) == []
    with pytest.raises(HcnError, match="no filter 'Colour'"):
        store.enumerate("networks", {"Colour": "blue"})
    assert call(store, "GET", "features")["RemoteSubnet"] is True


@pytest.mark.parametrize(
    ("method", "path", "body", "symbol", "told"),
    [
        ("GET", f"networks/{OTHER}", None, "HCN_E_NETWORK_NOT_FOUND", OTHER),
        ("GET", "networks/4096", None, "HCN_E_GUID_CONVERSION_FAILURE", "no GUID"),
        ("GET", "bridges", None, "ERROR_NOT_FOUND", "bridges"),
        ("POST", "networks", {"Name": "n"}, "HCN_E_INVALID_NETWORK_TYPE", "NAT is not supported"),
        ("POST", "networks", [], "HCN_E_INVALID_JSON", "is no object"),
        ("POST", "networks", {"Colour": 1}, "HCN_E_INVALID_JSON_REFERENCE", "Colour"),
        ("POST", "endpoints", {}, "HCN_E_INVALID_ENDPOINT", "HostComputeNetwork is missing"),
        (
            "POST",
            "networks",
            {"Name": "Flannel.4096", "Type": "Overlay"},
            "HCN_E_NETWORK_ALREADY_EXISTS",
            "another network",
        ),
        (
            "POST",
            "loadbalancers",
            {"PortMappings": [{"Protocol": 6, "ExternalPort": 1, "Flags": 8}]},
            "HCN_E_REQUEST_UNSUPPORTED",
            "flag 8",
        ),
        ("POST", f"networks/{d.NET}/modify", {"RequestType": "Burn"}, "HCN_E_INVALID_JSON", "Burn"),
    ],
)
def test_errors(store: Store, method: str, path: str, body: Any, symbol: str, told: str) -> None:
    with pytest.raises(HcnError, match=told) as caught:
        call(store, method, path, body)
    assert caught.value.symbol == symbol


def test_a_network_goes_with_its_endpoints(store: Store) -> None:
    serve(store, "10.96.0.10")
    call(store, "DELETE", f"networks/{d.NET}")
    assert not any(store.objects.values())


def test_namespaces(store: Store) -> None:
    guid = call(store, "POST", "namespaces", {"Type": "Guest"})["ID"]
    request = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": d.POD}}
    told = call(store, "POST", f"namespaces/{guid}/modify", request)
    assert told["Resources"] == [{"Type": "Endpoint", "Data": {"ID": d.POD.lower()}}]
    tap = network(store).endpoints[0].tap
    assert tap is not None and tap.netns == guid
    call(store, "POST", f"namespaces/{guid}/modify", request | {"RequestType": "Remove"})
    tap = network(store).endpoints[0].tap
    assert tap is not None and tap.netns is None


def test_port_mapping(store: Store) -> None:
    policy = {"Type": "NAT", "Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8000}
    policy_of_pod(store, policy)
    (mapping,) = network(store).endpoints[0].port_mappings
    assert (mapping.protocol, mapping.port, mapping.target_port) == ("tcp", 8000, 80)


def test_host_route_asks_for_a_host_port(store: Store) -> None:
    store.node = replace(NODE, host_port=None)
    with pytest.raises(HcnError, match="give the node a host_port"):
        share(store)


def test_normal_form_is_one(store: Store) -> None:
    serve(store, "10.96.0.10")
    for kind, objects in store.objects.items():
        for document in objects.values():
            assert normal(kind, document) == document
    assert Store.loads(NODE, store.dumps()).objects == store.objects
