"""The twin against packets that scapy builds, takes apart and sums up by itself."""

import os
import pathlib
import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

from dataplane.address import Mac, Vni, ip16
from dataplane.model import (
    Acl,
    Document,
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.validate import check
from tests import dice, strategies
from tests.reference import Choices, Outcome, Timers, Twin, guard, wire
from tests.reference.checksum import adjust, checksum, pseudo_header

ROOT = pathlib.Path(__file__).resolve().parent.parent
CAPTURES = pathlib.Path(os.environ.get("DATAPLANE_CAPTURES", ROOT / "../shared/captures"))

DR, REMOTE_DR = "02:00:00:00:00:01", "02:00:00:00:00:02"
A_MAC, B_MAC = "02:00:00:00:01:0a", "02:00:00:00:01:0b"
HOST_MAC, PEER_MAC = "02:01:a9:fe:01:01", "02:01:a9:fe:01:02"
A, B, GATEWAY, REMOTE, OUTSIDE = "10.1.1.2", "10.1.1.3", "10.1.1.1", "10.1.2.7", "198.51.100.9"
SECOND = 10**9


def node(**network: Any) -> Node:
    """Endpoints a and b of network blue, a remote subnet, a host port with NAT."""
    fields: dict[str, Any] = {
        "name": "blue",
        "vni": Vni(0x123456),
        "prefixes": (ip_network("10.1.1.0/24"), ip_network("fd00:1::/64")),
        "gateways": (ip_address(GATEWAY), ip_address("fd00:1::1")),
        "dr_mac": Mac(DR),
        "mtu": 1430,
        "remote_subnets": (
            RemoteSubnet(
                prefix=ip_network("10.1.2.0/24"),
                provider_address=ip_address("192.0.2.2"),
                dr_mac=Mac(REMOTE_DR),
            ),
            RemoteSubnet(
                prefix=ip_network("fd00:2::/64"),
                provider_address=ip_address("2001:db8::2"),
                dr_mac=Mac(REMOTE_DR),
            ),
        ),
        "endpoints": (endpoint("a", A, "fd00:1::2", A_MAC), endpoint("b", B, "fd00:1::3", B_MAC)),
        "outbound_nat": OutboundNat(),
    }
    return Node(
        name="n1",
        underlay=Underlay(address=ip_address("192.0.2.1"), address6=ip_address("2001:db8::1")),
        host_port=HostPort(
            address=ip_address("169.254.1.1"), peer=ip_address("169.254.1.2"), tap=Tap(name="dp0")
        ),
        networks=(Network(**(fields | network)),),
    )


def endpoint(name: str, ip4: str, ip6: str, mac: str, **fields: Any) -> Endpoint:
    addresses = (ip_address(ip4), ip_address(ip6))
    return Endpoint(name=name, addresses=addresses, mac=Mac(mac), **fields)


def rule(name: str, direction: str, action: str, **fields: Any) -> Acl:
    return Acl(name=name, direction=direction, action=action, **fields)  # type: ignore[arg-type]


def from_a(packet: Any, dmac: str = DR) -> bytes:
    return bytes(Ether(src=A_MAC, dst=dmac) / packet)


def vxlan(inner: bytes, src: str = "192.0.2.2", tos: int = 0, **fields: Any) -> bytes:
    outer = Ether() / IP(src=src, dst="192.0.2.1", tos=tos) / UDP(sport=50000, dport=4789, chksum=0)
    return bytes(outer / VXLAN(flags=8, vni=fields.get("vni", 0x123456)) / inner)


def from_remote(packet: Any, dmac: str = DR, **outer: Any) -> bytes:
    return vxlan(bytes(Ether(src=REMOTE_DR, dst=dmac) / packet), **outer)


def summed(frame: bytes) -> bytes:
    """The same frame with every checksum made anew by scapy."""
    packet = Ether(frame)
    layer: Any = packet
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields and not (isinstance(layer, UDP) and layer.chksum == 0):
                delattr(layer, name)
        layer = layer.payload
    return bytes(packet)


def forwarded(outcome: Outcome, egress: str) -> Any:
    assert (outcome.verdict, outcome.reason, outcome.egress) == ("forward", None, egress)
    assert outcome.frame is not None and outcome.frame == summed(outcome.frame)
    return Ether(outcome.frame)


def reason(outcome: Outcome) -> str | None:
    assert outcome.verdict == "drop"
    return outcome.reason


@given(st.binary(min_size=2, max_size=40), st.integers(0, 19), st.binary(min_size=2, max_size=2))
def test_adjusted_checksum_equals_a_new_one(data: bytes, at: int, new: bytes) -> None:
    data += b"\1" * (42 - len(data))  # never all zero: then both forms of zero are right
    place = at * 2
    changed = data[:place] + new + data[place + 2 :]
    assert adjust(checksum(data), data[place : place + 2], new) == checksum(changed)


@given(st.integers(0, 0xFFFF), st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))
def test_wrong_checksums_stay_as_wrong(check: int, old: bytes, new: bytes) -> None:
    back = adjust(adjust(check, old, new), new, old)
    assert back % 0xFFFF == check % 0xFFFF


