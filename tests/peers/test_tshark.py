"""Wireshark's dissectors look at all that leaves the engine: nothing that they call wrong is ours.

What comes in is looked at too: damage that came in leaves as it came (a rewriter repairs nothing),
so each complaint about a frame that leaves must stand against the frame that caused it as well.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dataplane import pcap
from dataplane.address import Mac, Vni
from dataplane.document import load
from dataplane.engine import Engine
from dataplane.expect import prove
from dataplane.model import (
    Acl,
    Endpoint,
    HostPort,
    Network,
    Node,
    OutboundNat,
    PortRange,
    RemoteSubnet,
    Tap,
    Underlay,
)
from tests import strategies
from tests.reference import Outcome, build
from tests.reference.wire import ICMP, ICMP6, TCP, UDP
from tests.strategies import Complain, Reply, Send

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = 15
pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")

WARNING = 0x600000  # of Wireshark's severities; errors are above
OPTIONS = {
    "ip.check_checksum": "TRUE",
    "udp.check_checksum": "TRUE",
    "tcp.check_checksum": "TRUE",
    "tcp.analyze_sequence_numbers": "FALSE",  # each packet for itself
    "tcp.desegment_tcp_streams": "FALSE",
    "ip.defragment": "FALSE",
    "ipv6.defragment": "FALSE",
    "tcp.try_heuristic_first": "FALSE",
    "udp.try_heuristic_first": "FALSE",
}
DECODE = "udp.port==8472,vxlan"
APPLICATIONS = ["dns", "dhcp", "dhcpv6", "http", "skinny", "find", "cpfi"]


class Passage(NamedTuple):
    """A frame that came in, what left for it, and by which port; `node`: under which policy."""

    before: bytes
    after: bytes
    egress: str
    node: Node


class Look(NamedTuple):
    """What tshark makes of a frame, all values from the outermost header inwards."""

    protocols: list[str]
    vnis: list[str]
    flags: list[str]
    icmp: list[str]
    icmp6: list[str]
    lengths: list[str]
    sums: list[str]  # of all headers but TCP: 0 is wrong
    complaints: set[str]

    @property
    def is_about_tcp(self) -> bool:
        """An ICMP error, all checksums right but that of the TCP header it quotes."""
        quotes = self.protocols.count("ip") + self.protocols.count("ipv6") > 1
        return quotes and "tcp" in self.protocols and "0" not in self.sums

    @property
    def quote_is_cut(self) -> bool:
        outer, quoted = map(int, self.lengths[-2:])
        return outer - 28 < quoted if "ip" in self.protocols[-3:] else outer - 8 < quoted + 40


FIELDS = {
    "protocols": ["frame.protocols"],
    "vnis": ["vxlan.vni"],
    "flags": ["vxlan.flags"],
    "icmp": ["icmp.type"],
    "icmp6": ["icmpv6.type"],
    "lengths": ["ip.len", "ipv6.plen"],
    "sums": [f"{p}.checksum.status" for p in ("ip", "icmp", "icmpv6", "udp")],
}
EXPERT = ["_ws.expert.severity", "_ws.expert.message"]


def dissect(frames: list[bytes], path: Path) -> list[Look]:
    with pcap.ClassicWriter(path) as file:
        for n, frame in enumerate(frames):
            file.write(pcap.Packet(n * 1_000_000, frame))
    words = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "aggregator=|"]
    for name in [*(f for fields in FIELDS.values() for f in fields), *EXPERT]:
        words += ["-e", name]
    for name, value in OPTIONS.items():
        words += ["-o", f"{name}:{value}"]
    for name in APPLICATIONS:
        words += ["--disable-protocol", name]
    done = subprocess.run([*words, "-d", DECODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == len(frames)
    return [look(line) for line in lines]


def look(line: str) -> Look:
    columns = iter([text.split("|") if text else [] for text in line.split("\t")])
    fields = {name: [v for _ in wanted for v in next(columns)] for name, wanted in FIELDS.items()}
    fields["protocols"] = fields["protocols"][0].split(":")
    graded = zip(next(columns), next(columns), strict=True)
    complaints = {m.partition(" [")[0] for severity, m in graded if int(severity) >= WARNING}
    return Look(**fields, complaints=complaints)


# ---- what leaves -------------------------------------------------------------------------------


def of_scenarios() -> list[Passage]:
    """Of the policies, frames and answers that the equivalence test draws."""
    found: list[Passage] = []

    @settings(
        max_examples=SCENARIOS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.scenarios(max_steps=80).thrown())
    def collect(scenario: tuple[Node, list[strategies.Step]]) -> None:
        node, steps = scenario
        with Engine(max_flows=1 << 8, max_bindings=1 << 8, key=bytes(32)) as engine:
            engine.commit(node)
            strategies.play(node, steps, lambda event: passed(engine, event, found))

    collect()
    return found


def passed(engine: Engine, event: strategies.Event, found: list[Passage]) -> Outcome | None:
    """What the engine does with the event. All checksums are complete: no flags of a port."""
    if event.commit is not None:
        engine.commit(event.commit)
    if event.expire:
        engine.expire(now=event.now_ns)
    if event.frame is None or event.frame.port not in engine.ids.ports:
        return None
    got = engine.process_one(event.frame.data, event.frame.port, now=event.now_ns)
    for out in (got, *got.more):
        if out.port is not None:
            assert engine.node is not None
            found.append(Passage(event.frame.data, out.frame, out.port, engine.node))
    return Outcome(str(got.verdict), None, got.port, got.frame if got.port else None)


def of_policies() -> list[Passage]:
    """Of the documents of `policies/`, every hop of the packets that they expect something of."""
    found = []
    for path in sorted((ROOT / "policies").glob("*.yaml")):
        document = load(path)
        nodes = {n.name: n for n in document.nodes or (document.node,) if n is not None}
        for finding in prove(document):
            for hop in finding.journey.hops:
                out = hop.outcome
                if out.port is not None:
                    found.append(Passage(hop.walk.before, out.frame, out.port, nodes[hop.node]))
    return found


WEB = {4: ip_address("10.0.1.2"), 6: ip_address("fd00:1::2")}
VIP = {4: ip_address("192.0.2.100"), 6: ip_address("2001:db8::100")}
TARGETS = {
    4: ["10.0.1.3", "10.0.2.2", "10.0.3.3", "198.51.100.1", "10.0.1.1"],
    6: ["fd00:1::3", "fd00:2::2", "fd00:3::3", "2001:db8:ffff::1", "fd00:1::1"],
}
KINDS = {
    "syn": (TCP, build.tcp(40000, 80, 0x02, b"\x02\x04\x23\x00")),
    "data": (TCP, build.tcp(40000, 80, 0x10, b"", b"data")),
    "refused": (TCP, build.tcp(40000, 23, 0x02)),
    "udp": (UDP, build.udp(40000, 9000, b"data")),
    "empty": (UDP, build.udp(40000, 9000)),
    "large": (UDP, build.udp(40000, 9000, bytes(1300))),
    "too large": (UDP, build.udp(40000, 9000, bytes(1400))),
}
HEADERS: list[dict[str, int]] = [{}, {"tos": 0xB9}, {"tos": 2}, {"tos": 3}, {"ttl": 1}]


def of_every_way() -> list[Passage]:
    """Each kind of packet each way, the answers, and the errors about them."""
    found: list[Passage] = []
    for version in (4, 6):
        node = everything(version)
        with Engine(max_flows=1 << 12, max_bindings=1 << 10, key=bytes(32)) as engine:
            engine.commit(node)
            steps = [s for f in frames(node, version) for s in (f, Reply(0, 0x12), f, Complain(0))]
            strategies.play(node, steps, lambda event: passed(engine, event, found))
    return found


def frames(node: Node, version: int) -> Iterator[Send]:
    network = node.networks[0]
    assert network.dr_mac and network.endpoints[0].mac
    dmac, smac, src = network.dr_mac.packed, network.endpoints[0].mac.packed, WEB[version].packed
    icmp, echo = (ICMP, 8) if version == 4 else (ICMP6, 128)
    kinds = [*KINDS.values(), (icmp, build.icmp(echo, 0, 77, b"ping")), (132, bytes(12))]
    for target in TARGETS[version]:
        dst = ip_address(target).packed
        for (proto, segment), header in product(kinds, HEADERS):
            packet = build.ip(src, dst, proto, build.summed(src, dst, proto, segment), **header)
            frame = build.ethernet(dmac, smac, build.ip_type(packet), packet)
            yield Send(strategies.Frame("blue/web", frame))
        if version == 4:
            yield Send(strategies.Frame("blue/web", build.arp(1, smac, src, dst)))


def everything(version: int) -> Node:
    """Neighbours, both kinds of VTEP, NAT, a rule that rejects; `version`: of the NAT's address."""
    telnet = PortRange(first=23, last=23)
    endpoints = [
        Endpoint(name="web", addresses=tuple(WEB.values()), mac=Mac("02:00:00:00:01:02")),
        Endpoint(
            name="db",
            addresses=(ip_address("10.0.1.3"), ip_address("fd00:1::3")),
            mac=Mac("02:00:00:00:01:03"),
        ),
    ]
    remote = {"10.0.2.0/24": "192.0.2.2", "fd00:2::/64": "192.0.2.2"}
    remote |= {"10.0.3.0/24": "2001:db8::2", "fd00:3::/64": "2001:db8::2"}
    network = Network(
        name="blue",
        vni=Vni(0xABCDEF),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        dr_mac=Mac("02:00:00:00:0d:01"),
        mtu=1400,
        remote_subnets=tuple(
            RemoteSubnet(
                prefix=ip_network(prefix),
                provider_address=ip_address(vtep),
                dr_mac=Mac("02:0d:00:00:00:01"),
            )
            for prefix, vtep in remote.items()
        ),
        endpoints=tuple(endpoints),
        acls=(
            Acl(
                name="no-telnet",
                direction="out",
                action="reject",
                priority=1,
                protocol="tcp",
                remote_ports=(telnet,),
            ),
            Acl(name="out", direction="out", action="allow"),
            Acl(name="in", direction="in", action="allow"),
        ),
        outbound_nat=OutboundNat(vip=VIP[version]),
    )
    host = HostPort(
        address=ip_address("169.254.1.1"),
        peer=ip_address("169.254.1.2"),
        tap=Tap(name="dp0", mtu=1300),
    )
    underlay = Underlay(address=ip_address("192.0.2.1"), address6=ip_address("2001:db8::1"))
    return Node(name="n1", underlay=underlay, host_port=host, networks=(network,))


