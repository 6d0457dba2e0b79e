"""Wrong arguments of every class, at both interfaces: refused by name, or dropped, never obeyed.

Run it under the sanitizers too: `make asan`.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane import document
from dataplane._engine import ffi, lib
from dataplane.address import ip16
from dataplane.batch import Batch
from dataplane.engine import Engine, Timers
from dataplane.errors import BusyError, DataplaneError, DocumentError, EngineError
from dataplane.packet import build, parse, vxlan
from dataplane.reasons import Reason
from dataplane.records import dtype
from tests.fuzz import seeds

EINVAL, EBUSY, ELIMIT, EREF, EDUP = -1, -3, -4, -5, -6
UNDERLAY, HOST, WEB, DB, TWIN = range(5)  # port ids
PORTS, RULES = 8, 8
KEY = bytes(range(32))
ROUTER, PEER_ROUTER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
WEB_MAC, DB_MAC, TWIN_MAC = b"\2\0\0\0\1\2", b"\2\0\0\0\1\3", b"\2\0\0\0\1\4"


def ip(text: str) -> bytes:
    return ip16(ip_address(text))


# ---- a policy, straight in C -------------------------------------------------------------------

RIGHT: dict[str, list[dict[str, Any]]] = {
    "ports": [
        {"id": UNDERLAY, "kind": lib.DP_PORT_UNDERLAY, "mtu": 1500, "udp_port": 4789,
         "mac": b"\2\0\0\0\0\x10", "ip4": ip("192.0.2.1")},
        {"id": HOST, "kind": lib.DP_PORT_HOST, "mtu": 1500, "mac": b"\2\0\0\0\0\x20",
         "peer_mac": b"\2\0\0\0\0\x21", "ip4": ip("198.51.100.1")},
        *({"id": n, "kind": lib.DP_PORT_ENDPOINT, "mtu": 1450} for n in (WEB, DB, TWIN)),
    ],
    "networks": [
        {"vni": vni, "mtu": 1450, "dr_mac": ROUTER, "routes": i,
         "gateway4": ip("10.1.0.1")} for i, vni in enumerate((4096, 4097))
    ],
    "endpoints": [  # web, db, and a twin of web in the other network
        {"network": net, "port": port, "mac": mac, "addrs": (at, 1), "groups": [(0, 2), (2, 1)],
         "fallback": [lib.DP_ALLOW, lib.DP_BLOCK]}
        for net, port, mac, at in ((0, WEB, WEB_MAC, 0), (0, DB, DB_MAC, 1), (1, TWIN, TWIN_MAC, 2))
    ],
    "adjacencies": [
        {"network": n, "port": UNDERLAY, "mtu": 1450, "remote": ip("192.0.2.2"),
         "dr_mac": PEER_ROUTER, "outer_mac": b"\2\0\0\0\0\x11"} for n in (0, 1)
    ],
    "pools": [{"addr": ip("198.51.100.1"), "lo": 20000, "hi": 29999}],
}  # fmt: skip
ADDRESSES = [ip(a) for a in ("10.1.1.2", "10.1.1.3", "10.1.1.2", "192.0.2.2")]


def route(prefix: str, length: int, kind: int, target: int = 0) -> dict[str, Any]:
    return {"prefix": ip(prefix), "len": length + 96, "kind": kind, "target": target}


def routes_of(network: int) -> list[dict[str, Any]]:
    ours = [("10.1.1.2", 0), ("10.1.1.3", 1)] if network == 0 else [("10.1.1.2", 2)]
    return [
        *(route(address, 32, lib.DP_TO_ENDPOINT, i) for address, i in ours),
        route("10.1.0.1", 32, lib.DP_TO_GATEWAY),
        route("10.1.2.0", 24, lib.DP_TO_REMOTE, network),
        route("10.1.0.0", 16, lib.DP_TO_SUBNET),
    ]


PREFIXES = [{"addr": ip("10.0.0.0"), "len": 104}, {"addr": ip("0.0.0.0"), "len": 96}]
RANGES = [(6, 6), (17, 17), (23, 23), (53, 90)]
ACL_OUT = [
    {"id": 0, "action": lib.DP_REJECT, "proto": (0, 1), "dport": (2, 1)},
    {"id": 1, "action": lib.DP_ALLOW, "flags": lib.DP_STATEFUL, "priority": 9},
]
ACL_IN = [{"id": 2, "action": lib.DP_ALLOW, "proto": (1, 1), "dport": (3, 1)}]
NAT = [
    {"id": 3, "action": lib.DP_ALLOW, "flags": lib.DP_TERMINATING, "dst": (0, 1)},
    {"id": 4, "action": lib.DP_SNAT, "arg": 0, "src": (1, 1), "priority": 1},
]


def array(struct: str, rows: list[Any]) -> tuple[Any, int]:
    return (ffi.new(f"struct {struct}[]", rows) if rows else ffi.NULL), len(rows)


def called(create: Callable[..., Any], release: Callable[[Any], None], *args: Any) -> Any:
    """What a create function made. Raises EngineError as it says."""
    error = ffi.new("struct dp_error *")
    made = create(*args, error)
    if made == ffi.NULL:
        what, why = (ffi.string(text).decode() for text in (error.what, error.why))
        raise EngineError(error.status, why, what, error.index)
    assert error.status == 0
    return ffi.gc(made, release)


def group(rules: list[Any], layer: int = lib.DP_LAYER_ACL, prefixes=PREFIXES, ranges=RANGES) -> Any:
    arrays = (
        *array("dp_rule", rules),
        *array("dp_prefix", prefixes),
        *array("dp_range", ranges),
    )
    return called(lib.dp_group_create, lib.dp_group_release, layer, 7, *arrays)


def routes(rows: list[dict[str, Any]]) -> Any:
    return called(lib.dp_routes_create, lib.dp_routes_release, *array("dp_route", rows))


def snapshot(policy: dict[str, list[dict[str, Any]]], generation: int = 1, nat: Any = NAT) -> Any:
    made = [group(ACL_OUT), group(nat, lib.DP_LAYER_NAT), group(ACL_IN)]
    tables = [routes(routes_of(0)), routes(routes_of(1))]
    stamped = [endpoint | {"stamp": generation} for endpoint in policy["endpoints"]]
    return snapshot_of(policy | {"endpoints": stamped}, generation, made, tables)


def snapshot_of(
    policy: dict[str, Any], generation: int, groups: list[Any], tables: list[Any], **given: Any
) -> Any:
    structs = ("dp_port", "dp_network", "dp_endpoint", "dp_adjacency", "dp_pool")
    held = {}
    for field, struct in zip(policy, structs, strict=True):
        held[field], held[f"n_{field}"] = array(struct, policy[field])
    held["addrs"] = ffi.new("uint8_t[]", b"".join(ADDRESSES))
    held["groups"] = ffi.new("struct dp_group *[]", groups)
    held["routes"] = ffi.new("struct dp_routes *[]", tables)
    counts = {"n_addrs": len(ADDRESSES), "n_groups": len(groups), "n_routes": len(tables)}
    c_policy = ffi.new("struct dp_policy *", {"generation": generation, **counts, **held, **given})
    return called(lib.dp_snapshot_create, lib.dp_snapshot_release, c_policy)


def c_engine(key: Any = KEY, **limits: int) -> Any:
    all_limits = {"max_flows": 4096, "max_bindings": 512, "max_ports": PORTS, "max_rules": RULES}
    c_limits = ffi.new("struct dp_limits *", all_limits | limits)
    return called(lib.dp_engine_create, lib.dp_engine_destroy, c_limits, ffi.NULL, key)


def commit(engine: Any, snap: Any) -> int:
    return lib.dp_commit(engine, snap, ffi.new("struct dp_error *"))


def committed() -> Any:
    engine = c_engine()
    assert commit(engine, snapshot(RIGHT)) == 0
    return engine


def totals_of(engine: Any) -> Any:
    """The counters, once they are seen to add up."""
    totals = ffi.new("struct dp_totals *")
    reasons = ffi.new("uint64_t[]", len(Reason))
    ports = ffi.new("struct dp_port_counters[]", PORTS)
    tail = (ffi.NULL, 0, ffi.NULL, 0)
    assert lib.dp_counters(engine, totals, reasons, len(Reason), ports, PORTS, *tail) == 0
    went = totals.forwarded + totals.dropped + totals.consumed + totals.held
    assert totals.rx + totals.copies == went
    assert reasons[0] == 0 and sum(reasons) == totals.dropped
    assert sum(p.tx_frames for p in ports) == totals.forwarded + totals.originated
    return totals


# ---- policies that contradict themselves -------------------------------------------------------

WRONG_POLICIES = [  # field, place, what is changed there, status, object, why
    ("networks", 0, {"vni": 1 << 24}, EINVAL, "network", "24 bits"),
    ("networks", 1, {"vni": 4096}, EDUP, "network", "VNI twice"),
    ("networks", 0, {"mtu": 67}, EINVAL, "network", "MTU"),
    ("networks", 0, {"mtu": 65_535}, EINVAL, "network", "MTU"),
    ("networks", 0, {"routes": 2}, EREF, "network", "out of range"),
    ("ports", 1, {"kind": lib.DP_PORT_UNUSED}, EINVAL, "port", "kind"),
    ("ports", 1, {"kind": 4}, EINVAL, "port", "kind"),
    ("ports", 2, {"kind": lib.DP_PORT_HOST}, EDUP, "port", "second host"),
    ("ports", 3, {"id": WEB}, EDUP, "port", "twice"),
    ("ports", 1, {"id": 0xFFFF}, EINVAL, "port", "65535"),
    ("ports", 0, {"mtu": 67}, EINVAL, "port", "MTU"),
    ("ports", 0, {"kind": lib.DP_PORT_ENDPOINT}, EREF, "adjacency", "underlay port"),
    ("ports", 0, {"ip4": bytes(16)}, EINVAL, "adjacency", "provider address"),
    ("endpoints", 0, {"network": 2}, EREF, "endpoint", "network"),
    ("endpoints", 0, {"port": HOST}, EREF, "endpoint", "not an endpoint port"),
    ("endpoints", 0, {"port": 60_000}, EREF, "endpoint", "not an endpoint port"),
    ("endpoints", 1, {"port": WEB}, EDUP, "endpoint", "another endpoint"),
    ("endpoints", 0, {"addrs": (4, 1)}, EREF, "endpoint", "addresses"),
    ("endpoints", 0, {"addrs": (2, 0xFFFFFFFF)}, EREF, "endpoint", "addresses"),
    ("endpoints", 0, {"groups": [(0, 4), (0, 0)]}, EREF, "endpoint", "groups"),
    ("endpoints", 0, {"groups": [(0, 0), (0xFFFFFFFF, 1)]}, EREF, "endpoint", "groups"),
    ("endpoints", 0, {"fallback": [lib.DP_SNAT, 0]}, EINVAL, "endpoint", "fallback"),
    ("endpoints", 0, {"network": 1}, EREF, "route", "not of the network"),
    ("adjacencies", 0, {"network": 2}, EREF, "adjacency", "network"),
    ("adjacencies", 0, {"network": 1}, EREF, "route", "not of the network"),
    ("adjacencies", 0, {"port": WEB}, EREF, "adjacency", "underlay port"),
    ("adjacencies", 0, {"port": lib.DP_PORT_NONE}, EREF, "route", "not of the network"),
    ("adjacencies", 0, {"mtu": 0}, EINVAL, "adjacency", "MTU"),
    ("adjacencies", 0, {"remote": bytes(16)}, EINVAL, "adjacency", "provider address"),
    ("adjacencies", 0, {"remote": ip("2001:db8::2")}, EINVAL, "adjacency", "provider address"),
    ("pools", 0, {"lo": 0}, EINVAL, "pool", "1-65535"),
    ("pools", 0, {"lo": 2, "hi": 1}, EINVAL, "pool", "not above last"),
]  # fmt: skip


@pytest.mark.conformance("T21")
@pytest.mark.parametrize(("field", "place", "change", "status", "what", "why"), WRONG_POLICIES)
def test_a_wrong_policy_is_refused(field, place, change, status, what, why) -> None:
    policy = deepcopy(RIGHT)
    policy[field][place] |= change
    with pytest.raises(EngineError) as caught:
        snapshot(policy)
    assert (caught.value.status, caught.value.what) == (status, what)
    assert why in caught.value.message


@pytest.mark.parametrize("field", ["pools", "adjacencies", "endpoints", "networks", "ports"])
def test_what_is_missing_is_missed(field: str) -> None:
    with pytest.raises(EngineError) as caught:
        snapshot(RIGHT | {field: []})
    assert caught.value.status == EREF


def test_missing_groups_and_routes_are_missed() -> None:
    good = routes(routes_of(0)), routes(routes_of(1))
    for groups, tables in (([ffi.NULL], [*good]), ([], [ffi.NULL, good[1]]), ([], [])):
        with pytest.raises(EngineError) as caught:
            snapshot_of(RIGHT, 1, groups, tables)
        assert caught.value.status == EREF


# ---- snapshots made from others ----------------------------------------------------------------

HOLE = {"port": lib.DP_PORT_NONE}
THIRD = {**RIGHT["adjacencies"][0], "remote": ip("192.0.2.3")}


def edited(
    adjacencies: dict[int, dict[str, Any]],
    gone: list[dict[str, Any]],
    come: list[dict[str, Any]],
    ids: list[int] | None = None,
) -> Any:
    """The right policy with other adjacencies, and other routes in its first network."""
    old = [routes(routes_of(0)), routes(routes_of(1))]
    made = [group(ACL_OUT), group(NAT, lib.DP_LAYER_NAT), group(ACL_IN)]
    base = snapshot_of(RIGHT, 1, made, old)
    change = *array("dp_route", gone), *array("dp_route", come)
    new = called(lib.dp_routes_edit, lib.dp_routes_release, old[0], *change)
    rows = {"adjacencies": list(adjacencies.values())}
    given = {"base": base, "adjacency_ids": ffi.new("uint32_t[]", ids or list(adjacencies))}
    return snapshot_of(RIGHT | rows, 2, made, [new, old[1]], **given)


def remote_route(prefix: str, adjacency: int) -> dict[str, Any]:
    return route(prefix, 24, lib.DP_TO_REMOTE, adjacency)


GONE = remote_route("10.1.2.0", 0)


def test_a_right_edit_is_taken() -> None:
    edited({}, [], [])
    edited({2: THIRD}, [], [remote_route("10.1.3.0", 2)])
    edited({0: HOLE}, [GONE], [])
    edited({0: HOLE, 2: THIRD}, [GONE], [remote_route("10.1.2.0", 2)])
    edited({0: THIRD}, [], [])


WRONG_EDITS = [  # adjacencies, routes that go, routes that come, ids, status, object, why
    ({0: HOLE}, [], [], None, EREF, "route", "not of the network"),
    ({0: HOLE, 1: HOLE}, [GONE], [], None, EREF, "route", "not of the network"),
    ({}, [], [remote_route("10.1.3.0", 2)], None, EREF, "route", "not of the network"),
    ({}, [], [remote_route("10.1.3.0", 1)], None, EREF, "route", "not of the network"),
    ({0: HOLE}, [], [remote_route("10.1.3.0", 0)], None, EREF, "route", "not of the network"),
    ({2: THIRD | {"network": 1}}, [], [remote_route("10.1.3.0", 2)], None, EREF, "route", "not of"),
    ({0: THIRD | {"network": 1}}, [], [], None, EREF, "route", "not of the network"),
    ({2: THIRD | {"network": 2}}, [], [], None, EREF, "adjacency", "network"),
    ({2: THIRD | {"mtu": 1}}, [], [], None, EINVAL, "adjacency", "MTU"),
    ({2: THIRD, 3: THIRD}, [], [], [3, 2], EINVAL, "adjacency", "ascend"),
    ({2: THIRD, 3: THIRD}, [], [], [3, 3], EINVAL, "adjacency", "ascend"),
    ({2: THIRD}, [], [], [1 << 24], EINVAL, "adjacency", "below"),
    ({}, [remote_route("10.1.3.0", 0)], [], None, EREF, "route", "no such prefix"),
    ({}, [GONE, GONE], [], None, EREF, "route", "no such prefix"),
    ({}, [], [GONE], None, EDUP, "route", "twice"),
    ({}, [], [GONE | {"kind": lib.DP_TO_DIRECT + 1}], None, EINVAL, "route", "kind"),
]


@pytest.mark.parametrize(
    ("adjacencies", "gone", "come", "ids", "status", "what", "why"), WRONG_EDITS
)
def test_a_wrong_edit_is_refused(adjacencies, gone, come, ids, status, what, why) -> None:
    with pytest.raises(EngineError) as caught:
        edited(adjacencies, gone, come, ids)
    assert (caught.value.status, caught.value.what) == (status, what)
    assert why in caught.value.message


ACL = lib.DP_LAYER_ACL
WRONG_GROUPS = [
    (lambda: group([{"action": 5}]), EINVAL, "rule", "action"),
    (lambda: group([{"flags": 4}]), EINVAL, "rule", "flag"),
    *(
        (lambda name=name, span=span: group([{}, {name: span}]), EINVAL, "rule", "span")
        for name in ("src", "dst", "sport", "dport", "proto")
        for span in ((5, 0), (0, 5), (0xFFFFFFFF, 2), (1, 0xFFFFFFFF))
    ),
    (lambda: group([], ACL, [{"len": 129}]), EINVAL, "prefix", "128"),
    (lambda: group([], ACL, [], [(2, 1)]), EINVAL, "range", "above"),
    (lambda: group([], lib.DP_LAYERS), ELIMIT, "group", "layer"),
    (lambda: routes([route("10.0.0.0", 33, 0)]), EINVAL, "route", "length"),
    (lambda: routes([route("10.0.0.0", 8, lib.DP_TO_DIRECT + 1)]), EINVAL, "route", "kind"),
    (lambda: routes([route("10.0.0.1", 8, 0)]), EINVAL, "route", "host bits"),
    (lambda: routes([route("10.0.0.0", 8, 0), route("10.0.0.0", 8, 3)]), EDUP, "route", "twice"),
    (lambda: snapshot(RIGHT, nat=[{"action": lib.DP_SNAT, "arg": 1}]), EREF, "rule", "NAT pool"),
    (lambda: c_engine(max_flows=0), EINVAL, "limits", "max_flows"),
    (lambda: c_engine(max_flows=(1 << 28) + 1), EINVAL, "limits", "max_flows"),
    (lambda: c_engine(max_bindings=(1 << 28) + 1), EINVAL, "limits", "max_bindings"),
    (lambda: c_engine(max_ports=0), EINVAL, "limits", "max_ports"),
    (lambda: c_engine(max_ports=65_536), EINVAL, "limits", "max_ports"),
    (lambda: c_engine(max_rules=(1 << 28) + 1), EINVAL, "limits", "max_rules"),
    (lambda: c_engine(key=ffi.NULL), EINVAL, "limits", "required"),
]


@pytest.mark.conformance("T21")
@pytest.mark.parametrize(("call", "status", "what", "why"), WRONG_GROUPS)
def test_wrong_rules_routes_and_limits_are_refused(call, status, what, why) -> None:
    with pytest.raises(EngineError) as caught:
        call()
    assert (caught.value.status, caught.value.what) == (status, what)
    assert why in caught.value.message


@pytest.mark.conformance("T16")
def test_a_commit_that_does_not_fit_changes_nothing() -> None:
    small = c_engine(max_ports=TWIN)  # one too few
    assert commit(small, snapshot(RIGHT)) == ELIMIT
    assert commit(c_engine(max_rules=4), snapshot(RIGHT)) == ELIMIT
    engine = committed()
    assert [commit(engine, snapshot(RIGHT, generation)) for generation in (0, 1)] == [EINVAL] * 2
    assert totals_of(engine).generation == 1 and totals_of(small).generation == 0


# ---- pointers ----------------------------------------------------------------------------------

NULL = ffi.NULL


@pytest.mark.conformance("T21")
def test_null_is_an_answer_not_a_crash() -> None:
    engine, one = committed(), ffi.new("struct dp_frame[1]")
    arena = ffi.new("uint8_t[256]")
    cursor, error = ffi.new("uint32_t *"), ffi.new("struct dp_error *")
    refused = [
        lib.dp_process(NULL, 0, arena, 256, one, 1, 0),
        lib.dp_process(engine, 0, NULL, 256, one, 1, 0),
        lib.dp_process(engine, 0, arena, 256, NULL, 1, 0),
        lib.dp_trace(NULL, arena, 256, one, 0, NULL, 0),
        lib.dp_trace(engine, NULL, 256, one, 0, NULL, 0),
        lib.dp_trace(engine, arena, 256, NULL, 0, NULL, 0),
        lib.dp_trace(engine, arena, 256, one, 0, NULL, 1),
        lib.dp_flows(NULL, cursor, NULL, 0),
        lib.dp_flows(engine, NULL, NULL, 0),
        lib.dp_flows(engine, cursor, NULL, 1),
        lib.dp_expire(NULL, 0, 1),
        lib.dp_flush(NULL),
        lib.dp_commit(NULL, NULL, error),
        lib.dp_commit(engine, NULL, error),
        lib.dp_counters(NULL, *(NULL, NULL, 0, NULL, 0, NULL, 0, NULL, 0)),
    ]
    assert refused == [EINVAL] * len(refused)
    for release in (lib.dp_group_release, lib.dp_routes_release, lib.dp_snapshot_release):
        release(NULL)
    lib.dp_engine_destroy(NULL)
    assert lib.dp_process(engine, 0, NULL, 0, NULL, 0, 0) == 0
    assert lib.dp_trace(engine, arena, 256, one, 0, NULL, 0) == 0
    assert totals_of(engine).rx == 0


NULL_ARRAYS = (
    "lib.dp_group_create(1, 0, NULL, 1, NULL, 0, NULL, 0, error)",
    "lib.dp_group_create(1, 0, NULL, 0, NULL, 1, NULL, 0, error)",
    "lib.dp_group_create(1, 0, NULL, 0, NULL, 0, NULL, 1, error)",
    "lib.dp_routes_create(NULL, 1, error)",
    "lib.dp_snapshot_create(NULL, error)",
    *(
        f"lib.dp_snapshot_create(ffi.new('struct dp_policy *', dict(n_{field}=1)), error)"
        for field in (*RIGHT, "addrs", "groups", "routes")
    ),
)


@pytest.mark.conformance("T21")
@pytest.mark.parametrize("call", NULL_ARRAYS)
def test_an_array_that_is_not_there_is_refused(call: str) -> None:
    """In a process of its own: a wrong answer here is a crash."""
    code = (
        "from dataplane._engine import ffi, lib\n"
        "NULL, error = ffi.NULL, ffi.new('struct dp_error *')\n"
        f"made = {call}\n"
        "assert made == NULL and error.status < 0 and ffi.string(error.why)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_reasons_and_ports_that_do_not_exist_are_not_counted() -> None:
    engine = committed()
    before = ffi.buffer(totals_of(engine))[:]
    for port, reason in ((0, len(Reason)), (0, 255), (PORTS, 1), (0xFFFF, 1)):
        lib.dp_egress_drop(engine, 0, port, reason, 1, 1)
    assert ffi.buffer(totals_of(engine))[:] == before
    for lookup in (lib.dp_reason_name, lib.dp_reason_layer, lib.dp_reason_text):
        for number in (len(Reason), 0xFFFFFFFF):
            assert lookup(number) == NULL or ffi.string(lookup(number))


# ---- frames ------------------------------------------------------------------------------------

OUT = (
    "arp who-has 10.1.0.1 tell 10.1.1.2",
    "icmp 10.1.1.2 > 10.1.0.1 echo id 1",
    "icmp 10.1.1.2 > 10.1.2.2 echo id 1",
    "tcp 10.1.1.2:40000 > 10.1.2.2:80 syn mss 1460",
    "tcp 10.1.1.2:40000 > 10.1.2.2:23 syn",
    "udp 10.1.1.2:40000 > 10.1.2.2:53 len 20",
    "udp 10.1.1.2:40000 > 10.1.2.2:99 ttl 1",
    "udp 10.1.1.2:40000 > 10.1.2.2:99 len 1500 df",
    "udp 10.1.1.2:40000 > 10.1.1.3:53",
    "udp 10.1.1.2:40000 > 203.0.113.9:53000",
    "tcp 10.1.1.2:40000 > 203.0.113.9:443 syn mss 1460",
    "icmp 10.1.1.2 > 203.0.113.9 echo id 9",
)
BACK = (
    "icmp 10.1.2.2 > 10.1.1.2 reply id 1",
    "tcp 10.1.2.2:80 > 10.1.1.2:40000 syn ack mss 1460",
    "udp 10.1.2.2:50000 > 10.1.1.2:53 tos 3",
    "icmp 10.1.2.2 > 10.1.1.2 unreachable len 28",
)
SLOT, BATCH = 2048, 1024


def frames() -> Iterator[tuple[int, bytes]]:
    """Valid ones, each with its port; the same packets in both networks."""
    for words in OUT:
        yield WEB, build(parse(words), WEB_MAC.hex(":"), ROUTER.hex(":"))
        yield TWIN, build(parse(words), TWIN_MAC.hex(":"), ROUTER.hex(":"))
    for words in BACK:
        inner = build(parse(words), PEER_ROUTER.hex(":"), ROUTER.hex(":"))
        for vni in (4096, 4097):
            ends = {"src": ip_address("192.0.2.2"), "dst": ip_address("192.0.2.1")}
            macs = {"smac": seeds.PEER_MAC, "dmac": seeds.OUR_MAC}
            yield UNDERLAY, vxlan(inner, **ends, vni=vni, **macs)
    yield from ((HOST, frame) for frame in seeds.frames(seeds.HOST))


VALID = list(frames())
FRAMES = np.zeros((len(VALID), SLOT - lib.DP_HEADROOM), np.uint8)
for _row, (_, _frame) in zip(FRAMES, VALID, strict=True):
    _row[: len(_frame)] = np.frombuffer(_frame, np.uint8)
LENGTHS = np.array([len(frame) for _, frame in VALID])
OF_PORT = np.array([port for port, _ in VALID])


def mend(frames: np.ndarray, ip_at: int) -> None:
    """Puts the IPv4 header checksums right, which chance does not find."""
    head = frames[:, ip_at : ip_at + 20].astype(np.uint32)
    head[:, 10:12] = 0
    total = (head[:, ::2] << 8 | head[:, 1::2]).sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    frames[:, ip_at + 10], frames[:, ip_at + 11] = total >> 8, total & 0xFF


def mutants(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch of frames with some bytes changed, most of them in the headers; lengths; ports."""
    which = random.integers(0, len(VALID), BATCH)
    frames, lengths, ports = FRAMES[which], LENGTHS[which].copy(), OF_PORT[which].copy()
    rows = np.arange(BATCH)
    for _ in range(3):
        limit = np.where(random.random(BATCH) < 0.9, np.minimum(lengths, 120), lengths)
        at = (random.random(BATCH) * limit).astype(np.int64)
        hit = random.random(BATCH) < 0.6
        old = frames[rows, at]
        bit = old ^ (1 << random.integers(0, 8, BATCH)).astype(np.uint8)
        new = np.where(random.random(BATCH) < 0.5, bit, random.integers(0, 256, BATCH))
        frames[rows, at] = np.where(hit, new, old)
    sound = random.random(BATCH) < 0.8
    for chosen, place in ((sound, 14), (sound & (ports == UNDERLAY), 64)):
        some = frames[chosen & (frames[:, place - 2] == 8)]
        mend(some, place)
        frames[chosen & (frames[:, place - 2] == 8)] = some
    cut = random.random(BATCH) < 0.1
    lengths[cut] = (random.random(BATCH) * lengths).astype(np.int64)[cut]
    ports[random.random(BATCH) < 0.05] = random.integers(0, PORTS)
    return frames, lengths, ports


