"""Packets in words and bytes: the language reads back, and scapy agrees with every byte."""

import contextlib
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.address import Mac
from dataplane.errors import PacketError
from dataplane.packet import (
    HEADERS,
    USAGE,
    PacketSpec,
    build,
    describe,
    mirror,
    parse,
    text_of,
    vxlan,
)
from dataplane.packet_spec import FLAGS, ICMP_WORDS, RESOLVERS

SMAC, DMAC = Mac("02:00:00:00:00:01"), Mac("02:00:00:00:00:02")

WORDS = [
    "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn",
    "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn ack mss 1460 len 100 ttl 3 df",
    "tcp 10.1.1.2:40000 > 10.1.2.2:80 none tos 3",
    "tcp [2001:db8::1]:1 > [2001:db8::2]:65535 fin psh ack len 33",
    "udp 10.1.1.2:5353 > 10.1.2.2:53 len 40",
    "udp 10.1.1.2:5353 > 10.1.2.2:53 len 1471",
    "udp [2001:db8::1]:53 > [2001:db8::2]:53 len 3 ttl 255 tos 184",
    "udp 10.1.1.2:1 > 10.1.2.2:2 len 1472 mf ipid 77",
    "udp 10.1.1.2 > 10.1.2.2 len 100 frag 1480 ipid 77",
    "udp [2001:db8::1]:1 > [2001:db8::2]:2 len 8 frag 0 mf ipid 4000000000",
    "tcp 2001:db8::1 > 2001:db8::2 len 8 frag 16",
    "udp [2001:db8::1]:1 > [2001:db8::2]:2 frag 0",
    "icmp 10.1.1.2 > 10.1.2.2 echo id 7 seq 1 len 56",
    "icmp 10.1.1.2 > 10.1.2.2 reply id 65535",
    "icmp 10.1.1.2 > 10.1.2.2 unreachable len 28",
    "icmp 10.1.1.2 > 10.1.2.2 too-big mtu 1450 len 28",
    "icmp 10.1.1.2 > 10.1.2.2 type 13 code 9 id 1 seq 2",
    "icmp6 2001:db8::1 > 2001:db8::2 echo id 7 seq 1",
    "icmp6 2001:db8::1 > 2001:db8::2 too-big mtu 131072",
    "ip 47 10.1.1.2 > 10.1.2.2 len 64",
    "ip 132 2001:db8::1 > 2001:db8::2 len 16",
    "arp who-has 10.1.1.1 tell 10.1.1.2",
    "arp reply 10.1.1.1 is-at 02:00:00:00:00:09 tell 10.1.1.2",
    "nd who-has fd00::1 tell fd00::2",
    "nd who-has fd00::1 tell ::",
    "nd reply fd00::1 is-at 02:00:00:00:00:09 tell fd00::2 override solicited router",
    "nd reply fd00::1 is-at 02:00:00:00:00:09 tell ff02::1 vlan 7",
    "tcp 10.1.1.2:1 > 10.1.2.2:2 ack vlan 100 smac 02:00:00:00:00:07 dmac 02:00:00:00:00:08",
]


@pytest.mark.parametrize("words", WORDS)
def test_words_read_back(words: str) -> None:
    assert text_of(parse(words)) == words


@pytest.mark.parametrize("words", WORDS)
def test_bytes_read_back(words: str) -> None:
    spec = parse(words)
    found = describe(build(spec, SMAC, DMAC))
    assert "error" not in found and "bad_checksum" not in found
    again = parse(found["text"])
    assert build(again, SMAC, DMAC) == build(spec, SMAC, DMAC)
    assert set(found) <= {*HEADERS, "text", "op", "sha", "tha"}


def addresses(version: Any) -> st.SearchStrategy[Any]:
    plain = st.ip_addresses(v=version)
    return plain.filter(lambda a: a.version == 4 or a.ipv4_mapped is None)


@st.composite
def specs(draw: st.DrawFn) -> PacketSpec:
    kind = draw(st.sampled_from([k for k in USAGE if k not in RESOLVERS]))
    version = {"icmp": 4, "icmp6": 6}.get(kind) or draw(st.sampled_from([4, 6]))
    numbers: dict[str, Any] = {
        "ttl": draw(st.integers(0, 255)),
        "tos": draw(st.integers(0, 255)),
        "length": draw(st.integers(0, 300)),
    }
    fields: dict[str, Any] = {"proto": {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}.get(kind, 47)}
    if kind in ("tcp", "udp"):
        fields |= {"sport": draw(st.integers(0, 65535)), "dport": draw(st.integers(0, 65535))}
    if kind == "tcp":
        chosen = draw(st.sets(st.sampled_from(FLAGS)))
        fields["flags"] = tuple(flag for flag in FLAGS if flag in chosen)
        fields["mss"] = draw(st.none() | st.integers(0, 65535))
    if kind.startswith("icmp"):
        known = [code for (of, _), code in ICMP_WORDS.items() if of == kind]
        fields["icmp_type"], fields["icmp_code"] = draw(
            st.sampled_from(known) | st.tuples(st.integers(0, 255), st.integers(0, 255))
        )
        fields |= {"id": draw(st.integers(0, 65535)), "seq": draw(st.integers(0, 65535))}
    if version == 4:
        fields |= {"df": draw(st.booleans()), "ipid": draw(st.integers(0, 65535))}
    src, dst = draw(addresses(version)), draw(addresses(version))
    vlan = draw(st.none() | st.integers(0, 4095))
    macs: dict[str, Any] = {"smac": SMAC, "dmac": DMAC}
    return PacketSpec(kind=kind, src=src, dst=dst, vlan=vlan, **macs, **numbers, **fields)


