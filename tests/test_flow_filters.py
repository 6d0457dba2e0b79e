"""Filters on the flow table: the vectors say what a plain look at each flow says."""

import random
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from dataplane.api import filters, flow_table
from dataplane.engine import Engine
from dataplane.errors import DataplaneError
from dataplane.flows import Flow
from dataplane.model import PROTOCOLS
from tests import blue

PORTED = (6, 17, 132)
PACKETS = [
    "tcp 10.1.0.2:{a} > 10.2.0.{b}:80 syn",
    "udp 10.1.0.2:{a} > 10.1.0.3:{b}",
    "udp 10.1.0.3:{a} > 10.3.0.{b}:53",
    "icmp 10.1.0.2 > 10.1.0.3 echo",
    "tcp [fd00:1::2]:{a} > [fd00:2::{b}]:443 syn",
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    made = blue.engine()
    dice = random.Random(1)
    for i in range(400):
        text = dice.choice(PACKETS).format(a=1000 + i % 50, b=1 + dice.randrange(9))
        of_db = "10.1.0.3:" in text.split(">")[0]
        made.process_one((blue.db if of_db else blue.web)(text), "blue/db" if of_db else "blue/web")
    return made


def met(flow: Flow, field: str, value: str) -> bool:
    """The slow twin of one condition."""
    sides = (flow.src, flow.dst)
    ports = (flow.sport, flow.dport) if flow.protocol in PORTED else ()
    if field in ("ip", "src", "dst"):
        looked = {"ip": sides, "src": sides[:1], "dst": sides[1:]}[field]
        net = ip_network(value)
        return any(a.version == net.version and a in net for a in looked)
    if field in ("port", "sport", "dport"):
        looked = {"port": ports, "sport": ports[:1], "dport": ports[1:]}[field]
        return int(value) in looked
    if field == "proto":
        return flow.protocol == (PROTOCOLS[value] if value in PROTOCOLS else int(value))
    if field == "vni":
        return flow.vni == int(value)
    if field == "endpoint":
        return value in (flow.in_port, flow.out_port)
    if field == "peer":
        return flow.provider == ip_address(value)
    state = "closing" if flow.closing else "new" if flow.half_open else "est"
    return state == value


CASES = [
    ("ip", ["10.2.0.0/16", "10.1.0.3", "fd00:2::/64", "0.0.0.0/0", "::/0"]),
    ("src", ["10.1.0.2", "10.1.0.0/31", "fd00:1::2"]),
    ("dst", ["10.3.0.0/24", "10.1.0.3"]),
    ("port", ["80", "1003", "53"]),
    ("sport", ["1007"]),
    ("dport", ["443", "5"]),
    ("proto", ["tcp", "udp", "icmp", "58", "0"]),
    ("vni", [str(blue.VNI), "0"]),
    ("endpoint", ["blue/web", "blue/db", "underlay"]),
    ("peer", [blue.VTEP, "192.0.2.3", "203.0.113.9"]),
    ("state", ["new", "est", "closing"]),
]


def found(engine: Engine, *texts: str) -> list[dict[str, Any]]:
    told = flow_table.listed(engine, filters.parse(texts), 10_000)
    assert told["shown"] == told["matched"] == len(told["items"])
    items: list[dict[str, Any]] = told["items"]
    return items


def key(flow: Flow) -> tuple[str, ...]:
    return str(flow.src), str(flow.sport), str(flow.dst), str(flow.dport), str(flow.vni)


def keys(items: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return sorted(
        (i["src"], str(i["sport"]), i["dst"], str(i["dport"]), str(i["vni"])) for i in items
    )


@pytest.mark.parametrize(("field", "values"), CASES, ids=[field for field, _ in CASES])
def test_each_field(engine: Engine, field: str, values: list[str]) -> None:
    flows = engine.flows()
    assert len(flows) > 100
    for value in values:
        wanted = sorted(key(f) for f in flows if met(f, field, value))
        assert keys(found(engine, f"{field}={value}")) == wanted, value
        others = sorted(key(f) for f in flows if not met(f, field, value))
        assert keys(found(engine, f"{field}!={value}")) == others, value


def test_fields_are_tried(engine: Engine) -> None:
    assert {field for field, _ in CASES} == set(filters.FIELDS)


def test_conditions_are_anded_and_values_ored(engine: Engine) -> None:
    flows = engine.flows()
    wanted = [
        key(f)
        for f in flows
        if (met(f, "proto", "tcp") or met(f, "proto", "icmp")) and not met(f, "ip", "10.2.0.4")
    ]
    assert keys(found(engine, "proto=tcp,icmp", "ip!=10.2.0.4")) == sorted(wanted)


@pytest.mark.parametrize("by", flow_table.SUMS)
def test_sums_are_those_of_the_flows(engine: Engine, by: str) -> None:
    told = flow_table.summed(engine, (), by, 10_000)
    flows = engine.flows()
    for column, total in (
        ("flows", len(flows)),
        ("packets", sum(sum(f.packets) for f in flows)),
        ("bytes", sum(sum(f.bytes) for f in flows)),
    ):
        assert sum(item[column] for item in told["items"]) == total
    names = [item["name"] for item in told["items"]]
    assert len(set(names)) == len(names) == told["matched"]
    if by == "pair":
        assert f"{flows[0].src} > {flows[0].dst}" in names


def test_most_packets_come_first(engine: Engine) -> None:
    items = flow_table.listed(engine, (), 5)["items"]
    packets = [item["packets"] for item in items]
    assert len(items) == 5 and packets == sorted(packets, reverse=True)
    assert packets[0] == max(sum(f.packets) for f in engine.flows())


@pytest.mark.parametrize(
    "text", ["", "ip", "ip=", "ip=x", "ip=1.2.3.4/33", "port=65536", "port=-1", "vni=16777216",
             "proto=nothing", "state=old", "what=1", "ip==1.2.3.4", "port=1,,2"]
)  # fmt: skip
def test_bad_filters_are_refused(engine: Engine, text: str) -> None:
    with pytest.raises(DataplaneError):
        filters.parse([text])


def test_unknown_endpoint_is_told(engine: Engine) -> None:
    with pytest.raises(DataplaneError, match="no such endpoint"):
        flow_table.listed(engine, filters.parse(["endpoint=blue/nobody"]), 1)
    with pytest.raises(DataplaneError, match="by 'age'"):
        flow_table.summed(engine, (), "age", 1)