def test_encapsulates_towards_a_remote_subnet() -> None:
    sent = IP(src=A, dst=REMOTE, tos=0xB9, ttl=9) / TCP(sport=1000, dport=80, flags="A") / b"hello"
    outcome = Twin(node()).process(from_a(sent), "blue/a", 0)
    out = forwarded(outcome, "underlay")
    assert (out.src, out.dst) == ("02:00:c0:00:02:01", "02:00:c0:00:02:02")
    assert (out[IP].src, out[IP].dst, out[IP].tos) == ("192.0.2.1", "192.0.2.2", 1)
    assert (out[IP].id, out[IP].flags, out[IP].ttl) == (0, "DF", 64)
    assert out[UDP].dport == 4789 and out[UDP].chksum == 0 and out[UDP].sport >= 49152
    assert bytes(out[VXLAN])[:8] == bytes.fromhex("0800000012345600")
    assert out[UDP].len == len(out[UDP]) and out[IP].len == len(out[IP])
    inner = sent.copy()
    inner.ttl = 8
    assert bytes(out[VXLAN].payload) == bytes(Ether(src=DR, dst=REMOTE_DR) / inner)


def test_encapsulates_over_ipv6() -> None:
    sent = IPv6(src="fd00:1::2", dst="fd00:2::7", tc=2) / UDP(sport=5, dport=6) / b"odd"
    out = forwarded(Twin(node()).process(from_a(sent), "blue/a", 0), "underlay")
    assert (out[IPv6].src, out[IPv6].dst) == ("2001:db8::1", "2001:db8::2")
    assert (out[IPv6].tc, out[IPv6].fl, out[IPv6].hlim) == (2, 0, 64)
    assert out[UDP].chksum != 0
    inner = Ether(bytes(out[VXLAN].payload))
    assert inner[IPv6].hlim == 63 and inner.dst == REMOTE_DR


@pytest.mark.parametrize("dmac", [DR, A_MAC])
def test_decapsulates_to_the_endpoint(dmac: str) -> None:
    sent = IP(src=REMOTE, dst=A) / UDP(sport=7, dport=8) / b"payload"
    out = forwarded(Twin(node()).process(from_remote(sent, dmac), "underlay", 0), "blue/a")
    assert out.dst == A_MAC and bytes(out[IP]) == bytes(sent)


def test_answers_of_a_flow_come_back() -> None:
    """ACL in blocks all; only the stateful flow's answers pass, and only from its VTEP."""
    acls = (rule("out", "out", "allow"), rule("in", "in", "block"))
    twin = Twin(node(acls=acls))
    back = from_remote(IP(src=REMOTE, dst=A) / TCP(sport=80, dport=1000, flags="SA"))
    assert reason(twin.process(back, "underlay", 0)) == "acl_deny"
    there = from_a(IP(src=A, dst=REMOTE) / TCP(sport=1000, dport=80, flags="S"))
    assert twin.process(there, "blue/a", 1).rule == "blue/out"
    assert twin.process(back, "underlay", 2).verdict == "forward"
    assert reason(twin.process(back, "underlay", 7441 * SECOND)) == "acl_deny"


@pytest.mark.parametrize(
    ("inner", "outer", "result"),
    [(0, 3, None), (1, 3, 3), (2, 1, 1), (2, 2, 2), (1, 2, 1), (3, 0, 3), (0, 1, 0)],
)
def test_ecn_of_rfc_6040(inner: int, outer: int, result: int | None) -> None:
    sent = IP(src=REMOTE, dst=A, tos=0xB8 | inner) / UDP()
    outcome = Twin(node()).process(from_remote(sent, tos=outer), "underlay", 0)
    if result is None:
        assert reason(outcome) == "ecn_ce_on_not_ect"
    else:
        assert forwarded(outcome, "blue/a")[IP].tos == 0xB8 | result


def test_clamps_the_mss_at_an_odd_offset() -> None:
    options = [("NOP", None), ("MSS", 8960), ("NOP", None)]
    sent = IP(src=A, dst=REMOTE) / TCP(flags="S", options=options)
    out = forwarded(Twin(node()).process(from_a(sent), "blue/a", 0), "underlay")
    inner = Ether(bytes(out[VXLAN].payload))
    assert dict(inner[TCP].options)["MSS"] == 1430 - 40
    assert bytes(inner) == summed(bytes(inner))


