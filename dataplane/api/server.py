"""The control API as an ASGI application: routes, and errors as RFC 9457 problems.

Handlers run on a thread pool; what they change, the daemon changes one at a time.
"""

import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataplane.api import edits, filters, flow_table, health, metrics, page, reach, resources
from dataplane.api.call import Call
from dataplane.api.hub import Hub
from dataplane.api.openapi import OPERATIONS, Operation, describe
from dataplane.api.peers import peers
from dataplane.api.streams import Streams
from dataplane.cni import check
from dataplane.cni.attachments import Attachments, key_of
from dataplane.daemon import Applied, Daemon
from dataplane.document import dump, dump_json, loads
from dataplane.engine import choose
from dataplane.errors import (
    BusyError,
    DataplaneError,
    DocumentError,
    EngineError,
    MissingError,
    PortError,
    StaleError,
    StorageError,
)
from dataplane.graph import graph
from dataplane.graph_forms import FORMS, MEDIA_TYPES
from dataplane.hns.door import HnsDoor
from dataplane.hns.errors import HcnError
from dataplane.ingress import frame_at, owner_of, place_of
from dataplane.merge import merge
from dataplane.model import Document, Endpoint, Node
from dataplane.packet import parse
from dataplane.tree import MAX_BYTES

PROBLEM = "application/problem+json"
STATUS = {
    MissingError: 404,
    BusyError: 409,
    EngineError: 409,
    PortError: 409,
    StaleError: 412,
    StorageError: 507,
}  # else 400
Value = dict[str, Any]


class _Kind(StringConvertor):
    """So that a path of another method is not taken for one of an unknown kind."""

    regex = "|".join(map(re.escape, resources.KINDS))


register_url_convertor("kind", _Kind())


def application(daemon: Daemon, hub: Hub, read_only: bool = False) -> Starlette:
    """Serves one daemon, whose `hub` it is; `read_only`: nothing but GET, and no frames."""
    api, streams = Api(daemon), Streams(daemon, hub, headers_only=read_only)
    routes = [
        Route(operation.path, _endpoint(operation, api, streams), methods=[operation.method])
        for operation in OPERATIONS
        if not read_only or (operation.method == "GET" and operation.handler != "capture")
    ]
    health.version()  # while there are descriptors
    handlers = {DataplaneError: _refused, HTTPException: _http_error, OSError: _no_means}
    return Starlette(routes=routes, exception_handlers=cast(Any, handlers))


def _endpoint(
    operation: Operation, api: "Api", streams: Streams
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        call = Call(request, await _body(request))
        if operation.streams:
            return cast(Response, getattr(streams, operation.handler)(call))
        return await run_in_threadpool(getattr(api, operation.handler), call)

    return handle


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise HTTPException(413, f"larger than {MAX_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


# ---- answers -----------------------------------------------------------------------------------


def _json(value: Any, status: int = 200, media_type: str = "application/json") -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status, media_type=media_type)


def _problem(status: int, title: str, faults: list[Value] | None = None) -> Response:
    told: Value = {"type": "about:blank", "status": status, "title": title}
    return _json(told | ({"faults": faults} if faults else {}), status, PROBLEM)


def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HcnError):
        told: Value = {"type": "about:blank", "status": error.status, "title": str(error)}
        return _json(told | error.record(), error.status, PROBLEM)
    if isinstance(error, DocumentError):
        faults = [fault._asdict() for fault in error.faults]
        return _problem(422, "the policy cannot be used", faults)
    return _problem(STATUS.get(type(error), 400), str(error))


def _no_means(request: Request, error: Exception) -> Response:
    """The host gives no descriptors, no memory, no room."""
    assert isinstance(error, OSError)
    return _problem(503, error.strerror or str(error))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = error.detail
    if title == HTTPStatus(error.status_code).phrase:
        title = f"{request.method} {request.url.path}: {title.lower()}"
    response = _problem(error.status_code, title)
    response.headers.update(error.headers or {})
    return response


def _tagged(response: Response, generation: int) -> Response:
    response.headers["ETag"] = f'"{generation}"'
    return response


# ---- handlers ----------------------------------------------------------------------------------


