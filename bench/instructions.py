"""Instructions a packet, by function: a vector of packets of standing flows, step by step.

For machines on which nobody may read performance counters. x86-64 only; needs `nm`.
"""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import traceback
from bisect import bisect
from collections import Counter
from pathlib import Path
from typing import NoReturn

from dataplane import _engine, bench
from dataplane.bench_batch import Caller
from dataplane.bench_play import VECTOR
from dataplane.bench_traffic import WORKS, Work, traffic

TRACEME, SINGLESTEP, GETREGS = 0, 9, 12  # ptrace(2)
REGISTERS, RIP = 27, 16  # struct user_regs_struct, in words

Steps = Counter[int]  # by address in the engine's file

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def counted(work: Work, flows: int = VECTOR) -> dict[str, float]:
    """By function, the most first. Raises OSError where nobody may trace."""
    steps = _steps(work, flows)
    found: Counter[str] = Counter()
    starts, names = _functions()
    for address, times in steps.items():
        found[names[bisect(starts, address) - 1].partition(".")[0]] += times
    return {name: times / VECTOR for name, times in found.most_common()}


def _steps(work: Work, flows: int) -> Steps:
    if platform.machine() != "x86_64":
        raise OSError(f"{platform.machine()} is not x86-64")
    child = os.fork()
    if not child:
        _play(work, flows)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise OSError("the process to be traced has ended")
    try:
        return _stepped(child, *_mapped(child))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _play(work: Work, flows: int) -> NoReturn:
    """The child's part, which is all that it does."""
    try:
        _stop_around(work, flows)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _stop_around(work: Work, flows: int) -> None:
    """Stops before and after a vector."""
    with bench.engine_for(bench.FULL, flows) as engine:
        caller = Caller(engine, traffic(engine, work, flows))
        caller.calls(8)
        caller.lay()
        if _ptrace(TRACEME, 0, None, None):
            raise _error()
        os.kill(os.getpid(), signal.SIGSTOP)
        caller.process()
        os.kill(os.getpid(), signal.SIGSTOP)


def _stepped(child: int, base: int, first: int, end: int) -> Steps:
    registers = (ctypes.c_ulonglong * REGISTERS)()
    steps: Steps = Counter()
    while not _ptrace(SINGLESTEP, child, None, None):
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) == signal.SIGSTOP:
            return steps
        _ptrace(GETREGS, child, None, ctypes.addressof(registers))
        if first <= registers[RIP] < end:
            steps[registers[RIP] - base] += 1
    raise _error()


def _error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mapped(child: int) -> tuple[int, int, int]:
    """Where the child has the engine: its file's beginning, and its code from where to where."""
    base = 0
    for line in Path(f"/proc/{child}/maps").read_text().splitlines():
        if _engine.__file__ in line:
            span, rights = line.split()[:2]
            first, end = (int(place, 16) for place in span.split("-"))
            base = base or first
            if "x" in rights:
                return base, first, end
    raise OSError(f"{_engine.__file__} is not mapped")


def _functions() -> tuple[list[int], list[str]]:
    told = subprocess.check_output(["nm", "-n", _engine.__file__], text=True)
    rows = [line.split() for line in told.splitlines()]
    code = [(int(row[0], 16), row[2]) for row in rows if len(row) == 3 and row[1] in "tTiI"]
    return [address for address, _ in code], [name for _, name in code]


def main(words: list[str]) -> int:
    works = [work for work in WORKS if work in words or not words]
    if len(works) < len(words):
        print(f"usage: python -m bench.instructions [{'|'.join(WORKS)}]…", file=sys.stderr)
        return 2
    for work in works:
        try:
            found = counted(work)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"python -m bench.instructions: {error}", file=sys.stderr)
            return 1
        print(f"{work:<20} {sum(found.values()):7.1f} instructions a packet")
        print(*(f"  {name:<18} {n:7.1f}" for name, n in found.items() if n >= 1), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
