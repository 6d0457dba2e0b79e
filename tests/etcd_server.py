"""A real etcd for tests, on ports of its own, in a network namespace or here."""

import base64
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from dataplane.netns import inside

PATIENCE = 20.0
WHY_NOT = "" if shutil.which("etcd") else "etcd is not installed"
DIES_WITH_US = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Etcd:
    """Ends with the process that made it, however that ends.

    `certificate`: (PEM, key), its own, its clients' and their authority's; it speaks HTTPS then.
    """

    def __init__(
        self,
        place: Path,
        address: str = "127.0.0.1",
        netns: str | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._tls = None
        self._words: list[str] = []
        if certificate is not None:
            pem, key = certificate
            self._tls = ssl.create_default_context(cafile=str(pem))
            self._tls.load_cert_chain(pem, key)
            self._words = [f"--cert-file={pem}", f"--key-file={key}"]
            self._words += [f"--trusted-ca-file={pem}", "--client-cert-auth"]
        self.place, self.address, self.netns = place, address, netns
        self.port, self._peer_port = (_free_port(), _free_port()) if netns is None else (2379, 2380)
        self.url = f"http{'s' if certificate else ''}://{address}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Etcd":
        peer = f"http://{self.address}:{self._peer_port}"
        command = [sys.executable, "-c", DIES_WITH_US, "etcd", "--name=n1"]
        command += [f"--data-dir={self.place / 'etcd'}", f"--initial-cluster=n1={peer}"]
        command += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        command += self._words
        if self.netns is not None:
            command = ["ip", "netns", "exec", self.netns, *command]
        with (self.place / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._healthy():
            assert self.process.poll() is None, (self.place / "etcd.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self.place / "etcd.log").read_text()[-2000:]
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What etcd's JSON gateway answers."""

        def ask() -> dict[str, Any]:
            data = json.dumps(body).encode()
            place, tls = f"{self.url}/v3/{path}", self._tls
            with urllib.request.urlopen(place, data, timeout=5, context=tls) as answer:
                told: dict[str, Any] = json.load(answer)
                return told

        return inside(self.netns, ask)

    def put(self, key: str, value: bytes) -> int:
        """The revision that it has then."""
        told = self.call("kv/put", {"key": _b64(key.encode()), "value": _b64(value)})
        return int(told["header"]["revision"])

    def delete(self, prefix: str) -> None:
        raw = prefix.encode()
        end = raw[:-1] + bytes([raw[-1] + 1])
        self.call("kv/deleterange", {"key": _b64(raw), "range_end": _b64(end)})

    def values(self, prefix: str) -> dict[str, bytes]:
        raw = prefix.encode()
        end = raw[:-1] + bytes([raw[-1] + 1])
        found = self.call("kv/range", {"key": _b64(raw), "range_end": _b64(end)}).get("kvs", ())
        decoded = base64.b64decode
        return {decoded(kv["key"]).decode(): decoded(kv.get("value", "")) for kv in found}

    def compact(self) -> None:
        """All that is past."""
        now = self.call("kv/range", {"key": _b64(b"x")})["header"]["revision"]
        self.call("kv/compaction", {"revision": now, "physical": True})

    def _healthy(self) -> bool:
        def ask() -> bool:
            try:
                place, tls = f"{self.url}/health", self._tls
                with urllib.request.urlopen(place, timeout=2, context=tls) as answer:
                    return b'"true"' in answer.read()
            except OSError:
                return False

        return inside(self.netns, ask)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port
