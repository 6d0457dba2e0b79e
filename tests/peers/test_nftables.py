"""Linux's masquerade and our outbound NAT, given the same conversations of real captures (H5).

client ── in ─ router (nftables) ─ out ── outside         ours: endpoints ── engine ── host port

Every packet of a capture goes through both, answers to the port that each has chosen. Modulo that
port what comes out is the same, byte for byte: what was sent, one hop later.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from dataplane.address import IP, Mac, Vni
from dataplane.engine import Engine
from dataplane.model import Endpoint, HostPort, Network, Node, OutboundNat, Tap, Underlay
from dataplane.netns import inside
from dataplane.reasons import Verdict
from tests.conftest import CAPTURES
from tests.peers.wire import Wire, ip, is_ip, mac, one_processor, run, sysctl
from tests.reference import build
from tests.reference.checksum import adjust, checksum
from tests.reference.verdict import Drop
from tests.reference.wire import ICMP, ICMP6, TCP, UDP, FlowId, Packet, parse, unmapped
from tests.test_captures import frames_of

FILES = [
    *("zeek/tcp__*", "zeek/icmp__*", "zeek/ftp__*", "zeek/sip__*", "zeek/dns__*"),
    *("zeek/chksums__*", "suricata/tcp-*", "suricata/firewall__tcp-*", "suricata/udp-5379__*"),
]
MOST = 300  # packets of one capture
MTU = 10_000
NAT = {4: ip_address("198.18.0.1"), 6: ip_address("2001:2::1")}
BEYOND = {4: ip_address("198.18.0.2"), 6: ip_address("2001:2::2")}
WITHIN = {4: ip_address("198.19.0.2"), 6: ip_address("2001:2:1::2")}
ROUTER = {4: ip_address("198.19.0.1"), 6: ip_address("2001:2:1::1")}
DR_MAC, POD_MAC = Mac("02:aa:00:00:00:01"), Mac("02:00:00:00:00:aa")
RULES = """
table inet nat {
  chain postrouting { type nat hook postrouting priority srcnat; oifname "out" masquerade; }
  chain forward { type filter hook forward priority filter; ct state invalid drop; }
}
"""


# ---- conversations -----------------------------------------------------------------------------


class Said(NamedTuple):
    """A packet of a conversation, `flow` as its initiator's packets have it."""

    packet: Packet
    flow: FlowId
    outbound: bool

    @property
    def frame(self) -> bytes:
        return bytes(self.packet.data)


def conversations(path: Path) -> list[Said]:
    """Packets of flows that a NAT can translate; who speaks first is the client."""
    said: list[Said] = []
    flows: dict[FlowId, FlowId] = {}
    clients, servers = set[bytes](), set[bytes]()
    for packet in filter(None, map(translatable, islice(frames_of(path), MOST))):
        flow = packet.flow
        if flow not in flows:
            if is_answer(packet):
                flow = flow.reply()
            if flow.src in servers or flow.dst in clients:
                continue
            clients.add(flow.src)
            servers.add(flow.dst)
            flows[flow] = flows[flow.reply()] = flow
        said.append(Said(packet, flows[flow], flows[packet.flow] == packet.flow))
    return said


def is_special(address: IP) -> bool:
    return address.is_multicast or address.is_link_local or str(address) == "255.255.255.255"


def is_answer(packet: Packet) -> bool:
    """A SYN with ACK, of a capture that begins too late to have what it answers."""
    return packet.flow.proto == TCP and packet.data[packet.l4 + 13] & 0x12 == 0x12


def translatable(frame: bytes) -> Packet | None:
    try:
        packet = parse(frame)
    except Drop:
        return None
    if not isinstance(packet, Packet) or packet.fragment:
        return None
    addresses = [ip_address(unmapped(a)) for a in packet.flow[:2]]
    if any(
        a.is_multicast or a.is_link_local or a == ip_address("255.255.255.255") for a in addresses
    ):
        return None
    return packet if packet.flow.proto in (TCP, UDP) or packet.flow.is_echo else None


# ---- translating by hand -----------------------------------------------------------------------


