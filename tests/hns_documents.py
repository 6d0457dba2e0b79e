"""Documents of HNS as flannel, win-overlay, kube-proxy and hcsshim's tests send them.

Letters are those of the samples (section 5 of the notes on HNS).
"""

import json
from typing import Any

NET = "0b3f8a3e-5c1d-4a6e-9c52-7a1f64a0d001"
POD = "0B3F8A3E-5C1D-4A6E-9C52-7A1F64A0E001"  # GUIDs have no case
VERSION = {"Major": 2, "Minor": 0}
Document = dict[str, Any]

FLANNEL_NETWORK: Document = {  # (a)
    "Name": "flannel.4096",
    "Type": "Overlay",
    "Policies": [
        {"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": "Ethernet"}},
    ],
    "MacPool": {},
    "Dns": {},
    "Ipams": [
        {
            "Type": "Static",
            "Subnets": [
                {
                    "IpAddressPrefix": "10.244.3.0/24",
                    "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
                    "Routes": [{"NextHop": "10.244.3.1", "DestinationPrefix": "0.0.0.0/0"}],
                }
            ],
        }
    ],
    "Flags": 8,
    "Health": {"Extra": {}},
    "SchemaVersion": VERSION,
}
V1_NETWORK: Document = {  # (b)
    "Name": "vxlan0",
    "Subnets": [
        {
            "AddressPrefix": "10.244.0.0/16",
            "GatewayAddress": "10.244.0.1",
            "Policies": [{"Type": "VSID", "VSID": 4096}],
        }
    ],
    "Type": "Overlay",
}


def network(vni: int) -> Document:
    """(a), of another VSID."""
    made: Document = json.loads(json.dumps(FLANNEL_NETWORK))
    made["Ipams"][0]["Subnets"][0]["Policies"][0]["Settings"]["IsolationId"] = vni
    return made


def remote_subnet(
    prefix: str, provider: str, mac: str, vni: int = 4096, verb: str = "Add"
) -> Document:  # (c)
    settings = {
        "DestinationPrefix": prefix,
        "IsolationId": vni,
        "ProviderAddress": provider,
        "DistributedRouterMacAddress": mac,
    }
    policies = [{"Type": "RemoteSubnetRoute", "Settings": settings}]
    return {"ResourceType": "Policy", "RequestType": verb, "Settings": {"Policies": policies}}


HOST_ROUTE: Document = {  # (d)
    "ResourceType": "Policy",
    "RequestType": "Add",
    "Settings": {"Policies": [{"Type": "HostRoute", "Settings": {}}]},
}


def pod(ip: str, network: str = NET, *policies: Document, guid: str = POD) -> Document:  # (e)
    octets = "-".join(f"{int(part):02x}" for part in ip.split("."))
    return {
        "ID": guid,
        "Name": "b" * 64 + "_vxlan0",
        "HostComputeNetwork": network,
        "Policies": [
            {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["172.30.0.0/16"]}},
            {
                "Type": "SDNRoute",
                "Settings": {"DestinationPrefix": "172.30.0.0/16", "NeedEncap": True},
            },
            {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "10.0.133.170"}},
            *policies,
        ],
        "IpConfigurations": [{"IpAddress": ip}],
        "Dns": {"Search": [], "ServerList": []},
        "Routes": [{"NextHop": "10.244.3.1", "DestinationPrefix": "0.0.0.0/0"}],
        "MacAddress": f"0E-2A-{octets}",
        "SchemaVersion": VERSION,
    }


