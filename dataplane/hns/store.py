"""Store: the HCN objects of one node, and the verbs that change them. Pure.

Documents are kept in their normal form and never changed in place, so a store is copied cheaply
and what nobody changed stays the same object.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from dataplane.defaults import dr_mac
from dataplane.hns.errors import HcnError, not_found
from dataplane.hns.flags import REMOTE
from dataplane.hns.normal import (
    OBJECTS,
    POLICIES,
    Document,
    is_request,
    key_of,
    normal,
    policies_of,
    requested,
)
from dataplane.hns.v1 import object_of_v1
from dataplane.hns.values import Value, bad, guid
from dataplane.memo import Memo
from dataplane.model import Network, Node

KINDS = tuple(OBJECTS)
SCOPES = {"networks": "network", "endpoints": "endpoint"}
RESOURCES = {  # ResourceTypes of a modify request; a load balancer's names none
    "networks": ("Policy", "DNS"),
    "endpoints": ("Policy",),
    "loadbalancers": ("",),
    "routes": (),
    "namespaces": ("Endpoint", "Container"),
}


class Store:
    """`node`: who reports addresses; the policies of its document do not matter."""

    def __init__(self, node: Node, objects: Mapping[str, Mapping[str, Document]] = {}) -> None:
        self.node = node
        self.objects: dict[str, dict[str, Document]] = {
            kind: dict(objects.get(kind, {})) for kind in KINDS
        }

    def copy(self) -> "Store":
        return Store(self.node, self.objects)

    def dumps(self, memo: Memo | None = None) -> str:
        """All objects, for `loads`. `memo`: of the time before; few are others since."""
        memo = Memo() if memo is None else memo
        return "\n".join(
            chain.from_iterable(
                memo.each(("text", kind), tuple(held.values()), None, partial(_text, kind))
                for kind, held in self.objects.items()
            )
        )

    @classmethod
    def loads(cls, node: Node, text: str) -> "Store":
        objects: dict[str, dict[str, Document]] = {}
        for line in text.splitlines():
            kind, _, told = line.partition(" ")
            document = json.loads(told)
            objects.setdefault(kind, {})[document["ID"]] = document
        return cls(node, objects)

    # ---- queries -------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Document:
        """A document as HNS would answer it. Raises HcnError."""
        return self._told(kind, self._one(kind, name))

    def query(self, kind: str, asked: Value = None) -> list[Document]:
        """Those that a query's filter asks for: by ID, Name or VirtualNetwork."""
        wanted = _filter(asked)
        return [
            self._told(kind, document)
            for document in self.objects[kind].values()
            if all(_matches(document, key, value) for key, value in wanted.items())
        ]

    def enumerate(self, kind: str, asked: Value = None) -> list[str]:
        """The GUIDs of those."""
        return [document["ID"] for document in self.query(kind, asked)]

    def _one(self, kind: str, name: str) -> Document:
        found = self.objects[kind].get(guid(name, f"{kind} ID"))
        if found is None:
            raise not_found(kind, name)
        return found

    def _told(self, kind: str, document: Document) -> Document:
        """With what HNS itself reports."""
        if kind != "networks":
            return document
        told = {
            "Type": "ProviderAddress",
            "Settings": {"ProviderAddress": str(self.node.underlay.address)},
        }
        return {**document, "Policies": [*document.get("Policies", ()), told]}

    # ---- changes -------------------------------------------------------------------------------

    def create(self, kind: str, value: Value) -> Document:
        """The object as it is reported. One of the same settings is that one, and none is added."""
        made = normal(kind, object_of_v1(kind, value))
        if "ID" in made and made["ID"] in self.objects[kind]:
            there = self.objects[kind][made["ID"]]
            if self._checked(kind, made) in (there, _without(there, "HostComputeNamespace")):
                return self._told(kind, there)
            symbol = "HCN_E_NETWORK_ALREADY_EXISTS" if kind == "networks" else _EXISTS
            raise HcnError(symbol, f"{kind}: the ID {made['ID']} is taken; change that one")
        checked = self._checked(kind, made)
        if "ID" not in made:
            same = self._equal(kind, checked)
            if same is not None:
                return self._told(kind, same)
        name = made.get("ID") or str(uuid.uuid4())
        self.objects[kind][name] = {"ID": name, **checked}
        for resource in checked.get("Resources", ()):
            settings = {f"{resource['Type']}Id": resource.get("Data", {}).get("ID", "")}
            self.modify(kind, name, _ADD | {"ResourceType": resource["Type"], "Settings": settings})
        return self.get(kind, name)

    def replace(self, kind: str, name: str, value: Value) -> Document:
        """All settings of an object that is there."""
        old = self._one(kind, name)
        made = normal(kind, object_of_v1(kind, value))
        if made.setdefault("ID", old["ID"]) != old["ID"]:
            raise bad(f"{kind}.ID", f"{made['ID']} is not {old['ID']}, which the path names")
        self._put(kind, {"ID": old["ID"], **self._checked(kind, made)})
        return self.get(kind, name)

    def delete(self, kind: str, name: str) -> None:
        """With a network go its endpoints, with an endpoint what refers to it alone."""
        gone = self._one(kind, name)["ID"]
        del self.objects[kind][gone]
        if kind == "networks":
            for endpoint in [*self.objects["endpoints"].values()]:
                if endpoint.get("HostComputeNetwork") == gone:
                    self.delete("endpoints", endpoint["ID"])
        if kind == "endpoints":
            self._forget(gone)
        if kind == "namespaces":
            for endpoint in [*self.objects["endpoints"].values()]:
                if endpoint.get("HostComputeNamespace") == gone:
                    self._put("endpoints", _without(endpoint, "HostComputeNamespace"))

    def modify(self, kind: str, name: str, request: Value) -> None:
        """A request {ResourceType, RequestType, Settings}; of a load balancer also its document,
        as hcsshim sends it. Adding what is there, and removing what is not, is no error. Add
        replaces what has the same key; Update replaces all policies of the types it names, DNS, or
        a load balancer. Raises HcnError."""
        document = self._one(kind, name)
        if kind == "loadbalancers" and not is_request(request):
            request = {"RequestType": "Update", "Settings": request}
        resource, verb, settings = requested(request)
        if resource not in RESOURCES[kind]:
            message = f"ResourceType {resource!r} of {kind} is not supported"
            raise HcnError("HCN_E_REQUEST_UNSUPPORTED", message)
        if verb == "Refresh":
            return
        if kind == "loadbalancers":
            if verb != "Update":
                message = f"RequestType {verb} of {kind} is not supported: Update has its document"
                raise HcnError("HCN_E_REQUEST_UNSUPPORTED", message)
            self.replace(kind, name, settings)
        elif kind == "namespaces":
            self._attach(document, resource, verb, settings)
        elif resource == "DNS":
            self._put(kind, _with_dns(document, verb, settings))
        else:
            self._change_policies(kind, document, verb, settings)

    def _equal(self, kind: str, checked: Document) -> Document | None:
        """One of the same settings; what tells most objects apart is looked at first."""
        sign = _SIGNS[kind]
        told = checked.get(sign)
        for there in self.objects[kind].values():
            if there.get(sign) == told and {**checked, "ID": there["ID"]} == there:
                return there
        return None

    # ---- parts ---------------------------------------------------------------------------------

    def _put(self, kind: str, document: Document) -> None:
        if self.objects[kind][document["ID"]] != document:
            self.objects[kind][document["ID"]] = document

    def _change_policies(self, kind: str, document: Document, verb: str, settings: Value) -> None:
        given = policies_of(SCOPES[kind], settings)
        if kind == "networks" and verb == "Remove":
            told = self._told(kind, document)["Policies"]
            for policy in given:
                if policy["Type"] in _REPORTED and policy in told:
                    message = f"{policy['Type']}: every network has one, so it cannot be removed"
                    raise HcnError("HCN_E_INVALID_POLICY", message)
        self._put(kind, self._checked(kind, _with_policies(document, verb, given)))

    def _checked(self, kind: str, made: Document) -> Document:
        """What is stored of a document: its references exist; a network has its router's MAC; no
        policy hides another."""
        _distinct(made.get("Policies", ()))
        if kind == "networks":
            return self._network(made)
        if kind == "endpoints":
            self._endpoint(made)
        for guid_ in made.get("HostComputeEndpoints", ()):
            endpoint = self._one("endpoints", guid_)
            if kind == "routes" and endpoint.get("Flags", 0) & REMOTE:
                raise _not_of_remote("routes.HostComputeEndpoints", f"a route of {guid_}")
        return made

    def _network(self, made: Document) -> Document:
        if made["Type"] != "Overlay":
            message = f"networks.Type: {made['Type']} is not supported here, only Overlay"
            raise HcnError("HCN_E_INVALID_NETWORK_TYPE", message)
        name = made.get("Name", "")
        if any(
            other.get("Name", "").lower() == name.lower() and other["ID"] != made.get("ID")
            for other in self.objects["networks"].values()
            if name and not self._same(other, made)
        ):
            message = f"networks.Name: there is another network {name!r}; delete it first"
            raise HcnError("HCN_E_NETWORK_ALREADY_EXISTS", message)
        own = str(self.node.underlay.address)
        kept, router = [], False
        for policy in made.get("Policies", ()):
            if policy["Type"] == "ProviderAddress":
                given = policy["Settings"]["ProviderAddress"]
                if given != own:
                    message = f"ProviderAddress: {given} is not this node's, which is {own}"
                    raise HcnError("HCN_E_INVALID_POLICY", message)
                continue
            router = router or policy["Type"] == "DrMacAddress"
            kept.append(policy)
        made = {**made, "Policies": kept}
        return made if router else _with_router(made, self.node)

    def _same(self, there: Document, made: Document) -> bool:
        """Whether a document without an ID describes what is there."""
        if "ID" in made:
            return False
        return self._comparable(there) == self._comparable(_with_router(made, self.node))

    @staticmethod
    def _comparable(document: Document) -> Document:
        own = [p for p in document.get("Policies", ()) if p["Type"] not in _REPORTED]
        return {**_without(document, "ID"), "Policies": own}

    def _endpoint(self, made: Document) -> None:
        if not made.get("HostComputeNetwork"):
            message = "endpoints.HostComputeNetwork is missing: which network is it of?"
            raise HcnError("HCN_E_INVALID_ENDPOINT", message)
        self._one("networks", made["HostComputeNetwork"])
        if "HostComputeNamespace" in made:
            there = self.objects["endpoints"].get(made.get("ID", ""), {})
            if there.get("HostComputeNamespace") != made["HostComputeNamespace"]:
                message = "endpoints.HostComputeNamespace is read-only: add it to the namespace"
                raise HcnError("HCN_E_INVALID_ENDPOINT", message)
        if made.get("Flags", 0) & REMOTE:
            _remote(made)

    def _attach(self, namespace: Document, resource: str, verb: str, settings: Value) -> None:
        key = f"{resource}Id"
        name = settings.get(key, "") if isinstance(settings, dict) else ""
        if not name or not isinstance(name, str):
            raise bad("Settings", f"{key} is missing")
        if resource == "Endpoint":
            name = guid(name, f"Settings.{key}")
        entry = {"Type": resource, "Data": {"ID": name}}
        resources = [r for r in namespace.get("Resources", ()) if r != entry]
        if resource == "Endpoint":
            endpoint = self._one("endpoints", name)
            held = endpoint.get("HostComputeNamespace")
            if verb != "Remove":
                if endpoint.get("Flags", 0) & REMOTE:
                    raise _not_of_remote(f"Settings.{key}", "a namespace")
                if held not in (None, namespace["ID"]):
                    message = f"endpoint {name} is in namespace {held}: remove it there first"
                    raise HcnError("HCN_E_NAMESPACE_ATTACH_FAILED", message)
                self._put("endpoints", endpoint | {"HostComputeNamespace": namespace["ID"]})
            elif held == namespace["ID"]:
                self._put("endpoints", _without(endpoint, "HostComputeNamespace"))
        if verb != "Remove":
            resources.append(entry)
        self._put("namespaces", _without(namespace, "Resources") | _if("Resources", resources))

    def _forget(self, endpoint: str) -> None:
        for kind in ("loadbalancers", "routes"):
            for document in [*self.objects[kind].values()]:
                members = document.get("HostComputeEndpoints", [])
                left = [member for member in members if member != endpoint]
                if members and not left:
                    del self.objects[kind][document["ID"]]
                elif left != members:
                    self._put(kind, document | {"HostComputeEndpoints": left})
        for namespace in [*self.objects["namespaces"].values()]:
            rest = [
                resource
                for resource in namespace.get("Resources", ())
                if resource.get("Data", {}).get("ID", "").lower() != endpoint
            ]
            self._put("namespaces", _without(namespace, "Resources") | _if("Resources", rest))


