"""A policy laid over another: what it does not name stays."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.address import Mac, Vni
from dataplane.document import loads
from dataplane.merge import merge
from dataplane.model import (
    Acl,
    DirectSubnet,
    Flannel,
    HostPort,
    IcmpRate,
    Network,
    Node,
    OutboundNat,
    RemoteSubnet,
    Tap,
    Timers,
    Underlay,
    Wire,
)
from tests import strategies

nodes = strategies.nodes().thrown()
NEW = Acl(name="of the upper alone", direction="in", action="block")


def nothing_of(node: Node) -> Node:
    """What a document of the node must say at least."""
    return Node(name=node.name, underlay=Underlay(address=node.underlay.address))


def only(network: Network, **fields: object) -> Network:
    """What it must say at least of a network, and these."""
    said = Network(name=network.name, vni=network.vni, prefixes=network.prefixes)
    return replace(said, **fields)


@given(nodes)
def test_what_names_nothing_changes_nothing(node: Node) -> None:
    assert merge(node, nothing_of(node)) == node


@given(nodes)
def test_a_policy_over_itself_is_itself(node: Node) -> None:
    assert merge(node, node) == node


@given(nodes, nodes)
def test_again_changes_nothing_more(lower: Node, upper: Node) -> None:
    once = merge(lower, upper)
    assert merge(once, upper) == once


@given(nodes.filter(lambda node: node.networks), st.integers(0, 9))
def test_one_acl_leaves_all_else(node: Node, which: int) -> None:
    network = node.networks[which % len(node.networks)]
    upper = replace(nothing_of(node), networks=(only(network, acls=(NEW,)),))
    grown = replace(network, acls=(*network.acls, NEW))
    wanted = tuple(grown if n is network else n for n in node.networks)
    assert merge(node, upper) == replace(node, networks=wanted)


FULL = Node(
    name="a",
    underlay=Underlay(address=ip_address("192.0.2.1"), mtu=9000, offload=False, xdp="eth0"),
    host_port=HostPort(
        address=ip_address("169.254.0.1"),
        peer=ip_address("169.254.0.2"),
        tap=Tap(name="host", persist=True),
    ),
    icmp_rate=IcmpRate(port=7, all=70),
    timers=Timers(udp=7, icmp=8),
    flannel=Flannel(etcd=("http://127.0.0.1:2379",), endpoints=("web",)),
    networks=(
        Network(
            name="blue",
            vni=Vni(1),
            prefixes=(ip_network("10.0.0.0/16"),),
            gateways=(ip_address("10.0.0.9"),),
            pool=(ip_network("10.0.8.0/24"),),
            mtu=1300,
            outbound_nat=OutboundNat(max_ports=9, exceptions=(ip_network("10.9.0.0/16"),)),
            host_route=True,
            host_subnets=(ip_network("10.0.64.0/24"),),
            routing_domain="both",
            max_flows=99,
            wire=Wire(ttl=9, strict=True),
        ),
    ),
)


def test_a_field_that_is_named_is_the_only_one_that_changes() -> None:
    document = """
version: 1
node:
  name: a
  underlay: {address: 192.0.2.7}
  host_port: {address: 169.254.0.1, peer: 169.254.0.3, tap: {name: host}}
  timers: {udp: 9}
  icmp_rate: {port: 8}
  flannel: {etcd: ['http://127.0.0.1:2379'], endpoints: [db]}
  networks:
    - {name: blue, vni: 1, prefixes: [10.0.0.0/16], wire: {ttl: 8}, outbound_nat: {max_ports: 8}}
"""
    upper = loads(document).node
    (blue,) = FULL.networks
    assert (
        upper is not None
        and blue.outbound_nat
        and FULL.icmp_rate
        and FULL.flannel
        and FULL.host_port
    )
    wanted = replace(
        blue,
        wire=replace(blue.wire, ttl=8),
        outbound_nat=replace(blue.outbound_nat, max_ports=8),
    )
    assert merge(FULL, upper) == replace(
        FULL,
        underlay=replace(FULL.underlay, address=ip_address("192.0.2.7")),
        host_port=replace(FULL.host_port, peer=ip_address("169.254.0.3")),
        timers=replace(FULL.timers, udp=9),
        icmp_rate=replace(FULL.icmp_rate, port=8),
        flannel=replace(FULL.flannel, endpoints=("db",)),
        networks=(wanted,),
    )


def test_a_default_is_not_named() -> None:
    """The rule has this price: `--prune`, or PUT of the network, sets a field back."""
    upper = replace(FULL, networks=(replace(FULL.networks[0], host_route=False, mtu="auto"),))
    assert merge(FULL, upper) == FULL


def test_an_object_of_a_list_is_replaced_whole() -> None:
    acl = Acl(name="r", direction="in", action="block", priority=7, idle=9)
    lower = replace(FULL, networks=(replace(FULL.networks[0], acls=(acl, NEW)),))
    plain = Acl(name="r", direction="in", action="block")
    upper = replace(nothing_of(FULL), networks=(only(FULL.networks[0], acls=(plain,)),))
    assert merge(lower, upper).networks[0].acls == (plain, NEW)


def test_a_prefix_that_is_direct_now_is_no_longer_remote() -> None:
    """And the other way round; all other subnets of both lists stay."""
    far, near = (ip_network(f"10.1.{n}.0/24") for n in (2, 3))
    peer, mac = ip_address("192.0.2.2"), Mac("02:00:00:00:0b:00")
    remote = {p: RemoteSubnet(prefix=p, provider_address=peer, dr_mac=mac) for p in (far, near)}
    direct = {p: DirectSubnet(prefix=p, provider_address=peer) for p in (far, near)}
    said = Network(name="blue", vni=Vni(7), prefixes=(ip_network("10.1.0.0/16"),))
    own = Underlay(address=ip_address("192.0.2.1"))

    def node(**fields: object) -> Node:
        return Node(name="a", underlay=own, networks=(replace(said, **fields),))

    mixed = node(remote_subnets=(remote[far],), direct_subnets=(direct[near],))
    assert merge(mixed, node(direct_subnets=(direct[far],))) == node(
        direct_subnets=(direct[near], direct[far])
    )
    assert merge(mixed, node(remote_subnets=(remote[near],))) == node(
        remote_subnets=(remote[far], remote[near])
    )
