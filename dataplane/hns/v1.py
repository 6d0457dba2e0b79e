"""HNS v1, and PowerShell: their documents as v2 has them, and v2's as v1 has them."""

from typing import Any

from dataplane.hns.errors import HcnError
from dataplane.hns.values import Value, bad, boolean, never

Document = dict[str, Any]
TYPES = {"pa": "ProviderAddress", "route": "SDNRoute", "nat": "PortMapping"}
FIELDS = {  # by type: names of v1 and what v2 calls them
    "vsid": {"VSID": "IsolationId"},
    "provideraddress": {"PA": "ProviderAddress"},
    "outboundnat": {"VIP": "VirtualIP", "ExceptionList": "Exceptions"},
    "acl": {"Protocol": "Protocols", "LocalPort": "LocalPorts", "RemotePort": "RemotePorts"},
}


_RESERVED, _EXTERNAL_PORT_RESERVED = "ExternalPortReserved", 4  # a flag of v2's PortMapping


def policy_of_v1(value: Value, place: str) -> Document:
    """{Type, Settings} of any of: that; Data for Settings; flat; wrapped as CNI does it."""
    value = _spelled(value, "Type", "Settings", "Data", "Value")
    if isinstance(value, dict) and "Value" in value and "Type" not in value:
        value = _spelled(value["Value"], "Type", "Settings", "Data")
    if not isinstance(value, dict) or not isinstance(value.get("Type"), str):
        raise bad(place, "a policy is an object with a Type", "HCN_E_INVALID_POLICY")
    given: str = value["Type"]
    name = TYPES.get(given.lower(), given)
    flat = not ({"Settings", "Data"} & value.keys())
    if flat:
        settings = {key: item for key, item in value.items() if key != "Type"}
    else:
        settings = value.get("Settings", value.get("Data")) or {}
        extra = sorted(value.keys() - {"Type", "Settings", "Data"})
        if extra:
            raise bad(place, f"unknown setting {extra[0]!r}", "HCN_E_INVALID_POLICY")
    if not isinstance(settings, dict):
        raise bad(place, "Settings is no object", "HCN_E_INVALID_POLICY")
    names = {old.lower(): new for old, new in FIELDS.get(name.lower(), {}).items()}
    renamed = {names.get(key.lower(), key): item for key, item in settings.items()}
    if name.lower() == "portmapping":
        renamed = _spelled(renamed, _RESERVED)
        if boolean(renamed.pop(_RESERVED, False), _RESERVED):
            renamed["Flags"] = _EXTERNAL_PORT_RESERVED
    return {"Type": name, "Settings": renamed}


def _spelled(given: Value, *names: str) -> Value:
    """An object with these names as they are written here; their case is of no account."""
    if not isinstance(given, dict):
        return given
    known = {name.lower(): name for name in names}
    return {known.get(key.lower(), key): item for key, item in given.items()}


def object_of_v1(kind: str, document: Value) -> Value:
    """A v2 document, of one in either form."""
    if not isinstance(document, dict):
        return document
    read = {
        "networks": _network,
        "endpoints": _endpoint,
        "loadbalancers": _policy_list,
        "routes": _route,
    }
    return read[kind](document) if kind in read else document


def _route(given: Document) -> Document:
    """As PowerShell has it: Routes."""
    made: Document = _spelled(given, "Routes")
    if "Routes" in made:
        made["Setting"] = made.pop("Routes")
    return made


def _network(given: Document) -> Document:
    given = _spelled(given, *_TOLD, "Subnets", "MacPools", *_OF_DNS)
    made = {key: item for key, item in given.items() if key not in _TOLD}
    if "Subnets" in made:
        subnets = made.pop("Subnets") or []
        if not isinstance(subnets, list) or not all(isinstance(s, dict) for s in subnets):
            raise bad("networks.Subnets", "is no list of objects")
        made["Ipams"] = [{"Type": "Static", "Subnets": [_subnet(s) for s in subnets]}]
    if "MacPools" in made:
        made["MacPool"] = {"Ranges": made.pop("MacPools")}
    if "DNSServerList" in made or "DNSSuffix" in made:
        made["Dns"] = _dns(made)
    return made


_OF_DNS = ("DNSServerList", "DNSSuffix")
_TOLD = {"ManagementIP", "DrMacAddress", "CurrentEndpointCount", "State", "Version", "Resources"}


def _subnet(given: Document) -> Document:
    given = _spelled(given, "ID", "ObjectType", "AddressPrefix", "GatewayAddress", "Routes")
    made = {key: item for key, item in given.items() if key not in ("ID", "ObjectType")}
    if "AddressPrefix" in made:
        made["IpAddressPrefix"] = made.pop("AddressPrefix")
    gateway = made.pop("GatewayAddress", None)
    if gateway:
        made["Routes"] = [_default_route(gateway)]
    return made


def _default_route(gateway: str) -> Document:
    anywhere = "::/0" if ":" in str(gateway) else "0.0.0.0/0"
    return {"NextHop": gateway, "DestinationPrefix": anywhere}


def _dns(made: Document) -> Document:
    servers, suffix = made.pop("DNSServerList", ""), made.pop("DNSSuffix", "")
    return {"Domain": suffix, "ServerList": servers}


