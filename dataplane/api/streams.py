"""Answers that go on: events and captured frames, for as long as somebody reads them.

Whoever reads too slowly loses the oldest ones and is told how many; nobody else waits for him.
"""

import contextlib
import io
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dataplane.api import filters
from dataplane.api.call import Call
from dataplane.api.events import FRAME_POINTS, KINDS, NOWHERE, POINTS, Event, event_of, packet_of
from dataplane.api.hub import Hub
from dataplane.daemon import Daemon
from dataplane.errors import DataplaneError
from dataplane.observe import SNAP, Seen
from dataplane.pcap import Writer

EVENT_SNAP = 256  # bytes of a frame that an event is made of, and filters look at
STREAMS = 64  # that one server serves at once
MOST = 1 << 40
Conditions = Sequence[filters.Condition]


class _Stream(StreamingResponse):
    """Has a place among its server's for as long as it goes on."""

    def __init__(
        self, parts: AsyncIterator[bytes], media_type: str, place: AbstractContextManager[None]
    ) -> None:
        super().__init__(parts, media_type=media_type)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


class Streams:
    """The handlers that openapi.OPERATIONS calls streams; `headers_only`: no payload of packets."""

    def __init__(self, daemon: Daemon, hub: Hub, headers_only: bool = False) -> None:
        self._daemon, self._hub, self._headers_only = daemon, hub, headers_only
        self._served = 0

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._served >= STREAMS:
            told = f"{STREAMS} streams of events and captures are open, and no more are served"
            raise HTTPException(503, told)
        self._served += 1
        try:
            yield
        finally:
            self._served -= 1

    def events(self, call: Call) -> StreamingResponse:
        """NDJSON, or server-sent events where the client accepts them."""
        kinds = call.words("kind", KINDS, KINDS)
        conditions = filters.parse(call.query.getlist("filter"))
        frames = call.flag("frames") if "frames" in call.query else False
        if frames and self._headers_only:
            raise DataplaneError("frames: not on this socket")
        sse = "text/event-stream" in call.headers.get("accept", "")
        media_type = "text/event-stream" if sse else "application/x-ndjson"
        lines = self._events(kinds, conditions, frames, sse)
        return _Stream(lines, media_type, self._place())

    async def _events(
        self, kinds: Sequence[str], conditions: Conditions, frames: bool, sse: bool
    ) -> AsyncIterator[bytes]:
        points = [kind for kind in kinds if kind in POINTS]
        with self._hub.listening(points, kinds, SNAP if frames else EVENT_SNAP) as listener:
            head = {"kind": "listening", "generation": self._daemon.engine.generation}
            yield _line(head, sse)
            while True:
                items, lost = await listener.take()
                if lost:
                    items.append({"kind": "lost", "count": lost})
                found = await run_in_threadpool(self._made, items, conditions, frames)
                yield b"".join(_line(event, sse) for event in found)

    def _made(
        self, items: Sequence[Seen | Event], conditions: Conditions, frames: bool
    ) -> list[Event]:
        made = []
        for item, event in self._told(items):
            if event["kind"] in POINTS and not filters.meets(event, conditions):
                continue
            if frames and isinstance(item, Seen):
                event["frame"] = item.frame.hex()
            made.append(event)
        return made

    def _told(self, items: Sequence[Seen | Event]) -> Iterator[tuple[Seen | Event, Event]]:
        policy = self._daemon.policy
        vnis = {
            f"{network.name}/{endpoint.name}": int(network.vni)
            for network in policy.networks
            for endpoint in network.endpoints
        }
        for item in items:
            if isinstance(item, Seen):
                yield item, event_of(item, self._daemon.engine, vnis, policy.underlay.port)
            else:
                yield item, item

    def capture(self, call: Call) -> StreamingResponse:
        """A pcapng file that grows."""
        points = call.words("point", FRAME_POINTS, ("rx", "tx"))
        conditions = filters.parse(call.query.getlist("filter"))
        count = call.number("count", 0, MOST) or MOST
        snap = call.number("snap", SNAP, SNAP)
        parts = self._packets(points, conditions, count, snap)
        return _Stream(parts, "application/x-pcapng", self._place())

    async def _packets(
        self, points: Sequence[str], conditions: Conditions, count: int, snap: int
    ) -> AsyncIterator[bytes]:
        text = io.BytesIO()
        writer, gap = Writer(text), 0
        with self._hub.listening(points, (), max(snap, EVENT_SNAP)) as listener:
            yield _emptied(text)
            while count > 0:
                items, lost = await listener.take()
                if lost:
                    writer.lose(lost, time.time_ns(), NOWHERE)
                    gap += lost
                found = await run_in_threadpool(self._kept, items, conditions)
                for seen in found[:count]:
                    writer.write(packet_of(seen, self._daemon.engine, snap, gap))
                    gap = 0
                yield _emptied(text)
                count -= len(found)

    def _kept(self, items: Sequence[Seen | Event], conditions: Conditions) -> list[Seen]:
        seen = [item for item in items if isinstance(item, Seen)]
        if not conditions:
            return seen
        told = zip(seen, self._told(seen), strict=True)
        return [item for item, (_, event) in told if filters.meets(event, conditions)]


def _line(event: Event, sse: bool) -> bytes:
    text = msgspec.json.encode(event)
    return b"event: %b\ndata: %b\n\n" % (event["kind"].encode(), text) if sse else text + b"\n"


def _emptied(text: io.BytesIO) -> bytes:
    octets = text.getvalue()
    text.seek(0)
    text.truncate()
    return octets
