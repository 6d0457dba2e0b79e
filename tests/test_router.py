"""The distributed router: what it refuses, what it tells the sender, and where it sends."""

import random
from ipaddress import ip_address, ip_network
from itertools import product

import pytest

from dataplane.address import Mac
from dataplane.errors import DocumentError
from dataplane.packet import build, describe, parse
from dataplane.reasons import Reason, Verdict
from dataplane.stats import adds_up
from tests import blue
from tests.blue import ETH, IP6, dropped, forwarded, inner_of, mended, patched, peer, told, web
from tests.reference.checksum import checksum, pseudo_header

TTL, TOO_BIG, REJECT = Reason["TTL_EXPIRED"], Reason["TOO_BIG"], Reason["ACL_REJECT"]
OUT, OUT6 = "udp 10.1.0.2:7 > 10.2.0.9:53", "udp [fd00:1::2]:7 > [fd00:2::9]:53"
LOCAL, LOCAL6 = "udp 10.1.0.2:7 > 10.1.0.3:53", "udp [fd00:1::2]:7 > [fd00:1::3]:53"
MTU = 1430


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


# ---- what no router forwards -------------------------------------------------------------------

UDP4 = web(f"{OUT} len 20")
TOTAL = len(UDP4) - ETH
BAD4 = {
    "frame too short": UDP4[: ETH + 19],
    "version": mended(patched(UDP4, ETH, b"\x55")),
    "version 6": mended(patched(UDP4, ETH, b"\x65")),
    "header length": patched(UDP4, ETH, b"\x44"),
    "header beyond frame": patched(web(f"{OUT} len 0"), ETH, b"\x4f"),
    "total below header": mended(patched(UDP4, ETH + 2, (19).to_bytes(2))),
    "total below options": mended(patched(UDP4, ETH, b"\x46\0\0\x17")),
    "total beyond frame": mended(patched(UDP4, ETH + 2, (TOTAL + 1).to_bytes(2))),
}


@pytest.mark.conformance("R1")
@pytest.mark.parametrize("case", BAD4)
@pytest.mark.parametrize("way", ["web", "underlay", "host"])
def test_a_bad_ipv4_header_is_dropped_in_silence(engine, case: str, way: str) -> None:
    frame = BAD4[case]
    if way == "underlay":
        frame = blue.carried(blue.DR.packed + blue.PEER.packed + frame[12:])
    elif way == "host":
        frame = blue.OUR_HOST.packed + blue.HOST.packed + frame[12:]
    assert dropped(engine.process_one(frame, way)) == "bad_ip4"
    assert engine.stats().totals["originated"] == 0


@pytest.mark.conformance("R1")
def test_a_wrong_header_checksum_is_dropped_in_silence(engine) -> None:
    """Every single bit of the header, TTL 1 or too big as it may be besides."""
    for bit in range(160):
        at, mask = ETH + bit // 8, 1 << bit % 8
        frame = patched(UDP4, at, bytes([UDP4[at] ^ mask]))
        assert dropped(engine.process_one(frame, "web")) in ("bad_ip4", "bad_ip4_checksum")
    frame = patched(web(f"{OUT} ttl 1"), ETH + 10, b"\0\0")
    assert dropped(engine.process_one(frame, "web")) == "bad_ip4_checksum"


# ---- TTL ---------------------------------------------------------------------------------------


def ttl_of(frame: bytes) -> int:
    return frame[ETH + (8 if frame[ETH] >> 4 == 4 else 7)]


@pytest.mark.conformance("R2")
@pytest.mark.parametrize("words", [OUT, OUT6, LOCAL, LOCAL6, "udp 10.1.0.2:7 > 203.0.113.9:53"])
def test_a_hop_takes_one_and_the_last_is_told(engine, words: str) -> None:
    v4 = "fd00" not in words
    for ttl in (0, 1):
        error = told(engine.process_one(web(f"{words} ttl {ttl}"), "web"), TTL)
        assert icmp_of(error)[:2] == (b"\x0b\0" if v4 else b"\x03\0")
    for ttl in (2, 64, 255):
        outcome = engine.process_one(web(f"{words} ttl {ttl}"), "web")
        frame = inner_of(outcome.frame) if outcome.port == "underlay" else outcome.frame
        assert outcome.verdict is Verdict.FORWARD and ttl_of(frame) == ttl - 1
        assert blue.sums(frame) == {0}


