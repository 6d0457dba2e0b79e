"""The wire: VXLAN of RFC 7348, and what stands in the outer header. One test a rule."""

import random
from collections import Counter
from ipaddress import ip_address

import pytest

from dataplane.address import Vni
from dataplane.batch import Batch
from dataplane.packet import build, parse, vxlan
from dataplane.reasons import Reason, Verdict
from tests import blue
from tests.blue import (
    ETH,
    IP4,
    IP6,
    carried,
    dropped,
    forwarded,
    inner_of,
    patched,
    peer,
    udp_summed,
    web,
)
from tests.reference.build import part
from tests.reference.checksum import checksum

OUT4, OUT6 = "udp 10.1.0.2:7 > 10.2.0.9:53 len 20", "udp [fd00:1::2]:7 > [fd00:2::9]:53 len 20"
OVER6 = "udp 10.1.0.2:7 > 10.6.0.9:53 len 20"
IN4, IN6 = "udp 10.2.0.9:53 > 10.1.0.2:7 len 20", "udp [fd00:6::9]:53 > [fd00:1::2]:7 len 20"
UDP_AT = {4: ETH + IP4, 6: ETH + IP6}
VXLAN_AT = UDP_AT[4] + 8


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


def ip_at(frame: bytes) -> int:
    """Version of the outer packet."""
    return frame[ETH] >> 4


# ---- VXLAN header ------------------------------------------------------------------------------


@pytest.mark.conformance("V1")
@pytest.mark.parametrize("source", [blue.VTEP, blue.VTEP6])
def test_reserved_bits_are_ignored(engine, source: str) -> None:
    """Each of the 39 alone, and all at once."""
    frame = peer(IN4 if source == blue.VTEP else IN6, source)
    at = UDP_AT[ip_at(frame)] + 8
    header = int.from_bytes(frame[at : at + 8])
    ours = 0x08 << 56 | 0xFFFFFF << 8  # the I flag and the VNI
    reserved = [1 << bit for bit in range(64) if not ours >> bit & 1]
    assert len(reserved) == 39
    clean = inner_of(frame)
    for bits in [*reserved, sum(reserved)]:
        marked = patched(frame, at, (header | bits).to_bytes(8))
        if source == blue.VTEP6:
            marked = udp_summed(marked)
        assert forwarded(engine.process_one(marked, "underlay"), "blue/web") == clean_of(clean)


def clean_of(inner: bytes) -> bytes:
    """As the router delivers it to web."""
    return blue.WEB.packed + blue.DR.packed + inner[12:]


@pytest.mark.conformance("V1", "V3")
@pytest.mark.parametrize("vni", [0, 1, 0x800000, 0xFFFFFF, 0x123456])
@pytest.mark.parametrize("words", [OUT4, OVER6])
def test_the_header_sent_and_every_octet_of_the_vni(vni: int, words: str) -> None:
    with blue.engine(blue.node(vni=Vni(vni))) as engine:
        frame = forwarded(engine.process_one(web(words), "web"), "underlay")
        at = UDP_AT[ip_at(frame)] + 8
        assert frame[at : at + 8] == b"\x08\0\0\0" + vni.to_bytes(3) + b"\0"
        assert engine.process_one(peer(IN4, vni=vni), "underlay").port == "blue/web"
        known = len(engine.flows())
        for bit in range(24):
            other = peer(IN4, vni=vni ^ 1 << bit)
            assert dropped(engine.process_one(other, "underlay")) == "unknown_vni"
        assert engine.stats().reasons == {Reason["UNKNOWN_VNI"]: 24}
        assert len(engine.flows()) == known, "something was learned from another network"


@pytest.mark.conformance("V2")
@pytest.mark.parametrize("flags", [0x00, 0xF7, 0x04, 0x10])
def test_without_the_i_flag_there_is_no_vni(engine, flags: int) -> None:
    frame = patched(peer(IN4), VXLAN_AT, bytes([flags]))
    assert dropped(engine.process_one(frame, "underlay")) == "no_vni_flag"
    assert engine.stats().reasons == {Reason["NO_VNI_FLAG"]: 1}


