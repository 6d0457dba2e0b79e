"""What a running node gives up before it touches anything: capabilities and system calls.

It keeps what TAPs in network namespaces to come, nftables and AF_XDP need. What is given up is so
for all threads and processes that begin later, successors among them. It ends with the process.
"""

import ctypes
import os
from pathlib import Path

from dataplane.errors import DataplaneError

# linux/capability.h, by number
KEPT = {
    10: "CAP_NET_BIND_SERVICE",
    12: "CAP_NET_ADMIN",
    13: "CAP_NET_RAW",
    14: "CAP_IPC_LOCK",  # memory that AF_XDP shares with the kernel
    19: "CAP_SYS_PTRACE",  # to open /proc/PID/ns/net; ptrace itself is refused below
    21: "CAP_SYS_ADMIN",  # to enter it; bpf(2) before CAP_BPF
    39: "CAP_BPF",
}
# Whatever a policy says, a node never needs them.
REFUSED = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "perf_event_open"),
    *("kexec_load", "kexec_file_load", "reboot", "init_module", "finit_module", "delete_module"),
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsmount"),
    *("fsconfig", "mount_setattr", "swapon", "swapoff", "quotactl", "acct", "unshare"),
    *("add_key", "request_key", "keyctl", "userfaultfd", "personality", "modify_ldt", "iopl"),
    *("ioperm", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *("setdomainname", "lookup_dcookie", "vhangup", "syslog", "mknod", "mknodat"),
)

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 38, 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """32 capabilities of each set; there are two of these."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def enter() -> str:
    """For the calling thread and all that begin later; says what holds from now on.

    To be called while it is the only thread. Raises DataplaneError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _refuse_calls()
    _drop(libc)
    return f"sandbox: {len(held())} capabilities, {len(REFUSED)} system calls refused"


def held() -> list[str]:
    """The capabilities in force, those that are not ours to know by number."""
    status = Path("/proc/thread-self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    return [KEPT.get(i, f"capability {i}") for i in range(mask.bit_length()) if mask >> i & 1]


def _refuse_calls() -> None:
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        fix = "install pyseccomp and libseccomp2, or run with --no-sandbox"
        raise DataplaneError(f"no system call filter: {error} ({fix})") from error
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        for name in REFUSED:
            rules.add_rule(pyseccomp.ERRNO(1), name)  # EPERM
        rules.load()
    except (OSError, ValueError) as error:
        raise DataplaneError(
            f"no system call filter: {error} (--no-sandbox runs without)"
        ) from error


def _drop(libc: ctypes.CDLL) -> None:
    for number in range(_last() + 1):
        if number not in KEPT and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # without CAP_SETPCAP another has done it
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets), "capget")
    for half in range(2):
        kept = sum(1 << (n % 32) for n in KEPT if n // 32 == half)
        sets[half].effective &= kept
        sets[half].permitted &= kept
        sets[half].inheritable = 0
    _check(libc.capset(ctypes.byref(header), sets), "capset")


def _last() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 63


def _check(result: int, what: str) -> None:
    if result:
        raise DataplaneError(f"sandbox: {what}: {os.strerror(ctypes.get_errno())}")
