"""What tests share: the capture set, network namespaces, and the law that skips are listed."""

import itertools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import settings

from dataplane import demo_net
from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.model import Document
from tests.live_node import DENIED, Process, Wire, policy

ROOT = Path(__file__).resolve().parent.parent
CAPTURES = Path(os.environ.get("DATAPLANE_CAPTURES", ROOT / "../shared/captures"))
NETNS = Path("/run/netns")
OURS = re.compile(r"dpt(\d+)")  # the prefix of test namespaces: the process that made them

# The same cases each time, in CI as here; DATAPLANE_EXAMPLES=N draws new ones where a test says so.
settings.register_profile("repeatable", derandomize="DATAPLANE_EXAMPLES" not in os.environ)
settings.load_profile("repeatable")


# ---- captures ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def capture() -> Callable[[str], Path]:
    """Finds a capture by its name in the set, `tcpdump/vxlan.pcap`; skips without it."""

    def find(name: str) -> Path:
        folder, file = name.split("/")
        for path in (CAPTURES / name, CAPTURES / folder / f"{folder}__{file}"):
            if path.is_file():
                return path
        pytest.skip(f"capture {name} not found under {CAPTURES}; set DATAPLANE_CAPTURES")

    return find


@pytest.fixture(scope="session")
def captures() -> list[Path]:
    """All captures; skips without them."""
    found = sorted(p for p in CAPTURES.glob("*/*") if p.suffix in (".pcap", ".pcapng", ".cap"))
    if not found:
        pytest.skip(f"no captures under {CAPTURES}; set DATAPLANE_CAPTURES")
    return found


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One for all: a server's, a client's, and the authority's. In PEM, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    pem, key = tmp_path / "all.pem", tmp_path / "all.key"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /O=n1"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {pem}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    return pem, key


# ---- network namespaces ------------------------------------------------------------------------


def why_no_netns() -> str:
    """Empty if network namespaces and TAPs can be had here."""
    if os.geteuid() != 0:
        return "needs root: it makes network namespaces"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    probe = f"dpt{os.getpid()}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True)
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    except FileNotFoundError:
        return "needs iproute2"
    return "" if made.returncode == 0 else "may not make network namespaces"


def stale_netns() -> list[str]:
    """Namespaces of test runs that are no more."""
    names = [path.name for path in NETNS.glob("dpt*")] if NETNS.is_dir() else []
    owners = ((name, OURS.match(name)) for name in names)
    return [name for name, owner in owners if owner and not Path("/proc", owner[1]).exists()]


@pytest.fixture(scope="session")
def _netns_run() -> Iterator[Iterator[int]]:
    """Counts the namespaces of this run; removes what killed runs left, and at last our own."""
    if reason := why_no_netns():
        pytest.skip(reason)
    for name in stale_netns():
        demo_net.remove(name)
    yield itertools.count()
    for path in NETNS.glob(f"dpt{os.getpid()}-*"):
        demo_net.remove(path.name)


@contextmanager
def _made(run: Iterator[int]) -> Iterator[Callable[..., list[str]]]:
    made: list[str] = []

    def make(*names: str) -> list[str]:
        full = [f"dpt{os.getpid()}-{next(run)}{name}" for name in names]
        for name in full:
            made.append(name)  # first: an interrupt may come any time
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        return full

    try:
        yield make
    finally:
        for name in reversed(made):
            demo_net.remove(name)


@pytest.fixture
def netns(_netns_run: Iterator[int]) -> Iterator[Callable[..., list[str]]]:
    """Makes namespaces with `lo` up: `a, b = netns("a", "b")`. They go with the test."""
    with _made(_netns_run) as make:
        yield make


@pytest.fixture(scope="module")
def module_netns(_netns_run: Iterator[int]) -> Iterator[Callable[..., list[str]]]:
    """As `netns`, for all tests of a module."""
    with _made(_netns_run) as make:
        yield make


# ---- a running node ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    (netns,) = module_netns("n")
    process = Process(netns, tmp_path_factory.mktemp("node"))
    process.file.write_text(dump(Document(node=policy("web", "db"))))
    process.start()
    yield process
    process.end()


@pytest.fixture
def node(running: Process) -> Iterator[Client]:
    """Its client; the policy is as at the beginning."""
    with Client(running.socket) as client:
        client.apply(dump(Document(node=policy("web", "db"))), prune=True)
        yield client


@pytest.fixture
def wire(running: Process, node: Client) -> Iterator[Callable[[str], bytes]]:
    router = node.describe("networks", "blue")["dr_mac"]
    made = Wire(running)
    yield lambda words: made.send(words, router)
    made.socket.close()


@pytest.fixture
def traffic(wire: Callable[[str], bytes]) -> Iterator[None]:
    """Allowed and denied packets, until the test is over."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.02):
            for n in range(3):
                wire(f"udp 10.1.1.2:4{n:03} > 10.1.2.9:53 len {100 * (n + 1)}")
            wire(DENIED)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    over.set()
    sender.join()


# ---- strictness --------------------------------------------------------------------------------


def _listed(reason: str) -> bool:
    lines = (ROOT / "tests/skips.txt").read_text().splitlines()
    return any(fnmatchcase(reason, line) for line in lines if line and not line.startswith("#"))


def _hold_to_list(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip for an unlisted reason into a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if os.environ.get("DATAPLANE_STRICT_SKIPS") == "1" and not _listed(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped for a reason that tests/skips.txt does not list: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _hold_to_list(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _hold_to_list(report)
    return report


def pytest_sessionstart() -> None:
    """A sanitizer run must not pass because it ran the ordinary engine."""
    if os.environ.get("DATAPLANE_SANITIZED") == "1":
        from dataplane import _engine

        assert _engine.__file__.startswith(str(ROOT)), f"{_engine.__file__} is another build"
        assert b"__asan_init" in Path(_engine.__file__).read_bytes(), "built without sanitizers"
        assert "libasan" in Path("/proc/self/maps").read_text(), "libasan is not preloaded"