class Arena:
    """An engine and its batch, in an arena full of one byte."""

    def __init__(self, poison: int) -> None:
        self.engine, self.poison = committed(), poison
        self.batch = Batch(BATCH, SLOT)

    def process(self, frames: np.ndarray, lengths: np.ndarray, described: np.ndarray, now: int):
        arena, batch = self.batch.arena, self.batch
        behind = np.arange(SLOT) >= lengths[:, None] + lib.DP_HEADROOM
        arena[:] = self.poison
        arena[:, lib.DP_HEADROOM :] = frames
        arena[behind] = self.poison
        batch.frames[:] = described
        batch.count = BATCH
        assert lib.dp_process(self.engine, 0, *batch.prepare(lambda name: 0), now) == 0
        assert (arena[behind] == self.poison).all()  # nothing is written behind a frame
        return batch.frames, arena


def left(described: np.ndarray) -> np.ndarray:
    """Which bytes of the arena leave."""
    at = np.arange(SLOT)
    start = (described["off"].astype(np.int64) - np.arange(BATCH) * SLOT)[:, None]
    end = start + described["len"][:, None]
    return (at >= start) & (at < end) & (described["port"] != lib.DP_PORT_NONE)[:, None]


@pytest.mark.conformance("T12", "T20")
def test_two_hundred_thousand_mutants() -> None:
    """All leave by one exit, inside their slots, and nothing that leaves is what stood there."""
    random = np.random.default_rng(4789)
    one, other = Arena(0xA5), Arena(0x5A)
    for n in range(196):
        frames, lengths, ports = mutants(random)
        described = np.zeros(BATCH, dtype("dp_frame"))
        described["off"] = np.arange(BATCH) * SLOT + lib.DP_HEADROOM
        described["len"], described["port"] = lengths, ports
        described["flags"] = random.integers(0, 8, BATCH) & ~lib.DP_CSUM_PARTIAL
        now = n * 10**9
        told, arena = one.process(frames, lengths, described, now)
        told_other, arena_other = other.process(frames, lengths, described, now)
        assert (told == told_other).all()
        assert ((told["verdict"] == lib.DP_DROP) == (told["reason"] != 0)).all()
        off = told["off"].astype(np.int64) - np.arange(BATCH) * SLOT
        assert (off >= 0).all() and (off + told["len"] <= SLOT).all()
        emitted = left(told)
        assert (arena[emitted] == arena_other[emitted]).all()
        if n % 20 == 7:
            for each in (one, other):
                assert commit(each.engine, snapshot(RIGHT, n)) == 0
                assert lib.dp_expire(each.engine, now, 100) >= 0
    totals = totals_of(one.engine)
    assert totals.rx == 196 * BATCH > 200_000
    assert min(totals.forwarded, totals.dropped, totals.consumed) > 5_000
    assert min(totals.originated, totals.hits, totals.misses, totals.reconciled) > 100


