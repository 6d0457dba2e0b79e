"""Ports of the operating system: TAP devices and the UDP underlay. C does the I/O."""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Protocol, Self

from dataplane.address import IP, Mac, Prefix, ip16
from dataplane.errors import PortError
from dataplane.netns import here, inside, moved
from dataplane.xdp import Xdp

_TUNGETIFF = 0x800454D2
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETOFFLOAD = (
    0x400454CA,
    0x400454CB,
    0x400454CC,
    0x400454D0,
)
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_TCP = 0x01 | 0x02 | 0x04 | 0x08  # checksums, TSO4, TSO6, TSO with ECN
_TUN_F_USO = 0x20 | 0x40  # Linux 6.2
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_UDP_NO_CHECK6_RX, _UDP_GRO = 102, 104
_IP_RECVERR, _IPV6_RECVERR, _SO_ATTACH_FILTER, _BPF_RET = 11, 25, 26, 6
_SO_NO_CHECK, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 11, 33, 32
_BUFFER = 8 << 20
_ONLINK = 4  # RTNH_F_ONLINK
_TTL = 64  # as the engine writes it
_KEPT = "kept by dataplane"  # the alias of a TAP that outlives its process
_SOURCE_PORTS = range(49152, 65536)  # RFC 7348 §5


class Port(Protocol):
    """What a forwarder can move frames through."""

    def join(self, loop: Any, port_id: int, queue: int = 0) -> None:
        """Adds the port to a C loop (`struct dp_loop *`), with the queue of that number.

        If it has not so many the loop only sends through it.
        """

    def close(self) -> None: ...


class _Owner:
    """Closes what it owns once, and works in a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _offload(fd: int, wanted: bool) -> bool:
    """Lets the kernel hand over what is not cut and summed yet; whether UDP, too, may be so."""
    for flags in (_TUN_F_TCP | _TUN_F_USO, _TUN_F_TCP) if wanted else ():
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
            return bool(flags & _TUN_F_USO)
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    return False


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


class AdoptedTap(_Owner):
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
    `mac`, `mtu` (bytes of IP packet) and `up` are set at once. `offload`: the device's kernel
    leaves the cutting of large packets and their checksums to us. `queues`: one for each worker of
    a forwarder; the kernel keeps a flow to one of them. `keep`: a new one disappears at `close()`
    only, so that a process which is killed leaves it to the next; known by its alias in `ip link`.
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
        self.name, self.netns = name, netns
        self._home = inside(netns, here)
        self._kept = keep and not persist and inside(netns, lambda: _is_free(name))
        stays = persist or self._kept
        fds, uso = inside(netns, lambda: _open_queues(name, stays, owner, offload, queues))
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
        tap._fds = state["fds"]
        tap._home = inside(tap.netns, here)
        return tap

    def leave(self) -> None:
        """Closes it for this process only: another one has it now."""
        super().close()

    def __str__(self) -> str:
        return f"TAP {self.name}" + (f" of {self.netns}" if self.netns else "")

    @property
    def is_there(self) -> bool:
        """Whether the device lives, in the namespace that has the name now: anybody with the right
        may have deleted either, and made it again."""
        if self.netns is not None and moved(self.netns, self._home):
            return False
        try:
            fcntl.ioctl(self.fileno(), _TUNGETIFF, bytes(40))
        except OSError:
            return False
        return True

    def _link(self, *, mtu: int, mac: Mac | None, up: bool) -> None:
        wanted: dict[str, Any] = {"address": str(mac)} if mac else {}
        if self._kept:
            wanted["IFLA_IFALIAS"] = _KEPT

        def work() -> None:
            with _netlink(self.name) as (ipr, index):
                ipr.link("set", index=index, mtu=mtu, **wanted)
                ipr.link("set", index=index, state="up" if up else "down")

        inside(self.netns, work)

    def close(self) -> None:
        if self._kept and self._fds:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fds[0], _TUNSETPERSIST, 0)
        super().close()

    def address(self, address: IP, length: int, *, peer: IP | None = None) -> None:
        """Gives the device an address of that prefix length; with `peer`, a point-to-point one."""
        extra: dict[str, Any] = {"address": str(peer or address)}
        if peer:
            extra["local"] = str(address)

        def work() -> None:
            with _netlink(self.name) as (ipr, index):
                if address.version == 6:
                    extra["flags"] = 0x02  # IFA_F_NODAD: usable at once, the guard makes it unique
                ipr.addr("replace", index=index, prefixlen=length, **extra)

        inside(self.netns, work)

    def default_route(self, gateway: IP) -> None:
        """Sends what the device's namespace has no better way for to the gateway."""
        self._route("default", gateway)

    def route(self, prefix: Prefix, gateway: IP, source: IP | None = None) -> None:
        """Sends a prefix to the gateway, from that address where the sender may choose."""
        self._route(str(prefix), gateway, source)

    def unroute(self, prefix: Prefix, gateway: IP, source: IP | None = None) -> None:
        """Takes such a route back, if it is still there."""
        with contextlib.suppress(PortError):
            self._route(str(prefix), gateway, source, "del")

    def unaddress(self, address: IP) -> None:
        """Takes back a single address, if it is still there."""

        def work() -> None:
            with _netlink(self.name) as (ipr, index):
                ipr.addr("del", index=index, address=str(address), prefixlen=address.max_prefixlen)

        with contextlib.suppress(PortError):
            inside(self.netns, work)

    def _route(
        self, destination: str, gateway: IP, source: IP | None = None, verb: str = "replace"
    ) -> None:
        """On link by decree: the kernel knows the gateway's prefix only once it sees a carrier."""

        def work() -> None:
            with _netlink(self.name) as (ipr, index):
                family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
                way = {"gateway": str(gateway), "oif": index, "flags": _ONLINK}
                if source is not None:
                    way["prefsrc"] = str(source)
                ipr.route(verb, dst=destination, family=family, **way)

        inside(self.netns, work)


