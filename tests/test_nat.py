"""Source NAT and the time that state lives: RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP)."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from dataplane.model import OutboundNat, PortRange
from dataplane.packet import describe
from dataplane.reasons import Reason, Verdict
from tests import blue
from tests.blue import ETH, dropped, forwarded, mirrored, outside, patched, peer, web
from tests.reference import build
from tests.reference.checksum import checksum

ELSEWHERE = [f"203.0.113.{n}" for n in (9, 10, 77)] + ["8.8.8.8"]
OUT = {
    "udp": "udp 10.1.0.2:{inside} > {to}:{port} len 12",
    "tcp": "tcp 10.1.0.2:{inside} > {to}:{port} syn",
    "icmp": "icmp 10.1.0.2 > {to} echo id {inside} len 12",
}
SECOND = 10**9


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


def pool(first: int, last: int, **fields):
    return blue.node(outbound_nat=OutboundNat(ports=PortRange(first, last)), **fields)


def sent(engine, kind: str, inside: int, to: str = ELSEWHERE[0], port: int = 80) -> bytes:
    words = OUT[kind].format(inside=inside, to=to, port=port)
    return forwarded(engine.process_one(web(words), "web"), "host")


def outside_port(frame: bytes) -> int:
    """Of the mapping: source port or echo id."""
    got = describe(frame)
    return int(got.get("sport", got.get("id")))


# ---- mapping -----------------------------------------------------------------------------------


@pytest.mark.conformance("N1", "N2")
@pytest.mark.parametrize("kind", OUT)
def test_mapping_is_endpoint_independent(engine, kind: str) -> None:
    """One inside address and port is one outside, whomever it talks to (REQ-1, REQ-2)."""
    for inside in (500, 5000):
        frames = [sent(engine, kind, inside, to, port) for to in ELSEWHERE for port in (53, 443)]
        assert {describe(f)["src"] for f in frames} == {blue.NAT}
        assert len({outside_port(f) for f in frames}) == 1
    assert engine.stats().totals["bindings"] == 2


@pytest.mark.conformance("N1", "N2")
@pytest.mark.parametrize("kind", OUT)
def test_no_two_share_a_port(kind: str) -> None:
    """In a pool they fill to the last port, two clients with the same ports (REQ-3, REQ-7)."""
    with blue.engine(pool(2000, 2031)) as engine:
        taken = {outside_port(sent(engine, kind, inside)) for inside in range(100, 116)}
        for inside in range(100, 116):
            words = OUT[kind].format(inside=inside, to=ELSEWHERE[0], port=80)
            frame = blue.db(words.replace("10.1.0.2", "10.1.0.3"))
            taken.add(outside_port(forwarded(engine.process_one(frame, "db"), "host")))
        assert taken == set(range(2000, 2032))


@pytest.mark.conformance("N1")
def test_protocols_have_ports_of_their_own() -> None:
    with blue.engine(pool(2000, 2000)) as engine:
        assert {outside_port(sent(engine, kind, 7)) for kind in OUT} == {2000}


@pytest.mark.conformance("N1")
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_registered_port_stays_above_1023(engine, kind: str) -> None:
    for inside in range(1024, 65536, 911):
        assert outside_port(sent(engine, kind, inside)) >= 1024


@pytest.mark.conformance("N2")
def test_an_unsolicited_syn_is_met_with_silence(engine) -> None:
    """RFC 5382 REQ-4a; and a simultaneous open that follows it goes through (REQ-2)."""
    port = outside_port(sent(engine, "tcp", 7, ELSEWHERE[0], 53))
    syn = outside(f"tcp {ELSEWHERE[1]}:80 > {blue.NAT}:{port} syn")
    for second in (0, 7, 60):
        assert dropped(engine.process_one(syn, "host", now=second * 10**9)) == "nat_no_binding"
    assert outside_port(sent(engine, "tcp", 7, ELSEWHERE[1], 80)) == port
    assert engine.process_one(syn, "host").port == "blue/web"


@pytest.mark.conformance("N1")
def test_filtering_is_by_address_and_port(engine) -> None:
    """Said so (REQ-8): from outside only the answers of a flow come in, and nothing without one."""
    port = outside_port(sent(engine, "udp", 7, ELSEWHERE[0], 53))
    answer = f"udp {ELSEWHERE[0]}:53 > {blue.NAT}:{port}"
    assert engine.process_one(outside(answer), "host").port == "blue/web"
    for words in (
        answer.replace(":53", ":54"),
        answer.replace(ELSEWHERE[0], ELSEWHERE[1]),
        answer.replace("udp", "tcp"),
        f"udp {ELSEWHERE[0]}:53 > {blue.NAT}:{port ^ 1}",
    ):
        assert dropped(engine.process_one(outside(words), "host")) == "nat_no_binding"


@pytest.mark.conformance("N1")
def test_the_payload_is_nobodys_business(engine) -> None:
    """No ALG (REQ-10): an address and a port in the text of FTP, SIP or DNS stay as they are."""
    for text in (b"PORT 10,1,0,2,1,244\r\n", b"Via: SIP/2.0/UDP 10.1.0.2:500\r\n"):
        for port in (21, 5060):
            src, dst = (ip_address(a).packed for a in ("10.1.0.2", ELSEWHERE[0]))
            body = build.summed(src, dst, 6, build.tcp(500, port, 0x18, data=text))
            packet = build.ip(src, dst, 6, body)
            frame = build.ethernet(blue.DR.packed, blue.WEB.packed, 0x0800, packet)
            assert forwarded(engine.process_one(frame, "web"), "host").endswith(text)


@pytest.mark.conformance("N1")
def test_the_same_again_is_the_same() -> None:
    """Deterministic (REQ-11): what others hold changes no mapping that stands, nor how new ones are
    made."""
    with blue.engine(pool(2000, 2063)) as engine:
        ports = [outside_port(sent(engine, "udp", n)) for n in range(64)]
        for round_ in range(3):
            engine.clock.advance(seconds=200)
            again = [outside_port(sent(engine, "udp", n, port=1000 + round_)) for n in range(64)]
            assert again == ports
    with blue.engine(pool(2000, 2063)) as engine:
        assert [outside_port(sent(engine, "udp", n)) for n in range(64)] == ports


@pytest.mark.conformance("N1")
def test_exceptions_leave_untranslated() -> None:
    nat = OutboundNat(exceptions=(ip_network("203.0.113.0/24"),))
    with blue.engine(blue.node(outbound_nat=nat)) as engine:
        assert dropped(engine.process_one(web(f"udp 10.1.0.2:7 > {ELSEWHERE[0]}:9"), "web"))
        assert engine.stats().totals["bindings"] == 0


# ---- exhaustion --------------------------------------------------------------------------------


@pytest.mark.conformance("N7")
@pytest.mark.parametrize("kind", OUT)
def test_an_exhausted_pool_refuses_new_flows_and_harms_no_old_one(kind: str) -> None:
    with blue.engine(pool(2000, 2015)) as engine:
        ports = {inside: outside_port(sent(engine, kind, inside)) for inside in range(16)}
        for inside in range(100, 300):
            words = OUT[kind].format(inside=inside, to=ELSEWHERE[1], port=80)
            assert engine.process_one(web(words), "web").reason is Reason["NAT_EXHAUSTED"]
        assert engine.stats().reasons == {Reason["NAT_EXHAUSTED"]: 200}
        for inside, port in ports.items():
            frame = sent(engine, kind, inside)
            assert outside_port(frame) == port
            back = engine.process_one(mirrored(frame), "host")
            assert back.port == "blue/web"
        engine.clock.advance(seconds=7441)
        engine.expire()
        assert sent(engine, kind, 100), "a port that nobody uses any more is free again"


# ---- time --------------------------------------------------------------------------------------


def established(engine) -> Callable[[], None]:
    """A TCP connection to a VTEP's workload; returns what looks at it without refreshing it."""
    for words in ("syn", "syn ack", "ack"):
        there = words != "syn ack"
        text = "tcp 10.1.0.2:9 > 10.2.0.9:80" if there else "tcp 10.2.0.9:80 > 10.1.0.2:9"
        frame = web(f"{text} {words}") if there else peer(f"{text} {words}")
        assert engine.process_one(frame, "web" if there else "underlay").verdict is Verdict.FORWARD