def _text(kind: str, document: Document) -> str:
    """A line: JSON has no line ends in it, and only ASCII."""
    return f"{kind} {json.dumps(document, separators=(',', ':'))}"


def _distinct(policies: Iterable[Document]) -> None:
    taken = set()
    for policy in policies:
        key = key_of(policy)
        if key is not None and key in taken:
            message = f"{' '.join(map(str, key))}: two policies of it, but one alone can hold"
            raise HcnError(_EXISTS, message)
        taken.add(key)


def _remote(made: Document) -> None:
    """A remote endpoint has an address, and nothing that only a port can have."""
    if not made.get("IpConfigurations"):
        message = "endpoints.IpConfigurations: a remote endpoint needs its address"
        raise HcnError("HCN_E_INVALID_ENDPOINT", message)
    for policy in made.get("Policies", ()):
        name = policy["Type"]
        if name != "ProviderAddress" and POLICIES[name].fate != "kept":
            raise _not_of_remote("endpoints.Policies", name)


def _not_of_remote(place: str, what: str) -> HcnError:
    message = f"{what} is not supported for a remote endpoint: say it at its own node"
    return bad(place, message, "HCN_E_REQUEST_UNSUPPORTED")


_SIGNS = {
    "networks": "Name",
    "endpoints": "IpConfigurations",
    "loadbalancers": "FrontendVIPs",
    "routes": "Setting",
    "namespaces": "NamespaceId",
}
_ADD = {"RequestType": "Add"}
_EXISTS = "HCN_E_POLICY_ALREADY_EXISTS"


