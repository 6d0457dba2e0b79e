"""The client for programs that await."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Self

from dataplane.api.client import (
    TIMEOUT,
    Client,
    Value,
    capture_target,
    events_target,
    gone,
    refusal,
)


class AsyncClient:
    """A `Client` whose methods are awaited; each call waits on a thread, one at a time.

    `events` and `capture` are asynchronous generators, on connections of their own and without a
    thread: any number of them go on beside calls. Errors are those of `Client`.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT
    ) -> None:
        self._client = Client(path, timeout)
        self._turn = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def call(*args: Any, **extra: Any) -> Any:
            async with self._turn:
                return await asyncio.to_thread(method, *args, **extra)

        return call

    async def events(
        self, kinds: Iterable[str] = (), filters: Iterable[str] = (), *, frames: bool = False
    ) -> AsyncGenerator[Value, None]:
        """As `Client.events`."""
        rest = b""
        async with contextlib.aclosing(self._parts(events_target(kinds, filters, frames))) as parts:
            async for part in parts:
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    async def capture(
        self,
        points: Iterable[str] = ("rx", "tx"),
        filters: Iterable[str] = (),
        *,
        count: int = 0,
        snap: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """As `Client.capture`."""
        target = capture_target(points, filters, count, snap)
        async with contextlib.aclosing(self._parts(target)) as parts:
            async for part in parts:
                yield part

    async def _parts(self, target: str) -> AsyncGenerator[bytes, None]:
        """The chunks (RFC 9112 section 7.1) of an answer that goes on."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._client.path)
            with contextlib.closing(writer):
                request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status = int((await reader.readline()).split()[1])
                while (await reader.readline()).strip():  # headers
                    pass
                if status >= 400:
                    raise refusal(status, await reader.read())
                while size := int(await reader.readline(), 16):
                    yield (await reader.readexactly(size + 2))[:-2]
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise gone(self._client.path, error) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