def test_source_nat_and_back() -> None:
    twin = Twin(node(outbound_nat=OutboundNat(ports=PortRange(first=2000, last=2001))))
    ports = set()
    for sport in (500, 501):
        for payload in (TCP(sport=sport, dport=80), UDP(sport=sport, dport=53) / b"x"):
            out = forwarded(
                twin.process(from_a(IP(src=A, dst=OUTSIDE) / payload), "blue/a", 0), "host"
            )
            assert (out.src, out.dst, out[IP].src) == (HOST_MAC, PEER_MAC, "169.254.1.1")
            ports.add((out[IP].proto, out.payload.payload.sport))
            kind = type(payload)
            reply = IP(src=OUTSIDE, dst="169.254.1.1") / kind(
                sport=payload.dport, dport=out[IP].payload.sport
            )
            back = bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / reply)
            returned = forwarded(twin.process(back, "host", 1), "blue/a")
            assert (returned[IP].dst, returned[IP].payload.dport) == (A, sport)
    assert ports == {(p, n) for p in (6, 17) for n in (2000, 2001)}
    third = twin.process(from_a(IP(src=A, dst=OUTSIDE) / TCP(sport=502)), "blue/a", 2)
    assert reason(third) == "nat_exhausted" and third.rule is not None
    assert twin.expire(10**15) == 8
    again = twin.process(from_a(IP(src=A, dst=OUTSIDE) / TCP(sport=502)), "blue/a", 10**15)
    assert again.verdict == "forward"


def test_nat_adopts_the_port_that_the_engine_chose() -> None:
    twin = Twin(node())
    frame = from_a(IP(src=A, dst=OUTSIDE) / ICMP(id=77, seq=1) / b"ping")
    chosen = Choices(port=lambda key: 4243)
    out = forwarded(twin.process(frame, "blue/a", 0, choices=chosen), "host")
    assert out[ICMP].id == 4243
    back = IP(src=OUTSIDE, dst="169.254.1.1") / ICMP(type=0, id=4243, seq=1) / b"ping"
    returned = twin.process(bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / back), "host", 0)
    assert forwarded(returned, "blue/a")[ICMP].id == 77
    for number in (4243, 4242, 80):  # taken, of another parity, of another class
        other = from_a(IP(src=A, dst=OUTSIDE) / ICMP(id=4099))
        with pytest.raises(AssertionError, match=str(number)):
            twin.process(other, "blue/a", 0, choices=Choices(port=lambda key, n=number: n))  # type: ignore[misc]


def test_zero_udp_checksum_survives_nat() -> None:
    frame = from_a(IP(src=A, dst=OUTSIDE) / UDP(sport=1, dport=2, chksum=0) / b"x")
    out = forwarded(Twin(node()).process(frame, "blue/a", 0), "host")
    assert out[UDP].chksum == 0


def test_wrong_checksum_stays_wrong_by_the_same_difference() -> None:
    right = IP(src=A, dst=OUTSIDE) / UDP(sport=1, dport=2) / b"x"
    good = forwarded(Twin(node()).process(from_a(right), "blue/a", 0), "host")
    check = IP(bytes(right))[UDP].chksum
    wrong = IP(src=A, dst=OUTSIDE) / UDP(sport=1, dport=2, chksum=(check + 5) & 0xFFFF) / b"x"
    bad = Ether(Twin(node()).process(from_a(wrong), "blue/a", 0).frame or b"")
    assert (bad[UDP].chksum - good[UDP].chksum) % 0xFFFF == 5


def test_partial_checksum_changes_by_the_addresses_only() -> None:
    sent = IP(src=A, dst=OUTSIDE) / UDP(sport=1, dport=2, chksum=0x1234) / b"x"
    outcome = Twin(node()).process(from_a(sent), "blue/a", 0, flags=1)
    assert outcome.partial and outcome.frame
    before = sum(ip_address(A).packed[i] << 8 | ip_address(A).packed[i + 1] for i in (0, 2))
    after = 0xA9FE + 0x0101
    assert Ether(outcome.frame)[UDP].chksum % 0xFFFF == (0x1234 + after - before) % 0xFFFF


def nat_out(twin: Twin, payload: Any) -> Any:
    return forwarded(twin.process(from_a(IP(src=A, dst=OUTSIDE) / payload), "blue/a", 0), "host")


