"""Handover: a running node's work taken over by a process that it starts itself.

    predecessor                                successor (the same command, --successor FD)
    starts it with its descriptors   ───────►  builds the engine from the committed policy
    stops forwarding, saves flows    ◄─ ready
    waits                            go ────►  takes over ports and flows, forwards
    ends, leaving everything         ◄─ done

Frames wait in their devices between `ready` and `done`. If the successor ends before `done`, the
predecessor goes on as if nothing had been; so it does where they speak of state in different
formats. Flows have a format of their own (`saved.py`).
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Self

from dataplane.errors import DataplaneError

FORMAT = 1  # of what the successor is told, descriptors and states of ports among it
OPTION = "--successor"
PATIENCE = 30.0  # seconds for the successor to be ready, and for it to be done
READY, GO, DONE = b"ready\n", b"go\n", b"done\n"

Value = dict[str, Any]


class HandoverError(DataplaneError):
    """The successor did not come; everything is as before."""


class Successor:
    """The predecessor's side. A context manager: whoever is not done by then is ended.

    `state`: what it is told; `fds`: descriptors that it inherits under their numbers.
    """

    def __init__(self, state: Mapping[str, Any], fds: Iterable[int]) -> None:
        own, its = socket.socketpair()
        self._flows = os.memfd_create("flows")
        self._own = own
        own.settimeout(PATIENCE)
        told = json.dumps({"format": FORMAT, **state, "flows": self._flows}).encode() + b"\n"
        with its:
            passed = (*fds, its.fileno(), self._flows)
            command = [*_command(), OPTION, str(its.fileno())]
            try:
                self.process = subprocess.Popen(command, pass_fds=passed)
            except OSError as error:
                self._close()
                raise HandoverError(f"{command[0]}: {error.strerror}") from error
        try:
            own.sendall(told)
        except OSError:
            self.end()
            raise HandoverError("the successor ended at once; see its log") from None

    def await_ready(self) -> None:
        """Raises HandoverError."""
        self._expect(READY)

    def hand_over(self, flows: bytes) -> None:
        """Gives it the flows, and returns once it forwards. Raises HandoverError."""
        with open(self._flows, "wb", closefd=False) as file:
            file.write(flows)
        with contextlib.suppress(OSError):
            self._own.sendall(GO)
        self._expect(DONE)
        self._close()

    def end(self) -> None:
        """Ends it, unless it is done; again is harmless."""
        if self._flows >= 0:
            self.process.kill()
            self.process.wait()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _expect(self, word: bytes) -> None:
        try:
            got = self._own.recv(len(word))
        except OSError:
            got = b""
        if got != word:
            raise HandoverError(f"the successor did not say {word.decode().strip()}; see its log")

    def _close(self) -> None:
        self._own.close()
        if self._flows >= 0:
            os.close(self._flows)
            self._flows = -1


class Inherited:
    """The successor's side: what it was told, and the words that are exchanged."""

    def __init__(self, fd: int) -> None:
        """Raises HandoverError."""
        self.is_done = False
        try:
            self._socket = socket.socket(fileno=fd)
            self._socket.settimeout(PATIENCE)
            with self._socket.makefile("rb") as lines:
                self.state: Value = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise HandoverError(f"descriptor {fd} is no predecessor's: {error}") from None
        if (form := self.state.get("format")) != FORMAT:
            fix = "end it and run the node again"
            raise HandoverError(
                f"the predecessor's handover has format {form}, not {FORMAT} ({fix})"
            )

    def await_flows(self) -> bytes:
        """Says that all is ready; returns the flows once nobody else forwards. Raises
        HandoverError."""
        self._say(READY)
        if self._socket.recv(len(GO)) != GO:
            raise HandoverError("the predecessor goes on by itself")
        with open(self.state["flows"], "rb") as file:
            file.seek(0)
            return file.read()

    def done(self) -> None:
        """The predecessor may end."""
        self._say(DONE)
        self.is_done = True
        self._socket.close()

    def _say(self, word: bytes) -> None:
        try:
            self._socket.sendall(word)
        except OSError as error:
            raise HandoverError(f"the predecessor is gone: {error}") from None


def _command() -> list[str]:
    """That of this process, without what it was told as a successor."""
    words = list(sys.orig_argv)
    while OPTION in words:
        at = words.index(OPTION)
        del words[at : at + 2]
    return [sys.executable, *words[1:]]
