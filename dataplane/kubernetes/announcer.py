"""Tells the API server of this node as flannel does, on a thread: nobody waits for its answers."""

import logging
import threading
from datetime import UTC, datetime
from urllib.parse import quote

from dataplane.errors import DataplaneError
from dataplane.flannel.documents import Lease
from dataplane.kubernetes import nodes
from dataplane.kubernetes.back_off import BackOff
from dataplane.kubernetes.client import Client, ThrottledError
from dataplane.kubernetes.objects import Object, table

log = logging.getLogger("dataplane")


class Announcer:
    """Begins with `start`. `path`: of all nodes; `name`: of this one."""

    def __init__(self, client: Client, path: str, name: str) -> None:
        self._client, self._name = client, name
        self._path = f"{path}/{quote(name, safe='')}/status"
        self._wanted: tuple[Object, Lease] | None = None
        self._announced: tuple[Lease, str] | None = None  # what was told, of which object
        self._trouble = ""
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="announce", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The client has to be closed, too, for a request to end at once."""
        self._ended.set()
        self._news.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def tell(self, node: Object, lease: Lease) -> None:
        """What the node's object says, and what it is to say."""
        before = self._wanted
        if before is None or before[0] is not node or before[1] != lease:
            self._wanted = node, lease
            self._news.set()

    def _run(self) -> None:
        back_off = BackOff()
        while not self._ended.is_set():
            self._news.wait()
            self._news.clear()
            least = 0.0
            try:
                self._announce()
                self._trouble = ""
                back_off.reset()
                continue
            except ThrottledError as error:
                self._say(str(error))
                least = error.after
            except DataplaneError as error:
                self._say(str(error))
            except Exception:
                log.exception("kubernetes: unforeseen; trying again")
            self._news.set()
            self._ended.wait(back_off.next(least))

    def _announce(self) -> None:
        """What the node's object does not say yet. Raises KubeError."""
        if self._wanted is None or self._ended.is_set():
            return
        node, lease = self._wanted
        change = nodes.patch_of(node, lease)
        if change is not None:
            node = self._client.patch(self._path, change)
        announced = lease, str(table(node, "metadata").get("uid"))
        if change is None and self._announced == announced:
            return
        if not nodes.is_available(node):
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._client.patch(self._path, nodes.condition(now))
        self._announced = announced
        log.info("kubernetes: node %s, subnet %s", self._name, lease.subnet.key())

    def _say(self, trouble: str) -> None:
        """Once per change."""
        if trouble != self._trouble and not self._ended.is_set():
            log.warning("kubernetes: %s; others may not know of this node", trouble)
        self._trouble = trouble