def _is_free(name: str) -> bool:
    """Whether no device has the name, or one that a process of ours kept and left."""
    try:
        with _netlink(name) as (ipr, index):
            (link,) = ipr.get_links(index)
            return bool(link.get_attr("IFLA_IFALIAS") == _KEPT)
    except PortError:
        return True


@contextlib.contextmanager
def _netlink(name: str) -> Iterator[tuple[Any, int]]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ipr:
        try:
            yield ipr, ipr.link_lookup(ifname=name)[0]
        except IndexError:
            raise PortError(f"{name}: the interface is gone") from None
        except NetlinkError as error:
            raise PortError(f"{name}: {error}") from error


class VxlanSocket(_Owner):
    """The UDP underlay: one receiving socket for each address, `sources` sending ones.

    A UDP socket has one source port, so the entropy of RFC 7348 §5 needs many: each flow sticks to
    the one its hash names. The kernel never fragments what it sends (DF set, RFC 7348 §4.3) and
    refuses what is above the device's MTU. PMTUDISC_PROBE and not DO: the path's MTU is the
    engine's business, and a forged ICMP error must not shrink it for everyone behind the socket.
    `interface`: the only device to use. `checksum4`: UDP checksums over IPv4 too. `zero6`: over
    IPv6 a zero one is accepted (RFC 6936). `offload`: many packets are one message, which the
    kernel cuts (UDP_SEGMENT) or has joined (UDP_GRO); it then makes UDP checksums in any case.
    `queues`: receiving sockets of each address, one for each worker of a forwarder (SO_REUSEPORT:
    the kernel keeps a flow to one of them). `xdp`: an interface whose packets for us come by
    AF_XDP, and whose next hops get theirs so once they are known; all else takes the sockets.
    Raises PortError with the fix.
    """

    def __init__(
        self,
        address: IP,
        *,
        address6: IP | None = None,
        port: int = 4789,
        checksum4: bool = False,
        zero6: bool = False,
        sources: int = 64,
        netns: str | None = None,
        interface: str | None = None,
        offload: bool = True,
        queues: int = 1,
        xdp: str | None = None,
    ) -> None:
        if not 0 < sources <= len(_SOURCE_PORTS):
            raise PortError(f"{sources} source ports: at least 1, at most {len(_SOURCE_PORTS)}")
        if not 0 < port < 65_536:
            raise PortError(f"UDP port {port} is not in 1-65535")
        own = [a for a in (address, address6) if a is not None]
        self.port = port
        self._interface, self._offload = interface, offload
        self._own: dict[int, IP] = {a.version: a for a in own}
        self._receive: dict[int, list[socket.socket]] = {}
        self._send: dict[int, list[socket.socket]] = {}
        self._netns, self._checksum4 = netns, checksum4
        self.xdp: Xdp | None = None
        try:
            inside(netns, lambda: self._open(sources, checksum4 or offload, zero6, queues))
            if xdp is not None:
                self.xdp = self.open_xdp(xdp)
        except BaseException:
            self.close()
            raise

    def _open(self, sources: int, checksum4: bool, zero6: bool, queues: int) -> None:
        for version, address in self._own.items():
            self._receive[version] = []
            if queues > 1:  # sockets that share a port would share it with another process, too
                _receiver(address, self.port, self._interface, False).close()
            for _ in range(queues):
                receive = _receiver(address, self.port, self._interface, queues > 1)
                self._receive[version].append(receive)
                with contextlib.suppress(OSError):  # Linux 5.0
                    receive.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, int(self._offload))
                if version == 6 and zero6:
                    receive.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
            self._send[version] = []
            for sock in _senders(address, sources, self._interface):
                self._send[version].append(sock)
                if version == 4 and checksum4:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 0)

    def lost(self) -> list[IP]:
        """Its addresses that no interface of its namespace has any more."""
        with contextlib.suppress(PortError):  # the namespace has no name any more, but lives on
            return inside(self._netns, lambda: [a for a in self._own.values() if _is_gone(a)])
        return []

    def open_xdp(self, interface: str) -> Xdp:
        """To be set as `xdp`, while no loop has this port; the one before is closed by whoever sets
        it. Raises PortError."""
        return Xdp(
            interface,
            list(self._own.values()),
            self.port,
            netns=self._netns,
            queues=min(map(len, self._receive.values())),
            checksum4=self._checksum4,
        )

    def state(self) -> dict[str, Any]:
        """What another process needs to be its owner, but for AF_XDP; `fds` are the descriptors."""
        fds = {
            way: {v: [s.fileno() for s in sockets] for v, sockets in of.items()}
            for way, of in (("receive", self._receive), ("send", self._send))
        }
        own = {version: str(address) for version, address in self._own.items()}
        names = ("port", "_interface", "_offload", "_netns", "_checksum4")
        told = {name: getattr(self, name) for name in names}
        return {**told, "own": own, **fds}

    @classmethod
    def inherited(cls, state: dict[str, Any]) -> Self:
        """The underlay whose descriptors this process inherited."""
        made = cls.__new__(cls)
        for name in ("port", "_interface", "_offload", "_netns", "_checksum4"):
            setattr(made, name, state[name])
        made.xdp = None
        made._own = {int(v): ip_address(text) for v, text in state["own"].items()}
        made._receive, made._send = (
            {int(v): [socket.socket(fileno=fd) for fd in fds] for v, fds in state[way].items()}
            for way in ("receive", "send")
        )
        return made

    def leave(self) -> None:
        """Closes it for this process only: another one has it now."""
        self.close()

    def join(self, loop: Any, port_id: int, queue: int = 0) -> None:
        from dataplane._engine import ffi, lib
        from dataplane.reasons import check

        error = ffi.new("struct dp_error *")
        count = min(len(sockets) for sockets in self._send.values())
        fds = {v: ffi.new("int[]", [s.fileno() for s in self._send[v][:count]]) for v in self._send}
        config = ffi.new("struct dp_underlay_sockets *")
        config.receive4, config.receive6 = self._receiver(4, queue), self._receiver(6, queue)
        config.send4, config.send6 = fds.get(4, ffi.NULL), fds.get(6, ffi.NULL)
        config.n_send, config.udp_port = count, self.port
        config.icmp4, config.icmp6 = (self.xdp.icmp(v) if self.xdp else -1 for v in (4, 6))
        config.segment = config.gro = self._offload
        for version, address in self._own.items():
            setattr(config, f"ip{version}", ip16(address))
        check(lib.dp_loop_add_underlay(loop, port_id, config, error), error)
        if self.xdp:
            self.xdp.join(loop, port_id, queue)

    def _receiver(self, version: int, queue: int) -> int:
        found = self._receive.get(version, [])
        return found[queue].fileno() if queue < len(found) else -1

    def close(self) -> None:
        xdp, self.xdp = self.xdp, None
        if xdp:
            xdp.close()
        all_sockets = [*self._receive.values(), *self._send.values()]
        self._receive, self._send = {}, {}
        for sock in (s for sockets in all_sockets for s in sockets):
            sock.close()