def moved(frame: bytes, end: str, address: bytes, port: int) -> bytes:
    """The frame with its source or destination (`end`) changed; checksums by difference."""
    packet = parse(frame)
    assert isinstance(packet, Packet) and packet.check_at is not None
    data, is_dst = packet.data, end == "dst"
    at = 14 + (12 if packet.version == 4 else 8) + is_dst * len(address)
    port_at = packet.l4 + (4 if packet.flow.is_icmp else 2 * is_dst)
    old = bytes(data[at : at + len(address)]), bytes(data[port_at : port_at + 2])
    data[at : at + len(address)], data[port_at : port_at + 2] = address, port.to_bytes(2)
    if packet.version == 4:
        change(data, 24, old[0], address)
    if packet.flow.proto != ICMP:
        change(data, packet.check_at, old[0], address)
    change(data, packet.check_at, old[1], port.to_bytes(2))
    if packet.flow.proto == UDP and frame[packet.check_at : packet.check_at + 2] == b"\0\0":
        data[packet.check_at : packet.check_at + 2] = b"\0\0"  # there is none
    return bytes(data)


def change(data: bytearray, at: int, old: bytes, new: bytes) -> None:
    data[at : at + 2] = adjust(int.from_bytes(data[at : at + 2]), old, new).to_bytes(2)


def one_hop_later(frame: bytes) -> bytes:
    packet = parse(frame)
    assert isinstance(packet, Packet)
    data = packet.data
    data[packet.ttl_at] -= 1
    if packet.version == 4:
        data[24:26] = b"\0\0"
        data[24:26] = checksum(bytes(data[14 : packet.l4])).to_bytes(2)
    return bytes(data)


def canonical(frame: bytes) -> bytes:
    """From the IP header on; both zeros of the ones' complement are one."""
    packet = parse(frame)
    assert isinstance(packet, Packet)
    data, at = packet.data, packet.check_at
    if at is not None and data[at : at + 2] == b"\xff\xff":
        data[at : at + 2] = b"\0\0"
    return bytes(data[14:])


def is_right(frame: bytes) -> bool:
    """Whether the transport checksum is."""
    packet = parse(frame)
    assert isinstance(packet, Packet)
    data, l4, flow = bytes(packet.data), packet.l4, packet.flow
    again = build.summed(unmapped(flow.src), unmapped(flow.dst), flow.proto, data[l4:])
    return canonical(data[:l4] + again) == canonical(data)


# ---- the two translators -----------------------------------------------------------------------


def is_unicast(frame: bytes) -> bool:
    """Not what the router reports of its groups."""
    return is_ip(frame) and not frame[0] & 1


class Linux:
    """A router of a namespace, with its neighbours' wires."""

    def __init__(self, client: str, router: str, outside: str) -> None:
        self.netns = router
        self.inner, self.outer = (
            Wire(client, "in", is_unicast),
            Wire(outside, "out", is_unicast),
        )
        self.to_router = mac(router, "in").packed, mac(router, "out").packed

    def begin(self, clients: set[IP]) -> None:
        """Forgets all connections; the clients live behind the router's `in`."""
        inside(self.netns, flush_connections)
        for version in (4, 6):
            run(self.netns, "ip", f"-{version}", "route", "flush", "proto", "99")
        ip(
            self.netns,
            *(f"route add {c} via {WITHIN[c.version]} dev in proto 99" for c in clients),
        )

    def out(self, frame: bytes) -> bytes | None:
        return self._through(self.inner, self.outer, self.to_router[0], frame)

    def back(self, frame: bytes) -> bytes | None:
        return self._through(self.outer, self.inner, self.to_router[1], frame)

    @staticmethod
    def _through(source: Wire, target: Wire, router: bytes, frame: bytes) -> bytes | None:
        """One processor: what is not there when `send` returns is dropped."""
        target.waiting()
        source.send(router + frame[6:])
        found = target.waiting()
        assert len(found) < 2
        return found[0] if found else None


def flush_connections() -> None:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    with NFCTSocket() as conntrack:
        conntrack.flush()


