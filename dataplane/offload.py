"""Super-frames: cut into the packets they stand for, and joined again, as the ports do it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataplane._engine import ffi, lib
from dataplane.reasons import check

SLOT = 66_048  # bytes: a frame of 64 KiB with its headers
TCP4, TCP6, UDP, ECN = 1, 4, 5, 0x80  # virtio 1.2 section 5.1.6


@dataclass(frozen=True, slots=True)
class Super:
    """A frame. With `size` it stands for packets of so many bytes of payload, the last one of less.

    `kind`: TCP4, TCP6 (both also | ECN) or UDP. `start`, `field`: where its transport header is,
    and from there its checksum, which is partial then. `outer`: bytes in front of Ethernet.
    """

    data: bytes
    kind: int = 0
    size: int = 0
    start: int = 0
    field: int = 0
    outer: int = 0


def cut(frame: Super) -> list[bytes]:
    """The packets that a super-frame stands for, checksums complete. Raises EngineError."""
    at = frame.outer + frame.start
    tcp = frame.kind != UDP and at + 12 < len(frame.data)
    head = at + (frame.data[at + 12] >> 4) * 4 if tcp else at + 8
    most = max(1, -(-(len(frame.data) - head) // frame.size)) if frame.size else 1
    room = len(frame.data) + most * head
    described = _described(frame, len(frame.data), head)
    out, lengths = ffi.new("uint8_t[]", room), ffi.new("uint32_t[]", most)
    data = ffi.from_buffer(frame.data)
    n = check(
        lib.dp_offload_cut(data, len(frame.data), described, frame.outer, out, room, lengths, most)
    )
    packets, begin = [], 0
    for length in lengths[0:n]:
        packets.append(bytes(ffi.buffer(out + begin, length)))
        begin += length
    return packets


def _described(frame: Super, length: int, head: int) -> Any:
    fields = {
        "len": length,
        "flags": lib.DP_CSUM_PARTIAL,
        "gso_type": frame.kind,
        "gso_size": frame.size,
        "csum_start": frame.start,
        "csum_field": frame.field,
        "head": head,
    }
    return ffi.new("struct dp_frame *", fields)


def join(packets: Iterable[bytes], outer: int = 0) -> list[Super]:
    """What a port makes of packets that it received at once, of one source. Raises EngineError.

    At most 128, each of up to 65,535 bytes.
    """
    received = list(packets)
    arena = bytearray(max(1, len(received)) * SLOT)
    frames = ffi.new("struct dp_frame[]", max(1, len(received)))
    for i, packet in enumerate(received):
        arena[i * SLOT : i * SLOT + len(packet)] = packet
        frames[i].off, frames[i].len = i * SLOT, len(packet)
    c_arena = ffi.from_buffer("uint8_t[]", arena, require_writable=True)
    n = check(lib.dp_offload_join(c_arena, len(arena), frames, len(received), outer, SLOT))
    return [_super(arena, frames[i], outer) for i in range(n)]


def _super(arena: bytearray, f: Any, outer: int) -> Super:
    data = bytes(arena[f.off : f.off + f.len])
    if f.gso_size == 0:
        return Super(data)
    return Super(data, f.gso_type, f.gso_size, f.csum_start, f.csum_field, outer)
