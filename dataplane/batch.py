"""Batch: frames in one arena and their descriptors, shared with the engine without a copy."""

import operator
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Protocol, Self, SupportsBytes

from msgspec import Struct

from dataplane._engine import ffi, lib
from dataplane.errors import DataplaneError, PortError
from dataplane.ids import Ids
from dataplane.reasons import Reason, Verdict, check
from dataplane.records import dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview
Frame = Buffer | SupportsBytes  # anything that bytes() turns into a frame, such as a scapy packet

MAX_SLOT = 1 << 20
MAX_ARENA = (1 << 32) - 1
_LINE = 64
_process = lib.dp_process
EMPTY = dict.fromkeys((name for name, _ in ffi.typeof("struct dp_frame").fields), 0)


class Ports(Protocol):
    def port_id(self, name: str) -> int: ...


class Batch:
    """Room for `capacity` frames of up to `slot - headroom` bytes, each without FCS.

    `arena` is uint8[capacity, slot], `frames` a record array of `struct dp_frame`: both may be
    written directly, `count` says how many are in use. Not safe for two threads at once.
    """

    def __init__(
        self, capacity: int = 256, slot: int = 2048, headroom: int = lib.DP_HEADROOM
    ) -> None:
        import numpy as np

        if capacity < 1 or not headroom < slot <= MAX_SLOT or capacity * slot > MAX_ARENA:
            raise ValueError(
                f"a batch of {capacity} slots of {slot} bytes with {headroom} bytes of headroom:"
                f" at least one slot, headroom below slot, slot up to {MAX_SLOT} bytes,"
                f" all of them up to {MAX_ARENA}"
            )
        if headroom < lib.DP_HEADROOM:
            raise ValueError(f"headroom of {headroom} bytes: at least {lib.DP_HEADROOM} are needed")
        self.capacity, self.slot, self.headroom = capacity, slot, headroom
        self._arena: NDArray[np.uint8] = _lines(capacity * slot).reshape(capacity, slot)
        described = dtype("dp_frame")
        self._frames: NDArray[np.void] = _lines(capacity * described.itemsize).view(described)
        self.count = 0
        self._named: dict[str, list[int]] = {}
        self._size, self._room = self._arena.nbytes, capacity
        self._bytes = self._arena.data.cast("B")
        self._whole = self._seen = _Seen.of(self._frames, self._bytes)
        self._latest = Result(self._whole, {})
        self._c_arena = ffi.from_buffer("uint8_t[]", self._arena, require_writable=True)
        self._c_frames = ffi.from_buffer("struct dp_frame[]", self._frames, require_writable=True)

    # The engine reads and writes these very arrays: they can be written, not replaced.

    @property
    def arena(self) -> "NDArray[np.uint8]":
        return self._arena

    @property
    def frames(self) -> "NDArray[np.void]":
        return self._frames

    def clear(self) -> "Batch":
        self.count = 0
        self._latest._seen = _GONE
        self._named.clear()
        return self

    def load(self, frames: Iterable[Frame], port: int | str, flags: int = 0) -> "Batch":
        """Copies the frames in, instead of those that were here."""
        return self.clear().add(frames, port, flags)

    def add(self, frames: Iterable[Frame], port: int | str, flags: int = 0) -> "Batch":
        """Copies more frames in. A port's name is looked up when the batch is processed."""
        for frame in frames:
            if isinstance(frame, int):
                raise TypeError(f"{frame} is a number, not a frame")
            self._put(frame if isinstance(frame, Buffer) else bytes(frame), port, flags)
        return self

    def _put(self, frame: Buffer, port: int | str, flags: int) -> None:
        place = self.count
        if place == self.capacity:
            raise ValueError(f"the batch is full: {self.capacity} frames")
        length = frame.nbytes if isinstance(frame, memoryview) else len(frame)
        if length > self.slot - self.headroom:
            raise ValueError(f"frame of {length} bytes: a slot takes {self.slot - self.headroom}")
        start = place * self.slot + self.headroom
        octets = frame.cast("B") if isinstance(frame, memoryview) else frame
        self._bytes[start : start + length] = octets
        number = lib.DP_PORT_NONE if isinstance(port, str) else operator.index(port)
        self._c_frames[place] = EMPTY | {
            "off": start,
            "len": length,
            "port": number,
            "flags": flags,
        }
        if isinstance(port, str):
            self._named.setdefault(port, []).append(place)
        self.count += 1

    def prepare(self, port_id: Callable[[str], int]) -> tuple[Any, int, Any, int]:
        """Arena, its size, descriptors and their number, as `dp_process` takes them."""
        self._settle(port_id)
        self._latest._seen = _GONE
        return self._c_arena, self._size, self._c_frames, self.count

    def process(
        self, handle: Any, worker: int, now: int, ports: Ports, generations: Mapping[int, Ids]
    ) -> "Result":
        """`dp_process` by that worker, which nobody else may be. Raises PortError."""
        count = self.count  # many packets share what is done here: hence few calls
        if self._named or not 0 <= count <= self._room:
            self._settle(ports.port_id)
        self._latest._seen = _GONE
        status = _process(handle, worker, self._c_arena, self._size, self._c_frames, count, now)
        if status:
            check(status)
        seen = self._whole if count == self._room else self._part()
        self._latest = result = Result(seen, generations)
        return result

    def _settle(self, port_id: Callable[[str], int]) -> None:
        if not 0 <= self.count <= self._room:
            raise ValueError(f"count is {self.count}, the batch holds up to {self._room}")
        for name, places in self._named.items():
            self.frames["port"][places] = port_id(name)
        self._named.clear()

    def result(self, generations: Mapping[int, Ids]) -> "Result":
        """What became of all that is in use."""
        self._latest = result = Result(self._part(), generations)
        return result

    def _part(self) -> "_Seen":
        """Of those in use; made once for as many."""
        if len(self._seen.verdict) != self.count:
            self._seen = _Seen.of(self._frames[: self.count], self._bytes)
        return self._seen

    def open(self) -> tuple[Any, int, Any, int]:
        """Arena and empty slots, as `dp_more` takes them."""
        import numpy as np

        self.clear()
        starts = np.arange(self._room, dtype=np.uint32) * self.slot + self.headroom
        self.frames["off"], self.frames["len"] = starts, self.slot - self.headroom
        return self._c_arena, self._size, self._c_frames, self._room

    def view(self, place: int) -> memoryview:
        """The bytes of a frame as it stands now."""
        return self._whole.frame(place)


