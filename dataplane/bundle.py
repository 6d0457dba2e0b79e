"""A support bundle: what one asks for first, in one tar file. It holds no packet and no key."""

import io
import json
import platform
import tarfile
import time
from typing import Any

from dataplane.api.client import Client
from dataplane.errors import PortError

FLOWS = 10_000
KINDS = ("endpoints", "peers", "routes", "acls", "nats", "load-balancers", "layers", "drops")


def write(client: Client, file: str) -> list[str]:
    """Writes it; returns the names of what is in it. Raises DataplaneError."""
    status = client.status()
    parts: dict[str, Any] = {
        "status.json": status,
        "findings.json": client.findings(),
        "policy.yaml": client.export(),
        "stats.json": client.stats(),
        "flows.json": client.flows(limit=FLOWS),
        "metrics.txt": client.metrics(),
        "machine.json": _machine(),
        **{f"{kind}.json": client.get(kind) for kind in KINDS},
    }
    top = f"dataplane-{status['node']}"
    try:
        with tarfile.open(file, "w:gz") as tar:
            for name, value in parts.items():
                _add(tar, f"{top}/{name}", value)
    except OSError as error:
        raise PortError(f"{file}: {error.strerror}") from None
    return list(parts)


def _add(tar: tarfile.TarFile, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, indent=1) + "\n"
    entry = tarfile.TarInfo(name)
    octets = text.encode()
    entry.size, entry.mtime, entry.mode = len(octets), int(time.time()), 0o600
    tar.addfile(entry, io.BytesIO(octets))


def _machine() -> dict[str, str]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
