"""The web page: served to a browser of this host, or written to a file."""

import contextlib
import time

from dataplane.api.client import Client
from dataplane.errors import PortError
from dataplane.verbs.base import OK


def ui(client: Client, listen: str, snapshot: str | None) -> int:
    """Serves the page to a browser of this host; or writes it, with what the node says now."""
    if snapshot is not None:
        return _snapshot(client, snapshot)
    from dataplane.api.bridge import Bridge

    client.status()  # a node that is not there is said now
    with contextlib.closing(Bridge(client.path, listen)) as bridge:
        print(bridge.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            bridge.run()
    return OK


def _snapshot(client: Client, file: str) -> int:
    from dataplane.api import page

    first = {path: client.ask(f"/{path}") for path in page.ASKED}
    time.sleep(1)
    answers = {path: [answer, client.ask(f"/{path}")] for path, answer in first.items()}
    text = page.snapshot(answers, time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    if file == "-":
        print(text, end="")
        return OK
    try:
        with open(file, "w") as out:
            out.write(text)
    except OSError as error:
        raise PortError(f"{file}: {error.strerror}") from None
    return OK
