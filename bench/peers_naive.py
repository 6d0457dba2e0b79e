"""A forwarder of one packet a system call: what bench-peers holds the others against.

peers_naive.py naive|scapy NETNS OWN OTHER: between the TAP eth0 of a namespace and the VTEP OTHER.
"""

import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Callable

from dataplane.netns import inside

HEADER = struct.pack("!II", 0x08 << 24, 4096 << 8)


def open_tap() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))  # TUNSETIFF, no offloads
    return fd


def plain() -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    return lambda frame: HEADER + frame, lambda packet: packet[8:]


def by_scapy() -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """Every packet is taken apart and put together."""
    from scapy.layers.l2 import Ether
    from scapy.layers.vxlan import VXLAN

    def pack(frame: bytes) -> bytes:
        return bytes(VXLAN(vni=4096, flags="Instance") / Ether(frame))

    return pack, lambda packet: bytes(VXLAN(packet).payload)


def main() -> None:
    how, netns, own, other = sys.argv[1:]
    tap = inside(netns, open_tap)
    underlay = socket.socket(type=socket.SOCK_DGRAM)
    underlay.bind((own, 4789))
    underlay.setblocking(False)
    pack, unpack = by_scapy() if how == "scapy" else plain()
    while True:
        for ready in select.select([tap, underlay], [], [])[0]:
            try:
                if ready == tap:
                    underlay.sendto(pack(os.read(tap, 2048)), (other, 4789))
                else:
                    os.write(tap, unpack(underlay.recv(2048)))
            except OSError:
                continue


if __name__ == "__main__":
    main()
