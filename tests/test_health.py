"""What a node says of itself: findings of the doctor, and whether it is ready."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from dataplane.api import health
from dataplane.api.health import OK, Finding
from dataplane.daemon import Daemon
from dataplane.state_dir import Saved
from tests.live_node import policy

PEER = "127.0.0.2"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Without endpoints, so without devices."""
    with Daemon(Saved(1, policy())) as made:
        yield made


def findings(daemon: Daemon, subject: str) -> list[Finding]:
    return [finding for finding in health.examine(daemon) if finding.subject == subject]


def wrong(daemon: Daemon) -> list[Finding]:
    return [finding for finding in health.examine(daemon) if finding.level != OK]


def test_a_node_that_is_well_has_nothing_to_mend(daemon: Daemon) -> None:
    assert wrong(daemon) == [] and health.unready(daemon) == []


def test_a_path_mtu_that_was_learned_is_told(daemon: Daemon) -> None:
    with daemon.forwarder.pause():
        assert daemon.engine.learn_path(ip_address(PEER), 1300)
    (found,) = wrong(daemon)
    told = f"its packets have up to 1450 bytes, but 1250 arrive at {PEER}: ICMP told of 1300"
    assert found.subject == "mtu" and told in found.message
    assert found.fix == "mtu: 1250"
