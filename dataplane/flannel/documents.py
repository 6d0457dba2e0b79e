"""What flannel nodes read and write in etcd: the network's config, and leases. Pure.

Keys are read as Go reads them, in any case; what is null counts as left out (flannel's
pkg/subnet/config.go and subnet.go).
"""

import json
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple

import msgspec

from dataplane.address import Mac
from dataplane.errors import DocumentError, Fault

DEFAULT_PORT = 8472  # Linux's, where the config says 0
MAX_VNI = (1 << 24) - 1
OLD_MAX_VNI = (1 << 16) - 1  # flannel before 0.24, and on Windows

LONGEST = {4: 30, 6: 126}  # bits of a subnet, by the IP version

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?")


class _Raw(msgspec.Struct, rename=lambda name: name.replace("_", "")):
    pass


class _RawBackend(_Raw):
    type: str = "udp"  # so in flannel's code, whatever its documentation says
    vni: int = 1
    port: int = 0
    mtu: int = 0
    gbp: bool = False
    direct_routing: bool = False


class _RawConfig(_Raw):
    network: str = ""
    subnet_len: int = 0
    subnet_min: str = ""
    subnet_max: str = ""
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipv6_network: str = ""
    ipv6_subnet_len: int = 0
    ipv6_subnet_min: str = ""
    ipv6_subnet_max: str = ""
    backend: _RawBackend = msgspec.field(default_factory=_RawBackend)


class Family(NamedTuple):
    """The network in one address family: subnets of so many bits from `first` to `last`."""

    network: IPv4Network | IPv6Network
    length: int
    first: int  # address of the lowest subnet to be leased
    last: int

    def fits(self, subnet: IPv4Network | IPv6Network) -> bool:
        at = int(subnet.network_address)
        same = subnet.version == self.network.version and subnet.prefixlen == self.length
        return same and self.first <= at <= self.last


class Config(NamedTuple):
    """Of the whole overlay. `mtu`: of the outer packets; 0: the underlay's. `direct`: no tunnel to
    peers on the same link."""

    v4: Family
    v6: Family | None
    vni: int
    port: int
    mtu: int
    direct: bool = False


class Subnet(NamedTuple):
    """What one lease is of."""

    v4: IPv4Network
    v6: IPv6Network | None = None

    def key(self) -> str:
        """As the last part of its key in etcd."""
        text = f"{self.v4.network_address}-{self.v4.prefixlen}"
        six = self.v6
        return f"{text}&{six.network_address}-{six.prefixlen}" if six is not None else text


class Lease(NamedTuple):
    """A node's subnet, and where packets to it go. `mac` None: not known yet (Windows)."""

    subnet: Subnet
    public_ip: IPv4Address
    public_ip6: IPv6Address | None
    mac: Mac | None
    mac6: Mac | None
    vni: int

    def text(self) -> bytes:
        """Its value in etcd, as flannel writes it, without a space."""
        data: dict[str, Any] = {
            "PublicIP": str(self.public_ip),
            "PublicIPv6": None if self.public_ip6 is None else str(self.public_ip6),
            "BackendType": "vxlan",
            "BackendData": {"VNI": self.vni, "VtepMAC": str(self.mac or "")},
        }
        if self.subnet.v6 is not None:
            data["BackendV6Data"] = {"VNI": self.vni, "VtepMAC": str(self.mac6 or "")}
        return json.dumps(data, separators=(",", ":")).encode()


def read_config(value: bytes, place: str) -> Config:
    """Raises DocumentError, which names `place`."""
    try:
        raw = msgspec.convert(_folded(json.loads(value)), _RawConfig)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise _bad(place, "$", f"cannot be read: {error}") from error
    backend = raw.backend
    if backend.type.lower() != "vxlan":
        fix = 'this node speaks "vxlan" only'
        raise _bad(place, "$.Backend.Type", f"is {backend.type!r}", fix)
    if backend.gbp:
        raise _bad(place, "$.Backend.GBP", "group policies are not spoken here", "set it to false")
    if not 1 <= backend.vni <= MAX_VNI:
        raise _bad(place, "$.Backend.VNI", f"{backend.vni} is not between 1 and {MAX_VNI}")
    if not 0 <= backend.port <= 65535:
        raise _bad(place, "$.Backend.Port", f"{backend.port} is no UDP port")
    if backend.mtu and not 576 <= backend.mtu <= 65535:
        raise _bad(place, "$.Backend.MTU", f"{backend.mtu} is not between 576 and 65535")
    if not raw.enable_ipv4:
        raise _bad(place, "$.EnableIPv4", "a lease in etcd has no form for IPv6 alone")
    v4 = _family(raw.network, (raw.subnet_len, raw.subnet_min, raw.subnet_max), 4, place)
    six = (raw.ipv6_subnet_len, raw.ipv6_subnet_min, raw.ipv6_subnet_max)
    v6 = _family(raw.ipv6_network, six, 6, place) if raw.enable_ipv6 else None
    port = backend.port or DEFAULT_PORT
    return Config(v4, v6, backend.vni, port, backend.mtu, backend.direct_routing)


