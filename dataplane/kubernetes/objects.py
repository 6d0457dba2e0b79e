"""What all objects of Kubernetes have in common, as plain JSON values. Pure."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from dataplane.address import IP, Malformed, parse_ip

Object = dict[str, Any]
Key = tuple[str, str]  # namespace, name
Refused = dict[str, str]  # by what it is of: why

LONGEST = 63  # characters of a name of ours


def key_of(item: Object) -> Key | None:
    """None where it has no name."""
    meta = table(item, "metadata")
    name = meta.get("name")
    return (str(meta.get("namespace") or ""), name) if isinstance(name, str) else None


def table(value: Object, *keys: str) -> Object:
    """What stands there; empty, if it is no object."""
    for key in keys:
        found = value.get(key)
        value = found if isinstance(found, dict) else {}
    return value


def items(value: Object, key: str) -> Iterator[Object]:
    """The objects of a list."""
    found = value.get(key)
    yield from (item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()


def labels_of(item: Object) -> Object:
    return table(item, "metadata", "labels")


def pod_addresses(pod: Object) -> tuple[IP, ...]:
    """Of one that runs and has a network of its own, those that can be read."""
    status = table(pod, "status")
    if table(pod, "spec").get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return ()
    texts = [each.get("ip") for each in items(status, "podIPs")] or [status.get("podIP")]
    return tuple(_parsed(text for text in texts if isinstance(text, str)))


def _parsed(texts: Iterable[str]) -> Iterator[IP]:
    for text in texts:
        with contextlib.suppress(Malformed):
            yield parse_ip(text)


def short(name: str) -> str:
    """A name of ours: what is too long ends with a digest of it all."""
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: LONGEST - 13]}-{digest}"
