"""What commands write to a terminal, and what NO_COLOR does to it (https://no-color.org)."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from dataplane.api.client import Client
from tests.live_node import PATIENCE, ROOT, Process

COMMANDS = (
    "get endpoints",
    "get peers -o wide",
    "describe networks blue",
    "export",
    "flows",
    "stats",
    "mtu",
    "status",
    "doctor",
    "trace udp 10.1.1.2:1 > 10.1.2.2:2",
    "top --plain -c 1 --every 0.1",
    "vfp list-layer",
    "--help",
)
RGB = re.compile(r"[34]8;2;(\d+);(\d+);(\d+)")
NAMED = re.compile(r"(?:^|;)(?:[34]8;5|[349][0-7]|10[0-7])(?:;|$)")


class Terminal:
    """A command on a terminal of 30 lines of 100 columns."""

    def __init__(self, running: Process, words: list[str], **environment: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        known = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM")}
        known |= {"DATAPLANE_SOCKET": str(running.socket), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dataplane", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=known | environment,
        )
        os.close(theirs)

    def read(self) -> Iterator[bytes]:
        """What comes, until it ends."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    yield os.read(self._ours, 65536)
                except OSError:  # EIO: nobody has the other side open
                    return
        raise AssertionError("the command does not end")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        os.close(self._ours)
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("command", COMMANDS)
def test_text_is_plain_on_a_terminal_too(command: str, running: Process, node: Client) -> None:
    name, _, rest = command.partition(" ")
    terminal = Terminal(running, [name, rest] if name == "trace" else command.split())
    try:
        text = b"".join(terminal.read())
    finally:
        terminal.close()
    assert text.strip() and b"Traceback" not in text and b"\x1b" not in text


def screen(running: Process, **environment: str) -> bytes:
    """What `top` draws until it shows a reading."""
    terminal, drawn = Terminal(running, ["top"], **environment), b""
    try:
        for part in terminal.read():
            asked = b"flows" in drawn
            drawn += part
            if b"flows" in drawn and not asked:
                terminal.type(b"q")
    finally:
        terminal.close()
    return drawn


def hues(drawn: bytes) -> set[str]:
    """Colours of ECMA-48's SGR sequences that are no greys."""
    found: set[str] = set()
    for codes in re.findall(r"\x1b\[([\d;]*)m", drawn.decode()):
        found |= {rgb[0] for rgb in RGB.finditer(codes) if len(set(rgb.groups())) > 1}
        found |= {name[0] for name in NAMED.finditer(RGB.sub("", codes))}
    return found


def test_the_screen_without_colours(running: Process, node: Client) -> None:
    assert hues(screen(running, COLORTERM="truecolor"))  # else what follows proves nothing
    assert hues(screen(running, COLORTERM="truecolor", NO_COLOR="1")) == set()