@pytest.mark.conformance("R2")
@pytest.mark.parametrize("ttl", [0, 1, 64])
def test_no_hop_no_decrement(engine, ttl: int) -> None:
    """Switched between neighbours, to us, and from the underlay: the hop was the sender's."""
    for words in (LOCAL, LOCAL6):
        switched = engine.process_one(web(f"{words} ttl {ttl}", dmac=blue.DB), "web")
        assert ttl_of(forwarded(switched, "blue/db")) == ttl
    for words in ("udp 10.2.0.9:1 > 10.1.0.2:2", "udp [fd00:2::9]:1 > [fd00:1::2]:2"):
        delivered = engine.process_one(peer(f"{words} ttl {ttl}"), "underlay")
        assert ttl_of(forwarded(delivered, "blue/web")) == ttl
    for ping in ("icmp 10.1.0.2 > 10.1.0.1 echo", "icmp6 fd00:1::2 > fd00:1::1 echo"):
        assert engine.process_one(web(f"{ping} ttl {ttl}"), "web").verdict is Verdict.ANSWER


# ---- ICMP errors -------------------------------------------------------------------------------


def icmp_of(frame: bytes) -> bytes:
    return frame[ETH + (20 if frame[ETH] >> 4 == 4 else IP6) :]


TRIGGERS = {  # what makes the router answer, by reason
    TTL: "{} ttl 1",
    TOO_BIG: "{} len 1500 df",
    REJECT: "{}",
}
REJECTING = blue.node(acls=(blue.rule("no", "out", "reject", priority=1),))


def provoked(reason: Reason, words: str, change=lambda frame: frame):
    """The outcome of a packet that the router would complain of."""
    v6 = "fd00" in words
    words = TRIGGERS[reason].format(words)
    with blue.engine(REJECTING if reason is REJECT else None) as engine:
        return engine.process_one(change(web(words.replace(" df", "") if v6 else words)), "web")


@pytest.mark.conformance("R3", "R4")
@pytest.mark.parametrize("reason", TRIGGERS)
@pytest.mark.parametrize("words", [OUT, OUT6])
def test_an_icmp_error_comes_from_the_gateway_and_is_right(reason: Reason, words: str) -> None:
    frame = told(provoked(reason, words), reason)
    got = describe(frame)
    v4 = words == OUT
    assert (frame[:6], frame[6:12]) == (blue.WEB.packed, blue.DR.packed)
    assert got["src"] == ("10.1.0.1" if v4 else "fd00:1::1")
    assert got["dst"] == ("10.1.0.2" if v4 else "fd00:1::2")
    assert blue.sums(frame) == {0} and ttl_of(frame) == 64
    kinds = {TTL: (11, 0, 3, 0), TOO_BIG: (3, 4, 2, 0), REJECT: (3, 13, 1, 1)}[reason]
    assert tuple(icmp_of(frame)[:2]) == (kinds[:2] if v4 else kinds[2:])


@pytest.mark.conformance("R3", "R4")
@pytest.mark.parametrize(("words", "most"), [(OUT, 576), (OUT6, 1280)])
@pytest.mark.parametrize("size", [0, 1, 519, 520, 521, 1183, 1184, 1185, 1400, 9000])
def test_as_much_is_quoted_as_fits(words: str, most: int, size: int) -> None:
    frame = told(provoked(TTL, f"{words} len {size}"), TTL)
    original = web(f"{words} len {size} ttl 1")[ETH:]
    assert len(frame) - ETH == min(most, len(original) + len(frame) - ETH - len(icmp_of(frame)) + 8)
    quote = icmp_of(frame)[8:]
    assert quote == original[: len(quote)]


