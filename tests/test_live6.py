"""IPv6 inside, on real devices: neighbour discovery, ping, TCP and path MTU, and the way out.

Hosts a and b run nodes, c is a kernel VXLAN peer, all of one dual-stack network; the kernels of the
pods resolve neighbours, detect duplicates and learn the path's MTU as they do on any link.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from dataplane import demo_net
from dataplane import demo_traffic as traffic
from dataplane.demo_net import Site
from dataplane.demo_node import NodeProcess
from dataplane.stats import adds_up
from tests.test_live import hops

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

ROUTER_A = "02:aa:00:00:10:01"
GATEWAY = "fd00:1::1"
POD = {"a1": "fd00:1:0:1::2", "a2": "fd00:1:0:1::3", "b1": "fd00:1:0:2::2", "c1": "fd00:1:0:3::2"}
POLICY = """
version: 1
nodes:
  - name: a
    underlay: {{address: 192.0.2.1}}
    networks:
      - name: blue
        vni: 4096
        prefixes: [10.1.0.0/16, "fd00:1::/48"]
        dr_mac: "02:aa:00:00:10:01"
        remote_subnets:
          - {{prefix: "fd00:1:0:2::/64", provider_address: 192.0.2.65, dr_mac: "02:aa:00:00:10:02"}}
          - prefix: "fd00:1:0:3::/64"
            provider_address: 192.0.2.129
            dr_mac: "02:aa:00:00:10:03"
        endpoints:
          - name: web
            addresses: [10.1.1.2, "fd00:1:0:1::2"]
            tap: {{name: eth0, mtu: 1500, netns: {a1}}}
          - {{name: app, addresses: ["fd00:1:0:1::3"], tap: {{name: eth0, netns: {a2}}}}}
  - name: b
    underlay: {{address: 192.0.2.65}}
    networks:
      - name: blue
        vni: 4096
        prefixes: [10.1.0.0/16, "fd00:1::/48"]
        dr_mac: "02:aa:00:00:10:02"
        remote_subnets:
          - {{prefix: "fd00:1:0:1::/64", provider_address: 192.0.2.1, dr_mac: "02:aa:00:00:10:01"}}
          - prefix: "fd00:1:0:3::/64"
            provider_address: 192.0.2.129
            dr_mac: "02:aa:00:00:10:03"
        endpoints:
          - {{name: db, addresses: ["fd00:1:0:2::2"], tap: {{name: eth0, mtu: 1500, netns: {b1}}}}}
"""
ALONE = """
version: 1
node:
  name: alone
  underlay: {{address: 203.0.113.9}}
  host_port: {{address: "fd77::1", peer: "fd77::2", tap: {{name: dataplane0}}}}
  networks:
    - name: blue
      vni: 4096
      prefixes: ["fd00:1::/48"]
      outbound_nat: {{{nat}}}
      endpoints:
        - {{name: web, addresses: ["fd00:1:0:1::2"], tap: {{name: eth0, netns: {o1}}}}}
"""
OUTSIDE = "2001:db8:113::9"  # host o
BEYOND = "2001:db8:113::1"  # the router behind it
VIP = "2001:db8:77::77"


class World(NamedTuple):
    site: Site
    a: NodeProcess
    b: NodeProcess


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    _kernel_peer(site)
    policy = site.directory / "policy6.yaml"
    policy.write_text(POLICY.format(**{pod: site.full(pod) for pod in POD}))
    with ExitStack() as stack:
        nodes = [stack.enter_context(NodeProcess(site, n, n, policy)) for n in ("a", "b")]
        yield World(site, *nodes)


def _kernel_peer(site: Site) -> None:
    """Host c's IPv6, as flannel sets it up beside IPv4."""
    site.ip("c", "addr add fd00:1:0:3::/128 dev flannel.4096 nodad")
    site.ip("c", "addr add fd00:1:0:3::1/64 dev pod nodad")
    for subnet, mac in (("fd00:1:0:1::", ROUTER_A), ("fd00:1:0:2::", "02:aa:00:00:10:02")):
        site.ip(
            "c",
            f"neigh replace {subnet} lladdr {mac} dev flannel.4096 nud permanent",
            f"route replace {subnet}/64 via {subnet} dev flannel.4096 onlink",
        )
    site.ip("c1", f"addr add {POD['c1']}/64 dev eth0 nodad", "route add default via fd00:1:0:3::1")
    switch = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    site.inside("c", lambda: switch.write_text("1"))


def answers(site: Site, source: str, address: str, *options: str) -> bool:
    return traffic.ping(site, source, address, "-6", "-c", "2", "-i", "0.05", *options)[0] == 0


def eventually(site: Site, source: str, address: str) -> bool:
    return any(answers(site, source, address, "-W", "1") for _ in range(5))


PAIRS = [
    *(("a1", "a2"), ("a2", "a1"), ("a1", "b1"), ("b1", "a1")),
    *(("b1", "a2"), ("a1", "c1"), ("c1", "b1")),
]


@pytest.mark.conformance("A2")
@pytest.mark.parametrize("pod", ["a1", "a2", "b1"])
def test_the_gateway_answers(world: World, pod: str) -> None:
    assert answers(world.site, pod, GATEWAY)
    told = demo_net.run("ip", "-n", world.site.full(pod), "neigh", "show", "to", GATEWAY)
    assert "router" in told.split()
    assert ("lladdr " + (ROUTER_A if pod != "b1" else "02:aa:00:00:10:02")) in told


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_ping(world: World, source: str, target: str) -> None:
    assert answers(world.site, source, POD[target])
    assert answers(world.site, source, POD[target], "-M", "do", "-s", "1400")
    assert answers(world.site, source, POD[target], "-M", "do", "-s", "1402")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_tcp(world: World, source: str, target: str) -> None:
    to = (POD[target], 5001)
    done = traffic.transfer(world.site, source, target, to, lambda sent: sent < 10)
    assert done.intact
    assert (done.size, done.peer) == (10 * traffic.BLOCK, POD[source])


