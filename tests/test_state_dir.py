"""The state directory: whatever step of a commit fails, engine, daemon and disk are of one
generation."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane.address import Vni, parse_prefix
from dataplane.daemon import Daemon
from dataplane.engine import Limits
from dataplane.errors import DataplaneError, StorageError
from dataplane.model import Acl, Network, Node, Underlay
from dataplane.state_dir import BEFORE, FORMAT, Saved, StateDir

BLUE = Network(name="blue", vni=Vni(4096), prefixes=(parse_prefix("10.1.0.0/16"),))
NODE = Node(
    name="a", underlay=Underlay(address=ip_address("127.0.0.9"), port=14_790), networks=(BLUE,)
)
RULES = 64
ROOT = Path(__file__).resolve().parent.parent


def numbered(n: int, rules: int = 1) -> Node:
    acls = tuple(Acl(name=f"n{n}-{i}", direction="in", action="allow") for i in range(rules))
    return replace(NODE, networks=(replace(BLUE, acls=acls),))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    limits = Limits(max_rules=RULES)
    with StateDir(place) as state, Daemon(Saved(1, NODE), state=state, limits=limits) as made:
        yield made


def check_one_generation(daemon: Daemon, place: Path, generation: int, own: Node) -> None:
    assert daemon.engine.generation == daemon.committed.generation == generation
    assert daemon.engine.node == daemon.committed.own == own
    assert {path.name for path in place.iterdir()} - {BEFORE} == {"lock", "policy.json"}
    told = json.loads((place / "policy.json").read_text())
    assert told["generation"] == generation
    acls = [acl["name"] for acl in told["policy"]["node"]["networks"][0].get("acls", ())]
    assert acls == [acl.name for acl in own.networks[0].acls]


# ---- steps that fail ---------------------------------------------------------------------------


def _is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


STEPS: dict[str, tuple[str, Callable[..., bool]]] = {
    "the new text is not flushed": ("fsync", lambda fd: not _is_directory(fd)),
    "the old one is not kept": ("link", lambda *_: True),
    "the new one does not take its place": ("replace", lambda old, _: old.name == ".policy.json"),
    "the directory is not flushed": ("fsync", _is_directory),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_fails_at_any_step_leaves_one_generation(
    daemon: Daemon, place: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    daemon.apply(numbered(2))
    name, is_meant = STEPS[step]
    real = getattr(os, name)

    def failing(*arguments: Any) -> None:
        if is_meant(*arguments):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        with pytest.raises(StorageError, match="Input/output error: nothing is applied"):
            daemon.apply(numbered(3))
    check_one_generation(daemon, place, 2, numbered(2))
    assert daemon.apply(numbered(3), base=2).generation == 3
    check_one_generation(daemon, place, 3, numbered(3))


def test_the_first_text_that_fails_leaves_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("dataplane.state_dir._flush_directory", failing)
    with StateDir(place) as state:
        with pytest.raises(StorageError):
            Daemon(Saved(1, NODE), state=state)
        assert [path.name for path in place.iterdir()] == ["lock"] and state.read() is None


def test_a_policy_that_the_engine_refuses_is_not_on_the_disk(daemon: Daemon, place: Path) -> None:
    daemon.apply(numbered(2))
    with pytest.raises(DataplaneError):
        daemon.apply(numbered(3, rules=2 * RULES))
    check_one_generation(daemon, place, 2, numbered(2))


def test_what_a_killed_process_left_beside_it_is_gone(daemon: Daemon, place: Path) -> None:
    (place / BEFORE).write_text("{}")
    (place / ".policy.json").write_text("{")
    daemon.apply(numbered(2))
    check_one_generation(daemon, place, 2, numbered(2))


# ---- of other versions -------------------------------------------------------------------------


def test_another_format_is_refused_by_name(place: Path) -> None:
    """Whatever else it has, and it is left as it is."""
    place.mkdir()
    policy, text = place / "policy.json", json.dumps({"format": FORMAT + 1, "nodes": []})
    policy.write_text(text)
    command = [sys.executable, "-m", "dataplane", "run", "--no-control", "--state", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2 and policy.read_text() == text
    assert f"{policy} $: has format {FORMAT + 1}, not {FORMAT}" in done.stderr