@pytest.mark.conformance("T21")
def test_random_descriptors() -> None:
    """Any offset, length, port and flag, over each other too; sometimes a valid frame under it."""
    random = np.random.default_rng(8472)
    engine, size = committed(), 64 * SLOT
    filled = np.zeros((64, SLOT), np.uint8)
    filled[:, lib.DP_HEADROOM :] = FRAMES[np.arange(64) % len(VALID)]
    starts = np.arange(64) * SLOT + lib.DP_HEADROOM
    for n in range(200):
        arena = filled.flatten()
        raw = random.integers(0, 256, (256, dtype("dp_frame").itemsize), np.uint8)
        described = raw.reshape(-1).view(dtype("dp_frame"))
        row = random.integers(0, 64, 256)
        aimed = random.random(256) < 0.7
        described["off"][aimed] = starts[row][aimed]
        described["len"][aimed] = LENGTHS[row % len(VALID)][aimed]
        described["port"][aimed] = OF_PORT[row % len(VALID)][aimed]
        if n % 2:
            near = random.random(256) < 0.5
            described["off"][near] = random.integers(size - 200, size + 2, 256)[near]
            described["len"][near] = random.integers(0, 200, 256)[near]
        c_arena = ffi.from_buffer("uint8_t[]", arena, require_writable=True)
        c_frames = ffi.from_buffer("struct dp_frame[]", described, require_writable=True)
        assert lib.dp_process(engine, 0, c_arena, size, c_frames, 256, n) == 0
        gone = described[described["port"] != lib.DP_PORT_NONE]
        assert (gone["off"].astype(np.int64) + gone["len"] <= size).all()
    assert totals_of(engine).rx == 200 * 256


