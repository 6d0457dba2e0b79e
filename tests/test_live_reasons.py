"""Every drop reason that a running node can meet, met on one: `monitor`, `capture`, `stats drops`
and `trace` name the same reason, layer and rule. The frames are those of test_reasons.py."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dataplane.address import Mac
from dataplane.api.client import Client
from dataplane.cli import cli
from dataplane.document import dump
from dataplane.errors import DataplaneError
from dataplane.model import Document, Node, OutboundNat, Timers
from dataplane.netns import inside
from dataplane.pcap import Packet, read
from dataplane.reasons import Reason
from tests.live_node import PATIENCE, ROOT, Process
from tests.reference import build as octets
from tests.test_reasons import (
    CASES,
    DR,
    ETH,
    HOST,
    INNER,
    OUR_HOST,
    PEER,
    TCP,
    UDP,
    WEB,
    Case,
    edited,
    node,
    vxlan,
    web,
)

MAX_FLOWS, MAX_BINDINGS = 64, 8
OUTER = 42  # bytes of Ethernet, IPv4 and UDP header

# What a running node cannot meet, and why.
NEVER = {
    "bad_descriptor": "the loop makes every descriptor itself",
    "no_headroom": "the loop leaves headroom in front of every frame",
    "outer_not_vxlan": "kernel and XDP program hand over nothing else",
    "outer_fragment": "the kernel puts outer fragments together, the XDP program leaves them to it",
    "no_host_port": "documents without a host port may not ask for what needs one",
}
# What the kernel drops before a socket sees it, and AF_XDP does not.
BY_XDP = {"outer_malformed", "outer_checksum", "udp6_zero_checksum"}
# What the kernel cuts itself in front of a TAP without offloads.
BY_OFFLOAD = {"bad_gso"}
# What a trace cannot tell, and why.
NO_TRACE = {
    "port_not_configured": "the port has no name any more",
    "bad_gso": "a trace takes bytes, and the descriptor is what is wrong",
    "fragment_timeout": "a trace is of one moment: the fragment waits",
    "egress_down": "a trace ends where the device begins",
    "egress_busy": "a trace ends where the device begins",
    "egress_too_big": "a trace ends where the device begins",
}

RULES = {
    "acl_deny": "blue/web/no-telnet",
    "acl_reject": "blue/web/no-ssh",
    "lb_no_backend": "blue/idle",
}


# ---- a node, and who sends to it ---------------------------------------------------------------


def ip(netns: str, words: str) -> None:
    subprocess.run(["ip", "-n", netns, *words.split()], check=True)


def packet_socket(netns: str, device: str) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((device, 0))
        return made

    return inside(netns, opened)


@pytest.fixture(scope="module")
def site(module_netns: Callable[..., list[str]]) -> tuple[str, str]:
    """A namespace for the node, and one with the addresses of all other VTEPs, at one wire."""
    near, far = module_netns("near", "far")
    for name in (near, far):  # no discovery by the kernel on TAPs: it would be dropped, too
        words = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
        subprocess.run(["ip", "netns", "exec", name, *words], check=True)
    ip(near, f"link add under type veth peer name under netns {far}")
    for name, addresses in ((near, (1,)), (far, (2, 3))):
        words = ["sysctl", "-qw", "net.ipv6.conf.under.disable_ipv6=0"]
        subprocess.run(["ip", "netns", "exec", name, *words], check=True)
        ip(name, "link set under up")
        for n in addresses:
            ip(name, f"addr add 192.0.2.{n}/24 dev under")
            ip(name, f"addr add 2001:db8::{n}/64 dev under nodad")
    return near, far


class Watched:
    """A node, with `monitor` and `capture` of its drops as an operator has them."""

    def __init__(self, site: tuple[str, str], place: Path, *words: str) -> None:
        self.near, self.far = site
        self.running = Process(self.near, place, *words)
        self.running.file.write_text(policy(None))
        self.running.start()
        self.client = Client(self.running.socket)
        for device in ("web", "db"):
            ip(self.near, f"link set {device} mtu 9000")  # as an endpoint might: too much
        told = subprocess.check_output(["ip", "-n", self.near, "-json", "link", "show", "under"])
        self.mac = Mac(json.loads(told)[0]["address"])
        self.devices = {
            "blue/web": packet_socket(self.near, "web"),
            "blue/db": packet_socket(self.near, "db"),
            "host": packet_socket(self.near, "h"),
            "underlay": packet_socket(self.far, "under"),
        }
        self.lines, self.file = place / "monitor", place / "drops.pcapng"
        self._looking = [
            self._look("monitor", "drop", "-o", "json"),
            self._look("capture", "--point", "drop", "-w", str(self.file)),
        ]
        self.wait(lambda: self.send(UDP[:12] + b"\x88\xcc", "blue/web") and self._sees(), 0.1)

    def _look(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dataplane", *words, "--socket", str(self.running.socket)]
        with self.lines.open("ab") as out:
            return subprocess.Popen(command, stdout=out, cwd=ROOT)

    def _sees(self) -> bool:
        return bool(self.events()) and bool(self.packets())

    def wait(self, condition: Callable[[], Any], turn: float = 0.01) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline
            time.sleep(turn)
        return found

    def send(self, frame: bytes, port: str) -> bytes:
        if port == "underlay":
            frame = self.mac.packed + frame[6:]
        self.devices[port].send(frame)
        return frame

    def take_in(self, frames: tuple[bytes, ...], port: str) -> None:
        """Sends them, and waits until they have come: others come by another device."""

        def came() -> int:
            return int(self.client.stats()["ports"][port]["rx_frames"])

        if not frames:
            return
        before = came()
        for frame in frames:
            self.send(frame, port)
        self.wait(lambda: came() >= before + len(frames))

    def events(self) -> list[dict[str, Any]]:
        """Of a flood some are lost, as another line says then."""
        whole = self.lines.read_bytes().rpartition(b"\n")[0]
        return [e for e in map(json.loads, whole.splitlines()) if e["kind"] == "drop"]

    def packets(self) -> list[Packet]:
        found: list[Packet] = []
        with contextlib.suppress(DataplaneError):  # the last one is being written
            for packet in read(self.file):
                found.append(packet)
        return found

    def counted(self, reason: str) -> int:
        """As `stats drops` tells it, beside the layer."""
        words = ["stats", "drops", "--socket", str(self.running.socket)]
        told = CliRunner().invoke(cli, words).output.splitlines()
        (row,) = (line.split() for line in told if line.split()[:1] == [reason])
        assert row[1] == Reason[reason.upper()].layer
        return int(row[2].replace(",", ""))

    def close(self) -> None:
        for process in self._looking:
            process.terminate()
            process.wait(PATIENCE)
        for device in self.devices.values():
            device.close()
        self.client.close()
        self.running.end()


def policy(wanted: Node | None) -> str:
    plain = wanted or node()
    return dump(Document(node=replace(plain, timers=Timers(fragment=1))))


# ---- provoking ---------------------------------------------------------------------------------


def fill_flows(seen: Watched) -> None:
    """With flows whose both sides were seen: those never give way."""
    for port in range(3000, 3000 + MAX_FLOWS):  # one by one: who has no answer yet gives way
        answer = web(f"udp 10.2.0.9:2000 > 10.0.1.2:{port}", smac=PEER)
        seen.take_in((web(f"udp 10.0.1.2:{port} > 10.2.0.9:2000"),), "blue/web")
        seen.take_in((vxlan(answer),), "underlay")
    seen.wait(lambda: seen.client.stats()["totals"]["flows"] == MAX_FLOWS)


def super_frame(seen: Watched) -> None:
    """UDP to be cut whose own length is of less, in a virtio-net header as a guest writes it."""
    frame = edited(web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 400"), ETH + 24, b"\0\x20")
    with packet_socket(seen.near, "web") as sock:
        sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        head = b"\x01\x05" + b"".join(n.to_bytes(2, sys.byteorder) for n in (42, 100, 34, 6))
        sock.send(head + frame)


def quoted() -> bytes:
    """An ICMP error, too large, about the last packet of a flow: errors are never cut."""
    ends = bytes([10, 0, 1, 2]), bytes([10, 2, 0, 9])
    about = web("udp 10.2.0.9:2000 > 10.0.1.2:1000 len 1500")[ETH:]
    message = octets.summed(*ends, 1, b"\x03\x03\0\0\0\0\0\0" + about)
    packet = octets.ip(ends[0], ends[1], 1, message, fragment=0)
    return octets.ethernet(DR.packed, WEB.packed, 0x0800, packet)


def remove_under_load(seen: Watched) -> None:
    """Frames of db come all the while it is removed; again, if none came in that moment."""
    before = told = seen.client.stats()["reasons"].get("port_not_configured", 0)
    for _ in range(20):
        seen.client.apply(policy(None), prune=True)
        flooding = packet_socket(seen.near, "db")
        over = threading.Event()
        sender = threading.Thread(target=flood, args=(flooding, over))
        sender.start()
        seen.client.delete("blue", "endpoints", "db")
        over.set()
        sender.join()
        flooding.close()
        told = seen.client.stats()["reasons"].get("port_not_configured", 0)
        if told > before:
            break
    assert told > before


def flood(device: socket.socket, over: threading.Event) -> None:
    with contextlib.suppress(OSError):  # until the device is gone
        while not over.is_set():
            device.send(UDP)


def too_many_fragments(seen: Watched) -> None:
    for n in range(300):
        seen.send(web(f"ip 17 10.0.1.2 > 10.2.0.9 len 16 ipid {n} frag 32 mf"), "blue/web")


def narrow_link(seen: Watched) -> None:
    ip(seen.near, "link set under mtu 1300")
    seen.send(web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 1300"), "blue/web")


def slow_link(seen: Watched) -> None:
    """Packets one by one: of those that leave as one super-frame the kernel tells of no loss."""
    words = "qdisc add dev under root tbf rate 8kbit burst 2000 limit 3000"
    subprocess.run(["tc", "-n", seen.near, *words.split()], check=True)
    for _ in range(20):
        seen.take_in((web("udp 10.0.1.2:1000 > 10.2.0.9:2000 len 1200"),), "blue/web")


def link_down(seen: Watched) -> None:
    ip(seen.near, "link set db down")
    seen.send(web("udp 10.0.1.2:1 > 10.0.1.3:2"), "blue/web")


STEPS: dict[str, Callable[[Watched], object]] = {
    "bad_gso": super_frame,
    "fragment_room": too_many_fragments,
    "flow_table_full": fill_flows,
    "port_not_configured": remove_under_load,
    "egress_too_big": narrow_link,
    "egress_busy": slow_link,
    "egress_down": link_down,
}
LIVE = {
    **{name: case for name, case in CASES.items() if name not in STEPS},
    "short_ethernet": Case(vxlan(UDP[:13]), "underlay"),  # no TAP takes it
    "fragment_timeout": Case(web("ip 17 10.0.1.2 > 10.2.0.9 len 16 ipid 900 frag 32 mf")),
    "fragment_room": Case(web("ip 17 10.0.1.2 > 10.2.0.9 len 16 ipid 999 frag 32 mf")),
    "needs_fragmentation": Case(quoted(), before=(UDP,), answers=(vxlan(INNER),)),
    "nat_table_full": Case(
        web("udp 10.0.1.2:1001 > 203.0.113.9:2000 len 20"),
        before=tuple(web(f"udp 10.0.1.2:{n} > 203.0.113.9:7") for n in range(2000, 2016)),
        node=node(OutboundNat()),
    ),
    "nat_no_binding": Case(
        web("udp 203.0.113.9:2000 > 169.254.1.1:6000", dmac=OUR_HOST, smac=HOST), "host"
    ),
    "flow_table_full": Case(TCP),
}
FIRST = ("flow_quota",)
LAST = (  # they leave links and tables as nobody wants them
    "fragment_room",
    "nat_table_full",
    "port_not_configured",
    "egress_down",
    "flow_table_full",
    "egress_too_big",
    "egress_busy",
)


def provoke(seen: Watched, reason: str) -> bytes | None:
    """The frame that must be dropped, if it is one that is known."""
    case = LIVE.get(reason)
    seen.client.apply(policy(case.node if case else None), prune=True)
    if reason in STEPS:
        STEPS[reason](seen)
    if case is None:
        return None
    seen.take_in(case.before, str(case.port))
    seen.take_in(case.answers, "underlay")
    return seen.send(case.frame, str(case.port))


# ---- who says what -----------------------------------------------------------------------------


def captured(seen: Watched, comment: str, sent: bytes | None) -> Packet | None:
    """The frame that was sent, told why it is not carried; outer headers may be made up."""
    for packet in reversed(seen.packets()):
        if packet.comment == comment and sent in (None, packet.data):
            return packet
        if packet.comment == comment and sent and packet.data[OUTER:] == sent[OUTER:]:
            return packet
    return None


def agree(seen: Watched, name: str) -> None:
    """All four name the same."""
    reason = Reason[name.upper()]
    since, before = len(seen.events()), seen.client.stats()["reasons"].get(name, 0)
    sent = provoke(seen, name)
    event = seen.wait(lambda: next((e for e in seen.events()[since:] if e["reason"] == name), None))
    assert event["layer"] == reason.layer
    words = [f"drop layer={reason.layer} reason={name}"]
    for key, value in (
        ("rule", event["rule"]),
        ("in", event["in_port"]),
        ("out", event["out_port"]),
    ):
        words += [f"{key}={value}"] if value is not None else []
    packet = seen.wait(lambda: captured(seen, " ".join(words), sent))
    assert seen.counted(name) > before
    if name in RULES:
        assert event["rule"] == RULES[name]
    if name in NO_TRACE:
        return
    walk = seen.client.trace_frame(packet.data.hex(), event["in_port"])
    assert (walk["verdict"], walk["reason"], walk["rule"]) == ("drop", name, event["rule"])
    assert f"layer {reason.layer}" in walk["text"]


def all_agree(seen: Watched, names: list[str]) -> None:
    for name in names:
        try:
            agree(seen, name)
        except Exception as error:
            error.add_note(f"provoking {name}, after {[e['reason'] for e in seen.events()[-5:]]}")
            raise


@contextlib.contextmanager
def watched(site: tuple[str, str], place: Path, *words: str) -> Iterator[Watched]:
    seen = Watched(site, place, *words)
    try:
        yield seen
    finally:
        seen.close()


def ordered(names: set[str]) -> list[str]:
    middle = sorted(names - {*FIRST, *LAST})
    return [*FIRST, *middle, *LAST]


def test_all_name_the_same_reason_layer_and_rule(site: tuple[str, str], tmp_path: Path) -> None:
    limits = ["--max-flows", str(MAX_FLOWS), "--max-bindings", str(MAX_BINDINGS)]
    met = {str(r) for r in Reason if r} - NEVER.keys() - BY_XDP - BY_OFFLOAD
    with watched(site, tmp_path, *limits) as seen:
        all_agree(seen, ordered(met))


def test_and_of_what_only_xdp_lets_in(site: tuple[str, str], tmp_path: Path) -> None:
    with watched(site, tmp_path, "--xdp", "under") as seen:
        all_agree(seen, sorted(BY_XDP))


def test_and_of_what_only_offloads_let_in(site: tuple[str, str], tmp_path: Path) -> None:
    with watched(site, tmp_path, "--offload") as seen:
        all_agree(seen, sorted(BY_OFFLOAD))


def test_every_reason_is_met_or_explained() -> None:
    known = {str(r) for r in Reason if r}
    assert known == {*LIVE, *STEPS} | NEVER.keys()
    assert NO_TRACE.keys() | BY_XDP | BY_OFFLOAD | {*FIRST, *LAST} <= known - NEVER.keys()
