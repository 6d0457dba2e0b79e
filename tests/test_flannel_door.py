"""The door at work in a daemon of this process: what it needs, what it keeps, when it renews."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane.address import Mac
from dataplane.api.health import examine, unready
from dataplane.daemon import Daemon
from dataplane.flannel.documents import read_subnet
from dataplane.flannel.door import HALF_BEHIND, Flannel, Options
from dataplane.flannel.etcd import Client
from dataplane.flannel.keeper import TTL
from dataplane.flannel.link import LACKS_HOST
from dataplane.model import Endpoint, HostPort, Node, Tap, Underlay
from dataplane.state_dir import Saved, StateDir
from tests.etcd_server import WHY_NOT, Etcd

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

PORT = 4793
CONFIG = b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777215,"Port":4793}}'
NODE = Node(name="a", underlay=Underlay(address=ip_address("127.0.0.77"), port=PORT))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state") as made:
        yield made


def options(etcd: Etcd, tmp_path: Path, margin: float = 3600.0) -> Options:
    return Options((etcd.url,), "/net", (), tmp_path / "subnet.env", margin)


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_wrong_is_told_once_until_it_is_mended(
    etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No config, one that is none, another port; then a lease, VNI and all."""
    caplog.set_level(logging.INFO, "dataplane")
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: "/net/config is missing" in caplog.text)
        etcd.put("/net/config", b"{")
        until(lambda: "/net/config $: cannot be read" in caplog.text)
        etcd.put("/net/config", CONFIG.replace(b"4793", b"0"))
        until(lambda: "(set underlay.port to 8472)" in caplog.text)
        etcd.put("/net/config", CONFIG)
        until(lambda: daemon.policy.networks)
        (network,) = daemon.policy.networks
        assert (network.name, network.vni) == ("flannel", 16777215)
        until(lambda: "follows etcd" in caplog.text)
        assert caplog.text.count("is missing") == 1
        assert caplog.text.count("on Windows refuse it") == 1


def test_a_node_is_not_ready_before_its_first_sync_and_is_through_an_outage(
    etcd: Etcd, tmp_path: Path, state: StateDir
) -> None:
    """Nor is it after a restart meanwhile: it forwards what it knew."""
    with Daemon(Saved(1, NODE), state=state) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: "/net/config is missing" in "".join(unready(daemon)))
        assert unready(daemon)[0].startswith("flannel: not synced yet: ")
        assert levels(daemon) == ["failure"]
        etcd.put("/net/config", CONFIG)
        until(lambda: not unready(daemon))
        until(lambda: levels(daemon) == ["ok"])
        etcd.kill()
        until(lambda: levels(daemon) == ["warning"])
        assert unready(daemon) == [] and daemon.doors["flannel"].synced
    saved = state.read()
    assert saved is not None
    with Daemon(saved, state=state) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: levels(daemon) == ["warning"])
        assert unready(daemon) == []


def levels(daemon: Daemon) -> list[str]:
    return [finding.level for finding in examine(daemon) if finding.subject == "door"]


def test_identity_outlives_the_process_and_etcds_memory(
    etcd: Etcd, tmp_path: Path, state: StateDir
) -> None:
    """The same subnet and VtepMAC, though etcd has forgotten the lease."""
    etcd.put("/net/config", CONFIG)
    seen: list[tuple[str, Mac | None]] = []
    for _ in range(2):
        begin = state.read() or Saved(1, NODE)
        with Daemon(begin, state=state) as daemon, Flannel(daemon, options(etcd, tmp_path)):
            until(lambda: etcd.values("/net/subnets"))
            (key,) = etcd.values("/net/subnets")
            until(lambda daemon=daemon: daemon.policy.networks)
            until((tmp_path / "subnet.env").exists)
            seen.append((key, daemon.policy.networks[0].dr_mac))
        assert etcd.values("/net/subnets"), "the lease stays when the node ends"
        etcd.delete("/net/subnets")
        (tmp_path / "subnet.env").unlink()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("step", [0.0, -2.0 * TTL])
def test_a_lease_is_renewed_before_its_end(
    etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """With a margin that leaves it two seconds: the key is put again, on a fresh grant. The clock
    that was ahead and is set right makes no difference."""
    clock = time.time
    etcd.put("/net/config", CONFIG)
    with Daemon(Saved(1, NODE)) as daemon:
        with Flannel(daemon, options(etcd, tmp_path, margin=TTL - 2.0)):
            client = Client([etcd.url])
            until(lambda: client.list("/net/subnets")[1])
            (first,) = client.list("/net/subnets")[1]
            monkeypatch.setattr(time, "time", lambda: clock() + step)
            until(lambda: client.list("/net/subnets")[1][0].revision > first.revision)
            (second,) = client.list("/net/subnets")[1]
        assert second[:2] == first[:2]


@pytest.mark.parametrize("spoiled", [b"{", b'"VtepMAC":"02:00:00:00:00:09"'])
def test_a_lease_that_is_written_over_is_written_again(
    etcd: Etcd, tmp_path: Path, spoiled: bytes
) -> None:
    """At once, and the more patiently the more often it happens: nobody fights."""
    etcd.put("/net/config", CONFIG)
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: etcd.values("/net/subnets"))
        ((key, ours),) = etcd.values("/net/subnets").items()
        until(lambda: daemon.policy.networks)
        theirs = re.sub(rb'"VtepMAC":"[^"]*"', spoiled, ours) if b"VtepMAC" in spoiled else spoiled
        begin = time.monotonic()
        for _ in range(3):
            etcd.put(key, theirs)
            until(lambda: etcd.values("/net/subnets") == {key: ours})
        assert time.monotonic() - begin > 3.5


