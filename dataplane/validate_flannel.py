"""What is wrong with a node's `flannel:` section."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from dataplane.model import Flannel
from dataplane.tree import Complaint, Path
from dataplane.validate_values import taken

_ENDPOINT = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,14})(?:@[^\s@]+)?")  # names a TAP, too


def check_flannel(overlay: Flannel, path: Path) -> Iterator[Complaint]:
    if not overlay.etcd:
        yield Complaint((*path, "etcd"), "names no server", "etcd: [http://127.0.0.1:2379]")
    for i, url in enumerate(overlay.etcd):
        if not is_server(url):
            message = f"{url[:80]!r} is no address of an etcd server"
            yield Complaint((*path, "etcd", i), message, "as in http://127.0.0.1:2379")
    if not overlay.prefix.startswith("/"):
        message = f"{overlay.prefix[:80]!r} does not begin with a slash"
        yield Complaint((*path, "prefix"), message, "as in /coreos.com/network")
    for i, text in enumerate(overlay.endpoints):
        if not _ENDPOINT.fullmatch(text):
            message = f"{text[:80]!r} is not NAME or NAME@NETNS"
            fix = "letters, digits, _ . -, at most 15: a TAP has the name"
            yield Complaint((*path, "endpoints", i), message, fix)
    names = (text.partition("@")[0] for text in overlay.endpoints)
    yield from taken("endpoint", ((n, (*path, "endpoints", i)) for i, n in enumerate(names)))
    if overlay.key and not overlay.cert:
        yield Complaint((*path, "key"), "is there without its certificate", "name cert, too")


def is_server(url: str) -> bool:
    """Whether a URL is the address of a server, and no more."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return sound and parts.path in ("", "/") and parts.username is None