@given(specs())
def test_any_spec_survives_words_and_bytes(spec: PacketSpec) -> None:
    assert parse(text_of(spec)) == spec
    found = describe(build(spec, SMAC, DMAC))
    assert "bad_checksum" not in found
    assert parse(found["text"]) == spec


@settings(deadline=None)  # scapy is slow to import
@given(specs())
def test_scapy_computes_the_same_checksums(spec: PacketSpec) -> None:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    frame = build(spec, SMAC, DMAC)
    again = Ether(frame)
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum"), (ICMP, "chksum")):
        if again.haslayer(layer) and spec.kind != "ip":
            again[layer].delfieldval(field)
    if again.haslayer(IPv6):
        again[IPv6].delfieldval("plen")
    assert bytes(again) == frame


@pytest.mark.parametrize("version", [4, 6])
def test_vxlan_is_what_scapy_makes(version: int) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.layers.vxlan import VXLAN

    inner = build(parse("udp 10.1.1.2:1 > 10.1.2.2:2 len 9"), SMAC, DMAC)
    src, dst = (f"2001:db8::{i}" if version == 6 else f"192.0.2.{i}" for i in (1, 2))
    ip = IPv6(src=src, dst=dst, hlim=64) if version == 6 else IP(src=src, dst=dst, flags="DF", id=0)
    udp = UDP(sport=50000, dport=4789, chksum=None if version == 6 else 0)
    wanted = Ether(src=SMAC, dst=DMAC) / ip / udp / VXLAN(vni=70000, flags=8) / inner
    made = vxlan(
        inner,
        src=ip_address(src),
        dst=ip_address(dst),
        vni=70000,
        smac=SMAC,
        dmac=DMAC,
        sport=50000,
    )
    assert made == bytes(wanted)
    found = describe(made)
    assert found["text"].startswith("udp 10.1.1.2:1 > 10.1.2.2:2 len 9")
    outer = found["outer"]
    assert (outer["src"], outer["dst"], outer["vni"]) == (src, dst, 70000)
    assert (outer["sport"], outer["dport"], outer["ttl"]) == (50000, 4789, 64)
    assert "bad_checksum" not in outer


def test_an_arp_request_is_broadcast_and_a_reply_is_not() -> None:
    assert build(parse("arp who-has 10.1.1.1 tell 10.1.1.2"), SMAC, DMAC)[:6] == b"\xff" * 6
    words = "arp reply 10.1.1.1 is-at 02:00:00:00:00:09 tell 10.1.1.2"
    found = describe(build(parse(words), SMAC, DMAC))
    assert (found["op"], found["sha"], found["tha"]) == (2, "02:00:00:00:00:09", DMAC)


def test_tcp_without_flags_opens_a_connection() -> None:
    assert parse("tcp 10.1.1.2:1 > 10.1.2.2:2").flags == ("syn",)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            "tcp 10.1.1.2:1 > 10.1.2.2:2 syn mss 9 ttl 3",
            "tcp 10.1.2.2:2 > 10.1.1.2:1 syn ack mss 9",
        ),
        ("tcp 10.1.1.2:1 > 10.1.2.2:2 psh ack len 9", "tcp 10.1.2.2:2 > 10.1.1.2:1 ack"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 len 9", "udp 10.1.2.2:2 > 10.1.1.2:1 len 9"),
        ("icmp 10.1.1.2 > 10.1.2.2 echo id 7", "icmp 10.1.2.2 > 10.1.1.2 reply id 7"),
        ("icmp6 2001:db8::1 > 2001:db8::2 echo", "icmp6 2001:db8::2 > 2001:db8::1 reply"),
        ("ip 47 10.1.1.2 > 10.1.2.2", "ip 47 10.1.2.2 > 10.1.1.2"),
    ],
)
def test_mirror(words: str, answer: str) -> None:
    assert text_of(mirror(parse(words))) == answer