@pytest.mark.conformance("V4", "T1")
@pytest.mark.parametrize(("port", "other"), [(4789, 8472), (8472, 4789)])
def test_the_destination_port_is_configured_and_the_only_one(port: int, other: int) -> None:
    with blue.engine(blue.node(underlay={"port": port})) as engine:
        for words in (OUT4, OVER6):
            frame = forwarded(engine.process_one(web(words), "web"), "underlay")
            at = UDP_AT[ip_at(frame)] + 2
            assert int.from_bytes(frame[at : at + 2]) == port
        assert engine.process_one(peer(IN4, dport=port), "underlay").port == "blue/web"
        for wrong in (other, 0, port ^ 1, 6081):
            frame = peer(IN4, dport=wrong)
            assert dropped(engine.process_one(frame, "underlay")) == "outer_not_vxlan"


# ---- source port -------------------------------------------------------------------------------


def sports(engine, frames: list[bytes]) -> list[int]:
    """Outer UDP source port of each frame that web sends."""
    batch = Batch(capacity=len(frames), slot=512)
    result = engine.process(batch.load(frames, "web"))
    assert (result.verdict == Verdict.FORWARD).all()
    return [int.from_bytes(result.frame(i)[34:36]) for i in range(len(frames))]


@pytest.mark.conformance("V5")
def test_source_ports_are_spread_over_the_whole_range() -> None:
    """10,000 random flows; chi-square of 128 classes below its 99.99 % quantile (194)."""
    draw = random.Random(7348)
    seen = set()
    while len(seen) < 10_000:
        seen.add((draw.randrange(1, 65536), draw.randrange(1, 65536), draw.randrange(1 << 16)))
    frames = [
        web(f"udp 10.1.0.2:{sport} > 10.2.{low >> 8}.{low & 255}:{dport}")
        for sport, dport, low in sorted(seen)
    ]
    with blue.engine(max_flows=16_384) as engine:
        ports = sports(engine, frames)
        assert min(ports) >= 49152 and max(ports) <= 65535
        assert len(set(ports)) >= 7_300
        classes = Counter((port - 49152) >> 7 for port in ports)
        expected = len(ports) / 128
        assert sum((classes[i] - expected) ** 2 / expected for i in range(128)) < 194
        assert sports(engine, frames) == ports


@pytest.mark.conformance("V5")
def test_a_flow_keeps_its_source_port_for_its_life(engine) -> None:
    """Through size, TTL, time and a policy change; any source port of a peer is taken."""
    words = "tcp 10.1.0.2:7 > 10.2.0.9:80"
    port = sports(engine, [web(f"{words} syn")])[0]
    same = [f"{words} ack len 300", f"{words} psh ack ttl 9", f"{words} fin ack tos 2"]
    assert sports(engine, [web(each) for each in same]) == [port] * 3
    engine.commit(blue.node(acls=(blue.rule("rest", "out", "allow"),)))
    engine.clock.advance(seconds=20)
    assert sports(engine, [web(f"{words} ack")]) == [port]
    assert engine.stats().totals["reconciled"] == 1
    back = "tcp 10.2.0.9:80 > 10.1.0.2:7 syn ack"
    for sport in (0, 1, 1024, 49151, 65535):
        frame = peer(back, sport=sport)
        assert engine.process_one(frame, "underlay").port == "blue/web"


@pytest.mark.conformance("V5")
def test_later_fragments_of_a_datagram_share_a_port(engine) -> None:
    """That of its flow, for which the first one stands."""
    whole = web("udp 10.1.0.2:7 > 10.2.0.9:53 len 60")
    pieces = [part(whole, at, at + 24, ident=5) for at in (0, 48, 24)]
    assert len(set(sports(engine, [whole, *pieces]))) == 1


# ---- UDP checksum ------------------------------------------------------------------------------


@pytest.mark.conformance("V6", "E6")
def test_udp_checksums_sent(engine) -> None:
    """Zero over IPv4; over IPv6 right, whatever is inside."""
    for words in (OUT4, OUT6, "tcp 10.1.0.2:1 > 10.2.0.9:2 syn mss 1400"):
        frame = forwarded(engine.process_one(web(words), "web"), "underlay")
        assert frame[40:42] == b"\0\0" and frame[ETH] == 0x45
    inside = (OVER6, "udp [fd00:1::2]:7 > [fd00:6::9]:53 len 21", "icmp 10.1.0.2 > 10.6.0.9 echo")
    for words in inside:
        frame = forwarded(engine.process_one(web(words), "web"), "underlay")
        assert frame == udp_summed(frame) and frame[UDP_AT[6] + 6 :][:2] != b"\0\0"