def _is_gone(address: IP) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno == errno.EADDRNOTAVAIL
    return False


def _udp(address: IP, interface: str | None) -> socket.socket:
    v4 = address.version == 4
    family = socket.AF_INET if v4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if v4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _TTL)
        sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _TTL)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if interface is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        except OSError as error:
            sock.close()
            raise PortError(f"udp {address}: interface {interface}: {error.strerror}") from error
    return sock


def _enlarge(sock: socket.socket, force: int, ask: int) -> None:
    """The buffer, above the administrator's limit where that is permitted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, ask, _BUFFER)


def _receiver(address: IP, port: int, interface: str | None, shared: bool) -> socket.socket:
    sock = _udp(address, interface)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
    if address.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    try:
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        raise PortError(f"udp {address} port {port}: {_bind_fault(error)}") from error
    return sock


def _bind_fault(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "in use; a kernel VXLAN device holds its port for the whole namespace"
        case errno.EADDRNOTAVAIL:
            return "no interface of this namespace has the address"
        case _:
            return str(error.strerror)


def _hear_errors_only(sock: socket.socket, address: IP) -> None:
    """ICMP errors are queued for the loop; data that is sent to a source port is dropped."""
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    if address.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def _senders(address: IP, count: int, interface: str | None) -> Iterator[socket.socket]:
    """Sockets on source ports spread evenly over 49152-65535, ports in use left out."""
    step = len(_SOURCE_PORTS) // count
    for first in range(0, step * count, step):
        for port in _SOURCE_PORTS[first : first + step]:
            sock = _udp(address, interface)
            _enlarge(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
            _hear_errors_only(sock, address)
            try:
                sock.bind((str(address), port))
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRINUSE:
                    raise PortError(f"udp {address}: {_bind_fault(error)}") from error
                continue
            yield sock
            break
        else:
            raise PortError(f"udp {address}: no source port left in {_SOURCE_PORTS[first]} and up")
