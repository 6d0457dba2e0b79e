"""Nodes of a cluster whose overlay is flannel's: subnets, and what each node says of itself. Pure.

As flannel's own subnet manager for Kubernetes reads and writes them (pkg/subnet/kube).
"""

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from dataplane.address import Mac
from dataplane.errors import DocumentError
from dataplane.flannel.documents import Lease, Subnet, read_lease
from dataplane.kubernetes.objects import Object, items, table
from dataplane.validate_values import station

PREFIX = "flannel.alpha.coreos.com/"


class NotReadyError(ValueError):
    """The node has no subnet yet, or is none of the overlay's."""


def annotations_of(node: Object) -> dict[str, str]:
    found = table(node, "metadata", "annotations")
    return {name: text for name, text in found.items() if isinstance(text, str)}


def subnet_of(node: Object) -> Subnet:
    """Its pod subnets. Raises ValueError."""
    told = table(node, "spec")
    listed = told.get("podCIDRs")
    texts = listed if isinstance(listed, list) and listed else [told.get("podCIDR")]
    prefixes = [ip_network(str(text)) for text in texts if text]
    fours = [p for p in prefixes if isinstance(p, IPv4Network)]
    sixes = [p for p in prefixes if isinstance(p, IPv6Network)]
    if not prefixes:
        raise NotReadyError("its podCIDR is missing")
    if len(fours) != 1 or len(sixes) > 1:
        raise ValueError("its podCIDRs are not one of IPv4, and at most one of IPv6")
    return Subnet(fours[0], sixes[0] if sixes else None)


def lease_of(node: Object) -> Lease:
    """What the node's annotations say. Raises NotReadyError, DocumentError, ValueError."""
    told = annotations_of(node)
    if told.get(f"{PREFIX}kube-subnet-manager") != "true":
        raise NotReadyError("flannel has not been there yet")
    subnet = subnet_of(node)
    value: dict[str, Any] = {
        "BackendType": told.get(f"{PREFIX}backend-type"),
        "PublicIP": told.get(f"{PREFIX}public-ip"),
        "PublicIPv6": told.get(f"{PREFIX}public-ipv6"),
        "BackendData": _data(told, "backend-data"),
        "BackendV6Data": _data(told, "backend-v6-data"),
    }
    return read_lease(subnet.key(), json.dumps(value).encode())


def said_of(node: Object) -> tuple[Any, ...]:
    """All that `leases` depends on."""
    return annotations_of(node), table(node, "spec"), _created(node)


def leases(nodes: Iterable[tuple[str, Object]], own: str) -> tuple[list[Lease], dict[str, str]]:
    """Those of all other nodes, the latest node first, and by name why some cannot be followed."""
    found, refused = [], {}
    others = [(name, node) for name, node in nodes if name != own]
    for name, node in sorted(others, key=lambda each: _created(each[1]), reverse=True):
        try:
            found.append(lease_of(node))
        except NotReadyError:
            continue
        except DocumentError as error:
            refused[f"node {name}"] = error.faults[0].message
        except ValueError as error:
            refused[f"node {name}"] = str(error)
    return found, refused


def own_lease(
    node: Object, public: IPv4Address, public6: IPv6Address | None, mac: Mac, vni: int
) -> Lease:
    """Of this node; dual stack where there is a `public6`. A public address that somebody chose for
    peers holds. Raises ValueError."""
    told = annotations_of(node)
    four = IPv4Address(told.get(f"{PREFIX}public-ip-overwrite") or public)
    subnet = subnet_of(node)
    if public6 is None or subnet.v6 is None:
        return Lease(Subnet(subnet.v4), four, None, mac, None, vni)
    six = IPv6Address(told.get(f"{PREFIX}public-ipv6-overwrite") or public6)
    return Lease(subnet, four, six, mac, mac, vni)


def stored_mac(node: Object) -> Mac | None:
    """The VtepMAC that the node's annotations have from before, if a station can have it."""
    try:
        text = json.loads(annotations_of(node)[f"{PREFIX}backend-data"])["VtepMAC"]
        mac = Mac(str(text))
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return None if any(station(mac, ())) else mac


def annotated(lease: Lease) -> dict[str, str]:
    """What this node writes of itself: compact, as flannel reads it back."""
    value = json.loads(lease.text())
    found = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": _compact(value["BackendData"]),
        "public-ip": str(lease.public_ip),
    }
    if lease.public_ip6 is not None:
        found |= {
            "backend-v6-data": _compact(value["BackendV6Data"]),
            "public-ipv6": str(lease.public_ip6),
        }
    return {f"{PREFIX}{name}": text for name, text in found.items()}


def patch_of(node: Object, lease: Lease) -> Object | None:
    """For `nodes/NAME/status`; None where it says so already."""
    wanted = annotated(lease)
    told = annotations_of(node)
    if all(told.get(name) == text for name, text in wanted.items()):
        return None
    return {"metadata": {"annotations": wanted}}


def is_available(node: Object) -> bool:
    """Whether the node's conditions say that its network is there."""
    return any(
        each.get("type") == "NetworkUnavailable" and each.get("status") == "False"
        for each in items(table(node, "status"), "conditions")
    )


def condition(now: str) -> Object:
    """That the network is there; `now` in RFC 3339."""
    told = {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }
    return {"status": {"conditions": [told]}}


def _created(node: Object) -> str:
    """In RFC 3339, so in order."""
    return str(table(node, "metadata").get("creationTimestamp") or "")


def _data(told: dict[str, str], name: str) -> Any:
    """A string of JSON."""
    text = told.get(PREFIX + name)
    if not text or text == "null":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PREFIX}{name}: {error}") from error


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
