"""AF_XDP beside an underlay's sockets: whole frames past the host's stack, on one interface."""

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from dataplane.address import IP, ip16, ip_from16
from dataplane.errors import PortError
from dataplane.netns import inside
from dataplane.next_hops import NextHops, index_of

_SWEEP = 5.0  # seconds between looks at the kernel's tables, where no change is told before
_REST = 0.05  # at least, where many are
_PATIENCE = 2.0  # the kernel takes a while to free the queues of a process that has ended
_FORGET = 300.0  # ways that nobody asked for so long
_WAYS = 4096  # io_ways.c
_ICMP_FILTER, _RAW, _ICMP_UNREACHABLE, _ICMP6_TOO_BIG = 1, 255, 3, 2

log = logging.getLogger("dataplane")


class Xdp:
    """A program on the interface, an AF_XDP socket for each queue, and who keeps ways right.

    A thread of its own looks up, for each provider address that packets are sent to, the route and
    the neighbour in the kernel's tables, and follows their changes; until a way is known, and while
    it is not, packets take the sockets. So do super-frames, unless they are `cut` here or the
    driver does zero copy. `queues`: loops that send. Raises PortError with the fix.
    """

    def __init__(
        self,
        interface: str,
        own: Sequence[IP],
        port: int,
        *,
        netns: str | None = None,
        queues: int = 1,
        checksum4: bool = False,
        cut: bool = False,
    ) -> None:
        from dataplane._engine import ffi

        self.interface, self._queues = interface, queues
        self._own: dict[int, IP] = {a.version: a for a in own}
        config = ffi.new("struct dp_xdp_config *")
        config.udp_port, config.senders = port, queues
        config.checksum4, config.cut = checksum4, cut
        for version, address in self._own.items():
            setattr(config, f"ip{version}", ip16(address))
        self._handle = inside(netns, lambda: _create(interface, config))
        self._icmp = inside(netns, lambda: {a.version: _icmp(a) for a in own})
        self._lost = threading.Event()
        self._stop_out, self._stop_in = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(
            target=lambda: inside(netns, self._follow), name=f"xdp-{interface}", daemon=True
        )
        self._thread.start()

    def __str__(self) -> str:
        from dataplane._engine import lib

        how = "zero copy" if lib.dp_xdp_zero_copy(self._handle) else "copy"
        n = lib.dp_xdp_queues(self._handle)
        return f"AF_XDP on {self.interface}, {n} queue{'s' * (n != 1)}, {how}"

    @property
    def is_there(self) -> bool:
        """Whether the interface lives, that is the one it was then."""
        return not self._lost.is_set()

    def icmp(self, version: int) -> int:
        """The descriptor by which errors about what was sent come in, or -1."""
        return self._icmp[version].fileno() if version in self._icmp else -1

    def let_go(self) -> None:
        """From now on all frames take the sockets; those that came before are still to be read."""
        from dataplane._engine import lib

        lib.dp_xdp_let_go(self._handle)

    def join(self, loop: Any, port_id: int, queue: int) -> None:
        """Adds to a C loop, to its underlay of that id, the queues of that share."""
        from dataplane._engine import ffi, lib
        from dataplane.reasons import check

        if queue < self._queues:
            error = ffi.new("struct dp_error *")
            shares = queue, self._queues
            check(lib.dp_loop_add_xdp(loop, port_id, self._handle, *shares, error), error)

    def close(self) -> None:
        """After the loops. Again is harmless."""
        from dataplane._engine import ffi, lib

        if self._handle != ffi.NULL:
            os.close(self._stop_in)
            self._thread.join()
            os.close(self._stop_out)
            lib.dp_xdp_destroy(self._handle)
            self._handle = ffi.NULL
            for sock in self._icmp.values():
                sock.close()

    # ---- ways ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Until `close`: sweeps when somebody asks, when something changed, and now and then."""
        from dataplane._engine import lib

        asked = lib.dp_xdp_fd(self._handle)
        with contextlib.suppress(PortError), NextHops(self.interface) as hops:
            ways, there = Ways(self._handle, self._own), True
            events = [asked, self._stop_out, *hops.events]
            while there and not self._stopped(_REST):
                if asked in select.select(events, [], [], _SWEEP)[0]:
                    os.read(asked, 8)
                try:
                    there = ways.sweep(hops)
                except OSError as error:
                    log.warning("%s: neighbours cannot be read: %s", self.interface, error)
        if not self._stopped(0):
            self._lost.set()

    def _stopped(self, wait: float) -> bool:
        return bool(select.select([self._stop_out], [], [], wait)[0])