@pytest.mark.conformance("T21")
def test_room_in_front_is_asked_for() -> None:
    """To the byte: 128 are enough, 127 are not."""
    engine = committed()
    frame = VALID[4][1]
    for off, reason in ((128, 0), (127, Reason["NO_HEADROOM"]), (0, Reason["NO_HEADROOM"])):
        arena = ffi.new("uint8_t[]", bytes(off) + frame)
        described = ffi.new("struct dp_frame *", {"off": off, "len": len(frame), "port": WEB})
        assert lib.dp_process(engine, 0, arena, off + len(frame), described, 1, 0) == 0
        assert described.reason == reason
        assert lib.dp_process(engine, 0, arena, off + len(frame) - 1, described, 1, 0) == 0


# ---- threads -----------------------------------------------------------------------------------


@pytest.mark.conformance("T21")
def test_a_second_thread_in_c_is_told_so() -> None:
    engine, batch = committed(), Batch(BATCH, SLOT)
    batch.load([VALID[4][1]] * BATCH, WEB)
    args = batch.prepare(lambda name: 0)
    stop, met = threading.Event(), set()

    def work() -> None:
        while not stop.is_set():
            met.add(lib.dp_process(engine, 0, *args, 0))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    generation = 1
    while EBUSY not in met and generation < 2000:
        generation += 1
        assert commit(engine, snapshot(RIGHT, generation)) == 0
        met.update((lib.dp_flush(engine), min(lib.dp_expire(engine, 0, 10), 0)))
    stop.set()
    for worker in workers:
        worker.join()
    assert met == {0, EBUSY}
    totals_of(engine)