_REPORTED = ("ProviderAddress", "DrMacAddress")  # of every network


def _with_policies(document: Document, verb: str, given: list[Document]) -> Document:
    kept = list(document.get("Policies", ()))
    if verb == "Remove":
        kept = [policy for policy in kept if policy not in given]
    elif verb == "Update":
        types = {policy["Type"] for policy in given}
        kept = [policy for policy in kept if policy["Type"] not in types] + given
    else:
        for policy in given:
            kept = _added(kept, policy)
    return _without(document, "Policies") | _if("Policies", kept)


def _with_dns(document: Document, verb: str, settings: Value) -> Document:
    """Removed is what equals the settings, or all if there are none."""
    given, rest = normal("networks", {"Dns": settings}).get("Dns"), _without(document, "Dns")
    if verb == "Remove":
        return rest if given in (None, document.get("Dns")) else document
    return rest | {"Dns": given} if given else rest


def _added(kept: list[Document], policy: Document) -> list[Document]:
    key = key_of(policy)
    if policy in kept:
        return kept
    if key is not None and any(key_of(other) == key for other in kept):
        return [policy if key_of(other) == key else other for other in kept]
    return [*kept, policy]


def _with_router(made: Document, node: Node) -> Document:
    """Its router's MAC is told once and for all."""
    vnis = list(vsids(made))
    named = Network(name="", vni=vnis[0] if vnis else 0, prefixes=())  # type: ignore[arg-type]
    address = str(dr_mac(named, node)).upper().replace(":", "-")
    told = {"Type": "DrMacAddress", "Settings": {"Address": address}}
    return {**made, "Policies": [*made.get("Policies", ()), told]}


