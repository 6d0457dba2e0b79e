"""MSS: lowered to what the way carries, in SYN and SYN-ACK only, and never otherwise touched."""

import pytest

from dataplane.packet import parse
from dataplane.reasons import Verdict
from tests import blue
from tests.blue import ETH, forwarded, inner_of, web
from tests.reference import build

SYN, SYNACK, ACK, RST, ECE = 0x02, 0x12, 0x10, 0x04, 0x40
MTU, LOCAL_MTU, HOST_MTU = 1430, 1430, 1500
ENDS = {4: ("10.1.0.2", "10.2.0.9"), 6: ("fd00:1::2", "fd00:2::9")}
HEADERS = {4: 40, 6: 60}


@pytest.fixture
def engine():
    with blue.engine() as made:
        yield made


def segment(options: bytes, flags: int = SYN, version: int = 4, ends=None, **ip) -> bytes:
    """A TCP segment in its Ethernet frame, from web."""
    src, dst = (parse(f"ip 6 {a} > {a}").src.packed for a in ends or ENDS[version])
    body = build.summed(src, dst, 6, build.tcp(1000, 80, flags, options, b"data"))
    packet = build.ip(src, dst, 6, body, **ip)
    return build.ethernet(blue.DR.packed, blue.WEB.packed, build.ip_type(packet), packet)


def mss(value: int) -> bytes:
    return b"\2\4" + value.to_bytes(2)


def options_of(frame: bytes) -> bytes:
    tcp = frame[ETH + (20 if frame[ETH] >> 4 == 4 else 40) :]
    return tcp[20 : (tcp[12] >> 4) * 4]


def passed(engine, frame: bytes) -> bytes:
    """The options as they leave; the checksum is right."""
    inner = inner_of(forwarded(engine.process_one(frame, "web"), "underlay"))
    assert blue.sums(inner) == {0} and len(inner) == len(frame)
    return options_of(inner)


@pytest.mark.conformance("N8")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [SYN, SYNACK, SYN | ECE])
def test_only_down_to_the_mtu_less_the_headers(engine, version: int, flags: int) -> None:
    most = MTU - HEADERS[version]
    for value in (most + 1, 1460, 8960, 0xFFFF):
        assert passed(engine, segment(mss(value), flags, version)) == mss(most)
    for value in (most, most - 1, 536, 48, 1, 0):
        assert passed(engine, segment(mss(value), flags, version)) == mss(value)


@pytest.mark.conformance("N8")
@pytest.mark.parametrize("flags", [0, ACK, RST, 0x11, 0x18])
def test_other_segments_are_left_alone(engine, flags: int) -> None:
    assert passed(engine, segment(mss(8960), flags)) == mss(8960)


@pytest.mark.conformance("N8")
@pytest.mark.parametrize("options", [b"", b"\1\1\1\1", b"\3\3\7\1", b"\4\2\x08\x0a" + bytes(8)])
def test_no_option_is_added(engine, options: bytes) -> None:
    """Who sends none has said 536 or 1220, which is not ours to raise (RFC 9293 section 3.7.1)."""
    assert passed(engine, segment(options)) == options


@pytest.mark.conformance("N8")
def test_at_any_offset_the_checksum_is_right(engine) -> None:
    """Over IPv4 and IPv6, behind any number of no-operations, and at the very end."""
    for version in (4, 6):
        most = MTU - HEADERS[version]
        for before in range(37):
            after = b"\1" * ((-before) % 4)
            options = b"\1" * before + mss(0x2301) + after
            clamped = b"\1" * before + mss(most) + after
            assert passed(engine, segment(options, version=version)) == clamped