# ---- the Python interface ----------------------------------------------------------------------


@pytest.mark.conformance("T21")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda e: e.process_one(None, WEB),
        lambda e: e.process_one(b"", None),
        lambda e: e.process_one(b"", -1),
        lambda e: e.process_one(b"", 1 << 16),
        lambda e: e.process_one(b"", 1.5),
        lambda e: e.process_one(b"", 0, flags=-1),
        lambda e: e.process_one(b"", 0, flags=256),
        lambda e: e.process_one(b"", 0, now=-1),
        lambda e: e.process_one(b"", 0, now=1 << 64),
        lambda e: e.process_one(b"", 0, now="soon"),
        lambda e: e.process_one(bytes(1 << 17), 0),
        lambda e: e.trace(b"", "nowhere"),
        lambda e: e.expire(-1),
        lambda e: e.expire(1 << 32),
        lambda e: e.process(None),
        lambda e: e.commit(None),
        lambda e: Engine(key=b"short"),
        lambda e: Engine(max_flows=-1),
        lambda e: Engine(max_ports=1 << 32),
        lambda e: Engine(timers=Timers(udp=-1)),
        lambda e: Engine(timers=Timers(udp=1 << 32)),
        lambda e: Batch(0),
        lambda e: Batch(-1),
        lambda e: Batch(slot=1 << 40),
        lambda e: Batch(1, 256).view(1),
    ],
)
def test_wrong_arguments_are_python_errors(wrong: Callable[[Engine], Any]) -> None:
    with Engine(max_flows=16) as engine:
        with pytest.raises((DataplaneError, ValueError, TypeError, LookupError, OverflowError,
                            AttributeError)):  # fmt: skip
            wrong(engine)
        assert engine.process_one(b"", 0).reason is Reason["PORT_NOT_CONFIGURED"]  # still at work
        totals = engine.stats().totals
        assert totals["rx"] == totals["dropped"] == 1


