"""One kind of objects, as an API server has them: listed once, then watched, on a thread.

Whatever the server does, what was known last stays known; who has lost the thread lists again.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dataplane.errors import DataplaneError
from dataplane.kubernetes.back_off import LONGEST, BackOff
from dataplane.kubernetes.client import Client, GoneError, ThrottledError
from dataplane.kubernetes.objects import Key, Object, key_of
from dataplane.standing import UNFORESEEN, Standing

SHORT = 1.0  # seconds; a watch that the server ends sooner is not begun again at once

log = logging.getLogger("dataplane")


class Change(NamedTuple):
    """`listed`: all there is; else one object, None if it is gone."""

    kind: str
    listed: dict[Key, Object] | None = None
    key: Key = ("", "")
    object: Object | None = None


class Reflector:
    """Begins with `start`; `tell` is called on its thread, and must not block for long."""

    def __init__(
        self,
        client: Client,
        kind: str,
        path: str,
        tell: Callable[[Change], None],
        standing: Standing,
    ) -> None:
        self._client, self._path, self._tell, self.kind = client, path, tell, kind
        self._standing = standing
        self._ended = threading.Event()
        self._version = ""
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The client has to be closed, too, for a watch to end at once."""
        self._ended.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        back_off = BackOff()
        while not self._ended.is_set():
            begin, done, least = time.monotonic(), False, 0.0
            try:
                self._follow()
                done = True
            except GoneError:
                self._version = ""
            except ThrottledError as error:
                self._say(str(error))
                least = error.after
            except DataplaneError as error:
                self._say(str(error))
            except Exception:
                log.exception("kubernetes: %s: unforeseen; trying again", self.kind)
                self._standing.tell(UNFORESEEN, of=self.kind)
            lasted = time.monotonic() - begin
            if done and lasted > SHORT:
                continue
            if lasted > LONGEST:
                back_off.reset()
            self._ended.wait(back_off.next(least))

    def _follow(self) -> None:
        """Until the server ends the watch. Raises DataplaneError."""
        if not self._version:
            items, version = self._client.list(self._path)
            listed = {key: item for item in items if (key := key_of(item)) is not None}
            self._tell(Change(self.kind, listed=listed))
            self._version = version
            self._say("")
        for event in self._client.watch(self._path, self._version):
            self._say("")
            self._version = _version(event.object, self._version)
            key = key_of(event.object)
            if event.kind != "BOOKMARK" and key is not None:
                gone = event.kind == "DELETED"
                self._tell(Change(self.kind, key=key, object=None if gone else event.object))
            if self._ended.is_set():
                break
        self._say("")

    def _say(self, trouble: str) -> None:
        """Once per change."""
        if trouble and trouble != self._trouble and not self._ended.is_set():
            log.warning("kubernetes: %s; what was known last holds", trouble)
        elif not trouble and self._trouble:
            log.info("kubernetes: follows %s again", self.kind)
        self._trouble = trouble
        self._standing.tell(trouble, of=self.kind)


def _version(item: Object, before: str) -> str:
    meta: Any = item.get("metadata")
    found = meta.get("resourceVersion") if isinstance(meta, dict) else None
    return str(found) if found else before