@pytest.mark.parametrize(
    "payload", [UDP(sport=500, dport=53) / b"x", TCP(sport=500, dport=80), ICMP(id=7) / b"x"]
)
def test_icmp_error_comes_back_through_nat(payload: Any) -> None:
    """A router outside quotes what it saw; the endpoint is shown what it had sent."""
    twin = Twin(node())
    seen = nat_out(twin, payload)[IP]
    router = IP(src="198.51.100.1", dst="169.254.1.1", ttl=9) / ICMP(type=11) / bytes(seen)
    outcome = twin.process(bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / router), "host", 1)
    back = Ether(outcome.frame or b"")
    assert (outcome.verdict, outcome.egress) == ("forward", "blue/a")
    assert (back[IP].src, back[IP].dst, back[IP].ttl) == ("198.51.100.1", A, 8)
    icmp, sent = bytes(back[ICMP]), bytes(IP(src=A, dst=OUTSIDE, ttl=63) / payload)
    assert checksum(bytes(back[IP])[:20]) == checksum(icmp) == 0
    behind = {TCP: 16, UDP: None, ICMP: 2}[type(payload)]  # a checksum that is not restored
    for at, (quoted, meant) in enumerate(zip(icmp[8:], sent, strict=True)):
        assert quoted == meant or (behind is not None and at - 20 in (behind, behind + 1))


def test_icmp_error_about_no_flow_is_a_packet_as_any_other() -> None:
    twin = Twin(node(acls=(rule("in", "in", "block"), rule("out", "out", "allow"))))
    sent = IP(src=A, dst=REMOTE) / UDP(sport=500, dport=53) / b"x"
    error = from_remote(IP(src="10.1.2.200", dst=A) / ICMP(type=3, code=3) / bytes(sent))
    assert reason(twin.process(error, "underlay", 0)) == "acl_deny"
    twin.process(from_a(sent), "blue/a", 0)
    assert twin.process(error, "underlay", 0).verdict == "forward"
    other = bytes(IP(src=A, dst=REMOTE) / UDP(sport=501, dport=53) / b"x")
    wrong = from_remote(IP(src="10.1.2.200", dst=A) / ICMP(type=3, code=3) / other)
    assert reason(twin.process(wrong, "underlay", 0)) == "acl_deny"
    assert [p.packets for p in twin.flows.pairs] == [[1, 0]]


@pytest.mark.parametrize(
    ("target", "mac"), [(GATEWAY, DR), (B, B_MAC), (REMOTE, DR), (A, None), ("10.1.1.99", None)]
)
def test_arp(target: str, mac: str | None) -> None:
    request = Ether(src=A_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=A_MAC, psrc=A, pdst=target)
    outcome = Twin(node()).process(bytes(request) + b"trailer", "blue/a", 0)
    if mac is None:
        assert reason(outcome) == ("arp_announcement" if target == A else "arp_unknown_target")
        return
    reply = ARP(op=2, hwsrc=mac, psrc=target, hwdst=A_MAC, pdst=A)
    assert outcome[:6] == (
        "answer",
        None,
        "blue/a",
        bytes(Ether(src=mac, dst=A_MAC) / reply) + b"trailer",
        None,
        False,
    )


def test_gateway_answers_ping_of_both_families() -> None:
    twin = Twin(node())
    ping4 = (
        IP(src=A, dst=GATEWAY, ttl=3, options=[IPOption_NOP()] * 4) / ICMP(id=1, seq=2) / b"data"
    )
    ping6 = IPv6(src="fd00:1::2", dst="fd00:1::1", hlim=3) / ICMPv6EchoRequest(id=1, data=b"d")
    for ping in (ping4, ping6):
        outcome = twin.process(from_a(ping), "blue/a", 0)
        assert outcome.verdict == "answer" and outcome.frame == summed(outcome.frame or b"")
        out = Ether(outcome.frame)
        assert (out.src, out.dst, out.payload.src, out.payload.dst) == (
            DR,
            A_MAC,
            ping.dst,
            ping.src,
        )
    assert reason(twin.process(from_a(IP(src=A, dst=GATEWAY) / TCP()), "blue/a", 0)) == "to_gateway"


@pytest.mark.parametrize(
    ("sent", "why", "kind"),
    [
        (IP(src=A, dst=REMOTE, ttl=1) / UDP() / b"x", "ttl_expired", (11, 0, 0)),
        (IP(src=A, dst=REMOTE, flags="DF") / UDP() / bytes(1423), "too_big", (3, 4, 1430)),
        (IP(src=A, dst=REMOTE, flags="DF") / ICMP(type=11) / bytes(1423), "too_big", None),
        (IP(src=A, dst=REMOTE) / UDP(dport=25), "acl_reject", (3, 13, 0)),
        (IPv6(src="fd00:1::2", dst="fd00:2::7") / UDP(dport=25), "acl_reject", (1, 1, 0)),
        (IPv6(src="fd00:1::2", dst="fd00:2::7", hlim=1) / UDP(), "ttl_expired", (3, 0, 0)),
        (IPv6(src="fd00:1::2", dst="fd00:2::7") / UDP() / bytes(1390), "too_big", (2, 0, 1430)),
    ],
)
def test_icmp_errors(sent: Any, why: str, kind: tuple[int, int, int] | None) -> None:
    ports = (PortRange(first=25, last=25),)
    reject = rule("no-mail", "out", "reject", protocol="udp", remote_ports=ports)
    policy = node(acls=(reject, rule("rest", "out", "allow", priority=2000)))
    outcome = Twin(policy).process(from_a(sent), "blue/a", 0)
    assert reason(outcome) == why
    if kind is None:
        assert outcome.frame is None and outcome.egress is None
        return
    assert outcome.egress == "blue/a" and outcome.frame == _quote_kept(outcome.frame or b"", sent)
    out = Ether(outcome.frame)
    v4 = IP in sent
    assert (out.src, out.dst) == (DR, A_MAC)
    assert out.payload.src == (GATEWAY if v4 else "fd00:1::1") and out.payload.dst == sent.src
    icmp = bytes(out.payload.payload)
    assert (icmp[0], icmp[1], int.from_bytes(icmp[4:8])) == kind
    assert len(out.payload) == min(len(sent) + (28 if v4 else 48), 576 if v4 else 1280)


