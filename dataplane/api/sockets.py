"""Where control sockets are: one for each node of this host, by its name."""

import os
from pathlib import Path

from dataplane.errors import NoNodeError

VARIABLE = "DATAPLANE_SOCKET"


def directory() -> Path:
    """/run/dataplane; of others than root, in their own run directory."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() != 0 and own:
        return Path(own) / "dataplane"
    return Path("/run/dataplane")


def socket_of(node: str) -> Path:
    """Of a node, whether it runs or not."""
    return directory() / f"{node}.sock"


def find_socket(node: str | None = None) -> Path:
    """Of the node of that name, else as DATAPLANE_SOCKET says, else the only one there is.

    Raises NoNodeError.
    """
    if node is not None:
        return socket_of(node)
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    found = sorted(directory().glob("*.sock"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoNodeError(f"no node runs: {directory()} has no socket (dataplane run FILE)")
    names = ", ".join(path.stem for path in found)
    raise NoNodeError(f"which node? --node one of: {names}")