@pytest.mark.parametrize("spoiled", [b"{", CONFIG.replace(b"10.5.0.0", b"10.6.0.0")])
def test_a_config_that_is_changed_is_for_nodes_that_begin_after_it(
    etcd: Etcd, tmp_path: Path, spoiled: bytes
) -> None:
    """As with flannel: etcd is listed again, the lease stays as it is, and peers are followed."""
    etcd.put("/net/config", CONFIG)
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: daemon.policy.networks)
        ((key, ours),) = etcd.values("/net/subnets").items()
        etcd.put("/net/config", spoiled)
        etcd.kill()
        etcd.start()
        peer = ours.replace(b"127.0.0.77", b"127.0.0.9")
        etcd.put("/net/subnets/10.5.200.0-24", peer)
        until(lambda: daemon.policy.networks[0].remote_subnets)
        assert etcd.values(key) == {key: ours}


def test_a_subnet_env_that_cannot_be_written_hinders_nothing_else(
    etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease is renewed, and the node is ready; the file is there once it can be."""
    etcd.put("/net/config", CONFIG)
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    place = in_the_way / "subnet.env"
    chosen = options(etcd, tmp_path, margin=TTL - 1.0)._replace(env=place)
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, chosen):
        until(lambda: not unready(daemon))
        client = Client([etcd.url])
        (first,) = client.list("/net/subnets")[1]
        until(lambda: client.list("/net/subnets")[1][0].revision > first.revision)
        until(lambda: levels(daemon) == ["warning"])
        in_the_way.unlink()
        until(place.exists)
        until(lambda: levels(daemon) == ["ok"])
    assert caplog.text.count(str(place)) == 1


def test_who_took_our_subnet_is_followed_there(etcd: Etcd, tmp_path: Path) -> None:
    """At once, not when its lease is renewed or all are listed again."""
    etcd.put("/net/config", CONFIG)
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: daemon.policy.networks)
        ((key, ours),) = etcd.values("/net/subnets").items()
        taken = read_subnet(key.rpartition("/")[2]).v4
        etcd.put(key, ours.replace(b"127.0.0.77", b"127.0.0.9"))
        until(lambda: taken in {r.prefix for r in daemon.policy.networks[0].remote_subnets})
        assert taken not in daemon.policy.networks[0].pool


@pytest.mark.parametrize("lives", [True, False])
def test_it_ends_at_once_though_etcd_says_nothing(etcd: Etcd, tmp_path: Path, lives: bool) -> None:
    """In the middle of a watch, and while nobody answers."""
    etcd.put("/net/config", CONFIG)
    if not lives:
        etcd.kill()
    with Daemon(Saved(1, NODE)) as daemon:
        with Flannel(daemon, options(etcd, tmp_path)):
            until(lambda: not lives or daemon.policy.networks)
            time.sleep(0.3)
            begin = time.monotonic()
        assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize("endpoints", [(), (Endpoint(name="web"),)])
def test_a_family_that_does_not_lead_to_the_host_is_told(
    etcd: Etcd,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    netns: Callable[..., list[str]],
    endpoints: tuple[Endpoint, ...],
) -> None:
    """Endpoints have both."""
    (there,) = netns("host")
    host = HostPort(
        address=ip_address("169.254.77.2"),
        peer=ip_address("169.254.77.1"),
        tap=Tap(name="host", netns=there),
    )
    dual = replace(NODE, underlay=replace(NODE.underlay, address6=ip_address("::1")))
    made = tuple(replace(e, tap=Tap(name="web", netns=there)) for e in endpoints)
    etcd.put(
        "/net/config", CONFIG.replace(b'{"N', b'{"EnableIPv6":true,"IPv6Network":"fd05::/48","N')
    )
    chosen = options(etcd, tmp_path)._replace(endpoints=made)
    with Daemon(Saved(1, replace(dual, host_port=host))) as daemon, Flannel(daemon, chosen):
        until(lambda: daemon.policy.networks)
    assert caplog.text.count(HALF_BEHIND.format(4)) == (not endpoints)


def test_direct_routing_that_cannot_be_is_told(
    etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a host port; can_route tells of others."""
    etcd.put("/net/config", CONFIG.replace(b'"VNI"', b'"DirectRouting":true,"VNI"'))
    with Daemon(Saved(1, NODE)) as daemon, Flannel(daemon, options(etcd, tmp_path)):
        until(lambda: daemon.policy.networks)
    assert caplog.text.count(LACKS_HOST) == 1
