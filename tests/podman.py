"""podman with containers of busybox, CNI networks, and storage of its own."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUSYBOX = shutil.which("busybox", path="/bin:/usr/bin")
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
FREE = [*LIMITS, "--security-opt", "seccomp=unconfined"]


def _why_not() -> str:
    missing = [name for name in ("podman", "runc", "nsenter") if shutil.which(name) is None]
    if BUSYBOX is None:
        missing.append("busybox")
    if missing:
        return f"podman: missing {', '.join(missing)}"
    if os.geteuid() != 0:
        return "podman: needs root"
    told = subprocess.run(["podman", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.", told)
    return "" if version and int(version[1]) == 4 else f"podman: not version 4, but {told.strip()}"


WHY_NOT = _why_not()


def command(place: Path) -> list[str]:
    """podman, with all that it keeps below `place`."""
    kept = {"--root": "storage", "--runroot": "run", "--tmpdir": "tmp"}
    words = [word for option, name in kept.items() for word in (option, str(place / name))]
    return ["podman", *words, "--storage-driver", "vfs"]


def remove_all(place: Path) -> None:
    """Containers that are left."""
    env = os.environ | {"CONTAINERS_CONF": str(place / "containers.conf")}
    words = [*command(place), "rm", "--all", "--force", "--time", "0"]
    subprocess.run(words, env=env, capture_output=True, timeout=60)


@contextlib.contextmanager
def short_place() -> Iterator[Path]:
    """A directory for podman, which wants names below 50 characters."""
    place = Path(tempfile.mkdtemp(prefix="dpt"))
    try:
        yield place
    finally:
        remove_all(place)
        _remove(place)


def _remove(place: Path) -> None:
    """Of a container that ended podman is told in the background, and may write meanwhile."""
    deadline = time.monotonic() + 10
    while place.exists():
        try:
            shutil.rmtree(place)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Podman:
    """`networks`: configurations of CNI, by name; `plugins`: where the plugins are."""

    def __init__(self, place: Path, plugins: Path, networks: dict[str, Any]) -> None:
        self.place = place
        root = place / "rootfs" / "bin"
        root.mkdir(parents=True)
        for name in ("busybox", "sh", "ip", "ping", "sleep", "nc", "cat", "echo", "hostname"):
            shutil.copy(str(BUSYBOX), root / name)
        (place / "networks").mkdir()
        for name, config in networks.items():
            text = json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [config]})
            (place / "networks" / f"{name}.conflist").write_text(text)
        (place / "containers.conf").write_text(
            "[engine]\n"
            'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            "[network]\n"
            f'network_backend = "cni"\nnetwork_config_dir = "{place}/networks"\n'
            f'cni_plugin_dirs = ["{plugins}"]\n'
        )
        self._env = os.environ | {"CONTAINERS_CONF": str(place / "containers.conf")}

    def call(self, *words: str, fails: bool = False) -> str:
        """What it wrote, of both streams. Whether it fails is checked."""
        done = subprocess.run(
            [*command(self.place), *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def run(self, network: str, *words: str, name: str = "", fails: bool = False) -> str:
        """A container to its end; with a name it stays and goes on."""
        kept = ["--detach", "--name", name] if name else ["--rm"]
        root = ["--rootfs", str(self.place / "rootfs")]
        return self.call("run", *kept, *FREE, "--network", network, *root, *words, fails=fails)

    def inside(self, name: str, *words: str, fails: bool = False) -> str:
        """A command in a container that runs."""
        return self.call("exec", name, *words, fails=fails)

    def remove(self, name: str) -> None:
        self.call("rm", "--force", "--time", "0", name)
