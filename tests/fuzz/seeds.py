"""Writes what the fuzzers start from: `python -m tests.fuzz.seeds FOLDER`.

Frames and conversations of the policy in policy.h, so that the first mutations already stand deep
in the engine. Into FOLDER/corpus-parse, -engine and -offload, one file each, named by content.
"""

import hashlib
import re
import sys
from ipaddress import ip_address
from pathlib import Path
from struct import pack

from dataplane.packet import build, parse, vxlan

UNDERLAY, HOST, WEB, DB = range(4)  # ports
ROUTER, PEER_ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:02"
OUR_MAC, PEER_MAC = "02:00:00:00:00:10", "02:00:00:00:00:11"
HOST_MAC, HOST_PEER = "02:00:00:00:00:20", "02:00:00:00:00:21"
WEB_MAC, DB_MAC = "02:00:00:00:01:02", "02:00:00:00:01:03"
MEND, UNKNOWN, CHECKED = 1 << 2, 2 << 3, 4 << 3
TRACE, COMMIT, EXPIRE = 1 << 6, 2 << 6, 3 << 6

FRAMES = {  # by the port they come in at: source and destination MAC, packets
    WEB: (
        WEB_MAC,
        ROUTER,
        "arp who-has 10.1.0.1 tell 10.1.1.2",
        "nd who-has fd00::1 tell fd00:0:0:1::2",
        "nd who-has fd00:0:0:1::3 tell ::",
        "nd reply fd00:0:0:1::2 is-at 02:00:00:00:01:02 tell ff02::1 override",
        "icmp 10.1.1.2 > 10.1.0.1 echo id 1",
        "icmp6 fd00:0:0:1::2 > fd00::1 echo id 1",
        "icmp 10.1.1.2 > 10.1.2.2 echo id 1",
        "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn mss 1460",
        "tcp 10.1.1.2:40000 > 10.1.3.2:80 syn mss 1460",
        "tcp 10.1.1.2:40000 > 10.1.2.2:23 syn",
        "udp 10.1.1.2:40000 > 10.1.2.2:53",
        "udp 10.1.1.2:40000 > 10.1.2.2:99 ttl 1",
        "udp 10.1.1.2:40000 > 10.1.2.2:99 len 1500 df",
        "udp 10.1.1.2:40000 > 10.1.1.3:99",
        "tcp 10.1.1.2:40000 > 10.1.9.9:80 syn",
        "udp 10.1.1.2:40000 > 10.1.9.9:99",
        "tcp 10.1.1.2:40000 > 10.1.1.3:80 syn",
        "udp 10.1.1.2:40000 > 203.0.113.9:53000",
        "tcp 10.1.1.2:40000 > 203.0.113.9:443 syn mss 1460",
        "icmp 10.1.1.2 > 203.0.113.9 echo id 9",
        "udp 10.1.1.2:40000 > 10.1.2.2:99 len 56 mf",
        "ip 17 10.1.1.2 > 10.1.2.2 len 64 frag 64",
        "udp 10.1.1.2:40000 > 10.1.2.2:99 len 3000",
        "udp [fd00:0:0:1::2]:40000 > [fd00:0:0:2::2]:99 len 56 frag 0 mf ipid 1",
        "ip 17 fd00:0:0:1::2 > fd00:0:0:2::2 len 64 frag 64 ipid 1",
        "udp [fd00:0:0:1::2]:40000 > [fd00:0:0:2::2]:99",
        "tcp [fd00:0:0:1::2]:40000 > [fd00:0:0:2::2]:80 syn mss 1440",
    ),
    UNDERLAY: (
        PEER_ROUTER,
        ROUTER,
        "icmp 10.1.2.2 > 10.1.1.2 reply id 1",
        "tcp 10.1.2.2:80 > 10.1.1.2:40000 syn ack mss 1460",
        "tcp 10.1.2.2:50000 > 10.1.1.2:80 syn mss 1460",
        "tcp 10.1.2.2:80 > 10.1.1.2:40000 rst",
        "tcp 10.1.2.2:82 > 10.1.0.1:61000 syn ack",
        "udp 10.1.2.2:50000 > 10.1.9.9:99",
        "udp 10.1.2.2:50000 > 10.1.1.2:99 tos 3",
        "icmp 10.1.2.2 > 10.1.1.2 unreachable len 28",
        "udp [fd00:0:0:2::2]:50000 > [fd00:0:0:1::2]:99",
    ),
    HOST: (
        HOST_PEER,
        HOST_MAC,
        "arp who-has 198.51.100.1 tell 198.51.100.2",
        "icmp 198.51.100.2 > 198.51.100.1 echo id 1",
        "udp 203.0.113.9:53000 > 198.51.100.1:20003",
        "tcp 203.0.113.9:443 > 198.51.100.1:20000 syn ack",
        "tcp 203.0.113.9:443 > 198.51.100.1:30080 syn",
    ),
}
PIECE = re.compile(r"\b(mf|frag \d+)\b").search
UNDERLAYS = (("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1"))


