"""Nodes of a cluster as flannel's subnet manager annotates them, and this one among them."""

import json
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from dataplane.address import Mac
from dataplane.flannel.documents import Lease
from dataplane.kubernetes import nodes
from tests.kube_objects import FLANNEL, Object, node

MAC = Mac("02:00:00:00:00:07")
PUBLIC, PUBLIC6 = IPv4Address("192.0.2.7"), IPv6Address("2001:db8::7")
DUAL = ["10.244.7.0/24", "fd00:244:7::/64"]

# what flannel writes for a dual-stack node (pkg/subnet/kube/annotations.go)
WRITTEN = {
    f"{FLANNEL}kube-subnet-manager": "true",
    f"{FLANNEL}backend-type": "vxlan",
    f"{FLANNEL}backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}',
    f"{FLANNEL}backend-v6-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}',
    f"{FLANNEL}public-ip": "192.0.2.7",
    f"{FLANNEL}public-ipv6": "2001:db8::7",
}


def dual(**annotations: str) -> Object:
    told = node("seven", DUAL[0])
    told["spec"]["podCIDRs"] = DUAL
    told["metadata"]["annotations"] = {
        FLANNEL + k.replace("_", "-"): v for k, v in annotations.items()
    }
    return told


def own(told: Object, public6: IPv6Address | None = PUBLIC6) -> Lease:
    return nodes.own_lease(told, PUBLIC, public6, MAC, 1)


def refusal(told: Object) -> str:
    found, refused = nodes.leases([("x", told)], "us")
    assert found == []
    (why,) = refused.values()
    return why


def test_what_is_written_is_flannels_and_reads_back() -> None:
    lease = own(dual())
    assert nodes.annotated(lease) == WRITTEN
    told = dual()
    told["metadata"]["annotations"] = WRITTEN
    assert nodes.lease_of(told) == lease


def test_one_stack_writes_nothing_of_the_other() -> None:
    for lease in (own(node("seven", DUAL[0])), own(dual(), public6=None)):
        assert lease.subnet.v6 is None
        assert not any("v6" in name for name in nodes.annotated(lease))


def test_a_patch_is_of_what_differs_only() -> None:
    """Nothing, where the node says so already: other annotations are none of ours."""
    told = dual(other="stays")
    lease = own(told)
    change = nodes.patch_of(told, lease)
    assert change == {"metadata": {"annotations": WRITTEN}}
    told["metadata"]["annotations"] |= WRITTEN
    assert nodes.patch_of(told, lease) is None
    told["metadata"]["annotations"][f"{FLANNEL}public-ip"] = "192.0.2.8"
    assert nodes.patch_of(told, lease) == change


def test_an_overwritten_public_ip_is_written() -> None:
    """By who knows the node's address behind a NAT."""
    told = dual(public_ip_overwrite="203.0.113.1", public_ipv6_overwrite="2001:db8::ff")
    lease = own(told)
    written = nodes.annotated(lease)
    assert written[f"{FLANNEL}public-ip"] == "203.0.113.1"
    assert written[f"{FLANNEL}public-ipv6"] == "2001:db8::ff"
    with pytest.raises(ValueError, match=r"203\.0\.113"):
        own(dual(public_ip_overwrite="203.0.113"))


def test_peers_are_reached_where_they_say_not_where_they_should_have() -> None:
    """flannel's peers look at public-ip alone: the overwrite is for the node itself."""
    told = node("x", "10.244.2.0/24", "192.0.2.2", str(MAC))
    told["metadata"]["annotations"][f"{FLANNEL}public-ip-overwrite"] = "203.0.113.1"
    ((lease,), refused) = nodes.leases([("x", told)], "us")
    assert (lease.public_ip, lease.mac, refused) == (IPv4Address("192.0.2.2"), MAC, {})


def test_the_latest_node_of_an_address_comes_first() -> None:
    """A machine that was made anew, whose old object is still there: its new VtepMAC holds."""
    made = []
    for name, created in (("a-new", "2026-03-01T00:00:00Z"), ("b-old", "2025-03-01T00:00:00Z"),
                          ("c-newest", "2026-11-01T00:00:00Z"), ("d-fake", None)):  # fmt: skip
        told = node(name, f"10.244.{len(made)}.0/24", "192.0.2.2", str(MAC))
        told["metadata"]["creationTimestamp"] = created
        made.append((name, told))
    found, _ = nodes.leases(made, "us")
    assert [lease.subnet.key() for lease in found] == [
        f"10.244.{i}.0-24" for i in (2, 0, 1, 3)
    ]  # fmt: skip


