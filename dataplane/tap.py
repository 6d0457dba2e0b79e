"""TAP devices: opened by their exact name, in any network namespace. C does the I/O."""

import contextlib
import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterable
from typing import Any, Self

from dataplane.address import IP, Mac
from dataplane.errors import PortError
from dataplane.link import LinkRoutes, linked, replace_address, replace_route
from dataplane.netns import Identity, here, inside, moved
from dataplane.port import Owner

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETOFFLOAD = (
    0x400454CA,
    0x400454CB,
    0x400454CC,
    0x400454D0,
)
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_TCP = 0x01 | 0x02 | 0x04 | 0x08  # checksums, TSO4, TSO6, TSO with ECN
_TUN_F_USO = 0x20 | 0x40  # Linux 6.2
_WAITING = 2048  # packets: half a million a second, while a tick's length of another process passes
_KEPT = "kept by dataplane"  # the alias of a TAP that outlives its process


class AdoptedTap(Owner):
    """A TAP by its open, non-blocking descriptor, which the port closes; its link stays as is.

    `uso`: its kernel takes UDP super-frames (Linux 6.2); else they are cut before.
    """

    def __init__(
        self, fd: int, *, mtu: int = 1500, vnet_hdr: bool = True, uso: bool = False
    ) -> None:
        self.mtu = mtu
        self._fds, self._vnet_hdr, self._uso = [fd], vnet_hdr, uso

    def fileno(self) -> int:
        return self._fds[0] if self._fds else -1

    def join(self, loop: Any, port_id: int, queue: int = 0) -> None:
        from dataplane._engine import ffi, lib
        from dataplane.reasons import check

        error = ffi.new("struct dp_error *")
        own = queue < len(self._fds)
        fd = self._fds[queue if own else 0]
        tap = ffi.new("struct dp_tap *", [fd, self.mtu, self._vnet_hdr, self._uso, not own])
        check(lib.dp_loop_add_tap(loop, port_id, tap, error), error)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


class Tap(AdoptedTap):
    """A TAP device by its exact name, new or existing, in any network namespace.

    A new one disappears at `close()` unless `persist`; an existing persistent one always stays.
    `mac`, `mtu` (bytes of IP packet), `up` and the length of its queue are set at once. `offload`:
    the device's kernel leaves the cutting of large packets and their checksums to us. `queues`: one
    for each worker of a forwarder; the kernel keeps a flow to one of them. `keep`: a new one may
    `outlive` us.
    Raises PortError with the fix.
    """

    def __init__(
        self,
        name: str,
        *,
        netns: str | None = None,
        mac: Mac | None = None,
        mtu: int = 1500,
        up: bool = True,
        persist: bool = False,
        keep: bool = False,
        owner: int | None = None,
        offload: bool = True,
        queues: int = 1,
    ) -> None:
        if not 68 <= mtu <= 65_535:
            raise PortError(f"tap {name}: MTU {mtu} is not in 68-65535")
        self.name, self.netns, self.routes = name, netns, LinkRoutes(name, netns)
        self._home = inside(netns, here)
        self._kept = keep and not persist and inside(netns, lambda: _is_free(name))
        fds, uso = inside(netns, lambda: _open_queues(name, persist, owner, offload, queues))
        super().__init__(fds[0], mtu=mtu, uso=uso)
        self._fds = fds
        try:
            self._link(mtu=mtu, mac=mac, up=up)
        except BaseException:
            self.close()
            raise

    def state(self) -> dict[str, Any]:
        """What another process needs to be its owner; `fds` are the descriptors."""
        names = ("name", "netns", "mtu", "_uso", "_kept")
        return {name: getattr(self, name) for name in names} | {"fds": self._fds}

    @classmethod
    def inherited(cls, state: dict[str, Any]) -> Self:
        """The TAP whose descriptors this process inherited."""
        tap = cls.__new__(cls)
        AdoptedTap.__init__(tap, state["fds"][0], mtu=state["mtu"], uso=state["_uso"])
        tap.name, tap.netns, tap._kept = state["name"], state["netns"], state["_kept"]
        tap._fds, tap.routes = state["fds"], LinkRoutes(tap.name, tap.netns)
        tap._home = inside(tap.netns, here)
        return tap

    def leave(self) -> None:
        """Closes it for this process only: another one has it now."""
        self.routes.close()
        super().close()

    def __str__(self) -> str:
        return f"TAP {self.name}" + (f" of {self.netns}" if self.netns else "")

    @property
    def is_there(self) -> bool:
        """See `lost`."""
        return not lost([self])

    @property
    def home(self) -> tuple[str | None, Identity]:
        """The namespace that it was made in: its name, and what it was then."""
        return self.netns, self._home

    def _link(self, *, mtu: int, mac: Mac | None, up: bool) -> None:
        wanted: dict[str, Any] = {"address": str(mac)} if mac else {}
        if self._kept:
            wanted["IFLA_IFALIAS"] = _KEPT

        def work() -> None:
            with linked(self.name) as (ipr, index):
                ipr.link("set", index=index, mtu=mtu, txqlen=_WAITING, **wanted)
                ipr.link("set", index=index, state="up" if up else "down")

        inside(self.netns, work)

    def resize(self, mtu: int) -> None:
        """Gives the device another MTU; loops know it once the port has joined them anew. Raises
        PortError."""

        def work() -> None:
            with linked(self.name) as (ipr, index):
                ipr.link("set", index=index, mtu=mtu)

        inside(self.netns, work)
        self.mtu = mtu

    def outlive(self, wanted: bool = True) -> None:
        """Whether a process that is killed leaves it to the next, which knows it by its alias in
        `ip link`; at `close()` it disappears all the same. Nothing, if it was not opened so."""
        if self._kept and self._fds:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fds[0], _TUNSETPERSIST, int(wanted))

    def close(self) -> None:
        self.outlive(False)
        self.leave()

    def address(self, address: IP, length: int, *, peer: IP | None = None) -> None:
        """Gives the device an address of that prefix length; with `peer`, a point-to-point one."""

        def work() -> None:
            with linked(self.name) as (ipr, index):
                replace_address(ipr, index, address, length, peer)

        inside(self.netns, work)

    def default_route(self, gateway: IP) -> None:
        """Sends what the device's namespace has no better way for to the gateway."""

        def work() -> None:
            with linked(self.name) as (ipr, index):
                replace_route(ipr, index, "default", gateway)

        inside(self.netns, work)