@pytest.mark.conformance("T21")
def test_after_close_there_is_an_error_and_no_crash() -> None:
    engine, batch = Engine(max_flows=16), Batch(1, 256)
    result = engine.process(batch.load([b"x"], 0))
    engine.close()
    engine.close()
    for use in (
        lambda: engine.process(batch.load([b"x"], 0)),
        lambda: engine.process_one(b"x", 0),
        lambda: engine.trace(b"x", 0),
        lambda: engine.handle,
        engine.expire,
        engine.flush,
        engine.flows,
        engine.stats,
    ):
        with pytest.raises(DataplaneError, match="closed"):
            use()
    with pytest.raises(DataplaneError, match="no longer valid"):
        result.frame(0)


def test_close_waits_for_no_one() -> None:
    engine = Engine(max_flows=16)
    with engine.exclusive(), pytest.raises(BusyError):
        engine.close()
    engine.close()


# ---- documents ---------------------------------------------------------------------------------

MANY = """\
version: 1
node:
  name: a
  underlay: {address: 192.0.2.1, port: [4789]}
  networks:
    - name: blue
      vni: 16777216
      prefixes: [10.1.0.0/16, 10.1.128.0/17]
      remote_subnets:
        - {prefix: 10.1.2.0/24, provider_address: 192.0.2.2, dr_mac: "02:00:5e:00:00:0b"}
        - {prefix: 10.1.2.0/24, provider_address: 192.0.2.3, dr_mac: "02:00:5e:00:00:0c"}
        - {prefix: 10.1.1.2/32, provider_address: 192.0.2.3, dr_mac: "02:00:5e:00:00:0c"}
      endpoints:
        - {name: web, addresses: [10.1.1.2]}
        - {name: web, addresses: [10.1.1.2], mac: 5}
"""
FAULTS = [  # line, the path's end, what is said
    (4, "underlay.port", "a list"),
    (7, "networks[0].vni", "16777216"),
    (15, "endpoints[1].mac", "MAC"),
]
DANGLING = """\
version: 1
node:
  name: a
  underlay: {address: 192.0.2.1}
  networks:
    - name: blue
      vni: 1
      prefixes: [10.1.0.0/16]
      remote_subnets:
        - {prefix: 10.1.2.0/24, provider_address: 192.0.2.2, dr_mac: "02:00:5e:00:00:0b"}
        - {prefix: 10.1.2.0/24, provider_address: 192.0.2.3, dr_mac: "02:00:5e:00:00:0c"}
        - {prefix: 10.1.1.2/32, provider_address: 192.0.2.3, dr_mac: "02:00:5e:00:00:0c"}
      endpoints:
        - {name: web, addresses: [10.1.1.2]}
        - {name: web, addresses: [10.1.1.2]}
expect:
  - {packet: "udp 10.1.1.2:1 > 10.1.2.2:2", at: nobody, verdict: drop}
"""
TWINS = [
    (11, "remote_subnets[1]", "10.1.2.0/24 is taken"),
    (12, "remote_subnets[2].prefix", "address of a local endpoint"),
    (15, "endpoints[1]", "web is taken"),
    (15, "addresses[0]", "10.1.1.2 is taken"),
    (17, "expect[0].at", "nobody"),
]