def _quote_kept(frame: bytes, sent: Any) -> bytes:
    """What scapy makes of the error's own headers around the original packet."""
    out = Ether(frame)
    head = 8
    icmp = bytes(out.payload.payload)
    ip = out.payload.copy()
    ip.remove_payload()
    if IP in sent:
        del ip.chksum
        body = icmp[:2] + b"\0\0" + icmp[4:head] + bytes(sent)[: len(icmp) - head]
        body = body[:2] + checksum(body).to_bytes(2) + body[4:]
        return bytes(Ether(src=DR, dst=A_MAC) / ip / body)
    fresh = out.copy()
    del fresh.payload.payload.cksum
    assert icmp[head:] == bytes(sent)[: len(icmp) - head]
    return bytes(fresh)


def test_local_delivery_routed_and_switched() -> None:
    twin = Twin(node())
    sent = IP(src=A, dst=B, ttl=5) / UDP(sport=1, dport=2)
    routed = forwarded(twin.process(from_a(sent), "blue/a", 0), "blue/b")
    assert (routed.src, routed.dst, routed.ttl) == (DR, B_MAC, 4)
    switched = twin.process(from_a(sent, B_MAC), "blue/a", 0)
    assert switched.frame == from_a(sent, B_MAC)
    assert reason(twin.process(from_a(sent, REMOTE_DR), "blue/a", 0)) == "not_our_mac"


@pytest.mark.parametrize(
    ("first", "second", "verdict", "decided"),
    [
        (("allow", False), ("allow", True), "forward", "blue/a/two"),
        (("block", True), ("allow", True), "drop", "blue/one"),
        (("allow", True), ("block", True), "forward", "blue/one"),
        (("allow", False), ("block", True), "drop", "blue/a/two"),
        (("block", False), ("block", False), "drop", "blue/a/two"),
        (("block", False), ("allow", False), "forward", "blue/a/two"),
        (("pass", True), ("allow", True), "forward", "blue/a/two"),
        (("block", False), ("pass", True), "drop", "blue/one"),
    ],
)
def test_truth_table_of_groups(
    first: tuple[str, bool], second: tuple[str, bool], verdict: str, decided: str
) -> None:
    one = rule("one", "out", first[0], terminating=first[1])
    two = rule("two", "out", second[0], terminating=second[1])
    a = endpoint("a", A, "fd00:1::2", A_MAC, acls=(two,))
    twin = Twin(node(acls=(one,), endpoints=(a,)))
    outcome = twin.process(from_a(IP(src=A, dst=REMOTE) / UDP()), "blue/a", 0)
    assert (outcome.verdict, outcome.rule) == (verdict, decided)


def test_reconciles_on_a_policy_change() -> None:
    twin = Twin(node())
    there = from_a(IP(src=A, dst=REMOTE) / TCP(sport=1000, dport=80, flags="S"))
    back = from_remote(IP(src=REMOTE, dst=A) / TCP(sport=80, dport=1000, flags="SA"))
    assert twin.process(there, "blue/a", 0).verdict == "forward"
    twin.commit(node(acls=(rule("in", "in", "block"),)))
    assert twin.process(back, "underlay", 1).verdict == "forward"
    moved = RemoteSubnet(
        prefix=ip_network("10.1.2.0/24"),
        provider_address=ip_address("192.0.2.3"),
        dr_mac=Mac(REMOTE_DR),
    )
    twin.commit(node(remote_subnets=(moved,)))
    assert forwarded(twin.process(there, "blue/a", 2), "underlay")[IP].dst == "192.0.2.3"
    twin.commit(node(acls=(rule("out", "out", "block"),)))
    assert reason(twin.process(back, "underlay", 3)) == "acl_deny"
    assert twin.flows.pairs == []


