"""Reading and writing pcap and pcapng files; pcapng with an interface and a comment for each frame.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from dataplane.errors import DataplaneError

ETHERNET = 1
_MAGICS = {  # as read: byte order, nanoseconds a tick
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_SECTION, _INTERFACE, _SIMPLE, _STATISTICS, _ENHANCED = 0x0A0D0D0A, 1, 3, 5, 6
_OPT_END, _OPT_COMMENT, _IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 0, 1, 2, 9, 14
_ISB_IFDROP = 5
_BLOCK_MAX = 16 << 20


class Packet(NamedTuple):
    """One captured frame; `time_ns` since the epoch, `linktype` 1 = Ethernet.

    `length`: bytes it had where `data` was cut short; 0 where it was not.
    """

    time_ns: int
    data: bytes
    linktype: int = ETHERNET
    interface: str = ""
    comment: str = ""
    length: int = 0


class _Interface(NamedTuple):
    linktype: int
    name: str
    ticks: int  # a second
    offset: int  # seconds to add


def read(path: str | Path) -> Iterator[Packet]:
    """The packets of a pcap or pcapng file. Raises DataplaneError where it is no such file."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise DataplaneError(f"{path}: {error.strerror}") from None
    with file:
        magic = file.read(4)
        if magic in _MAGICS:
            yield from _read_pcap(file, *_MAGICS[magic], str(path))
        elif magic == struct.pack("<I", _SECTION):
            file.seek(0)
            yield from _read_pcapng(file, str(path))
        else:
            raise DataplaneError(f"{path}: not a pcap or pcapng file")


def _exactly(file: BinaryIO, size: int, name: str) -> bytes:
    data = file.read(size) if size <= _BLOCK_MAX else b""
    if len(data) != size:
        raise DataplaneError(f"{name}: cut or broken at byte {file.tell()}")
    return data


def _read_pcap(file: BinaryIO, order: str, tick_ns: int, name: str) -> Iterator[Packet]:
    linktype = struct.unpack(order + "16xI", _exactly(file, 20, name))[0] & 0xFFFF
    while head := file.read(16):
        if len(head) != 16:
            raise DataplaneError(f"{name}: cut at byte {file.tell()}")
        seconds, ticks, size, length = struct.unpack(order + "IIII", head)
        data = _exactly(file, size, name)
        time_ns = seconds * 1_000_000_000 + ticks * tick_ns
        yield Packet(time_ns, data, linktype, length=_cut(size, length))


def _cut(size: int, length: int) -> int:
    """`Packet.length` of what a file says."""
    return length if length > size else 0