class Ours:
    """An engine, endpoints in place of the clients."""

    def __init__(self) -> None:
        self.engine = Engine(max_flows=4096, max_bindings=4096)

    def begin(self, clients: set[IP]) -> None:
        self.engine.flush()
        self.dropped = ""
        self._names = {c: f"c{n}" for n, c in enumerate(sorted(clients, key=str))}
        self.engine.commit(self._policy({c.version for c in clients}.pop()))

    def _policy(self, version: int) -> Node:
        gateways = tuple(ip_network(f"{ROUTER[v]}/{ROUTER[v].max_prefixlen}") for v in (4, 6))
        network = Network(
            name="blue",
            vni=Vni(1),
            prefixes=(*gateways, *map(ip_network, self._names)),
            gateways=(ROUTER[4], ROUTER[6]),
            dr_mac=DR_MAC,
            mtu=MTU,
            outbound_nat=OutboundNat(vip=NAT[version]),
            endpoints=tuple(
                Endpoint(name=name, addresses=(client,), mac=POD_MAC, tap=Tap(name=name))
                for client, name in self._names.items()
            ),
        )
        host = HostPort(
            address=ip_address("198.51.100.1"),
            peer=ip_address("198.51.100.2"),
            tap=Tap(name="host", mtu=MTU),
        )
        underlay = Underlay(address=ip_address("198.51.100.9"), mtu=MTU + 70)
        return Node(name="a", underlay=underlay, host_port=host, networks=(network,))

    def out(self, frame: bytes) -> bytes | None:
        client = ip_address(unmapped(parse(frame).flow.src))
        out = self._judge(
            DR_MAC.packed + POD_MAC.packed + frame[12:], f"blue/{self._names[client]}"
        )
        if out is not None:
            self._host_macs = out[6:12] + out[:6]
        return out

    def back(self, frame: bytes) -> bytes | None:
        return self._judge(self._host_macs + frame[12:], "host")

    def _judge(self, frame: bytes, port: str) -> bytes | None:
        outcome = self.engine.process_one(frame, port)
        self.dropped = str(outcome.reason)
        return outcome.frame if outcome.verdict is Verdict.FORWARD else None


Translator = Linux | Ours


@pytest.fixture(scope="module")
def linux(module_netns: Callable[..., list[str]]) -> Iterator[Linux]:
    client, router, outside = module_netns("c", "r", "o")
    if shutil.which("nft") is None:
        pytest.skip("needs nftables")
    for name, device in ((client, "in"), (outside, "out")):
        sysctl(name, net__ipv6__conf__default__disable_ipv6=1)
        ip(router, f"link add {device} type veth peer name {device} netns {name}")
        ip(name, f"link set {device} mtu {MTU} up")
        run(name, "ethtool", "-K", device, "tx", "off", "gro", "off")
        neighbours, own = (WITHIN, ROUTER) if device == "in" else (BEYOND, NAT)
        ip(router, f"link set {device} mtu {MTU} up")
        run(router, "ethtool", "-K", device, "tx", "off", "gro", "off")
        for version, length in ((4, 30), (6, 64)):
            far = neighbours[version]
            nodad = " nodad" if version == 6 else ""
            ip(
                router,
                f"addr add {own[version]}/{length} dev {device}{nodad}",
                f"neigh replace {far} lladdr {mac(name, device)} dev {device} nud permanent",
            )
    for version in (4, 6):
        ip(router, f"route add default via {BEYOND[version]} dev out")
    run(router, "nft", "-f", "-", text=RULES)
    sysctl(
        router,
        net__ipv4__ip_forward=1,
        net__ipv6__conf__all__forwarding=1,
        net__ipv4__conf__all__rp_filter=0,
        net__ipv4__conf__in__rp_filter=0,
        net__ipv4__conf__out__rp_filter=0,
        net__ipv4__icmp_ratelimit=0,
        net__netfilter__nf_conntrack_checksum=0,
        net__netfilter__nf_conntrack_tcp_be_liberal=1,
    )
    with one_processor():
        yield Linux(client, router, outside)


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    made = Ours()
    with made.engine:
        yield made


# ---- replay ------------------------------------------------------------------------------------


