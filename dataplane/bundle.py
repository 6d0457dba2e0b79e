"""A support bundle: what one asks for first, in one tar file. It holds no packet, and no secret:
what is named as one, what a URL has before its host, and keys in PEM are `REDACTED`."""

import io
import json
import platform
import re
import tarfile
import time
from typing import Any

from dataplane.api.client import Client
from dataplane.errors import PortError

FLOWS = 10_000
KINDS = ("endpoints", "peers", "routes", "acls", "nats", "load-balancers", "layers", "drops")

REDACTED = "redacted"
_NAMES = re.compile(r"(?:.*_)?(?:key|passphrase|password|secret|token)", re.IGNORECASE)
_TEXTS = (
    re.compile(r"(?<=://)[^/\s]+(?=@)"),
    re.compile(r"(?<=-----BEGIN )[^-]*KEY-----.*?(?:-----END |\Z)", re.DOTALL),
    re.compile(r"(?<=[?&])\w*(?:key|passphrase|password|secret|token)=[^&#\s]*", re.IGNORECASE),
)


def write(client: Client, file: str) -> list[str]:
    """Writes it; returns the names of what is in it. Raises DataplaneError."""
    status = client.status()
    parts: dict[str, Any] = {
        "status.json": status,
        "findings.json": client.findings(),
        "policy.json": client.policy(),
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
                _add(tar, f"{top}/{name}", redacted(value))
    except OSError as error:
        raise PortError(f"{file}: {error.strerror}") from None
    return list(parts)


def redacted(value: Any) -> Any:
    """The same JSON value or text without secrets."""
    if isinstance(value, dict):
        return {
            name: REDACTED if item and _NAMES.fullmatch(name) else redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return list(map(redacted, value))
    if isinstance(value, str):
        for secret in _TEXTS:
            value = secret.sub(REDACTED, value)
    return value


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
