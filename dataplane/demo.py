"""`dataplane demo`: two hosts and a kernel VXLAN peer exchange real traffic, all measured.

One line for each claim: `ok  what  measured`. As root in network namespaces, else in a user
namespace if that is permitted, else in the in-memory lab.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from dataplane import demo_lab, demo_live, demo_net
from dataplane.demo_base import say
from dataplane.document import load

POLICY = Path(__file__).resolve().parent.parent / "policies" / "demo.yaml"
IN_USER_NAMESPACE = "DATAPLANE_DEMO_USER_NAMESPACE"


def main(policy: str | None, lab: bool) -> int:
    """0 if all went as it should, else 1."""
    file = Path(policy) if policy else POLICY
    document = load(file)
    if lab:
        return demo_lab.main(document, "asked for")
    why_not = demo_net.why_not()
    if not why_not:
        return demo_live.main(document)
    if IN_USER_NAMESPACE not in os.environ and _user_namespaces():
        say("note", "in a user namespace", f"{why_not}; no root is needed")
        return _in_user_namespace(file)
    return demo_lab.main(document, why_not)


def _user_namespace_command(*words: str) -> list[str]:
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    return ["unshare", "-Urnm", "sh", "-c", script, "sh", *words]


def _user_namespaces() -> bool:
    """Whether a user namespace gives the right to make network namespaces."""
    script = "exec 3<>/dev/net/tun && ip netns add probe && ip netns exec probe true"
    try:
        words = _user_namespace_command("sh", "-c", script)
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _in_user_namespace(file: Path) -> int:
    words = [sys.executable, "-m", "dataplane", "demo", "--policy", str(file)]
    child = subprocess.Popen(
        _user_namespace_command(*words), env={**os.environ, IN_USER_NAMESPACE: "1"}
    )
    for number in demo_live.INTERRUPTS:  # it cleans up
        signal.signal(number, lambda number, _: child.send_signal(number))
    return child.wait()
