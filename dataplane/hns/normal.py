"""HNS documents in their normal form: v2 names and shapes, one spelling of each value.

What is empty, zero or false is left out, unless a policy means something without it. Names of
fields are matched without regard to case, as HNS does. A field nobody knows is refused by name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dataplane.hns import values as v
from dataplane.hns.errors import HcnError
from dataplane.hns.flags import flags
from dataplane.hns.v1 import policy_of_v1
from dataplane.hns.values import Reader, Value, bad

Document = dict[str, Any]
SCHEMA_VERSION = {"Major": 2, "Minor": 0}


class PolicyType(NamedTuple):
    """`fate`: supported; kept (harmless here, told again as it came); refused, with the reason."""

    scopes: tuple[str, ...]
    fields: Mapping[str, Reader]
    fate: str = "supported"
    why: str = ""
    required: tuple[str, ...] = ()
    key: tuple[str, ...] | None = None  # fields that name one; (): there is one; None: its value


def record(fields: Mapping[str, Reader], required: tuple[str, ...] = ()) -> Reader:
    """An object of such fields."""
    known = {name.lower(): name for name in fields}

    def read(value: Value, place: str) -> Document:
        if not isinstance(value, dict):
            raise bad(place, f"{repr(value)[:60]} is no object")
        found: Document = {}
        for given, item in value.items():
            name = known.get(given.lower())
            if name is None:
                message = f"unknown setting {given[:60]!r}; there are: {', '.join(fields)}"
                raise bad(place, message, "HCN_E_INVALID_JSON_REFERENCE")
            if item is None or (item in ("", [], {}) and name not in required):
                continue
            made = fields[name](item, f"{place}.{name}")
            if name in required or made not in (None, "", [], {}, 0, False):
                found[name] = made
        for name in required:
            if name not in found:
                raise bad(place, f"{name} is missing", "HCN_E_INVALID_JSON_REFERENCE")
        return found

    return read


def ignored(value: Value, place: str) -> None:
    """What only HNS tells."""


_ACL = {
    "Id": v.text,
    "Name": v.text,
    "Protocols": v.protocols,
    "Action": v.choice("Allow", "Block", "Pass"),
    "Direction": v.choice("In", "Out"),
    "LocalAddresses": v.addresses_or_set,
    "RemoteAddresses": v.addresses_or_set,
    "LocalPorts": v.ports,
    "RemotePorts": v.ports,
    "RuleType": v.choice("Host", "Switch"),
    "Priority": v.u16,
}
_TIER_RULE = {
    name: reader
    for name, reader in _ACL.items()
    if name not in ("Action", "Direction", "RuleType", "Name")
}
_TIER_RULE["TierAclRuleAction"] = v.choice("Allow", "Block", "Pass")
_ROUTE = {
    "DestinationPrefix": v.prefix,
    "NextHop": v.address,
    "NeedEncap": v.boolean,
    "AutomaticEndpointMonitor": v.never("name the endpoints that the route is of"),
}
_INTERFACE = {
    "InterfaceGuid": v.text,
    "InterfaceLuid": v.u64,
    "InterfaceIndex": v.u32,
    "InterfaceMediaType": v.u32,
    "InterfaceAlias": v.text,
    "InterfaceDescription": v.text,
}


def _refused(scopes: tuple[str, ...], why: str) -> PolicyType:
    return PolicyType(scopes, {}, "refused", why)


_NET, _SUB, _END = ("network",), ("subnet",), ("endpoint",)
_NO_PROXY = "there is no L4 proxy: redirect in the endpoint's own network namespace (nftables)"

POLICIES: Mapping[str, PolicyType] = {
    "VSID": PolicyType(_SUB, {"IsolationId": v.vni}, required=("IsolationId",), key=()),
    "RemoteSubnetRoute": PolicyType(
        _NET,
        {
            "DestinationPrefix": v.prefix,
            "IsolationId": v.vni,
            "ProviderAddress": v.address,
            "DistributedRouterMacAddress": v.mac,
        },
        required=("DestinationPrefix", "ProviderAddress", "DistributedRouterMacAddress"),
        key=("DestinationPrefix",),
    ),
    "HostRoute": PolicyType(_NET, {}, key=()),
    "DrMacAddress": PolicyType(_NET, {"Address": v.mac}, required=("Address",), key=()),
    "ProviderAddress": PolicyType(
        ("network", "endpoint"),
        {"ProviderAddress": v.address},
        required=("ProviderAddress",),
        key=(),
    ),
    "VxlanPort": PolicyType(_NET, {"Port": v.u16}, required=("Port",), key=()),
    "NetworkACL": PolicyType(_NET, _ACL, required=("Action", "Direction")),
    "SetPolicy": PolicyType(
        _NET,
        {
            "Id": v.text,
            "Name": v.text,
            "PolicyType": v.choice("IPSET", "NESTEDIPSET"),
            "Values": v.addresses_or_set,
        },
        required=("Id",),
        key=("Id",),
    ),
    "ACL": PolicyType(_END, _ACL, required=("Action", "Direction")),
    "TierAcl": PolicyType(
        _END,
        {
            "Name": v.text,
            "Direction": v.choice("In", "Out"),
            "Order": v.u16,
            "TierAclRules": v.many(record(_TIER_RULE, ("TierAclRuleAction",))),
        },
        required=("Name", "Direction"),
        key=("Name", "Direction"),
    ),
    "OutBoundNAT": PolicyType(
        _END,
        {
            "VirtualIP": v.address,
            "Exceptions": v.many(v.prefix, str),
            "Destinations": v.many(v.prefix, str),
            "Flags": flags("OutBoundNAT"),
            "MaxPortPoolUsage": v.u16,
        },
    ),
    "SDNRoute": PolicyType(_END, _ROUTE, required=("DestinationPrefix",)),
    "PortMapping": PolicyType(
        _END,
        {
            "Protocol": v.transport,
            "InternalPort": v.u16,
            "ExternalPort": v.u16,
            "VIP": v.address,
            "Flags": flags("PortMapping"),
        },
        required=("Protocol", "InternalPort", "ExternalPort"),
    ),
    "EncapOverhead": PolicyType(_END, {"Overhead": v.u16}, required=("Overhead",), key=()),
    "NetAdapterName": PolicyType(_NET, {"NetworkAdapterName": v.text}, "kept", key=()),
    "InterfaceConstraint": PolicyType(("network", "endpoint"), _INTERFACE, "kept", key=()),
    "AutomaticDNS": PolicyType(_NET, {"Enable": v.boolean}, "kept", key=()),
    "PortName": PolicyType(_END, {"Name": v.text}, "kept", key=()),
    "L2Driver": PolicyType(_END, {}, "kept", key=()),
    "QOS": _refused(_END, "nothing limits bandwidth here: tc on the endpoint's TAP does"),
    "VLAN": _refused(("subnet", "endpoint"), "an overlay has a VSID, not a VLAN"),
    "Iov": _refused(_END, "an endpoint is a TAP, which has no SR-IOV"),
    "SourceMacAddress": _refused(_NET, "frames of an overlay have their router's MAC address"),
    "VSwitchExtension": _refused(_NET, "there is no Windows vSwitch to extend"),
    "LayerConstraint": _refused(_NET, "layers are fixed: guard, acl, lb, nat, vnet"),
    "NeighborDiscovery": _refused(_NET, "neighbours are answered for from the policy"),
    "L4Proxy": _refused(("network", "endpoint"), _NO_PROXY),
    "L4WFPPROXY": _refused(_END, _NO_PROXY),
    "PROXY": _refused(_END, _NO_PROXY),
    "VNET": _refused(("network", "endpoint"), "a network is told by its VSID"),
    "Isolation": _refused(("network", "endpoint"), "a network is told by its VSID"),
}
_TYPES = {name.lower(): name for name in POLICIES}


def policy(scope: str) -> Reader:
    """A policy of a network, subnet or endpoint: {Type, Settings}."""

    def read(value: Value, place: str) -> Document:
        given = policy_of_v1(value, place)
        name = _TYPES.get(given["Type"].lower())
        if name is None:
            message = (
                f"unknown policy type {given['Type'][:60]!r}; there are: {', '.join(POLICIES)}"
            )
            raise bad(place, message, "HCN_E_INVALID_POLICY_TYPE")
        kind = POLICIES[name]
        if kind.fate == "refused":
            message = f"{name} is not supported: {kind.why}"
            raise bad(place, message, "HCN_E_REQUEST_UNSUPPORTED")
        if scope not in kind.scopes:
            message = f"{name} is a policy of {' and '.join(kind.scopes)}, not of {scope}"
            raise bad(place, message, "HCN_E_INVALID_POLICY_TYPE")
        fields = record(kind.fields, kind.required)
        try:
            return {"Type": name, "Settings": fields(given["Settings"], f"{place}.Settings")}
        except HcnError as error:
            named = error.symbol == "HCN_E_REQUEST_UNSUPPORTED"
            symbol = error.symbol if named else "HCN_E_INVALID_POLICY"
            raise HcnError(symbol, f"{name}: {error.message}") from None

    return read


def policies(scope: str) -> Reader:
    """Each once, in their order."""
    each = v.many(policy(scope))

    def read(value: Value, place: str) -> list[Document]:
        found: list[Document] = []
        for made in each([value] if isinstance(value, dict) else value, place):
            if made not in found:
                found.append(made)
        return found

    return read


def policies_of(scope: str, settings: Value) -> list[Document]:
    """Of a modify request's settings, {Policies}."""
    read = record({"Policies": policies(scope)})(settings, "Settings")
    found: list[Document] = read.get("Policies", [])
    return found


