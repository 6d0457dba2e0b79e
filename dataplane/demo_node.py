"""A `dataplane run` process in a host's namespace of the demo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dataplane.demo_net import Namespaces
from dataplane.errors import DataplaneError

HOME = Path(__file__).resolve().parent.parent
PATIENCE = 10.0  # seconds for anything a node should do at once


class NodeProcess:
    """Owns the process; a context manager."""

    def __init__(
        self, site: Namespaces, host: str, node: str, policy: Path, *more: str, home: Path = HOME
    ) -> None:
        """`more`: options of `dataplane run`; `home`: where the package is that runs."""
        self.name, self.policy = node, policy
        self.log = site.directory / f"{node}.log"
        self._stats = site.directory / f"{node}.stats.json"
        self.control = site.directory / f"{node}.sock"
        words = ["run", str(policy), "--node", node, "--stats", str(self._stats)]
        words += ["--control", str(self.control), *more]
        paths = [str(home), os.environ.get("PYTHONPATH", "")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                site.command(host, sys.executable, "-m", "dataplane", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )

    def __enter__(self) -> "NodeProcess":
        self.wait_for("ready: ")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def wait_for(self, start: str, after: int = 0) -> str:
        """The first line of the log that begins so, from line number `after` on."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            found = [line for line in self.lines()[after:] if line.startswith(start)]
            if found:
                return found[0]
            if ended or time.monotonic() > deadline:
                how = f"ended with {self.process.returncode}" if ended else f"took {PATIENCE:.0f} s"
                raise DataplaneError(
                    f"node {self.name} {how} and did not say {start!r}{self.tail()}"
                )
            time.sleep(0.01)

    def stats(self) -> dict[str, Any]:
        """All counters, now."""
        self._stats.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE
        while not self._stats.exists():
            if time.monotonic() > deadline:
                raise DataplaneError(f"node {self.name} does not tell its counters{self.tail()}")
            time.sleep(0.005)
        return self._read()

    def reload(self) -> None:
        """Has the policy read again; returns when it is committed."""
        before = len(self.lines())
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("generation ", before)

    def refuse(self) -> str:
        """Has a policy read that it cannot accept; returns what it says."""
        before = len(self.lines())
        self.process.send_signal(signal.SIGHUP)
        return self.wait_for("nothing applied", before)

    def stop(self) -> int:
        """Ends the process as an operator would; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DataplaneError(f"node {self.name} does not end{self.tail()}") from None

    def final(self) -> dict[str, Any]:
        """The counters it left when it ended."""
        return self._read()

    def tail(self, count: int = 8) -> str:
        """The log's last lines, to be shown beneath an error."""
        last = [f"\n      {self.name}: {line}" for line in self.lines()[-count:]]
        return "".join(last)

    def _read(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._stats.read_text())
        return told