ERRORS4 = (3, 4, 5, 11, 12)
ERRORS6 = (1, 2, 3, 4, 100, 127, 137)
NEVER = {
    **{f"icmp error {n}": f"icmp 10.1.0.2 > 10.2.0.9 type {n} code 0" for n in ERRORS4},
    **{f"icmp6 error {n}": f"icmp6 fd00:1::2 > fd00:2::9 type {n} code 0" for n in ERRORS6},
    "broadcast": "udp 10.1.0.2:7 > 255.255.255.255:9",
    "multicast": "udp 10.1.0.2:7 > 224.1.2.3:9",
    "multicast 6": "udp [fd00:1::2]:7 > [ff05::9]:9",
    "source 0": "udp 0.0.0.0:7 > 10.2.0.9:9",
    "source loopback": "udp 127.0.0.1:7 > 10.2.0.9:9",
    "source broadcast": "udp 255.255.255.255:7 > 10.2.0.9:9",
    "source multicast": "udp 224.0.0.5:7 > 10.2.0.9:9",
    "source class E": "udp 240.0.0.1:7 > 10.2.0.9:9",
    "source unspecified 6": "udp [::]:7 > [fd00:2::9]:9",
    "source loopback 6": "udp [::1]:7 > [fd00:2::9]:9",
    "source multicast 6": "udp [ff02::1]:7 > [fd00:2::9]:9",
}


@pytest.mark.conformance("R3", "R4")
@pytest.mark.parametrize("case", NEVER)
@pytest.mark.parametrize("reason", [TTL, REJECT])
def test_what_is_never_answered(case: str, reason: Reason) -> None:
    outcome = provoked(reason, NEVER[case])
    assert outcome.verdict is Verdict.DROP and outcome.port is None


@pytest.mark.conformance("R3", "R4")
@pytest.mark.parametrize("reason", TRIGGERS)
@pytest.mark.parametrize("words", [OUT, OUT6])
@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"])
def test_link_layer_broadcasts_are_never_answered(reason: Reason, words: str, mac: str) -> None:
    outcome = provoked(reason, words, lambda f: patched(f, 0, Mac(mac).packed))
    assert dropped(outcome) == "multicast"


@pytest.mark.conformance("R3")
def test_the_underlay_is_told_nothing(engine) -> None:
    """Its senders are not ours to answer: their own router was the hop."""
    ce = peer("udp 10.2.0.9:1 > 10.1.0.2:2", tos=3)
    for frame in (ce, peer("udp 10.2.0.9:1 > 10.1.0.99:2"), peer("udp 10.2.0.9:1 > 10.3.0.1:2")):
        dropped(engine.process_one(frame, "underlay"))
    assert engine.stats().totals["originated"] == 0


# ---- path MTU ----------------------------------------------------------------------------------


@pytest.mark.conformance("R5", "R6")
@pytest.mark.parametrize("words", [OUT, OUT6])
def test_the_next_hop_mtu_is_told(engine, words: str) -> None:
    """In the low 16 bits over IPv4, in 32 over IPv6; a packet of just that size passes."""
    v4 = words == OUT
    most = MTU - (28 if v4 else 48)
    df = " df" if v4 else ""
    assert engine.process_one(web(f"{words} len {most}{df}"), "web").port == "underlay"
    frame = told(engine.process_one(web(f"{words} len {most + 1}{df}"), "web"), TOO_BIG)
    assert icmp_of(frame)[:2] == (b"\x03\x04" if v4 else b"\x02\0")
    assert icmp_of(frame)[4:8] == MTU.to_bytes(4)
    assert engine.stats().reasons == {TOO_BIG: 1}


@pytest.mark.conformance("R5")
@pytest.mark.parametrize(
    ("underlay", "provider", "mtu"), [(1500, blue.VTEP, 1450), (1500, blue.VTEP6, 1430)]
)
def test_the_mtu_is_the_underlays_less_the_overhead(underlay, provider, mtu) -> None:
    policy = blue.node(
        underlay={"mtu": underlay}, remote_subnets=(blue.remote("10.2.0.0/16", provider),)
    )
    with blue.engine(policy) as engine:
        frame = told(engine.process_one(web(f"{OUT} len 2000 df"), "web"), TOO_BIG)
        assert int.from_bytes(icmp_of(frame)[6:8]) == mtu


@pytest.mark.conformance("R5")
def test_an_underlay_that_cannot_carry_ip_is_refused() -> None:
    """68 bytes of IPv4, 1280 of IPv6: less is a faulty document, never a smaller answer."""
    for mtu in (1349, 1280, 118):
        with pytest.raises(DocumentError, match="less than IP needs"):
            blue.engine(blue.node(underlay={"mtu": mtu}))
    with pytest.raises(DocumentError, match="less than IP needs"):
        blue.engine(blue.node(mtu=1279))
    with blue.engine(blue.node(underlay={"mtu": 1350})) as engine:
        frame = told(engine.process_one(web(f"{OUT6} len 1400"), "web"), TOO_BIG)
        assert icmp_of(frame)[4:8] == (1280).to_bytes(4)


