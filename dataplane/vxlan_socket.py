"""The UDP underlay: sockets whose outer headers the kernel writes. C does the I/O."""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Self

from dataplane.address import IP, ip16
from dataplane.errors import PortError
from dataplane.netns import inside
from dataplane.port import Owner
from dataplane.xdp import Xdp

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_UDP_NO_CHECK6_RX, _UDP_GRO = 102, 104
_IP_RECVERR, _IPV6_RECVERR, _SO_ATTACH_FILTER, _BPF_RET = 11, 25, 26, 6
_SO_NO_CHECK, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 11, 33, 32
_BUFFER = 8 << 20
_TTL = 64  # as the engine writes it
_SOURCE_PORTS = range(49152, 65536)  # RFC 7348 §5


class VxlanSocket(Owner):
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
    AF_XDP, and whose next hops get theirs so once they are known; all else takes the sockets, and
    so do super-frames, unless the driver does zero copy or `xdp_cut` is set. Raises PortError with
    the fix.
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
        xdp_cut: bool = False,
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
        self._netns, self._checksum4, self._xdp_cut = netns, checksum4, xdp_cut
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
            cut=self._xdp_cut,
        )

    def state(self) -> dict[str, Any]:
        """What another process needs to be its owner, but for AF_XDP; `fds` are the descriptors."""
        fds = {
            way: {v: [s.fileno() for s in sockets] for v, sockets in of.items()}
            for way, of in (("receive", self._receive), ("send", self._send))
        }
        own = {version: str(address) for version, address in self._own.items()}
        names = ("port", "_interface", "_offload", "_netns", "_checksum4", "_xdp_cut")
        told = {name: getattr(self, name) for name in names}
        return {**told, "own": own, **fds}

    @classmethod
    def inherited(cls, state: dict[str, Any]) -> Self:
        """The underlay whose descriptors this process inherited."""
        made = cls.__new__(cls)
        for name in ("port", "_interface", "_offload", "_netns", "_checksum4", "_xdp_cut"):
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
