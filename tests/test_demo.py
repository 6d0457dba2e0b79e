"""`dataplane demo`: succeeds, explains its failures, and removes all it made however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dataplane import demo_net

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "policies" / "demo.yaml"
WHY_NOT = demo_net.why_not()
live = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")


def start(*words: str, before: Sequence[str] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*before, sys.executable, "-m", "dataplane", "demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(demo: "subprocess.Popen[str]") -> list[str]:
    output, _ = demo.communicate(timeout=90)
    return output.splitlines()


def leftovers(demo: "subprocess.Popen[str]") -> list[str]:
    own = f"{demo_net.PREFIX}{demo.pid}-"
    found = [name for name in demo_net.namespaces() if name.startswith(own)]
    return found + [str(path) for path in Path("/tmp").glob(own + "*")]


def wait_for(demo: "subprocess.Popen[str]", start_of_line: str) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"the demo ended before {start_of_line!r}")


def test_in_memory_story() -> None:
    demo = start("--lab")
    lines = finish(demo)
    assert demo.returncode == 0, lines
    assert lines[0].startswith("note  in the in-memory lab")
    assert all(line.startswith("ok ") for line in lines[1:])
    assert len(lines) == 11


def test_in_memory_failure_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "open.yaml"
    telnet = "name: telnet, direction: in, action: "
    path.write_text(DEMO.read_text().replace(telnet + "block", telnet + "allow"))
    demo = start("--lab", "--policy", str(path))
    lines = finish(demo)
    assert demo.returncode == 1
    assert lines[-3].startswith("FAIL  denied port")
    assert lines[-2].split() == ["expected", "acl_deny"]
    assert lines[-1].split() == ["seen", "none"]


def test_bad_policy_is_bad_input() -> None:
    demo = start("--policy", "/nonexistent.yaml")
    lines = finish(demo)
    assert demo.returncode == 2
    assert lines == ["/nonexistent.yaml $: cannot be read: No such file or directory"]


@live
def test_whole_story() -> None:
    begin = time.monotonic()
    demo = start()
    lines = finish(demo)
    assert demo.returncode == 0, "\n".join(lines)
    assert all(line.split()[0] in ("ok", "note") for line in lines), lines
    assert sum(line.startswith("ok    TCP ") for line in lines) == 5
    assert time.monotonic() - begin < 60
    assert not leftovers(demo)


@live
def test_failure_is_explained_and_cleaned_up(tmp_path: Path) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text(DEMO.read_text().replace("protocol: icmp}", "protocol: sctp}"))
    demo = start("--policy", str(path))
    text = "\n".join(finish(demo))
    assert demo.returncode == 1
    assert "FAIL  ping a -> b" in text
    assert "expected 3 answers of 10.1.2.2" in text
    assert "seen" in text and "100% packet loss" in text
    assert "b: ready: node b" in text  # the node's last lines
    assert not leftovers(demo)


@live
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_is_cleaned_up(number: signal.Signals) -> None:
    demo = start()
    wait_for(demo, "ok    ping")
    demo.send_signal(number)
    demo.send_signal(number)  # impatience does not disturb the clean-up
    lines = finish(demo)
    assert demo.returncode == 1
    assert lines[-1].startswith("FAIL  interrupted")
    assert not leftovers(demo)


@live
def test_killed_demo_is_cleaned_up_by_the_next() -> None:
    demo = start()
    wait_for(demo, "ok    ping")
    demo.kill()
    demo.wait()
    assert leftovers(demo)
    removed = demo_net.remove_leftovers()
    assert f"{demo_net.PREFIX}{demo.pid}-a" in removed
    assert not leftovers(demo)


@live
def test_without_privileges_a_user_namespace_will_do() -> None:
    """As root without the capabilities; what a user without root meets."""
    if subprocess.run(["unshare", "-Urnm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not permitted")
    demo = start(before=["setpriv", "--bounding-set=-sys_admin,-net_admin"])
    wait_for(demo, "note  in a user namespace")
    wait_for(demo, "ok    UDP a -> b")
    demo.terminate()
    assert finish(demo)[-1].startswith("FAIL  interrupted")
    assert demo.returncode == 1