def remote_endpoint(ip: str, provider: str, network: str = NET, mac: str = "") -> Document:  # (f)
    octets = "-".join(f"{int(part):02x}" for part in ip.split("."))
    return {
        "HostComputeNetwork": network,
        "Policies": [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": provider}}],
        "IpConfigurations": [{"IpAddress": ip}],
        "MacAddress": mac or f"02-11-{octets}",
        "Flags": 1,
        "SchemaVersion": VERSION,
    }


def balancer(endpoints: list[str], *vips: str, **fields: Any) -> Document:  # (g)
    port = {"Protocol": 6, "InternalPort": 8080, "ExternalPort": 8090}
    return {
        "HostComputeEndpoints": endpoints,
        "SourceVIP": "10.244.3.2",
        "FrontendVIPs": list(vips),
        "PortMappings": [port | fields.pop("port", {})],
        "SchemaVersion": VERSION,
        **fields,
    }


ACL: Document = {  # (h)
    "Type": "ACL",
    "Settings": {
        "Protocols": "6",
        "Action": "Allow",
        "Direction": "In",
        "LocalAddresses": "192.168.100.0/24,10.0.0.21",
        "RemoteAddresses": "192.168.100.0/24,10.0.0.21",
        "LocalPorts": "80,8080",
        "RemotePorts": "80,8080",
        "RuleType": "Switch",
        "Priority": 200,
    },
}


def _tier(name: str, order: int, *rules: Document) -> Document:
    settings = {"Name": name, "Direction": "In", "Order": order, "TierAclRules": list(rules)}
    return {"Type": "TierAcl", "Settings": settings}


TIERS: list[Document] = [  # (i)
    _tier(
        "TierIn1",
        1001,
        {
            "Id": "TierIn1Rule1",
            "Protocols": "17",
            "TierAclRuleAction": "Pass",
            "RemoteAddresses": "10.244.3.0/24",
            "Priority": 2001,
        },
        {"Id": "TierIn1Rule2", "Protocols": "17", "TierAclRuleAction": "Block", "Priority": 2100},
    ),
    _tier("TierIn2", 1002, {"Id": "r", "TierAclRuleAction": "Pass", "Priority": 3000}),
    _tier(
        "TierIn3",
        1013,
        {
            "Id": "TierIn3Rule1",
            "Protocols": "17",
            "TierAclRuleAction": "Allow",
            "LocalPorts": "8080",
            "Priority": 2300,
        },
        {"Id": "TierIn3Rule2", "TierAclRuleAction": "Block", "Priority": 2301},
    ),
]
PROXY: Document = {  # (j)
    "Type": "L4WFPPROXY",
    "Settings": {
        "FilterTuple": {"Protocols": "6"},
        "InboundExceptions": {"PortExceptions": ["4193", "4192"]},
        "InboundProxyPort": "4143",
        "OutboundProxyPort": "4140",
        "UserSID": "S-1-5-20",
    },
}
SDN_ROUTE: Document = {  # (k)
    "Setting": [
        {"DestinationPrefix": "169.254.169.254/24", "NextHop": "127.10.0.34", "NeedEncap": False}
    ],
    "SchemaVersion": VERSION,
}
LOOPBACK: Document = {  # (l)
    "Type": "OutBoundNAT",
    "Settings": {"Destinations": ["10.244.3.9"]},
}
LEASE: Document = {"VNI": 4096, "VtepMAC": "00:15:5d:67:64:7d"}  # (m)
CNI: Document = {  # (n)
    "name": "vxlan0",
    "type": "flannel",
    "delegate": {
        "type": "win-overlay",
        "Policies": [
            {
                "Name": "EndpointPolicy",
                "Value": {"Type": "OutBoundNAT", "ExceptionList": ["192.168.0.0/16", "11.0.0.0/8"]},
            },
            {
                "Name": "EndpointPolicy",
                "Value": {"Type": "ROUTE", "DestinationPrefix": "11.0.0.0/8", "NeedEncap": True},
            },
        ],
    },
}
V1_POD: Document = {  # win-overlay's first version: the v1 twin of (e)
    "Name": "cbr0_vxlan0",
    "VirtualNetwork": NET,
    "IPAddress": "10.244.3.21",
    "GatewayAddress": "10.244.3.1",
    "MacAddress": "0E-2A-0a-f4-03-15",
    "DNSServerList": "10.96.0.10,10.96.0.11",
    "DNSSuffix": "svc.cluster.local",
    "EncapOverhead": 50,
    "Policies": [
        {"Type": "OutBoundNAT", "ExceptionList": ["10.244.0.0/16", "10.43.0.0/16"]},
        {"Type": "ROUTE", "DestinationPrefix": "10.43.0.0/16", "NeedEncap": True},
        {"Type": "PA", "PA": "10.0.133.170"},
        {"Type": "NAT", "Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8000},
        {"Type": "ACL", "Protocol": 6, "LocalPort": 22, "Action": "Block", "Direction": "In"},
    ],
}
V1_SERVICE: Document = {  # kube-proxy's first version
    "References": [f"/endpoints/{POD}"],
    "Policies": [
        {
            "Type": "ELB",
            "SourceVIP": "10.244.3.2",
            "VIPs": ["10.96.0.10"],
            "ILB": True,
            "DSR": True,
            "Protocol": 6,
            "InternalPort": 8080,
            "ExternalPort": 80,
        }
    ],
}
