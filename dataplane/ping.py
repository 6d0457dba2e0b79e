"""Echo requests from inside a network namespace, one at a time: ICMP (RFC 792), ICMPv6 (RFC 4443).

Never fragmented on their way, so that they find out sizes, too. Needs CAP_NET_RAW.
"""

import errno
import os
import socket
import struct
import time
from typing import NamedTuple

from dataplane.address import IP
from dataplane.errors import PortError
from dataplane.netns import inside
from dataplane.packet_build import checksum

HEADER = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence
ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply
ERRORS = {4: (3, 11), 6: (1, 2, 3)}  # unreachable and too big, time exceeded
TOO_BIG = {4: (3, 4), 6: (2, 0)}
_PROBE = 3  # IP_PMTUDISC_PROBE: never fragment, whatever is known of the path
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 10, 23, 62


class Echo(NamedTuple):
    """What became of one request: `answer` is reply, too_big, unreachable, refused or none."""

    answer: str
    milliseconds: float | None = None  # until the answer
    mtu: int | None = None  # too_big: what the way carries, if that was told
    by: str | None = None  # who answered


def echo(
    source: IP, to: IP, *, netns: str | None, sequence: int, size: int, patience: float = 1.0
) -> Echo:
    """Sends a request with `size` bytes of data and waits `patience` seconds for its answer.

    Raises PortError where no socket can be opened there.
    """
    with inside(netns, lambda: _socket(source)) as sock:
        own = struct.unpack("!H", os.urandom(2))[0]
        begin = time.monotonic()
        try:
            sock.sendto(_request(source.version, own, sequence, size), (str(to), 0))
        except OSError as error:
            return Echo("too_big" if error.errno == errno.EMSGSIZE else "refused")
        while (left := begin + patience - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                octets, sender = sock.recvfrom(1 << 16)
            except TimeoutError:
                break
            except OSError as error:
                return Echo("too_big" if error.errno == errno.EMSGSIZE else "unreachable")
            took = (time.monotonic() - begin) * 1e3
            if answer := _answer(source.version, octets, own, sequence, took, sender[0]):
                return answer
        return Echo("none")


def _socket(source: IP) -> socket.socket:
    v6 = source.version == 6
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    try:
        made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            if v6:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE)
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
            made.bind((str(source), 0))
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise PortError(f"cannot ping from {source}: {error.strerror}") from error
    return made


def _request(version: int, own: int, sequence: int, size: int) -> bytes:
    """The kernel sums what is ICMPv6."""
    kind, data = ECHO[version][0], bytes(i & 0xFF for i in range(size))
    summed = checksum(HEADER.pack(kind, 0, 0, own, sequence) + data) if version == 4 else 0
    return HEADER.pack(kind, 0, summed, own, sequence) + data


def _answer(
    version: int, octets: bytes, own: int, sequence: int, took: float, sender: str
) -> Echo | None:
    """None where it answers something else."""
    if version == 4:
        octets = octets[(octets[0] & 15) * 4 :] if octets else b""
    if len(octets) < HEADER.size:
        return None
    kind, code, _, number, last = HEADER.unpack_from(octets)
    if kind == ECHO[version][1] and (number, last) == (own, sequence):
        return Echo("reply", took, by=sender)
    if kind in ERRORS[version] and _quoted(version, octets[HEADER.size :]) == (own, sequence):
        if (kind, code) == TOO_BIG[version]:
            return Echo("too_big", took, last or None, sender)
        return Echo("unreachable", took, by=sender)
    return None


def _quoted(version: int, packet: bytes) -> tuple[int, int] | None:
    """Id and sequence of the echo request that an error quotes."""
    begin = 40 if version == 6 else (packet[0] & 15) * 4 if packet else 0
    if len(packet) < begin + HEADER.size:
        return None
    kind, _, _, own, sequence = HEADER.unpack_from(packet, begin)
    return (own, sequence) if kind == ECHO[version][0] else None