def _lines(size: int) -> "NDArray[np.uint8]":
    """Zeros that begin with a cache line."""
    import numpy as np

    octets = np.zeros(size + _LINE, np.uint8)
    first = -octets.ctypes.data % _LINE
    return octets[first : first + size]


class _Seen(NamedTuple):
    """What a result shows of its batch."""

    verdict: "NDArray[np.uint8]"
    reason: "NDArray[np.uint8]"
    port: "NDArray[np.uint16]"
    rule: "NDArray[np.uint32]"
    generation: "NDArray[np.uint32]"
    flags: "NDArray[np.uint8]"
    frames: "NDArray[np.void]"
    octets: memoryview

    @classmethod
    def of(cls, frames: "NDArray[np.void]", octets: memoryview) -> Self:
        return cls._make([*(frames[name] for name in cls._fields[:-2]), frames, octets])

    def frame(self, place: int) -> memoryview:
        described = self.frames[place]
        start = int(described["off"])
        return self.octets[start : start + int(described["len"])]


class _Gone:
    def __getattr__(self, _: str) -> NoReturn:
        raise DataplaneError("the batch has been changed since: this result is no longer valid")


_GONE: Any = _Gone()


def _column(name: str, told: str) -> Any:
    """A property that costs no call of Python's: few packets share it."""
    return property(attrgetter(f"_seen.{name}"), doc=told)


class Result(Struct, eq=False, gc=False):
    """What became of a batch: views of its descriptors, valid until the batch changes."""

    _seen: _Seen
    _generations: Mapping[int, Ids]

    verdict: ClassVar["NDArray[np.uint8]"] = _column("verdict", "Values of `Verdict`.")
    reason: ClassVar["NDArray[np.uint8]"] = _column("reason", "Values of `Reason`.")
    port: ClassVar["NDArray[np.uint16]"] = _column(
        "port", "Egress port, DP_PORT_NONE (65535) where nothing leaves."
    )
    rule: ClassVar["NDArray[np.uint32]"] = _column(
        "rule", "Id of the rule that decided, or DP_NONE."
    )
    generation: ClassVar["NDArray[np.uint32]"] = _column(
        "generation", "Of the policy that judged the frame."
    )

    __repr__ = object.__repr__  # names of generations are too many to be told

    def __len__(self) -> int:
        return len(self.verdict)

    @property
    def index(self) -> "NDArray[np.intp]":
        """0 to n - 1, to be masked: `result.index[result.verdict == Verdict.DROP]`."""
        import numpy as np

        return np.arange(len(self))

    @property
    def missed(self) -> "NDArray[np.bool_]":
        """Whether the frame took the miss path."""
        missed: NDArray[np.bool_] = (self._seen.flags & lib.DP_MISS) != 0
        return missed

    def to(self, port: int | str) -> "NDArray[np.intp]":
        """Places of all that leaves by the port: forwarded frames, answers and ICMP errors."""
        import numpy as np

        if not isinstance(port, str):
            return np.flatnonzero(self.port == operator.index(port))
        leaves = np.zeros(len(self), np.bool_)
        if len(self) and all(ids.port(port) is None for ids in self._generations.values()):
            raise PortError(f"no port, or more than one, is called {port!r}")
        for generation in np.unique(self.generation).tolist():
            ids = self._generations.get(generation)
            number = ids.port(port) if ids else None
            if number is not None:
                leaves |= (self.generation == generation) & (self.port == number)
        return np.flatnonzero(leaves)

    def frame(self, place: int) -> memoryview:
        """The bytes that leave; of a silent drop, the frame as it was left."""
        return self._seen.frame(range(len(self))[place])

    def verdict_of(self, place: int) -> Verdict:
        return Verdict(int(self.verdict[place]))

    def reason_of(self, place: int) -> Reason:
        return Reason(int(self.reason[place]))

    def rule_of(self, place: int) -> str | None:
        """NETWORK/ENDPOINT/RULE as of the generation that judged the frame."""
        number = int(self.rule[place])
        ids = self._generations.get(int(self.generation[place]))
        if number == lib.DP_NONE:
            return None
        return ids.rule_names.get(number) if ids else f"rule {number}"

    def port_of(self, place: int) -> str | None:
        """Name of the egress port."""
        number = int(self.port[place])
        ids = self._generations.get(int(self.generation[place]))
        if number == lib.DP_PORT_NONE:
            return None
        return ids.port_names.get(number) if ids else f"port {number}"