def _options(data: bytes, order: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from(order + "HH", data, at)
        if code == _OPT_END:
            break
        found.setdefault(code, data[at + 4 : at + 4 + size])
        at += 4 + (size + 3) // 4 * 4
    return found


def _interface(body: bytes, order: str) -> _Interface:
    options = _options(body[8:], order)
    resolution = options.get(_IF_TSRESOL, b"\x06")[0]
    base = 2 if resolution & 0x80 else 10
    name = options.get(_IF_NAME, b"").decode(errors="replace")
    offset = struct.unpack(order + "q", options.get(_IF_TSOFFSET, bytes(8)))[0]
    linktype = struct.unpack_from(order + "H", body)[0]
    return _Interface(linktype, name, base ** (resolution & 0x7F), offset)


def _enhanced(body: bytes, order: str, interfaces: list[_Interface]) -> Packet:
    index, high, low, size, length = struct.unpack_from(order + "IIIII", body)
    interface = interfaces[index]
    data = body[20 : 20 + size]
    if len(data) != size:
        raise IndexError
    padded = (size + 3) // 4 * 4
    options = _options(body[20 + padded :], order)
    time_ns = (high << 32 | low) * 1_000_000_000 // interface.ticks
    time_ns += interface.offset * 1_000_000_000
    comment = options.get(_OPT_COMMENT, b"").decode(errors="replace")
    return Packet(time_ns, data, interface.linktype, interface.name, comment, _cut(size, length))


def _read_pcapng(file: BinaryIO, name: str) -> Iterator[Packet]:
    order = "<"
    interfaces: list[_Interface] = []
    while head := file.read(8):
        if head[:4] == struct.pack("<I", _SECTION):
            mark = _exactly(file, 4, name)
            order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
            file.seek(-4, 1)
            interfaces = []
        if len(head) != 8:
            raise DataplaneError(f"{name}: cut at byte {file.tell()}")
        kind, size = struct.unpack(order + "II", head)
        body = _exactly(file, max(size, 12) - 8, name)[:-4]
        try:
            if kind == _INTERFACE:
                interfaces.append(_interface(body, order))
            elif kind == _ENHANCED:
                yield _enhanced(body, order, interfaces)
            elif kind == _SIMPLE:
                size = min(struct.unpack_from(order + "I", body)[0], len(body) - 4)
                yield Packet(0, body[4 : 4 + size], interfaces[0].linktype, interfaces[0].name)
        except (struct.error, IndexError) as error:
            raise DataplaneError(f"{name}: broken block before byte {file.tell()}") from error


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


class _File:
    """Owns the file if it opened it; a context manager."""

    def __init__(self, file: str | Path | BinaryIO) -> None:
        self._owned = isinstance(file, str | Path)
        self._file: BinaryIO = (
            open(file, "wb") if isinstance(file, str | Path) else file  # noqa: SIM115 (close does)
        )

    def close(self) -> None:
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Writer(_File):
    """Writes a pcapng file: nanosecond times, one interface for each name and link type."""

    def __init__(self, file: str | Path | BinaryIO) -> None:
        super().__init__(file)
        self._interfaces: dict[tuple[str, int], int] = {}
        self._lost = 0
        self._file.write(_block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))

    def write(self, packet: Packet) -> None:
        index = self._interface(packet.interface, packet.linktype)
        time = packet.time_ns
        data = packet.data + b"\0" * (-len(packet.data) % 4)
        size = len(packet.data)
        options = b""
        if packet.comment:
            options = _option(_OPT_COMMENT, packet.comment.encode()) + _option(_OPT_END, b"")
        length = max(packet.length, size)
        head = struct.pack("<IIIII", index, time >> 32, time & 0xFFFFFFFF, size, length)
        self._file.write(_block(_ENHANCED, head + data + options))

    def lose(self, count: int, time_ns: int, interface: str) -> None:
        """Tells, by a statistics block with the sum, that so many more were not captured."""
        self._lost += count
        index = self._interface(interface, ETHERNET)
        head = struct.pack("<III", index, time_ns >> 32, time_ns & 0xFFFFFFFF)
        dropped = _option(_ISB_IFDROP, struct.pack("<Q", self._lost)) + _option(_OPT_END, b"")
        self._file.write(_block(_STATISTICS, head + dropped))

    def _interface(self, name: str, linktype: int) -> int:
        key = name, linktype
        if key not in self._interfaces:
            options = _option(_IF_NAME, name.encode()) if name else b""
            options += _option(_IF_TSRESOL, b"\x09") + _option(_OPT_END, b"")
            self._file.write(_block(_INTERFACE, struct.pack("<HHI", linktype, 0, 0) + options))
            self._interfaces[key] = len(self._interfaces)
        return self._interfaces[key]


class Tally:
    """Counts what a `Writer` wrote, by pieces of its file as they come."""

    def __init__(self) -> None:
        self.packets = self.lost = 0
        self._rest = b""

    def add(self, piece: bytes) -> None:
        octets, at = self._rest + piece, 0
        while at + 8 <= len(octets):
            kind, size = struct.unpack_from("<II", octets, at)
            if at + size > len(octets):
                break
            self.packets += kind == _ENHANCED
            if kind == _STATISTICS:
                dropped = _options(octets[at + 20 : at + size - 4], "<")[_ISB_IFDROP]
                (self.lost,) = struct.unpack("<Q", dropped)
            at += size
        self._rest = octets[at:]


class ClassicWriter(_File):
    """Writes a pcap file: nanosecond times, one link type; names and comments have no place."""

    def __init__(self, file: str | Path | BinaryIO, linktype: int = ETHERNET) -> None:
        super().__init__(file)
        self._linktype = linktype
        self._file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, linktype))

    def write(self, packet: Packet) -> None:
        """Raises DataplaneError for a packet of another link type."""
        if packet.linktype != self._linktype:
            raise DataplaneError(
                f"link type {packet.linktype} in a pcap file of {self._linktype}: write pcapng"
            )
        seconds, ns = divmod(packet.time_ns, 1_000_000_000)
        size = len(packet.data)
        length = max(packet.length, size)
        self._file.write(struct.pack("<IIII", seconds, ns, size, length) + packet.data)