def frames(port: int) -> list[bytes]:
    """The frames of a port as they come in; those of the underlay in VXLAN, in both families."""
    smac, dmac, *packets = FRAMES[port]
    inner = [build(parse(packet), smac, dmac) for packet in packets]
    return [wrapped(f, *ends) for f in inner for ends in UNDERLAYS] if port == UNDERLAY else inner


def wrapped(inner: bytes, src: str, dst: str) -> bytes:
    ends = {"src": ip_address(src), "dst": ip_address(dst)}
    return vxlan(inner, **ends, vni=4096, smac=PEER_MAC, dmac=OUR_MAC)


def event(port: int, frame: bytes, flags: int = 0, time: int = 0) -> bytes:
    return pack("<BBH", port | MEND | flags, time, len(frame)) + frame


def conversations() -> list[bytes]:
    """Events: each frame alone and traced, then rows in which flows are made, met and judged."""
    events = {port: [event(port, f) for f in frames(port)] for port in FRAMES}
    alone = [event(port, f, TRACE) for port in FRAMES for f in frames(port)]
    known = [event(UNDERLAY, f, UNKNOWN | CHECKED) for f in frames(UNDERLAY)]
    there_and_back = [
        out + back for out in events[WEB] for back in (*events[UNDERLAY], *events[HOST])
    ]
    pieces = [e for e, words in zip(events[WEB], FRAMES[WEB][2:], strict=True) if PIECE(words)]
    judged = [e + event(WEB, f, op, 1) for e, f in zip(events[WEB], frames(WEB), strict=True)
              for op in (COMMIT, EXPIRE)]  # fmt: skip
    both = [a + b for a in pieces for b in pieces]
    return [*alone, *known, *there_and_back, *judged, *both]


def streams() -> list[bytes]:
    """Packets that follow each other: TCP and UDP, both families, with and without VXLAN."""
    rows = []
    for ends, df in (("10.1.1.2:4000 > 10.1.2.2:80", "df"), ("[fd00::2]:4000 > [fd00::3]:80", "")):
        for words in (f"udp {ends} len 80 {df}", f"tcp {ends} ack len 90 {df}"):
            packet = build(parse(words), WEB_MAC, ROUTER)
            rows.append([_advanced(packet, i) for i in range(4)])
    fronts = ((b"\0", b""), (b"\1", b"\x08\0\0\0\0\x10\0\0"))
    return [
        mode + b"".join(pack("<BH", 0, len(front + p)) + front + p for p in row)
        for mode, front in fronts
        for row in rows
    ]


def _advanced(packet: bytes, i: int) -> bytes:
    """The i-th packet behind one of TCP, its sums as they must be then."""
    at = 34 if packet[12:14] == b"\x08\0" else 54
    tcp = packet[at - 11 if at == 34 else 20] == 6
    if not tcp or i == 0:
        return packet
    step = i * (len(packet) - at - (packet[at + 12] >> 4) * 4)
    seq = (int.from_bytes(packet[at + 4 : at + 8]) + step) & 0xFFFFFFFF
    old = int.from_bytes(packet[at + 4 : at + 6]) + int.from_bytes(packet[at + 6 : at + 8])
    new = (seq >> 16) + (seq & 0xFFFF)
    total = (~int.from_bytes(packet[at + 16 : at + 18]) & 0xFFFF) + new - old
    total = total % 0xFFFF
    check = (~total & 0xFFFF).to_bytes(2)
    return packet[: at + 4] + seq.to_bytes(4) + packet[at + 8 : at + 16] + check + packet[at + 18 :]


def write(folder: Path, seeds: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def main(folder: Path) -> None:
    inner = [b"\0" + f for port in (WEB, HOST) for f in frames(port)]
    outer = [mode + f for f in frames(UNDERLAY) for mode in (b"\1", b"\3")]
    write(folder / "corpus-parse", inner + outer)
    write(folder / "corpus-engine", conversations())
    write(folder / "corpus-offload", streams())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