@pytest.mark.conformance("V6", "C2")
def test_an_outer_sum_of_zero_is_sent_as_ffff() -> None:
    """Over IPv6 zero would mean that none was made (RFC 768)."""
    with blue.engine() as engine:
        base = web(OVER6)
        first = forwarded(engine.process_one(base, "web"), "underlay")
        at = UDP_AT[6] + 6
        delta = int.from_bytes(first[at : at + 2])  # of two payload bytes that now are zero
        old = int.from_bytes(base[-2:])
        total = old + delta
        new = (total & 0xFFFF) + (total >> 16)
        frame = patched(base, len(base) - 2, new.to_bytes(2))
        sent = forwarded(engine.process_one(frame, "web"), "underlay")
        assert sent[at : at + 2] == b"\xff\xff" and sent == udp_summed(sent)


@pytest.mark.conformance("V6", "E6")
@pytest.mark.parametrize(("source", "words"), [(blue.VTEP, IN4), (blue.VTEP6, IN6)])
def test_udp_checksums_received(engine, source: str, words: str) -> None:
    frame = peer(words, source)
    version = ip_at(frame)
    at = UDP_AT[version]
    bare = patched(frame, at + 6, b"\0\0")
    accepted = udp_summed(frame)
    right = int.from_bytes(accepted[at + 6 : at + 8])
    assert engine.process_one(accepted, "underlay").port == "blue/web"
    for wrong in (right ^ 1, right ^ 0x8000, 0xFFFF):
        refused = patched(bare, at + 6, wrong.to_bytes(2))
        assert dropped(engine.process_one(refused, "underlay")) == "outer_checksum"
    for place in (at + 8 + 5, len(frame) - 1):  # it covers the whole packet
        refused = patched(accepted, place, bytes([accepted[place] ^ 0x10]))
        assert dropped(engine.process_one(refused, "underlay")) == "outer_checksum"
    zero = engine.process_one(bare, "underlay")
    if version == 4:
        assert zero.port == "blue/web"
    else:
        assert dropped(zero) == "udp6_zero_checksum"


# ---- no fragments ------------------------------------------------------------------------------


@pytest.mark.conformance("V7", "E5")
def test_outer_packets_are_atomic() -> None:
    """DF and neither MF nor an offset, for every size, inner flag and path MTU; the ID is 0."""
    for mtu in (1500, 1350):
        with blue.engine(blue.node(underlay={"mtu": mtu})) as engine:
            for size in (0, 1, 500, mtu - 70 - 28):
                for inner in ("", "df", "ipid 777"):
                    words = f"udp 10.1.0.2:7 > 10.2.0.9:53 len {size} {inner}"
                    frame = forwarded(engine.process_one(web(words), "web"), "underlay")
                    assert frame[ETH + 4 : ETH + 8] == b"\0\0\x40\0"
                    assert len(frame) - ETH <= mtu
            for size in (mtu - 70 - 27, 1500, 9000):
                words = f"udp 10.1.0.2:7 > 10.2.0.9:53 len {size}"
                assert engine.process_one(web(f"{words} df"), "web").port != "underlay"
                first = engine.process_one(web(words), "web")
                for frame in (forwarded(piece, "underlay") for piece in (first, *first.more)):
                    assert frame[ETH + 4 : ETH + 8] == b"\0\0\x40\0"
                    assert len(frame) - ETH <= mtu


@pytest.mark.conformance("V7")
def test_outer_fragments_are_not_taken(engine) -> None:
    for bits in (b"\x20\0", b"\0\1", b"\x20\5", b"\x1f\xff"):
        frame = blue.mended(patched(peer(IN4), ETH + 6, bits))
        assert dropped(engine.process_one(frame, "underlay")) == "outer_fragment"
    whole = peer(IN6, blue.VTEP6)
    body = whole[UDP_AT[6] :]
    head = patched(whole[: UDP_AT[6]], ETH + 6, b"\x2c")
    head = patched(head, ETH + 4, (len(body) + 8).to_bytes(2))
    for field in (0, 1, 8, 9):
        frame = head + b"\x11\0" + field.to_bytes(2) + b"\0\0\0\5" + body
        assert dropped(engine.process_one(frame, "underlay")) == "outer_fragment"


