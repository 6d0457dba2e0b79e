"""etcd v3 by its JSON gateway (etcd 3.4 and newer; dev-guide/api_grpc_gateway), over HTTP or HTTPS.

The gateway needs no library, and knows users by name and password, not by certificate. Keys and
values are bytes in base64, numbers of 64 bits come as text, and what is zero is left out.
"""

import base64
import contextlib
import http.client
import json
import queue
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dataplane.flannel.access import Access, EtcdError, checked

TIMEOUT = 5.0  # seconds for one answer
MAX_LINE = 1 << 26  # bytes of one message of a watch
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}

_TROUBLE = (OSError, http.client.HTTPException, ValueError)


class CompactedError(EtcdError):
    """The revision a watch was to begin with is gone: list again."""


class _RefusedError(EtcdError):
    """A server has understood, and will not."""


class Item(NamedTuple):
    """A key with its value (empty: it was deleted), and the revision that made it so."""

    key: str
    value: bytes
    revision: int
    deleted: bool = False


class Client:
    """Any of several servers of one cluster: the first that answers is kept until it does not.

    Of one thread; `close` may come from another.
    """

    def __init__(
        self, urls: Iterable[str], access: Access | None = None, timeout: float = TIMEOUT
    ) -> None:
        """Raises EtcdError where a URL is none, or a file cannot be used."""
        self._access = access or Access()
        self._token = ""
        self._urls = [checked(url) for url in urls]
        if not self._urls:
            raise EtcdError("no etcd server is named")
        self._tls = self._access.context()
        self._timeout = timeout
        self._asking: http.client.HTTPConnection | None = None
        self._closed = False

    def close(self) -> None:
        """What is being asked fails, and all that is asked after it."""
        self._closed = True
        if (asking := self._asking) is not None:
            _shut(asking)

    def list(self, prefix: str) -> tuple[int, list[Item]]:
        """All keys that begin so, and the revision at which they were all there is."""
        answer = self._call("kv/range", _range(prefix))
        return _revision(answer), [_item(kv) for kv in answer.get("kvs", ())]

    def get(self, key: str) -> Item | None:
        found = self._call("kv/range", {"key": _b64(key)}).get("kvs", ())
        return _item(found[0]) if found else None

    def grant(self, ttl: int) -> str:
        """The ID of a new lease of so many seconds."""
        return str(self._call("lease/grant", {"TTL": ttl})["ID"])

    def revoke(self, lease: str) -> None:
        self._call("lease/revoke", {"ID": lease})

    def put(self, key: str, value: bytes) -> int:
        """The revision it has then."""
        return _revision(self._call("kv/put", {"key": _b64(key), "value": _b64(value)}))

    def put_if(self, key: str, value: bytes, lease: str, revision: int) -> int | None:
        """Puts if the key was last changed at `revision` (0: if there is none). The revision it
        has then; None: it is not so."""
        compare = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}
        put = {"key": _b64(key), "value": _b64(value), "lease": lease}
        answer = self._call("kv/txn", {"compare": [compare], "success": [{"request_put": put}]})
        return _revision(answer) if answer.get("succeeded") else None

    def delete_if(self, key: str, revision: int) -> bool:
        compare = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}
        gone = {"request_delete_range": {"key": _b64(key)}}
        answer = self._call("kv/txn", {"compare": [compare], "success": [gone]})
        return bool(answer.get("succeeded"))

    def watch(self, prefix: str, revision: int) -> "Watch":
        """What happens to keys that begin so, from that revision on."""
        create = _range(prefix) | {"start_revision": revision}
        return Watch(self._opened(self._urls[0]), create, self._headers())

    def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        trouble: list[str] = []
        for url in list(self._urls):
            try:
                answer = self._ask(url, path, body)
            except (_RefusedError, *_TROUBLE) as error:
                trouble.append(f"{url}: {error or type(error).__name__}")
                self._urls.append(self._urls.pop(0))
            else:
                return answer
        raise EtcdError("; ".join(trouble))

    def _ask(self, url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Anew as that user where the token may have lapsed."""
        name = self._access.username
        if name and not self._token:
            self._log_in(url)
            return self._post(url, path, body)
        try:
            return self._post(url, path, body)
        except _RefusedError:
            if not name:
                raise
            self._log_in(url)
            return self._post(url, path, body)

    def _log_in(self, url: str) -> None:
        self._token = ""
        user = {"name": self._access.username, "password": self._access.password}
        self._token = str(self._post(url, "auth/authenticate", user)["token"])

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    def _post(self, url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.closing(self._open(url)) as connection:
            self._asking = connection
            connection.connect()
            if self._closed:
                raise EtcdError("closed")
            connection.request("POST", f"/v3/{path}", json.dumps(body), self._headers())
            response = connection.getresponse()
            text = response.read()
            if response.status != http.HTTPStatus.OK:
                raise _RefusedError(f"refuses {path}: {_reason(text) or response.reason}")
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError(f"{path}: no object came")
        return answer

    def _open(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        place = parts.hostname or "", parts.port or 2379
        if parts.scheme == "https":
            return http.client.HTTPSConnection(*place, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(*place, timeout=self._timeout)

    def _opened(self, url: str) -> http.client.HTTPConnection:
        """Its answer may take for ever. Raises EtcdError."""
        connection = self._open(url)
        try:
            connection.connect()
        except OSError as error:
            raise EtcdError(f"{url}: {error}") from error
        connection.sock.settimeout(None)
        return connection


class Watch:
    """Events in the order of their revisions, fetched by a thread of its own. A context manager."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        create: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        self._connection, self._create, self._headers = connection, create, headers
        self._come: queue.SimpleQueue[list[Item] | EtcdError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._fetch, name="etcd watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._connection)
        self._thread.join()
        self._connection.close()

    def wake(self) -> None:
        """`next` returns at once, from any thread."""
        self._come.put([])

    def next(self, timeout: float) -> list[Item]:
        """Events of one message; none where none came in time. Raises EtcdError: it has ended."""
        try:
            got = self._come.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return []
        if isinstance(got, EtcdError):
            raise got
        return got

    def _fetch(self) -> None:
        try:
            self._read()
        except EtcdError as error:
            self._come.put(error)
        except (*_TROUBLE, AttributeError, KeyError, TypeError) as error:
            self._come.put(EtcdError(f"the watch broke: {error or type(error).__name__}"))

    def _read(self) -> None:
        connection = self._connection
        # the server ends it where it has lost its cluster
        headers = {"Grpc-Metadata-hasleader": "true", **self._headers}
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.request(
            "POST", "/v3/watch", json.dumps({"create_request": self._create}), headers
        )
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            why = _reason(response.read(MAX_LINE)) or response.reason
            raise EtcdError(f"the watch is refused: {why}")
        while line := response.readline(MAX_LINE):
            message = json.loads(line)
            if "error" in message:
                raise EtcdError(f"the watch ended: {message['error'].get('message', '')}")
            result = message["result"]
            if int(result.get("compact_revision", 0)):
                raise CompactedError(f"compacted up to {result['compact_revision']}")
            if result.get("canceled"):
                raise EtcdError(f"the watch ended: {result.get('cancel_reason', 'canceled')}")
            if events := result.get("events"):
                self._come.put([_item(e["kv"], e.get("type") == "DELETE") for e in events])
        raise EtcdError("the server ended the watch")


def _shut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _range(prefix: str) -> dict[str, str]:
    """etcd's own words for "begins with": up to the prefix with its last byte one more."""
    raw = prefix.encode()
    return {"key": _b64(raw), "range_end": _b64(raw[:-1] + bytes([raw[-1] + 1]))}


def _b64(raw: str | bytes) -> str:
    return base64.b64encode(raw.encode() if isinstance(raw, str) else raw).decode()


def _item(kv: Mapping[str, str], deleted: bool = False) -> Item:
    key = base64.b64decode(kv["key"]).decode(errors="replace")
    return Item(key, base64.b64decode(kv.get("value", "")), int(kv["mod_revision"]), deleted)


def _revision(answer: Mapping[str, Any]) -> int:
    return int(answer["header"]["revision"])


def _reason(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):  # what stands before the gateway speaks plainly
        return text[:200].decode(errors="replace").strip()
