"""The API server's lists, watches and patches, over HTTP. Objects are plain JSON values.

API conventions: kubernetes.io/docs/reference/using-api/api-concepts (lists in parts, resource
versions, bookmarks, 410 Gone).
"""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from dataplane.kubernetes.access import Access, KubeError
from dataplane.kubernetes.objects import Object, items, table

TIMEOUT = 10.0  # seconds for one answer, or a part of a list
WATCH = 290  # seconds after which the server ends a watch; a new one goes on from there
SILENCE = WATCH + 30.0  # seconds without a byte until a watch counts as broken
PART = 500  # objects of one answer
MAX_LINE = 1 << 24  # bytes of one event
LONGEST_AFTER = 300.0  # seconds that a server may have us wait

_TROUBLE = (OSError, http.client.HTTPException, ValueError)


class GoneError(KubeError):
    """The resource version is too old: list again."""


class ThrottledError(KubeError):
    """Too many requests (429)."""

    after = 0.0  # seconds in which the server wants none


class NotFoundError(KubeError):
    """There is no such object, or no such kind."""


class Event(NamedTuple):
    """`kind`: ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: Object


class Client:
    """Of any number of threads: each call has a connection of its own."""

    def __init__(self, access: Access, timeout: float = TIMEOUT) -> None:
        self._access, self._timeout = access, timeout
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = False

    def close(self) -> None:
        """What is being asked fails, and all that is asked after it."""
        self._closed = True
        for connection in list(self._open):
            _shut(connection)

    def list(self, path: str) -> tuple[list[Object], str]:
        """All objects of a kind, and the resource version they are of. Raises KubeError."""
        found: list[Object] = []
        query = {"limit": str(PART)}
        while True:
            told = self._call("GET", f"{path}?{urlencode(query)}")
            found += items(told, "items")
            meta = table(told, "metadata")
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion", ""))
            query["continue"] = meta["continue"]

    def get(self, path: str) -> Object:
        """Raises KubeError."""
        return self._call("GET", path)

    def patch(self, path: str, change: Object) -> Object:
        """A strategic merge patch. Raises KubeError."""
        kind = "application/strategic-merge-patch+json"
        return self._call("PATCH", path, json.dumps(change).encode(), kind)

    def watch(self, path: str, version: str) -> Iterator[Event]:
        """What happens from that version on, until the server ends it. Raises KubeError, GoneError
        among them."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH),
        }
        with self._answer("GET", f"{path}?{urlencode(query)}", timeout=SILENCE) as response:
            while line := _line(response, path):
                told = _decoded(line, path)
                kind, item = told.get("type"), told.get("object")
                if not isinstance(item, dict):
                    raise KubeError(f"{path}: an event without an object")
                if kind == "ERROR":
                    raise _refused(item.get("code"), path, item)
                if kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
                    yield Event(kind, item)

    def _call(self, method: str, target: str, body: bytes = b"", kind: str = "") -> Object:
        with self._answer(method, target, body, kind) as response:
            try:
                return _decoded(response.read(), target)
            except _TROUBLE as error:
                raise KubeError(f"{target}: {error or type(error).__name__}") from error

    @contextlib.contextmanager
    def _answer(
        self, method: str, target: str, body: bytes = b"", kind: str = "", timeout: float = 0.0
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept": "application/json", **self._access.headers()}
        headers |= {"Content-Type": kind} if kind else {}
        connection = self._connection()
        self._open.add(connection)
        try:
            if self._closed:
                raise KubeError("closed")
            try:
                connection.request(method, self._path(target), body or None, headers)
                if timeout and connection.sock is not None:
                    connection.sock.settimeout(timeout)
                response = connection.getresponse()
            except _TROUBLE as error:
                words = error or type(error).__name__
                raise KubeError(f"{self._access.server}: {words}") from error
            if response.status >= 300:
                refused = _refused(response.status, target, _status(response))
                if isinstance(refused, ThrottledError):
                    refused.after = _after(response)
                raise refused
            yield response
        finally:
            self._open.discard(connection)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._access.server)
        place = parts.hostname or "", parts.port
        if self._access.tls is not None:
            return http.client.HTTPSConnection(
                *place, timeout=self._timeout, context=self._access.tls
            )
        return http.client.HTTPConnection(*place, timeout=self._timeout)

    def _path(self, target: str) -> str:
        """Below where the server has its API."""
        return urlsplit(self._access.server).path.rstrip("/") + target


def _line(response: http.client.HTTPResponse, path: str) -> bytes:
    """Of an event; nothing at the end of the watch, or where it was cut between two events: it goes
    on from the last one in either case."""
    try:
        line = response.readline(MAX_LINE)
    except _TROUBLE as error:
        raise KubeError(f"{path}: the watch broke: {error or type(error).__name__}") from error
    if line and not line.endswith(b"\n"):
        raise KubeError(f"{path}: the watch broke in an event")
    return line


def _decoded(text: bytes, target: str) -> Object:
    try:
        told = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise KubeError(f"{target}: is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise KubeError(f"{target}: no object came")
    return told


def _status(response: http.client.HTTPResponse) -> Object:
    """What a refusal says of itself."""
    try:
        told = json.loads(response.read(1 << 16))
    except _TROUBLE:
        return {}
    return told if isinstance(told, dict) else {}


def _after(response: http.client.HTTPResponse) -> float:
    """Seconds, as API servers say it; none where it is a date."""
    told = response.headers.get("Retry-After", "")
    return min(float(told), LONGEST_AFTER) if told.isascii() and told.isdecimal() else 0.0


def _refused(code: Any, target: str, told: Object) -> KubeError:
    words = f"{target.partition('?')[0]}: {code} {told.get('message') or told.get('reason') or ''}"
    kinds = {410: GoneError, 404: NotFoundError, 429: ThrottledError}
    return (kinds.get(code, KubeError) if isinstance(code, int) else KubeError)(words.strip())


def _shut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
