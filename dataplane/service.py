"""What a service manager is told: the protocol of sd_notify(3), where NOTIFY_SOCKET asks for it."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """READY=1, MAINPID=N, STATUS=text, WATCHDOG=1, … Does nothing where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path[0] == "@" else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)
