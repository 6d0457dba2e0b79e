"""What a container runtime does: it calls a CNI plugin with an environment and a configuration."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

PLUGINS = "/usr/lib/cni"  # Debian's

Value = dict[str, Any]


class Told(NamedTuple):
    """`value`: what the plugin wrote, {} if nothing."""

    rc: int
    value: Value
    raw: str

    @property
    def addresses(self) -> list[str]:
        return [ip["address"] for ip in self.value["ips"]]


class Runtime:
    """Calls one plugin, for one CNI network."""

    def __init__(self, plugin: Path, **config: Any) -> None:
        self.plugin = plugin
        self.config: Value = {"cniVersion": "1.1.0", "name": "pods", "type": "dataplane", **config}

    def call(
        self,
        command: str,
        container: str = "",
        netns: str = "",
        ifname: str = "eth0",
        *,
        env: dict[str, str] | None = None,
        stdin: bytes | None = None,
        **more: Any,
    ) -> Told:
        """`more` goes into the configuration."""
        words = {"CNI_COMMAND": command, "CNI_PATH": f"{self.plugin.parent}:{PLUGINS}"}
        words |= {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname}
        words |= {"CNI_NETNS": f"/run/netns/{netns}" if netns else ""}
        words |= {"PATH": os.environ["PATH"], **(env or {})}
        given = json.dumps(self.config | more).encode() if stdin is None else stdin
        done = subprocess.run(
            [str(self.plugin)], input=given, env=words, capture_output=True, timeout=60
        )
        assert not done.stderr, done.stderr.decode()
        text = done.stdout.decode()
        return Told(done.returncode, json.loads(text) if text else {}, text)

    def add(self, container: str, netns: str, **more: Any) -> Told:
        told = self.call("ADD", container, netns, **more)
        assert told.rc == 0, told.raw
        return told

    def delete(self, container: str, netns: str = "", **more: Any) -> Told:
        told = self.call("DEL", container, netns, **more)
        assert told == (0, {}, ""), told.raw
        return told
