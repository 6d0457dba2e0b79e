"""What a service manager is told: the protocol of sd_notify(3), where NOTIFY_SOCKET asks for it."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

INTERVAL = 0.5  # seconds between looks at what is watched


def notify(*lines: str) -> None:
    """READY=1, MAINPID=N, STATUS=text, WATCHDOG=1, … Does nothing where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path[0] == "@" else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)


@contextlib.contextmanager
def watched(is_well: Callable[[], bool]) -> Iterator[None]:
    """Inside the block a thread says WATCHDOG=1 as long as it is well, whatever the others do."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(INTERVAL):
            if is_well():
                notify("WATCHDOG=1")

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
