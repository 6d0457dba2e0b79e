"""`subnet.env` as the stock flannel CNI plugin reads it.

Its binary cannot be had here, so its rules are told once more: lines are split at the first `=`,
keys it does not know are passed over, a network may be several with commas, a subnet is one; an
address of a CIDR has no leading zeros; the MTU is decimal, of 32 bits; masquerading is the word
`true`. What it then lacks is an error (cni-plugin v1.9.1, loadFlannelSubnetEnv and missing).
"""

import json
import re
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.flannel import subnet_env
from dataplane.flannel.documents import Config, Family, Subnet, read_config
from dataplane.flannel.translate import mtu
from dataplane.model import Underlay

UNDERLAY = Underlay(address=ip_address("192.0.2.1"), address6=ip_address("2001:db8::1"))
_CIDR = re.compile(r"[0-9a-f.:]+/(?:0|[1-9]\d{0,2})")
_ZEROS = re.compile(r"(?:^|\.)0\d")


class Read(NamedTuple):
    networks: tuple[IPv4Interface | IPv6Interface, ...]
    subnets: tuple[IPv4Interface | IPv6Interface, ...]
    mtu: int
    ipmasq: bool


def cidr(text: str) -> IPv4Interface | IPv6Interface:
    """As Go's net.ParseCIDR. Raises ValueError."""
    if not _CIDR.fullmatch(text) or (":" not in text and _ZEROS.search(text)):
        raise ValueError(f"invalid CIDR address: {text}")
    return ip_interface(text)


def plugin(text: str) -> Read:
    """What the plugin makes of it. Raises ValueError where it refuses."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{line!r} would crash it")
        found[key] = value
    names = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
    networks = [cidr(t) for n in names if n in found for t in found[n].split(",")]
    subnets = [cidr(found[n]) for n in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if n in found]
    size = found.get("FLANNEL_MTU", "")
    if not networks or not subnets or "FLANNEL_IPMASQ" not in found:
        raise ValueError("something is missing")
    if not re.fullmatch(r"\d+", size) or int(size) >= 1 << 32:
        raise ValueError(f"no number: {size!r}")
    return Read(tuple(networks), tuple(subnets), int(size), found["FLANNEL_IPMASQ"] == "true")


@st.composite
def leases(draw: st.DrawFn) -> tuple[Config, Subnet]:
    """A config as somebody may write it, and one of its subnets."""
    bits, bits6 = draw(st.integers(1, 28)), draw(st.integers(1, 124))
    whole = IPv4Network((draw(st.integers(0, (1 << 32) - 1)), bits), strict=False)
    whole6 = IPv6Network((draw(st.integers(0, (1 << 128) - 1)), bits6), strict=False)
    dual = draw(st.booleans())
    six = {"EnableIPv6": True, "IPv6Network": str(whole6)} if dual else {}
    backend = {"Type": "vxlan", "MTU": draw(st.sampled_from([0, 576, 1450, 9000]))}
    text = json.dumps({"Network": str(whole), "Backend": backend, **six}).encode()
    config = read_config(text, "config")

    def one(family: Family) -> object:
        step = 1 << family.network.max_prefixlen - family.length
        number = draw(st.integers(0, (family.last - family.first) // step))
        address = type(family.network[0])(family.first + number * step)
        return ip_network(f"{address}/{family.length}")

    return config, Subnet(one(config.v4), one(config.v6) if config.v6 else None)  # type: ignore[arg-type]


@given(leases())
def test_the_plugin_reads_what_we_mean(lease: tuple[Config, Subnet]) -> None:
    """The network whole, the bridge's address in the lease, the MTU that fits either family."""
    config, subnet = lease
    size = mtu(config, UNDERLAY)
    read = plugin(subnet_env.text(config, subnet, size))
    families = [f for f in (config.v4, config.v6) if f is not None]
    own = [s for s in subnet if s is not None]
    assert [n.network for n in read.networks] == [f.network for f in families]
    assert [s.network for s in read.subnets] == own
    assert [s.ip for s in read.subnets] == [s[1] for s in own]
    assert (read.mtu, read.ipmasq) == (size, False)
    for there, whole in zip(own, families, strict=True):
        assert there.network_address in whole.network
        assert there.num_addresses >= 4, "host-local has an address to give beside the bridge's"


@given(leases())
def test_keys_are_in_flannels_order(lease: tuple[Config, Subnet]) -> None:
    config, subnet = lease
    with_newline = subnet_env.text(config, subnet, 1450)
    assert with_newline.endswith("\n") and " " not in with_newline and '"' not in with_newline
    keys = [line.partition("=")[0] for line in with_newline.splitlines()]
    usual = ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"]
    both = usual if config.v6 is not None else usual[:2]
    assert keys == [*both, "FLANNEL_MTU", "FLANNEL_IPMASQ"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\n",
        "FLANNEL_NETWORK=10.05.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true\n",
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true\n",
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1.5\nFLANNEL_IPMASQ=true\n",
    ],
)
def test_what_the_plugin_refuses_is_refused_here(text: str) -> None:
    with pytest.raises(ValueError):
        plugin(text)


def test_the_file_is_there_whole_and_for_all_to_read(tmp_path: Path) -> None:
    place = tmp_path / "flannel" / "subnet.env"
    subnet_env.write(place, "FLANNEL_MTU=1450\n")
    assert place.stat().st_mode & 0o777 == 0o644 and place.parent.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in place.parent.iterdir()] == ["subnet.env"]