def test_stateless_rules_judge_answers_by_the_other_direction() -> None:
    acls = (
        rule("out", "out", "allow", stateful=False),
        rule("in", "in", "block"),
    )
    twin = Twin(node(acls=acls))
    there = from_a(IP(src=A, dst=REMOTE) / UDP(sport=1000, dport=80))
    back = from_remote(IP(src=REMOTE, dst=A) / UDP(sport=80, dport=1000))
    assert twin.process(there, "blue/a", 0).verdict == "forward"
    assert reason(twin.process(back, "underlay", 1)) == "acl_deny"


def test_full_flow_table_harms_no_old_flow() -> None:
    twin = Twin(node(), Timers(udp=10), max_flows=1)
    frames = [from_a(IP(src=A, dst=REMOTE) / UDP(sport=n, dport=9)) for n in (1, 2)]
    answer = from_remote(IP(src=REMOTE, dst=A) / UDP(sport=9, dport=1))
    assert twin.process(frames[0], "blue/a", 0).verdict == "forward"
    assert twin.process(answer, "underlay", 0).verdict == "forward"
    assert reason(twin.process(frames[1], "blue/a", 0)) == "flow_table_full"
    assert twin.process(frames[0], "blue/a", 0).verdict == "forward"
    assert twin.expire(11 * SECOND) == 1
    assert twin.process(frames[1], "blue/a", 0).verdict == "forward"


BAD_FRAMES = [
    (b"\0" * 13, "short_ethernet"),
    (from_a(Dot1Q(vlan=1) / IP()), "vlan_tagged"),
    (bytes(Ether(src=A_MAC, type=0x88CC) / b"lldp"), "not_ip"),
    (bytes(Ether(src=A_MAC) / ARP(hwlen=8)), "bad_arp"),
    (from_a(IP(src=A, dst=B, len=200) / UDP()), "bad_ip4"),
    (from_a(IP(src=A, dst=B, chksum=1) / UDP()), "bad_ip4_checksum"),
    (from_a(IP(src=A, dst=B, options=[IPOption_LSRR()]) / UDP()), "source_route"),
    (from_a(IP(src="127.0.0.1", dst=B) / UDP()), "bad_address"),
    (from_a(IP(src=A, dst=B) / UDP(len=7)), "bad_transport"),
    (from_a(IP(src=A, dst=B) / TCP(dataofs=4)), "bad_transport"),
    (from_a(IP(src=A, dst=B, frag=1, proto=6) / bytes(40)), "bad_fragment"),
    (from_a(IP(src=A, dst=B, flags="MF", proto=6) / bytes(16)), "bad_fragment"),
    (from_a(IPv6(src="fd00:1::2", dst="fd00:1::3", plen=99) / UDP()), "bad_ip6"),
    (from_a(IPv6(src="fd00:1::2", dst="fd00:1::3", nh=60) / b"\x3a"), "bad_extension"),
    (from_a(IPv6(src="fd00:1::2", dst="fd00:1::3", nh=43) / bytes(8)), "source_route"),
    (from_a(IPv6(src="::1", dst="fd00:1::3") / UDP()), "bad_address"),
    (bytes(Ether(src=B_MAC, dst=DR) / IP(src=A, dst=B)), "guard_mac"),
    (from_a(IP(src=B, dst=A) / UDP()), "guard_ip"),
    (from_a(IP(src=A, dst=B) / UDP(sport=67)), "guard_dhcp"),
    (from_a(IP(src=A, dst="224.0.0.1") / UDP()), "multicast"),
    (from_a(IP(src=A, dst=B), "ff:ff:ff:ff:ff:ff"), "multicast"),
    (bytes(Ether(src=A_MAC) / ARP(hwsrc=A_MAC, psrc=B, pdst=GATEWAY)), "guard_arp"),
    (from_a(IP(src=A, dst="10.1.1.77") / UDP()), "no_such_endpoint"),
    (from_a(IP(src=A, dst=OUTSIDE) / ICMP(type=13)), "nat_untranslatable"),
    (from_a(IP(src=B, dst=OUTSIDE, frag=9, proto=17) / b"12345678"), "guard_ip"),
    (from_a(IPv6(src="fd00:1::2", dst="2001:db8:9::1") / UDP()), "no_route"),
]


@pytest.mark.parametrize(("frame", "why"), BAD_FRAMES, ids=[w for _, w in BAD_FRAMES])
def test_drops_from_an_endpoint(frame: bytes, why: str) -> None:
    assert reason(Twin(node()).process(frame, "blue/a", 0)) == why


