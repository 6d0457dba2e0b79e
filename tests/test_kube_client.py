"""The API server's protocol against a strict double of it: lists, watches, cuts and refusals."""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dataplane.kubernetes import client as client_module
from dataplane.kubernetes.access import Access, KubeError
from dataplane.kubernetes.client import Client, Event, GoneError, NotFoundError, ThrottledError
from dataplane.kubernetes.reflector import Change, Reflector
from dataplane.standing import Standing
from tests.kube_objects import node, service
from tests.kube_server import Refused, Server

SERVICES, NODES = "/api/v1/services", "/api/v1/nodes"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.wrongs == []


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def name_of(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


# ---- the client ----------------------------------------------------------------------------------


def test_a_long_list_comes_in_parts(server: Server) -> None:
    for i in range(client_module.PART * 2 + 3):
        server.put("services", service(f"s{i:04}", f"10.96.{i >> 8}.{i & 255}"))
    items, version = Client(Access(server.url)).list(SERVICES)
    assert [name_of(item) for item in items] == [f"s{i:04}" for i in range(len(items))]
    assert len(items) == client_module.PART * 2 + 3
    assert len(server.requests) == 3
    assert (
        version
        == server.get("services", name_of(items[-1]), "default")["metadata"]["resourceVersion"]
    )


def test_a_list_may_lapse_between_its_parts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets what a `continue` is of: nothing of it holds."""
    monkeypatch.setattr(client_module, "PART", 1)
    server.put("services", service("a", "10.96.0.1"))
    server.put("services", service("b", "10.96.0.2"))
    whole = server.list

    def lapsing(path: str, query: dict[str, str]) -> Any:
        if "continue" in query:
            server.compact()
        return whole(path, query)

    monkeypatch.setattr(server, "list", lapsing)
    with pytest.raises(GoneError, match="410"):
        Client(Access(server.url)).list(SERVICES)


def test_a_watch_tells_what_happens_after_a_version(server: Server) -> None:
    server.put("services", service("before", "10.96.0.1"))
    client = Client(Access(server.url))
    _, version = client.list(SERVICES)
    server.put("services", service("a", "10.96.0.2"))
    server.put("nodes", node("us", "10.244.1.0/24"))  # another kind
    server.put("services", service("a", "10.96.0.3"))
    server.delete("services", "a", "default")
    events = client.watch(SERVICES, version)
    seen = [next(events) for _ in range(4)]
    assert [(e.kind, name_of(e.object)) for e in seen[:3]] == [
        ("ADDED", "a"),
        ("MODIFIED", "a"),
        ("DELETED", "a"),
    ]
    assert (seen[3].kind, seen[3].object["kind"]) == ("BOOKMARK", "Service")
    assert int(seen[3].object["metadata"]["resourceVersion"]) > int(version)
    client.close()


def test_a_version_that_is_too_old(server: Server) -> None:
    client = Client(Access(server.url))
    _, version = client.list(SERVICES)
    server.compact()
    with pytest.raises(GoneError, match="410 too old"):
        next(client.watch(SERVICES, version))


def test_a_watch_that_is_cut(server: Server) -> None:
    client = Client(Access(server.url))
    _, version = client.list(SERVICES)
    events = client.watch(SERVICES, version)
    assert next(events).kind == "BOOKMARK"
    server.cut()
    assert {event.kind for event in events} <= {"BOOKMARK"}


def test_refusals_are_told_in_the_servers_words(server: Server) -> None:
    client = Client(Access(server.url))
    with pytest.raises(NotFoundError, match="404 notfound"):
        client.get("/apis/example.org/v1/things")
    with pytest.raises(NotFoundError):
        client.patch(f"{NODES}/nobody/status", {"metadata": {"annotations": {"a": "b"}}})
    server.put("nodes", node("us", "10.244.1.0/24"))
    with pytest.raises(KubeError, match="422 invalid"):
        client.patch(f"{NODES}/us/status", {"spec": {"podCIDR": "10.0.0.0/8"}})
    server.token = "secret"
    with pytest.raises(KubeError, match="401 unauthorized"):
        client.list(NODES)


def test_a_patch_merges(server: Server) -> None:
    """Annotations by name, conditions by type; all else of the node stays."""
    told = node("us", "10.244.1.0/24")
    told["metadata"]["annotations"] = {"other": "stays"}
    told["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    server.put("nodes", told)
    client = Client(Access(server.url))
    client.patch(f"{NODES}/us/status", {"metadata": {"annotations": {"ours": "1"}}})
    ours = {"type": "NetworkUnavailable", "status": "False"}
    for _ in range(2):
        client.patch(f"{NODES}/us/status", {"status": {"conditions": [ours]}})
    made = server.get("nodes", "us")
    assert made["metadata"]["annotations"] == {"other": "stays", "ours": "1"}
    assert made["status"]["conditions"] == [{"type": "Ready", "status": "True"}, ours]
    assert made["spec"]["podCIDR"] == "10.244.1.0/24"


def test_closing_ends_a_watch_from_another_thread(server: Server) -> None:
    client = Client(Access(server.url))
    _, version = client.list(SERVICES)
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            list(client.watch(SERVICES, version))
        except KubeError as error:
            ended.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: len(server.requests) == 2)
    client.close()
    thread.join(2)
    assert not thread.is_alive()
    with pytest.raises(KubeError, match="closed"):
        client.list(SERVICES)


@contextlib.contextmanager
def saying(*answers: bytes) -> Iterator[tuple[str, list[float]]]:
    """A server that says this, whatever is asked, the last again and again, and closes each time;
    when it was asked."""
    asked: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    asked.append(time.monotonic())
                    connection.sendall(answers[min(len(asked), len(answers)) - 1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def ok(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        ok(b"<html>"),
        ok(b"[]"),
        ok(b"{", 100),
        ok(b'{"items":' + b"[" * 100_000),
        ok(b"\xff"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nothing", "no HTTP", "500", "redirect", "headers", "no JSON", "no object", "half",
         "deep", "no text", "no chunk"],
)  # fmt: skip
def test_an_answer_that_is_none(answer: bytes) -> None:
    with saying(answer) as (url, _):
        client = Client(Access(url), timeout=2)
        with pytest.raises(KubeError):
            client.list(SERVICES)
        with contextlib.suppress(KubeError):  # or it ends
            assert list(client.watch(SERVICES, "1")) == []


@pytest.mark.parametrize("items", ["7", '"x"', "{}", "null", "[null, 7]"])
def test_a_list_of_nothing(items: str) -> None:
    with saying(ok(b'{"metadata": [], "items": %b}' % items.encode())) as (url, _):
        assert Client(Access(url), timeout=2).list(SERVICES) == ([], "")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}\n", "without an object"),
        (b'{"type":"ADDED","object":[]}\n', "without an object"),
        (b'{"type":"ADDED","object":{"metadata":{"na', "broke in an event"),
        (b"\n", "is not JSON"),
        (b'{"type":"ERROR","object":{"code":[410]}}\n', r"\[410\]"),
        (b'{"type":"ERROR","object":{"code":500,"message":"etcd"}}\n', "500 etcd"),
    ],
)
def test_an_event_that_is_none(line: bytes, why: str) -> None:
    """What came before holds."""
    good = b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n'
    with saying(ok(good + line)) as (url, _):
        events = Client(Access(url), timeout=2).watch(SERVICES, "1")
        assert next(events) == Event("ADDED", {"metadata": {"name": "a"}})
        with pytest.raises(KubeError, match=why):
            list(events)


def test_a_redirect_is_a_refusal() -> None:
    answer = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"
    with saying(answer) as (url, _), pytest.raises(KubeError, match="302"):
        list(Client(Access(url), timeout=2).watch(SERVICES, "1"))


def test_a_server_that_says_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(KubeError, match="timed out"):
            Client(Access(url), timeout=0.3).list(SERVICES)
        assert time.monotonic() - begin < 2


# ---- the reflector -------------------------------------------------------------------------------


class Followed:
    """A reflector, what it told, and what is known by that."""

    def __init__(self, url: str, token: str = "") -> None:
        self.client = Client(Access(url, token=token), timeout=2)
        self.changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        standing = Standing("look", synced=False)
        self.reflector = Reflector(self.client, "services", SERVICES, self.changes.put, standing)
        self.known: dict[str, Any] = {}
        self.told: list[tuple[str, ...]] = []

    def __enter__(self) -> "Followed":
        self.reflector.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reflector.end()
        self.client.close()
        self.reflector.join(5)

    def names(self) -> set[str]:
        while not self.changes.empty():
            change = self.changes.get()
            name = change.key[1]
            if change.listed is not None:
                self.known = {key[1]: item for key, item in change.listed.items()}
                self.told.append(("list", *sorted(self.known)))
            elif change.object is None:
                self.known.pop(name)
                self.told.append(("gone", name))
            else:
                self.known[name] = change.object
                self.told.append(("put", name))
        return set(self.known)

    def lists(self) -> int:
        self.names()
        return sum(each[0] == "list" for each in self.told)

    def version(self) -> int:
        """The version it has come to; 0 before its first list."""
        return int(self.reflector._version or 0)


def test_it_lists_once_and_follows(server: Server) -> None:
    server.put("services", service("a", "10.96.0.1"))
    with Followed(server.url) as followed:
        until(lambda: followed.names() == {"a"})
        server.put("services", service("b", "10.96.0.2"))
        server.delete("services", "a", "default")
        until(lambda: followed.names() == {"b"})
        assert followed.told == [("list", "a"), ("put", "b"), ("gone", "a")]


def test_a_cut_watch_goes_on_where_it_was(server: Server) -> None:
    """Nothing is listed again, nothing is told twice, nothing is missed."""
    with Followed(server.url) as followed:
        until(lambda: followed.lists() == 1)
        for i in range(4):
            server.put("services", service(f"s{i}", f"10.96.0.{i + 1}"))
            if i % 2:
                server.cut()
                server.put("services", service(f"t{i}", f"10.96.1.{i + 1}"))
        names = {"s0", "s1", "s2", "s3", "t1", "t3"}
        until(lambda: followed.names() == names)
        assert sorted(followed.told) == [("list",), *(("put", name) for name in sorted(names))]


def test_a_bookmark_keeps_the_version_young(server: Server) -> None:
    """Other kinds change, and what was before is forgotten: the watch goes on without a listing."""
    with Followed(server.url) as followed:
        until(lambda: followed.version() > 0)
        server.compact()
        server.put("nodes", node("us", "10.244.1.0/24"))
        version = int(server.get("nodes", "us")["metadata"]["resourceVersion"])
        until(lambda: followed.version() >= version)
        server.cut()
        server.put("services", service("a", "10.96.0.1"))
        until(lambda: followed.names() == {"a"})
        assert followed.lists() == 1


def test_gone_is_listed_again(server: Server) -> None:
    """What went meanwhile is in no event: the listing tells it."""
    server.put("services", service("a", "10.96.0.1"))
    server.put("services", service("b", "10.96.0.2"))
    with Followed(server.url) as followed:
        until(lambda: followed.names() == {"a", "b"})
        server.down = True
        server.cut()
        server.delete("services", "a", "default")
        server.put("services", service("c", "10.96.0.3"))
        server.compact()
        server.down = False
        until(lambda: followed.names() == {"b", "c"})
        assert followed.told[-1] == ("list", "b", "c")


def test_a_server_that_is_away_is_told_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dataplane")
    server.put("services", service("a", "10.96.0.1"))
    with Followed(server.url) as followed:
        until(lambda: followed.names() == {"a"})
        until(lambda: len(server.requests) == 2)  # the watch is there
        server.down = True
        server.cut()
        until(lambda: len(server.requests) >= 5)  # it is asked again and again
        assert followed.names() == {"a"}
        server.down = False
        server.put("services", service("b", "10.96.0.2"))
        until(lambda: followed.names() == {"a", "b"})
        until(lambda: "follows services again" in caplog.text)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(told) == len(set(told)) <= 2  # that it was cut, that nobody answers
    assert all("what was known last holds" in text for text in told)


def test_a_token_that_is_refused_may_be_taken_later(caplog: pytest.LogCaptureFixture) -> None:
    with Server(token="other") as server:
        server.put("services", service("a", "10.96.0.1"))
        with Followed(server.url, token="secret") as followed:
            until(lambda: len(server.requests) >= 2)
            server.token = "secret"
            until(lambda: followed.names() == {"a"})
    assert caplog.text.count("401") == 1


def test_attempts_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses, one that ends each watch at once, one that has forgotten always."""
    listed = ok(b'{"metadata":{"resourceVersion":"7"},"items":[]}')
    gone = ok(b'{"type":"ERROR","object":{"code":410}}\n')
    for answers in ((b"HTTP/1.1 503 No\r\n\r\n",), (listed, ok(b"")), (gone, gone)):
        with saying(*answers) as (url, asked), Followed(url):
            time.sleep(1.5)
        assert 2 <= len(asked) <= 9


def test_who_is_throttled_waits_as_long_as_asked() -> None:
    with Server() as server:
        server.throttled = 1
        server.put("services", service("a", "10.96.0.1"))
        begin = time.monotonic()
        with Followed(server.url) as followed:
            until(lambda: followed.names() == {"a"})
        assert time.monotonic() - begin >= 1
        assert len(server.requests) <= 3  # refused, listed, watched


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("86400", 300), ("soon", 0), ("-1", 0), ("", 0)]
)
def test_retry_after_is_of_seconds(header: str, seconds: float) -> None:
    answer = f"HTTP/1.1 429 No\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    with saying(answer.encode()) as (url, _), pytest.raises(ThrottledError) as refused:
        Client(Access(url)).get(SERVICES)
    assert refused.value.after == seconds


def test_an_object_without_a_name_spoils_no_other() -> None:
    listed = ok(
        b'{"metadata":{"resourceVersion":"7"},"items":[{},{"metadata":7},'
        b'{"metadata":{"name":"a","namespace":"n"}},{"metadata":{"name":null}}]}'
    )
    event = ok(
        b'{"type":"ADDED","object":{"metadata":{}}}\n'
        b'{"type":"ADDED","object":{"metadata":{"name":"b","namespace":"n"}}}\n'
    )
    with saying(listed, event) as (url, _), Followed(url) as followed:
        until(lambda: followed.names() == {"a", "b"})


def test_the_double_is_strict() -> None:
    """It would have told what a client must not do."""
    with Server() as server:
        client = Client(Access(server.url))
        with pytest.raises(KubeError, match="400"):
            client.get(f"{SERVICES}?watch=true")
        assert server.wrongs
        with pytest.raises(Refused):
            server.patch(f"{NODES}/nobody", {})