class Replay:
    """One capture through one translator."""

    def __init__(self, translator: Translator, clients: set[IP]) -> None:
        self.translator = translator
        self.outside: dict[FlowId, FlowId] = {}  # a flow as it is seen there
        translator.begin(clients)

    def play(self, said: Said) -> bytes | None:
        """What comes out, the chosen port undone."""
        return self.out(said) if said.outbound else self.back(said)

    def out(self, said: Said) -> bytes | None:
        flow = said.flow
        out = self.translator.out(said.frame)
        if out is None:
            return None
        seen = parse(out).flow
        assert unmapped(seen.src) == NAT[said.packet.version].packed, "the source is translated"
        assert (seen.dst, seen.proto, seen.dport) == (flow.dst, flow.proto, flow.dport)
        assert is_right(out) == is_right(said.frame), "damage stays, and only damage"
        self.outside[flow] = seen
        return canonical(moved(out, "src", unmapped(flow.src), flow.sport))

    def back(self, said: Said) -> bytes | None:
        frame = self.answer(said)
        back = frame and self.translator.back(frame)
        return canonical(back) if back else None

    def complaint(
        self, said: Said, source: bytes, kind: tuple[int, int], quoted: int
    ) -> bytes | None:
        """What the client gets of an error about its packet, as `source` outside has seen it."""
        seen = self.outside[said.flow]
        out = moved(one_hop_later(said.frame), "src", unmapped(seen.src), seen.sport)
        back = self.translator.back(error(out, source, kind, quoted))
        return canonical(back) if back else None

    def answer(self, said: Said) -> bytes | None:
        """The packet from outside, addressed to what the outside has seen."""
        seen = self.outside.get(said.flow)
        return moved(said.frame, "dst", unmapped(seen.src), seen.sport) if seen else None


Script = tuple[list[Said], set[IP]]


def scripts() -> Iterator[Script]:
    """Each capture's packets of one family, and its clients."""
    found = (path for pattern in FILES for path in sorted(CAPTURES.glob(pattern)))
    for path in found:
        everything = conversations(path) if path.suffix in (".pcap", ".pcapng") else []
        for version in (4, 6):
            script = [s for s in everything if s.packet.version == version]
            if script:
                yield script, {ip_address(unmapped(s.flow.src)) for s in script}


@pytest.mark.conformance("N1", "N2", "N3", "C1", "C2", "C3", "R2")
def test_captures_are_translated_alike(linux: Linux, ours: Ours, captures: list[Path]) -> None:
    translated = Counter[tuple[int, bool]]()
    for script, clients in scripts():
        replays = [Replay(translator, clients) for translator in (linux, ours)]
        for said in script:
            by_linux, by_us = (replay.play(said) for replay in replays)
            if by_us is None:
                assert by_linux is None, (said, ours.dropped)
                assert not said.outbound and said.flow not in replays[1].outside
                continue
            assert by_us == canonical(one_hop_later(said.frame)), said
            if not is_stray(said, by_linux):
                assert by_us == by_linux, said
            translated[said.packet.flow.proto, said.outbound] += 1
    least = {TCP: 500, UDP: 40, ICMP: 10, ICMP6: 4}
    assert all(translated[proto, way] >= n for proto, n in least.items() for way in (True, False))


def is_stray(said: Said, by_linux: bytes | None) -> bool:
    """Linux takes no connection up in the midst of its end; we translate whatever is allowed."""
    return by_linux is None and said.outbound and is_end(said)


def is_end(said: Said) -> bool:
    """A FIN or RST."""
    flags = said.packet.data[said.packet.l4 + 13] if said.flow.proto == TCP else 0
    return bool(flags & 0x05)


# ---- ICMP errors -------------------------------------------------------------------------------


def error(about: bytes, source: bytes, kind: tuple[int, int], quoted: int) -> bytes:
    """An ICMP error to the sender of a frame, with the first octets of its packet."""
    packet = parse(about)
    assert isinstance(packet, Packet)
    to, proto = unmapped(packet.flow.src), ICMP if packet.version == 4 else ICMP6
    message = bytes(kind) + bytes(6) + bytes(packet.data[14 : 14 + quoted])
    body = build.ip(source, to, proto, build.summed(source, to, proto, message), fragment=0)
    return about[6:12] + about[:6] + about[12:14] + body