def is_request(value: Value) -> bool:
    """Whether it is a modify request, and no document."""
    return isinstance(value, dict) and "requesttype" in map(str.lower, value)


def requested(value: Value) -> tuple[str, str, Value]:
    """ResourceType, RequestType and settings of a modify request. Raises HcnError."""
    read = _REQUEST(value, "modify")
    return read.get("ResourceType", ""), read["RequestType"], read.get("Settings", {})


def key_of(made: Document) -> tuple[Any, ...] | None:
    """What another policy of the same key would take the place of; None: nothing."""
    fields = POLICIES[made["Type"]].key
    if fields is None:
        return None
    return (made["Type"], *(made["Settings"].get(name) for name in fields))


_ROUTES = v.many(record({"NextHop": v.address, "DestinationPrefix": v.prefix, "Metric": v.u16}))
_DNS = record(
    {
        "Domain": v.text,
        "Search": v.many(v.text),
        "ServerList": v.many(v.text),
        "Options": v.many(v.text),
    }
)
_SUBNET = record(
    {
        "IpAddressPrefix": v.prefix,
        "Policies": policies("subnet"),
        "Routes": _ROUTES,
        "Flags": flags("subnets"),
    },
    ("IpAddressPrefix",),
)


def _ipam(value: Value, place: str) -> str:
    found: str = v.choice("Static", "DHCP")(value, place)
    if found == "DHCP":
        message = "DHCP is not supported: nothing here asks a server for addresses"
        raise bad(place, message, "HCN_E_REQUEST_UNSUPPORTED")
    return found


