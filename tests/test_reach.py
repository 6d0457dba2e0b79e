"""`dataplane mtu` and `ping-peer`: how large packets may be, and whether they come through."""

import json
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from click.testing import CliRunner, Result

from dataplane import demo_net, ping
from dataplane.cli import cli
from dataplane.demo_base import DB
from dataplane.demo_net import ROUTER
from tests.world import World, world_at

WHY_NOT = demo_net.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")

B, KERNEL = "192.0.2.65", "192.0.2.129"  # peers of a: a node of ours, and a kernel's VXLAN device


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_at(tmp_path_factory.mktemp("world")) as made:
        yield made


def dataplane(world: World, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--socket", str(world.nodes["a"].control)])


def told(world: World, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in dataplane(world, *words, "-o", "json").output.splitlines()]


def test_ping_a_peer_of_ours(world: World) -> None:
    done = dataplane(world, "ping-peer", B, "--to", DB, "-c", "3", "-i", "0.01")
    assert done.exit_code == 0, done.output
    assert f"PING {DB} behind {B} from blue/web" in done.output
    assert "3 sent, 3 answered, 0 % lost" in done.output and "rtt min/avg/max" in done.output
    (flow,) = told(world, "ping-peer", B, "-c", "1")
    assert (flow["answer"], flow["to"]) == ("reply", DB), "who answered is asked again"


def test_ping_a_kernel(world: World) -> None:
    (got,) = told(world, "ping-peer", KERNEL, "--to", "10.1.3.2", "-c", "1")
    assert (got["answer"], got["by"]) == ("reply", "10.1.3.2")


def test_the_largest_packet_passes_and_one_byte_more_does_not(world: World) -> None:
    (way,) = json.loads(dataplane(world, "mtu", B, "-o", "json").output)[:1]
    assert (way["name"], way["largest"], way["overhead"]) == (f"blue/{B}", 1450, 50)
    assert way["route"] == way["underlay"] == 1500
    data = way["largest"] - 28
    for size, answer in ((data, "reply"), (data + 1, "too_big")):
        (got,) = told(world, "ping-peer", B, "--to", DB, "-c", "1", "-s", str(size))
        assert got["answer"] == answer, got


def test_a_narrow_way_is_told(world: World) -> None:
    assert dataplane(world, "mtu").exit_code == 0
    assert "WARN  mtu" not in dataplane(world, "doctor").output
    world.site.ip("a", f"route add {B}/32 via {ROUTER['a']} mtu lock 1400")
    try:
        done = dataplane(world, "mtu", B)
        assert done.exit_code == 1 and " 1350 " in done.output, done.output
        with world.client("a") as client:
            found = {f["fix"]: f["message"] for f in client.findings() if f["level"] == "warning"}
        assert f"1350 arrive at {B}: the route carries 1400" in found["mtu: 1350"], found
    finally:
        world.site.ip("a", f"route del {B}/32")


def test_nobody_answers(world: World) -> None:
    done = dataplane(world, "ping-peer", B, "--to", "10.1.2.99", "-c", "1")
    assert done.exit_code == 1 and "1 sent, 0 answered, 100 % lost" in done.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["192.0.2.222"], "no remote subnet is behind 192.0.2.222"),
        (["nonsense"], "peer: "),
        ([B, "--from", "blue/nobody"], "no endpoint blue/nobody"),
        ([B, "--from", "red/web"], "no endpoint here is in a network with"),
        ([B, "--to", "fd00::1"], "with an IPv6 address"),
    ],
)
def test_what_cannot_be_pinged(world: World, words: list[str], says: str) -> None:
    done = dataplane(world, "ping-peer", *words, "-c", "1")
    assert done.exit_code in (1, 2) and says in done.output, done.output


def test_no_such_peer_has_no_mtu(world: World) -> None:
    done = dataplane(world, "mtu", "192.0.2.222")
    assert done.exit_code == 1 and "no peer 192.0.2.222" in done.output


def test_echoes_of_both_families_on_loopback() -> None:
    for address in ("127.0.0.1", "::1"):
        here = ip_address(address)
        got = ping.echo(here, here, netns=None, sequence=7, size=100)
        assert got.answer == "reply" and got.by == address
