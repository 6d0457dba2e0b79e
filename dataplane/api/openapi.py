"""The API's operations, as data: what the server routes by, and the OpenAPI document tells."""

import re
from typing import Any, NamedTuple

from dataplane.api.events import FRAME_POINTS, KINDS
from dataplane.api.filters import FIELDS
from dataplane.api.flow_table import MOST, SUMS
from dataplane.graph_forms import FORMS
from dataplane.observe import SNAP

VERSION = "1"
Value = dict[str, Any]


class Query(NamedTuple):
    """A query parameter, and its JSON Schema."""

    name: str
    means: str
    schema: Value


class Operation(NamedTuple):
    """One method of one path. `handler` is a method of server.Api."""

    method: str
    path: str
    handler: str
    summary: str
    queries: tuple[Query, ...] = ()
    body: Value | None = None
    answers: tuple[int, ...] = (200,)
    media_type: str = "application/json"
    streams: bool = False  # a method of streams.Streams, whose answer goes on


_YES = {"type": "string", "enum": ["true", "false", "1", "0", ""]}
DRY_RUN = Query("dry_run", "tell what would change, and change nothing", _YES)
UNCHANGED = Query("unchanged", "tell of objects that stay as they are, too", _YES)
NAME = Query("name", "what faults call the document", {"type": "string"})
FILTER = Query(
    "filter",
    "FIELD=VALUE or FIELD!=VALUE, of " + ", ".join(FIELDS) + "; may be given again",
    {"type": "array", "items": {"type": "string"}},
)
LIMIT = Query("limit", "how many at most", {"type": "integer", "minimum": 0, "maximum": MOST})
BY = Query("by", "sums instead of flows", {"type": "string", "enum": list(SUMS)})
FORMAT = Query("format", "of the document", {"type": "string", "enum": ["json", "yaml"]})
DRAWN = Query("format", "of the graph", {"type": "string", "enum": list(FORMS)})
KIND = Query("kind", "with commas: " + ", ".join(KINDS), {"type": "string"})
POINT = Query("point", "with commas: " + ", ".join(FRAME_POINTS), {"type": "string"})
FRAMES = Query("frames", "with the frames themselves, in hex", _YES)
COUNT = Query("count", "end after so many; 0: never", {"type": "integer", "minimum": 0})
SNAP_LENGTH = Query(
    "snap", "bytes of a frame that are kept", {"type": "integer", "minimum": 0, "maximum": SNAP}
)
CHANGES = (DRY_RUN, UNCHANGED)
DOCUMENT: Value = {"type": "object", "description": "a policy document of this node, JSON or YAML"}
PACKET: Value = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "packet": {"type": "string", "description": "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn"},
        "frame": {"type": "string", "description": "Ethernet frame in hex, instead of packet"},
        "in": {"type": "string", "description": "NETWORK/ENDPOINT, underlay or host"},
        "vni": {"type": "integer", "minimum": 0, "maximum": (1 << 24) - 1},
    },
}
PING: Value = {
    "type": "object",
    "additionalProperties": False,
    "required": ["peer"],
    "properties": {
        "peer": {"type": "string", "description": "provider address"},
        "from": {"type": "string", "description": "NETWORK/ENDPOINT in a network namespace"},
        "to": {"type": "string", "description": "address behind the peer"},
        "size": {"type": "integer", "minimum": 0, "maximum": 65000},
        "sequence": {"type": "integer", "minimum": 0, "maximum": 65535},
    },
}
REFUSED = (400, 404, 409, 412, 413, 422)