class _Bounds(NamedTuple):
    """What flannel allows of one family."""

    kind: type[IPv4Network] | type[IPv6Network]
    address: type[IPv4Address] | type[IPv6Address]
    named: str  # before each field's name
    usual: int


_BOUNDS = {
    4: _Bounds(IPv4Network, IPv4Address, "", 24),
    6: _Bounds(IPv6Network, IPv6Address, "IPv6", 64),
}


def _family(network: str, subnets: tuple[int, str, str], version: int, place: str) -> Family:
    bounds = _BOUNDS[version]
    named, longest = bounds.named, LONGEST[version]
    try:
        whole = bounds.kind(network, strict=False)
    except ValueError as error:
        raise _bad(place, f"$.{named}Network", str(error)) from error
    if whole.prefixlen > longest - 2:
        least = longest - 2
        raise _bad(place, f"$.{named}Network", f"{whole} is too small", f"at least a /{least}")
    length, low, high = subnets
    usual = bounds.usual if whole.prefixlen <= bounds.usual - 2 else whole.prefixlen + 2
    length = length or usual
    if not whole.prefixlen + 2 <= length <= longest:
        message = f"{length} is not between {whole.prefixlen + 2} and {longest}"
        raise _bad(place, f"$.{named}SubnetLen", message)
    step = 1 << (whole.max_prefixlen - length)
    least, most = int(whole.network_address) + step, int(whole.broadcast_address) + 1 - step
    limits = []
    for name, text, default in (("Min", low, least), ("Max", high, most)):
        try:
            at = int(bounds.address(text)) if text else default
        except ValueError as error:
            raise _bad(place, f"$.{named}Subnet{name}", str(error)) from error
        if at % step or not int(whole.network_address) <= at <= most:
            message = f"{text} is no /{length} of {whole}"
            raise _bad(place, f"$.{named}Subnet{name}", message)
        limits.append(at)
    if limits[0] > limits[1]:
        raise _bad(place, f"$.{named}SubnetMin", f"{low} lies behind the last subnet")
    return Family(whole, length, *limits)


def read_subnet(key: str) -> Subnet:
    """Of the last part of a key. Raises DocumentError."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise _bad(key, "$", "is no key of a lease (as in 10.5.34.0-24)")
    v4, bits, v6, bits6 = found.groups()
    try:
        six = IPv6Network(f"{v6}/{bits6}") if v6 else None
        return Subnet(IPv4Network(f"{v4}/{bits}"), six)
    except ValueError as error:
        raise _bad(key, "$", str(error)) from error


def read_lease(key: str, value: bytes) -> Lease:
    """Raises DocumentError."""
    subnet = read_subnet(key)
    try:
        raw = _folded(json.loads(value))
        if not isinstance(raw, dict):
            raise ValueError("is no object")
        kind = raw.get("backendtype")
        if kind != "vxlan":
            raise ValueError(f"BackendType is {kind!r}, not 'vxlan'")
        four, six = _backend(raw, "backenddata"), _backend(raw, "backendv6data")
        public6 = raw.get("publicipv6")
        return Lease(
            subnet,
            IPv4Address(_text(raw, "publicip")),
            IPv6Address(public6) if public6 else None,
            _mac(four),
            _mac(six),
            int(four.get("vni", 0)),
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _bad(key, "$", str(error)) from error


def _text(raw: dict[str, Any], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")
    return value


def _backend(raw: dict[str, Any], name: str) -> dict[str, Any]:
    data = raw.get(name, {})
    if not isinstance(data, dict):
        raise ValueError(f"{name} is no object")
    return data


def _mac(data: dict[str, Any]) -> Mac | None:
    """None where it is missing, empty or zero: a Windows node writes its lease before it knows."""
    text = data.get("vtepmac")
    if not text:
        return None
    mac = Mac(str(text).lower())
    return mac if any(mac.packed) else None


def _folded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k).lower(): _folded(v) for k, v in value.items() if v is not None}
    return value


def _bad(place: str, path: str, message: str, fix: str = "") -> DocumentError:
    return DocumentError((Fault(place, 0, path, message, fix),))
