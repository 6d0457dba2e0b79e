"""What goes wrong on a host, done to running nodes: they go on, say what it is, and recover.

Two nodes at one wire, with an endpoint each; pings between those tell whether packets pass. TAPs
that go, links that go down, a second node, and who never reads, are in test_live.py, test_node.py.
"""

import calendar
import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dataplane.address import Mac, Vni
from dataplane.api.client import Client
from dataplane.document import dump
from dataplane.errors import DataplaneError
from dataplane.model import Acl, Document, Endpoint, Network, Node, RemoteSubnet, Underlay
from dataplane.packet import build, parse
from tests.live_node import PATIENCE, Process, Wire

OWN, FAR = "10.1.1.2", "10.1.2.2"
MACS = {"a": Mac("02:00:00:00:01:01"), "b": Mac("02:00:00:00:01:02")}
MAX_FLOWS = 64
ASK = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
CLIENTS = 1000


# ---- two nodes ---------------------------------------------------------------------------------


def ip(netns: str, words: str) -> None:
    subprocess.run(["ip", "-n", netns, *words.split()], check=True)


def policy(name: str, *acls: Acl) -> str:
    """Of node a or b."""
    own, other = (1, 2) if name == "a" else (2, 1)
    web = Endpoint(name=f"tap{own}", addresses=(ip_address(f"10.1.{own}.2"),))
    far = RemoteSubnet(
        prefix=ip_network(f"10.1.{other}.0/24"),
        provider_address=ip_address(f"192.0.2.{other}"),
        dr_mac=MACS["b" if name == "a" else "a"],
    )
    blue = Network(
        name="blue",
        vni=Vni(4096),
        prefixes=(ip_network("10.1.0.0/16"),),
        dr_mac=MACS[name],
        endpoints=(web,),
        remote_subnets=(far,),
        acls=acls,
    )
    underlay = Underlay(address=ip_address(f"192.0.2.{own}"))
    return dump(Document(node=Node(name=name, underlay=underlay, networks=(blue,))))


class Pair(NamedTuple):
    a: Process
    b: Process

    def client(self) -> Client:
        return Client(self.a.socket)

    def pings(self, count: int, gap: float = 0.01) -> subprocess.Popen[str]:
        words = ["ip", "netns", "exec", self.a.netns, "ping", "-q", "-c", str(count)]
        words += ["-i", str(gap), "-W", "1", "-I", OWN, FAR]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def answers(self) -> bool:
        return lost(self.pings(2)) < 100

    def eventually_answers(self) -> bool:
        return any(self.answers() for _ in range(10))


def lost(pings: subprocess.Popen[str]) -> float:
    """How many percent of them."""
    told = pings.communicate(timeout=2 * PATIENCE)[0]
    (line,) = (line for line in told.splitlines() if "packet loss" in line)
    return float(line.split("%")[0].split()[-1])


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def wired(names: list[str], place: Path, *before: str) -> Iterator[Pair]:
    """`before`: words in front of node a's command."""
    a, b = names
    ip(a, f"link add under type veth peer name under netns {b}")
    made = []
    for n, (netns, name) in enumerate(((a, "a"), (b, "b")), 1):
        ip(netns, "link set under up")
        ip(netns, f"addr add 192.0.2.{n}/24 dev under")
        (place / name).mkdir()
        process = Process(netns, place / name, "--max-flows", str(MAX_FLOWS))
        process.before = before if name == "a" else ()
        process.file.write_text(policy(name))
        made.append(process.start())
    pair = Pair(*made)
    try:
        assert pair.eventually_answers()
        yield pair
    finally:
        for process in made:
            process.end()


