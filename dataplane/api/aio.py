"""The client for programs that await."""

import asyncio
import os
from typing import Any, Self

from dataplane.api.client import TIMEOUT, Client


class AsyncClient:
    """A `Client` whose methods are awaited; each call waits on a thread, one at a time."""

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
