"""What all commands on a running node share: whom they ask, its words for kinds, exit codes."""

import json
import sys
from typing import Any

from dataplane import columns
from dataplane.api.client import Client
from dataplane.api.sockets import find_socket
from dataplane.errors import DataplaneError

Value = dict[str, Any]

OK, PROBLEM = 0, 1

KINDS = tuple(kind for kind in columns.KINDS if kind not in ("flows", "sums"))
ALIASES = {
    "network": "networks",
    "net": "networks",
    "endpoint": "endpoints",
    "ep": "endpoints",
    "remote-subnet": "remote-subnets",
    "rs": "remote-subnets",
    "direct-subnet": "direct-subnets",
    "peer": "peers",
    "route": "routes",
    "acl": "acls",
    "rule": "acls",
    "rules": "acls",
    "nat": "nats",
    "load-balancer": "load-balancers",
    "lb": "load-balancers",
    "layer": "layers",
    "drop": "drops",
    "port": "ports",
    "neighbour": "neigh",
    "neighbor": "neigh",
    "mtu": "mtus",
}


def connect(node: str | None, socket: str | None) -> Client:
    """Raises NoNodeError."""
    return Client(socket if socket is not None else find_socket(node))


def kind_of(word: str) -> str:
    """Raises DataplaneError."""
    kind = ALIASES.get(word.lower(), word.lower())
    if kind not in KINDS:
        raise DataplaneError(f"no kind {word!r}; there are: {', '.join(KINDS)}")
    return kind


def show(value: Any, form: str) -> None:
    """As JSON or YAML."""
    if form == "json":
        print(json.dumps(value, indent=1))
        return
    import yaml

    print(yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100), end="")


def read(file: str) -> tuple[bytes, str]:
    if file == "-":
        return sys.stdin.buffer.read(), "stdin"
    try:
        with open(file, "rb") as stream:
            return stream.read(), file
    except OSError as error:
        raise DataplaneError(f"{file}: cannot be read: {error.strerror}") from None