@pytest.mark.conformance("R6")
@pytest.mark.parametrize("options", [b"", b"\x94\4\0\0\x07\7\4\0\0\0\0\0"])
@pytest.mark.parametrize("size", [1423, 1500, 4000, 9000])
def test_too_big_without_df_is_cut_by_the_router(engine, size: int, options: bytes) -> None:
    """RFC 1812 section 5.2.6: what comes out of all pieces is what went in, a hop later."""
    words = f"{OUT} len {size} ipid 321"
    whole = with_options(web(words), options)
    first = engine.process_one(whole, "web")
    pieces = [inner_of(forwarded(piece, "underlay")) for piece in (first, *first.more)]
    assert len(pieces) > 1
    payload, copied = b"", options[:4]
    for i, piece in enumerate(pieces):
        head = (piece[ETH] & 15) * 4
        assert len(piece) - ETH <= 1450 and checksum(piece[ETH : ETH + head]) == 0
        assert piece[ETH + 20 : ETH + head] == (copied if i else options)
        flags = int.from_bytes(piece[ETH + 6 : ETH + 8])
        assert flags == len(payload) // 8 | (i + 1 < len(pieces)) << 13
        assert piece[ETH + 4 : ETH + 6] == (321).to_bytes(2) and piece[ETH + 8] == 63
        payload += piece[ETH + head :]
    assert payload == whole[ETH + 20 + len(options) :]
    totals = engine.stats().totals
    assert (totals["copies"], totals["held"]) == (len(pieces) - 1, 0) and adds_up(totals)


@pytest.mark.conformance("R6", "N1")
def test_too_big_for_the_way_out_is_told_through_nat(engine) -> None:
    """The quote is the packet that the inside has sent, untranslated (RFC 4787 REQ-13)."""
    out = "udp 10.1.0.2:7 > 203.0.113.9:53 df"
    assert engine.process_one(web(out), "web").port == "host"
    big = web(f"{out} len 1600")
    frame = told(engine.process_one(big, "web"), TOO_BIG)
    assert describe(frame)["src"] == "10.1.0.1" and int.from_bytes(icmp_of(frame)[6:8]) == 1500
    assert icmp_of(frame)[8:] == big[ETH:][: 576 - 28]


@pytest.mark.conformance("R7")
def test_a_probe_that_is_too_big_is_counted_where_icmp_is_off() -> None:
    """A network without a gateway has nobody to send errors; the counter still tells."""
    one = (ip_network("10.1.0.2/32"), ip_network("fd00:1::2/128"))
    web_only = (blue.endpoint("web", 2, blue.WEB),)
    with blue.engine(blue.node(prefixes=one, endpoints=web_only)) as engine:
        for words in (f"{OUT} len 1500 df", f"{OUT6} len 1500"):
            assert dropped(engine.process_one(web(words), "web")) == "too_big"
        assert engine.stats().reasons == {TOO_BIG: 2}


# ---- options, fragments ------------------------------------------------------------------------