@pytest.mark.parametrize(("text", "faults"), [(MANY, FAULTS), (DANGLING, TWINS)])
def test_all_faults_of_a_file_at_once(tmp_path: Path, text: str, faults: list[Any]) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError) as caught:
        document.load(path)
    told = str(caught.value).splitlines()
    for line, where, what in faults:
        assert any(t.startswith(f"{path}:{line} $.") and where in t and what in t for t in told), (
            f"{line} {where} {what} is not in:\n{caught.value}"
        )


def test_a_faulty_value_hides_no_other_fault() -> None:
    text = """\
version: 1
node:
  name: a/b
  underlay: {address: 224.0.0.1, port: "4789"}
  networks:
    - {name: blue, vni: 7, prefixes: [10.1.0.0/16], mtu: 1e3}
    - {name: blue, vni: 7, prefixes: [10.2.0.0/16], endpoints: [{name: x, addresses: [10.9.0.1]}]}
"""
    with pytest.raises(DocumentError) as caught:
        document.loads(text)
    told = str(caught.value)
    for where, what in (
        ("$.node.name", "a/b"),
        ("underlay.address", "224.0.0.1"),
        ("underlay.port", "write 4789"),
        ("networks[0].mtu", "write 1000"),
        ("networks[1]", "blue is taken"),
        ("networks[1]", "VNI"),
        ("addresses[0]", "10.9.0.1"),
    ):
        assert any(where in line and what in line for line in told.splitlines()), (where, told)


