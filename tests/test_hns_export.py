"""Export and import of HNS documents are inverse up to the normal form."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.defaults import resolve
from dataplane.document import load
from dataplane.errors import DataplaneError
from dataplane.hns.calls import call, call_v1
from dataplane.hns.errors import HcnError
from dataplane.hns.export import created, detached, exported
from dataplane.hns.normal import key_of, normal
from dataplane.hns.normal import policy as read_policy
from dataplane.hns.store import KINDS, Store
from dataplane.hns.translate import share
from dataplane.hns.v1 import policy_of_v1, to_v1
from tests import hns_documents as d
from tests.test_hns import NODE

Strategy = st.SearchStrategy[Any]
octet = st.integers(0, 255)
ips4 = st.builds("{}.{}.{}.{}".format, st.integers(1, 223), octet, octet, st.integers(1, 254))
group = st.integers(0, 0xFFFF)
ips6 = st.sampled_from(("{:x}:{:x}::{:x}", "{:X}:0:{:x}:0000::{:x}")).flatmap(
    lambda form: st.builds(form.format, st.integers(0x2001, 0xFDFF), group, group)
)
ips = ips4 | ips6
prefixes = st.builds("{}/{}".format, ips4, st.integers(0, 32)) | st.builds(
    "{}/{}".format, ips6, st.integers(0, 128)
)
ports = st.integers(1, 65535)
vnis = st.integers(0, (1 << 24) - 1)
names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
guids = st.uuids().map(str)


def spelled(text: str) -> Strategy:
    return st.sampled_from((text.lower(), text.upper(), text.lower().replace("-", ":")))


macs = st.binary(min_size=6, max_size=6).map(lambda b: b.hex("-")).flatmap(spelled)


def commas(items: Strategy) -> Strategy:
    return st.lists(items.map(str), max_size=3).flatmap(
        lambda found: st.sampled_from(
            (",".join(found), ", ".join(found), ",".join(reversed(found)))
        )
    )


def policy(kind: str, **fields: Strategy) -> Strategy:
    """As v2 has it, with Data for Settings, flat, or wrapped."""

    def shapes(values: dict[str, Any]) -> Strategy:
        flat = {"Type": kind, **values}
        return st.sampled_from(
            (
                {"Type": kind, "Settings": values},
                {"Type": kind.upper(), "Data": values},
                flat,
                {"Name": "EndpointPolicy", "Value": flat},
            )
        )

    return st.fixed_dictionaries(fields).flatmap(shapes)


acl_fields = {
    "Protocols": st.sampled_from(("", "6", "17,6", 6, "256", "252", "1")),
    "Action": st.sampled_from(("Allow", "Block", "block", "Pass")),
    "Direction": st.sampled_from(("In", "Out", "out")),
    "LocalAddresses": commas(prefixes),
    "RemoteAddresses": commas(prefixes | ips),
    "LocalPorts": commas(ports),
    "RemotePorts": commas(ports),
    "Priority": st.integers(0, 65535),
}
tier_rule = st.fixed_dictionaries(
    {
        "TierAclRuleAction": st.sampled_from(("Allow", "Block", "Pass")),
        "Protocols": acl_fields["Protocols"],
        "RemoteAddresses": commas(prefixes),
        "Priority": st.integers(0, 65535),
    }
)
endpoint_policies = st.lists(
    st.one_of(
        policy("ACL", **acl_fields),
        policy("OutBoundNAT", Exceptions=st.lists(prefixes, max_size=3)),
        policy("OutBoundNAT", ExceptionList=st.lists(prefixes, max_size=3), VIP=ips),
        policy("SDNRoute", DestinationPrefix=prefixes, NeedEncap=st.booleans()),
        policy("ROUTE", DestinationPrefix=prefixes, NeedEncap=st.booleans()),
        policy("PA", PA=ips),
        policy("InterfaceConstraint", InterfaceGuid=guids, InterfaceLuid=ports),
        policy("PortMapping", Protocol=st.sampled_from((6, 17)), InternalPort=ports,
               ExternalPort=ports),
        policy("TierAcl", Name=names, Direction=acl_fields["Direction"], Order=ports,
               TierAclRules=st.lists(tier_rule, max_size=3)),
        policy("EncapOverhead", Overhead=st.integers(50, 100)),
    ),
    max_size=4,
)  # fmt: skip
network_policies = st.lists(
    st.one_of(
        policy("NetworkACL", **acl_fields),
        policy("DrMacAddress", Address=macs),
        policy("NetAdapterName", NetworkAdapterName=names),
        policy("HostRoute"),
        policy("VxlanPort", Port=ports),
        policy("AutomaticDNS", Enable=st.booleans()),
        policy("InterfaceConstraint", InterfaceAlias=names, InterfaceIndex=ports),
        policy(
            "SetPolicy",
            Id=names,
            PolicyType=st.sampled_from(("IPSET", "NESTEDIPSET", "ipset")),
            Values=commas(ips | prefixes | names),
        ),
        policy(
            "RemoteSubnetRoute",
            DestinationPrefix=prefixes,
            IsolationId=vnis,
            ProviderAddress=ips,
            DistributedRouterMacAddress=macs,
        ),
    ),
    max_size=4,
)
empty = st.sampled_from(({}, None))
subnets = st.fixed_dictionaries(
    {
        "IpAddressPrefix": prefixes,
        "Policies": policy("VSID", IsolationId=vnis).map(lambda made: [made]),
        "Routes": ips.map(lambda ip: [{"NextHop": ip, "DestinationPrefix": "0.0.0.0/0"}]),
    }
)


def _ipam(found: list[Any]) -> list[Any]:
    return [{"Type": "Static", "Subnets": found}]


documents = {
    "networks": st.fixed_dictionaries(
        {
            "ID": guids,
            "Name": names,
            "Type": st.sampled_from(("Overlay", "overlay")),
            "Policies": network_policies,
            "MacPool": empty,
            "Dns": empty,
            "Ipams": st.lists(subnets, max_size=2).map(
                lambda s: [{"Type": "Static", "Subnets": s}]
            ),
            "Flags": st.sampled_from((0, 8)),
            "Health": st.just({"Extra": {}}),
        }
    ),
    "endpoints": st.fixed_dictionaries(
        {
            "Name": names,
            "HostComputeNetwork": guids,
            "Policies": endpoint_policies,
            "IpConfigurations": st.lists(ips.map(lambda ip: {"IpAddress": ip}), max_size=2),
            "MacAddress": macs,
            "Flags": st.sampled_from((0, 1)),
        }
    ),
    "loadbalancers": st.fixed_dictionaries(
        {
            "HostComputeEndpoints": st.lists(guids, max_size=3),
            "SourceVIP": ips,
            "FrontendVIPs": st.lists(ips, max_size=2),
            "PortMappings": st.lists(
                st.fixed_dictionaries(
                    {
                        "Protocol": st.sampled_from((6, 17, "6")),
                        "InternalPort": ports,
                        "ExternalPort": ports,
                        "DistributionType": st.integers(0, 2),
                        "Flags": st.sampled_from((0, 1, 2, 16, 19)),
                    }
                ),
                max_size=2,
            ),
            "Flags": st.integers(0, 3),
        }
    ),
    "routes": st.fixed_dictionaries(
        {
            "HostComputeEndpoints": st.lists(guids, max_size=3),
            "Setting": st.lists(
                st.fixed_dictionaries(
                    {"DestinationPrefix": prefixes, "NeedEncap": st.booleans()},
                    optional={"NextHop": ips},
                ),
                max_size=3,
            ),
        }
    ),
    "namespaces": st.fixed_dictionaries(
        {
            "NamespaceId": st.integers(0, 1 << 16),
            "Type": st.sampled_from(("Host", "hostdefault", "GUEST", "GuestDefault")),
            "Resources": st.lists(
                st.fixed_dictionaries(
                    {
                        "Type": st.sampled_from(("Container", "endpoint")),
                        "Data": guids.map(lambda guid: {"ID": guid}),
                    }
                ),
                max_size=2,
            ),
        }
    ),
}
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def spelling_of(kind: str) -> Callable[[Callable[[Any], None]], Any]:
    return lambda test: MANY(given(documents[kind])(test))


def settled(kind: str, document: Any) -> None:
    made = normal(kind, document)
    assert normal(kind, made) == made
    assert normal(kind, json.loads(json.dumps(made))) == made


@spelling_of("networks")
def test_networks_have_one_normal_form(document: Any) -> None:
    settled("networks", document)


@spelling_of("endpoints")
def test_endpoints_have_one_normal_form(document: Any) -> None:
    settled("endpoints", document)


@spelling_of("loadbalancers")
def test_balancers_have_one_normal_form(document: Any) -> None:
    settled("loadbalancers", document)


@spelling_of("routes")
def test_routes_have_one_normal_form(document: Any) -> None:
    settled("routes", document)


@spelling_of("namespaces")
def test_namespaces_have_one_normal_form(document: Any) -> None:
    settled("namespaces", document)


def sent(store: Store, kind: str, document: Any) -> str:
    return str(call(store, "POST", kind, document)["ID"])


def distinct(given_policies: list[Any], scope: str) -> list[Any]:
    """One of each key: two are refused."""
    keys = [key_of(read_policy(scope)(each, "")) for each in given_policies]
    return [p for i, p in enumerate(given_policies) if keys[i] is None or keys[i] not in keys[:i]]


def meaning(store: Store) -> Any:
    """What it becomes, or why it becomes nothing."""
    try:
        return share(store).networks
    except HcnError as error:
        return str(error)


@MANY
@given(
    documents["networks"],
    st.lists(documents["endpoints"], max_size=3),
    st.lists(documents["loadbalancers"], max_size=2),
    st.lists(documents["routes"], max_size=2),
    st.lists(documents["namespaces"], max_size=2),
)
def test_export_of_import_is_the_normal_form(
    net: Any, ends: list[Any], balancers: list[Any], routes: list[Any], spaces: list[Any]
) -> None:
    """Each endpoint is in one namespace, and in every balancer and route that may name it."""
    store = Store(NODE)
    for made, scope in ((net, "network"), *((end, "endpoint") for end in ends)):
        made["Policies"] = distinct(made["Policies"], scope)
    guid = call(store, "POST", "networks", net)["ID"]
    known: list[str] = []
    for end in ends:
        if not end["IpConfigurations"] or end["Policies"]:
            end["Flags"] = 0  # a remote one has an address, and no rules
        known.append(sent(store, "endpoints", end | {"HostComputeNetwork": guid}))
    near = [made for made in known if not store.get("endpoints", made).get("Flags")]
    for balancer in balancers:
        sent(store, "loadbalancers", balancer | {"HostComputeEndpoints": known})
    for route in routes:
        sent(store, "routes", route | {"HostComputeEndpoints": near})
    for i, space in enumerate(spaces):
        resources = [{"Type": "Endpoint", "Data": {"ID": made}} for made in near[i::2]]
        sent(store, "namespaces", space | {"Resources": resources})
    again = Store(NODE)
    for kind in KINDS:
        for document in store.query(kind):
            made = detached(created(kind, document))
            call(again, made["Method"], made["Path"], json.loads(json.dumps(made["Body"])))
    assert again.objects == store.objects
    assert meaning(again) == meaning(store)
    for kind, objects in store.objects.items():
        for document in objects.values():
            assert normal(kind, document) == document


@MANY
@given(endpoint_policies)
def test_v1_and_back(given_policies: list[Any]) -> None:
    document = {"ID": d.POD, "HostComputeNetwork": d.NET, "Policies": given_policies}
    made = normal("endpoints", document)
    flat = to_v1("endpoints", made)["Policies"]
    again = normal("endpoints", {"Policies": [policy_of_v1(p, "p") for p in flat]})
    assert again.get("Policies") == made.get("Policies")


words = st.sampled_from(
    [
        "Policies",
        "Type",
        "Settings",
        "Data",
        "Value",
        "References",
        "Subnets",
        "Ipams",
        "ELB",
        "ACL",
        "TierAcl",
        "OutBoundNAT",
        "VSID",
        "Overlay",
        "RequestType",
        "ResourceType",
        "Add",
        "Remove",
        "Policy",
        "ID",
        "EncapOverhead",
        "IPAddress",
        "Add",
        "Path",
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | words | ips | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
roads = st.sampled_from((*KINDS, "policylists", "batch", "features", f"networks/{d.NET}/modify"))


@MANY
@given(st.sampled_from(("GET", "POST", "PUT", "DELETE")), roads, anything, st.booleans())
def test_whatever_is_sent_is_refused_in_words(method: str, path: str, body: Any, v1: bool) -> None:
    store = Store(NODE)
    call(store, "POST", "networks", {"ID": d.NET, **d.FLANNEL_NETWORK})
    try:
        if v1:
            call_v1(store, method, path, body)
        else:
            call(store, method, path, body)
        share(store)
    except DataplaneError as error:
        assert str(error)


def test_a_policy_of_the_model_as_hns() -> None:
    """A policy document goes through HNS and means the same."""
    (document,) = (load("policies/demo.yaml"),)
    node = document.node or document.nodes[0]
    made = exported(node)
    store = Store(node)
    for one in made.calls:
        call(store, one["Method"], one["Path"], one["Body"])
    before, after = resolve(node), resolve(replace(node, networks=share(store).networks))
    for old, new in zip(before.networks, after.networks, strict=True):
        assert (new.vni, new.prefixes, new.gateways, new.dr_mac) == (
            old.vni,
            old.prefixes,
            old.gateways,
            old.dr_mac,
        )
        assert [e.addresses for e in new.endpoints] == [e.addresses for e in old.endpoints]
        assert {(b.vips, b.port, b.protocol) for b in new.load_balancers} == {
            (b.vips, b.port, b.protocol) for b in old.load_balancers
        }
        assert new.remote_subnets[: len(old.remote_subnets)] == tuple(
            replace(r, dsr=False) for r in old.remote_subnets
        )
