"""HCN namespaces for tests: network namespaces under a second name, which is a GUID."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

RUN = f"{os.getpid():08x}"  # how GUIDs of this run begin
REST = "-4d6e-8f2a-00000000000"
PLACE = Path("/run/netns")


def guid(number: int) -> str:
    return f"{RUN}-{number:04}{REST}{number}"


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Namespaces by GUID. Those of runs that crashed go, too."""
    for stale in PLACE.glob(f"*-000?{REST}?"):
        if not Path("/proc", str(int(stale.name[:8], 16))).exists():
            subprocess.run(["ip", "netns", "del", stale.name], capture_output=True)
    with contextlib.ExitStack() as made:
        for name, netns in names.items():
            made.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            (PLACE / name).touch(exist_ok=False)
            places = map(str, (PLACE / netns, PLACE / name))
            subprocess.run(["mount", "--bind", *places], check=True)
        yield
