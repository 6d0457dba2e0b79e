"""Real captures through decap, encap, trace and policy: nothing crashes, nothing is uncounted."""

import random
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane import pcap
from dataplane._engine import lib
from dataplane.address import Mac, Vni
from dataplane.batch import Batch
from dataplane.model import (
    Acl,
    Endpoint,
    HostPort,
    IcmpRate,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from dataplane.packet import build, parse
from dataplane.reasons import Verdict
from dataplane.stats import adds_up
from tests.setting import Engine

DR, WEB, PEER = (Mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
WEB6 = ip_address("fd00:1::2")
VXLAN = {  # file: VNI, UDP port
    "tcpdump/vxlan.pcap": (100, 4789),
    "tcpdump/vxlan_port_8472.pcap": (100, 8472),
    "zeek/tunnels__vxlan.pcap": (123, 4789),
}
BROKEN = ("oobr", "asan", "overflow", "segv", "loop", "invalid", "trunc", "kday", "malformed")
LARGEST = 65_535


def node(
    port: int = 4789, vni: int = 100, own: str = "192.0.2.1", peers: tuple[str, ...] = ()
) -> Node:
    acls = (
        Acl(name="no-ssh", direction="out", action="reject", priority=1, protocol="tcp"),
        Acl(name="rest", direction="out", action="allow", stateful=False),
        Acl(name="in", direction="in", action="allow"),
    )
    web = Endpoint(name="web", addresses=(ip_address("10.0.1.2"), WEB6), mac=WEB, acls=acls)
    remotes = tuple(
        RemoteSubnet(
            prefix=ip_network(f"10.{n}.0.0/16"), provider_address=ip_address(p), dr_mac=PEER
        )
        for n, p in enumerate(peers or ("192.0.2.2",), 2)
    )
    blue = Network(
        name="blue",
        vni=Vni(vni),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        dr_mac=DR,
        remote_subnets=remotes,
        endpoints=(web,),
        outbound_nat=OutboundNat(),
    )
    host = HostPort(
        address=ip_address("169.254.1.1"), peer=ip_address("169.254.1.2"), tap=Tap(name="h")
    )
    return Node(
        name="a",
        underlay=Underlay(address=ip_address(own), port=port),
        host_port=host,
        networks=(blue,),
    )


def frames_of(path: Path) -> list[bytes]:
    """Ethernet frames; raw IP gets a header in front; forged giants are cut to what a port has."""
    frames = []
    for each in pcap.read(path):
        data = each.data
        if each.linktype != pcap.ETHERNET:
            kind = b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00"
            data = DR.packed + WEB.packed + kind + data
        frames.append(data[:LARGEST])
    return frames


def admitted(frame: bytes) -> bytes:
    """The frame as the endpoint would send it: its MAC and its address."""
    if len(frame) >= 54 and frame[12:14] == b"\x86\xdd":
        return DR.packed + WEB.packed + frame[12:22] + WEB6.packed + frame[38:]
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return DR.packed + WEB.packed + frame[12:]
    data = bytearray(DR.packed + WEB.packed + frame[12:])
    data[26:30] = ip_address("10.0.1.2").packed
    head = (data[14] & 15) * 4
    data[24:26] = b"\0\0"
    words = sum(int.from_bytes(data[i : i + 2]) for i in range(14, 14 + head, 2))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    data[24:26] = (words ^ 0xFFFF).to_bytes(2)
    return bytes(data)


def push(engine: Engine, frames: list[bytes], port: str, flags: int = 0) -> None:
    """All frames through the port; each leaves by one exit, and every reason is counted."""
    before = engine.stats()
    batch = Batch(capacity=64, slot=lib.DP_HEADROOM + LARGEST + 64)
    for first in range(0, len(frames), 64):
        result = engine.process(batch.load(frames[first : first + 64], port, flags))
        while len(result):
            dropped = result.verdict == Verdict.DROP
            assert ((result.reason > 0) == dropped).all()
            result = engine.more(batch)
    after = engine.stats()
    gone = after - before
    uncut = flags & lib.DP_CSUM_UNKNOWN  # of a kernel peer: a large one stands for many
    assert gone.totals["rx"] == len(frames) or (uncut and gone.totals["rx"] > len(frames))
    assert adds_up(after.totals)
    assert sum(gone.reasons.values()) == gone.totals["dropped"]


@pytest.fixture
def engine():
    with Engine(max_flows=1 << 14) as engine:
        engine.commit(node())
        yield engine


@pytest.mark.conformance("T12")
def test_every_frame_leaves_by_one_exit(engine: Engine, captures: list[Path]) -> None:
    for path in captures:
        frames = frames_of(path)
        push(engine, frames, "underlay")
        push(engine, frames, "host")
        push(engine, frames, "blue/web")
        push(engine, [admitted(f) for f in frames], "blue/web")
        inner = [packet_of(f) for f in frames]
        push(engine, inner, "underlay")
        push(engine, inner, "underlay", lib.DP_OUTER_CHECKED | lib.DP_CSUM_UNKNOWN)


def packet_of(frame: bytes) -> bytes:
    """The frame inside a VXLAN packet of our peer."""
    size = len(frame[: LARGEST - 100])
    udp = b"\xc0\x00\x12\xb5" + (size + 16).to_bytes(2) + b"\0\0"
    ip = bytearray(b"\x45\0" + (size + 36).to_bytes(2) + b"\0\0\x40\0\x40\x11\0\0")
    ip += ip_address("192.0.2.2").packed + ip_address("192.0.2.1").packed
    words = sum(int.from_bytes(ip[i : i + 2]) for i in range(0, 20, 2))
    words = (words & 0xFFFF) + (words >> 16)
    ip[10:12] = (words ^ 0xFFFF).to_bytes(2)
    vxlan = b"\x08\0\0\0\0\0\x64\0"
    return DR.packed + PEER.packed + b"\x08\0" + bytes(ip) + udp + vxlan + frame[: LARGEST - 100]


def test_a_trace_changes_nothing(engine: Engine, captures: list[Path]) -> None:
    before = engine.stats().totals
    for path in captures[::5]:
        for frame in frames_of(path)[:5]:
            engine.trace(packet_of(frame), "underlay")
            engine.trace(admitted(frame), "blue/web")
    assert engine.stats().totals == before


@pytest.mark.conformance("T12")
def test_every_truncation_of_the_broken_ones(engine: Engine, captures: list[Path]) -> None:
    broken = [p for p in captures if any(word in p.name for word in BROKEN)]
    assert len(broken) > 50
    for path in broken:
        for frame in frames_of(path)[:2]:
            cuts = [frame[:n] for n in range(min(len(frame), 120))]
            push(engine, cuts, "underlay")
            push(engine, [admitted(c) for c in cuts], "blue/web")
            push(engine, [packet_of(c) for c in cuts], "underlay")


# ---- the cache ---------------------------------------------------------------------------------

DEFAULT_ROUTES = tuple(
    RemoteSubnet(prefix=ip_network(p), provider_address=ip_address("192.0.2.2"), dr_mac=PEER)
    for p in ("0.0.0.0/0", "::/0")
)
PORTS = (PortRange(0, 0), PortRange(53, 80), PortRange(443, 443))
SOME_BLOCKED = (
    Acl(name="udp", direction="out", action="block", protocol="udp", remote_ports=PORTS),
    Acl(name="tcp", direction="out", action="reject", protocol="tcp", remote_ports=PORTS),
    Acl(name="echo", direction="out", action="block", protocol="icmp", icmp_type=8, icmp_code=3),
    Acl(name="zero", direction="out", action="block", protocol=0),
    Acl(name="rest", direction="out", action="allow"),
    Acl(name="in", direction="in", action="allow"),
)
ODD = [  # what megaflows got wrong: protocol 0, ports of zero, runts
    *(f"ip {proto} 10.0.1.2 > 8.8.8.8 len {n}" for proto in (0, 1, 6, 17, 255) for n in (0, 3, 40)),
    *(
        f"{kind} 10.0.1.2:{a} > 8.8.8.8:{b}"
        for kind in ("tcp", "udp")
        for a in (0, 9)
        for b in (0, 9)
    ),
]


def is_fragment(frame: bytes) -> bool:
    if frame[12:14] == b"\x08\0":
        return bool(int.from_bytes(frame[20:22]) & 0x3FFF)
    return frame[12:14] == b"\x86\xdd" and frame[20:21] not in (b"\6", b"\x11", b"\x3a")


def everything(captures: list[Path]) -> list[tuple[str, bytes]]:
    """Every frame of every capture, from the endpoint and from a VTEP, and the odd ones."""
    odd = [build(parse(words), WEB, DR) for words in ODD]
    frames = [f for path in captures for f in frames_of(path) if len(f) < 9000] + odd
    frames = [f for f in frames if not is_fragment(f)]  # what those become, others before decide
    return [("blue/web", admitted(f)) for f in frames] + [
        ("underlay", packet_of(f)) for f in frames
    ]


ROOM = Batch(capacity=256, slot=16_384)


def outcomes(engine: Engine, sent: list[tuple[str, bytes]]) -> list[tuple]:
    """Verdict, reason, egress and what left, of each."""
    batch, found = ROOM, []
    for first in range(0, len(sent), 256):
        batch.clear()
        for port, frame in sent[first : first + 256]:
            batch.add([frame], port)
        result = engine.process(batch)
        found += zip(
            result.verdict.tolist(),
            result.reason.tolist(),
            result.port.tolist(),
            (bytes(result.frame(i)) for i in range(len(result))),
            strict=True,
        )
    return found


@pytest.mark.conformance("T5")
def test_the_cache_decides_as_the_layers_do(captures: list[Path]) -> None:
    """Cold, warm and in random order: what a flow has cached is what its packet would be told."""
    base = node()
    blue = replace(base.networks[0], remote_subnets=DEFAULT_ROUTES, outbound_nat=None)
    web = replace(blue.endpoints[0], acls=SOME_BLOCKED)
    unlimited = IcmpRate(port=10**6, port_burst=10**6, all=10**6, all_burst=10**6)
    policy = replace(base, networks=(replace(blue, endpoints=(web,)),), icmp_rate=unlimited)
    sent, key = everything(captures), bytes(32)
    with Engine(max_flows=1, key=key) as slow, Engine(max_flows=1 << 16, key=key) as fast:
        slow.commit(policy)
        fast.commit(policy)
        wanted = []
        for each in sent:
            slow.flush()
            wanted += outcomes(slow, [each])
        assert slow.stats().totals["hits"] == 0
        assert outcomes(fast, sent) == wanted
        order = random.Random(5).sample(range(len(sent)), len(sent))
        assert outcomes(fast, [sent[i] for i in order]) == [wanted[i] for i in order]
        assert fast.stats().totals["hits"] > 20_000


@pytest.mark.conformance("V4")
@pytest.mark.parametrize("name", VXLAN)
def test_vxlan_captures_are_decapsulated(capture, name: str) -> None:
    """The inner frame of each is found as it stands at byte 50, and its VNI is the file's."""
    vni, port = VXLAN[name]
    for frame in frames_of(capture(name)):
        own, peer = str(ip_address(frame[30:34])), str(ip_address(frame[26:30]))
        with Engine(max_flows=16) as engine:
            engine.commit(node(port, vni, own, (peer,)))
            walk = engine.trace(frame, "underlay")
            assert str(walk.reason) not in ("outer_not_vxlan", "unknown_vni", "unknown_vtep")
            engine.commit(node(port, vni + 1, own, (peer,)))
            assert str(engine.trace(frame, "underlay").reason) == "unknown_vni"
            outer = frame[46:49]
            assert int.from_bytes(outer) == vni
