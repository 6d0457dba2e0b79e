"""The wire options of a network: what each puts on the wire, and what it lets in."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane.address import Mac, Vni
from dataplane.batch import Batch
from dataplane.document import loads
from dataplane.engine import Engine
from dataplane.errors import DocumentError
from dataplane.model import Endpoint, Network, Node, RemoteSubnet, Underlay, Wire
from dataplane.reasons import Reason, Verdict
from tests.reference import build
from tests.reference.checksum import checksum, fold, pseudo_header, words
from tests.reference.wire import IP4, TCP, UDP

DR, WEB, PEER = (Mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
INSIDE = {4: ("10.0.1.2", "10.2.0.9"), 6: ("fd00:1::2", "fd00:2::9")}
OUTSIDE = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
OUTER = {4: 50, 6: 70}  # bytes in front of the inner frame
BOTH = pytest.mark.parametrize("outer", [4, 6], ids=["outer4", "outer6"])
INNER = pytest.mark.parametrize("inner", [4, 6], ids=["inner4", "inner6"])


PLAIN = Wire()


def node(wire: Wire = PLAIN, outer: int = 4) -> Node:
    remotes = tuple(
        RemoteSubnet(
            prefix=ip_network(prefix), provider_address=ip_address(OUTSIDE[outer][1]), dr_mac=PEER
        )
        for prefix in ("10.2.0.0/16", "fd00:2::/64")
    )
    blue = Network(
        name="blue",
        vni=Vni(0xABCDEF),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        dr_mac=DR,
        mtu=1400,
        remote_subnets=remotes,
        endpoints=(
            Endpoint(name="web", addresses=tuple(ip_address(a[0]) for a in INSIDE.values())),
        ),
        wire=wire,
    )
    blue = replace(blue, endpoints=(replace(blue.endpoints[0], mac=WEB),))
    under = Underlay(
        address=ip_address(OUTSIDE[4][0]), address6=ip_address(OUTSIDE[6][0]), port=4789
    )
    return Node(name="a", underlay=under, networks=(blue,))


def packet(inner: int, *, back: bool = False, **fields: Any) -> bytes:
    """Of UDP, from web to the peer or back."""
    src, dst = (ip_address(a).packed for a in INSIDE[inner][:: -1 if back else 1])
    segment = build.summed(src, dst, UDP, build.udp(1000, 2000, b"data"))
    return build.ip(src, dst, UDP, segment, **fields)


def sent(inner: int = 4, **fields: Any) -> bytes:
    body = packet(inner, **fields)
    return build.ethernet(DR.packed, WEB.packed, build.ip_type(body), body)


def received(inner: int = 4, outer: int = 4, outer_tos: int = 0, inner_tos: int = 0) -> bytes:
    body = packet(inner, back=True, tos=inner_tos)
    frame = build.ethernet(DR.packed, PEER.packed, build.ip_type(body), body)
    own, peer = (ip_address(a).packed for a in OUTSIDE[outer])
    return build.vxlan(peer, own, 4789, 0xABCDEF, frame, outer_tos)


@dataclass
class OuterHeader:
    """Of an encapsulated frame."""

    frame: bytes

    @property
    def v4(self) -> bool:
        return self.frame[12:14] == IP4.to_bytes(2)

    @property
    def ip(self) -> bytes:
        return self.frame[14 : 34 if self.v4 else 54]

    @property
    def tos(self) -> int:
        return self.ip[1] if self.v4 else int.from_bytes(self.ip[0:2]) >> 4 & 0xFF

    @property
    def ttl(self) -> int:
        return self.ip[8 if self.v4 else 7]

    @property
    def fragment(self) -> int:
        return int.from_bytes(self.ip[6:8])

    @property
    def ident(self) -> int:
        return int.from_bytes(self.ip[4:6])

    @property
    def udp(self) -> bytes:
        return self.frame[14 + len(self.ip) :]

    @property
    def udp_checksum(self) -> int:
        return int.from_bytes(self.udp[6:8])

    def is_right(self) -> bool:
        """Both checksums, over what is there."""
        ends = self.ip[12:20] if self.v4 else self.ip[8:40]
        pseudo = pseudo_header(ends, b"", UDP, len(self.udp))
        header = not self.v4 or checksum(self.ip) == 0
        return header and (self.udp_checksum == 0 or checksum(pseudo + self.udp) == 0)


def encapsulated(wire: Wire, outer: int, frame: bytes, flags: int = 0) -> OuterHeader:
    with Engine() as engine:
        engine.commit(node(wire, outer))
        miss, hit = (engine.process_one(frame, "web", flags=flags) for _ in range(2))
        assert miss.verdict is hit.verdict is Verdict.FORWARD
        if wire.df == "set":
            assert miss.frame == hit.frame
        return OuterHeader(hit.frame)


def delivered(wire: Wire, frame: bytes, outer: int = 4) -> tuple[Reason, bytes]:
    """Reason of the drop, and what the endpoint gets."""
    with Engine() as engine:
        engine.commit(node(wire, outer))
        got = engine.process_one(frame, "underlay")
        return got.reason, got.frame if got.verdict is Verdict.FORWARD else b""


# ---- sending -----------------------------------------------------------------------------------


@pytest.mark.conformance("V1", "V6", "E5", "E6", "E8")
@BOTH
@INNER
def test_as_the_standards_say_by_default(inner: int, outer: int) -> None:
    got = encapsulated(Wire(), outer, sent(inner, tos=0xB9, ttl=9))
    assert (got.tos, got.ttl) == (1, 64)
    assert got.udp[8:16] == b"\x08\0\0\0\xab\xcd\xef\0"
    if outer == 4:
        assert (got.fragment, got.ident, got.udp_checksum) == (0x4000, 0, 0)
    else:
        assert got.udp_checksum != 0
        assert int.from_bytes(got.ip[0:4]) & 0xFFFFF == 0  # flow label
    assert got.is_right()


@pytest.mark.conformance("E1", "E4")
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xFF])
@pytest.mark.parametrize(("dscp", "bits"), [("zero", 0), ("copy", None), (46, 46), (63, 63)])
@BOTH
@INNER
def test_outer_dscp(inner: int, outer: int, dscp: Any, bits: int | None, tos: int) -> None:
    """ECN is copied whatever becomes of DSCP."""
    got = encapsulated(Wire(dscp=dscp), outer, sent(inner, tos=tos))
    assert got.tos == (tos if bits is None else bits << 2 | tos & 3)
    assert got.is_right()


@pytest.mark.conformance("E8")
@pytest.mark.parametrize("ttl", [1, 64, 255])
@BOTH
def test_outer_ttl(outer: int, ttl: int) -> None:
    got = encapsulated(Wire(ttl=ttl), outer, sent(ttl=7))
    assert got.ttl == ttl and got.is_right()


@pytest.mark.conformance("E5", "V7")
@pytest.mark.parametrize(
    ("df", "inner", "flags", "wanted"),
    [
        ("set", 4, 0, True),
        ("clear", 4, 0x4000, False),
        ("clear", 6, 0, False),
        ("inherit", 4, 0, False),
        ("inherit", 4, 0x4000, True),
        ("inherit", 6, 0, True),
    ],
)
@pytest.mark.parametrize("checksums", ["zero", "full"])
def test_outer_df(df: Any, inner: int, flags: int, wanted: bool, checksums: Any) -> None:
    """Never a fragment; an id of its own only where others may fragment (RFC 6864)."""
    wire = Wire(df=df, udp_checksum=checksums)
    got = encapsulated(wire, 4, sent(inner, fragment=flags if inner == 4 else 0))
    assert got.fragment == (0x4000 if wanted else 0)
    assert (got.ident == 0) == wanted
    assert got.is_right()


@pytest.mark.conformance("E5")
def test_ids_of_packets_that_may_be_fragmented_differ() -> None:
    with Engine() as engine:
        engine.commit(node(Wire(df="inherit")))
        batch = Batch(capacity=300)
        frames = [sent(fragment=0), sent(fragment=0x4000), sent(6)] * 100
        result = engine.process(batch.load(frames, "web"))
        ids = [OuterHeader(bytes(result.frame(i))).ident for i in range(len(frames))]
    assert ids == [n // 3 + 1 if n % 3 == 0 else 0 for n in range(len(frames))]


@pytest.mark.conformance("V6")
@pytest.mark.parametrize("size", [0, 1, 2, 3, 500])
@INNER
def test_full_checksum_over_ipv4(inner: int, size: int) -> None:
    got = encapsulated(Wire(udp_checksum="full"), 4, sent(inner) + bytes(size))
    assert got.udp_checksum != 0 and got.is_right()


@pytest.mark.conformance("V6", "C3")
@INNER
def test_full_checksum_covers_a_partial_inner_one(inner: int) -> None:
    """Right once the device has completed the inner checksum."""
    src, dst = (ip_address(a).packed for a in INSIDE[inner])
    segment = bytearray(build.tcp(1000, 80, 0x10, data=b"odd"))
    pseudo = pseudo_header(src, dst, TCP, len(segment))
    segment[16:18] = fold(sum(words(pseudo))).to_bytes(2)
    body = build.ip(src, dst, TCP, bytes(segment))
    frame = build.ethernet(DR.packed, WEB.packed, build.ip_type(body), body)
    got = bytearray(encapsulated(Wire(udp_checksum="full"), 4, frame, flags=1).frame)
    l4 = len(got) - len(segment)
    got[l4 + 16 : l4 + 18] = checksum(bytes(got[l4:])).to_bytes(2)
    whole = OuterHeader(bytes(got))
    assert whole.udp_checksum != 0 and whole.is_right()


# ---- receiving ---------------------------------------------------------------------------------

RESERVED = [bit for bit in range(64) if bit != 4 and not 32 <= bit < 56]  # 4: the I flag


@pytest.mark.conformance("V1")
@pytest.mark.parametrize("strict", [False, True], ids=["ignore", "strict"])
@pytest.mark.parametrize("bit", RESERVED)
def test_reserved_bits(bit: int, strict: bool) -> None:
    frame = bytearray(received())
    frame[42 + bit // 8] ^= 0x80 >> bit % 8
    reason, got = delivered(Wire(strict=strict), bytes(frame))
    assert reason is (Reason.VXLAN_RESERVED_BITS if strict else Reason.NONE)
    assert bool(got) is not strict


@pytest.mark.conformance("V1")
def test_there_are_39_reserved_bits() -> None:
    assert len(RESERVED) == 39
    assert delivered(Wire(strict=True), received())[0] is Reason.NONE


@pytest.mark.conformance("E6")
def test_zero_checksum_over_ipv6() -> None:
    frame = received(outer=6)
    zero = frame[:60] + b"\0\0" + frame[62:]
    wrong = frame[:60] + b"\x12\x34" + frame[62:]
    for wire, data, reason in (
        (Wire(), frame, Reason.NONE),
        (Wire(), zero, Reason.UDP6_ZERO_CHECKSUM),
        (Wire(udp6_zero_rx=True), zero, Reason.NONE),
        (Wire(udp6_zero_rx=True), wrong, Reason.OUTER_CHECKSUM),
    ):
        assert delivered(wire, data, outer=6)[0] is reason


@pytest.mark.conformance("E6")
def test_what_stands_in_for_the_checksum() -> None:
    """A zero checksum is no way around VNI and VTEP (RFC 6936 section 5)."""
    frame = received(outer=6)
    zero = frame[:60] + b"\0\0" + frame[62:]
    other_vni, other_vtep = bytearray(zero), bytearray(zero)
    other_vni[66] ^= 1
    other_vtep[37] ^= 1
    wire = Wire(udp6_zero_rx=True)
    assert delivered(wire, bytes(other_vni), outer=6)[0] is Reason.UNKNOWN_VNI
    assert delivered(wire, bytes(other_vtep), outer=6)[0] is Reason.UNKNOWN_VTEP


@pytest.mark.conformance("E4", "E2")
@pytest.mark.parametrize("outer_tos", [0x00, 0xB8, 0xB9, 0x03, 0xFF])
@pytest.mark.parametrize("inner_tos", [0x00, 0x02, 0x2A, 0x03])
@pytest.mark.parametrize("mode", ["keep", "copy"])
@BOTH
@INNER
def test_dscp_of_what_is_delivered(
    inner: int, outer: int, mode: Any, inner_tos: int, outer_tos: int
) -> None:
    wire = Wire(dscp_decap=mode)
    reason, got = delivered(wire, received(inner, outer, outer_tos, inner_tos), outer)
    if inner_tos & 3 == 0 and outer_tos & 3 == 3:
        assert reason is Reason.ECN_CE_ON_NOT_ECT
        return
    ecn = {(2, 1): 1, (2, 3): 3}.get((inner_tos & 3, outer_tos & 3), inner_tos & 3)
    wanted = (inner_tos if mode == "keep" else outer_tos) & 0xFC | ecn
    assert got[14:] == received(inner, outer, outer_tos, wanted)[OUTER[outer] + 14 :]


# ---- inner tags --------------------------------------------------------------------------------

TAGS = {
    "priority": (b"\x81\0\x60\0", True),
    "access": (b"\x81\0\0\5", True),
    "double": (b"\x81\0\0\5\x81\0\0\6", False),
    "qinq": (b"\x88\xa8\0\5\x81\0\0\6", False),
    "service": (b"\x88\xa8\0\5", False),
    "old": (b"\x91\0\0\5", False),
}


def tagged(frame: bytes, tag: bytes, at: int = 0) -> bytes:
    return frame[: at + 12] + tag + frame[at + 12 :]


@pytest.mark.conformance("V8")
@pytest.mark.parametrize("setting", ["discard", "strip"])
@pytest.mark.parametrize("tag", TAGS)
@INNER
def test_tags_of_endpoints(inner: int, tag: str, setting: Any) -> None:
    octets, single = TAGS[tag]
    with Engine() as engine:
        engine.commit(node(Wire(inner_vlan=setting)))
        plain = engine.process_one(sent(inner), "web")
        got = engine.process_one(tagged(sent(inner), octets), "web")
    if setting == "strip" and single:
        assert (got.verdict, got.frame) == (Verdict.FORWARD, plain.frame)
    else:
        assert got.reason is Reason.VLAN_TAGGED


@pytest.mark.conformance("V8")
@pytest.mark.parametrize("setting", ["discard", "strip"])
@pytest.mark.parametrize("tag", TAGS)
def test_tags_from_the_underlay(tag: str, setting: Any) -> None:
    """Always discarded."""
    own, peer = (ip_address(a).packed for a in OUTSIDE[4])
    inner = tagged(received()[OUTER[4] :], TAGS[tag][0])
    frame = build.vxlan(peer, own, 4789, 0xABCDEF, inner)
    assert delivered(Wire(inner_vlan=setting), frame)[0] is Reason.VLAN_TAGGED


def test_a_tagged_arp_request_is_answered_untagged() -> None:
    request = build.arp(1, WEB.packed, ip_address("10.0.1.2").packed, b"\x0a\0\1\1")
    with Engine() as engine:
        engine.commit(node(Wire(inner_vlan="strip")))
        plain = engine.process_one(request, "web")
        got = engine.process_one(tagged(request, TAGS["priority"][0]), "web")
    assert got.verdict is Verdict.ANSWER and got.frame == plain.frame


# ---- policy ------------------------------------------------------------------------------------


def test_a_change_reaches_standing_flows() -> None:
    with Engine() as engine:
        engine.commit(node())
        engine.process_one(sent(), "web")
        engine.commit(node(Wire(df="clear", ttl=9)))
        got = OuterHeader(engine.process_one(sent(), "web").frame)
        assert (got.fragment, got.ttl) == (0, 9) and got.ident
        assert engine.stats().totals["flows"] == 1


def test_faults_are_told_with_their_place() -> None:
    text = """
node:
  name: a
  underlay: {address: 192.0.2.1}
  networks:
    - {name: n, vni: 1, prefixes: [10.0.0.0/8], wire: {dscp: 64, ttl: 0}}
    - {name: m, vni: 2, prefixes: [10.0.0.0/8], wire: {dscp: some, df: maybe}}
"""
    with pytest.raises(DocumentError) as caught:
        loads(text)
    told = [f"{fault.path} {fault.message}" for fault in caught.value.faults]
    assert told == [
        "$.node.networks[0].wire.dscp 64 is not a possible DSCP (0-63)",
        "$.node.networks[0].wire.ttl 0 is not a possible TTL (1-255)",
        "$.node.networks[1].wire.dscp 'some' is not 'zero' or 'copy' or a whole number",
        "$.node.networks[1].wire.df 'maybe' is not one of set, clear, inherit",
    ]


def test_a_plan_tells_what_is_unusual() -> None:
    with Engine() as engine:
        engine.commit(node())
        plan = engine.plan(node(Wire(dscp=46, strict=True)))
        assert plan.text().splitlines()[0].endswith("dscp 46  strict True")