def vsids(network: Document) -> Iterator[int]:
    """Of its subnets, each once."""
    found = (
        policy["Settings"]["IsolationId"]
        for ipam in network.get("Ipams", ())
        for subnet in ipam.get("Subnets", ())
        for policy in subnet.get("Policies", ())
        if policy["Type"] == "VSID"
    )
    yield from dict.fromkeys(found)


def _filter(query: Value) -> Document:
    """Of a query document. Raises HcnError."""
    if query in (None, "", {}):
        return {}
    asked = _object(query, "query")
    wanted = asked.get("Filter", {} if "SchemaVersion" in asked or "Flags" in asked else asked)
    wanted = _object(wanted, "query.Filter") if wanted else {}
    for key in wanted:
        if key.lower() not in _FILTERS:
            message = f"no filter {key[:40]!r}; there are: ID, Name, VirtualNetwork"
            raise bad("query.Filter", message)
    return {_FILTERS[key.lower()]: str(value) for key, value in wanted.items()}


_FILTERS = {"id": "ID", "name": "Name", "virtualnetwork": "HostComputeNetwork"}


def _object(value: Value, place: str) -> dict[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise bad(place, f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise bad(place, "is no object")
    return found


def _matches(document: Document, key: str, value: str) -> bool:
    return str(document.get(key, "")).lower() == value.lower().strip("{}")


def _without(document: Document, key: str) -> Document:
    return {name: item for name, item in document.items() if name != key}


def _if(key: str, items: list[Document]) -> Document:
    return {key: items} if items else {}
