"""What a cluster's NetworkPolicies allow, straight from the sentences of networking.k8s.io/v1:
slow, one connection at a time, and without any rule of ours."""

from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]


def allowed(
    policies: list[Object],
    pods: dict[Key, Object],
    namespaces: dict[str, Object],
    connection: tuple[Key, Key, str, int],
) -> bool:
    """For a connection from a source pod to a destination pod to be allowed, both the egress policy
    of the source and the ingress policy of the destination need to allow it. A pod cannot block
    access to itself."""
    source, target, _, _ = connection
    return source == target or (
        _side(policies, pods, namespaces, connection, "Egress")
        and _side(policies, pods, namespaces, connection, "Ingress")
    )


def _side(
    policies: list[Object],
    pods: dict[Key, Object],
    namespaces: dict[str, Object],
    connection: tuple[Key, Key, str, int],
    side: str,
) -> bool:
    """A pod is isolated if any NetworkPolicy both selects it and has the type; then only those
    connections are allowed that the list of some such policy allows."""
    source, target, protocol, number = connection
    own, other = (source, target) if side == "Egress" else (target, source)
    isolated = False
    for policy in policies:
        spec = policy["spec"]
        if policy["metadata"]["namespace"] != own[0]:
            continue
        if not _matches(spec["podSelector"], pods[own]) or side not in _types(spec):
            continue
        isolated = True
        for rule in spec.get(side.lower()) or []:
            peers = rule.get("to" if side == "Egress" else "from") or []
            ports = rule.get("ports") or []
            if peers and not any(_peer(p, own[0], other, pods, namespaces) for p in peers):
                continue
            if not ports or any(_port(p, pods[target], protocol, number) for p in ports):
                return True
    return not isolated


def _types(spec: Object) -> list[str]:
    """Without policyTypes, Ingress always, and Egress if the policy has any egress rules."""
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    types: list[str] = spec.get("policyTypes") or default
    return types


def _peer(
    peer: Object, namespace: str, other: Key, pods: dict[Key, Object], namespaces: dict[str, Object]
) -> bool:
    if "ipBlock" in peer:
        address = ip_address(pods[other]["status"]["podIP"])
        block = peer["ipBlock"]
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in ip_network(e) for e in block.get("except") or [])
    if "namespaceSelector" in peer:
        if not _matches(peer["namespaceSelector"], namespaces[other[0]]):
            return False
    elif other[0] != namespace:
        return False
    return "podSelector" not in peer or _matches(peer["podSelector"], pods[other])


def _matches(selector: Object, item: Object) -> bool:
    labels = item["metadata"].get("labels", {})
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        has = each["key"] in labels
        listed = has and labels[each["key"]] in each.get("values", [])
        truth = {"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}
        if not truth[each["operator"]]:
            return False
    return True


def _port(port: Object, target: Object, protocol: str, number: int) -> bool:
    if port.get("protocol", "TCP") != protocol:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return any(
            each["name"] == wanted
            and each["containerPort"] == number
            and each.get("protocol", "TCP") == protocol
            for container in target["spec"]["containers"]
            for each in container.get("ports", [])
        )
    return bool(wanted <= number <= port.get("endPort", wanted))