def remove_kept(name: str, netns: str | None, queues: int = 1) -> None:
    """A TAP that a process of ours kept and left, if there is one of that name and nobody has it by
    now."""

    def is_kept() -> bool:
        with linked(name) as (ipr, index):
            return _is_kept(ipr, index)

    with contextlib.suppress(PortError):
        if inside(netns, is_kept):
            Tap(name, netns=netns, keep=True, queues=queues).close()


def _open_queues(
    name: str, persist: bool, owner: int | None, offload: bool, queues: int
) -> tuple[list[int], bool]:
    """Descriptors, and whether their kernel cuts UDP super-frames."""
    fds: list[int] = []
    uso = True
    try:
        for _ in range(queues):
            fd, both = _open_tap(name, persist, owner, offload, _IFF_MULTI_QUEUE * (queues > 1))
            fds.append(fd)
            uso = uso and both
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds, uso


def _open_tap(
    name: str, persist: bool, owner: int | None, offload: bool, more: int
) -> tuple[int, bool]:
    _check_name(name)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        fix = "run as root" if error.errno == errno.EACCES else "load it with: modprobe tun"
        raise PortError(f"/dev/net/tun: {error.strerror}; {fix}") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | more
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        uso = _offload(fd, offload)
        if owner is not None:
            fcntl.ioctl(fd, _TUNSETOWNER, owner)
        if persist:
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(fd)
        raise PortError(f"tap {name}: {_tap_fault(error, more > 0)}") from error
    return fd, uso


def _offload(fd: int, wanted: bool) -> bool:
    """Lets the kernel hand over what is not cut and summed yet; whether UDP, too, may be so."""
    for flags in (_TUN_F_TCP | _TUN_F_USO, _TUN_F_TCP) if wanted else ():
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
            return bool(flags & _TUN_F_USO)
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    return False


def _check_name(name: str) -> None:
    """The kernel's rule, and no %: it would take that for a pattern."""
    if not 0 < len(name.encode()) < 16 or name in (".", ".."):
        raise PortError(f"{name!r} is not an interface name: 1 to 15 bytes")
    if any(c in "/:%" or c.isspace() for c in name):
        raise PortError(f"{name!r} is not an interface name: no slash, colon, percent or space")


def _tap_fault(error: OSError, multi: bool) -> str:
    match error.errno:
        case errno.EPERM:
            return (
                "not permitted; run as root or with CAP_NET_ADMIN, or make it with: ip tuntap add"
            )
        case errno.EBUSY:
            return "busy: another process is attached to it"
        case errno.EINVAL:
            kind = "multi" if multi else "single"
            return f"an interface of that name exists and is no {kind}-queue TAP"
        case _:
            return str(error.strerror)


def _is_free(name: str) -> bool:
    """Whether no device has the name, or one that a process of ours kept and left."""
    try:
        with linked(name) as (ipr, index):
            return _is_kept(ipr, index)
    except PortError:
        return True


def _is_kept(ipr: Any, index: int) -> bool:
    (link,) = ipr.get_links(index)
    return bool(link.get_attr("IFLA_IFALIAS") == _KEPT)


def lost(taps: Iterable[Tap]) -> list[Tap]:
    """Those whose device lives no more, or not in the namespace that has the name now: anybody with
    the right may have deleted either, and made it again."""
    told = list(taps)
    away = {home for home in {tap.home for tap in told} if home[0] and moved(home[0], home[1])}
    poll = select.poll()
    for tap in told:
        poll.register(tap, 0)
    dead = {fd for fd, _ in poll.poll(0)}
    return [tap for tap in told if tap.home in away or tap.fileno() in dead]
