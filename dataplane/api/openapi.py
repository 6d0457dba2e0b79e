"""The API's operations, as data: what the server routes by, and the OpenAPI document tells."""

import re
from typing import Any, NamedTuple

from dataplane.api import shapes
from dataplane.api.edits import PARTS
from dataplane.api.events import FRAME_POINTS, KINDS
from dataplane.api.filters import FIELDS
from dataplane.api.flow_table import MOST, SUMS
from dataplane.api.resources import KINDS as RESOURCES
from dataplane.graph_forms import FORMS
from dataplane.observe import SNAP

VERSION = "1"
Value = dict[str, Any]


class Query(NamedTuple):
    """A query parameter, and its JSON Schema."""

    name: str
    means: str
    schema: Value


JSON, YAML = "application/json", "application/yaml"
PARSED = (JSON, YAML)


class Operation(NamedTuple):
    """One method of one path. `handler` is a method of server.Api."""

    method: str
    path: str
    handler: str
    summary: str
    queries: tuple[Query, ...] = ()
    body: Value | None = None
    answers: tuple[int, ...] = (200,)
    shape: Value = shapes.ANY  # of the answer
    media_types: tuple[str, ...] = (JSON,)
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
REFUSED = (400, 404, 409, 412, 413, 422, 507)


def _change(method: str, path: str, handler: str, summary: str, body: Value | None) -> Operation:
    """One that commits."""
    queries = (*CHANGES, NAME) if path == "/v1/policy" else CHANGES
    return Operation(
        method, path, handler, summary, queries, body, answers=(200, *REFUSED), shape=shapes.APPLIED
    )


QUERY = Query("query", 'an HCN query document: {"Filter": {"Name": …}}', {"type": "string"})
NETWORK = Query("network", "where the endpoint is made", {"type": "string", "minLength": 1})
CONFIG = Query("config", "the CNI network's name; default: the network's", {"type": "string"})


def _of_cni() -> tuple[Operation, ...]:
    """Endpoints whose TAPs are containers' interfaces."""
    all_of_them, one = "/v1/attachments", "/v1/attachments/{container}/{ifname}"
    attached = shapes.ATTACHED
    return (
        Operation(
            *("GET", all_of_them, "get_attachments", "Interfaces of containers"),
            shape=shapes.ATTACHMENTS,
        ),
        Operation(
            *("POST", all_of_them, "collect_attachments"),
            "Remove what a CNI network has besides these",
            (CONFIG,),
            shapes.VALID_ATTACHMENTS,
            (200, 400, 409, 413, 507),
            shapes.REMOVED,
        ),
        Operation(
            *("GET", one, "get_attachment", "One, and what is not as it was made"),
            answers=(200, 404),
            shape=attached,
        ),
        Operation(
            *("PUT", one, "put_attachment", "Make a container's interface: an endpoint"),
            (NETWORK, CONFIG),
            shapes.ENDPOINT,
            (200, *REFUSED),
            attached,
        ),
        Operation(
            *("DELETE", one, "delete_attachment", "Remove it, if it is there"),
            answers=(200, 409, 507),
            shape=shapes.REMOVED,
        ),
    )


_OF_HNS = (200, 400, 404, 405, 409, 413, 422, 507)


def _of_hns() -> tuple[Operation, ...]:
    """Documents of HNS: v2 below /hcn; v1 where HNSCall has it."""
    anything: Value = {"type": ["object", "array"]}
    verbs = (
        ("GET", "Objects of HNS, or one", (QUERY,), None),
        ("POST", "Create or modify one, or a batch", (), anything),
        ("PUT", "Replace one", (), anything),
        ("DELETE", "Remove one", (), None),
    )
    v1 = ("networks", "endpoints", "policylists", "globals")
    paths = [("/hcn/{path:path}", "hcn"), *((f"/{kind}/{{path:path}}", "hns_v1") for kind in v1)]
    return tuple(
        Operation(method, path, handler, summary, queries, body, _OF_HNS)
        for path, handler in paths
        for method, summary, queries, body in verbs
        if "globals" not in path or method == "GET"
    )


