"""JSON Schemas of what the control API takes and answers, for the OpenAPI document.

Bodies are the model's own (`dataplane schema`); of answers the fields that are always there.
"""

from typing import Any

from dataplane import schema
from dataplane.api.finding import FAILURE, OK, WARNING
from dataplane.layers import LAYERS
from dataplane.model import LISTS
from dataplane.reasons import REASON_NAMES, Verdict

Shape = dict[str, Any]
PLACE = "#/components/schemas/"


def _object(**fields: Shape) -> Shape:
    return {"type": "object", "required": list(fields), "properties": fields}


def _many(item: Shape) -> Shape:
    return {"type": "array", "items": item}


def _or_null(shape: Shape) -> Shape:
    return {"anyOf": [shape, {"type": "null"}]}


def _one_of(*words: str) -> Shape:
    return {"type": "string", "enum": list(words)}


def ref(name: str) -> Shape:
    """To one of `components`."""
    return {"$ref": PLACE + name}


TEXT: Shape = {"type": "string"}
NUMBER: Shape = {"type": "number"}
COUNT: Shape = {"type": "integer", "minimum": 0}
YES: Shape = {"type": "boolean"}
ANY: Shape = {"type": "object"}
COUNTS: Shape = {"type": "object", "additionalProperties": COUNT}
REASON = _one_of(*REASON_NAMES)

# ---- answers -----------------------------------------------------------------------------------

STATUS = _object(
    node=TEXT,
    version=TEXT,
    generation=COUNT,
    forwarding=YES,
    ready=YES,
    underlay=_object(
        address=TEXT, address6=_or_null(TEXT), port=COUNT, mtu=COUNT, xdp=_or_null(TEXT)
    ),
    networks=COUNT,
    endpoints=COUNT,
    remote_subnets=COUNT,
    workers=COUNT,
    pid=COUNT,
    uptime=NUMBER,
    totals=COUNTS,
    max_flows=COUNT,
    doors=_many(_object(name=TEXT, synced=YES, trouble=TEXT)),
)
APPLIED = _object(
    base=COUNT,
    generation=COUNT,
    changed=YES,
    dry_run=YES,
    changes=_many(_object(kind=TEXT, name=TEXT)),
    warnings=_many(TEXT),
    seconds=NUMBER,
)
NAMED = _object(name=TEXT)
LISTED = _object(kind=TEXT, items=_many(NAMED))
FLOWS = _object(items=_many(ANY), shown=COUNT, matched=COUNT, flows=COUNT)
STATS = _object(
    node=TEXT,
    now_ns=COUNT,
    totals=COUNTS,
    reasons={"type": "object", "propertyNames": REASON, "additionalProperties": COUNT},
    ports={"type": "object", "additionalProperties": COUNTS},
    rules=COUNTS,
    layers={"type": "object", "propertyNames": _one_of(*LAYERS), "additionalProperties": COUNT},
    io={"type": "object", "additionalProperties": COUNTS},
)
FINDINGS = _object(
    findings=_many(
        _object(level=_one_of(OK, WARNING, FAILURE), subject=TEXT, message=TEXT, fix=TEXT)
    )
)
WALK = _object(
    port=TEXT,
    before=TEXT,
    flow=_one_of("hit", "miss"),
    steps=_many(_object(kind=TEXT, layer=TEXT, direction=TEXT, reason=REASON)),
    verdict=_one_of(*(str(verdict) for verdict in Verdict)),
    reason=REASON,
    rule=_or_null(TEXT),
    egress=_or_null(TEXT),
    after=TEXT,
    generation=COUNT,
    text=TEXT,
    mermaid=TEXT,
)
ECHO = _object(
    peer=TEXT,
    source=TEXT,
    to=TEXT,
    size=COUNT,
    sequence=COUNT,
    answer=_one_of("reply", "too_big", "unreachable", "refused", "none"),
    milliseconds=_or_null(NUMBER),
    mtu=_or_null(COUNT),
    by=_or_null(TEXT),
)
HEALTH = _object(forwarding=YES)
READINESS = _object(ready=YES, faults=_many(TEXT))
ATTACHED = _object(
    container=TEXT,
    ifname=TEXT,
    config=TEXT,
    network=TEXT,
    endpoint=TEXT,
    netns=TEXT,
    mac=TEXT,
    mtu=COUNT,
    addresses=_many(_object(address=TEXT, gateway=_or_null(TEXT))),
)
ATTACHMENTS = _object(items=_many(ATTACHED))
REMOVED = _object(removed={"type": ["boolean", "array"]})
SUCCESSION = _object(pid=COUNT)
PROBLEM: Shape = _object(type=TEXT, status=COUNT, title=TEXT) | {"description": "RFC 9457"}
PROBLEM["properties"]["faults"] = _many(
    _object(file=TEXT, line=COUNT, path=TEXT, message=TEXT, fix=TEXT)
)

# ---- bodies ------------------------------------------------------------------------------------

TRACED: Shape = {
    "type": "object",
    "additionalProperties": False,
    "oneOf": [{"required": ["packet"]}, {"required": ["frame"], "not": {"required": ["vni"]}}],
    "properties": {
        "packet": {"type": "string", "description": "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn"},
        "frame": {
            "type": "string",
            "pattern": "^([0-9a-fA-F]{2})*$",
            "description": "Ethernet frame in hex, instead of packet",
        },
        "in": {"type": "string", "description": "NETWORK/ENDPOINT, underlay or host"},
        "vni": {"type": "integer", "minimum": 0, "maximum": (1 << 24) - 1},
    },
}
PINGED: Shape = {
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
VALID_ATTACHMENTS: Shape = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"valid": _many({"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2})},
}
DOCUMENT = ref("Document")
ENDPOINT = ref("EndpointBody")
NETWORK = ref("NetworkBody")
PART: Shape = {"anyOf": [ref(f"{part.type.__name__}Body") for part in LISTS.values()]}


def components() -> Shape:
    """The model's schemas, those of bodies, which need not repeat what the path says, and of
    problems."""
    found: Shape = _moved(schema.schema()["$defs"])
    bodies = {"Network": {"name"}, **{p.type.__name__: {p.key} for p in LISTS.values()}}
    for name, known in bodies.items():
        whole = found[name]
        needed = [field for field in whole["required"] if field not in known]
        found[f"{name}Body"] = whole | {"title": f"{name}Body", "required": needed}
    return found | {"Problem": PROBLEM}


def _moved(node: Any) -> Any:
    """With references to where OpenAPI has its schemas."""
    if isinstance(node, list):
        return [_moved(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: item.replace("#/$defs/", PLACE) if key == "$ref" else _moved(item)
        for key, item in node.items()
    }
