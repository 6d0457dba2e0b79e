"""The JSON Schema of policy documents, for editors: generated from the model, never written."""

import inspect
import json
from typing import Any

import msgspec

from dataplane.address import IP, Mac, Prefix, Vni
from dataplane.model import Document, PortRange

_PORT = {"type": "integer", "minimum": 0, "maximum": 65535}
_SCALARS: dict[Any, dict[str, Any]] = {
    IP: {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
    Prefix: {"type": "string", "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"},
    Mac: {"type": "string", "pattern": "^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}$"},
    Vni: {"type": "integer", "minimum": 0, "maximum": (1 << 24) - 1},
    PortRange: {"anyOf": [_PORT, {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"}]},
}


def schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    made = msgspec.json.schema(Document, schema_hook=_SCALARS.__getitem__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dataplane policy document",
        **_with_bare_values(made),
    }


def text() -> str:
    """The schema as the file policies/schema.json holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _with_bare_values(node: Any) -> Any:
    """A list of scalars may be written as one bare value."""
    if isinstance(node, list):
        return [_with_bare_values(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _with_bare_values(item) for key, item in node.items()}
    if isinstance(made.get("description"), str):  # msgspec before 0.21 leaves it indented
        made["description"] = inspect.cleandoc(made["description"])
    if made.get("type") != "array" or "$ref" in made.get("items", {"$ref": ""}):
        return made
    default = {"default": made.pop("default")} if "default" in made else {}
    return {"anyOf": [made["items"], made], **default}
