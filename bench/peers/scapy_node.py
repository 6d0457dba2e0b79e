"""A VXLAN forwarder of scapy's objects: TAP to UDP and back. An opponent of `make bench-peers`.

python -m bench.peers.scapy_node POD_NETNS TAP LOCAL REMOTE VNI, in the host's namespace
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys

from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from dataplane.netns import inside

PORT = 4789
PR_SET_PDEATHSIG = 1
TUNSETIFF, TAP_WITHOUT_HEADERS = 0x400454CA, 0x1002


def opened(name: str) -> int:
    """A TAP's descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADERS))
    return fd


def forward(tap: int, underlay: socket.socket, remote: str, vni: int) -> None:
    while True:
        ready, _, _ = select.select([tap, underlay.fileno()], [], [])
        if tap in ready:
            frame = Ether(os.read(tap, 65536))
            underlay.sendto(bytes(VXLAN(vni=vni, flags="Instance") / frame), (remote, PORT))
        if underlay.fileno() in ready:
            packet = VXLAN(underlay.recv(65536))
            if packet.vni == vni:
                os.write(tap, bytes(packet.payload))


def main(netns: str, name: str, local: str, remote: str, vni: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    tap = inside(netns, lambda: opened(name))
    underlay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    underlay.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    underlay.bind((local, PORT))
    print("ready", flush=True)
    forward(tap, underlay, remote, int(vni))


if __name__ == "__main__":
    main(*sys.argv[1:])
