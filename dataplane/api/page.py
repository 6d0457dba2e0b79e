"""The web page: one file that asks for nothing else; with a node's answers in it, a snapshot."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("page.html")
# What the page asks for, and a snapshot holds. The second answer gives it rates.
ASKED = ("v1/status", "v1/stats", "v1/peers", "v1/drops", "v1/flows", "v1/graph?format=svg")
EMPTY = '<script type="application/json" id="snapshot">null</script>'
HEAD = '<meta charset="utf-8">\n'


@cache
def text() -> str:
    """As a node serves it."""
    return FILE.read_text()


@cache
def policy() -> str:
    """Content-Security-Policy: its own script, its own node, nothing else."""
    (script,) = re.findall(r"<script>(.*?)</script>", text(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def headers() -> dict[str, str]:
    """Of every answer that a browser may get."""
    return {
        "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def snapshot(answers: Mapping[str, list[Any]], taken: str) -> str:
    """The page with what a node answered to each of ASKED at two moments: needs no node."""
    data = json.dumps({"taken": taken, **answers}).replace("<", "\\u003c")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy()}">\n'
    page = text().replace(HEAD, HEAD + meta, 1)
    return page.replace(EMPTY, EMPTY.replace("null", data), 1)
