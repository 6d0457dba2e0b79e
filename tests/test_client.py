"""The clients of a node, awaited or not."""

import asyncio
import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dataplane.api.aio import AsyncClient
from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.errors import DataplaneError, DocumentError, MissingError, NoNodeError
from dataplane.model import Document
from tests.live_node import PATIENCE, Process, policy

Item = TypeVar("Item")


# ---- a node without means ----------------------------------------------------------------------


class Poor(http.server.BaseHTTPRequestHandler):
    """Answers 503 as a node does that gets no memory, or that does not forward."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        verdict = self.path in ("/healthz", "/readyz")
        problem = {"type": "about:blank", "status": 503, "title": "Cannot allocate memory"}
        body = json.dumps({"ready": False, "faults": ["web is gone"]} if verdict else problem)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(503)
        self.send_header("Content-Type", f"application/{'' if verdict else 'problem+'}json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "a client"


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[Path]:
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path = tmp_path / "poor.sock"
    with Server(str(path), Poor) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_a_node_without_means_is_an_error(poor: Path) -> None:
    with Client(poor) as client:
        for call in (
            lambda: client.get("endpoints"),
            lambda: client.apply("version: 1"),
            lambda: list(client.events()),
        ):
            with pytest.raises(DataplaneError, match="Cannot allocate memory"):
                call()
        for path in ("/healthz", "/readyz"):
            assert client.ask(path) == {"ready": False, "faults": ["web is gone"]}


def test_a_node_without_means_is_an_error_for_who_awaits(poor: Path) -> None:
    async def used() -> None:
        async with AsyncClient(poor) as client:
            for call in (
                client.get("endpoints"),
                client.apply("version: 1"),
                first(client.events()),
            ):
                with pytest.raises(DataplaneError, match="Cannot allocate memory"):
                    await call
            assert (await client.ask("/readyz"))["faults"] == ["web is gone"]

    asyncio.run(used())


def test_nobody_is_an_error_for_who_awaits(tmp_path: Path) -> None:
    async def used() -> None:
        async with AsyncClient(tmp_path / "none.sock") as client:
            for call in (client.status(), first(client.events())):
                with pytest.raises(NoNodeError, match=r"none\.sock"):
                    await call

    asyncio.run(used())


# ---- a running node ----------------------------------------------------------------------------


async def first(items: AsyncGenerator[Item, None], wanted: Callable[[Item], bool] = bool) -> Item:
    """The first that is wanted; the others are let go."""
    async with contextlib.aclosing(items):
        async for item in items:
            if wanted(item):
                return item
    raise AssertionError("it ended")


def awaited(running: Process, use: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def used() -> None:
        async with asyncio.timeout(PATIENCE), AsyncClient(running.socket) as client:
            await use(client)

    asyncio.run(used())


@pytest.mark.usefixtures("node")
def test_calls_are_awaited(running: Process) -> None:
    async def use(client: AsyncClient) -> None:
        names, status = await asyncio.gather(client.get("endpoints"), client.status())
        assert [item["name"] for item in names] == ["blue/web", "blue/db"]
        done = await client.apply(dump(Document(node=policy("web"))), prune=True)
        assert done["base"] == status["generation"] and done["changed"]
        assert [item["name"] for item in await client.get("endpoints")] == ["blue/web"]
        with pytest.raises(MissingError):
            await client.describe("endpoints", "db")
        with pytest.raises(DocumentError, match="underlay"):
            await client.apply("version: 1\nnode: {name: a}")

    awaited(running, use)


@pytest.mark.usefixtures("node")
def test_events_are_awaited_beside_calls(running: Process) -> None:
    """Whoever waits for one holds up nobody: not the loop, and not calls of the same client."""

    async def use(client: AsyncClient) -> None:
        listening = asyncio.Event()

        async def committed() -> Any:
            def wanted(event: dict[str, Any]) -> bool:
                listening.set()
                return event["kind"] == "config"

            return await first(client.events(("config",)), wanted)

        waiting = asyncio.create_task(committed())
        await listening.wait()
        done = await client.apply(dump(Document(node=policy("web"))), prune=True)
        assert (await waiting)["generation"] == done["generation"]
        with pytest.raises(DataplaneError, match="kind"):
            await first(client.events(("nonsense",)))

    awaited(running, use)


@pytest.mark.usefixtures("traffic")
def test_a_capture_is_awaited(running: Process) -> None:
    async def use(client: AsyncClient) -> None:
        file = b"".join([part async for part in client.capture(("drop",), count=3)])
        assert file.startswith(b"\x0a\x0d\x0d\x0a") and b"reason=no_such_endpoint" in file
        with pytest.raises(DataplaneError, match="point"):
            await first(client.capture(("nonsense",)))

    awaited(running, use)


@pytest.mark.usefixtures("node")
def test_a_stream_that_nobody_reads_any_more_ends(running: Process) -> None:
    async def use(client: AsyncClient) -> None:
        listening = asyncio.Event()
        events = client.events(("peers",))
        task = asyncio.create_task(first(events, lambda event: bool(listening.set())))
        await listening.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.status())["ready"]

    awaited(running, use)
