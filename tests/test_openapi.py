"""The control API against its own OpenAPI document: schemathesis asks a running node what the
document says can be asked, and what it says cannot.

No answer is a server's error, each is one that the document describes, and whatever is refused is a
problem (RFC 9457)."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, settings
from requests.adapters import HTTPAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from dataplane.api.client import Client
from dataplane.api.openapi import OPERATIONS, describe, plain
from tests.live_node import PATIENCE, Process

BASE = "http://node"
EXAMPLES = int(os.environ.get("DATAPLANE_EXAMPLES", "16"))
EXCLUDED = {"/v1/restart": "another process takes over: test_restart.py"}
ENDLESS = {"/v1/events", "/v1/capture"}
CHECKED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


def operations(covered: bool, **which: Any) -> Any:
    """`covered`: each bound of each parameter, too."""
    schema = schemathesis.openapi.from_dict(describe())
    schema.config.phases.coverage.enabled = covered
    return schema.include(**which).exclude(path=[*EXCLUDED])


changing = operations(False, method=["PUT", "PATCH"])  # whose bodies have too many bounds
looking = operations(True, method=["GET", "POST", "DELETE"]).exclude(path=[*ENDLESS])
streaming = operations(True, path=[*ENDLESS])
asking = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
seldom = settings(asking, max_examples=-(-EXAMPLES // 4))  # whole documents take their time


# ---- HTTP over a unix socket -------------------------------------------------------------------


class Unix(HTTPAdapter):
    """Sends all requests to one socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()

        class Connection(urllib3.connection.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.sock.settimeout(PATIENCE)
                self.sock.connect(str(path))

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        self._pool = Pool("node")

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> urllib3.HTTPConnectionPool:
        return self._pool


@pytest.fixture(scope="module")
def session(running: Process) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.mount(BASE, Unix(running.socket))
        yield made


# ---- laws --------------------------------------------------------------------------------------


def is_problem(response: Any) -> None:
    """What is refused says why, as RFC 9457 has it."""
    if response.status_code >= 400 and response.status_code != 503:
        told = json.loads(response.content)
        assert told["status"] == response.status_code and told["title"] and told["type"]


def law(case: schemathesis.Case, session: requests.Session) -> None:
    response = case.call(base_url=BASE, session=session)
    case.validate_response(response, checks=CHECKED)
    is_problem(response)


@looking.parametrize()
@asking
def test_every_answer_is_as_described(
    case: schemathesis.Case, session: requests.Session, node: Client
) -> None:
    law(case, session)


@changing.parametrize()
@seldom
def test_every_change_is_made_or_refused(
    case: schemathesis.Case, session: requests.Session, node: Client
) -> None:
    """Of the network that there is."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        case.path_parameters |= {"network": "blue"} if "network" in case.path_parameters else {}
    law(case, session)


@streaming.parametrize()
@asking
def test_every_stream_begins_or_is_refused(
    case: schemathesis.Case, session: requests.Session, node: Client
) -> None:
    words = case.as_transport_kwargs(base_url=BASE)
    with session.request(**words, stream=True, timeout=PATIENCE) as response:
        assert response.status_code in (200, 400, 405)
        if response.status_code == 200:
            told = describe()["paths"][case.operation.path]["get"]["responses"]["200"]
            assert response.headers["content-type"].partition(";")[0] in told["content"]
        is_problem(response)


def test_nothing_else_is_left_out() -> None:
    paths = {plain(operation.path) for operation in OPERATIONS}
    assert paths >= EXCLUDED.keys() | ENDLESS
    assert {plain(o.path) for o in OPERATIONS if o.streams} == ENDLESS
