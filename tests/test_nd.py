"""Neighbour discovery: what is answered, with which bytes, and what is refused for which reason."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.address import Mac, Vni
from dataplane.engine import Engine, Outcome
from dataplane.model import Endpoint, HostPort, Network, Node, RemoteSubnet, Tap, Underlay
from dataplane.packet import build as frame_of
from dataplane.packet import describe, parse
from dataplane.reasons import Verdict
from tests import strategies
from tests.reference import Twin, nd
from tests.reference.build import ethernet, ip, summed, vxlan
from tests.reference.wire import ICMP6, IP6

DR, WEB, DB, PEER, STRANGER = (bytes([2, 0, 0, 0, 0, n]) for n in range(1, 6))
OUR_HOST, HOST_PEER = b"\x02\x01\0\0\0\1", b"\x02\x01\0\0\0\2"
A, A2, B, GATEWAY, REMOTE, NOBODY, OUTSIDE = (
    ip_address(a).packed
    for a in ("fd00::2", "fd00::22", "fd00::3", "fd00::1", "fd00:2::9", "fd00::99", "2001:db8::1")
)
HOST, HOST_FAR = ip_address("fd00:ff::1"), ip_address("fd00:ff::2")
LINK, ROUTER_LINK = nd.link_local(WEB), nd.link_local(DR)
NONE = bytes(16)
SOLICITED, OVERRIDE, ROUTER = nd.SOLICITED, nd.OVERRIDE, nd.ROUTER


def node(behind: str = "fd00:2::/64") -> Node:
    def endpoint(name: str, mac: bytes, *addresses: bytes | str) -> Endpoint:
        return Endpoint(
            name=name, addresses=tuple(map(ip_address, addresses)), mac=Mac.from_bytes(mac)
        )

    remote = RemoteSubnet(
        prefix=ip_network(behind),
        provider_address=ip_address("192.0.2.2"),
        dr_mac=Mac.from_bytes(PEER),
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00::/64")),
        dr_mac=Mac.from_bytes(DR),
        remote_subnets=(remote,),
        endpoints=(endpoint("web", WEB, "10.0.1.2", A, A2), endpoint("db", DB, "10.0.1.3", B)),
    )
    return Node(
        name="a",
        underlay=Underlay(address=ip_address("192.0.2.1")),
        host_port=HostPort(address=HOST, peer=HOST_FAR, tap=Tap(name="h")),
        networks=(blue,),
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(max_flows=64) as made:
        made.commit(node())
        yield made


def frame(
    kind: int = nd.SOLICIT,
    target: bytes = GATEWAY,
    *,
    src: bytes = A,
    dst: bytes | None = None,
    smac: bytes = WEB,
    says: bytes | None = WEB,
    options: bytes | None = None,
    flags: int = 0,
    code: int = 0,
    cut: int | None = None,
    hops: int = 255,
    damage: int = 0,
    front: tuple[int, bytes] = (ICMP6, b""),
) -> bytes:
    """`says`: the MAC of the option, None for no option. `damage`: added to the checksum."""
    of = nd.SOURCE_MAC if kind == nd.SOLICIT else nd.TARGET_MAC
    message = nd.message_of(kind, target, [] if says is None else [(of, says)], flags)
    message = message[:24] + options if options is not None else message
    message = bytes([kind, code]) + message[2:cut]
    usual = nd.solicited_node(target) if kind == nd.SOLICIT else nd.ALL_NODES
    dst = usual if dst is None else dst
    message = summed(src, dst, ICMP6, message)
    wrong = (int.from_bytes(message[2:4]) + damage) % 0xFFFF
    message = message[:2] + wrong.to_bytes(2) + message[4:]
    proto, headers = front
    packet = ip(src, dst, proto, message, ttl=hops, options=headers)
    return ethernet(b"\x33\x33" + dst[12:], smac, IP6, packet)


def probe(target: bytes, **fields: Any) -> bytes:
    """Duplicate address detection."""
    return frame(target=target, src=NONE, **{"says": None, **fields})


def refused(outcome: Outcome) -> str:
    assert outcome.verdict is Verdict.DROP
    assert outcome.port is None  # in silence
    return str(outcome.reason)


# ---- what is answered --------------------------------------------------------------------------

ANSWERED = {  # solicitation: MAC and flags of the answer, but for S
    "gateway": (frame(), DR, ROUTER | OVERRIDE),
    "gateway, unicast": (frame(dst=GATEWAY), DR, ROUTER | OVERRIDE),
    "gateway, from the second address": (frame(src=A2), DR, ROUTER | OVERRIDE),
    "gateway, from a link-local address": (frame(src=LINK), DR, ROUTER | OVERRIDE),
    "gateway, no option": (frame(says=None), DR, ROUTER | OVERRIDE),
    "gateway, more options": (
        frame(options=b"\x0e\2" + bytes(14) + b"\1\1" + WEB + b"\xfd\1" + bytes(6)),
        DR,
        ROUTER | OVERRIDE,
    ),
    "gateway's link-local address": (frame(target=ROUTER_LINK), DR, ROUTER | OVERRIDE),
    "behind a remote subnet": (frame(target=REMOTE), DR, 0),
    "neighbour": (frame(target=B), DB, 0),
    "probe for the gateway": (probe(GATEWAY), DR, ROUTER | OVERRIDE),
    "probe for the gateway's link-local address": (probe(ROUTER_LINK), DR, ROUTER | OVERRIDE),
    "probe for a neighbour's address": (probe(B), DB, 0),
    "probe for a remote address": (probe(REMOTE), DR, 0),
}


@pytest.mark.conformance("A2", "C3")
@pytest.mark.parametrize("name", ANSWERED)
def test_answer(engine: Engine, name: str) -> None:
    sent, mac, flags = ANSWERED[name]
    got = engine.process_one(sent, "blue/web")
    assert (got.verdict, got.port) == (Verdict.ANSWER, "blue/web")
    asker, target = sent[22:38], sent[62:78]
    if asker == NONE:
        wanted = advertisement(nd.ALL_NODES, b"\x33\x33\0\0\0\1", target, mac, flags)
    else:
        wanted = advertisement(asker, WEB, target, mac, flags | SOLICITED)
    assert got.frame == wanted


def advertisement(to: bytes, dmac: bytes, target: bytes, mac: bytes, flags: int) -> bytes:
    """As scapy makes it."""
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    bits = {"R": flags >> 7 & 1, "S": flags >> 6 & 1, "O": flags >> 5 & 1}
    src, dst = str(ip_address(target)), str(ip_address(to))
    packet = IPv6(src=src, dst=dst, hlim=255) / ICMPv6ND_NA(tgt=src, **bits)
    packet /= ICMPv6NDOptDstLLAddr(lladdr=mac.hex(":"))
    return bytes(Ether(src=mac.hex(":"), dst=dmac.hex(":")) / packet)


@pytest.mark.conformance("A2")
def test_a_default_route_claims_no_link_local_address() -> None:
    with Engine(max_flows=64) as engine:
        engine.commit(node(behind="::/0"))
        got = engine.process_one(frame(target=OUTSIDE), "blue/web")
        assert got.frame == advertisement(A, WEB, OUTSIDE, DR, SOLICITED)
        for address in (nd.link_local(DB), LINK):
            got = engine.process_one(frame(target=address), "blue/web")
            assert refused(got) == "nd_unknown_target"


def test_trailing_bytes_are_not_sent_back(engine: Engine) -> None:
    sent = frame()
    plain, padded = (engine.process_one(s, "blue/web").frame for s in (sent, sent + b"\xa5" * 9))
    assert plain == padded


@pytest.mark.conformance("A3")
def test_no_flow_is_made_and_a_trace_shows_it(engine: Engine) -> None:
    before = engine.stats().totals["flows"]
    walk = engine.trace(frame(), "blue/web")
    assert [step.kind for step in walk.steps] == ["parse", "layer", "verdict"]
    assert (walk.steps[1].layer, str(walk.steps[1].reason)) == ("guard", "none")
    assert "icmp6 fd00::2 > ff02::1:ff00:1 type 135 code 0" in walk.text()
    refusal = engine.trace(frame(kind=nd.ROUTER_ADVERT), "blue/web")
    assert str(refusal.steps[1].reason) == str(refusal.reason) == "guard_ra"
    assert engine.stats().totals["flows"] == before


# ---- what is malformed ---------------------------------------------------------------------------

MAC = nd.SOURCE_MAC
AH = b"\x3a\4" + bytes(22)
OPTIONS = {
    "length 0": b"\1\0" + WEB,
    "length 0 of another option": b"\x0e\0" + bytes(6),
    "length 0 behind a good one": b"\1\1" + WEB + b"\x0e\0" + bytes(6),
    "two units for a MAC": b"\1\2" + WEB + bytes(8),
    "beyond the end": b"\1\2" + WEB,
    "far beyond the end": b"\1\xff" + WEB,
    "another option beyond the end": b"\x0e\2" + bytes(6),
    "truncated MAC": b"\1\1" + WEB[:5],
    "type only": b"\1",
    "type and length only": b"\1\1",
    "seven bytes left over": b"\1\1" + WEB + bytes(7),
    "target MAC cut": b"\2\1" + WEB[:3],
    "target MAC too long": b"\2\2" + WEB + bytes(8),
}
EXTENSIONS = {
    "hop-by-hop": (0, b"\x3a\0\1\4\0\0\0\0"),
    "routing": (43, b"\x3a\0\4\0\0\0\0\0"),
    "destination": (60, b"\x3a\0\1\4\0\0\0\0"),
    "authentication": (51, AH),
    "atomic fragment": (44, b"\x3a\0\0\0\0\0\0\7"),
    "first fragment": (44, b"\x3a\0\0\1\0\0\0\7"),
}
MALFORMED = {
    "hop limit 254": {"hops": 254},
    "hop limit 0": {"hops": 0},
    "code 1": {"code": 1},
    "wrong checksum": {"damage": 1},
    "no message": {"cut": 8},
    "cut in the target": {"cut": 23},
    "multicast target": {"target": nd.ALL_NODES},
    "unspecified target": {"target": NONE},
    "loopback target": {"target": bytes(15) + b"\1"},
    "IPv4-mapped target": {"target": bytes(10) + b"\xff\xff\x0a\0\1\3"},
    "probe with the sender's MAC": {"src": NONE},
    "probe to all nodes": {"src": NONE, "says": None, "dst": nd.ALL_NODES},
    "probe to another's group": {"src": NONE, "says": None, "dst": nd.solicited_node(B)},
    "probe by unicast": {"src": NONE, "says": None, "dst": GATEWAY},
    **{f"option: {name}": {"options": options} for name, options in OPTIONS.items()},
    **{f"behind {name}": {"front": front} for name, front in EXTENSIONS.items()},
}


@pytest.mark.conformance("A2", "T12")
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_solicitation(engine: Engine, name: str) -> None:
    assert refused(engine.process_one(frame(**MALFORMED[name]), "blue/web")) == "bad_nd"


@pytest.mark.conformance("A2", "T12")
@pytest.mark.parametrize("name", [n for n in MALFORMED if not n.startswith("probe")])
def test_malformed_advertisement(engine: Engine, name: str) -> None:
    fields = {"target": A, "flags": OVERRIDE, **MALFORMED[name]}
    assert refused(engine.process_one(frame(nd.ADVERT, **fields), "blue/web")) == "bad_nd"


@pytest.mark.conformance("A2")
def test_a_solicited_advertisement_to_a_group_is_malformed(engine: Engine) -> None:
    sent = frame(nd.ADVERT, A, flags=SOLICITED)
    assert refused(engine.process_one(sent, "blue/web")) == "bad_nd"


@pytest.mark.conformance("A2", "T12")
def test_every_option_length(engine: Engine) -> None:
    """An option of any length is stepped over if it ends inside the packet, else refused."""
    for length in range(256):
        for room in (8, 8 * max(length, 1), 8 * length + 8):
            options = (b"\x0e" + bytes([length])).ljust(8, b"\0") + bytes(room - 8)
            rest = options[length * 8 :]
            good = 0 < length * 8 <= room and not rest  # what is left is an option of length 0
            got = engine.process_one(frame(options=options), "blue/web")
            assert (got.verdict is Verdict.ANSWER) == good, (length, room)
            assert good or refused(got) == "bad_nd"


@pytest.mark.conformance("T12")
def test_every_cut(engine: Engine) -> None:
    """The frame ends anywhere: there is a reason, and no answer."""
    sent = frame()
    for size in range(len(sent)):
        reason = refused(engine.process_one(sent[:size], "blue/web"))
        assert reason == ("short_ethernet" if size < 14 else "bad_ip6")
    for cut in range(8):
        assert refused(engine.process_one(frame(cut=cut), "blue/web")) == "bad_transport"
    for cut in range(8, 32):
        wanted = Verdict.ANSWER if cut == 24 else Verdict.DROP
        assert engine.process_one(frame(cut=cut), "blue/web").verdict is wanted


# ---- the guard -----------------------------------------------------------------------------------

ADVERTS = {"kind": nd.ADVERT, "target": A, "flags": OVERRIDE}
GUARDED: dict[str, tuple[dict[str, Any], str]] = {
    "solicits as itself for itself": ({"target": A}, "nd_announcement"),
    "probes for its own": ({"target": A2, "src": NONE, "says": None}, "nd_announcement"),
    "probes for its link-local": ({"target": LINK, "src": NONE, "says": None}, "nd_unknown_target"),
    "no one's": ({"target": NOBODY}, "nd_unknown_target"),
    "not routed": ({"target": OUTSIDE}, "nd_unknown_target"),
    "a neighbour's link-local": ({"target": nd.link_local(DB)}, "nd_unknown_target"),
    "with another's address": ({"src": B}, "guard_nd"),
    "with the gateway's address": ({"src": GATEWAY, "target": B}, "guard_nd"),
    "with the gateway's link-local": ({"src": ROUTER_LINK, "target": B}, "guard_nd"),
    "with no one's address": ({"src": NOBODY}, "guard_nd"),
    "with a site-local address": ({"src": b"\xfe\xc0" + bytes(13) + b"\1"}, "guard_nd"),
    "with another's MAC in the option": ({"says": DB}, "guard_nd"),
    "with two MACs": ({"options": b"\1\1" + WEB + b"\1\1" + DB}, "guard_nd"),
    "with two MACs, the last its own": ({"options": b"\1\1" + DB + b"\1\1" + WEB}, "guard_nd"),
    "with another's MAC on the frame": ({"smac": DB}, "guard_mac"),
    "on both": ({"smac": DB, "says": DB}, "guard_mac"),
    "advertises its own": ({**ADVERTS}, "nd_announcement"),
    "advertises its link-local": (
        {**ADVERTS, "target": LINK, "src": LINK, "dst": A2, "flags": OVERRIDE | SOLICITED},
        "nd_announcement",
    ),
    "advertises another's": ({**ADVERTS, "target": B}, "guard_nd"),
    "advertises the gateway": ({**ADVERTS, "target": GATEWAY}, "guard_nd"),
    "advertises the gateway's link-local": ({**ADVERTS, "target": ROUTER_LINK}, "guard_nd"),
    "advertises from another's address": ({**ADVERTS, "src": B}, "guard_nd"),
    "advertises from no address": ({**ADVERTS, "src": NONE}, "guard_nd"),
    "advertises another's MAC": ({**ADVERTS, "says": DB}, "guard_nd"),
    "advertises no MAC": ({**ADVERTS, "says": None}, "guard_nd"),
    "advertises a source MAC only": ({**ADVERTS, "options": b"\1\1" + WEB}, "guard_nd"),
    "advertises itself as a router": ({"kind": nd.ROUTER_ADVERT, "src": LINK}, "guard_ra"),
    "redirects": ({"kind": nd.REDIRECT, "src": LINK}, "guard_ra"),
    "redirects in the router's name": ({"kind": nd.REDIRECT, "src": ROUTER_LINK}, "guard_ra"),
    "solicits routers": ({"kind": nd.ROUTER_SOLICIT, "src": LINK}, "nd_router_solicit"),
    "solicits routers, no address": ({"kind": nd.ROUTER_SOLICIT, "src": NONE}, "nd_router_solicit"),
    **{
        f"router advertisement behind {name}": ({"kind": nd.ROUTER_ADVERT, "front": f}, "guard_ra")
        for name, f in EXTENSIONS.items()
    },
}


@pytest.mark.conformance("A2", "T3")
@pytest.mark.parametrize("name", GUARDED)
def test_guard(engine: Engine, name: str) -> None:
    fields, reason = GUARDED[name]
    assert refused(engine.process_one(frame(**fields), "blue/web")) == reason


@pytest.mark.conformance("T3")
def test_inside_a_vlan_tag(engine: Engine) -> None:
    sent = frame()
    tagged = sent[:12] + b"\x81\0\0\5" + sent[12:]
    assert refused(engine.process_one(tagged, "blue/web")) == "vlan_tagged"


@pytest.mark.conformance("T3")
@pytest.mark.parametrize("kind", range(130, 140))
def test_only_discovery_has_no_source(engine: Engine, kind: int) -> None:
    """Or what goes to a group, which is not carried."""
    got = refused(engine.process_one(frame(kind, A, src=NONE, says=None), "blue/web"))
    assert (got == "multicast") == (not 133 <= kind <= 137)
    words = f"icmp6 :: > fd00::3 type {kind} code 0 len 20"
    sent = frame_of(parse(words), Mac.from_bytes(WEB), Mac.from_bytes(DR))
    assert (refused(engine.process_one(sent, "blue/web")) == "bad_address") == (
        not 133 <= kind <= 137
    )


@pytest.mark.conformance("T3")
@pytest.mark.parametrize("words", ["udp [{}]:1 > [fd00::3]:2", "icmp6 {} > fd00::3 echo id 1"])
def test_a_link_local_source_is_for_discovery_only(engine: Engine, words: str) -> None:
    spec = parse(words.format(ip_address(LINK)))
    sent = frame_of(spec, Mac.from_bytes(WEB), Mac.from_bytes(DR))
    assert refused(engine.process_one(sent, "blue/web")) == "guard_ip"


@pytest.mark.parametrize("kind", [130, 131, 132, 143])
def test_other_multicast_stays_multicast(engine: Engine, kind: int) -> None:
    """MLD, of who has no address yet too (RFC 3590)."""
    for src in (LINK, NONE):
        assert refused(engine.process_one(frame(kind, src=src), "blue/web")) == "multicast"


@pytest.mark.conformance("A3")
@pytest.mark.parametrize("kind", range(133, 138))
@pytest.mark.parametrize("fields", [{}, {"hops": 254}, {"target": A, "src": REMOTE, "dst": A}])
def test_nothing_comes_through_the_tunnel(
    engine: Engine, kind: int, fields: dict[str, Any]
) -> None:
    inner = frame(kind, **fields)
    outer = vxlan(b"\xc0\0\2\2", b"\xc0\0\2\1", 4789, 100, DR + inner[6:])
    assert refused(engine.process_one(outer, "underlay")) == "guard_nd"


# ---- the host port -------------------------------------------------------------------------------


@pytest.mark.conformance("A2")
@pytest.mark.parametrize("src", [HOST_FAR.packed, nd.link_local(HOST_PEER), NONE])
def test_the_host_port_answers_for_itself(engine: Engine, src: bytes) -> None:
    says = None if src == NONE else HOST_PEER
    sent = frame(target=HOST.packed, src=src, smac=HOST_PEER, says=says)
    got = engine.process_one(sent, "host")
    told = describe(got.frame)
    assert (got.verdict, got.port) == (Verdict.ANSWER, "host")
    assert (told["src"], told["dst"]) == (str(HOST), "ff02::1" if src == NONE else told["dst"])
    assert src == NONE or told["dst"] == str(ip_address(src))
    assert got.frame[-6:] == got.frame[6:12] == OUR_HOST
    assert "bad_checksum" not in told


@pytest.mark.conformance("A2")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"target": GATEWAY}, "nd_unknown_target"),
        ({"target": HOST_FAR.packed}, "nd_unknown_target"),
        ({"kind": nd.ADVERT, "target": HOST.packed}, "nd_unknown_target"),
        ({"kind": nd.ROUTER_ADVERT}, "nd_unknown_target"),
        ({"kind": nd.REDIRECT}, "nd_unknown_target"),
        ({"kind": nd.ROUTER_SOLICIT}, "nd_unknown_target"),
        ({"target": HOST.packed, "hops": 64}, "bad_nd"),
        ({"target": HOST.packed, "options": b"\1\0" + HOST_PEER}, "bad_nd"),
    ],
)
def test_the_host_port_answers_nothing_else(
    engine: Engine, fields: dict[str, Any], reason: str
) -> None:
    sent = frame(**{"src": HOST_FAR.packed, "smac": HOST_PEER, **fields})
    assert refused(engine.process_one(sent, "host")) == reason


# ---- as the twin says ----------------------------------------------------------------------------

ASKERS = {  # by port: addresses and MAC
    "blue/web": ([ip_address(a) for a in (A, A2)], WEB),
    "host": ([HOST_FAR], HOST_PEER),
}
KNOWN = [ip_address(a) for a in (A, B, GATEWAY, REMOTE, NOBODY, OUTSIDE, ROUTER_LINK)] + [HOST]


@st.composite
def discoveries(draw: st.DrawFn) -> tuple[str, bytes]:
    port = draw(st.sampled_from(list(ASKERS)))
    own, mac = ASKERS[port]
    packet = draw(strategies.discoveries(own, mac, KNOWN).thrown())
    return port, ethernet(draw(st.sampled_from([DR, nd.ALL_NODES_MAC])), mac, IP6, packet)


@pytest.mark.conformance("A2", "T3", "T12")
@settings(deadline=None)
@given(discoveries())
def test_engine_does_what_its_twin_does(engine: Engine, sent: tuple[str, bytes]) -> None:
    port, data = sent
    got = engine.process_one(data, port)
    wanted = Twin(node()).process(data, port, 0)
    assert str(got.verdict).lower() == wanted.verdict
    assert (str(got.reason) if wanted.reason else None, got.port) == (wanted.reason, wanted.egress)
    assert wanted.frame in (got.frame, None)
