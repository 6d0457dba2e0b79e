"""NetworkPolicies as ACLs: what an engine lets pass is what the specification allows."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane import defaults
from dataplane.address import Vni
from dataplane.kubernetes.policies import Cluster, acls_of
from dataplane.lab import Lab
from dataplane.model import Backend, Endpoint, LoadBalancer, Network, Node, Tap, Underlay
from dataplane.packet import build, parse
from dataplane.reasons import Verdict
from tests.kube_objects import network_policy, pod
from tests.kube_oracle import allowed

Object = dict[str, Any]
Key = tuple[str, str]

PODS: dict[Key, str] = {
    ("x", "a"): "10.1.0.2",
    ("x", "b"): "10.1.0.3",
    ("y", "a"): "10.1.0.18",
    ("y", "c"): "10.1.0.19",
}
NAMED = [
    {"name": "web", "containerPort": 80},
    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
]
OWN_NAME = "kubernetes.io/metadata.name"
NAMESPACES = {
    name: {"metadata": {"name": name, "labels": {"team": team, OWN_NAME: name}}}
    for name, team in (("x", "red"), ("y", "blue"))
}
PROBES = [("TCP", 80), ("TCP", 81), ("UDP", 53)]


def pods(labels: dict[Key, dict[str, str]] | None = None) -> dict[Key, Object]:
    made = {}
    for key, address in PODS.items():
        own = (labels or {}).get(key, {"app": key[1]})
        item = pod(key[1], address, namespace=key[0], **own)
        web = NAMED[0] | {"containerPort": 81 if key == ("y", "c") else 80}
        item["spec"]["containers"] = [{"name": "c", "ports": [web, NAMED[1]]}]
        made[key] = item
    return made


class World:
    """The pods' endpoints with the ACLs of policies, all at one node."""

    def __init__(self, policies: list[Object], known: dict[Key, Object], **more: Any) -> None:
        named = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in policies}
        self.policies, self.pods = policies, known
        cluster = Cluster(named, known, NAMESPACES, **more)
        self.refused: dict[str, str] = {}
        endpoints = []
        for key, address in PODS.items():
            acls, refused = acls_of(cluster, key)
            self.refused |= refused
            name = "-".join(key)
            endpoints.append(
                Endpoint(name=name, addresses=(ip_address(address),), tap=Tap(name=name), acls=acls)
            )
        network = Network(
            name="net",
            vni=Vni(1),
            prefixes=(ip_network("10.1.0.0/16"),),
            endpoints=tuple(endpoints),
            load_balancers=more.get("balancers", ()),
        )
        underlay = Underlay(address=ip_address("192.0.2.1"))
        self.lab = Lab()
        self.lab.add(Node(name="n", underlay=underlay, networks=(network,)))
        self.network = defaults.resolve(self.lab.nodes["n"].model).networks[0]

    def send(self, source: Key, words: str) -> bool:
        """Whether it is forwarded."""
        name = "-".join(source)
        mac = next(e.mac for e in self.network.endpoints if e.name == name)
        assert mac is not None and self.network.dr_mac is not None
        frame = build(parse(words), mac, self.network.dr_mac)
        return self.lab.send("n", f"net/{name}", frame).verdict is Verdict.FORWARD

    def passes(self, source: Key, target: str, protocol: str, number: int) -> bool:
        syn = " syn" if protocol == "TCP" else ""
        return self.send(
            source, f"{protocol.lower()} {PODS[source]}:40000 > {target}:{number}{syn}"
        )

    def agrees(self) -> None:
        for source in PODS:
            for target, address in PODS.items():
                for protocol, number in PROBES if source != target else ():
                    connection = source, target, protocol, number
                    wanted = allowed(self.policies, self.pods, NAMESPACES, connection)
                    assert self.passes(source, address, protocol, number) == wanted, connection


# ---- any policy --------------------------------------------------------------------------------

LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("12"), max_size=2)
EXPRESSION = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from("ab"),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from("12"), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"key": st.sampled_from("ab"), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    ),
)
SELECTOR = st.fixed_dictionaries(
    {}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(EXPRESSION, max_size=1)}
)
SPACES = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"matchLabels": st.sampled_from([{"team": "red"}, {"team": "blue"}])}),
    st.just({"matchLabels": {"kubernetes.io/metadata.name": "y"}}),
)
BLOCK = st.fixed_dictionaries(
    {"cidr": st.sampled_from(["10.1.0.0/28", "10.1.0.16/28", "0.0.0.0/0", "10.1.0.3/32"])},
    optional={"except": st.lists(st.sampled_from(["10.1.0.2/31", "10.1.0.19/32"]), max_size=2)},
)
PEER = st.one_of(
    st.fixed_dictionaries({"podSelector": SELECTOR}),
    st.fixed_dictionaries({"namespaceSelector": SPACES}),
    st.fixed_dictionaries({"namespaceSelector": SPACES, "podSelector": SELECTOR}),
    st.fixed_dictionaries({"ipBlock": BLOCK}),
)
PORT = st.one_of(
    st.fixed_dictionaries({}, optional={"protocol": st.sampled_from(["TCP", "UDP"])}),
    st.fixed_dictionaries(
        {"port": st.sampled_from([80, 81, 53])},
        optional={"protocol": st.sampled_from(["TCP", "UDP"])},
    ),
    st.just({"port": 79, "endPort": 80}),
    st.sampled_from([{"port": "web"}, {"port": "dns", "protocol": "UDP"}, {"port": "nobody"}]),
)


def rule(peers: str) -> st.SearchStrategy[Object]:
    lists = {peers: st.lists(PEER, max_size=2), "ports": st.lists(PORT, max_size=2)}
    return st.fixed_dictionaries({}, optional=lists)


SPEC = st.fixed_dictionaries(
    {"podSelector": SELECTOR},
    optional={
        "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
        "ingress": st.lists(rule("from"), max_size=2),
        "egress": st.lists(rule("to"), min_size=1, max_size=2),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from("xy"), SPEC), max_size=3),
    st.fixed_dictionaries(dict.fromkeys(PODS, LABELS)),
)
def test_what_passes_is_what_the_specification_allows(
    specs: list[tuple[str, Object]], labels: dict[Key, dict[str, str]]
) -> None:
    policies = [
        {"metadata": {"name": f"p{i}", "namespace": space}, "spec": spec}
        for i, (space, spec) in enumerate(specs)
    ]
    world = World(policies, pods(labels))
    with world.lab:
        assert world.refused == {}
        world.agrees()


# ---- what everybody writes ---------------------------------------------------------------------

A, B, C = ("x", "a"), ("x", "b"), ("y", "c")
BLOCK_WITH_HOLE = {"cidr": "10.1.0.0/24", "except": ["10.1.0.3/32"]}
FROM_B = {"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}
APP_A = {"podSelector": {"matchLabels": {"app": "a"}}}


@pytest.mark.parametrize(
    ("spec", "open_to_a"),
    [
        pytest.param({"policyTypes": ["Ingress"]}, {("y", "a"): 0, B: 0, C: 0}, id="deny all"),
        pytest.param({"ingress": [{}]}, {("y", "a"): 1, B: 1, C: 1}, id="allow all"),
        pytest.param({"ingress": [{"from": [{"podSelector": {}}]}]}, {B: 1, C: 0}, id="namespace"),
        pytest.param(
            {"ingress": [FROM_B]},
            {B: 1, ("y", "a"): 0, C: 0},
            id="limit to an app",
        ),
        pytest.param(
            {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}]},
            {B: 0, C: 1, ("y", "a"): 1},
            id="from a namespace",
        ),
        pytest.param(
            {
                "ingress": [
                    {"from": [{"ipBlock": {"cidr": "10.1.0.0/24", "except": ["10.1.0.3/32"]}}]}
                ]
            },
            {B: 0, C: 1},
            id="a block without a hole",
        ),
        pytest.param({"ingress": [{"ports": [{"port": "web"}]}]}, {B: 1, C: 1}, id="a named port"),
        pytest.param({"ingress": [{"ports": [{"port": 443}]}]}, {B: 0, C: 0}, id="another port"),
    ],
)
def test_recipes(spec: Object, open_to_a: dict[Key, int]) -> None:
    world = World([network_policy("one", "x", **(APP_A | spec))], pods())
    with world.lab:
        for source, wanted in open_to_a.items():
            assert world.passes(source, PODS[A], "TCP", 80) == bool(wanted), source
        world.agrees()