class Api:
    """The handlers, named by openapi.OPERATIONS."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._engine = daemon, daemon.engine
        self._hns = HnsDoor(daemon)
        self._attachments = Attachments(daemon)
        self._description = describe()

    # policy

    def get_policy(self, call: Call) -> Response:
        own, _, generation = self._daemon.committed
        document = Document(node=own)
        if call.choice("format", ("json", "yaml"), "json") == "yaml":
            response = Response(dump(document), media_type="application/yaml")
        else:
            response = Response(dump_json(document), media_type="application/json")
        return _tagged(response, generation)

    def put_policy(self, call: Call) -> Response:
        return self._apply(call, lambda given, committed: given)

    def patch_policy(self, call: Call) -> Response:
        return self._apply(call, lambda given, committed: merge(committed, given))

    def _apply(self, call: Call, made_of: Callable[[Node, Node], Node]) -> Response:
        name = call.query.get("name", "policy")
        given = choose(loads(call.body, name), self._name)
        with self._daemon.changing():
            target = made_of(given, self._node)
            applied = self._daemon.apply(target, base=call.base, dry_run=call.flag("dry_run"))
        return self._told(applied, call)

    def _told(self, applied: Applied, call: Call) -> Response:
        plan = applied.plan
        shown = plan.changes if call.flag("unchanged") else plan.to_dict()["changes"]
        return _tagged(
            _json(
                {
                    "base": plan.base,
                    "generation": applied.generation,
                    "changed": not plan.is_empty,
                    "dry_run": call.flag("dry_run"),
                    "changes": [c if isinstance(c, dict) else c._asdict() for c in shown],
                    "warnings": list(plan.warnings),
                    "seconds": round(applied.seconds, 6),
                }
            ),
            applied.generation,
        )

    # objects of the policy

    def put_object(self, call: Call) -> Response:
        return self._edit(call, lambda node: edits.put(node, call.path, call.body))

    def delete_object(self, call: Call) -> Response:
        return self._edit(call, lambda node: edits.delete(node, call.path))

    def _edit(self, call: Call, change: Callable[[Node], Node]) -> Response:
        with self._daemon.changing():
            applied = self._daemon.apply(
                change(self._node), base=call.base, dry_run=call.flag("dry_run")
            )
        return self._told(applied, call)

    # interfaces of containers

    def get_attachments(self, call: Call) -> Response:
        return _json({"items": self._attachments.listed()})

    def get_attachment(self, call: Call) -> Response:
        told, device = self._attachments.find(key_of(call.path))
        return _json(told | {"faults": check.faults(device)})

    def put_attachment(self, call: Call) -> Response:
        key, network = key_of(call.path), call.query.get("network", "")
        endpoint = edits.made(call.body, Endpoint, "name", key[1])
        config = call.query.get("config", network)
        return _json(self._attachments.attach(key, network, config, endpoint))

    def delete_attachment(self, call: Call) -> Response:
        return _json({"removed": self._attachments.detach(key_of(call.path))})

    def collect_attachments(self, call: Call) -> Response:
        valid = _fields(call.body, {"valid": list}).get("valid", [])
        if not all(isinstance(v, list) and [*map(type, v)] == [str, str] for v in valid):
            raise DataplaneError("valid: is no list of pairs of a container and an interface")
        removed = self._attachments.keep_only(call.query.get("config", ""), map(tuple, valid))
        return _json({"removed": removed})

    # objects of HNS

    def hcn(self, call: Call) -> Response:
        path, query = call.path["path"], call.query.get("query")
        if (call.method, path) == ("GET", "export"):
            return _json(self._hns.export())
        return _json(self._hns.call(call.method, path, _hns_body(call.body), query))

    def hns_v1(self, call: Call) -> Response:
        return _json(self._hns.call(call.method, call.target, _hns_body(call.body), v1=True))

    # looking

    def get_kind(self, call: Call) -> Response:
        kind = call.path["kind"]
        generation = self._engine.generation
        items = list(resources.listed(kind, self._engine, self._daemon.committed.shares))
        return _tagged(_json({"kind": kind, "items": items}), generation)

    def get_one(self, call: Call) -> Response:
        kind, name = call.path["kind"], call.path["name"]
        found = [
            item
            for item in resources.listed(kind, self._engine, self._daemon.committed.shares)
            if name in (item["name"], item["name"].partition("/")[2])
        ]
        exact = [item for item in found if item["name"] == name]
        if len(exact or found) != 1:
            told = f"{len(found)} are called {name!r}" if found else f"no {name!r}"
            raise HTTPException(404, f"{kind}: {told}")
        return _json((exact or found)[0])

    def get_flows(self, call: Call) -> Response:
        conditions = filters.parse(call.query.getlist("filter"))
        limit = call.number("limit", 1000, flow_table.MOST)
        by = call.query.get("by")
        if by is not None:
            return _json(flow_table.summed(self._engine, conditions, by, limit))
        return _json(flow_table.listed(self._engine, conditions, limit))

    def get_graph(self, call: Call) -> Response:
        form = call.choice("format", tuple(FORMS), "json")
        states = {peer["name"]: peer["state"] for peer in peers(self._engine)}
        text = FORMS[form](graph((self._daemon.policy,), states))
        return Response(text, media_type=MEDIA_TYPES.get(form, "text/plain"))

    def get_stats(self, call: Call) -> Response:
        return _json(self._daemon.state())

    def get_status(self, call: Call) -> Response:
        return _json(health.status(self._daemon))

    def get_findings(self, call: Call) -> Response:
        return _json({"findings": [f._asdict() for f in health.examine(self._daemon)]})

    def get_health(self, call: Call) -> Response:
        alive = self._daemon.is_forwarding
        return _json({"forwarding": alive}, 200 if alive else 503)

    def get_ready(self, call: Call) -> Response:
        faults = health.unready(self._daemon)
        return _json({"ready": not faults, "faults": faults}, 503 if faults else 200)

    def get_metrics(self, call: Call) -> Response:
        return Response(metrics.text(self._daemon), media_type=metrics.MEDIA_TYPE)

    def trace(self, call: Call) -> Response:
        asked = _fields(call.body, {"packet": str, "in": str, "vni": int, "frame": str})
        document = Document(node=self._engine.node)
        if ("packet" in asked) == ("frame" in asked):
            raise DataplaneError("give either a packet in words or a frame in hex")
        if "vni" in asked and not ("packet" in asked and 0 <= asked["vni"] < 1 << 24):
            raise DataplaneError("vni: goes with a packet in words, from 0 to 2^24 - 1")
        if "packet" in asked:
            spec = parse(asked["packet"])
            at, port = place_of(document, None, asked.get("in") or owner_of(document, None, spec))
            frame = frame_at(spec, document, at, port, asked.get("vni"))
        else:
            port, frame = asked.get("in", "underlay"), _octets(asked["frame"])
        walk = self._engine.trace(frame, port)
        return _json(walk.to_dict() | {"text": walk.text(), "mermaid": walk.mermaid()})

    def ping(self, call: Call) -> Response:
        kinds = {"peer": str, "from": str, "to": str, "size": int, "sequence": int}
        return _json(reach.echo(self._daemon, _fields(call.body, kinds)))

    def restart(self, call: Call) -> Response:
        os.kill(os.getpid(), signal.SIGUSR2)
        return _json({"pid": os.getpid()}, 202)

    def get_page(self, call: Call) -> Response:
        return Response(page.text(), media_type="text/html", headers=page.headers())

    def get_openapi(self, call: Call) -> Response:
        return _json(self._description)

    # ---- parts ---------------------------------------------------------------------------------

    @property
    def _node(self) -> Node:
        """The document's own."""
        return self._daemon.committed.own

    @property
    def _name(self) -> str:
        return self._node.name


def _fields(body: bytes, kinds: dict[str, type]) -> Value:
    """A JSON object of such fields. Raises DataplaneError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataplaneError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataplaneError("the body is not a JSON object")
    for name, item in value.items():
        if name not in kinds:
            raise DataplaneError(f"unknown field {name!r}; there are: {', '.join(kinds)}")
        if not isinstance(item, kinds[name]) or isinstance(item, bool):
            raise DataplaneError(f"{name}: {item!r} is no {kinds[name].__name__}")
    return value


def _hns_body(body: bytes) -> Any:
    """Raises HcnError where it is not JSON."""
    try:
        return json.loads(body) if body.strip() else None
    except (ValueError, RecursionError) as error:
        raise HcnError("HCN_E_INVALID_JSON", f"the body is not JSON: {error}") from None


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise DataplaneError("frame: is not hex digits") from None
