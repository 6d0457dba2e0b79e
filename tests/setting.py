"""How suites run what they test, from the environment that `dataplane run` reads, too.

DATAPLANE_OFFLOAD=0: ports without offloads. DATAPLANE_WORKERS=N: N threads forward; of an engine
that a test itself hands frames to, N workers take them in turns. `make settings` sets them.
"""

import os
from typing import Any

from dataplane import engine
from dataplane.batch import Batch, Result

OFFLOAD = os.environ.get("DATAPLANE_OFFLOAD", "1") != "0"
WORKERS = int(os.environ.get("DATAPLANE_WORKERS", "1"))
PORT: dict[str, Any] = {"offload": OFFLOAD, "queues": WORKERS}


class Engine(engine.Engine):
    """Each call of `process` or `process_one` is the next worker's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(workers=WORKERS, **options)
        self._worker = 0

    def process(self, batch: Batch, now: int | None = None, *, worker: int = 0) -> Result:
        self._worker = (self._worker + 1) % WORKERS
        return super().process(batch, now, worker=self._worker)

    def more(self, batch: Batch, now: int | None = None, *, worker: int = 0) -> Result:
        return super().more(batch, now, worker=self._worker)

    def process_one(self, *frame: Any, worker: int = 0, **options: Any) -> engine.Outcome:
        self._worker = (self._worker + 1) % WORKERS
        return super().process_one(*frame, worker=self._worker, **options)