GOOD = bytes(Ether(dst=DR) / IP(src=REMOTE, dst=A) / UDP())
OUTER = Ether() / IP(src="192.0.2.2", dst="192.0.2.1")
OUTER6 = Ether() / IPv6(src="2001:db8::2", dst="2001:db8::1")
BAD_PACKETS = [
    (bytes(Ether(type=0x0806)), "outer_not_vxlan"),
    (bytes(OUTER / UDP(dport=53)), "outer_not_vxlan"),
    (bytes(Ether() / IP(src="192.0.2.2", dst="192.0.2.9") / UDP(dport=4789)), "outer_not_vxlan"),
    (bytes(OUTER / UDP(dport=4789, len=99)), "outer_malformed"),
    (bytes(Ether() / IP(dst="192.0.2.1", flags="MF") / UDP(dport=4789)), "outer_fragment"),
    (bytes(Ether() / IP(dst="192.0.2.1", chksum=1) / UDP(dport=4789)), "outer_checksum"),
    (bytes(OUTER / UDP(dport=4789, chksum=1) / VXLAN(flags=8)), "outer_checksum"),
    (
        bytes(OUTER6 / UDP(dport=4789, chksum=0) / VXLAN(flags=8, vni=0x123456)),
        "udp6_zero_checksum",
    ),
    (bytes(OUTER / UDP(dport=4789) / VXLAN(flags=0)), "no_vni_flag"),
    (vxlan(GOOD, vni=5), "unknown_vni"),
    (vxlan(GOOD, src="192.0.2.66"), "unknown_vtep"),
    (vxlan(bytes(Ether() / ARP())), "guard_arp"),
    (from_remote(IP(src=REMOTE, dst="10.1.1.77") / UDP()), "no_such_endpoint"),
    (from_remote(IP(src=REMOTE, dst=GATEWAY) / ICMP()), "to_gateway"),
    (from_remote(IP(src=REMOTE, dst="10.1.2.8") / UDP()), "not_local"),
    (from_remote(IP(src=REMOTE, dst=A) / UDP(), B_MAC), "not_our_mac"),
    (from_remote(IP(src="10.1.1.50", dst=A) / UDP()), "source_not_behind_vtep"),
]


@pytest.mark.parametrize(("frame", "why"), BAD_PACKETS)
def test_drops_from_the_underlay(frame: bytes, why: str) -> None:
    assert reason(Twin(node()).process(frame, "underlay", 0)) == why


def test_drops_elsewhere() -> None:
    twin = Twin(node())
    assert reason(twin.process(GOOD, "blue/nobody", 0)) == "port_not_configured"
    from_peer = Ether(src=PEER_MAC, dst=HOST_MAC)
    to_pool = bytes(from_peer / IP(src=OUTSIDE, dst="169.254.1.1") / TCP())
    assert reason(twin.process(to_pool, "host", 0)) == "nat_no_binding"
    assert reason(twin.process(bytes(from_peer / IP(src=OUTSIDE, dst=A)), "host", 0)) == "no_route"
    closed = Twin(replace(node(), host_port=None))
    assert reason(closed.process(GOOD, "host", 0)) == "port_not_configured"


def test_host_port_answers_arp_and_ping() -> None:
    twin = Twin(node())
    request = Ether(src=PEER_MAC) / ARP(hwsrc=PEER_MAC, psrc="169.254.1.2", pdst="169.254.1.1")
    outcome = twin.process(bytes(request), "host", 0)
    assert Ether(outcome.frame or b"")[ARP].hwsrc == HOST_MAC and outcome.egress == "host"
    ping = Ether(src=PEER_MAC, dst=HOST_MAC) / IP(src="169.254.1.2", dst="169.254.1.1") / ICMP(id=1)
    outcome = twin.process(bytes(ping), "host", 0)
    assert outcome.verdict == "answer" and outcome.frame == summed(outcome.frame or b"")


@pytest.mark.parametrize(
    ("name", "vni", "port"),
    [
        ("tcpdump/tcpdump__vxlan.pcap", 100, 4789),
        ("zeek/tunnels__vxlan.pcap", 123, 4789),
        ("suricata/vxlan-decoder-01__input.pcap", 37, 4789),
    ],
)
def test_decapsulates_captured_vxlan(name: str, vni: int, port: int) -> None:
    """A node made for each captured frame delivers its inner frame, ARP excepted."""
    packets = [p for p in rdpcap(str(_capture(name))) if UDP in p and p[UDP].dport == port]
    delivered = 0
    for packet in packets:
        inner = Ether(bytes(packet[VXLAN].payload))
        twin = Twin(_node_for(packet, inner, vni, port))
        outcome = twin.process(bytes(packet), "underlay", 0)
        if IP not in inner:
            assert reason(outcome) == "guard_arp"
            continue
        assert outcome.verdict == "forward" and outcome.frame == bytes(inner)
        delivered += 1
    assert delivered


def _capture(name: str) -> pathlib.Path:
    folder, file = name.split("/")
    for path in (CAPTURES / name, CAPTURES / folder / file.removeprefix(f"{folder}__")):
        if path.is_file():
            return path
    pytest.skip(f"capture {name} not found under {CAPTURES}; set DATAPLANE_CAPTURES")