# ---- what Wireshark says -----------------------------------------------------------------------

BEYOND_REPAIR = {"Illegal checksum value (0)", "Malformed Packet (Exception occurred)"}
ACCEPTED = {"Connection reset (RST)"}  # what a reset is, not what is wrong with it
ORIGINATED = {  # by the engine: answers and errors
    *("arp", "icmp 0", "icmp 3", "icmp 11"),
    *("icmp6 129", "icmp6 1", "icmp6 2", "icmp6 3"),
}
CARRIED = {  # over VXLAN
    f"{outer} {inner} {proto}"
    for outer, inner in product(("ip", "ipv6"), ("ip", "ipv6"))
    for proto in ("tcp", "udp", "sctp", "icmp" if inner == "ip" else "icmpv6")
}


class Seen(NamedTuple):
    passage: Passage
    before: Look
    after: Look

    @property
    def complaints(self) -> set[str]:
        """About what left and not about what had come. What a workload says to the VXLAN port,
        known as such behind a translation perhaps, is its own affair; so is what has no checksum
        where it must, or ICMP of the other family: a translation does not mend it."""
        if self.before.complaints & BEYOND_REPAIR:
            return set()
        ours = self.passage.egress == strategies.UNDERLAY
        if self.after.protocols.count("vxlan") > ours:
            return set()
        return self.after.complaints - self.before.complaints - ACCEPTED

    @property
    def is_sum_of_quote(self) -> bool:
        return self.complaints == {"Bad checksum"} and self.after.is_about_tcp

    def kinds(self) -> Iterator[str]:
        layers = self.after.protocols
        yield from (f"icmp {t}" for t in self.after.icmp[:1])
        yield from (f"icmp6 {t}" for t in self.after.icmp6[:1])
        yield layers[2]
        if self.passage.egress == strategies.UNDERLAY:
            yield " ".join([layers[2], *layers[7:9]])


