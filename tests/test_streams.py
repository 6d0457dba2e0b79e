"""Event streams and captures of an engine in memory: what each reader gets, and what he is told he
did not get."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane import pcap
from dataplane.api import filters
from dataplane.api.hub import ROOM, ROOM_BYTES, Hub, Listener
from dataplane.api.streams import Streams
from dataplane.batch import Batch
from dataplane.engine import Engine
from dataplane.observe import SNAP, Seen
from dataplane.pcap import Packet, Tally, Writer
from dataplane.verbs import follow
from tests import blue

OUT = "udp 10.1.0.2:1000 > 10.2.0.9:53"
NOWHERE = "udp 10.1.0.2:1000 > 10.1.0.77:53"


@pytest.fixture
def engine() -> Engine:
    return blue.engine()


@pytest.fixture
def hub(engine: Engine) -> Iterator[Hub]:
    with Hub(daemon_of(engine)) as hub:
        yield hub


def daemon_of(engine: Engine) -> Any:
    return cast(Any, SimpleNamespace(engine=engine, policy=engine.resolved, on_commit=[]))


def play(engine: Engine, frame: bytes, count: int) -> None:
    batch = Batch(capacity=250, slot=2048)
    for _ in range(count // 250):
        engine.process(batch.load([frame] * 250, "blue/web"))


async def until(parts: AsyncIterator[bytes], tally: Tally, count: int) -> bytes:
    """The file up to where so many were captured or lost."""
    text = b""
    while tally.packets + tally.lost < count:
        part = await anext(parts)
        tally.add(part)
        text += part
    return text


def test_a_capture_tells_what_it_lost(engine: Engine, hub: Hub, tmp_path: Path) -> None:
    """By the sum of its statistics, and where the next packet's comment stands."""
    streams, frame, tally = Streams(daemon_of(engine), hub), blue.web(OUT + " len 1400"), Tally()

    async def captured() -> bytes:
        parts = streams._packets(("rx",), [], 10 * ROOM, 1 << 18)
        head = await anext(parts)
        play(engine, frame, 2 * ROOM)  # and nobody reads meanwhile
        most = await until(parts, tally, 2 * ROOM)
        engine.process_one(frame, "blue/web")
        return head + most + await until(parts, tally, 2 * ROOM + 1)

    file = tmp_path / "x.pcapng"
    file.write_bytes(asyncio.run(captured()))
    told = [re.search(r" lost=(\d+)$", packet.comment) for packet in pcap.read(file)]
    assert tally.lost > 0 and len(told) == tally.packets
    assert sum(int(found[1]) for found in told if found) == tally.lost


@pytest.mark.parametrize("conditions", [[], ["dport=53"]])
def test_each_reader_gets_the_bytes_it_asked_for(
    engine: Engine, hub: Hub, tmp_path: Path, conditions: Sequence[str]
) -> None:
    """However much another one wants; filters look at more than is kept."""
    streams, frame = Streams(daemon_of(engine), hub), blue.web(OUT + " len 1000")

    async def captured(snap: int, file: Path) -> None:
        parts = streams._packets(("rx",), filters.parse(conditions), 1, snap)
        head = await anext(parts)
        listening.append(snap)
        file.write_bytes(head + b"".join([part async for part in parts]))

    async def both() -> None:
        tasks = [asyncio.create_task(captured(snap, tmp_path / str(snap))) for snap in (20, 5000)]
        while len(listening) < len(tasks):
            await asyncio.sleep(0)
        engine.process_one(frame, "blue/web")
        await asyncio.gather(*tasks)

    listening: list[int] = []
    asyncio.run(both())
    (short,), (whole,) = (pcap.read(tmp_path / name) for name in ("20", "5000"))
    assert (short.data, short.length) == (frame[:20], len(frame))
    assert (whole.data, whole.length) == (frame, 0)


def seen_of(engine: Engine) -> Seen:
    engine.observe("rx")
    engine.process_one(blue.web(OUT), "blue/web")
    (seen,), lost = engine.seen()
    assert lost == 0
    return seen


@pytest.mark.parametrize(("size", "room"), [(100, ROOM), (1 << 16, ROOM_BYTES >> 16)])
def test_what_waits_for_a_reader_is_bounded(engine: Engine, size: int, room: int) -> None:
    """By their number, or by their frames' bytes; the oldest go, and are counted."""
    one = seen_of(engine)

    async def waiting() -> None:
        listener = Listener(("rx",), (), SNAP)
        for _ in range(2):
            for n in range(room + 5):
                listener.put([replace(one, frame=bytes(size), now_ns=n)])
            found, lost = await listener.take()
            times = [item.now_ns for item in found if isinstance(item, Seen)]
            assert times == list(range(5, room + 5)) and lost == 5

    asyncio.run(waiting())


def test_what_waits_is_cut_to_what_was_asked_for(engine: Engine, hub: Hub) -> None:
    frame = blue.web(OUT + " len 1000")

    async def lengths() -> list[int]:
        with hub.listening(("rx",), (), 256) as short, hub.listening(("rx",)) as whole:
            engine.process_one(frame, "blue/web")
            found = [item for each in (short, whole) for item in (await each.take())[0]]
            return [len(item.frame) for item in found if isinstance(item, Seen)]

    assert asyncio.run(lengths()) == [256, len(frame)]


def test_events_of_large_packets_are_told_and_filtered(engine: Engine, hub: Hub) -> None:
    """Of which an event gets the first bytes only."""
    streams = Streams(daemon_of(engine), hub)

    async def first() -> bytes:
        lines = streams._events(("drop",), filters.parse(["dport=53"]), False, False)
        await anext(lines)
        engine.process_one(blue.web(NOWHERE + " len 1000"), "blue/web")
        return await anext(lines)

    event = json.loads(asyncio.run(first()))
    assert (event["src"], event["dport"], event["length"]) == ("10.1.0.2", 53, 1042)
    assert event["text"].startswith(NOWHERE + " len 1000")


def test_the_command_tells_the_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path / "made") as writer:
        for lost in (3, 4):
            writer.lose(lost, 10**18, "none")
            writer.write(Packet(10**18, bytes(100), comment="rx"))
    text = (tmp_path / "made").read_bytes()
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    client = cast(Any, SimpleNamespace(capture=lambda *_, **__: iter(pieces)))
    file = tmp_path / "written"
    assert follow.capture(client, ("rx",), [], count=2, snap=None, file=str(file)) == 0
    assert capsys.readouterr().err == "captured 2, lost 7\n"
    assert file.read_bytes() == text and len(list(pcap.read(file))) == 2