TIMES = {  # what a flow is made of, and how long it must be kept when it is idle
    "tcp established": (established, 7440),
    "tcp half open": ("tcp 10.1.0.2:9 > 10.2.0.9:80 syn", 30),
    "udp": ("udp 10.1.0.2:9 > 10.2.0.9:80", 300),
    "icmp query": ("icmp 10.1.0.2 > 10.2.0.9 echo", 60),
    "icmp6 query": ("icmp6 fd00:1::2 > fd00:2::9 echo", 60),
}


@pytest.mark.conformance("N1", "N2", "N3", "T19")
@pytest.mark.parametrize("case", TIMES)
def test_an_idle_flow_lives_as_long_as_the_rfc_asks_and_no_longer(engine, case: str) -> None:
    """RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2."""
    made, seconds = TIMES[case]
    if callable(made):
        made(engine)
    else:
        assert engine.process_one(web(made), "web").port == "underlay"
    engine.clock.advance(seconds=seconds)
    assert engine.expire() == 0 and len(engine.flows()) == 1
    engine.clock.advance(seconds=1)
    assert engine.expire() == 1 and engine.flows() == []


@pytest.mark.conformance("N2")
@pytest.mark.parametrize("last", ["fin ack", "rst"])
def test_a_closing_connection_is_transitory(engine, last: str) -> None:
    established(engine)
    assert engine.process_one(web(f"tcp 10.1.0.2:9 > 10.2.0.9:80 {last}"), "web").port == "underlay"
    engine.clock.advance(seconds=240)
    assert engine.expire() == 0
    engine.clock.advance(seconds=1)
    assert engine.expire() == 1