@pytest.mark.conformance("V7")
@pytest.mark.parametrize(("words", "overhead"), [(OUT4, 50), (OUT6, 50), (OVER6, 70)])
def test_the_overhead_is_what_the_mtu_allows_for(engine, words: str, overhead: int) -> None:
    frame = web(words)
    sent = forwarded(engine.process_one(frame, "web"), "underlay")
    assert len(sent) - len(frame) == overhead
    assert engine.resolved.networks[0].mtu == 1500 - 70


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.conformance("V11")
def test_runts_are_counted(engine) -> None:
    for size in range(8):
        frame = shortened(peer(IN4), size)
        assert dropped(engine.process_one(frame, "underlay")) == "no_vni_flag"
    for size in range(14):
        frame = shortened(peer(IN4), 8 + size)
        assert dropped(engine.process_one(frame, "underlay")) == "short_ethernet"
        assert dropped(engine.process_one(web(OUT4)[:size], "web")) == "short_ethernet"
    assert engine.stats().reasons == {Reason["NO_VNI_FLAG"]: 8, Reason["SHORT_ETHERNET"]: 28}


def shortened(frame: bytes, payload: int) -> bytes:
    """An outer IPv4 packet with so many bytes behind its UDP header, all lengths right."""
    frame = frame[: VXLAN_AT + payload]
    frame = patched(frame, ETH + 2, (len(frame) - ETH).to_bytes(2))
    frame = patched(frame, UDP_AT[4] + 4, (8 + payload).to_bytes(2))
    return blue.mended(frame)


@pytest.mark.conformance("V11")
def test_short_frames_are_not_padded_and_padding_is_not_sent(engine) -> None:
    """42 bytes stay 42; there is no FCS inside; what lies behind the IP packet is not forwarded."""
    frame = web("udp 10.1.0.2:7 > 10.2.0.9:53 len 0")
    assert len(frame) == 42
    for trailer in (b"", bytes(18), b"\xab\xcd\xef\x01"):
        sent = forwarded(engine.process_one(frame + trailer, "web"), "underlay")
        assert len(inner_of(sent)) == 42
        back = build(parse("udp 10.2.0.9:53 > 10.1.0.2:7 len 0"), blue.PEER, blue.DR)
        delivered = engine.process_one(carried(back + trailer), "underlay")
        assert len(forwarded(delivered, "blue/web")) == 42


# ---- outer header ------------------------------------------------------------------------------

NOT_ECT, ECT1, ECT0, CE = range(4)
DECAP = {  # inner: by outer; RFC 6040 figure 4
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}
CASES = [(inner, outer) for inner in DECAP for outer in DECAP[inner]]


def traffic_class(ip: bytes) -> int:
    return ip[1] if ip[0] >> 4 == 4 else int.from_bytes(ip[:2]) >> 4 & 0xFF


@pytest.mark.conformance("E1")
@pytest.mark.parametrize("ecn", [NOT_ECT, ECT1, ECT0, CE])
@pytest.mark.parametrize("dscp", [0, 46])
@pytest.mark.parametrize("words", [OUT4, OUT6, OVER6])
def test_ecn_is_copied_on_encap(engine, ecn: int, dscp: int, words: str) -> None:
    frame = web(f"{words} tos {dscp << 2 | ecn}")
    sent = forwarded(engine.process_one(frame, "web"), "underlay")
    assert traffic_class(sent[ETH:]) & 3 == ecn
    inner = inner_of(sent)
    assert traffic_class(inner[ETH:]) == dscp << 2 | ecn and blue.sums(inner) == {0}
    if sent[ETH] == 0x45:
        assert checksum(sent[ETH : ETH + 20]) == 0


@pytest.mark.conformance("E2")
@pytest.mark.parametrize(("inner", "outer"), CASES)
@pytest.mark.parametrize("source", [blue.VTEP, blue.VTEP6])
@pytest.mark.parametrize("family", [4, 6])
def test_ecn_on_decap(engine, inner: int, outer: int, source: str, family: int) -> None:
    """All 16 cases, hit and miss, and the inner checksum is right again."""
    third = 2 if source == blue.VTEP else 6
    words = {
        4: f"udp 10.{third}.0.9:53 > 10.1.0.2:7 len 20",
        6: f"udp [fd00:{third}::9]:53 > [fd00:1::2]:7 len 20",
    }[family]
    tos = 46 << 2 | inner
    frame = peer(f"{words} tos {tos}", source, tos=outer)
    wanted = DECAP[inner][outer]
    for _ in range(2):
        outcome = engine.process_one(frame, "underlay")
        if wanted is None:
            assert dropped(outcome) == "ecn_ce_on_not_ect"
            continue
        got = forwarded(outcome, "blue/web")
        assert traffic_class(got[ETH:]) == 46 << 2 | wanted and blue.sums(got) == {0}


