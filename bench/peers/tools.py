"""The traffic programs of this folder: compiled, started in namespaces, and asked."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataplane.demo_net import Namespaces, run
from dataplane.errors import DataplaneError

HERE = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds beyond what a program was told to take


def built(name: str, directory: Path) -> Path:
    """The program of NAME.c, compiled into the directory. Raises DataplaneError."""
    program = directory / name
    if not program.exists():
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread"]
        run("cc", *flags, "-o", str(program), str(HERE / f"{name}.c"))
    return program


class Traffic:
    """Runs `traffic` in the namespaces of a site."""

    def __init__(self, site: Namespaces, program: Path) -> None:
        self._site, self._program = site, program

    def ask(self, place: str, *words: object, seconds: float = 0) -> Any:
        """Runs a command to its end; what it tells. Raises DataplaneError."""
        command = self._command(place, words)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise DataplaneError(f"traffic {words[0]} in {place} does not end") from None
        if done.returncode:
            raise DataplaneError(f"traffic {words[0]} in {place}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def serving(self, place: str, *words: object) -> Iterator["Server"]:
        """A sink that is ready, and goes with the block."""
        process = subprocess.Popen(
            self._command(place, words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            server = Server(process, f"traffic {words[0]} in {place}")
            server.line("ready")
            yield server
        finally:
            process.kill()
            process.communicate()

    def _command(self, place: str, words: tuple[object, ...]) -> list[str]:
        return self._site.command(place, str(self._program), *map(str, words))


class Server:
    """A running sink."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self._process, self._name = process, name

    def line(self, start: str = "") -> str:
        """The next line it says. Raises DataplaneError where it has ended."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said or not said.startswith(start):
            raise DataplaneError(f"{self._name}: said {said!r}, not {start!r}")
        return said

    def told(self) -> Any:
        return json.loads(self.line())

    def ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self.told()