class Ways:
    """What the C table says, and since when nobody asked for it."""

    def __init__(self, handle: Any, own: dict[int, IP]) -> None:
        from dataplane._engine import ffi

        self._handle, self._own = handle, own
        self._listed = ffi.new("struct dp_way[]", _WAYS)
        self._known: dict[bytes, tuple[bytes, bytes, int]] = {}
        self._used: dict[bytes, float] = {}

    def sweep(self, hops: NextHops) -> bool:
        """Puts in what changed. False: the interface is gone, and no way is known."""
        from dataplane._engine import ffi, lib

        link = hops.refresh()
        now = time.monotonic()
        for way in self._listed[0 : lib.dp_xdp_ways(self._handle, self._listed, _WAYS)]:
            remote = bytes(ffi.buffer(way.remote))
            if way.used:
                self._used[remote] = now
            if now - self._used.get(remote, now) > _FORGET:
                lib.dp_xdp_forget(self._handle, way.remote)
                self._known.pop(remote, None)
                self._used.pop(remote, None)
                continue
            address = ip_from16(remote)
            source = self._own.get(address.version)
            mac = hops.find(address, source) if link and link.works and source else None
            found = (mac.packed, link.mac.packed, min(link.mtu, 65_535)) if mac and link else _NONE
            if self._known.get(remote, _NONE) != found:
                self._known[remote] = found
                way.mac, way.own_mac, way.mtu = found
                lib.dp_xdp_set_way(self._handle, ffi.addressof(way))
        return link is not None


_NONE = bytes(6), bytes(6), 0


def _icmp(address: IP) -> socket.socket:
    """Where messages of path MTUs come in, of whatever packets."""
    v4 = address.version == 4
    family = socket.AF_INET if v4 else socket.AF_INET6
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(family, kind, socket.IPPROTO_ICMP if v4 else socket.IPPROTO_ICMPV6)
    blocked = ~(1 << (_ICMP_UNREACHABLE if v4 else _ICMP6_TOO_BIG)) & (1 << (32 if v4 else 256)) - 1
    level, size = (_RAW, 4) if v4 else (socket.IPPROTO_ICMPV6, 32)
    sock.setsockopt(level, _ICMP_FILTER, blocked.to_bytes(size, "little"))
    sock.bind((str(address), 0))
    return sock


def _create(interface: str, config: Any) -> Any:
    from dataplane._engine import ffi, lib
    from dataplane.reasons import text

    config.ifindex = index_of(interface)
    error = ffi.new("struct dp_error *")
    patience = time.monotonic() + _PATIENCE
    while (made := lib.dp_xdp_create(config, error)) == ffi.NULL:
        step, code = text(error.what), ffi.errno
        if (step, code) != ("bind", errno.EBUSY) or time.monotonic() > patience:
            raise PortError(f"xdp {interface}: {_fault(step, code)}")
        time.sleep(0.05)
    return made


def _fault(step: str, code: int) -> str:
    """What to say of a step of io_xdp.c that failed with that errno."""
    for steps, codes, text in _FAULTS:
        if (not steps or step in steps.split()) and code in codes:
            return text
    return f"{step}: {os.strerror(code)}"


_FAULTS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    (
        "",
        (errno.EPERM,),
        "not permitted; run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
    ),
    ("socket", (errno.EAFNOSUPPORT,), "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS)"),
    (
        "map program",
        (errno.ENOSYS, errno.EINVAL),
        "the kernel takes no such program; it needs Linux 5.9",
    ),
    (
        "bind attach",
        (errno.EBUSY,),
        "another process, or a program, has it; see: ip link show",
    ),
    (
        "attach",
        (errno.ERANGE, errno.EINVAL, errno.EOPNOTSUPP),
        "its driver refuses a program; is its MTU, or its peer's, above 3,498?",
    ),
    (
        "memory",
        (errno.ENOBUFS, errno.ENOMEM),
        "no memory can be locked for it (ulimit -l)",
    ),
)