@pytest.mark.conformance("N8", "T15")
@pytest.mark.parametrize(
    "options",
    [
        b"\2\0\x23\0",  # length 0, 1, too short, too long
        b"\2\1\x23\0",
        b"\2\3\x23\0",
        b"\2\5\x23\0",
        b"\1\1\1\2",  # ends behind its kind, and behind its length
        b"\1\1\2\4",
        b"\1\2\4\x23",
        b"\x08\0\2\4\x23\0\1\1",  # another option of impossible length in front
        b"\x08\1\2\4\x23\0\1\1",
        b"\x08\xff\2\4\x23\0\1\1",
        b"\0\1\2\4\x23\0\1\1",  # behind the end of options
        b"\xfe" * 40,
    ],
)
def test_options_that_make_no_sense_are_passed_as_they_are(engine, options: bytes) -> None:
    for flags in (SYN, SYNACK):
        assert passed(engine, segment(options, flags)) == options


@pytest.mark.conformance("N8", "T15")
def test_every_pair_of_option_bytes_is_survived(engine) -> None:
    """Kind and length of a first option, an MSS option behind it: found only where it is one."""
    for kind in (0, 1, 2, 3, 5, 254):
        for length in range(256):
            options = bytes([kind, length]) + bytes(6) + mss(9000)
            got = passed(engine, segment(options))
            assert got[:8] == options[:8]
            assert got[8:] in (mss(9000), mss(MTU - 40))


@pytest.mark.conformance("T15")
@pytest.mark.parametrize("value", [0, 1, 47, 48])
def test_a_tiny_mss_does_no_harm_here(engine, value: int) -> None:
    """CVE-2019-11477 to 11479 are of the receiver's stack; we neither segment nor divide by it."""
    for flags in (SYN, SYNACK):
        assert passed(engine, segment(mss(value), flags)) == mss(value)


@pytest.mark.conformance("N8")
@pytest.mark.parametrize("fragment", [1, 3])
def test_later_fragments_are_not_looked_into(engine, fragment: int) -> None:
    """What stands where a SYN would stand is data; at offset 1 it would be one (RFC 3128)."""
    frame = segment(mss(8960), fragment=fragment)
    outcome = engine.process_one(frame, "web")
    if fragment == 1:
        assert str(outcome.reason) == "bad_fragment"
        return
    assert outcome.verdict is Verdict.HELD
    first = build.part(segment(mss(8960)) + bytes(8), 0, 24, ident=1)
    (later,) = engine.process_one(first, "web").more
    assert inner_of(forwarded(later, "underlay"))[ETH + 20 :] == frame[ETH + 20 :]


@pytest.mark.conformance("N8")
def test_each_way_has_its_own_limit(engine) -> None:
    """To a neighbour, to the outside, and what comes from a VTEP."""
    for dst, port, most in (("10.1.0.3", "blue/db", LOCAL_MTU), ("203.0.113.9", "host", HOST_MTU)):
        frame = segment(mss(9000), ends=("10.1.0.2", dst))
        sent = forwarded(engine.process_one(frame, "web"), port)
        assert options_of(sent) == mss(most - 40) and blue.sums(sent) == {0}
    for version in (4, 6):
        inner = segment(mss(9000), SYN, version, ends=ENDS[version][::-1])
        inner = blue.DR.packed + blue.PEER.packed + inner[12:]
        got = forwarded(engine.process_one(blue.carried(inner), "underlay"), "blue/web")
        assert options_of(got) == mss(MTU - HEADERS[version]) and blue.sums(got) == {0}


@pytest.mark.conformance("N8")
def test_where_the_checksum_is_still_partial_it_stays_so(engine) -> None:
    """The field holds the pseudo-header's sum, which the option is no part of."""
    from dataplane._engine import lib

    frame = segment(mss(9000))
    at = ETH + 20 + 16
    partial = frame[:at] + b"\x12\x34" + frame[at + 2 :]
    outcome = engine.process_one(partial, "web", flags=lib.DP_CSUM_PARTIAL)
    inner = inner_of(forwarded(outcome, "underlay"))
    assert options_of(inner) == mss(MTU - 40) and inner[at : at + 2] == b"\x12\x34"


def test_web_speaks_words_too(engine) -> None:
    """The same by the language of documents."""
    frame = web("tcp 10.1.0.2:1 > 10.2.0.9:2 syn mss 8960")
    assert passed(engine, frame) == mss(MTU - 40)
