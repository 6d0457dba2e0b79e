"""Packets of standing flows, each with one thing about it that is not as usual.

Such packets take the express lane up to where they differ. Whatever that is, the engine does what
its twin does, and what a trace, which knows no express lane, has foretold.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from msgspec import structs

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
from dataplane.packet_build import build, checksum, vxlan
from dataplane.packet_spec import PacketSpec
from dataplane.rules import host_mac, underlay_mac
from tests.reference.wire import Packet, parse
from tests.strategies import Event, Frame
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

    def __init__(self, kind: str, proto: str, family: Family) -> None:
        self.pair = Pair(node(family))
        self.now = SECOND
        far = {"overlay": family.remote, "local": family.db, "nat": family.outside}[kind]
        segment = {"kind": "udp", "proto": 17, "length": 11} if proto == "udp" else TCP
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


def test_each_silence(kind: str, proto: str, family: Family) -> None:
    for seconds in SECONDS.values():
        for off in (-0.002, -0.0005, 0, 1e-9, 0.002):
            talk = Talk(kind, proto, family)
            for frame in talk.frames:
                talk.send(frame, seconds + off)
            talk.pair.engine.close()


def test_a_path_that_narrows(kind: str, proto: str, family: Family) -> None:
    talk = Talk(kind, proto, family)
    talk.pair.do(Event(talk.now, learn=(PEER, None, 600)))
    for size in (0, 500, 530, 560, 1300):
        for frame in talk.frames:
            talk.send(frame)
            talk.send(Frame(frame.port, frame.data + bytes(size)))
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