_REQUEST = record(
    {
        "ResourceType": v.text,
        "RequestType": v.choice("Add", "Remove", "Update", "Refresh"),
        "Settings": v.verbatim,
    },
    ("RequestType",),
)
_VERSION = record({"Major": v.number(2), "Minor": v.u32})
_COMMON = {"ID": v.guid, "Health": ignored, "SchemaVersion": _VERSION}

OBJECTS: Mapping[str, Reader] = {
    "networks": record(
        {
            **_COMMON,
            "Name": v.text,
            "Type": v.choice(
                "NAT", "Transparent", "L2Bridge", "L2Tunnel", "ICS", "Private", "Overlay"
            ),
            "Policies": policies("network"),
            "MacPool": record(
                {"Ranges": v.many(record({"StartMacAddress": v.mac, "EndMacAddress": v.mac}))}
            ),
            "Dns": _DNS,
            "Ipams": v.many(record({"Type": _ipam, "Subnets": v.many(_SUBNET)})),
            "Flags": flags("networks"),
        }
    ),
    "endpoints": record(
        {
            **_COMMON,
            "Name": v.text,
            "HostComputeNetwork": v.guid,
            "HostComputeNamespace": v.guid,
            "Policies": policies("endpoint"),
            "IpConfigurations": v.many(
                record({"IpAddress": v.address, "PrefixLength": v.number(128)}, ("IpAddress",))
            ),
            "Dns": _DNS,
            "Routes": _ROUTES,
            "MacAddress": v.mac,
            "Flags": flags("endpoints"),
        }
    ),
    "loadbalancers": record(
        {
            **_COMMON,
            "HostComputeEndpoints": v.many(v.guid),
            "SourceVIP": v.address,
            "FrontendVIPs": v.many(v.address),
            "PortMappings": v.many(
                record(
                    {
                        "Protocol": v.transport,
                        "InternalPort": v.u16,
                        "ExternalPort": v.u16,
                        "DistributionType": v.number(2),
                        "Flags": flags("PortMappings"),
                    },
                    ("Protocol", "ExternalPort"),
                )
            ),
            "Flags": flags("loadbalancers"),
        }
    ),
    "routes": record(
        {
            **_COMMON,
            "HostComputeEndpoints": v.many(v.guid),
            "Setting": v.many(record(_ROUTE, ("DestinationPrefix",))),
        }
    ),
    "namespaces": record(
        {
            **_COMMON,
            "NamespaceId": v.u32,
            "Type": v.choice("Host", "HostDefault", "Guest", "GuestDefault"),
            "Resources": v.many(
                record({"Type": v.choice("Container", "Endpoint"), "Data": record({"ID": v.text})})
            ),
        }
    ),
}


def normal(kind: str, document: Value) -> Document:
    """A document of a kind of OBJECTS in its normal form. Raises HcnError."""
    made: Document = OBJECTS[kind](document, kind)
    if kind == "networks":
        made.setdefault("Type", "NAT")  # which is 0, and left out by Go's clients
    return made | {"SchemaVersion": SCHEMA_VERSION}
