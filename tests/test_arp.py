"""ARP: what is answered, with which bytes, and what is refused for which reason."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from dataplane.address import Mac, Vni
from dataplane.engine import Engine
from dataplane.model import (
    Endpoint,
    HostPort,
    LoadBalancer,
    Network,
    Node,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.reasons import Verdict
from tests.reference.build import BROADCAST_MAC, vxlan

DR, WEB, DB, PEER = (bytes([2, 0, 0, 0, 0, n]) for n in range(1, 5))
A, B, GATEWAY, REMOTE, NOBODY, OUTSIDE, VIP, SOURCE, HOST, HOST_FAR, NONE = (
    ip_address(a).packed
    for a in (
        *("10.0.1.2", "10.0.1.3", "10.0.1.1", "10.2.0.9", "10.0.1.99", "203.0.113.9"),
        *("10.0.1.40", "10.0.1.50"),
        *("169.254.1.1", "169.254.1.2", "0.0.0.0"),
    )
)
OUR_HOST, HOST_PEER = b"\x02\x01" + HOST, b"\x02\x01" + HOST_FAR


def node() -> Node:
    remote = RemoteSubnet(
        prefix=ip_network("10.2.0.0/16"),
        provider_address=ip_address("192.0.2.2"),
        dr_mac=Mac.from_bytes(PEER),
    )
    endpoints = tuple(
        Endpoint(name=name, addresses=(ip_address(address),), mac=Mac.from_bytes(mac))
        for name, address, mac in (("web", A, WEB), ("db", B, DB))
    )
    balancer = LoadBalancer(
        name="shop", protocol="tcp", port=80, vips=(ip_address(VIP),), source_vip=ip_address(SOURCE)
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"),),
        dr_mac=Mac.from_bytes(DR),
        remote_subnets=(remote,),
        endpoints=endpoints,
        load_balancers=(balancer,),
    )
    host = HostPort(address=ip_address(HOST), peer=ip_address(HOST_FAR), tap=Tap(name="h"))
    underlay = Underlay(address=ip_address("192.0.2.1"))
    return Node(name="a", underlay=underlay, host_port=host, networks=(blue,))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(max_flows=64) as made:
        made.commit(node())
        yield made


def frame(
    tpa: bytes = GATEWAY,
    *,
    spa: bytes = A,
    sha: bytes = WEB,
    smac: bytes = WEB,
    dmac: bytes = BROADCAST_MAC,
    opcode: int = 1,
    head: bytes = b"\0\1\x08\0\6\4",
) -> bytes:
    body = head + opcode.to_bytes(2) + sha + spa + bytes(6) + tpa
    return dmac + smac + b"\x08\6" + body


ANSWERED = {  # request: the MAC that is told
    "gateway": (frame(), DR),
    "gateway, unicast": (frame(dmac=DR), DR),
    "behind a remote subnet": (frame(REMOTE), DR),
    "neighbour": (frame(B), DB),
    "a service": (frame(VIP), DR),
    "whom its backends see": (frame(SOURCE), DR),
    "probe for the gateway": (frame(spa=NONE), DR),
    "probe for a neighbour's address": (frame(B, spa=NONE), DB),
}


@pytest.mark.conformance("A1")
@pytest.mark.parametrize("name", ANSWERED)
def test_answer(engine: Engine, name: str) -> None:
    sent, mac = ANSWERED[name]
    before = engine.stats().totals["flows"]
    got = engine.process_one(sent, "blue/web")
    assert (got.verdict, got.port) == (Verdict.ANSWER, "blue/web")
    told = b"\0\1\x08\0\6\4\0\2" + mac + sent[38:42] + WEB + sent[28:32]
    assert got.frame == WEB + mac + b"\x08\6" + told
    assert engine.stats().totals["flows"] == before


REFUSED = {
    "hardware type": (frame(head=b"\0\2\x08\0\6\4"), "bad_arp"),
    "protocol": (frame(head=b"\0\1\x86\xdd\6\4"), "bad_arp"),
    "hardware length": (frame(head=b"\0\1\x08\0\x08\4"), "bad_arp"),
    "protocol length": (frame(head=b"\0\1\x08\0\6\x10"), "bad_arp"),
    "gratuitous": (frame(A), "arp_announcement"),
    "probe for its own": (frame(A, spa=NONE), "arp_announcement"),
    "no one's": (frame(NOBODY), "arp_unknown_target"),
    "not routed": (frame(OUTSIDE), "arp_unknown_target"),
    "another's address": (frame(spa=B), "guard_arp"),
    "the gateway's address": (frame(B, spa=GATEWAY), "guard_arp"),
    "another's MAC": (frame(sha=DB), "guard_arp"),
    "another's MAC on the frame": (frame(smac=DB), "guard_mac"),
    "gratuitous for another": (frame(B, spa=B), "guard_arp"),
    "reply": (frame(opcode=2), "guard_arp"),
    "reply for its own": (frame(A, opcode=2), "guard_arp"),
    "reverse request": (frame(opcode=3), "guard_arp"),
    "tagged": (frame()[:12] + b"\x81\0\0\5" + frame()[12:], "vlan_tagged"),
}


@pytest.mark.conformance("A1", "T3")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(engine: Engine, name: str) -> None:
    sent, reason = REFUSED[name]
    got = engine.process_one(sent, "blue/web")
    assert (got.verdict, str(got.reason), got.port) == (Verdict.DROP, reason, None)


@pytest.mark.conformance("A1", "T12")
def test_every_cut(engine: Engine) -> None:
    sent = frame()
    for size in range(len(sent)):
        got = engine.process_one(sent[:size], "blue/web")
        assert str(got.reason) == ("short_ethernet" if size < 14 else "bad_arp")


@pytest.mark.conformance("A3")
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("tpa", [A, GATEWAY, REMOTE])
def test_nothing_comes_through_the_tunnel(engine: Engine, opcode: int, tpa: bytes) -> None:
    inner = frame(tpa, spa=REMOTE, sha=PEER, smac=PEER, opcode=opcode)
    outer = vxlan(b"\xc0\0\2\2", b"\xc0\0\2\1", 4789, 100, inner)
    got = engine.process_one(outer, "underlay")
    assert (got.verdict, str(got.reason)) == (Verdict.DROP, "guard_arp")


@pytest.mark.conformance("A1")
@pytest.mark.parametrize(
    ("tpa", "opcode", "answered"),
    [(HOST, 1, True), (HOST_FAR, 1, False), (GATEWAY, 1, False), (HOST, 2, False)],
)
def test_the_host_port(engine: Engine, tpa: bytes, opcode: int, answered: bool) -> None:
    sent = frame(tpa, spa=HOST_FAR, sha=HOST_PEER, smac=HOST_PEER, opcode=opcode)
    got = engine.process_one(sent, "host")
    if answered:
        told = b"\0\1\x08\0\6\4\0\2" + OUR_HOST + HOST + HOST_PEER + HOST_FAR
        assert got.frame == HOST_PEER + OUR_HOST + b"\x08\6" + told
    else:
        assert (got.verdict, str(got.reason)) == (Verdict.DROP, "arp_unknown_target")
