"""Settings of HNS documents: each has its effect, is kept as the table in docs/hns.md says, or is
refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest

from dataplane.hns.calls import FEATURES, call
from dataplane.hns.errors import HcnError
from dataplane.hns.flags import FLAGS
from dataplane.hns.normal import POLICIES
from dataplane.hns.store import Store
from dataplane.hns.translate import share
from tests import hns_documents as d
from tests.test_hns import NODE, OTHER

TEXT = (Path(__file__).resolve().parent.parent / "docs/hns.md").read_text()
SPACE = "0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0f000"
KEPT = {
    ("networks", "Dns"): {"Dns": {"Domain": "cluster.local", "ServerList": ["10.96.0.10"]}},
    ("networks", "MacPool"): {
        "MacPool": {
            "Ranges": [
                {"StartMacAddress": "00-15-5D-52-C0-00", "EndMacAddress": "00-15-5D-52-CF-FF"}
            ]
        }
    },
    ("endpoints", "Dns"): {"Dns": {"Search": ["svc.cluster.local"]}},
    ("endpoints", "Routes"): {
        "Routes": [{"NextHop": "10.244.3.1", "DestinationPrefix": "10.0.0.0/8", "Metric": 3}]
    },
    ("endpoints", "PrefixLength"): {
        "IpConfigurations": [{"IpAddress": "10.244.3.9", "PrefixLength": 32}]
    },
    ("namespaces", "NamespaceId"): {"NamespaceId": 7},
    ("namespaces", "Type"): {"Type": "HostDefault"},
}


def placed(of: str, flags: int) -> dict[str, d.Document]:
    """The documents of a node, by kind, with these flags in one place."""
    made = {
        "networks": {"ID": d.NET, **d.network(4096), "Flags": 0},
        "endpoints": d.pod("10.244.3.9", d.NET),
        "loadbalancers": d.balancer([d.POD], "10.96.0.10") | {"ID": OTHER},
    }
    told: dict[str, Any] = {"Flags": flags}
    if of == "subnets":
        made["networks"]["Ipams"][0]["Subnets"][0] |= told
    elif of == "PortMappings":
        made["loadbalancers"]["PortMappings"][0] |= told
    elif of in POLICIES:
        port = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8000}
        settings = told | (port if of == "PortMapping" else {})
        made["endpoints"]["Policies"] = [{"Type": of, "Settings": settings}]
    else:
        made[of] |= told
    return made


def stored(documents: dict[str, d.Document]) -> Store:
    store = Store(NODE)
    for kind, document in documents.items():
        call(store, "POST", kind, document)
    return store


def test_every_flag_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) `(\w+)` \| (\w+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert rows == [
        (of, str(bit), *flag) for of, known in FLAGS.items() for bit, flag in known.items()
    ]


@pytest.mark.parametrize(
    ("of", "bit"), [(of, 1 << i) for of in FLAGS for i in (*range(6), 10, 13, 31)]
)
def test_flags(of: str, bit: int) -> None:
    """Kept ones change nothing and are told again; others are refused by name."""
    flag = FLAGS[of].get(bit)
    if flag is None or flag.fate == "refused":
        with pytest.raises(HcnError, match=flag.name if flag else f"flag {bit} ") as caught:
            stored(placed(of, bit))
        assert caught.value.symbol == "HCN_E_REQUEST_UNSUPPORTED"
    elif flag.fate == "kept":
        store = stored(placed(of, bit))
        assert share(store).networks == share(stored(placed(of, 0))).networks
        assert f'"Flags":{bit}' in store.dumps()


def test_features_and_flags_agree() -> None:
    assert FEATURES["DisableHostPort"] is (FLAGS["networks"][1024].fate != "refused")
    assert FEATURES["DSR"] is (FLAGS["loadbalancers"][1].fate != "refused")


def test_a_balancer_of_ipv6_has_vips_of_ipv6() -> None:
    with pytest.raises(HcnError, match="the flag IPv6, but a VIP of IPv4"):
        share(stored(placed("loadbalancers", 2)))


def test_a_node_port_of_ipv6_serves_backends_of_ipv6() -> None:
    documents = placed("loadbalancers", 2)
    both = [{"IpAddress": "10.244.3.9"}, {"IpAddress": "fd00::9"}]
    documents["endpoints"]["IpConfigurations"] = both
    documents["loadbalancers"]["FrontendVIPs"] = []
    (made,) = share(stored(documents)).networks[0].load_balancers
    assert [str(backend.address) for backend in made.backends] == ["fd00::9"]


def test_a_port_mapping_of_ipv6_is_met_at_ipv6() -> None:
    documents = placed("PortMapping", 2)
    with pytest.raises(HcnError, match=r"PortMapping 8000 has the flag IPv6, but is met at 169\."):
        share(stored(documents))
    documents["endpoints"]["Policies"][0]["Settings"]["VIP"] = "fd00::100"
    assert share(stored(documents)).networks[0].endpoints[0].port_mappings


@pytest.mark.parametrize("name", POLICIES)
def test_policies_of_remote_endpoints(name: str) -> None:
    """What only a port can have is refused by name, and never kept without effect."""
    kind = POLICIES[name]
    if "endpoint" not in kind.scopes or kind.fate == "refused":
        return
    documents = placed("endpoints", 1)
    documents["endpoints"]["Policies"] = [{"Type": name, "Settings": SETTINGS.get(name, {})}]
    if name == "ProviderAddress" or kind.fate == "kept":
        stored(documents)
        return
    with pytest.raises(HcnError, match=f"{name} is not supported for a remote endpoint") as caught:
        stored(documents)
    assert caught.value.symbol == "HCN_E_REQUEST_UNSUPPORTED"


SETTINGS: dict[str, d.Document] = {
    "ACL": d.ACL["Settings"],
    "TierAcl": d.TIERS[0]["Settings"],
    "SDNRoute": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True},
    "PortMapping": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8000},
    "EncapOverhead": {"Overhead": 50},
    "ProviderAddress": {"ProviderAddress": "192.168.2.19"},
}


def test_routes_and_namespaces_of_remote_endpoints() -> None:
    documents = placed("endpoints", 1)
    documents["endpoints"] = d.remote_endpoint("10.244.4.5", "192.168.2.19") | {"ID": d.POD}
    store = stored(documents)
    route = {"HostComputeEndpoints": [d.POD], "Setting": [SETTINGS["SDNRoute"]]}
    space = {"ID": SPACE, "Resources": [{"Type": "Endpoint", "Data": {"ID": d.POD}}]}
    for kind, document, named in (("routes", route, "a route"), ("namespaces", space, "namespace")):
        with pytest.raises(HcnError, match=f"{named}.* is not supported for a remote endpoint"):
            call(store.copy(), "POST", kind, document)


def test_a_next_hop_beside_encapsulation_is_refused() -> None:
    documents = placed("endpoints", 0)
    settings = SETTINGS["SDNRoute"] | {"NextHop": "10.0.0.1"}
    documents["endpoints"]["Policies"] = [{"Type": "SDNRoute", "Settings": settings}]
    with pytest.raises(HcnError, match=r"SDNRoute 10\.96\.0\.0/12: NextHop is not supported"):
        share(stored(documents))


def test_addresses_by_dhcp_and_other_routes_are_refused() -> None:
    documents = placed("networks", 0)
    documents["networks"]["Ipams"][0]["Type"] = "DHCP"
    with pytest.raises(HcnError, match="DHCP is not supported"):
        stored(documents)
    documents = placed("networks", 0)
    routes = documents["networks"]["Ipams"][0]["Subnets"][0]["Routes"]
    routes.append({"NextHop": "10.244.3.9", "DestinationPrefix": "10.7.0.0/16"})
    with pytest.raises(HcnError, match=r"route to 10\.7\.0\.0/16 is not supported"):
        share(stored(documents))


def test_every_kept_setting_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| [^|]* \|$", TEXT, re.MULTILINE)
    assert set(rows) == KEPT.keys() and len(rows) == len(KEPT)


@pytest.mark.parametrize(("kind", "setting"), KEPT)
def test_kept_settings(kind: str, setting: str) -> None:
    space: d.Document = {"ID": SPACE}
    plain = placed("networks", 0) | {"namespaces": space}
    changed = plain | {kind: plain[kind] | KEPT[kind, setting]}
    store = stored(changed)
    assert share(store).networks == share(stored(plain)).networks
    assert f'"{setting}"' in store.dumps()


def test_ports_that_v1_reserved() -> None:
    documents = placed("endpoints", 0)
    port = {"Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8000}
    documents["endpoints"]["Policies"] = [{"Type": "NAT", **port, "ExternalPortReserved": True}]
    (policy,) = stored(documents).get("endpoints", d.POD)["Policies"]
    assert policy["Settings"]["Flags"] == 4