KINDS = {4: [(3, 3), (3, 4), (11, 0), (12, 0)], 6: [(1, 4), (2, 0), (3, 0), (4, 1)]}


@pytest.fixture(params=[8, 64, 500], ids=["quote8", "quote64", "quote500"])
def quoted(request: pytest.FixtureRequest) -> int:
    """Octets of the transport header and data that an error quotes."""
    return int(request.param)


def errors_come_alike(linux: Linux, ours: Ours, quoted: int, wanted: Callable[[Said], bool]) -> int:
    """Errors about the first packet of each wanted flow, from its addressee and from a router on
    its way; returns how many were told."""
    told = 0
    for script, clients in scripts():
        firsts = [said for said in first_of_each_flow(script) if wanted(said)]
        replays = [Replay(translator, clients) for translator in (linux, ours)] if firsts else []
        for said in firsts:
            assert all(replay.out(said) for replay in replays)
            for n, kind in enumerate(KINDS[said.packet.version]):
                source = BEYOND[said.packet.version].packed if n % 2 else unmapped(said.flow.dst)
                size = said.packet.l4 - 14 + quoted
                original = error(one_hop_later(said.frame), source, kind, size)
                by_linux, by_us = (replay.complaint(said, source, kind, size) for replay in replays)
                assert by_us == by_linux == canonical(one_hop_later(original)), (said, kind)
                told += 1
    return told


def first_of_each_flow(script: list[Said]) -> list[Said]:
    flows: dict[FlowId, Said] = {}
    for said in script:
        flows.setdefault(said.flow, said)
    return [s for s in flows.values() if s.outbound and not is_end(s)][:10]


def has_extensions(said: Said) -> bool:
    return said.packet.version == 6 and said.packet.l4 > 54


@pytest.mark.conformance("N3", "C3")
def test_errors_find_their_sender(
    linux: Linux, ours: Ours, captures: list[Path], quoted: int
) -> None:
    def wanted(said: Said) -> bool:
        return not has_extensions(said) and (said.flow.proto != TCP or quoted < 18)

    assert errors_come_alike(linux, ours, quoted, wanted) > 90


@pytest.mark.conformance("N3")
def test_quoted_tcp_checksums(linux: Linux, ours: Ours, captures: list[Path]) -> None:
    """RFC 5508 section 4.2: the embedded transport header is reverted, so far as it is there."""

    def wanted(said: Said) -> bool:
        return not has_extensions(said) and said.flow.proto == TCP

    errors_come_alike(linux, ours, 64, wanted)


@pytest.mark.conformance("N3")
def test_quoted_extension_headers(linux: Linux, ours: Ours, captures: list[Path]) -> None:
    errors_come_alike(linux, ours, 8, has_extensions)


@pytest.mark.conformance("N3", "C3")
def test_errors_from_inside_name_the_nat(
    linux: Linux, ours: Ours, captures: list[Path], quoted: int
) -> None:
    """A client complains about an answer: outside both its address and the quoted one are the
    NAT's (RFC 5508 REQ-5)."""
    told = 0
    for script, clients in scripts():
        firsts = {s.flow: s for s in first_of_each_flow(script)}
        answers = {s.flow: s for s in reversed(script) if not s.outbound}
        for flow in answers.keys() & firsts.keys():
            answer = answers[flow]
            if is_end(answer):
                continue
            kind, size = KINDS[answer.packet.version][0], answer.packet.l4 - 14 + quoted
            source = unmapped(flow.src), NAT[answer.packet.version].packed
            for replay in (Replay(translator, clients) for translator in (linux, ours)):
                assert replay.out(firsts[flow])
                sent = must(replay.answer(answer))
                got = must(replay.translator.back(sent))
                out = must(replay.translator.out(error(got, source[0], kind, size)))
                outside = error(one_hop_later(sent), source[1], kind, size)
                assert canonical(out) == canonical(one_hop_later(outside)), answer
            told += 1
    assert told > 10


def must(frame: bytes | None) -> bytes:
    assert frame is not None
    return frame
