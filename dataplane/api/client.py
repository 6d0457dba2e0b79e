"""Client of a running node: the resources and names of the API, as plain values.

with Client() as node:
    node.apply(Path("node.yaml").read_text())
    for peer in node.get("peers"): ...
"""

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from dataplane.api.sockets import find_socket
from dataplane.errors import (
    DataplaneError,
    DocumentError,
    Fault,
    MissingError,
    NoNodeError,
    StaleError,
)

Value = dict[str, Any]
TIMEOUT = 60.0  # seconds
VERDICTS = ("/healthz", "/readyz")  # where 503 is an answer


class Client:
    """One connection to a node; a context manager. Not for several threads at once.

    `path`: of its socket, by default the only node's of this host. Methods raise NoNodeError where
    nobody answers, DocumentError with every fault, StaleError, MissingError, else DataplaneError.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT
    ) -> None:
        self.path = os.fspath(path if path is not None else find_socket())
        self._connection = _Connection(self.path, timeout)

    def close(self) -> None:
        """Again is harmless."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- looking -------------------------------------------------------------------------------

    def status(self) -> Value:
        """The node at one look."""
        return self._value("GET", "/v1/status")

    def get(self, kind: str) -> list[Value]:
        """All of a kind: networks, endpoints, remote-subnets, peers, acls, nats, …"""
        items: list[Value] = self._value("GET", f"/v1/{_part(kind)}")["items"]
        return items

    def describe(self, kind: str, name: str) -> Value:
        """One of a kind, by its whole name or what stands behind its network's."""
        return self._value("GET", f"/v1/{_part(kind)}/{_part(name)}")

    def flows(
        self, filters: Iterable[str] = (), *, limit: int = 1000, by: str | None = None
    ) -> Value:
        """The flow table, or its sums `by` pair, src, dst, proto, vni, endpoint or peer."""
        query: list[tuple[str, str]] = [("filter", text) for text in filters]
        query += [("limit", str(limit))] + ([("by", by)] if by else [])
        return self._value("GET", "/v1/flows", query)

    def graph(self, form: str = "json") -> str:
        """Networks, endpoints and peers, as json, mermaid, dot or svg."""
        return self._raw("GET", "/v1/graph", [("format", form)]).decode()

    def stats(self) -> Value:
        """All counters."""
        return self._value("GET", "/v1/stats")

    def findings(self) -> list[Value]:
        """What is wrong with the node, and what mends it."""
        found: list[Value] = self._value("GET", "/v1/findings")["findings"]
        return found

    def trace(self, packet: str, at: str | None = None, vni: int | None = None) -> Value:
        """What would become of a packet: its steps, and `text` and `mermaid` of them."""
        asked = {"packet": packet, "in": at, "vni": vni}
        body = json.dumps({k: v for k, v in asked.items() if v is not None})
        return self._value("POST", "/v1/trace", body=body.encode())

    def trace_frame(self, frame: str, at: str) -> Value:
        """What would become of an Ethernet frame in hex that came in at a port."""
        return self._value(
            "POST", "/v1/trace", body=json.dumps({"frame": frame, "in": at}).encode()
        )

    def ping(self, peer: str, **asked: Any) -> Value:
        """One echo request to what is behind a peer; `from`, `to`, `size`, `sequence` as the API
        has them. What became of it: `answer` is reply, too_big, unreachable, refused or none."""
        told = {k: v for k, v in {"peer": peer, **asked}.items() if v is not None}
        return self._value("POST", "/v1/ping", body=json.dumps(told).encode())

    def events(
        self, kinds: Iterable[str] = (), filters: Iterable[str] = (), *, frames: bool = False
    ) -> Iterator[Value]:
        """Events as they happen, the first one says that it listens: of drop, new, end, config and
        peers, or of some of them. `frames`: with each one's frame, in hex."""
        with self._stream(events_target(kinds, filters, frames)) as stream:
            for line in stream:
                yield json.loads(line)

    def capture(
        self,
        points: Iterable[str] = ("rx", "tx"),
        filters: Iterable[str] = (),
        *,
        count: int = 0,
        snap: int | None = None,
    ) -> Iterator[bytes]:
        """Pieces of a pcapng file, as frames pass; `count` 0: without end."""
        with self._stream(capture_target(points, filters, count, snap)) as stream:
            while part := stream.read1():
                yield part

    def metrics(self) -> str:
        """For Prometheus."""
        return self._raw("GET", "/metrics").decode()

    # ---- policy --------------------------------------------------------------------------------

    def export(self) -> str:
        """The committed policy as YAML: what `apply` takes."""
        return self._raw("GET", "/v1/policy", [("format", "yaml")]).decode()

    def policy(self) -> Value:
        """The committed policy."""
        return self._value("GET", "/v1/policy")

    def apply(
        self,
        document: str | bytes,
        *,
        name: str = "document",
        prune: bool = False,
        dry_run: bool = False,
        unchanged: bool = False,
        base: int | None = None,
    ) -> Value:
        """Commits what a document of the node names; what it leaves out, or gives its default,
        stays, or goes with `prune`.

        `name`: what faults call it. `base`: the generation that must still hold.
        """
        flags = {"dry_run": dry_run, "unchanged": unchanged}
        query = [("name", name), *((key, "true") for key, on in flags.items() if on)]
        body = document.encode() if isinstance(document, str) else document
        headers = {} if base is None else {"If-Match": f'"{base}"'}
        method = "PUT" if prune else "PATCH"
        return self._value(method, "/v1/policy", query, body, headers)

    def put(self, network: str, part: str, name: str, value: Value) -> Value:
        """Commits one of a network's endpoints, remote-subnets, direct-subnets, acls or
        load-balancers."""
        path = f"/v1/networks/{_part(network)}/{_part(part)}/{_part(name)}"
        return self._value("PUT", path, body=json.dumps(value).encode())

    def delete(self, network: str, part: str | None = None, name: str | None = None) -> Value:
        """Removes one of them, or a whole network."""
        path = f"/v1/networks/{_part(network)}"
        if part is not None and name is not None:
            path += f"/{_part(part)}/{_part(name)}"
        return self._value("DELETE", path)

    def hns(self, method: str, path: str, value: Any = None) -> Any:
        """A call of HNS: a method, and a path below /hcn."""
        body = None if value is None else json.dumps(value).encode()
        return json.loads(self._raw(method, f"/hcn/{quote(path)}", body=body))

    def restart(self, patience: float = 60.0) -> Value:
        """Has a new process take over; its status, once it serves. Raises DataplaneError."""
        before = self._value("POST", "/v1/restart")["pid"]
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self._connection.close()
            with contextlib.suppress(DataplaneError):  # nobody, or who is about to end
                status = self.status()
                if status["pid"] != before:
                    return status
            time.sleep(0.05)
        raise DataplaneError("no other process took over; see the node's log")

    # ---- requests ------------------------------------------------------------------------------

    def ask(self, path: str) -> Any:
        """What GET of a path answers: of JSON the value, else text."""
        text = self._raw("GET", path)
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def _value(self, *request: Any, **extra: Any) -> Value:
        value: Value = json.loads(self._raw(*request, **extra))
        return value

    def _asked(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """On a connection that was idle, once more on a fresh one: the node may have closed it."""
        idle = self._connection.sock is not None
        try:
            self._connection.request(method, target, body, headers)
            response = self._connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            self._connection.close()
            if not idle:
                raise
            return self._asked(method, target, body, headers)
        return response, response.read()

    @contextlib.contextmanager
    def _stream(self, target: str) -> Iterator[http.client.HTTPResponse]:
        """An answer that goes on, on a connection of its own."""
        connection = _Connection(self.path, None)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(response.status, response.read())
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise gone(self.path, error) from error
        finally:
            connection.close()

    def _raw(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            response, data = self._asked(method, target, body, headers or {})
        except TimeoutError as error:
            self._connection.close()
            raise NoNodeError(f"{self.path}: no answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            why = getattr(error, "strerror", None) or error
            raise NoNodeError(f"{self.path}: no node answers: {why}") from error
        if response.status >= 400 and (response.status != 503 or path not in VERDICTS):
            raise refusal(response.status, data)
        return data


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _part(name: str) -> str:
    return quote(name, safe="")


def events_target(kinds: Iterable[str], filters: Iterable[str], frames: bool) -> str:
    """What is asked for by `Client.events`."""
    query = [("filter", text) for text in filters] + [("frames", "true")] * frames
    query += [("kind", ",".join(kinds))] if kinds else []
    return f"/v1/events?{urlencode(query)}"


def capture_target(
    points: Iterable[str], filters: Iterable[str], count: int, snap: int | None
) -> str:
    """What is asked for by `Client.capture`."""
    query = [("filter", text) for text in filters] + [("point", ",".join(points))]
    query += [("count", str(count))] + ([("snap", str(snap))] if snap is not None else [])
    return f"/v1/capture?{urlencode(query)}"


def gone(path: str, error: Exception) -> NoNodeError:
    """Of a stream that was cut."""
    why = getattr(error, "strerror", None) or error
    return NoNodeError(f"{path}: the node is gone: {why}")


def refusal(status: int, data: bytes) -> DataplaneError:
    """What an answer of status 400 or more says: a problem (RFC 9457), or nothing of ours."""
    try:
        problem = json.loads(data)
        title = str(problem["title"])
    except (ValueError, KeyError, TypeError):
        return DataplaneError(f"the node answers with status {status}")
    if "faults" in problem:
        return DocumentError(tuple(Fault(**fault) for fault in problem["faults"]))
    kinds: dict[int, type[DataplaneError]] = {404: MissingError, 412: StaleError}
    return kinds.get(status, DataplaneError)(title)