@pytest.mark.conformance("N1")
def test_outbound_traffic_keeps_a_mapping(engine) -> None:
    """REQ-6; and a mapping outlives its last flow by its timer only."""
    port = outside_port(sent(engine, "udp", 7))
    for _ in range(10):
        engine.clock.advance(seconds=299)
        engine.expire()
        assert outside_port(sent(engine, "udp", 7)) == port
    engine.clock.advance(seconds=301)
    engine.expire()
    assert engine.stats().totals["flows"] == 0
    engine.clock.advance(seconds=301)
    engine.expire()
    assert engine.stats().totals["bindings"] == 0


# ---- ICMP errors -------------------------------------------------------------------------------

KINDS = {"time exceeded": (11, 0), "port unreachable": (3, 3), "fragmentation needed": (3, 4)}
ROUTER = "198.51.100.7"


def error_about(frame: bytes, kind: tuple[int, int], quoted: bytes | None = None) -> bytes:
    """What a router outside says about a packet that left by the host port."""
    message = bytes(kind) + bytes(6) + (frame[ETH:] if quoted is None else quoted)
    src, dst = ip_address(ROUTER).packed, frame[26:30]
    packet = build.ip(src, dst, 1, build.summed(src, dst, 1, message), fragment=0)
    return build.ethernet(blue.OUR_HOST.packed, blue.HOST.packed, 0x0800, packet)


@pytest.mark.conformance("N1", "N2", "N3")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", OUT)
def test_an_error_finds_its_way_back(engine, kind: str, name: str) -> None:
    """Addresses, ports and sums outside and in the quote are those the sender knows (REQ-4)."""
    original = web(OUT[kind].format(inside=777, to=ELSEWHERE[0], port=80))
    frame = forwarded(engine.process_one(original, "web"), "host")
    got = forwarded(engine.process_one(error_about(frame, KINDS[name]), "host"), "blue/web")
    assert (describe(got)["src"], describe(got)["dst"]) == (ROUTER, "10.1.0.2")
    assert blue.sums(got) == {0} and tuple(got[34:36]) == KINDS[name]
    quote, meant = got[42:], original[ETH:]
    assert checksum(quote[:20]) == 0
    assert quote[12:24] == meant[12:24], "addresses, then ports or type, code"
    if kind == "tcp":
        return  # its checksum lies behind the eight bytes that every quote has
    assert quote[20:] == meant[20:]


