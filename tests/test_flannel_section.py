"""`flannel:` of a node's document: what it may say, and that a node does what it says."""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dataplane.address import Vni, parse_prefix
from dataplane.cli_flannel import doors
from dataplane.daemon import Daemon
from dataplane.document import dump, loads
from dataplane.errors import DocumentError
from dataplane.merge import merge
from dataplane.model import Document, Flannel, Network, Node, Underlay
from dataplane.shares import Share
from dataplane.state_dir import Saved
from tests.etcd_server import WHY_NOT, Etcd
from tests.test_flannel_door import CONFIG, PORT, until

ROOT = Path(__file__).resolve().parent.parent
NODE = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.78"), port=PORT))
OVERLAY = Flannel(etcd=("http://127.0.0.1:2379",), prefix="/net", env="")

FAULTS = {
    "{etcd: []}": ("etcd", "names no server"),
    "{etcd: ['tcp://x']}": ("etcd[0]", "'tcp://x' is no address of an etcd server"),
    "{etcd: ['http://u@x:1']}": ("etcd[0]", "is no address of an etcd server"),
    "{etcd: ['http://x'], prefix: net}": ("prefix", "does not begin with a slash"),
    "{etcd: ['http://x'], endpoints: ['a b']}": ("endpoints[0]", "is not NAME or NAME@NETNS"),
    "{etcd: ['http://x'], endpoints: [a@]}": ("endpoints[0]", "is not NAME or NAME@NETNS"),
    "{etcd: ['http://x'], endpoints: [a@b, a]}": ("endpoints[1]", "endpoint a is taken"),
    "{etcd: ['http://x'], key: k.pem}": ("key", "is there without its certificate"),
    "{etcd: ['http://x'], password: secret}": ("", "password"),
    "{prefix: /net}": ("", "etcd"),
}


@pytest.mark.parametrize("section", FAULTS)
def test_what_is_wrong_is_named(section: str) -> None:
    path, message = FAULTS[section]
    underlay = "underlay: {address: 192.0.2.1}"
    with pytest.raises(DocumentError) as caught:
        loads(f"version: 1\nnode: {{name: a, {underlay}, flannel: {section}}}")
    (fault,) = caught.value.faults
    assert fault.path.startswith(f"$.node.flannel{'.' * bool(path)}{path}")
    assert message in f"{fault.path} {fault.message}"


def test_it_is_written_and_merged_as_it_is_read() -> None:
    node = replace(NODE, flannel=OVERLAY)
    assert loads(dump(Document(node=node))).node == node
    assert merge(node, NODE) == node
    other = replace(OVERLAY, prefix="/other")
    assert merge(node, replace(NODE, flannel=other)).flannel == other


def test_the_documented_section_is_one() -> None:
    text = (ROOT / "docs/flannel.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (block,) = [b for b in blocks if "flannel:" in b and "etcd:" in b]
    node = loads(block).node
    assert node is not None and node.flannel is not None
    assert node.flannel.endpoints == ("eth0@pod-a",)


def test_options_have_to_fit() -> None:
    from dataplane.cli import cli

    for words in (["--flannel-endpoint", "web"], ["--flannel-prefix", "net"]):
        done = CliRunner().invoke(cli, ["run", "nothing.yaml", *words])
        assert done.exit_code == 2, done.output


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path).start()
    yield server
    server.kill()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_node_takes_part(etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of the overlay that its document names; another one is taken when it begins anew."""
    caplog.set_level(logging.INFO, "dataplane")
    etcd.put("/net/config", CONFIG)
    env = tmp_path / "subnet.env"
    node = replace(NODE, flannel=replace(OVERLAY, etcd=(etcd.url,), env=str(env)))
    with ExitStack() as made:
        daemon = made.enter_context(Daemon(Saved(1, node)))
        for door in doors(None, "/coreos.com/network", (), "/run/flannel/subnet.env"):
            made.enter_context(door(daemon))
        until(env.is_file)
        (network,) = daemon.policy.networks
        assert network.name == "flannel" and "FLANNEL_NETWORK=10.5.0.0/16" in env.read_text()
        daemon.apply(replace(node, icmp_rate=None))
        assert "names another overlay" not in caplog.text
        daemon.apply(NODE)
        assert caplog.text.count("names another overlay") == 1
        assert [n.name for n in daemon.policy.networks] == ["flannel"]


def test_a_node_without_one_has_none() -> None:
    """Nor what is left of one that it had."""
    left = Network(name="flannel", vni=Vni(1), prefixes=(parse_prefix("10.5.0.0/16"),))
    shares = {"flannel": Share(networks=(left,), kept="x")}
    with Daemon(Saved(1, NODE, {}, shares)) as daemon:
        assert daemon.policy.networks
        (door,) = doors(None, "/coreos.com/network", (), "/run/flannel/subnet.env")
        with door(daemon) as none:
            assert none is None and daemon.policy.networks == ()
