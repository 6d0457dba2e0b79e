"""The bridge of `dataplane ui`: a browser's way to a control socket, for looking only.

Loopback TCP, GET of what the page asks for, and only for who brings the token: in the address
first, in a cookie after.
A `Host` that is not our address is refused, or a name that leads here could read the node (DNS
rebinding).
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from dataplane.api import page
from dataplane.errors import DataplaneError, PortError

PIECE = 1 << 16
PATHS = {"/", "/ui", "/v1/events", *(f"/{asked.partition('?')[0]}" for asked in page.ASKED)}
MOST = 1 << 16  # bytes of an answer's head
ASK = "the address that `dataplane ui` printed opens it: it has the token\n"


class Bridge:
    """Listens from the beginning; `run` serves until it is interrupted. Raises DataplaneError."""

    def __init__(self, path: str, listen: str) -> None:
        """`path`: the node's socket. `listen`: ADDRESS:PORT of a loopback; port 0 takes any."""
        self._path, self._token = path, secrets.token_urlsafe(24)
        self._socket, self._host = _listening(listen)
        self._cookie = f"dataplane-{self._host.rpartition(':')[2]}"  # ports share their cookies

    @property
    def url(self) -> str:
        """With the token: whoever has it may look."""
        return f"http://{self._host}/?token={self._token}"

    def run(self) -> None:
        routes = [Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"])]
        config = uvicorn.Config(
            Starlette(routes=routes),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[self._socket])

    def close(self) -> None:
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        response = self._judged(request) or await self._passed_on(request)
        response.headers.update(page.headers())
        return response

    def _judged(self, request: Request) -> Response | None:
        """None where the node is to be asked."""
        if request.method != "GET":
            return PlainTextResponse("only GET\n", 405, {"Allow": "GET"})
        if request.headers.get("host") != self._host:
            return PlainTextResponse(f"this is {self._host}\n", 421)
        if self._is(request.query_params.get("token")):
            back = RedirectResponse("/", 303)
            back.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return back
        if not self._is(request.cookies.get(self._cookie)):
            return PlainTextResponse(ASK, 403)
        if request.url.path not in PATHS or "frames" in request.query_params:
            return PlainTextResponse("the page does not ask for that\n", 404)
        return None

    def _is(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode(), self._token.encode())

    async def _passed_on(self, request: Request) -> Response:
        try:
            return await self._asked(request)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            return PlainTextResponse(f"no node answers: {error}\n", 502)

    async def _asked(self, request: Request) -> Response:
        """The node's answer, piece by piece, for as long as both sides want it."""
        reader, writer = await asyncio.open_unix_connection(self._path, limit=MOST)
        try:
            target = request.scope["raw_path"]
            if request.scope["query_string"]:
                target += b"?" + request.scope["query_string"]
            accept = request.headers.get("accept", "*/*").encode()
            writer.write(b"GET %b HTTP/1.0\r\nAccept: %b\r\n\r\n" % (target, accept))
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            fields = {
                name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
            }
            kind = fields.get("content-type", "text/plain")
        except BaseException:
            writer.close()
            raise
        return StreamingResponse(
            _pieces(reader, writer), int(status.split()[1]), {"Content-Type": kind}
        )


async def _pieces(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[bytes]:
    try:
        while part := await reader.read(PIECE):
            yield part
    finally:
        writer.close()


def _listening(listen: str) -> tuple[socket.socket, str]:
    """And what a browser calls it."""
    host, _, port = listen.rpartition(":")
    try:
        address = ip_address(host.strip("[]"))
        if not (address.is_loopback and port.isascii() and port.isdecimal() and int(port) < 65536):
            raise ValueError
    except ValueError:
        raise DataplaneError(f"--listen {listen}: a loopback's ADDRESS:PORT, 127.0.0.1:0") from None
    made = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((str(address), int(port)))
        made.listen()
    except OSError as error:
        made.close()
        raise PortError(f"{listen}: {error.strerror}") from None
    name = f"[{address}]" if address.version == 6 else str(address)
    return made, f"{name}:{made.getsockname()[1]}"
