"""Packets of standing flows, each with one thing about it that is not as usual.

Such packets take the express lane up to where they differ. Whatever that is, the engine does what
its twin does, and what a trace, which knows no express lane, has foretold.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from msgspec import structs

from dataplane import Batch, Verdict
from dataplane.address import IP, Mac, Vni
from dataplane.model import (
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet_build import build, checksum, pseudo_header, vxlan
from dataplane.packet_spec import PacketSpec
from dataplane.rules import host_mac, underlay_mac
from tests.reference.wire import Packet, parse
from tests.strategies import Event, Frame, ip_of
from tests.test_equivalence import SECONDS, Pair

PARTIAL, UNKNOWN, CHECKED = 1, 2, 4  # enum dp_frame_flag
PATTERNS = (0x01, 0x02, 0x80, 0xFF)  # bits that are turned over
DR, WEB_MAC, DB_MAC, REMOTE_DR = (Mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3, 4))
VTEP, PEER, STRANGER = (ip_address(f"192.0.2.{n}") for n in (1, 2, 3))
SECOND = 10**9


class Family(NamedTuple):
    web: IP
    db: IP
    remote: IP
    outside: IP
    link: IP
    host: IP


V4 = Family(
    *(
        ip_address(a)
        for a in ("10.1.0.2", "10.1.0.3", "10.1.1.9", "203.0.113.9", "169.254.1.1", "169.254.1.2")
    )
)
V6 = Family(
    *(
        ip_address(a)
        for a in ("fd00:1::2", "fd00:1::3", "fd00:1:1::9", "2001:db8::9", "fd77::1", "fd77::2")
    )
)


def node(family: Family) -> Node:
    behind = "10.1.1.0/24" if family is V4 else "fd00:1:1::/48"
    remote = RemoteSubnet(prefix=ip_network(behind), provider_address=PEER, dr_mac=REMOTE_DR)
    other = RemoteSubnet(
        prefix=ip_network("10.1.2.0/24"), provider_address=STRANGER, dr_mac=REMOTE_DR
    )
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
        dr_mac=DR,
        remote_subnets=(remote, other),
        endpoints=(
            Endpoint(name="web", addresses=(family.web,), mac=WEB_MAC),
            Endpoint(name="db", addresses=(family.db,), mac=DB_MAC),
        ),
        outbound_nat=OutboundNat(),
    )
    red = Network(name="red", vni=Vni(101), prefixes=(ip_network("10.9.0.0/16"),), dr_mac=DR)
    host = HostPort(address=family.link, peer=family.host, tap=Tap(name="h"))
    return Node(name="a", underlay=Underlay(address=VTEP), host_port=host, networks=(blue, red))


class Talk:
    """A flow that stands, and the frame that each side repeats."""

    def __init__(self, kind: str, proto: str, family: Family, size: int = 11) -> None:
        self.pair = Pair(node(family))
        self.now = SECOND
        far = {"overlay": family.remote, "local": family.db, "nat": family.outside}[kind]
        udp = {"kind": "udp", "proto": 17, "length": size}
        segment = udp if proto == "udp" else TCP
        there = PacketSpec(
            src=family.web, dst=far, sport=1000, dport=2000, df=True, ipid=7, **segment
        )
        self.frames = [Frame("blue/web", build(there, WEB_MAC, DR))]
        left = self.send(self.frames[0])
        back = replace(there, src=far, dst=family.web, sport=2000, dport=1000)
        if kind == "overlay":
            inner = build(back, REMOTE_DR, DR)
            ends = {"smac": underlay_mac(PEER), "dmac": underlay_mac(VTEP)}
            self.frames.append(Frame("underlay", vxlan(inner, src=PEER, dst=VTEP, vni=100, **ends)))
        elif kind == "local":
            self.frames.append(Frame("blue/db", build(back, DB_MAC, DR)))
        else:
            seen = parse(left)
            assert isinstance(seen, Packet)
            back = replace(back, dst=family.link, dport=seen.flow.sport)
            answer = build(back, host_mac(family.host), host_mac(family.link))
            self.frames.append(Frame("host", answer))
        for frame in (*self.frames[1:], *self.frames, *self.frames):
            self.now += SECOND // 1000
            assert self.pair.judge(frame, self.now).verdict == "forward"

    def send(self, frame: Frame, seconds: float = 0.001) -> bytes:
        """What becomes of it, in both dataplanes alike."""
        self.now += int(seconds * SECOND)
        return self.pair.judge(frame, self.now).frame or b""


TCP = {"kind": "tcp", "proto": 6, "flags": ("ack",)}


@pytest.fixture(params=["overlay", "local", "nat"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["udp", "tcp"])
def proto(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[V4, V6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def mended(data: bytes) -> bytes:
    """With right IPv4 header checksums, inner and outer, where such headers are."""
    for at in (14, 64):
        if data[at - 2 : at] == b"\x08\0" and len(data) >= at + 20:
            head = data[at : at + 10] + bytes(2) + data[at + 12 : at + 20]
            data = data[: at + 10] + checksum(head).to_bytes(2) + data[at + 12 :]
    return data


def turned(data: bytes, at: int) -> Iterator[bytes]:
    """With some bits of the byte turned over, as they are and with checksums that fit."""
    for pattern in PATTERNS:
        other = data[:at] + bytes([data[at] ^ pattern]) + data[at + 1 :]
        yield other
        if mended(other) != other:
            yield mended(other)


def other_lengths(data: bytes) -> Iterator[bytes]:
    yield from (data[:-n] for n in range(1, 30))
    yield from (data + bytes(n) for n in (1, 2, 18))


def try_all(talk: Talk, frame: Frame, others: Iterator[bytes]) -> None:
    for data in others:
        talk.send(Frame(frame.port, data, frame.flags))
        talk.send(frame)  # whether anything was left behind


def test_each_byte_of_the_headers(kind: str, proto: str, family: Family) -> None:
    for side in (0, 1):
        payload = 11 if proto == "udp" else 0
        for at in range(len(Talk(kind, proto, family).frames[side].data) - payload):
            talk = Talk(kind, proto, family)
            frame = talk.frames[side]
            try_all(talk, frame, turned(frame.data, at))
            talk.pair.engine.close()


def test_each_length(kind: str, proto: str, family: Family) -> None:
    for side in (0, 1):
        talk = Talk(kind, proto, family)
        frame = talk.frames[side]
        try_all(talk, frame, other_lengths(frame.data))
        talk.pair.engine.close()


@pytest.mark.parametrize("flags", range(8))
def test_each_state_of_checksums(kind: str, proto: str, family: Family, flags: int) -> None:
    talk = Talk(kind, proto, family)
    for frame in talk.frames:
        talk.send(Frame(frame.port, frame.data, flags))
        field = len(frame.data) - (5 + 8 if proto == "udp" else 4)
        zero = frame.data[:field] + bytes(2) + frame.data[field + 2 :]
        talk.send(Frame(frame.port, zero, flags))
        talk.send(frame)
    talk.pair.engine.close()


def with_partial_sum(frame: Frame) -> tuple[Frame, int, int]:
    """With the sum of the pseudo-header for a checksum, as a kernel leaves it; and where that is:
    from the inner frame to its transport header, and from there."""
    at = 50 if frame.port == "underlay" else 0
    inner = parse(frame.data[at:])
    assert isinstance(inner, Packet)
    tcp = inner.flow.proto == 6
    where = at + inner.l4 + (16 if tcp else 6)
    ends = (ip_of(inner.flow.src), ip_of(inner.flow.dst))
    length = len(frame.data) - at - inner.l4
    pseudo = 0xFFFF ^ checksum(pseudo_header(*ends, inner.flow.proto, length))
    data = frame.data[:where] + pseudo.to_bytes(2) + frame.data[where + 2 :]
    return Frame(frame.port, data), inner.l4, 16 if tcp else 6


def test_what_leaves_of_a_partial_checksum(kind: str, proto: str, family: Family) -> None:
    """The frame says so, and where: whoever sends it has to make it whole."""
    talk = Talk(kind, proto, family)
    for frame in talk.frames:
        partial, start, field = with_partial_sum(frame)
        cases = [(frame, 0, 0), (frame, UNKNOWN, 0), (frame, CHECKED, 0)]
        cases += [(partial, flags, PARTIAL) for flags in (PARTIAL, UNKNOWN, UNKNOWN | CHECKED)]
        for sent, flags, wanted in cases:
            batch = Batch(1, slot=1024).load([sent.data], sent.port, flags)
            result = talk.pair.engine.process(batch, now=talk.now)
            assert result.verdict_of(0) is Verdict.FORWARD
            assert batch.frames["flags"][0] == wanted
            if wanted:
                assert (batch.frames["csum_start"][0], batch.frames["csum_field"][0]) == (
                    (start, field)
                )
    talk.pair.engine.close()


def test_bytes_of_a_flow(kind: str, proto: str, family: Family) -> None:
    talk = Talk(kind, proto, family)
    (flow,) = talk.pair.engine.flow_records()
    inner = [len(f.data) - (50 if f.port == "underlay" else 0) for f in talk.frames]
    assert flow["packets"].tolist() == [3, 3]
    assert flow["bytes"].tolist() == [3 * n for n in inner]
    talk.pair.engine.close()


def test_each_silence(kind: str, proto: str, family: Family) -> None:
    for seconds in SECONDS.values():
        for off in (-0.002, -0.0005, 0, 1e-9, 0.002):
            talk = Talk(kind, proto, family)
            for frame in talk.frames:
                talk.send(frame, seconds + off)
            talk.pair.engine.close()


@pytest.mark.parametrize("size", [510, 520, 530, 600, 1200])
def test_a_path_that_narrows(kind: str, family: Family, size: int) -> None:
    """To 600 bytes, and then to the least there may be."""
    talk = Talk(kind, "udp", family, size)
    for mtu in (600, 400):
        talk.pair.do(Event(talk.now, learn=(PEER, None, mtu)))
        for frame in (*talk.frames, *talk.frames):
            talk.send(frame)
    talk.pair.engine.close()


def segment(frame: Frame, flags: int, seq: int, ack: int, size: int) -> Frame:
    """The TCP frame with other numbers and so much payload; its checksum is nobody's business."""
    data = bytearray(frame.data)
    at = 50 if frame.port == "underlay" else 0
    v4 = data[at + 13] == 0
    l4 = at + (34 if v4 else 54)
    data[l4 + 4 : l4 + 12] = seq.to_bytes(4) + ack.to_bytes(4)
    data[l4 + 13] = flags
    del data[l4 + 20 :]
    data += bytes(size)
    lengths = [(at + 16, len(data) - at - 14)] if v4 else [(at + 18, len(data) - at - 54)]
    if at:
        lengths += [(16, len(data) - 14), (38, len(data) - 34)]
    for place, length in lengths:
        data[place : place + 2] = length.to_bytes(2)
    return Frame(frame.port, mended(bytes(data)), frame.flags)


