"""Services of Kubernetes as load balancers, by the rules of kube-proxy; and whatever JSON comes."""

import copy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.address import IP, Vni
from dataplane.engine import Engine
from dataplane.kubernetes.objects import Refused
from dataplane.kubernetes.services import Here, Services
from dataplane.model import (
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    Tap,
    Underlay,
)
from tests.kube_objects import Object, endpoint, endpoint_slice, service

HERE = Here("us", ip_address("169.254.1.1"))
VIP, VIP6, OUT = "10.96.0.10", "fd00:96::10", "192.0.2.10"
A, B, C = "10.244.1.2", "10.244.1.3", "10.244.2.4"
NODE = Node(
    name="us",
    underlay=Underlay(address=ip_address("192.0.2.1"), address6=ip_address("2001:db8::1")),
    host_port=HostPort(
        address=ip_address("169.254.1.1"), peer=ip_address("169.254.1.2"), tap=Tap(name="host")
    ),
    networks=(
        Network(
            name="kubernetes",
            vni=Vni(1),
            prefixes=(ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")),
            endpoints=(Endpoint(name="web", addresses=(ip_address(A),)),),
        ),
    ),
)


def known(*items: Object, here: Here = HERE) -> Services:
    """Of services and slices, told apart by what they have."""
    made = Services(here)
    for item in items:
        key = item["metadata"]["namespace"], item["metadata"]["name"]
        (made.put_service if "spec" in item else made.put_slice)(key, item)
    return made


def translated(*items: Object, here: Here = HERE) -> tuple[dict[str, LoadBalancer], Refused]:
    balancers, refused = known(*items, here=here).balancers()
    return {balancer.name: balancer for balancer in balancers}, refused


def servers(balancer: LoadBalancer) -> dict[str, bool]:
    """Address and port of each backend, and whether it drains."""
    return {f"{b.address}:{b.port}": b.drain for b in balancer.backends}


def vips(balancer: LoadBalancer) -> list[str]:
    return list(map(str, balancer.vips))


# ---- where clients meet a service ---------------------------------------------------------------


def test_a_cluster_ip_leads_to_the_slices_port() -> None:
    made, refused = translated(service("web", VIP), endpoint_slice("web", A, C))
    (balancer,) = made.values()
    assert (balancer.name, balancer.protocol, balancer.port) == ("default.web.80", "tcp", 80)
    assert (vips(balancer), balancer.node_port, balancer.affinity) == ([VIP], None, "none")
    assert servers(balancer) == {f"{A}:8080": False, f"{C}:8080": False}
    assert not balancer.local_only
    assert refused == {}


def test_an_old_object_has_one_cluster_ip() -> None:
    old = service("web", clusterIP=VIP)
    del old["spec"]["clusterIPs"]
    made, _ = translated(old)
    assert vips(made["default.web.80"]) == [VIP]


def test_node_port_external_ips_and_ingress() -> None:
    """`ipMode: Proxy` and host names are for others."""
    told = service(
        "web", VIP, type="LoadBalancer", externalIPs=[OUT],
        ports=[{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    )  # fmt: skip
    told["status"] = {
        "loadBalancer": {
            "ingress": [
                {"ip": "198.51.100.1"},
                {"ip": "198.51.100.2", "ipMode": "VIP"},
                {"ip": "198.51.100.3", "ipMode": "Proxy"},
                {"hostname": "lb.example"},
            ]
        }
    }
    made, refused = translated(told)
    (balancer,) = made.values()
    assert vips(balancer) == [VIP, OUT, "198.51.100.1", "198.51.100.2"]
    assert balancer.node_port == 30080
    assert refused == {}


def test_a_node_port_wants_a_host_port() -> None:
    told = service("web", VIP, ports=[{"port": 80, "nodePort": 30080}])
    made, refused = translated(told, here=Here("us"))
    assert made["default.web.80"].node_port is None
    assert "host_port" in refused["service default.web.80"]


def test_source_ranges_close_what_they_are_of() -> None:
    """Nobody may come by an address whose ranges are not looked at; all else stays."""
    told = service("web", VIP, externalIPs=[OUT], loadBalancerSourceRanges=["203.0.113.0/24"])
    told["status"] = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
    made, refused = translated(told)
    assert vips(made["default.web.80"]) == [VIP, OUT]
    assert list(refused) == ["service default.web: loadBalancerSourceRanges"]


@pytest.mark.parametrize(
    "told",
    [
        service("web", "None"),
        service("web", type="ExternalName", externalName="example.org"),
        {**service("web", VIP), "metadata": {
            "name": "web", "namespace": "default",
            "labels": {"service.kubernetes.io/service-proxy-name": "cilium"},
        }},
        {**service("web", VIP), "metadata": {
            "name": "web", "namespace": "default", "labels": {"service.kubernetes.io/headless": ""},
        }},
    ],
    ids=["headless", "external name", "another proxy's", "labelled headless"],
)  # fmt: skip
def test_what_is_not_for_a_proxy(told: Object) -> None:
    assert translated(told, endpoint_slice("web", A)) == ({}, {})


def test_a_headless_slice_is_nobodys() -> None:
    of = endpoint_slice("web", A)
    of["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
    made, _ = translated(service("web", VIP), of)
    assert servers(made["default.web.80"]) == {}


def test_protocols() -> None:
    """DNS has one number twice; SCTP has no word here, and is told by name."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "sig", "port": 9, "protocol": "SCTP"},
    ]
    of = endpoint_slice(
        "dns",
        A,
        ports=[{"name": p["name"], "port": 1053, "protocol": p["protocol"]} for p in ports],
    )
    made, refused = translated(service("dns", VIP, ports=ports), of)
    assert {name: b.protocol for name, b in made.items()} == {
        "default.dns.dns": "udp",
        "default.dns.dns-tcp": "tcp",
    }
    assert all(servers(b) == {f"{A}:1053": False} for b in made.values())
    assert refused == {"service default.dns.sig": "SCTP is not balanced"}


# ---- slices --------------------------------------------------------------------------------------


def test_a_named_port_has_another_number_in_each_slice() -> None:
    """Two generations of pods while they are rolled over."""
    told = service("web", VIP, ports=[{"name": "http", "port": 80, "targetPort": "web"}])
    old = endpoint_slice("web", A, name="1", ports=[{"name": "http", "port": 8080}])
    new = endpoint_slice("web", C, name="2", ports=[{"name": "http", "port": 9090}])
    other = endpoint_slice("web", B, name="3", ports=[{"name": "admin", "port": 1}])
    made, _ = translated(told, old, new, other)
    assert servers(made["default.web.http"]) == {f"{A}:8080": False, f"{C}:9090": False}


def test_slices_are_joined_and_each_server_counts_once() -> None:
    """A server in two slices, as when one is cut in two, is ready if either says so."""
    first = endpoint_slice("web", A, endpoint(B, ready=False, serving=False), name="1")
    second = endpoint_slice("web", A, B, name="2")
    elsewhere = endpoint_slice("web", C, name="3", namespace="other")
    names = endpoint_slice("web", "pod.example", name="4", family="FQDN")
    made, refused = translated(service("web", VIP), first, second, elsewhere, names)
    assert servers(made["default.web.80"]) == {f"{A}:8080": False, f"{B}:8080": False}
    assert refused == {}


def test_null_is_left_out() -> None:
    of = endpoint_slice("web", {"addresses": [A], "conditions": None, "nodeName": None})
    empty = endpoint_slice("web", name="2") | {"endpoints": None, "ports": None}
    told = service("web", VIP, externalIPs=None, sessionAffinityConfig=None)
    made, refused = translated(told | {"status": None}, of, empty)
    assert servers(made["default.web.80"]) == {f"{A}:8080": False}
    assert refused == {}


READY: dict[str, bool] = {"ready": True}
ENDING = {"ready": False, "serving": True, "terminating": True}
ENDED = {"ready": False, "serving": False, "terminating": True}
SICK = {"ready": False, "serving": False, "terminating": False}
PUBLISHED = {"ready": True, "serving": True, "terminating": True}  # publishNotReadyAddresses


@pytest.mark.parametrize(
    ("first", "second", "drains"),
    [
        (READY, READY, (False, False)),
        (READY, ENDING, (False, True)),
        (READY, SICK, (False, True)),
        (READY, ENDED, (False, True)),
        (PUBLISHED, ENDING, (False, True)),
        (ENDING, ENDING, (False, False)),
        (ENDING, ENDED, (False, True)),
        (ENDING, SICK, (False, True)),
        (SICK, ENDED, (True, True)),
    ],
)
def test_who_gets_new_flows(
    first: dict[str, bool], second: dict[str, bool], drains: tuple[bool, bool]
) -> None:
    """Ready ones; without any, those that end and still serve. Others keep the flows they have."""
    of = endpoint_slice("web", endpoint(A, **first), endpoint(C, **second))
    made, _ = translated(service("web", VIP), of)
    assert tuple(servers(made["default.web.80"]).values()) == drains


# ---- policies of traffic ------------------------------------------------------------------------


def at(node: str, address: str, **conditions: bool) -> Object:
    return endpoint(address, **conditions) | {"nodeName": node}


@pytest.mark.parametrize("inside", ["Cluster", "Local", None])
@pytest.mark.parametrize("outside", ["Cluster", "Local", None])
def test_local_is_this_nodes(inside: str | None, outside: str | None) -> None:
    told = service(
        "web", VIP, externalIPs=[OUT], ports=[{"port": 80, "nodePort": 30080}],
        internalTrafficPolicy=inside, externalTrafficPolicy=outside,
    )  # fmt: skip
    made, _ = translated(told, endpoint_slice("web", at("us", A), at("them", C)))
    wanted = {True: {f"{A}:8080": False}, False: {f"{A}:8080": False, f"{C}:8080": False}}
    met = {
        vip: (servers(balancer), balancer.local_only, balancer.node_port)
        for balancer in made.values()
        for vip in vips(balancer)
    }
    for vip, policy in ((VIP, inside), (OUT, outside)):
        near = policy == "Local"
        assert met[vip][:2] == (wanted[near], near)
    assert met[OUT][2] == 30080
    assert (met[VIP][2] == 30080) == (inside == outside or "Local" not in (inside, outside))


def test_local_servers_that_end_serve_while_others_are_ready_elsewhere() -> None:
    """KEP-1669: each policy looks at its own servers only."""
    told = service("web", VIP, externalIPs=[OUT], externalTrafficPolicy="Local")
    made, _ = translated(told, endpoint_slice("web", at("us", A, **ENDING), at("them", C)))
    assert servers(made["default.web.80"]) == {f"{A}:8080": True, f"{C}:8080": False}
    assert servers(made["default.web.80.outside"]) == {f"{A}:8080": False}


def test_affinity() -> None:
    """A timeout of one's own has no word; the API's default is met by whatever is longer."""
    by_default = {"clientIP": {"timeoutSeconds": 10800}}
    made, refused = translated(
        service("web", VIP, sessionAffinity="ClientIP", sessionAffinityConfig=by_default)
    )
    assert made["default.web.80"].affinity == "source_ip"
    assert refused == {}
    short = {"clientIP": {"timeoutSeconds": 60}}
    made, refused = translated(
        service("web", VIP, sessionAffinity="ClientIP", sessionAffinityConfig=short)
    )
    assert made["default.web.80"].affinity == "source_ip"
    assert list(refused) == ["service default.web: timeoutSeconds 60"]


def test_dual_stack() -> None:
    """A family without an address has no servers; its slices refuse nothing."""
    four, six = (
        endpoint_slice("web", A, name="4"),
        endpoint_slice("web", "fd00:244::7", name="6", family="IPv6"),
    )
    both = {f"{A}:8080": False, "fd00:244::7:8080": False}
    made, _ = translated(service("web", VIP, VIP6), four, six)
    assert vips(made["default.web.80"]) == [VIP, VIP6]
    assert servers(made["default.web.80"]) == both
    told = service("web", VIP, VIP6, externalIPs=[OUT], externalTrafficPolicy="Local")
    made, _ = translated(told, *(e | {"endpoints": [at("us", e["endpoints"][0]["addresses"][0])]}
                                 for e in (four, six)))  # fmt: skip
    assert servers(made["default.web.80"]) == both
    assert servers(made["default.web.80.outside"]) == {f"{A}:8080": False}
    assert committed(tuple(made.values())) == 2


# ---- many, and one after the other --------------------------------------------------------------


def test_what_does_not_change_stays_the_same_object() -> None:
    services = known(service("a", VIP), service("b", "10.96.0.11"), endpoint_slice("b", A))
    before, _ = services.balancers()
    services.put_slice(("default", "b-1"), endpoint_slice("b", A, C))
    after, _ = services.balancers()
    assert after[0] is before[0]
    assert servers(after[1]) == {f"{A}:8080": False, f"{C}:8080": False}
    services.put_slice(("default", "b-1"), endpoint_slice("a", A))  # another service's now
    moved, _ = services.balancers()
    assert [len(b.backends) for b in moved] == [1, 0]
    services.put_service(("default", "a"), None)
    services.put_slice(("default", "b-1"), None)
    assert [b.name for b in services.balancers()[0]] == ["default.b.80"]


def test_a_listing_replaces_all() -> None:
    """As a relist after 410: what is not in it has gone meanwhile, slices too."""
    services = known(service("a", VIP), endpoint_slice("a", A), service("b", "10.96.0.11"))
    services.balancers()
    services.replace_services({("default", "a"): service("a", VIP)})
    services.replace_slices({("default", "a-2"): endpoint_slice("a", C, name="a-2")})
    (balancer,), _ = services.balancers()
    assert servers(balancer) == {f"{C}:8080": False}


@pytest.mark.parametrize(
    "second",
    [
        service("b", VIP),
        service("b", "10.96.0.11", externalIPs=[VIP]),
        service("b", "10.96.0.11", ports=[{"port": 80, "nodePort": 30080}]),
        service("b", "169.254.1.1", ports=[{"port": 30080}]),
        service("b", "10.96.0.11", "10.96.0.12", ports=[{"port": 80}, {"port": 80}]),
    ],
    ids=["VIP", "external IP", "node port", "the host port's address", "itself"],
)
def test_two_of_one_place(second: Object) -> None:
    """The first by name has it, the other is told by name; when the first goes it is the other's.
    The API server sees to cluster IPs and node ports only."""
    first = service("a", VIP, ports=[{"port": 80, "nodePort": 30080}])
    services = known(first, second)
    balancers, refused = services.balancers()
    assert committed(balancers) == len(balancers)
    assert balancers[0].name == "default.a.80"
    assert any(name.startswith("service default.b.") for name in refused)
    services.put_service(("default", "a"), None)
    assert "default.b" in services.balancers()[0][0].name


KEYS = [("a", "b.c"), ("a.b", "c"), ("a", "c")]  # the first two call their balancers the same
SERVICES = [
    service("", *ips, ports=[{"port": 80} | port], **more)
    for ips in ([VIP], [VIP, "10.96.0.11"], ["169.254.1.1"])
    for port in ({}, {"nodePort": 80}, {"protocol": "SCTP"}, {"protocol": "DCCP"})
    for more in ({}, {"externalIPs": [OUT], "externalTrafficPolicy": "Local"})
]
SLICES = [endpoint_slice(name, address) for _, name in KEYS for address in (A, B, "x", "y")]


def changes_of(kind: str, items: list[Object]) -> st.SearchStrategy[tuple[str, Any, bool]]:
    """What comes, or goes where there is None; and whether that is all there is."""
    come = st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(items), min_size=1)
    return st.tuples(st.just(kind), come, st.booleans())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(changes_of("service", SERVICES) | changes_of("slice", SLICES), max_size=12), st.data()
)
def test_only_what_there_is_counts(
    changes: list[tuple[str, Any, bool]], data: st.DataObject
) -> None:
    """Balancers, and what is refused, are those of the objects at hand, whatever came before."""
    grown, there = Services(HERE), {"service": dict[Any, Object](), "slice": dict[Any, Object]()}
    for kind, come, is_all in changes:
        after = come if is_all else there[kind] | come
        there[kind] = {key: item for key, item in after.items() if item is not None}
        if is_all:
            getattr(grown, f"replace_{kind}s")(there[kind])
        else:
            for key, item in come.items():
                getattr(grown, f"put_{kind}")(key, item)
        if data.draw(st.booleans()):
            fresh = Services(HERE)
            fresh.replace_services(there["service"])
            fresh.replace_slices(there["slice"])
            (balancers, refused), wanted = grown.balancers(), fresh.balancers()
            assert (balancers, [*refused.items()]) == (wanted[0], [*wanted[1].items()])


def test_long_names_stay_apart() -> None:
    long = "x" * 63
    ports = [{"name": f"{'p' * 14}{i}", "port": 80 + i} for i in range(2)]
    made, _ = translated(service(long, VIP, namespace=long, ports=ports))
    assert len(made) == 2
    assert committed(tuple(made.values())) == 2


# ---- hostile -------------------------------------------------------------------------------------


def committed(balancers: tuple[LoadBalancer, ...]) -> int:
    """How many; raises where the policy is refused."""
    with Engine(max_flows=64) as engine:
        network = replace(NODE.networks[0], load_balancers=balancers)
        engine.plan(replace(NODE, networks=(network,))).commit()
    return len(balancers)


def bad(path: str, value: object) -> list[Object]:
    """A service and a slice of it, with that value at a place of either."""
    whole: Any = [
        service("web", VIP, externalIPs=[OUT], ports=[{"name": "", "port": 80, "nodePort": 30080}]),
        endpoint_slice("web", A),
    ]
    *way, last = [int(word) if word.isdecimal() else word for word in path.split(".")]
    place = whole
    for word in way:
        place = place[word]
    place[last] = value
    made: list[Object] = whole
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("0.spec.ports.0.port", value) for value in ("80", 0, 65536, -1, 8.5, True, None)),
        *(("0.spec.ports.0.nodePort", value) for value in ("x", 70000, [1])),
        *(("0.spec.clusterIPs", value) for value in (["x"], [7], "10.0.0.1", [["10.0.0.1"]], 1)),
        *(("0.spec.clusterIPs", [ip]) for ip in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "ff02::1")),
        *(("0.spec.externalIPs", value) for value in ([None], {"a": 1}, ["::ffff:1.2.3.4"])),
        *(("0.spec.ports", value) for value in ("x", [1], {"port": 80})),
        ("0.spec.ports.0.name", "a b/c"),
        ("0.spec.ports.0.protocol", ["TCP"]),
        *(("1.endpoints.0.addresses", value) for value in (["10.0.0.0/8"], [0], ["240.0.0.1"])),
        *(("1.ports.0.port", value) for value in ("http", 0, 1 << 20)),
        ("1.endpoints", [None]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_and_refuses_no_other(path: str, value: object) -> None:
    fine = service("zz", "10.96.0.99"), endpoint_slice("zz", C)
    balancers, refused = known(*bad(path, value), *fine).balancers()
    *others, fine_one = balancers
    assert (fine_one.name, len(fine_one.backends)) == ("default.zz.80", 1)
    assert [len(b.backends) for b in others] == ([] if path.startswith("0") else [0])
    whose = "service default" if path.startswith("0") else "endpointslice default/web-1"
    assert any(name.startswith(whose) and "web" in name for name in refused)
    assert committed(balancers) == len(balancers)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70000)
    | st.sampled_from([VIP, OUT, A, VIP6, "None", "", "Local", "TCP", "SCTP", "web", "127.0.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "port", "ip", "addresses"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything in a JSON value, but for what names the objects."""
    found = [way] if way else []
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else listed:
        if key not in ("name", "namespace") or "metadata" not in way:
            found += places(inner, (*way, key))
    return found


SOUND: Any = [
    service("a", VIP, VIP6, externalIPs=[OUT], ports=[{"port": 80, "nodePort": 30080}]),
    service("b", "10.96.0.11", sessionAffinity="ClientIP", externalTrafficPolicy="Local"),
    endpoint_slice("a", at("us", A), at("them", C, **ENDING)),
    endpoint_slice("b", A, endpoint(B, **SICK)),
]
SOUND[1]["status"] = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
PLACES = [way for way in places(SOUND) if len(way) > 1 and way[1:] != ("metadata",)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_any_json_is_translated_or_told(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Never an exception, never a commit that is refused."""
    whole = copy.deepcopy(SOUND)
    for (*way, last), value in changes:
        place = whole
        for key in way:
            nested = isinstance(place, dict) and key in place
            nested = nested or (
                isinstance(place, list) and isinstance(key, int) and key < len(place)
            )
            place = place[key] if nested else None
        if isinstance(place, dict) or (isinstance(place, list) and last in range(len(place))):
            place[last] = value
    services = Services(HERE)
    for i, (name, item) in enumerate(zip(("a", "b", "a-1", "b-1"), whole, strict=True)):
        (services.put_service if i < 2 else services.put_slice)(("default", name), item)
    balancers, _ = services.balancers()
    assert committed(balancers) == len(balancers)


def test_the_sound_ones_are_all_taken() -> None:
    """What the examples above begin with."""
    services = Services(HERE)
    services.replace_services({("default", "a"): SOUND[0], ("default", "b"): SOUND[1]})
    services.replace_slices({("default", "a-1"): SOUND[2], ("default", "b-1"): SOUND[3]})
    balancers, refused = services.balancers()
    assert (committed(balancers), refused) == (3, {})


def test_addresses_of_any_family_are_ours() -> None:
    """The oracle of families: no balancer has a server that none of its clients can reach."""
    told = service("web", VIP6, ports=[{"port": 80, "nodePort": 30080}])
    made, _ = translated(told, endpoint_slice("web", A), here=Here("us"))
    reached: set[IP] = {b.address for b in made["default.web.80"].backends}
    assert reached == set()
    made, _ = translated(told, endpoint_slice("web", A))
    assert servers(made["default.web.80"]) == {f"{A}:8080": False}  # by the node port
