"""Checksums of what NAT and the router change: right where they were, else as wrong as before.

The arithmetic itself is proved in C, exhaustively (tests/csrc/test_rfc1624.c).
"""

from ipaddress import ip_address

import pytest

from dataplane.model import OutboundNat
from dataplane.packet import describe, parse
from tests import blue
from tests.blue import ETH, forwarded, patched, udp_summed, web
from tests.reference.build import part
from tests.reference.checksum import checksum

VIP6 = ip_address("2001:db8:77::1")
NAT66 = blue.node(outbound_nat=OutboundNat(vip=VIP6))
OUT = {
    "tcp": "tcp 10.1.0.2:777 > 203.0.113.9:80 syn mss 1460",
    "udp": "udp 10.1.0.2:777 > 203.0.113.9:53 len 33",
    "icmp": "icmp 10.1.0.2 > 203.0.113.9 echo id 777 seq 3 len 33",
    "tcp6": "tcp [fd00:1::2]:777 > [2001:db8:9::9]:80 syn mss 1440",
    "udp6": "udp [fd00:1::2]:777 > [2001:db8:9::9]:53 len 33",
    "icmp6": "icmp6 fd00:1::2 > 2001:db8:9::9 echo id 777 seq 3 len 33",
}
UDP4, UDP6 = ETH + 20, ETH + 40


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


def engine_for(version: int):
    return blue.engine(blue.node() if version == 4 else NAT66)


@pytest.mark.conformance("C3", "N1")
@pytest.mark.parametrize("kind", OUT)
def test_a_translated_packet_is_right_both_ways(kind: str) -> None:
    """Pseudo-header and ports, or the echo id; addresses are no part of ICMP's sum over IPv4."""
    with engine_for(6 if kind.endswith("6") else 4) as engine:
        frame = web(OUT[kind])
        sent = forwarded(engine.process_one(frame, "web"), "host")
        assert blue.sums(frame) == blue.sums(sent) == {0}
        spec = parse(OUT[kind])
        got = describe(sent)
        assert got["src"] == (blue.NAT if spec.src.version == 4 else str(VIP6))
        answer = blue.mirrored(sent)
        assert blue.sums(answer) == {0}
        back = forwarded(engine.process_one(answer, "host"), "blue/web")
        assert blue.sums(back) == {0} and describe(back)["dst"] == str(spec.src)
        field = {"tcp": "dport", "udp": "dport", "icmp": "id"}[kind.removesuffix("6")]
        assert describe(back)[field] == 777


@pytest.mark.conformance("C1", "C3")
@pytest.mark.parametrize("kind", OUT)
def test_a_wrong_checksum_stays_as_wrong(kind: str) -> None:
    """It is changed by difference, never made anew: damage done before us is still seen after."""
    with engine_for(6 if kind.endswith("6") else 4) as engine:
        frame = web(OUT[kind])
        at = (UDP6 if kind.endswith("6") else UDP4) + {"t": 16, "u": 6, "i": 2}[kind[0]]
        right = forwarded(engine.process_one(frame, "web"), "host")
        for damage in (1, 0x100, 0xFFFE):
            wrong = (int.from_bytes(frame[at : at + 2]) + damage) % 0xFFFF
            sent = engine.process_one(patched(frame, at, wrong.to_bytes(2)), "web").frame
            difference = int.from_bytes(sent[at : at + 2]) - int.from_bytes(right[at : at + 2])
            assert difference % 0xFFFF == damage % 0xFFFF