@pytest.mark.parametrize("seed", range(20))
def test_numbers_of_tcp(kind: str, family: Family, seed: int) -> None:
    """Data and acknowledgments in order, and what is not: repeated, early, forged ends."""
    dice = random.Random(seed)
    talk = Talk(kind, "tcp", family)
    following, acked = [1, 1], [1, 1]  # by side: what it sends next, what it has acknowledged
    for _ in range(40):
        side = dice.randrange(2)
        size = dice.choice([0, 0, 1, 10])
        what = dice.randrange(12)
        flags, seq, ack = 0x10, following[side], dice.choice([following[1 - side], acked[side]])
        if what == 0:
            seq = dice.choice([seq - 1, seq + 1, acked[1 - side]])
        elif what == 1:
            flags, size = dice.choice([0x14, 0x04, 0x11, 0x02, 0x12, 0x00]), 0
            seq = dice.choice([seq, seq, acked[1 - side], acked[1 - side] + 1])
        else:
            following[side] += size
            acked[side] = max(acked[side], ack)
        talk.send(segment(talk.frames[side], flags, seq % 2**32, ack, size))
    talk.pair.engine.close()


def test_ipv6_packets_that_say_ipv4_addresses() -> None:
    """The flow id of the IPv4 flow in an IPv6 header: no packet has such addresses."""
    talk = Talk("overlay", "udp", V4)
    mapped = (ip_address(f"::ffff:{a}") for a in (V4.web, V4.remote))
    src, dst = mapped
    spec = PacketSpec(kind="udp", proto=17, src=src, dst=dst, sport=1000, dport=2000, length=11)
    left = talk.pair.judge(Frame("blue/web", build(spec, WEB_MAC, DR)), talk.now)
    assert left.reason == "bad_address"
    talk.send(talk.frames[0])
    talk.pair.engine.close()


def test_commits_between(kind: str, proto: str, family: Family) -> None:
    """Of the same policy, of one that forbids the way to the outside and elsewhere, and back."""
    talk = Talk(kind, proto, family)
    rich = node(family)
    blue, red = rich.networks
    poor = structs.replace(
        rich, networks=(structs.replace(blue, remote_subnets=(), outbound_nat=None), red)
    )
    for policy in (rich, poor, rich):
        talk.pair.do(Event(talk.now, commit=policy))
        for frame in (*talk.frames, *talk.frames):
            talk.send(frame)
    talk.pair.engine.close()