def test_flannels_fake_node() -> None:
    """dist/fake-node.yaml: a node without a kubelet, which has podCIDR alone, not podCIDRs."""
    told = node("fake", "10.244.9.0/24", "192.0.2.9", "02:00:00:00:00:09")
    del told["spec"]["podCIDRs"]
    ((lease,), _) = nodes.leases([("fake", told)], "us")
    assert lease.subnet.v4 == ip_network("10.244.9.0/24")


def test_who_is_no_peer_yet_is_not_told() -> None:
    """Ourselves, a node that flannel has not been on, one without a subnet."""
    whole = node("x", "10.244.2.0/24", "192.0.2.2", str(MAC))
    bare = node("x", "", "192.0.2.2", str(MAC))
    assert nodes.leases([("us", whole), ("x", node("x", "10.244.3.0/24")), ("y", bare)], "us") == (
        [],
        {},
    )
    windows = node("x", "10.244.2.0/24", "192.0.2.2", "")
    ((lease,), refused) = nodes.leases([("x", windows)], "us")
    assert (lease.mac, refused) == (None, {})  # waited for


def test_what_cannot_be_followed_is_told() -> None:
    told = node("x", "10.244.2.0/24", "192.0.2.2", str(MAC))
    note = told["metadata"]["annotations"]
    note[f"{FLANNEL}backend-type"] = "host-gw"
    assert "host-gw" in refusal(told)
    note[f"{FLANNEL}backend-type"] = "vxlan"
    note[f"{FLANNEL}backend-data"] = "{"
    assert "backend-data" in refusal(told)
    note[f"{FLANNEL}backend-data"] = "[" * 100_000
    assert "backend-data" in refusal(told)
    note[f"{FLANNEL}backend-data"] = "[]"
    assert refusal(told)
    del note[f"{FLANNEL}public-ip"]
    note[f"{FLANNEL}backend-data"] = '{"VtepMAC":"02:00:00:00:00:02"}'
    assert "publicip is missing" in refusal(told)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec", None),
        ("spec.podCIDRs", 7),
        ("spec.podCIDRs", {"a": 1}),
        ("spec.podCIDRs", ["10.244.0.0/24", "10.245.0.0/24"]),
        ("spec.podCIDRs", ["x"]),
        ("spec.podCIDRs", ["10.244.2.1/24"]),
        ("metadata.annotations", ["x"]),
        (f"metadata.annotations|{FLANNEL}backend-data", 5),
        (f"metadata.annotations|{FLANNEL}backend-data", {"VtepMAC": "x"}),
        (f"metadata.annotations|{FLANNEL}public-ip", ["192.0.2.2"]),
        (f"metadata.annotations|{FLANNEL}public-ip", "192.0.2"),
        ("metadata.creationTimestamp", {"now": True}),
    ],
)
def test_a_hostile_node_hinders_no_other(path: str, value: object) -> None:
    told = node("x", "10.244.2.0/24", "192.0.2.2", str(MAC))
    place, _, last = path.partition("|")
    *way, last = [*place.split("."), *([last] if last else [])]
    inner = told
    for word in way:
        inner = inner[word]
    inner[last] = value
    fine = node("y", "10.244.3.0/24", "192.0.2.3", str(MAC))
    found, _ = nodes.leases([("x", told), ("y", fine)], "us")
    assert "10.244.3.0-24" in [lease.subnet.key() for lease in found]


@pytest.mark.parametrize(
    ("data", "mac"),
    [
        ('{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}', MAC),
        ('{"VNI":1,"VtepMAC":"02-00-00-00-00-07"}', MAC),
        ('{"VNI":1,"VtepMAC":""}', None),
        ('{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}', None),
        ('{"VNI":1,"VtepMAC":"01:00:5e:00:00:07"}', None),
        ('{"VNI":1}', None),
        ("null", None),
        ("[]", None),
        ("{", None),
    ],
)
def test_the_stored_mac_is_had_again(data: str, mac: Mac | None) -> None:
    """If a station can have it: one by which the whole overlay would be refused is not."""
    assert nodes.stored_mac(dual(backend_data=data)) == mac
    assert nodes.stored_mac(node("x", DUAL[0])) is None


def test_the_condition_is_flannels() -> None:
    (told,) = nodes.condition("2026-11-23T22:00:00Z")["status"]["conditions"]
    assert told == {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
        "lastTransitionTime": "2026-11-23T22:00:00Z",
        "lastHeartbeatTime": "2026-11-23T22:00:00Z",
    }


def test_annotations_are_without_spaces() -> None:
    """flannel cuts the stored MAC out at `:"`, which a space would hide."""
    for name, text in nodes.annotated(own(dual())).items():
        assert " " not in text
        if name.endswith("data"):
            assert json.loads(text) == {"VNI": 1, "VtepMAC": str(MAC)}
