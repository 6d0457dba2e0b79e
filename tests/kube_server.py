"""An API server of Kubernetes for tests: what lists, watches and patches are, and no more.

No server binary can be had here. The rules are those of the API conventions
(kubernetes.io/docs/reference/using-api/api-concepts), and it is strict: what a client may not do is
refused, and counted in `wrongs`.

    python3 -m tests.kube_server ADDRESS PORT FILE    serves a List, and again what it has by SIGHUP
"""

import copy
import json
import signal
import ssl
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dataplane.netns import inside

Object = dict[str, Any]
Key = tuple[str, str]

LISTS = {
    "/api/v1/nodes": "NodeList",
    "/api/v1/services": "ServiceList",
    "/api/v1/pods": "PodList",
    "/api/v1/namespaces": "NamespaceList",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSliceList",
    "/apis/networking.k8s.io/v1/networkpolicies": "NetworkPolicyList",
}
PATHS = {path.rpartition("/")[2]: path for path in LISTS}
STRATEGIC = "application/strategic-merge-patch+json"


class Refused(Exception):
    """Code and reason."""


class Server:
    """A context manager; `url` is of an address in a network namespace, default loopback here.
    Objects are put and deleted by methods, as by kubectl; all of any thread."""

    def __init__(
        self,
        token: str = "",
        netns: str | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """By HTTPS with a certificate, its own and the only one that it takes of clients."""
        self.token = token
        self.wrongs: list[str] = []
        self.requests: list[str] = []
        self.down = False
        self.throttled = 0  # so many requests are refused as too many, for a second
        self._changed = threading.Condition()
        self._version = 100
        self._oldest = 100  # watches may not begin before
        self._objects: dict[str, dict[Key, Object]] = {path: {} for path in LISTS}
        self._log: dict[str, list[tuple[int, bytes]]] = {path: [] for path in LISTS}
        self._cut = 0  # watches of generations before are cut
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = inside(netns, lambda: _Http((address, port), Handler))
        self.url = f"http://{address}:{self._http.server_address[1]}"
        if certificate is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate[0])
            tls.load_cert_chain(*certificate)
            tls.verify_mode = ssl.CERT_REQUIRED
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
            self.url = self.url.replace("http", "https")
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    # ---- as kubectl ----------------------------------------------------------------------------

    def put(self, kind: str, item: Object) -> None:
        """New, or in place of the old one."""
        path = PATHS[kind]
        with self._changed:
            self._put(path, copy.deepcopy(item))

    def apply(self, listed: Object) -> None:
        """Puts those of a List that are not as they are there; none is deleted."""
        for item in listed["items"]:
            path = next(path for path, kind in LISTS.items() if kind == f"{item['kind']}List")
            meta = item["metadata"]
            with self._changed:
                old = self._objects[path].get((meta.get("namespace", ""), meta["name"]), {})
                if any(old.get(field) != item[field] for field in item.keys() - {"metadata"}):
                    self._put(path, {**old, **item, "metadata": old.get("metadata", {}) | meta})

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        path = PATHS[kind]
        with self._changed:
            item = copy.deepcopy(self._objects[path].pop((namespace, name)))
            self._note(path, "DELETED", item)

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        with self._changed:
            return copy.deepcopy(self._objects[PATHS[kind]][namespace, name])

    def compact(self) -> None:
        """Watches may begin from now on only."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            for log in self._log.values():
                log.clear()

    def cut(self) -> None:
        """Ends all watches at once, in the middle of whatever they say."""
        with self._changed:
            self._cut += 1
            self._changed.notify_all()

    def _put(self, path: str, item: Object) -> Object:
        meta = item.setdefault("metadata", {})
        key = meta.get("namespace", ""), meta["name"]
        kind = "MODIFIED" if key in self._objects[path] else "ADDED"
        self._objects[path][key] = item
        self._note(path, kind, item)
        return item

    def _note(self, path: str, kind: str, item: Object) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._log[path].append((self._version, _line(kind, item)))
        self._changed.notify_all()

    # ---- as the API ----------------------------------------------------------------------------

    def list(self, path: str, query: dict[str, str]) -> Object:
        limit, begin = int(query.get("limit", 0)), 0
        with self._changed:
            version = str(self._version)
            if "continue" in query:
                version, _, place = query["continue"].partition(".")
                begin = int(place)
                if int(version) < self._oldest:
                    raise Refused(410, "Expired")
            keys = sorted(self._objects[path])
            end = begin + limit if limit else len(keys)
            items = [copy.deepcopy(self._objects[path][key]) for key in keys[begin:end]]
        meta = {"resourceVersion": version}
        if end < len(keys):
            meta |= {"continue": f"{version}.{end}", "remainingItemCount": str(len(keys) - end)}
        return {"kind": LISTS[path], "metadata": meta, "items": items}

    def watch(self, path: str, query: dict[str, str]) -> Iterator[bytes]:
        """Lines, b"" where the server would be silent for a while."""
        since = int(query["resourceVersion"])
        until = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        with self._changed:
            cut = self._cut
            if since < self._oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                yield _line("ERROR", gone)
                return
        while time.monotonic() < until:
            with self._changed:
                if self._cut != cut:
                    raise ConnectionAbortedError
                log = self._log[path]
                lines = [line for _, line in log[bisect_right(log, (since, b"\xff")) :]]
                since = self._version
                if not lines and not self._changed.wait(0.2) and "allowWatchBookmarks" in query:
                    kind = LISTS[path].removesuffix("List")
                    mark = {"kind": kind, "metadata": {"resourceVersion": str(since)}}
                    lines = [_line("BOOKMARK", mark)]
            yield b"".join(lines)

    def patch(self, path: str, change: Object) -> Object:
        whole, _, sub = path.partition("/api/v1/nodes/")[2].partition("/")
        if sub not in ("", "status"):
            raise Refused(404, "NotFound")
        with self._changed:
            item = self._objects[PATHS["nodes"]].get(("", unquote(whole)))
            if item is None:
                raise Refused(404, "NotFound")
            item = copy.deepcopy(item)
            if sub == "status" and change.keys() - {"metadata", "status"}:
                raise Refused(422, "Invalid")
            for name, text in change.get("metadata", {}).get("annotations", {}).items():
                if not isinstance(text, str):
                    raise Refused(422, "Invalid")
                item["metadata"].setdefault("annotations", {})[name] = text
            held = item.setdefault("status", {}).setdefault("conditions", [])
            for each in change.get("status", {}).get("conditions", []):
                held[:] = [c for c in held if c["type"] != each["type"]] + [each]
            return copy.deepcopy(self._put(PATHS["nodes"], item))


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        """Without asking who the address is."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_PATCH(self) -> None:
        self._serve(self._patch)

    def _serve(self, work: Any) -> None:
        api = self.server_of
        api.requests.append(f"{self.command} {self.path}")
        try:
            if api.down:
                self.close_connection = True
                self.connection.close()
                return
            if api.throttled:
                api.throttled -= 1
                raise Refused(429, "TooManyRequests")
            if api.token and self.headers.get("Authorization") != f"Bearer {api.token}":
                raise Refused(401, "Unauthorized")
            work(api)
        except Refused as refused:
            code, reason = refused.args
            told = {"kind": "Status", "code": code, "reason": reason, "message": reason.lower()}
            self._answer(told, code)
        except (BrokenPipeError, ConnectionError):
            self.close_connection = True

    def _get(self, api: Server) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path not in LISTS:
            raise Refused(404, "NotFound")
        if query.get("watch") not in ("true", "1"):
            self._answer(api.list(parts.path, query))
            return
        if "resourceVersion" not in query or "limit" in query:
            api.wrongs.append(f"a watch as {self.path}")
            raise Refused(400, "BadRequest")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in api.watch(parts.path, query):
            if text:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _patch(self, api: Server) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Type") != STRATEGIC:
            api.wrongs.append(f"a patch as {self.headers.get('Content-Type')}")
            raise Refused(415, "UnsupportedMediaType")
        self._answer(api.patch(urlsplit(self.path).path, json.loads(body)))

    def _answer(self, told: Object, code: int = 200) -> None:
        text = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(text)


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _main(address: str, port: str, file: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    with Server(address=address, port=int(port)) as server:
        while True:
            server.apply(json.loads(Path(file).read_text()))
            signal.sigwait({signal.SIGHUP})


if __name__ == "__main__":
    _main(*sys.argv[1:])