@pytest.fixture(scope="module")
def pair(
    module_netns: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with wired(module_netns("a", "b"), tmp_path_factory.mktemp("pair")) as made:
        yield made


# ---- the underlay ------------------------------------------------------------------------------


def test_underlay_address_goes_and_comes_back(pair: Pair) -> None:
    before = len(pair.a.log.read_text())
    with pair.client() as client:
        counted = client.stats()["reasons"].get("egress_down", 0)
        ip(pair.a.netns, "addr del 192.0.2.1/24 dev under")
        assert not pair.answers()
        stats = client.stats()["reasons"]
        assert stats["egress_down"] > counted and "egress_too_big" not in stats
        assert not client.status()["ready"]
        (found,) = (f for f in client.ask("/v1/findings")["findings"] if f["level"] == "failure")
        assert found["message"] == "underlay: address 192.0.2.1 is gone"
        wait_for(lambda: "address 192.0.2.1 is gone" in pair.a.log.read_text()[before:])
        ip(pair.a.netns, "addr add 192.0.2.1/24 dev under")
        assert pair.eventually_answers()
        assert client.status()["ready"]


def test_a_peer_that_dies_is_silent_until_it_is_back(pair: Pair) -> None:
    """Its flow stands all the while: the pod goes on sending."""

    def state() -> str:
        (peer,) = client.get("peers")
        return str(peer["state"])

    def warnings() -> list[str]:
        return [f["message"] for f in client.findings() if f["subject"] == "peer" and f["fix"]]

    pings = pair.pings(10_000, gap=0.2)
    try:
        with pair.client() as client:
            wait_for(lambda: state() == "up")
            ip(pair.b.netns, "link set under down")
            wait_for(lambda: state() == "silent")
            (heard,) = re.findall(r"last_receive_seconds{.*} ([0-9.]+)", client.metrics())
            assert float(heard) > 10
            (told,) = warnings()
            assert told.startswith("192.0.2.2: sent to ") and "received from 1" in told
            assert 'dataplane_peer_state{peer="192.0.2.2",state="silent"} 1.0' in client.metrics()
            ip(pair.b.netns, "link set under up")
            wait_for(lambda: state() == "up")
            assert warnings() == []
    finally:
        ip(pair.b.netns, "link set under up")
        pings.kill()
        pings.communicate()


def test_underlay_address_moves_to_another_interface(pair: Pair) -> None:
    """And back; a wire that is gone for a while."""
    ip(pair.a.netns, "addr del 192.0.2.1/24 dev under")
    ip(pair.a.netns, "addr add 192.0.2.1/32 dev lo")
    ip(pair.a.netns, "route add 192.0.2.0/24 dev under src 192.0.2.1")
    assert pair.eventually_answers()
    ip(pair.a.netns, "link set under down")
    assert not pair.answers()
    ip(pair.a.netns, "addr del 192.0.2.1/32 dev lo")
    ip(pair.a.netns, "link set under up")
    ip(pair.a.netns, "addr add 192.0.2.1/24 dev under")
    assert pair.eventually_answers()


# ---- tables ------------------------------------------------------------------------------------


def test_a_full_flow_table_keeps_what_stands(pair: Pair) -> None:
    """Of hundreds of new flows none finds room but in another half-open one's place."""
    pings = pair.pings(150)
    with pair.client() as client, contextlib.closing(Wire(pair.a, "tap1").socket) as sock:
        (endpoint,) = client.get("endpoints")
        mac = Mac(endpoint["mac"])
        for port in range(1000, 1000 + 10 * MAX_FLOWS):
            words = f"udp {OWN}:{port} > 10.1.2.77:53"
            sock.send(build(parse(words), mac, MACS["a"]))
        wait_for(lambda: client.stats()["totals"]["evicted"] > MAX_FLOWS)
        assert client.stats()["totals"]["flows"] <= MAX_FLOWS
        assert lost(pings) == 0


# ---- clients -----------------------------------------------------------------------------------


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def test_a_thousand_clients_stall_nothing(pair: Pair) -> None:
    """Idle ones, slow ones, and such as close their half; not one ping is lost meanwhile."""
    pings = pair.pings(200)
    with contextlib.ExitStack() as made:
        for n in range(CLIENTS):
            sock = made.enter_context(connect(pair.a.socket))
            if n % 3:
                sock.sendall(ASK[: n % len(ASK)])
            if n % 3 == 2:
                sock.shutdown(socket.SHUT_WR)
        with pair.client() as client:
            assert client.status()["ready"]
        assert lost(pings) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_who_has_closed_his_half_gets_his_answers(pair: Pair, count: int) -> None:
    with connect(pair.a.socket) as sock:
        sock.sendall(ASK * count)
        sock.shutdown(socket.SHUT_WR)
        begin, answer = time.monotonic(), b""
        while part := sock.recv(1 << 16):
            answer += part
    assert answer.count(b"HTTP/1.1 200 ") == count and answer.rstrip().endswith(b"}")
    assert time.monotonic() - begin < 4, "it was closed by a timer only"


def test_half_a_request_is_no_request(pair: Pair) -> None:
    with connect(pair.a.socket) as sock:
        sock.sendall(b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        sock.shutdown(socket.SHUT_WR)
        assert b" 200 " not in sock.recv(1 << 16)
    with pair.client() as client:
        assert client.status()["ready"]


def test_a_stream_ends_with_its_readers_half(pair: Pair) -> None:
    """Else a node would record for readers that are gone, until something happens."""
    with connect(pair.a.socket) as sock:
        sock.sendall(b"GET /v1/events?kind=config HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in sock.recv(1 << 16)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass


def test_control_socket_is_made_again(pair: Pair) -> None:
    pings = pair.pings(150)
    mode = pair.a.socket.stat().st_mode
    pair.a.socket.unlink()
    wait_for(pair.a.answers)
    assert pair.a.socket.stat().st_mode == mode
    pair.a.reading.unlink()
    pair.a.reading.mkdir()  # somebody's: it is left alone
    time.sleep(1)
    pair.a.reading.rmdir()
    wait_for(pair.a.reading.exists)
    assert lost(pings) == 0


# ---- the host ----------------------------------------------------------------------------------


def test_no_descriptors_are_left(pair: Pair) -> None:
    """Nobody gets in, packets pass, and when there are some again everybody gets his answer."""
    assert pair.a.process is not None
    pid, before = pair.a.process.pid, len(pair.a.log.read_text())
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 200)  # who was there before is gone
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    few = next(n for n in range(CLIENTS) if len({*range(n)} - used) == 3)
    limit = ["prlimit", "--pid", str(pid)]
    told = subprocess.check_output([*limit, "--nofile", "--raw", "--noheadings", "-o", "SOFT,HARD"])
    soft, hard = told.split()
    subprocess.run([*limit, f"--nofile={few}:{hard.decode()}"], check=True)
    pings = pair.pings(150)
    try:
        with contextlib.ExitStack() as made:
            waiting = [made.enter_context(connect(pair.a.socket)) for _ in range(20)]
            for sock in waiting:
                sock.sendall(ASK)
            time.sleep(1.2)
            for sock in waiting[:10]:
                sock.close()
            assert lost(pings) == 0
            subprocess.run([*limit, f"--nofile={soft.decode()}:{hard.decode()}"], check=True)
            for sock in waiting[10:]:
                assert b" 200 " in sock.recv(1 << 16)
    finally:
        subprocess.run([*limit, f"--nofile={soft.decode()}:{hard.decode()}"], check=True)
    assert pair.a.answers()
    told = pair.a.log.read_text()[before:].splitlines()
    assert [line for line in told if "Too many open files: who connects has to wait" in line]
    assert len(told) < 10, told[:20]


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* CLOCK_REALTIME as it would be had somebody set it: off by so many seconds. */
static long *offset;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = dlsym(RTLD_NEXT, "clock_gettime");
    const int fd = open(CLOCK_FILE, O_RDONLY);
    offset = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t id, struct timespec *t) {
    const int status = real(id, t);
    t->tv_sec += id == CLOCK_REALTIME ? *offset : 0;
    return status;
}
"""


def test_steps_of_the_wall_clock_touch_nothing(
    netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Days forward and back: flows live on, nothing expires; only what is told has other dates."""
    offset, shim = tmp_path / "offset", tmp_path / "shim.so"
    offset.write_bytes(bytes(8))
    words = ["-shared", "-fPIC", f'-DCLOCK_FILE="{offset}"', "-x", "c", "-", "-o", str(shim)]
    subprocess.run(["cc", *words], input=SHIM, text=True, check=True)
    with (
        wired(netns("a", "b"), tmp_path, "env", f"LD_PRELOAD={shim}") as pair,
        pair.client() as client,
    ):
        begin, flows = client.status()["uptime"], client.ask("/v1/flows")["items"]
        assert flows
        pings = pair.pings(200)
        events = client.events(("config",))
        assert next(events)["kind"] == "listening"
        for n, days in enumerate((10, -20, 3650, 0)):
            with offset.open("r+b") as file:
                file.write((days * 86400).to_bytes(8, "little", signed=True))
            with pair.client() as other:
                acl = Acl(name=f"n{n}", direction="in", action="allow")
                other.apply(policy("a", acl), prune=True)
            told = time.strptime(next(events)["time"][:19], "%Y-%m-%dT%H:%M:%S")
            assert abs(calendar.timegm(told) - time.time() - days * 86400) < 60
        events.close()
        assert lost(pings) == 0
        with pair.client() as other:
            assert begin <= other.status()["uptime"] < begin + 60
            items = other.ask("/v1/flows")["items"]
            assert all(0 <= flow["idle"] < 60 for flow in items)
            assert other.stats()["totals"]["expired"] == 0


def test_a_full_disk_refuses_changes_and_nothing_else(
    netns: Callable[..., list[str]], tmp_path: Path
) -> None:
    """What was committed stays, on the disk as in the engine; with room again all goes on."""
    state = tmp_path / "a" / "state"
    mounted = 'mkdir -p "$0" && mount -t tmpfs -o size=256k none "$0" && exec "$@"'
    with (
        wired(netns("a", "b"), tmp_path, "unshare", "-m", "sh", "-c", mounted, str(state)) as pair,
        pair.client() as client,
    ):
        assert pair.a.process is not None
        inside = Path(f"/proc/{pair.a.process.pid}/root{state}")
        saved, before = (inside / "policy.json").read_bytes(), client.status()["generation"]
        pings = pair.pings(100)
        with contextlib.suppress(OSError), (inside / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(4096))
                filler.flush()
        more = policy("a", *(Acl(name=f"n{n}", direction="in", action="allow") for n in range(50)))
        for _ in range(3):
            with pytest.raises(DataplaneError, match="No space left on device: nothing is applied"):
                client.apply(more, prune=True)
        with connect(pair.a.socket) as sock:
            sock.sendall(b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\n")
            sock.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(more), more.encode()))
            assert b" 507 " in sock.recv(1 << 16)
        assert client.status()["generation"] == before
        assert (inside / "policy.json").read_bytes() == saved
        assert sorted(p.name for p in inside.iterdir()) == ["filler", "lock", "policy.json"]
        (inside / "filler").unlink()
        assert client.apply(more, prune=True)["generation"] == before + 1
        assert lost(pings) == 0
