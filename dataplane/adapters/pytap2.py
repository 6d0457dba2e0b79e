"""Adopting a `pytap2.TapDevice` as a port.

By its descriptor only: pytap2's own `read` loses the last 14 bytes of a full frame, and a second
`close` of it may close a stranger's descriptor.
"""

import fcntl
import os
from typing import Any

from dataplane.errors import PortError
from dataplane.ports import AdoptedTap

_TUNGETIFF = 0x800454D2
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def from_pytap2(device: Any, *, mtu: int = 1500) -> AdoptedTap:
    """A port on a copy of the device's descriptor; the device stays the caller's to close.

    The device must be a TAP opened without packet information (pytap2's default).
    pytap2 has no virtio-net header, so nothing can be cut for it: TCP super-frames of a kernel
    peer across a veth are dropped (egress_too_big) unless its offloads are off.
    """
    request = bytearray(40)
    fcntl.ioctl(device.fileno(), _TUNGETIFF, request)
    name = bytes(request[:16]).rstrip(b"\0").decode()
    flags = int.from_bytes(request[16:18], "little")
    if not flags & _IFF_TAP or not flags & _IFF_NO_PI:
        raise PortError(f"{name}: not a TAP without packet information; use TapMode.Tap")
    fd = os.dup(device.fileno())
    os.set_blocking(fd, False)
    return AdoptedTap(fd, mtu=mtu, vnet_hdr=bool(flags & _IFF_VNET_HDR))