@pytest.mark.conformance("N3")
def test_a_quote_with_options_is_walked(engine) -> None:
    frame = sent(engine, "udp", 777)
    ip = frame[ETH:]
    wide = b"\x47" + ip[1:2] + (len(ip) + 8).to_bytes(2) + ip[4:20] + b"\1" * 8 + ip[20:]
    wide = patched(wide, 10, b"\0\0")
    wide = patched(wide, 10, checksum(wide[:28]).to_bytes(2))
    got = forwarded(engine.process_one(error_about(frame, (3, 3), wide), "host"), "blue/web")
    quote = got[42:]
    assert quote[28:30] == (777).to_bytes(2) and checksum(quote[:28]) == 0
    assert blue.sums(got) == {0}


@pytest.mark.conformance("N3")
def test_the_quoted_transport_checksum_is_not_asked_for(engine) -> None:
    """A packet may have been damaged on its way out; the error is about it all the same."""
    frame = sent(engine, "udp", 777)
    damaged = patched(frame[ETH:], 26, b"\x12\x34")
    assert engine.process_one(error_about(frame, (3, 3), damaged), "host").port == "blue/web"


def state(engine) -> list:
    return [
        (f.packets, f.bytes, f.last_ns, f.closing, f.replied, f.new_sport) for f in engine.flows()
    ]


WRONG = {
    "icmp checksum": lambda e: patched(e, 36, bytes([e[36] ^ 1])),
    "quoted ip checksum": lambda e: resummed(patched(e, 52, bytes([e[52] ^ 1]))),
    "quoted source": lambda e: resummed(requoted(e, 12, b"\xa9\xfe\1\7")),
    "quoted destination": lambda e: resummed(requoted(e, 16, b"\xcb\0\x71\x0b")),
    "quoted source port": lambda e: resummed(patched(e, 62, b"\0\1")),
    "quoted destination port": lambda e: resummed(patched(e, 64, b"\0\1")),
    "quoted protocol": lambda e: resummed(requoted(e, 9, b"\x06")),
    "quoted later fragment": lambda e: resummed(requoted(e, 6, b"\0\5")),
    "quote cut in ip": lambda e: resummed(shortened(e, 19)),
    "quote cut in ports": lambda e: resummed(shortened(e, 27)),
    "no quote": lambda e: resummed(shortened(e, 0)),
}


def requoted(error: bytes, at: int, new: bytes) -> bytes:
    """A changed quoted IPv4 header, its checksum right."""
    quote = patched(patched(error[42:], at, new), 10, b"\0\0")
    return error[:42] + patched(quote, 10, checksum(quote[:20]).to_bytes(2))


def shortened(error: bytes, quote: int) -> bytes:
    error = error[: 42 + quote]
    return blue.mended(patched(error, 16, (len(error) - ETH).to_bytes(2)))


def resummed(error: bytes) -> bytes:
    error = patched(error, 36, b"\0\0")
    return patched(error, 36, checksum(error[34:]).to_bytes(2))


@pytest.mark.conformance("N1", "N2", "N3", "T9")
@pytest.mark.parametrize("case", WRONG)
def test_a_forged_error_is_dropped_and_changes_nothing(engine, case: str) -> None:
    """REQ-3, and RFC 4787 REQ-12: no ICMP removes or refreshes a mapping, a true one neither."""
    frame = sent(engine, "udp", 777)
    before = state(engine)
    engine.clock.advance(seconds=100)
    error = error_about(frame, (3, 3))
    assert dropped(engine.process_one(WRONG[case](error), "host")) == "nat_no_binding"
    for kind in KINDS.values():
        assert engine.process_one(error_about(frame, kind), "host").port == "blue/web"
    assert state(engine) == before
    assert outside_port(sent(engine, "udp", 777)) == outside_port(frame)
    assert engine.process_one(mirrored(frame), "host").port == "blue/web"


@pytest.mark.conformance("N2", "N3", "T9")
@pytest.mark.parametrize("kind", [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (4, 0), (5, 1), (12, 0)])
def test_hard_errors_do_not_end_a_connection(engine, kind: tuple[int, int]) -> None:
    """RFC 5382 REQ-10; the timer runs as if the error had not come."""
    frame = sent(engine, "tcp", 777)
    assert engine.process_one(mirrored(frame), "host").verdict is Verdict.FORWARD
    engine.clock.advance(seconds=7400)
    engine.process_one(error_about(frame, kind), "host")
    engine.clock.advance(seconds=40)
    assert engine.expire() == 0
    engine.clock.advance(seconds=1)
    engine.expire()
    assert engine.stats().totals["flows"] == 0
