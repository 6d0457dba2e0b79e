"""Real traffic between the demo's namespaces, by sockets made in one of them and used from here."""

import hashlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

from dataplane.demo_net import Namespaces

PATIENCE = 8.0  # seconds until a socket call counts as failed
BLOCK = 1 << 20
SO_RCVBUFFORCE = 33
SO_MAX_PACING_RATE = 47
TOTAL_RETRANS = 100  # offset in struct tcp_info (linux/tcp.h)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One TCP transfer; digests are SHA-256 of what was sent and of what arrived."""

    size: int
    seconds: float
    sent: str
    received: str
    peer: str  # the client as the server sees it
    retransmits: int

    @property
    def intact(self) -> bool:
        return self.sent == self.received

    def __str__(self) -> str:
        rate = self.size * 8 / self.seconds / 1e9
        return f"{self.size / 1e6:.0f} MB in {self.seconds:.2f} s, {rate:.2f} Gbit/s"


class Background(ThreadPoolExecutor):
    """One thread for what goes on while something else is done."""

    def __init__(self) -> None:
        super().__init__(1)


def server(site: Namespaces, place: str, port: int, address: str = "") -> socket.socket:
    """A TCP listener in a namespace, of the family of the address."""
    family = _family(address)
    made = site.inside(place, lambda: socket.create_server(("", port), family=family))
    made.settimeout(PATIENCE)
    return made


def connect(site: Namespaces, place: str, to: tuple[str, int], patience: float) -> socket.socket:
    """A TCP connection from a namespace. Raises OSError."""
    made = site.inside(place, lambda: socket.socket(_family(to[0])))
    made.settimeout(patience)
    try:
        made.connect(to)
    except OSError:
        made.close()
        raise
    return made


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def transfer(
    site: Namespaces,
    source: str,
    target: str,
    to: tuple[str, int],
    more: Callable[[int], bool],
    *,
    rate: int | None = None,
) -> Transfer:
    """Sends blocks from one namespace to another while `more(number of blocks sent)`.

    `rate` in bytes a second paces it.
    """
    with closing(server(site, target, to[1], to[0])) as listener, Background() as receiver:
        received = receiver.submit(_receive, listener)
        begin = time.monotonic()
        with closing(connect(site, source, to, PATIENCE)) as sender:
            if rate is not None:
                sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
            digest = _send(sender, more)
            count, found, peer = received.result(PATIENCE)
            seconds = time.monotonic() - begin
            info = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    retransmits = struct.unpack_from("=I", info, TOTAL_RETRANS)[0]
    return Transfer(count, seconds, digest, found, peer, retransmits)


def _send(sender: socket.socket, more: Callable[[int], bool]) -> str:
    """Random blocks, each numbered, so that none can stand for another."""
    digest, count = hashlib.sha256(), 0
    block = bytearray(os.urandom(BLOCK))
    while more(count):
        struct.pack_into("!Q", block, 0, count)
        digest.update(block)
        sender.sendall(block)
        count += 1
    sender.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def _receive(listener: socket.socket) -> tuple[int, str, str]:
    connection, peer = listener.accept()
    digest, count = hashlib.sha256(), 0
    buffer = bytearray(BLOCK)
    with connection:
        connection.settimeout(PATIENCE)
        while n := connection.recv_into(buffer):
            digest.update(memoryview(buffer)[:n])
            count += n
    return count, digest.hexdigest(), peer[0]


# ---- datagrams ---------------------------------------------------------------------------------


class Stream:
    """Numbered datagrams from one namespace to another, one each `interval` seconds."""

    def __init__(self, site: Namespaces, source: str, target: str, to: tuple[str, int]) -> None:
        self._to = to
        self._in = datagram_socket(site, target, to[1])
        self._out = site.inside(source, lambda: socket.socket(type=socket.SOCK_DGRAM))
        self.sent = 0
        self.seen: set[int] = set()
        self._ended = threading.Event()

    def send(self, until: Callable[[int], bool], interval: float, size: int = 200) -> None:
        """`until` is asked with the number of datagrams sent so far."""
        next_at = time.monotonic()
        while not until(self.sent):
            self._out.sendto(struct.pack("!Q", self.sent).ljust(size, b"."), self._to)
            self.sent += 1
            next_at += interval
            time.sleep(max(0.0, next_at - time.monotonic()))

    def collect(self) -> None:
        """Until the sender has ended and nothing more comes."""
        while True:
            try:
                self.seen.add(struct.unpack_from("!Q", self._in.recv(2048))[0])
            except TimeoutError:
                if self._ended.is_set():
                    return

    @property
    def lost(self) -> int:
        return self.sent - len(self.seen)

    @contextmanager
    def running(self, interval: float) -> Iterator["Stream"]:
        """Sends and collects on threads while the block runs."""
        stop = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            collecting = pool.submit(self.collect)
            sending = pool.submit(self.send, lambda _: stop.is_set(), interval)
            try:
                yield self
            finally:
                stop.set()
                sending.result()
                self._ended.set()
                collecting.result()
                self.close()

    def close(self) -> None:
        self._in.close()
        self._out.close()


def datagrams(site: Namespaces, source: str, target: str, to: tuple[str, int], count: int) -> int:
    """Sends numbered datagrams; returns how many did not arrive."""
    stream = Stream(site, source, target, to)
    with stream.running(0.0005):
        deadline = time.monotonic() + PATIENCE
        while stream.sent < count and time.monotonic() < deadline:
            time.sleep(0.01)
    return stream.lost


def datagram_socket(site: Namespaces, place: str, port: int) -> socket.socket:
    made = site.inside(place, lambda: socket.socket(type=socket.SOCK_DGRAM))
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.bind(("", port))
    made.settimeout(0.3)
    return made


# ---- looking -----------------------------------------------------------------------------------


def ping(site: Namespaces, place: str, address: str, *options: str) -> tuple[int, str]:
    """Exit code and text of the system's ping."""
    words = ["ping", "-n", "-W", "2", *options, address]
    done = subprocess.run(
        site.command(place, *words), capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stdout + done.stderr


class SynWatch:
    """Sees the TCP SYNs that pass a device, and their MSS option."""

    def __init__(self, site: Namespaces, place: str, device: str) -> None:
        self._socket = site.inside(place, lambda: _packet_socket(device))

    def mss(self, dport: int) -> int | None:
        """Of the first SYN to the port; None if none came in time or it had no MSS option."""
        deadline = time.monotonic() + 2
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(65535)
            except TimeoutError:
                break
            found = _syn_mss(frame, dport)
            if found is not None:
                return found
        return None

    def close(self) -> None:
        self._socket.close()


def _packet_socket(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.bind((device, 0))
    return made


def _syn_mss(frame: bytes, dport: int) -> int | None:
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    tcp = frame[14 + (frame[14] & 15) * 4 :]
    if struct.unpack_from("!H", tcp, 2)[0] != dport or tcp[13] & 0x12 != 0x02:
        return None
    options = tcp[20 : (tcp[12] >> 4) * 4]
    while options and options[0]:
        if options[0] == 1:
            options = options[1:]
        elif options[0] == 2:
            return int(struct.unpack_from("!H", options, 2)[0])
        else:
            options = options[max(options[1], 2) :]
    return None
