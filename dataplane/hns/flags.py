"""Flags of HNS documents: what each is called, and what becomes of it."""

from collections.abc import Mapping
from typing import NamedTuple

from dataplane.hns.values import Reader, Value, bad, u32


class Flag(NamedTuple):
    """`fate`: supported; kept (harmless here, told again as it came); refused, with the reason."""

    name: str
    fate: str
    why: str


_IPV6 = Flag("IPv6", "supported", "the address it is met at must be one of IPv6")
_ROUTED = "the host reaches VIPs by its routes, with and without it"

FLAGS: Mapping[str, Mapping[int, Flag]] = {
    "networks": {
        1: Flag("EnableDnsProxy", "refused", "nothing here answers DNS"),
        2: Flag("EnableDhcpServer", "refused", "addresses are set by whoever owns the endpoint"),
        4: Flag("EnableMirroring", "refused", "look at packets with dataplane capture"),
        8: Flag(
            "EnableNonPersistent", "kept", "objects are saved if the node has a state directory"
        ),
        1024: Flag("DisableHostPort", "refused", "the host has no way in without a HostRoute"),
        8192: Flag("EnableIov", "refused", "an endpoint is a TAP, which has no SR-IOV"),
    },
    "subnets": {
        1: Flag("DoNotReserveGatewayAddress", "refused", "the gateway's address is the router's"),
    },
    "endpoints": {
        1: Flag("RemoteEndpoint", "supported", "a backend or a remote subnet, and no port"),
        2: Flag("DisableICC", "refused", "write ACLs"),
        4: Flag("EnableMirroring", "refused", "look at packets with dataplane capture"),
        8: Flag("EnableLowInterfaceMetric", "refused", "the TAP's routes are its namespace's own"),
        16: Flag("OverrideDNSServerOrder", "refused", "nothing here sets DNS servers"),
        32: Flag("EnableDhcp", "refused", "name the address, or leave it out to be given one"),
    },
    "loadbalancers": {
        1: Flag("DSR", "kept", "a client's own node translates, with and without it"),
        2: _IPV6,
    },
    "PortMappings": {
        1: Flag("ILB", "kept", "the network and the host meet a VIP, with and without it"),
        2: Flag("LocalRoutedVIP", "kept", _ROUTED),
        4: Flag("UseMux", "refused", "there is no multiplexer in front"),
        8: Flag("PreserveDIP", "refused", "backends are met at their own addresses"),
        16: Flag("VipExternalIP", "kept", "a VIP is a VIP, whoever gave it"),
    },
    "PortMapping": {
        1: Flag("LocalRoutedVip", "kept", _ROUTED),
        2: _IPV6,
        4: Flag("ExternalPortReserved", "kept", "no port of the host is ever reserved"),
    },
    "OutBoundNAT": {
        1: Flag("LocalRoutedVip", "refused", "what is translated is told by Destinations"),
        2: Flag("IPv6", "refused", "what is translated is told by VirtualIP"),
    },
}
REMOTE, IPV6 = 1, 2  # of endpoints; of load balancers and port mappings


def flags(of: str) -> Reader:
    """Bits of FLAGS; one that is refused, or that nobody knows, is named."""
    known = FLAGS[of]
    taken = sum(bit for bit, flag in known.items() if flag.fate != "refused")

    def read(value: Value, place: str) -> int:
        found: int = u32(value, place)
        rest = found & ~taken
        if rest:
            raise bad(place, _told(rest & -rest, known), "HCN_E_REQUEST_UNSUPPORTED")
        return found

    return read


def _told(bit: int, known: Mapping[int, Flag]) -> str:
    if bit in known:
        return f"{known[bit].name} (flag {bit}) is not supported: {known[bit].why}"
    there = ", ".join(f"{flag.name} ({each})" for each, flag in known.items())
    return f"flag {bit} is unknown; there are: {there}"
