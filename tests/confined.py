"""Runs a command as confined as a systemd unit says: `python -m tests.confined UNIT COMMAND...`.

Of its directives, the capabilities, system calls, address families and memory; not the file system
and devices, which need mounts.
"""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyseccomp

PROT_WRITE, PROT_EXEC = 2, 4


def directives(unit: Path) -> dict[str, list[str]]:
    lines = (line.partition("=") for line in unit.read_text().splitlines() if line[:1] != "#")
    return {name: value.split() for name, equals, value in lines if equals}


def calls_of(name: str) -> Iterator[str]:
    """A group of systemd's, such as @system-service, without its groups."""
    if not name.startswith("@"):
        yield name
        return
    words = ["systemd-analyze", "syscall-filter", name]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for line in told.splitlines()[1:]:
        if line.strip() and not line.strip().startswith("#"):
            yield from calls_of(line.strip())


def rules(told: dict[str, list[str]]) -> list[pyseccomp.SyscallFilter]:
    """One filter for each directive: the kernel takes the strictest answer."""
    calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in set(chain.from_iterable(map(calls_of, told["SystemCallFilter"]))):
        if name not in ("restart_syscall", "shmat"):
            _allow(calls, name)
    rest = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    families = {int(getattr(socket, name)) for name in told["RestrictAddressFamilies"]}
    for family in set(range(64)) - families:
        other = pyseccomp.Arg(0, pyseccomp.EQ, family)
        rest.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket", other)
    if told["MemoryDenyWriteExecute"] == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        writable = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, both, both)
        later = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, PROT_EXEC, PROT_EXEC)
        rest.add_rule(pyseccomp.ERRNO(errno.EPERM), "mmap", writable)
        rest.add_rule(pyseccomp.ERRNO(errno.EPERM), "mprotect", later)
    return [rest, calls]


def _allow(calls: pyseccomp.SyscallFilter, name: str) -> None:
    try:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    except ValueError:
        return
    if number >= 0:  # else of another architecture
        calls.add_rule(pyseccomp.ALLOW, name)


def main() -> None:
    told = directives(Path(sys.argv[1]))
    if "SETTLED" not in os.environ:
        kept = ",".join(f"+{c.lower().removeprefix('cap_')}" for c in told["CapabilityBoundingSet"])
        words = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", sys.executable]
        os.environ["SETTLED"] = "1"
        os.execvp("setpriv", [*words, "-m", "tests.confined", *sys.argv[1:]])
    del os.environ["SETTLED"]
    for each in rules(told):
        each.set_attr(pyseccomp.Attr.CTL_NNP, told["NoNewPrivileges"] == ["yes"])
        each.load()
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
