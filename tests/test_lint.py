"""Rules that can never match are told of, and no others."""

import json
import time
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane import lint
from dataplane.address import Vni, ip16
from dataplane.cli import cli
from dataplane.engine import Engine
from dataplane.model import Acl, Document, Endpoint, Network, Node, PortRange, Underlay
from tests.reference import acl as oracle
from tests.reference.wire import FlowId

WEB = ("10.0.1.2", "fd00:1::2")


def document(own: tuple[Acl, ...], network: tuple[Acl, ...] = ()) -> Document:
    web = Endpoint(name="web", addresses=tuple(map(ip_address, WEB)), acls=own)
    blue = Network(
        name="blue",
        vni=Vni(100),
        prefixes=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        acls=network,
        endpoints=(web,),
    )
    under = Underlay(address=ip_address("192.0.2.1"))
    return Document(node=Node(name="a", underlay=under, networks=(blue,)))


def rule(name: object, action: Any = "allow", **fields: Any) -> Acl:
    for key in ("local", "remote"):
        if key in fields:
            fields[key] = tuple(map(ip_network, fields[key].split()))
    for key in ("local_ports", "remote_ports"):
        if key in fields:
            fields[key] = tuple(map(PortRange.parse, str(fields[key]).split()))
            fields.setdefault("protocol", "tcp")
    fields.setdefault("direction", "out")
    return Acl(name=str(name), action=action, **fields)


def told(own: tuple[Acl, ...], network: tuple[Acl, ...] = ()) -> list[str]:
    return [warning.message for warning in lint.check(document(own, network))]


def shadowed(name: object, by: object) -> list[str]:
    return [f"rule {name} can never match: shadowed by {by}"]


SOFT: dict[str, Any] = {"terminating": False}

CASES: list[tuple[str, tuple[Acl, ...], tuple[Acl, ...], list[str]]] = [
    ("nothing", (), (), []),
    ("one", (rule(1),), (), []),
    ("the same twice", (rule(10), rule(99)), (), shadowed(99, 10)),
    ("by priority", (rule(99, priority=20), rule(10, priority=10)), (), shadowed(99, 10)),
    ("another direction", (rule(10), rule(99, direction="in")), (), []),
    (
        "a soft rule takes the packet from its group",
        (rule(10, **SOFT), rule(99)),
        (),
        shadowed(99, 10),
    ),
    ("so does pass", (rule(10, "pass"), rule(99)), (), shadowed(99, 10)),
    (
        "ports",
        (rule(10, remote_ports="1-100"), rule(99, remote_ports="80 90-100")),
        (),
        shadowed(99, 10),
    ),
    ("more ports", (rule(10, remote_ports="1-100"), rule(99, remote_ports="80-101")), (), []),
    ("other ports", (rule(10, remote_ports="1-100"), rule(99, local_ports="1-100")), (), []),
    ("a wider protocol", (rule(10, protocol="tcp"), rule(99)), (), []),
    ("a number is a name", (rule(10, protocol=6), rule(99, protocol="tcp")), (), shadowed(99, 10)),
    (
        "prefixes",
        (rule(10, remote="10.0.0.0/8"), rule(99, remote="10.2.0.0/16")),
        (),
        shadowed(99, 10),
    ),
    (
        "all of IPv4",
        (rule(10, remote="0.0.0.0/0"), rule(99, remote="10.2.0.0/16")),
        (),
        shadowed(99, 10),
    ),
    (
        "all of IPv6 holds no IPv4",
        (rule(10, remote="::/0"), rule(99, remote="10.2.0.0/16")),
        (),
        [],
    ),
    (
        "both families together",
        (rule(10, remote="::/0"), rule(11, remote="0.0.0.0/0"), rule(99)),
        (),
        shadowed(99, "10 and 11 together"),
    ),
    (
        "halves",
        (
            rule(10, remote="10.0.0.0/9"),
            rule(11, remote="10.128.0.0/9"),
            rule(99, remote="10.0.0.0/8"),
        ),
        (),
        shadowed(99, "10 and 11 together"),
    ),
    (
        "three quarters",
        (
            rule(10, remote="10.0.0.0/9"),
            rule(11, remote="10.128.0.0/10"),
            rule(99, remote="10.0.0.0/8"),
        ),
        (),
        [],
    ),
    (
        "an own address says no more than any",
        (rule(10, local="10.0.1.2 fd00:1::2"), rule(99)),
        (),
        shadowed(99, 10),
    ),
    (
        "ICMP types",
        (
            rule(10, protocol="icmp", icmp_type=8),
            rule(99, protocol="icmp", icmp_type=8, icmp_code=0),
        ),
        (),
        shadowed(99, 10),
    ),
    ("by the network", (rule(99, remote="10.2.0.0/16"),), (rule(10),), shadowed(99, "blue/10")),
    ("not by what is soft", (rule(99),), (rule(10, **SOFT),), []),
    ("not by what passes", (rule(99),), (rule(10, "pass"),), []),
    (
        "a pass before makes a hole",
        (rule(99, remote="10.2.0.0/16"),),
        (rule(5, "pass", remote="10.2.3.0/24"), rule(10)),
        [],
    ),
    (
        "a hole closed by a rule of its own",
        (
            rule(20, remote="10.2.3.0/25"),
            rule(21, remote="10.2.3.128/25"),
            rule(99, remote="10.2.0.0/16"),
        ),
        (rule(5, "pass", remote="10.2.3.0/24"), rule(10)),
        shadowed(99, "blue/10, 20 and 21 together"),
    ),
    (
        "of somebody else",
        (rule(99, local="10.0.1.9"),),
        (),
        [
            "rule 99 can never match: no address of the endpoint meets local and the IP version of "
            "remote"
        ],
    ),
    (
        "of another network",
        (),
        (rule(99, local="10.9.0.0/16"),),
        [
            "rule 99 can never match: no address of the network meets local and the IP version of "
            "remote"
        ],
    ),
]