@pytest.mark.conformance("E3", "A3")
def test_what_is_not_ip_never_leaves_by_the_underlay(engine) -> None:
    """So there is no outer header without an inner ECN field."""
    for target in ("10.1.0.1", "10.1.0.3", "10.2.0.9", "10.1.0.99", "203.0.113.9"):
        outcome = engine.process_one(web(f"arp who-has {target} tell 10.1.0.2"), "web")
        assert outcome.port in ("blue/web", None)
    for kind in (0x0806, 0x88CC, 0x8847, 0x86DD + 1, 0):
        frame = blue.DR.packed + blue.WEB.packed + kind.to_bytes(2) + bytes(46)
        assert engine.process_one(frame, "web").port is None
    assert engine.stats().ports["underlay"]["tx_frames"] == 0


@pytest.mark.conformance("E8")
@pytest.mark.parametrize("ttl", [2, 64, 255])
def test_outer_ttl_and_flow_label_are_our_own(engine, ttl: int) -> None:
    """TTL 64 whatever the inner one is; the flow label is 0 (RFC 6437)."""
    assert forwarded(engine.process_one(web(f"{OUT4} ttl {ttl}"), "web"), "underlay")[22] == 64
    labelled = patched(web(f"{OUT6.replace('fd00:2', 'fd00:6')} ttl {ttl}"), 15, b"\x0a\xbc\xde")
    sent = forwarded(engine.process_one(labelled, "web"), "underlay")
    assert sent[ETH : ETH + 4] == b"\x60\0\0\0" and sent[ETH + 7] == 64
    assert inner_of(sent)[15:18] == b"\x0a\xbc\xde"


# ---- outer packet, checked ---------------------------------------------------------------------

GOOD = peer(IN4)
GOOD6 = peer(IN6, blue.VTEP6)
TOTAL = len(GOOD) - ETH


def ip4(at: int, new: bytes) -> bytes:
    return blue.mended(patched(GOOD, ETH + at, new))


BROKEN = {
    "version": (ip4(0, b"\x55"), "outer_malformed"),
    "ihl": (patched(GOOD, ETH, b"\x44"), "outer_malformed"),
    "ihl beyond total": (patched(GOOD[: ETH + 21], ETH, b"\x46"), "outer_malformed"),
    "total below header": (ip4(2, (19).to_bytes(2)), "outer_malformed"),
    "total beyond frame": (ip4(2, (TOTAL + 1).to_bytes(2)), "outer_malformed"),
    "total cuts udp": (ip4(2, (27).to_bytes(2)), "outer_malformed"),
    "header checksum": (patched(GOOD, ETH + 10, b"\x12\x34"), "outer_checksum"),
    "protocol": (ip4(9, b"\x06"), "outer_not_vxlan"),
    "destination": (ip4(16, b"\xc0\0\2\7"), "outer_not_vxlan"),
    "ethertype": (patched(GOOD, 12, b"\x08\6"), "outer_not_vxlan"),
    "cut in ethernet": (GOOD[:13], "short_ethernet"),
    "cut in ip": (GOOD[: ETH + 19], "outer_malformed"),
    "udp length beyond ip": (patched(GOOD, 38, (TOTAL - 19).to_bytes(2)), "outer_malformed"),
    "udp length below header": (patched(GOOD, 38, b"\0\7"), "outer_malformed"),
    "version 6": (patched(GOOD6, ETH, b"\x40"), "outer_malformed"),
    "payload beyond frame 6": (
        patched(GOOD6, ETH + 4, (len(GOOD6) - 53).to_bytes(2)),
        "outer_malformed",
    ),
    "next header 6": (patched(GOOD6, ETH + 6, b"\x06"), "outer_not_vxlan"),
    "destination 6": (patched(GOOD6, ETH + 39, b"\x09"), "outer_not_vxlan"),
    "cut in ip 6": (GOOD6[: ETH + 39], "outer_malformed"),
    "udp length beyond ip 6": (patched(GOOD6, 58, b"\xff\xff"), "outer_malformed"),
}


