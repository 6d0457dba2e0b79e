"""Methods and paths of HNS, of a store. Pure.

v2: KIND, KIND/ID, KIND/ID/modify, features, batch. v1, as HNSCall has it: networks, endpoints,
policylists, globals/version; its answers are {Success, Output}.
"""

import json
from typing import Any

from dataplane.hns.errors import HcnError
from dataplane.hns.store import KINDS, Store
from dataplane.hns.v1 import to_v1
from dataplane.hns.values import Value, bad

VERSION = {"Major": 15, "Minor": 4}  # the HNS whose features these are
V1_KINDS = {"networks": "networks", "endpoints": "endpoints", "policylists": "loadbalancers"}
FEATURES: dict[str, Any] = {
    "ACL": {
        "AclAddressLists": True,
        "AclHostRulePriority": True,
        "AclPortRanges": True,
        "AclRuleId": True,
    },
    "API": {"V1": True, "V2": True},
    "RemoteSubnet": True,
    "HostRoute": True,
    "DSR": True,
    "Slash32EndpointPrefixes": True,
    "AclSupportForProtocol252": True,
    "SessionAffinity": True,
    "IPv6DualStack": True,
    "SetPolicy": True,
    "VxlanPort": True,
    "L4Proxy": False,
    "L4WfpProxy": False,
    "TierAcl": True,
    "NetworkACL": True,
    "NestedIpSet": True,
    "DisableHostPort": False,
    "ModifyLoadbalancer": True,
    "Accelnet": False,
}
_MOST_CALLS = 100_000  # of a batch


def call(store: Store, method: str, path: str, body: Value = None, query: Value = None) -> Value:
    """`path`: as above, below /hcn. Raises HcnError; the store may be half changed then."""
    words = path.strip("/").split("/")
    kind = words[0].lower()
    if words == ["features"] and method == "GET":
        return FEATURES
    if words == ["batch"] and method == "POST":
        return _batch(store, body)
    if kind not in KINDS or len(words) > 3 or (len(words) == 3 and words[2] != "modify"):
        message = f"no path {path[:80]!r}; there are: {', '.join(KINDS)}, features, batch"
        raise HcnError("ERROR_NOT_FOUND", message)
    return _call(store, method, kind, words[1:], body, query)


def _call(
    store: Store, method: str, kind: str, rest: list[str], body: Value, query: Value
) -> Value:
    match method, rest:
        case "GET", []:
            return store.query(kind, query)
        case "POST", []:
            return store.create(kind, body)
        case "GET", [name]:
            return store.get(kind, name)
        case "PUT", [name]:
            return store.replace(kind, name, body)
        case "DELETE", [name]:
            store.delete(kind, name)
            return {}
        case "POST", [name, "modify"]:
            store.modify(kind, name, body)
            return store.get(kind, name)
    message = f"{method} of {'/'.join([kind, *rest])} means nothing"
    raise HcnError("HCN_E_REQUEST_UNSUPPORTED", message)


def _batch(store: Store, body: Value) -> Value:
    """Calls in their order, [{Method, Path, Body}]: all of them or none."""
    if not isinstance(body, list) or len(body) > _MOST_CALLS:
        raise bad("batch", f"is no list of calls, or of more than {_MOST_CALLS}")
    answers = []
    for i, item in enumerate(body):
        if not isinstance(item, dict) or item.keys() - {"Method", "Path", "Body"}:
            raise bad(f"batch[{i}]", "a call is {Method, Path, Body}")
        method, path = item.get("Method", "POST"), item.get("Path")
        if not isinstance(method, str) or not isinstance(path, str) or "batch" in path:
            raise bad(f"batch[{i}]", "Method and Path are text, and no batch")
        try:
            answers.append(call(store, method, path, item.get("Body")))
        except HcnError as error:
            raise HcnError(error.symbol, f"batch[{i}] {method} {path}: {error.message}") from None
    return answers


def calls_of(text: bytes, name: str) -> list[dict[str, Any]]:
    """The calls of a file: documents, each of which tells by its fields what it is, and calls.
    Raises HcnError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HcnError("HCN_E_INVALID_JSON", f"{name}: is not JSON: {error}") from None
    calls = []
    for i, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, dict) and "Path" in item:
            calls.append({"Method": "POST", **item})
            continue
        kind = _kind_of(item)
        if kind is None:
            message = f"{name}[{i}] is no document of {', '.join(KINDS)}; say it as a call"
            raise HcnError("HCN_E_INVALID_JSON", f"{message}: {{Method, Path, Body}}")
        calls.append({"Method": "POST", "Path": kind, "Body": item})
    return calls


def _kind_of(document: Value) -> str | None:
    fields = set(map(str.lower, document)) if isinstance(document, dict) else set()
    for kind, signs in _SIGNS:
        if not fields.isdisjoint(map(str.lower, signs)):
            return kind
    return None


_SIGNS = (
    ("loadbalancers", {"PortMappings", "FrontendVIPs", "References"}),
    ("namespaces", {"NamespaceId", "Resources"}),
    ("endpoints", {"HostComputeNetwork", "VirtualNetwork", "IpConfigurations", "IPAddress"}),
    ("routes", {"Setting", "Routes"}),
    ("networks", {"Ipams", "Subnets", "MacPool", "Type"}),
)


def call_v1(store: Store, method: str, path: str, body: Value = None) -> Value:
    """As HNSCall. A POST to KIND/ID changes what it names."""
    words = [word for word in path.strip("/").split("/") if word]
    if words == ["globals", "version"] and method == "GET":
        return {"Success": True, "Output": {"Version": VERSION}}
    kind = V1_KINDS.get(words[0] if words else "")
    if kind is None or len(words) > 2:
        raise HcnError("ERROR_NOT_FOUND", f"no path {path[:80]!r} of v1")
    if method == "POST" and len(words) == 2:
        method = "PUT"
    found = _call(store, method, kind, words[1:], body, None)
    if isinstance(found, list):
        return {"Success": True, "Output": [to_v1(kind, document) for document in found]}
    return {"Success": True, "Output": to_v1(kind, found) if found else {}}