def with_options(frame: bytes, options: bytes) -> bytes:
    assert len(options) % 4 == 0
    total = len(frame) - ETH + len(options)
    head = bytes([0x45 + len(options) // 4, frame[ETH + 1]]) + total.to_bytes(2)
    head += frame[ETH + 4 : ETH + 20] + options
    return mended(frame[:ETH] + head + frame[ETH + 20 :])


@pytest.mark.conformance("R9")
@pytest.mark.parametrize(
    "options", [b"\x83\x07\4\0\0\0\0\0", b"\x89\x03\4\0", b"\1\1\x83\3\4\0\0\0"]
)
def test_source_routes_are_dropped(engine, options: bytes) -> None:
    frame = with_options(web(f"{OUT} len 20 ttl 1"), options)
    assert dropped(engine.process_one(frame, "web")) == "source_route"


@pytest.mark.conformance("R9")
@pytest.mark.parametrize(
    "options",
    [
        b"\x07\x07\x04\x00\x00\x00\x00\x00",
        b"\x94\x04\x00\x00",
        b"\x01\x01\x01\x01",
        b"D\x04\x05\x00",
        b"\x00\x83\xff\xff",
        b"\x01" * 40,
    ],
)
def test_other_options_pass_and_ports_are_found_behind_them(options: bytes) -> None:
    """Record route, router alert, timestamp; a block rule on the port still matches."""
    closed = blue.node(acls=(blue.rule("no", "out", "block", 99, protocol="udp"), *ANY))
    frames = [with_options(web(f"udp 10.1.0.2:7 > 10.2.0.9:{p}"), options) for p in (53, 99)]
    with blue.engine(closed) as engine:
        inner = inner_of(forwarded(engine.process_one(frames[0], "web"), "underlay"))
        assert inner[ETH + 20 :] == frames[0][ETH + 20 :]
        assert checksum(inner[ETH : ETH + 20 + len(options)]) == 0
        assert dropped(engine.process_one(frames[1], "web")) == "acl_deny"


@pytest.mark.conformance("R9")
@pytest.mark.parametrize("options", [b"\x07\0\0\0", b"\x07\1\0\0", b"\x07\5\0\0", b"\1\1\1\x07"])
def test_options_that_end_nowhere_are_bad_headers(engine, options: bytes) -> None:
    assert dropped(engine.process_one(with_options(UDP4, options), "web")) == "bad_ip4"


ANY = (blue.rule("rest", "out", "allow", priority=2000), blue.rule("rest-in", "in", "allow"))


@pytest.mark.conformance("R10")
def test_tiny_fragments_are_dropped(engine) -> None:
    """TCP at offset 1; a first fragment that lacks a part of its header (RFC 1858, RFC 3128)."""
    for family, src, dst in ((4, "10.1.0.2", "10.2.0.9"), (6, "fd00:1::2", "fd00:2::9")):
        again = web(f"ip 6 {src} > {dst} frag 8 len 40")
        assert dropped(engine.process_one(again, "web")) == "bad_fragment"
        for proto, needed in ((6, 20), (17, 8), (1 if family == 4 else 58, 8)):
            for size in (0, 4, needed - 1):
                first = web(f"ip {proto} {src} > {dst} mf len {size}")
                assert dropped(engine.process_one(first, "web")) == "bad_fragment"


@pytest.mark.conformance("R10")
def test_a_first_fragment_holds_the_whole_header_chain(engine) -> None:
    """RFC 7112: extension headers that run into the next fragment."""
    for chain in (
        b"\x3c\0\0\1\0\0\0\5\x11\4" + bytes(6),
        b"\x3c\0\0\1\0\0\0\5" + b"\x11\1" + bytes(6),
    ):
        head = b"\x60\0\0\0" + len(chain).to_bytes(2) + b"\x2c\x40"
        ends = ip_address("fd00:1::2").packed + ip_address("fd00:2::9").packed
        frame = blue.DR.packed + blue.WEB.packed + b"\x86\xdd" + head + ends + chain
        assert dropped(engine.process_one(frame, "web")) == "bad_extension"


@pytest.mark.conformance("R10")
def test_an_atomic_fragment_is_a_packet_by_itself() -> None:
    """RFC 6946: rules see its ports, and it passes while others of its id are under way."""
    policy = blue.node(acls=(blue.rule("no", "out", "block", 99, protocol="udp"), *ANY))
    with blue.engine(policy) as engine:
        for port, reason in ((53, None), (99, "acl_deny")):
            words = f"udp [fd00:1::2]:7 > [fd00:2::9]:{port} frag 0 ipid 5 len 20"
            outcome = engine.process_one(web(words), "web")
            assert outcome.port == "underlay" if reason is None else dropped(outcome) == reason


# ---- longest prefix ----------------------------------------------------------------------------


class Linear:
    """A routing table that looks at every route: the longest one that holds the address."""

    def __init__(self, table: dict) -> None:
        self.table = table

    def __getitem__(self, address):
        holds = [p for p in self.table if p.version == address.version and address in p]
        return self.table[max(holds, key=lambda p: p.prefixlen)] if holds else None


VTEPS = [f"192.0.2.{n}" for n in range(10, 30)]


def random_prefix(draw: random.Random, version: int):
    """Of few octets, so that they overlap; /0 and host routes among them."""
    bits = 32 if version == 4 else 128
    length = draw.choice([0, bits, *range(4, bits, 4)])
    base = sum(draw.choice([0, 0x40, 0x50, 0xFF]) << 8 * n for n in range(bits // 8 - 1))
    first = 0x32 if version == 4 else 0x26
    return ip_network((base | first << bits - 8, length), strict=False)


def probes(draw: random.Random, table: dict):
    """Edges of each prefix and its neighbours, and some of chance."""
    for prefix in table:
        low, high = int(prefix.network_address), int(prefix.broadcast_address)
        bits = prefix.max_prefixlen
        for number in (low - 1, low, high, high + 1, draw.randint(low, high)):
            address = ip_address((number % (1 << bits)).to_bytes(bits // 8))
            usable = 0x01 <= address.packed[0] < 0xE0 and address.packed[0] not in (10, 127)
            if usable if bits == 32 else address.packed[0] in (0x20, 0x26, 0x30):
                yield address


def way(engine, address) -> str | None:
    """The outer destination of what is sent to the address, or None: no route."""
    src = "10.1.0.2" if address.version == 4 else "fd00:1::2"
    outcome = engine.process_one(web(f"ip 253 {src} > {address}"), "web")
    if outcome.verdict is Verdict.FORWARD:
        return str(ip_address(outcome.frame[30:34]))
    assert dropped(outcome) in ("no_route", "nat_untranslatable")
    return None


@pytest.mark.conformance("R11")
@pytest.mark.parametrize("seed", range(12))
def test_routes_are_those_of_a_linear_table(seed: int) -> None:
    """Overlapping prefixes, /0 and /32 and /128; then some are deleted and uncover shorter ones."""
    draw = random.Random(seed)
    prefixes = {random_prefix(draw, v) for v in (4, 6) for _ in range(draw.choice([3, 20, 40]))}
    if seed % 3 == 0:
        prefixes |= {ip_network("0.0.0.0/0"), ip_network("::/0")}
    table = {p: draw.choice(VTEPS) for p in sorted(prefixes, key=str)}
    with blue.engine(blue.node(remote_subnets=()), max_flows=8192) as engine:
        while table:
            subnets = tuple(blue.remote(str(p), v) for p, v in table.items())
            engine.commit(blue.node(remote_subnets=subnets, outbound_nat=None))
            linear = Linear(table)
            for address in probes(draw, table):
                assert way(engine, address) == linear[address], address
            for prefix in draw.sample(list(table), -(-len(table) // 3)):
                del table[prefix]


@pytest.mark.conformance("R11")
def test_deletion_of_the_longer_uncovers_the_shorter(engine) -> None:
    lengths = (0, 8, 16, 24, 32)
    routes = {
        n: blue.remote(f"50.0.0.0/{n}" if n else "0.0.0.0/0", f"192.0.2.{n + 10}") for n in lengths
    }
    address = ip_address("50.0.0.0")
    for shortest, longest in product(lengths, lengths):
        kept = [routes[n] for n in lengths if shortest <= n <= longest]
        engine.commit(blue.node(remote_subnets=tuple(kept), outbound_nat=None))
        assert way(engine, address) == (f"192.0.2.{longest + 10}" if kept else None)


def test_the_sums_of_blue_are_those_of_the_reference() -> None:
    """The helper that the tests above lean on."""
    frame = build(parse(f"{OUT6} len 9"), blue.WEB, blue.DR)
    ends = frame[ETH + 8 : ETH + 40]
    body = frame[ETH + IP6 :]
    assert checksum(pseudo_header(ends[:16], ends[16:], 17, len(body)) + body) == 0
    assert blue.sums(frame) == {0} and blue.sums(patched(frame, 60, b"\1")) != {0}


@pytest.mark.parametrize(
    "echo", ["icmp 10.2.0.9 > 10.1.0.1 echo", "icmp6 fd00:2::9 > fd00:1::1 echo"]
)
def test_the_router_answers_no_ping_through_the_tunnel(engine, echo: str) -> None:
    """Its answer would leave by the underlay without outer headers."""
    assert dropped(engine.process_one(peer(echo), "underlay")) == "to_gateway"