def test_answers_pass_though_the_pod_may_begin_nothing() -> None:
    """Rules are stateful: what was let in is answered."""
    world = World([network_policy("quiet", "x", policyTypes=["Egress"])], pods())
    with world.lab:
        assert not world.passes(A, PODS[C], "TCP", 80)
        assert world.passes(C, PODS[A], "TCP", 80)
        assert world.send(A, f"tcp {PODS[A]}:80 > {PODS[C]}:40000 syn ack")


def test_a_service_is_open_where_all_its_pods_are() -> None:
    web = LoadBalancer(
        name="web",
        protocol="tcp",
        port=8000,
        vips=(ip_address("10.96.0.1"),),
        backends=tuple(Backend(address=ip_address(PODS[k]), port=80) for k in (B, ("y", "a"))),
    )
    rules = {"egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 80}]}]}
    spec = {"policyTypes": ["Egress"], **APP_A}
    for peers, wanted in (([{"namespaceSelector": {}}], True), ([{"podSelector": {}}], False)):
        rules["egress"][0]["to"] = peers
        world = World([network_policy("out", "x", **spec, **rules)], pods(), balancers=(web,))
        with world.lab:
            assert world.passes(A, "10.96.0.1", "TCP", 8000) == wanted


def test_the_own_node_reaches_a_closed_pod() -> None:
    own = (ip_network("10.1.0.19/32"),)
    world = World([network_policy("deny", "x", policyTypes=["Ingress"])], pods(), own=own)
    with world.lab:
        assert world.passes(C, PODS[A], "TCP", 80) and not world.passes(B, PODS[A], "TCP", 80)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"ports": [{"port": 80, "protocol": "SCTP"}]},
            "[0].ports[0]: ports of SCTP",
        ),
        (
            {"ports": [{"port": 80, "protocol": "DCCP"}]},
            "[0].ports[0]: ports of DCCP",
        ),
        ({"from": [{"ipBlock": {"cidr": "10.1.0.0/99"}}]}, "10.1.0.0/99"),
        ({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}]}, "Gt"),
        ({"from": [{"namespaceSelector": {}}], "ports": [{"port": 90, "endPort": 80}]}, "90-80"),
        ({"from": 7}, "int"),
        ({"ports": {"port": 80}}, "str"),
    ],
)
def test_what_cannot_be_said_stays_closed(rule: Object, message: str) -> None:
    odd = network_policy("odd", "x", **APP_A, ingress=[rule])
    fine = network_policy("fine", "x", **APP_A, ingress=[FROM_B])
    world = World([odd, fine], pods())
    with world.lab:
        assert message in world.refused["networkpolicy x/odd"]
        assert not world.passes(C, PODS[A], "TCP", 80)
        assert world.passes(B, PODS[A], "TCP", 80)  # as another policy says


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


RULE = st.fixed_dictionaries({}, optional={"from": JSON, "to": JSON, "ports": JSON})


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"podSelector": st.just({})},
        optional={
            "policyTypes": JSON,
            "ingress": JSON
            | st.lists(st.fixed_dictionaries({}, optional={"from": JSON, "ports": JSON})),
            "egress": JSON
            | st.lists(st.fixed_dictionaries({}, optional={"to": JSON, "ports": JSON})),
        },
    )
)
def test_no_policy_breaks_the_others(spec: Object) -> None:
    odd = {"metadata": {"name": "odd", "namespace": "x"}, "spec": spec}
    acls, _ = acls_of(Cluster({("x", "odd"): odd}, pods(), NAMESPACES), A)
    assert len({acl.name for acl in acls}) == len(acls)