OPERATIONS = (
    Operation("GET", "/v1/status", "get_status", "The node at one look"),
    Operation(
        "GET", "/v1/policy", "get_policy", "The committed policy", (FORMAT,), None, (200, 400)
    ),
    Operation(
        "PUT",
        "/v1/policy",
        "put_policy",
        "Commit a policy in place of the whole one",
        (*CHANGES, NAME),
        DOCUMENT,
        (200, *REFUSED),
    ),
    Operation(
        "PATCH",
        "/v1/policy",
        "patch_policy",
        "Commit what a policy names; all else stays",
        (*CHANGES, NAME),
        DOCUMENT,
        (200, *REFUSED),
    ),
    Operation(
        "PUT",
        "/v1/networks/{network}",
        "put_object",
        "Commit one network",
        CHANGES,
        {"type": "object"},
        (200, *REFUSED),
    ),
    Operation(
        "DELETE",
        "/v1/networks/{network}",
        "delete_object",
        "Remove a network",
        CHANGES,
        None,
        (200, *REFUSED),
    ),
    Operation(
        "PUT",
        "/v1/networks/{network}/{part}/{name:path}",
        "put_object",
        "Commit one endpoint, remote subnet, ACL or load balancer of a network",
        CHANGES,
        {"type": "object"},
        (200, *REFUSED),
    ),
    Operation(
        "DELETE",
        "/v1/networks/{network}/{part}/{name:path}",
        "delete_object",
        "Remove one",
        CHANGES,
        None,
        (200, *REFUSED),
    ),
    Operation(
        "GET",
        "/v1/flows",
        "get_flows",
        "The flow table, most packets first",
        (FILTER, LIMIT, BY),
        None,
        (200, 400),
    ),
    Operation("GET", "/v1/stats", "get_stats", "All counters"),
    Operation(
        "GET", "/v1/graph", "get_graph", "Networks, endpoints and peers", (DRAWN,), None, (200, 400)
    ),
    Operation("GET", "/v1/findings", "get_findings", "What is wrong, and what mends it"),
    Operation(
        "POST",
        "/v1/trace",
        "trace",
        "What would become of a packet",
        (),
        PACKET,
        (200, 400, 404, 413),
    ),
    Operation(
        "POST",
        "/v1/ping",
        "ping",
        "One echo request through the overlay to what is behind a peer, never fragmented",
        (),
        PING,
        (200, 400, 404, 409, 413),
    ),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "Events as they happen: a JSON object a line, or server-sent events if asked for",
        (KIND, FILTER, FRAMES),
        None,
        (200, 400),
        "application/x-ndjson",
        True,
    ),
    Operation(
        "GET",
        "/v1/capture",
        "capture",
        "Frames as they pass, in the pcapng format",
        (POINT, FILTER, COUNT, SNAP_LENGTH),
        None,
        (200, 400),
        "application/x-pcapng",
        True,
    ),
    Operation("POST", "/v1/restart", "restart", "Have a new process take over", (), None, (202,)),
    Operation("GET", "/", "get_page", "The web page", (), None, (200,), "text/html"),
    Operation("GET", "/ui", "get_page", "The web page", (), None, (200,), "text/html"),
    Operation("GET", "/v1/openapi.json", "get_openapi", "This document"),
    Operation("GET", "/healthz", "get_health", "Whether it forwards", (), None, (200, 503)),
    Operation(
        "GET", "/readyz", "get_ready", "Whether all of it can do its work", (), None, (200, 503)
    ),
    Operation("GET", "/metrics", "get_metrics", "For Prometheus", (), None, (200,), "text/plain"),
    Operation("GET", "/v1/{kind}", "get_kind", "All of a kind", (), None, (200, 404)),
    Operation("GET", "/v1/{kind}/{name:path}", "get_one", "One of a kind", (), None, (200, 404)),
)


def describe() -> Value:
    """The OpenAPI 3.1 document."""
    paths: Value = {}
    for operation in OPERATIONS:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, path)
    title = "Control API of a dataplane node"
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM}},
    }


PROBLEM: Value = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "status", "title"],
    "properties": {
        "type": {"type": "string"},
        "status": {"type": "integer"},
        "title": {"type": "string"},
        "faults": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["file", "line", "path", "message", "fix"],
                "properties": {
                    "file": {"type": "string"},
                    "line": {"type": "integer"},
                    "path": {"type": "string"},
                    "message": {"type": "string"},
                    "fix": {"type": "string"},
                },
            },
        },
    },
}


def _described(operation: Operation, path: str) -> Value:
    names = re.findall(r"{(\w+)}", path)
    text = {"type": "string", "minLength": 1}
    parameters: list[Value] = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in names
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.means, "schema": q.schema}
        for q in operation.queries
    ]
    told: Value = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{path}").strip("_").lower(),
        "parameters": parameters,
        "responses": {str(code): _answer(operation, code) for code in operation.answers},
    }
    if operation.body is not None:
        content = {"application/json": {"schema": operation.body}}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _answer(operation: Operation, code: int) -> Value:
    if code < 400 or code == 503:
        plain = operation.media_type != "application/json"
        schema: Value = {"type": "string"} if plain else {"type": "object"}
        return {
            "description": operation.summary,
            "content": {operation.media_type: {"schema": schema}},
        }
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": "a problem", "content": content}