OPERATIONS = (
    Operation("GET", "/v1/status", "get_status", "The node at one look", shape=shapes.STATUS),
    Operation(
        *("GET", "/v1/policy", "get_policy", "The committed policy", (FORMAT,)),
        answers=(200, 400),
        shape=shapes.DOCUMENT,
        media_types=(JSON, YAML),
    ),
    _change(
        *("PUT", "/v1/policy", "put_policy", "Commit a policy in place of the whole one"),
        shapes.DOCUMENT,
    ),
    _change(
        *("PATCH", "/v1/policy", "patch_policy"),
        "Commit what a policy names; what it leaves out, or gives its default, stays",
        shapes.DOCUMENT,
    ),
    _change("PUT", "/v1/networks/{network}", "put_object", "Commit one network", shapes.NETWORK),
    _change("DELETE", "/v1/networks/{network}", "delete_object", "Remove a network", None),
    _change(
        *("PUT", "/v1/networks/{network}/{part}/{name:path}", "put_object"),
        "Commit one endpoint, remote or direct subnet, ACL or load balancer of a network",
        shapes.PART,
    ),
    _change(
        *("DELETE", "/v1/networks/{network}/{part}/{name:path}", "delete_object", "Remove one"),
        None,
    ),
    *_of_cni(),
    Operation(
        *("GET", "/v1/flows", "get_flows", "The flow table, most packets first"),
        (FILTER, LIMIT, BY),
        answers=(200, 400),
        shape=shapes.FLOWS,
    ),
    Operation("GET", "/v1/stats", "get_stats", "All counters", shape=shapes.STATS),
    Operation(
        *("GET", "/v1/graph", "get_graph", "Networks, endpoints and peers", (DRAWN,)),
        answers=(200, 400),
        media_types=(JSON, "text/plain", "image/svg+xml"),
    ),
    Operation(
        *("GET", "/v1/findings", "get_findings", "What is wrong, and what mends it"),
        shape=shapes.FINDINGS,
    ),
    Operation(
        *("POST", "/v1/trace", "trace", "What would become of a packet"),
        body=shapes.TRACED,
        answers=(200, 400, 404, 409, 413),
        shape=shapes.WALK,
    ),
    Operation(
        *("POST", "/v1/ping", "ping"),
        "One echo request through the overlay to what is behind a peer, never fragmented",
        body=shapes.PINGED,
        answers=(200, 400, 404, 409, 413),
        shape=shapes.ECHO,
    ),
    Operation(
        *("GET", "/v1/events", "events"),
        "Events as they happen: a JSON object a line, or server-sent events if asked for",
        (KIND, FILTER, FRAMES),
        answers=(200, 400, 503),
        media_types=("application/x-ndjson", "text/event-stream"),
        streams=True,
    ),
    Operation(
        *("GET", "/v1/capture", "capture", "Frames as they pass, in the pcapng format"),
        (POINT, FILTER, COUNT, SNAP_LENGTH),
        answers=(200, 400, 503),
        media_types=("application/x-pcapng",),
        streams=True,
    ),
    Operation(
        *("POST", "/v1/restart", "restart", "Have a new process take over"),
        answers=(202,),
        shape=shapes.SUCCESSION,
    ),
    Operation("GET", "/", "get_page", "The web page", media_types=("text/html",)),
    Operation("GET", "/ui", "get_page", "The web page", media_types=("text/html",)),
    Operation("GET", "/v1/openapi.json", "get_openapi", "This document"),
    Operation(
        *("GET", "/healthz", "get_health", "Whether it forwards"),
        answers=(200, 503),
        shape=shapes.HEALTH,
    ),
    Operation(
        *("GET", "/readyz", "get_ready", "Whether all of it can do its work"),
        answers=(200, 503),
        shape=shapes.READINESS,
    ),
    Operation("GET", "/metrics", "get_metrics", "For Prometheus", media_types=("text/plain",)),
    Operation(
        *("GET", "/v1/{kind:kind}", "get_kind", "All of a kind"),
        answers=(200, 404, 405),
        shape=shapes.LISTED,
    ),
    Operation(
        *("GET", "/v1/{kind:kind}/{name:path}", "get_one", "One of a kind"),
        answers=(200, 404, 405),
        shape=shapes.NAMED,
    ),
    *_of_hns(),
)
PLACES = {"kind": tuple(RESOURCES), "part": tuple(PARTS)}  # what stands in a path
GENERATION = {"type": "string", "pattern": r'^("?[0-9]{1,18}"?|\*)$'}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "only if this generation holds, as ETag told it",
    "schema": GENERATION,
}


def plain(path: str) -> str:
    """An operation's path as OpenAPI writes it."""
    return re.sub(r":\w+}", "}", path)


def describe() -> Value:
    """The OpenAPI 3.1 document."""
    paths: Value = {}
    for operation in OPERATIONS:
        path = plain(operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, path)
    title = "Control API of a dataplane node"
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "paths": paths,
        "components": {"schemas": shapes.components()},
    }


def _described(operation: Operation, path: str) -> Value:
    parameters: list[Value] = [
        {"name": name, "in": "path", "required": True, "schema": _place(name)}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.means, "schema": q.schema}
        for q in operation.queries
    ]
    if operation.shape is shapes.APPLIED:
        parameters.append(IF_MATCH)
    told: Value = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{path}").strip("_").lower(),
        "parameters": parameters,
        "responses": {str(code): _answer(operation, code) for code in operation.answers},
    }
    if operation.body is not None:
        content = {JSON: {"schema": operation.body}}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _place(name: str) -> Value:
    known = PLACES.get(name)
    return {"type": "string", "enum": list(known)} if known else {"type": "string", "minLength": 1}


def _answer(operation: Operation, code: int) -> Value:
    if code < 400 or (code == 503 and not operation.streams):
        content = {
            kind: {"schema": operation.shape if kind in PARSED else shapes.TEXT}
            for kind in operation.media_types
        }
        return {"description": operation.summary, "content": content}
    content = {"application/problem+json": {"schema": shapes.ref("Problem")}}
    return {"description": "a problem", "content": content}
