"""The control socket: the API served on a thread of its own.

A unix socket of mode 0600: who may open it may do everything. A second one, of mode 0660, may be
for reading only. Whoever changes something is named in the log, by SO_PEERCRED.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dataplane.api.hub import Hub
from dataplane.api.server import application
from dataplane.daemon import Daemon
from dataplane.errors import PortError

BACKLOG = 4096
MODE, READ_MODE = 0o600, 0o660
GRACE = 2  # seconds for requests under way when it ends
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
LOOKS = ("/v1/trace", "/v1/ping")  # POST, and nothing changes
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
QUIET = 60.0  # seconds until that is said again

log = logging.getLogger("dataplane")
App = Any


class Control:
    """Serves a daemon; a context manager that removes its socket. Raises PortError."""

    def __init__(
        self,
        daemon: Daemon,
        hub: Hub,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        inherited: int | None = None,
    ) -> None:
        """`hub`: the daemon's. `inherited`: the descriptor of its socket, from a predecessor."""
        self.path = Path(path)
        self._daemon, self._hub, self._read_only = daemon, hub, read_only
        self._mode = READ_MODE if read_only else MODE
        if inherited is None:
            self._socket = _listening(self.path, self._mode)
        else:
            self._socket = socket.socket(fileno=inherited)
        self._inode = self.path.stat().st_ino
        self._start()

    def fileno(self) -> int:
        """Of the listening socket."""
        return self._socket.fileno()

    def _start(self) -> None:
        config = uvicorn.Config(
            _Named(application(self._daemon, self._hub, self._read_only)),
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [self._socket.dup()]},
            name="control",
            daemon=True,
        )
        self._thread.start()

    def pause(self) -> None:
        """Ends requests under way; who connects now waits for `resume`, or a successor."""
        self._server.should_exit = True
        self._thread.join()

    def resume(self) -> None:
        """Serves again, if it was paused."""
        if not self._thread.is_alive():
            self._start()

    def renew(self) -> None:
        """Makes the socket again, where somebody has removed it; what is connected ends."""
        if self._inode < 0 or self.path.exists():
            return
        fresh = _listening(self.path, self._mode)
        self.pause()
        self._socket.close()
        self._socket, self._inode = fresh, self.path.stat().st_ino
        self._start()
        log.warning("%s: was removed, and is there again", self.path)

    def leave(self) -> None:
        """The socket is another process's now."""
        self._inode = -1

    def close(self) -> None:
        """Ends requests under way; again is harmless."""
        self.pause()
        self._socket.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _listening(path: Path, mode: int) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path)
        before = os.umask(0o777 & ~mode)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise PortError(f"{path}: {error.strerror or error}") from error
    except BaseException:
        made.close()
        raise
    return made


def _clear(path: Path) -> None:
    """Removes a socket that nobody listens on any more. Raises PortError if somebody does."""
    if not path.exists():
        return
    if not path.is_socket():
        raise PortError(f"{path}: is there, and no socket (name another --control)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise PortError(f"{path}: another node listens there (name another --control)")


class _Protocol(H11Protocol):
    """Knows who is at the other end, and answers who has said all he will say."""

    _is_last = False  # nothing more is read

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True: the answer is still to come. A stream ends here: nobody may be left to read it."""
        cycle = self.cycle
        self._is_last = cycle is not None and not (
            cycle.response_complete or cycle.response_started or cycle.more_body
        )
        return self._is_last

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_last and self.cycle.response_complete:
            self.transport.close()

    def connection_made(self, transport: Any) -> None:
        sock = transport.get_extra_info("socket")
        pid, uid, gid = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        self.app_state = {**self.app_state, "pid": pid, "uid": uid, "gid": gid}
        super().connection_made(transport)


class _Named:
    """Logs who changes something, and in few words that nobody can be let in."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._told = -QUIET

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            asyncio.get_running_loop().set_exception_handler(self._fault)
        if scope["type"] == "http" and scope["method"] in CHANGES and scope["path"] not in LOOKS:
            who, path = scope["state"], scope["raw_path"].decode()
            log.info("%s %s by uid %s, pid %s", scope["method"], path, who["uid"], who["pid"])
        await self._app(scope, receive, send)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's own words about each try to accept would be thousands of lines a second."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told >= QUIET:
            self._told = time.monotonic()
            log.error("control: %s: who connects has to wait (ulimit -n)", error.strerror)