def test_half_a_character_is_no_text() -> None:
    for field in ("name", "netns"):
        fields = {"name": "t", field: "\\ud800"}
        tap = ", ".join(f'"{k}": "{v}"' for k, v in fields.items())
        text = (
            '{"version": 1, "node": {"name": "a", "underlay": {"address": "192.0.2.1"}, "networks":'
            ' [{"name": "n", "vni": 1, "prefixes": ["10.1.0.0/16"], "endpoints":'
            ' [{"name": "e", "addresses": ["10.1.0.2"], "tap": {' + tap + "}}]}]}}"
        )
        with pytest.raises(DocumentError, match=f"tap.{field}: .*surrogate"):
            document.loads(text)


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ALIASES, ":1 .* anchor &a is not accepted"),
        ("node:\n " + "[" * 100_000, ":2 .* nested deeper"),
        ("node:\n " + '{"a":' * 100_000, ":2 .* nested deeper"),
        ("version: 1\nnode: !!python/object/apply:os.system [id]", ":2 .* tag"),
    ],
    ids=["aliases", "lists", "mappings", "tags"],
)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_bombs_do_not_go_off(tmp_path: Path, text: str, says: str, suffix: str) -> None:
    path = tmp_path / f"bomb.{suffix}"
    path.write_text(text)
    with pytest.raises(DocumentError, match=says if suffix == "yaml" else "bomb.json"):
        document.load(path)


def test_a_hundred_megabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(DocumentError, match=f"{path} .*: larger than 64 MiB"):
        document.load(path)