@pytest.mark.conformance("R2", "R4")
@pytest.mark.parametrize("options", [(), ("-I",)], ids=["udp", "icmp"])
def test_traceroute(world: World, options: tuple[str, ...]) -> None:
    site = world.site
    assert hops(site, "a1", POD["b1"], *options) == [GATEWAY, POD["b1"]]
    assert hops(site, "a1", POD["c1"], *options) == [GATEWAY, "fd00:1:0:3::", POD["c1"]]
    assert hops(site, "c1", POD["a1"], *options) == ["fd00:1:0:3::1", POD["a1"]]


@pytest.mark.conformance("R4", "R5")
@pytest.mark.parametrize("target", ["a2", "b1", "c1"])
def test_path_mtu(world: World, target: str) -> None:
    """The gateway says too big with the way's MTU, and the kernel heeds it."""
    code, text = traffic.ping(
        world.site, "a1", POD[target], "-6", "-c", "3", "-i", "0.05", "-M", "do", "-s", "1440"
    )
    assert code != 0
    assert f"From {GATEWAY} icmp_seq=1 Packet too big: mtu=1450" in text
    assert answers(world.site, "a1", POD[target], "-s", "4000")  # in fragments that fit


@pytest.mark.conformance("A2")
@pytest.mark.parametrize("address", [POD["a2"], POD["b1"], GATEWAY])
def test_a_duplicate_is_detected(world: World, address: str) -> None:
    """A pod that takes an address of another's finds it taken."""
    world.site.ip("a1", f"addr add {address}/128 dev eth0")
    try:
        deadline = time.monotonic() + 5
        while "dadfailed" not in (told := _addresses(world.site, "a1", address)):
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
    finally:
        world.site.ip("a1", f"addr del {address}/128 dev eth0")


def test_its_own_address_is_no_duplicate(world: World) -> None:
    address = POD["a2"]
    world.site.ip("a2", f"addr del {address}/48 dev eth0", f"addr add {address}/48 dev eth0")
    deadline = time.monotonic() + 5
    while "tentative" in (told := _addresses(world.site, "a2", address)):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert "dadfailed" not in told
    assert eventually(world.site, "a1", address)


def _addresses(site: Site, pod: str, address: str) -> str:
    return demo_net.run("ip", "-n", site.full(pod), "addr", "show", "dev", "eth0", "to", address)


def test_counters_obey_the_law(world: World) -> None:
    for node in (world.a, world.b):
        stats = node.stats()
        totals = stats["totals"]
        assert adds_up(totals) and totals["rx"] > 0
        assert not {"bad_nd", "guard_nd", "guard_ra"} & stats["reasons"].keys()
    assert world.site.checksum_errors() == {}


# ---- the way out -------------------------------------------------------------------------------


@pytest.fixture
def outside(site: Site) -> Iterator[Site]:
    site.add("o1")
    site.ip("o", f"addr replace {OUTSIDE}/64 dev uplink nodad")
    site.ip("r", f"addr replace {BEYOND}/64 dev to-o nodad")
    yield site
    demo_net.remove(site.full("o1"))
    site.names.remove("o1")


@pytest.mark.parametrize("nat", [f'vip: "{VIP}"', ""], ids=["vip", "masquerade"])
def test_outbound_nat(outside: Site, nat: str) -> None:
    """The host finds the VIP behind the host port by neighbour discovery; or it masquerades."""
    policy = outside.directory / "alone6.yaml"
    policy.write_text(ALONE.format(nat=nat, o1=outside.full("o1")))
    with NodeProcess(outside, "o", "alone", policy) as node:
        assert eventually(outside, "o1", OUTSIDE)
        if not nat:
            assert answers(outside, "o1", BEYOND)
        done = traffic.transfer(outside, "o1", "o", (OUTSIDE, 8080), lambda sent: sent < 3)
        assert done.intact
        assert done.peer == (VIP if nat else "fd77::1")
        assert node.stats()["reasons"].get("bad_nd", 0) == 0


@pytest.mark.conformance("R4", "R5", "N3")
def test_traceroute_and_path_mtu_through_nat(outside: Site) -> None:
    """To a host behind the router behind this one, over a narrow link."""
    far = "2001:db8:a::1"
    outside.ip("a", f"addr replace {far}/64 dev uplink nodad")
    outside.ip("a", "route replace default via 2001:db8:a::fe")
    outside.ip("r", "addr replace 2001:db8:a::fe/64 dev to-a nodad", "link set to-a mtu 1300")
    outside.ip("a", "link set uplink mtu 1300")
    outside.ip("o", f"route replace default via {BEYOND}")
    switch = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    for name in ("r", "o"):
        outside.inside(name, lambda: switch.write_text("1"))
    policy = outside.directory / "alone6.yaml"
    policy.write_text(ALONE.format(nat="", o1=outside.full("o1")))
    with NodeProcess(outside, "o", "alone", policy):
        assert eventually(outside, "o1", OUTSIDE)
        assert hops(outside, "o1", far)[-2:] == [BEYOND, far]
        text = traffic.ping(outside, "o1", far, "-c", "2", "-M", "do", "-s", "1350")[1]
        assert f"From {BEYOND} icmp_seq=1 Packet too big: mtu=1300" in text
        done = traffic.transfer(outside, "o1", "a", (far, 8080), lambda sent: sent < 3)
        assert done.intact