@pytest.mark.conformance("C2")
def test_a_udp_sum_of_zero_is_sent_as_ffff(version: int) -> None:
    """The payload is chosen so that the translated checksum comes out as 0."""
    with engine_for(version) as engine:
        frame = web(OUT["udp" if version == 4 else "udp6"] + " len 32")
        at = (UDP4 if version == 4 else UDP6) + 6
        sent = forwarded(engine.process_one(frame, "web"), "host")
        word = int.from_bytes(frame[-2:]) + int.from_bytes(sent[at : at + 2])
        chosen = patched(frame, len(frame) - 2, ((word & 0xFFFF) + (word >> 16)).to_bytes(2))
        chosen = udp_summed(chosen)
        zero = forwarded(engine.process_one(chosen, "web"), "host")
        assert zero[at : at + 2] == b"\xff\xff" and blue.sums(zero) == {0}


@pytest.mark.conformance("C2")
def test_no_udp_checksum_stays_none_over_ipv4() -> None:
    with engine_for(4) as engine:
        for words, port in ((OUT["udp"], "host"), ("udp 10.1.0.2:7 > 10.2.0.9:9", "underlay")):
            frame = patched(web(words), UDP4 + 6, b"\0\0")
            sent = forwarded(engine.process_one(frame, "web"), port)
            inner = sent if port == "host" else blue.inner_of(sent)
            assert inner[UDP4 + 6 : UDP4 + 8] == b"\0\0"
            if port == "host":
                answer = patched(blue.mirrored(sent), UDP4 + 6, b"\0\0")
                back = forwarded(engine.process_one(answer, "host"), "blue/web")
                assert back[UDP4 + 6 : UDP4 + 8] == b"\0\0"


@pytest.mark.conformance("C2")
def test_a_udp_zero_over_ipv6_is_not_repaired() -> None:
    """Forwarded it is still zero; translated it is still wrong."""
    with engine_for(6) as engine:
        frame = patched(web("udp [fd00:1::2]:7 > [fd00:2::9]:9 len 5"), UDP6 + 6, b"\0\0")
        inner = blue.inner_of(forwarded(engine.process_one(frame, "web"), "underlay"))
        assert inner[UDP6 + 6 : UDP6 + 8] == b"\0\0"
        frame = patched(web(OUT["udp6"]), UDP6 + 6, b"\0\0")
        sent = forwarded(engine.process_one(frame, "web"), "host")
        assert udp_summed(sent) != sent


@pytest.mark.conformance("C4")
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_first_fragment_is_adjusted_in_its_transport_header(kind: str) -> None:
    """As the whole datagram would be; a later one has none."""
    whole = web(f"{kind} 10.1.0.2:777 > 203.0.113.9:80 len 100")
    with engine_for(4) as engine:
        sent = forwarded(engine.process_one(whole, "web"), "host")[ETH + 20 :]
        first, later = part(whole, 0, 48, 9), part(whole, 48, len(sent), 9)
        got = forwarded(engine.process_one(first, "web"), "host")
        assert got[ETH + 20 :] == sent[:48] and checksum(got[ETH : ETH + 20]) == 0
        rest = forwarded(engine.process_one(later, "web"), "host")
        assert rest[ETH + 20 :] == sent[48:] and checksum(rest[ETH : ETH + 20]) == 0
        assert rest[ETH + 12 : ETH + 20] == got[ETH + 12 : ETH + 20]


@pytest.mark.conformance("C5")
@pytest.mark.parametrize("proto", [132, 136, 47, 50, 253])
def test_what_cannot_be_translated_is_not_guessed_at(proto: int) -> None:
    """Behind the IP header no byte is touched, inside and by NAT, which changes addresses only."""
    with engine_for(4) as engine:
        inside = web(f"ip {proto} 10.1.0.2 > 10.2.0.9 len 40")
        inner = blue.inner_of(forwarded(engine.process_one(inside, "web"), "underlay"))
        assert inner[ETH + 20 :] == inside[ETH + 20 :]
        out = web(f"ip {proto} 10.1.0.2 > 203.0.113.9 len 40")
        sent = forwarded(engine.process_one(out, "web"), "host")
        assert sent[ETH + 20 :] == out[ETH + 20 :] and checksum(sent[ETH : ETH + 20]) == 0