@pytest.mark.parametrize(
    "words",
    [
        "icmp 10.1.1.2 > 10.1.2.2 unreachable",
        "udp 10.1.1.2 > 10.1.2.2 frag 8",
        "arp who-has 10.1.1.1 tell 10.1.1.2",
    ],
)
def test_nothing_answers(words: str) -> None:
    with pytest.raises(PacketError, match="nothing naturally answers"):
        mirror(parse(words))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "no kind of packet"),
        ("sctp 10.1.1.2 > 10.1.2.2", "no kind of packet"),
        ("tcp", "ends too early"),
        ("tcp 10.1.1.2:1 10.1.2.2:2", "stands where > should"),
        ("tcp 10.1.1.2 > 10.1.2.2:2", "a port is missing"),
        ("tcp 10.1.1.2:1 > 10.1.2.2:70000", "'70000' is not the port"),
        ("tcp 10.1.1.2:1 > 10.1.2.300:2", "not an IP address"),
        ("tcp 10.1.1.2:1 > [2001:db8::1]:2", "IPv4 meets IPv6"),
        ("tcp [2001:db8::1 > [2001:db8::2]:2", "not \\[ADDRESS\\]:PORT"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 syn", "udp has no syn"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 sin", "unknown word 'sin'"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 len", "len lacks its value"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 ttl 256", "'256' is not ttl"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 ttl ٣", "is not ttl"),
        ("udp 10.1.1.2 > 10.1.2.2 frag 7", "multiple of 8"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 frag 8", "carries no ports"),
        ("udp [2001:db8::1]:1 > [2001:db8::2]:2 df", "IPv6 has no df"),
        ("icmp 10.1.1.2:1 > 10.1.2.2 echo", "only tcp and udp have ports"),
        ("icmp 10.1.1.2 > 10.1.2.2", "ICMP type is missing"),
        ("icmp6 10.1.1.2 > 10.1.2.2 echo", "IPv6 only"),
        ("ip 256 10.1.1.2 > 10.1.2.2", "'256' is not the protocol"),
        ("arp who-has 10.1.1.1", "ends too early"),
        ("arp is 10.1.1.1 tell 10.1.1.2", "neither"),
        ("arp who-has 10.1.1.1 tell 10.1.1.2 len 3", "arp has no len"),
        ("udp 10.1.1.2:1 > 10.1.2.2:2 smac 2:0", "not a MAC"),
    ],
)
def test_errors_say_why_and_show_the_grammar(words: str, why: str) -> None:
    with pytest.raises(PacketError, match=why) as caught:
        parse(words)
    kind = words.split(maxsplit=1)[0] if words else ""
    assert USAGE.get(kind, "tcp | udp | icmp") in str(caught.value)


@given(st.text(alphabet="tcpudiarwho-s>:.0123456789 []fmlen", max_size=60) | st.text(max_size=40))
def test_parse_raises_nothing_else(words: str) -> None:
    with contextlib.suppress(PacketError):
        parse(words)


SHORT, LONG = 128, 1000  # bytes that are kept, and of the payload


@pytest.mark.parametrize("words", [w for w in WORDS if not w.startswith(("arp", "nd"))])
def test_what_a_snap_length_cut_is_described_all_the_same(words: str) -> None:
    """Inside of VXLAN, too; all but that it was cut, and how its checksum is."""
    frame = build(parse(f"{words} len {LONG}"), SMAC, DMAC)
    carried = vxlan(frame, src=ip_address("192.0.2.1"), dst=ip_address("192.0.2.2"),
                    vni=1, smac=SMAC, dmac=DMAC)  # fmt: skip
    for made in (frame, carried):
        whole, found = describe(made), describe(made[:SHORT], length=len(made))
        for each in (found, found["outer"]) if made is carried else (found,):
            assert each.pop("cut") == len(made) - SHORT
        assert found == whole and "error" not in whole
        assert "error" in describe(made[:SHORT])


@given(st.binary(max_size=100), st.sampled_from(WORDS), st.data())
def test_describe_bears_anything(noise: bytes, words: str, data: st.DataObject) -> None:
    frame = bytearray(build(parse(words), SMAC, DMAC))
    place = data.draw(st.integers(0, len(frame)))
    for damaged in (noise, bytes(frame[:place]), bytes(frame[:place]) + noise):
        assert isinstance(describe(damaged)["text"], str)
        assert isinstance(describe(damaged, length=len(frame))["text"], str)
    inner = vxlan(bytes(frame[:place]), src=ip_address("192.0.2.1"), dst=ip_address("192.0.2.2"),
                  vni=1, smac=SMAC, dmac=DMAC)  # fmt: skip
    assert describe(inner)["outer"]["vni"] == 1


@pytest.mark.parametrize("words", [w for w in WORDS if w.startswith(("tcp 10", "icmp", "udp ["))])
def test_a_wrong_checksum_is_named(words: str) -> None:
    frame = bytearray(build(parse(words + " len 8"), SMAC, DMAC))
    frame[-1] ^= 1
    found = describe(bytes(frame))
    whole = not found.get("mf") and not found.get("frag")
    assert ("bad_checksum" in found) == whole