def _node_for(packet: Any, inner: Any, vni: int, port: int) -> Node:
    src, dst = (inner[IP].src, inner[IP].dst) if IP in inner else ("10.0.0.1", "10.0.0.2")
    remote = RemoteSubnet(
        prefix=ip_network(src), provider_address=ip_address(packet[IP].src), dr_mac=Mac(DR)
    )
    network = Network(
        name="cap",
        vni=Vni(vni),
        prefixes=(ip_network("203.0.113.0/24"),),
        dr_mac=Mac(DR),
        remote_subnets=(remote,),
        endpoints=(Endpoint(name="e", addresses=(ip_address(dst),), mac=Mac(inner.dst)),),
    )
    underlay = Underlay(address=ip_address(packet[IP].dst), port=port)
    return Node(name="n", underlay=underlay, networks=(network,))


# ---- over random policies and frames -------------------------------------------------------------

SHORT = Timers(tcp_established=100, tcp_transitory=20, udp=25, icmp=10, other=15)
REASONS = set(
    re.findall(r"^DP_REASON\((\w+)", (ROOT / "csrc/reason.def").read_text(), re.MULTILINE)
)


def asked(twin: Twin, event: strategies.Event, seen: bytes | None = None) -> Outcome | None:
    if event.commit is not None:
        twin.commit(event.commit)
    elif event.expire:
        twin.expire(event.now_ns)
    elif event.learn:
        remote, vni, mtu = event.learn
        twin.learn_path(ip16(remote), vni, mtu, event.now_ns)
    elif event.frame is not None:
        frame = event.frame
        outcome = twin.process(
            frame.data, frame.port, event.now_ns, frame.flags, choices=Choices(seen)
        )
        while more := twin.more():
            check_shape(more)
        return outcome
    return None


@settings(deadline=None)
@given(strategies.scenarios().thrown())
def test_second_twin_that_observes_the_first_agrees(
    scenario: tuple[Node, list[strategies.Step]],
) -> None:
    node, steps = scenario
    first, second = (Twin(node, SHORT, max_flows=8) for _ in range(2))

    def both(event: strategies.Event) -> Outcome | None:
        outcome = asked(first, event)
        seen = outcome.frame if outcome and outcome.verdict == "forward" else None
        assert asked(second, event, seen) == outcome
        return outcome

    for outcome in strategies.play(node, steps, both):
        check_shape(outcome)


def check_shape(outcome: Outcome) -> None:
    assert outcome.verdict in ("forward", "drop", "answer", "held")
    assert (outcome.reason in REASONS) == (outcome.verdict == "drop")
    assert (outcome.frame is None) == (outcome.egress is None)
    assert outcome.frame is not None or outcome.verdict in ("drop", "held")


@settings(deadline=None)
@given(strategies.scenarios().thrown())
def test_right_checksums_stay_right(scenario: tuple[Node, list[strategies.Step]]) -> None:
    """What scapy sums up anew from an undamaged frame is what the twin adjusted."""
    node, steps = scenario
    twin = Twin(node, SHORT)

    def do(event: strategies.Event) -> Outcome | None:
        outcome = asked(twin, event)
        frame = event.frame
        if outcome and outcome.verdict == "forward" and frame and frame.flags & 3 == 0:
            came = wire.parse(guard.untagged(_inner(frame.data, frame.port)))
            left = wire.parse(_inner(outcome.frame or b"", outcome.egress or ""))
            if _sum_is_right(came) and not left.fragment:
                assert _sum_is_right(left)
        return outcome

    strategies.play(node, steps, do)


def _inner(frame: bytes, port: str) -> bytes:
    if port != "underlay":
        return frame
    ihl = (frame[14] & 15) * 4 if frame[12:14] == b"\x08\0" else 40
    size = int.from_bytes(frame[18 + ihl : 20 + ihl])
    return frame[14 + ihl + 16 : 14 + ihl + size]


def _sum_is_right(packet: wire.Packet | wire.Arp) -> bool:
    assert isinstance(packet, wire.Packet)
    if packet.fragment or packet.check_at is None:
        return False
    if (
        packet.flow.proto == wire.UDP
        and packet.data[packet.check_at : packet.check_at + 2] == b"\0\0"
    ):
        return False
    src, dst = wire.unmapped(packet.flow.src), wire.unmapped(packet.flow.dst)
    segment = bytes(packet.data[packet.l4 :])
    pseudo = pseudo_header(src, dst, packet.flow.proto, len(segment))
    return checksum((b"" if packet.flow.proto == wire.ICMP else pseudo) + segment) == 0


@settings(deadline=None, max_examples=50)
@given(strategies.nodes().flatmap(lambda n: dice.just(n) | strategies.edits(n)).thrown())
def test_drawn_policies_are_valid_documents(node: Node) -> None:
    assert list(check(Document(node=node))) == []