def _endpoint(given: Document) -> Document:
    given = _spelled(given, *_TOLD_OF_ENDPOINT, *_OF_ENDPOINT, *_OF_DNS)
    made = {key: item for key, item in given.items() if key not in _TOLD_OF_ENDPOINT}
    if "VirtualNetwork" in made:
        made["HostComputeNetwork"] = made.pop("VirtualNetwork")
    address, length = made.pop("IPAddress", None), made.pop("PrefixLength", 0)
    if address:
        made["IpConfigurations"] = [{"IpAddress": address, "PrefixLength": length}]
    gateway = made.pop("GatewayAddress", None)
    if gateway:
        made["Routes"] = [_default_route(gateway)]
    never("nothing here answers DNS")(made.pop(_DNS_HERE, False), f"endpoints.{_DNS_HERE}")
    if boolean(made.pop("IsRemoteEndpoint", False), "endpoints.IsRemoteEndpoint"):
        made["Flags"] = 1
    overhead = made.pop("EncapOverhead", 0)
    if overhead:
        extra = {"Type": "EncapOverhead", "Settings": {"Overhead": overhead}}
        own = made.get("Policies") or []
        if not isinstance(own, list):
            raise bad("endpoints.Policies", "is no list")
        made["Policies"] = [*own, extra]
    if "DNSServerList" in made or "DNSSuffix" in made:
        made["Dns"] = _dns(made)
    return made


_TOLD_OF_ENDPOINT = {
    "State",
    "Resources",
    "SharedContainers",
    "VirtualNetworkName",
    "Namespace",
    "CreateProcessingStartTime",
}
_DNS_HERE = "EnableInternalDNS"
_OF_ENDPOINT = (
    "VirtualNetwork",
    "IPAddress",
    "PrefixLength",
    "GatewayAddress",
    "IsRemoteEndpoint",
    "EncapOverhead",
    "Policies",
    _DNS_HERE,
)


def _policy_list(given: Document) -> Document:
    """A list of one ELB policy and the endpoints it refers to."""
    given = _spelled(given, "References", "Policies", "ID")
    if "References" not in given and "Policies" not in given:
        return given
    policies, references = given.get("Policies") or [], given.get("References") or []
    if not isinstance(policies, list) or not all(isinstance(p, dict) for p in policies):
        raise bad("policylists.Policies", "is no list of objects")
    if not isinstance(references, list):
        raise bad("policylists.References", "is no list")
    policies = [_spelled(p, "Type", "SourceVIP", "VIPs", "ILB", "DSR") for p in policies]
    if len(policies) != 1 or str(policies[0].get("Type")).upper() != "ELB":
        message = "policylists.Policies: a policy list is one ELB policy"
        raise HcnError("HCN_E_INVALID_POLICY_TYPE", message)
    elb = {key: item for key, item in policies[0].items() if key != "Type"}
    made: Document = {
        "HostComputeEndpoints": [
            str(reference).rstrip("/").rpartition("/")[2] for reference in references
        ],
        "SourceVIP": elb.pop("SourceVIP", ""),
        "FrontendVIPs": elb.pop("VIPs", []),
        "Flags": int(boolean(elb.pop("DSR", False), "ELB.DSR")),
    }
    flag = int(boolean(elb.pop("ILB", False), "ELB.ILB"))
    made["PortMappings"] = [{**elb, "Flags": flag}]
    return made | ({"ID": given["ID"]} if "ID" in given else {})


def to_v1(kind: str, document: Document) -> Document:
    """A v2 document in the normal form, as v1's clients read it."""
    made = {"ID": document["ID"], "Name": document.get("Name", "")}
    policies = [{"Type": p["Type"], **p["Settings"]} for p in document.get("Policies", ())]
    if kind == "loadbalancers":
        return _as_policy_list(document)
    made["Policies"] = [_flat(policy) for policy in policies]
    if kind == "networks":
        subnets = [s for ipam in document.get("Ipams", ()) for s in ipam.get("Subnets", ())]
        own = [p["ProviderAddress"] for p in policies if p["Type"] == "ProviderAddress"]
        made |= {"Type": document["Type"], "Subnets": [_as_subnet(s) for s in subnets]}
        return made | {"ManagementIP": own[0] if own else ""}
    first: Document = next(iter(document.get("IpConfigurations", ())), {})
    return made | {
        "VirtualNetwork": document.get("HostComputeNetwork", ""),
        "IPAddress": first.get("IpAddress", ""),
        "MacAddress": document.get("MacAddress", ""),
        "IsRemoteEndpoint": bool(document.get("Flags", 0) & 1),
    }


def _flat(policy: Document) -> Document:
    names = {new: old for old, new in FIELDS.get(policy["Type"].lower(), {}).items() if new}
    made = {names.get(key, key): item for key, item in policy.items()}
    kinds = {"ProviderAddress": "PA", "SDNRoute": "ROUTE", "PortMapping": "NAT"}
    return made | {"Type": kinds.get(policy["Type"], policy["Type"])}


def _as_subnet(subnet: Document) -> Document:
    gateways = [route["NextHop"] for route in subnet.get("Routes", ()) if "NextHop" in route]
    flat = [_flat({"Type": p["Type"], **p["Settings"]}) for p in subnet.get("Policies", ())]
    made = {"AddressPrefix": subnet["IpAddressPrefix"], "Policies": flat}
    return made | ({"GatewayAddress": gateways[0]} if gateways else {})


def _as_policy_list(document: Document) -> Document:
    elbs = [
        {
            "Type": "ELB",
            "SourceVIP": document.get("SourceVIP", ""),
            "VIPs": document.get("FrontendVIPs", []),
            "ILB": bool(mapping.get("Flags", 0) & 1),
            "DSR": bool(document.get("Flags", 0) & 1),
            **{key: item for key, item in mapping.items() if key != "Flags"},
        }
        for mapping in document.get("PortMappings", ())
    ]
    references = [f"/endpoints/{guid}" for guid in document.get("HostComputeEndpoints", ())]
    return {"ID": document["ID"], "References": references, "Policies": elbs}
