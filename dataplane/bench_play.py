"""Frames played through an engine under a clock that C reads around each vector."""

from typing import TYPE_CHECKING, Any, TypeAlias

from dataplane._engine import ffi, lib
from dataplane.bench_traffic import Traffic
from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.reasons import check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
Cycles: TypeAlias = "NDArray[np.float64]"  # a packet, by window

VECTOR: int = lib.DP_BURST
HIT_VECTORS = 32  # of a window: 8,192 packets, well under a scheduler's tick
MISS_VECTORS = 8


class Player:
    """Plays the traffic's frames through a stage of the engine, round and round."""

    def __init__(
        self,
        engine: Engine,
        traffic: Traffic,
        stage: int = lib.DP_BENCH_ENGINE,
        *,
        worker: int = 0,
    ) -> None:
        self._engine, self._stage, self._worker = engine, stage, worker
        self._keep = traffic
        n, size = traffic.frames.shape
        self._traffic = ffi.new(
            "struct dp_bench_traffic *",
            {
                "frames": ffi.from_buffer("uint8_t[]", traffic.frames),
                "ports": ffi.from_buffer("uint16_t[]", traffic.ports),
                "n": n,
                "len": size,
            },
        )

    def play(self, vectors: int, windows: int = 1, dropped: int = 0) -> Cycles:
        """Cycles a packet of each window of `vectors` x 256 packets.

        Raises DataplaneError unless exactly `dropped` of them all were not forwarded.
        """
        import numpy as np

        cycles = np.zeros(windows, np.uint64)
        with self._engine.exclusive(self._worker):
            failed = check(
                lib.dp_bench_run(
                    self._engine.handle,
                    self._worker,
                    self._stage,
                    self._traffic,
                    self._engine.clock.now_ns(),
                    vectors,
                    ffi.from_buffer("uint64_t[]", cycles),
                    windows,
                )
            )
        if failed != dropped:
            raise DataplaneError(f"bench: {failed} frames did not come through, not {dropped}")
        return cycles / (vectors * VECTOR)