@pytest.mark.conformance("E9")
@pytest.mark.parametrize("case", BROKEN)
def test_outer_fields_are_checked(engine, case: str) -> None:
    frame, reason = BROKEN[case]
    assert engine.process_one(GOOD, "underlay").port == "blue/web"
    assert engine.process_one(GOOD6, "underlay").port == "blue/web"
    assert dropped(engine.process_one(frame, "underlay")) == reason


@pytest.mark.conformance("E9")
def test_outer_options_are_stepped_over_and_trailing_bytes_cut(engine) -> None:
    head, rest = GOOD[ETH : ETH + 20], GOOD[ETH + 20 :]
    wide = GOOD[:ETH] + b"\x47" + head[1:2] + (TOTAL + 8).to_bytes(2) + head[4:] + b"\1" * 8 + rest
    wanted = forwarded(engine.process_one(GOOD, "underlay"), "blue/web")
    assert forwarded(engine.process_one(blue.mended(wide), "underlay"), "blue/web") == wanted
    assert forwarded(engine.process_one(GOOD + b"trailer", "underlay"), "blue/web") == wanted
    longer = patched(GOOD + b"behind", ETH + 2, (TOTAL + 6).to_bytes(2))  # UDP ends before IP does
    assert forwarded(engine.process_one(blue.mended(longer), "underlay"), "blue/web") == wanted


# ---- who may speak -----------------------------------------------------------------------------


@pytest.mark.conformance("V10", "T1")
@pytest.mark.parametrize("source", ["192.0.2.9", "198.51.100.1", blue.OURS, "2001:db8::99"])
def test_a_vtep_that_is_not_on_the_list_is_dropped_in_silence(engine, source: str) -> None:
    """The right VNI and inner addresses do not help; nothing is learned, nobody is told."""
    for words in (IN4, f"{IN4} ttl 1", "icmp 10.2.0.9 > 10.1.0.2 echo"):
        assert dropped(engine.process_one(peer(words, source), "underlay")) == "unknown_vtep"
    totals = engine.stats().totals
    assert totals["flows"] == totals["originated"] == 0
    assert engine.stats().reasons == {Reason["UNKNOWN_VTEP"]: 3}


@pytest.mark.conformance("V10", "T1")
def test_an_inner_source_belongs_to_the_vtep_that_sends_it(engine) -> None:
    """On a miss, and on a flow that its own VTEP has made."""
    assert engine.process_one(peer(IN4), "underlay").port == "blue/web"
    for words in (IN4, "udp 10.2.0.9:99 > 10.1.0.2:7", "udp 10.1.0.3:9 > 10.1.0.2:7"):
        outcome = engine.process_one(peer(words, "192.0.2.3"), "underlay")
        assert dropped(outcome) == "source_not_behind_vtep"
    assert engine.process_one(peer(IN4), "underlay").port == "blue/web"


@pytest.mark.conformance("T1")
def test_other_tunnels_are_not_opened(engine) -> None:
    """IP in IP, 6in4, GRE, and the ports of GENEVE, GUE and VXLAN-GPE to our address."""
    for proto in (4, 41, 47, 50, 51):
        assert dropped(engine.process_one(ip4(9, bytes([proto])), "underlay")) == "outer_not_vxlan"
    for port in (6081, 6080, 4790, 8472):
        frame = peer(IN4, dport=port)
        assert dropped(engine.process_one(frame, "underlay")) == "outer_not_vxlan"


@pytest.mark.conformance("T2")
def test_vxlan_in_vxlan_is_opened_once(engine) -> None:
    """What is inside is a packet as any other: the workload's own, delivered as it is."""
    bait = OUT4.replace("10.1.0.2", "10.2.0.9").replace("> 10.2.0.9", "> 10.1.0.3")
    for inner in (web(OUT4), build(parse(bait), blue.PEER, blue.DR)):
        ends = {"src": ip_address("10.2.0.9"), "dst": ip_address("10.1.0.2"), "vni": blue.VNI}
        nested = vxlan(inner, **ends, smac=blue.PEER, dmac=blue.DR)
        got = forwarded(engine.process_one(carried(nested), "underlay"), "blue/web")
        assert got == clean_of(nested)
    to_vtep = carried(peer(IN4))  # whose inner source is a VTEP's underlay address
    assert dropped(engine.process_one(to_vtep, "underlay")) == "source_not_behind_vtep"