@pytest.mark.parametrize(
    ("own", "network", "wanted"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_told(own: tuple[Acl, ...], network: tuple[Acl, ...], wanted: list[str]) -> None:
    assert told(own, network) == wanted


# ---- against every packet there is -------------------------------------------------------------

PREFIXES = ["10.2.0.0/16", "10.2.0.0/17", "10.2.128.0/17", "0.0.0.0/0", "::/0", "fd00:2::/64"]
PORTS = [PortRange(0, 65535), PortRange(0, 99), PortRange(80, 80), PortRange(100, 65535)]


@st.composite
def rules(draw: st.DrawFn, name: str) -> Acl:
    protocol = draw(st.sampled_from(["any", "any", "tcp", 17, "icmp"]))
    few = st.lists(st.sampled_from(PORTS), max_size=2).map(tuple)
    ported = protocol in ("tcp", 17)
    return Acl(
        name=name,
        direction=draw(st.sampled_from(["out", "out", "in"])),
        action=draw(st.sampled_from(["allow", "block", "pass"])),
        priority=draw(st.sampled_from([10, 20])),
        terminating=draw(st.booleans()),
        protocol=protocol,
        local=draw(st.sampled_from([(), (), (ip_network(WEB[0]),), (ip_network("fd00::/16"),)])),
        remote=tuple(map(ip_network, draw(st.lists(st.sampled_from(PREFIXES), max_size=2)))),
        local_ports=draw(few) if ported else (),
        remote_ports=draw(few) if ported else (),
        icmp_type=draw(st.sampled_from([None, 8])) if protocol == "icmp" else None,
    )


@st.composite
def groups(draw: st.DrawFn) -> tuple[tuple[Acl, ...], tuple[Acl, ...]]:
    def some(prefix: str) -> tuple[Acl, ...]:
        return tuple(draw(rules(f"{prefix}{n}")) for n in range(draw(st.integers(0, 4))))

    return some("e"), some("n")


REMOTES = ("10.1.255.255", "10.2.0.0", "10.2.128.0", "fd00:2::", "fd00:1::")
NUMBERS = (0, 80, 81, 100, 8 << 8, 9 << 8)
PACKETS = [
    (ip16(ip_address(own)), ip16(ip_address(remote)), proto, one, two)
    for own, remote in product(WEB, REMOTES)
    if (":" in own) == (":" in remote)
    for proto, one, two in product((1, 6, 17, 47), NUMBERS, NUMBERS)
]


def reached(own: tuple[Acl, ...], network: tuple[Acl, ...]) -> set[str]:
    """Names of the rules that some packet meets, one packet of each kind there is."""
    met: set[str] = set()
    for direction in ("out", "in"):
        tiers = [
            sorted((r for r in tier if r.direction == direction), key=lambda r: r.priority)
            for tier in (network, own)
        ]
        for here, there, proto, one, two in PACKETS:
            ends = (here, there) if direction == "out" else (there, here)
            flow = FlowId(*ends, proto, one, two)
            for tier in tiers:
                first = next((r for r in tier if oracle._matches(r, flow)), None)
                if first:
                    met.add(first.name)
                    if first.terminating and first.action != "pass":
                        break
    return met


@settings(deadline=None, max_examples=150)
@given(groups())
def test_no_more_and_no_less(case: tuple[tuple[Acl, ...], tuple[Acl, ...]]) -> None:
    own, network = case
    # what the network's rules meet with another address than web's is no concern of this oracle
    dead = {
        w.message.split()[1] for w in lint.check(document(own, network)) if "endpoints" in w.path
    }
    assert dead == {r.name for r in own} - reached(own, network)


# ---- what it costs -----------------------------------------------------------------------------


def test_many_rules_take_no_time() -> None:
    many = tuple(
        rule(n, remote=f"10.{n >> 8}.{n & 255}.0/24", remote_ports=f"{n + 1}") for n in range(2000)
    )
    start = time.process_time()
    assert told((*many, rule("last", remote="10.1.1.128/25", remote_ports=258))) == shadowed(
        "last", 257
    )
    assert time.process_time() - start < 5


def test_what_would_cost_too_much_is_not_told() -> None:
    dust = tuple(
        rule(n, remote=f"10.0.0.{n}/32", remote_ports=str(n + 1), local_ports=str(n + 1))
        for n in range(200)
    )
    assert told((*dust, rule("last", remote_ports="1-300"))) == []


# ---- where it is told --------------------------------------------------------------------------

TEXT = """\
version: 1
node:
  name: a
  underlay: {address: 192.0.2.1}
  networks:
    - name: blue
      vni: 100
      prefixes: [10.0.1.0/24]
      endpoints:
        - name: web
          addresses: [10.0.1.2]
          acls:
            - {name: all, direction: out, action: allow}
            - {name: dns, direction: out, action: block, protocol: udp, remote_ports: 53}
"""
PLACE = "$.node.networks[0].endpoints[0].acls[1]"
SAID = "rule dns can never match: shadowed by all"


def test_check_warns_and_passes(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(TEXT)
    text = CliRunner().invoke(cli, ["check", str(file)])
    assert text.exit_code == 0
    assert text.output.splitlines()[0] == f"{file}:14 {PLACE}: warning: {SAID}"
    machine = CliRunner().invoke(cli, ["check", str(file), "-o", "json"])
    assert json.loads(machine.stdout)[str(file)]["warnings"] == [{"path": PLACE, "message": SAID}]
    diff = CliRunner().invoke(cli, ["diff", str(file)])
    assert f"warning: {PLACE}: {SAID}" in diff.stderr and "warning" not in diff.stdout


def test_a_plan_warns_and_commits() -> None:
    policy = document((rule(10), rule(99)))
    with Engine() as engine:
        plan = engine.plan(policy)
        said = f"{PLACE}: rule 99 can never match: shadowed by 10"
        assert plan.warnings == (said,)
        assert f"warning: {said}" in plan.text()
        assert plan.to_dict()["warnings"] == [said]
        assert plan.commit() == 1