def seen(passages: list[Passage], directory: Path) -> list[Seen]:
    before = dissect([p.before for p in passages], directory / "before.pcap")
    after = dissect([p.after for p in passages], directory / "after.pcap")
    return [Seen(*each) for each in zip(passages, before, after, strict=True)]


@pytest.mark.conformance("V1", "V6", "V7", "E6", "C1", "C2", "C3", "R3", "R4", "A1", "N3")
@pytest.mark.parametrize("source", [of_every_way, of_policies, of_scenarios])
def test_nothing_that_leaves_is_malformed(
    source: Callable[[], list[Passage]], tmp_path: Path
) -> None:
    """Wireshark sums the part of a quoted TCP segment that is there: no complaint about us."""
    found = seen(source(), tmp_path)
    wrong = [s for s in found if s.complaints and not s.is_sum_of_quote]
    assert [(s.complaints, s.passage) for s in wrong] == []
    for each in found:
        if each.passage.egress == strategies.UNDERLAY:
            assert each.after.protocols[3:6] == ["udp", "vxlan", "eth"]
            assert int(each.after.vnis[0]) in {n.vni for n in each.passage.node.networks}
            assert each.after.flags[0] == "0x0800"
    kinds = {kind for each in found for kind in each.kinds()}
    if source is of_every_way:
        assert kinds >= ORIGINATED | CARRIED


@pytest.mark.conformance("N3")
def test_quoted_tcp_segments_are_whole(tmp_path: Path) -> None:
    found = [s for s in seen(of_every_way(), tmp_path) if s.is_sum_of_quote]
    assert [s.passage for s in found if not s.after.quote_is_cut] == []
