"""The command line: what it prints, and its exit codes."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dataplane import run
from dataplane.cli import cli
from dataplane.packet import build, parse
from dataplane.pcap import Packet, Writer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "policies" / "demo.yaml"
WEB, DB = "10.1.1.2", "10.1.2.2"
GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"- 1\n- 2\n",
    "json": b'{"node": ',
    "types": b"version: 1\nnode: {name: 1, underlay: [], networks: 7}\n",
    "vni": b"version: 1\nnode: {name: a, underlay: {address: 192.0.2.1}, networks: [{name: n, "
    b"vni: 16777216, prefixes: [10.0.0.0/8]}]}\n",
}


def dataplane(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def process(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = DEMO.read_text()
    assert old in text
    path = tmp_path / "edited.yaml"
    path.write_text(text.replace(old, new))
    return path


# ---- start -------------------------------------------------------------------------------------


def test_help_names_commands_and_exit_codes() -> None:
    done = process("-m", "dataplane", "--help")
    assert done.returncode == 0
    for word in (
        "run",
        "check",
        "diff",
        "trace",
        "schema",
        "bench",
        "demo",
        "version",
        "Exit codes",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    "command", ["run", "check", "diff", "trace", "schema", "bench", "demo", "version"]
)
def test_every_command_has_help(command: str) -> None:
    result = dataplane(command, "--help")
    assert result.exit_code == 0
    assert "Exit codes" in result.output


def test_start_imports_nothing_heavy() -> None:
    heavy = ["numpy", "yaml", "msgspec", "rich", "pyroute2", "scapy", "dataplane._engine"]
    heavy += ["logging", "http.client", "ssl", "json", "asyncio"]
    code = f"import sys, dataplane.cli; print([m for m in {heavy} if m in sys.modules])"
    assert process("-c", code).stdout.strip() == "[]"


def test_unknown_command_is_bad_input() -> None:
    assert dataplane("fly").exit_code == 2


def test_version() -> None:
    result = dataplane("version")
    assert result.exit_code == 0
    assert result.output.startswith("dataplane ")


def test_schema_is_the_one_in_the_repository() -> None:
    result = dataplane("schema")
    assert result.exit_code == 0
    assert json.loads(result.output) == json.loads((ROOT / "policies/schema.json").read_text())


# ---- check -------------------------------------------------------------------------------------


def test_check_proves_all_policies() -> None:
    files = sorted((ROOT / "policies").glob("*.yaml"))
    result = dataplane("check", *files)
    assert result.exit_code == 0, result.output
    assert all(line.startswith("ok ") for line in result.output.splitlines())
    assert len(result.output.splitlines()) == len(files)


def test_check_fails_after_one_rule_changed(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "{name: service, direction: in, action: allow",
        "{name: service, direction: in, action: block",
    )
    result = dataplane("check", path)
    assert result.exit_code == 1
    line = 1 + path.read_text().splitlines().index(
        "  - name: blue reaches its service on the other host"
    )
    assert result.output.startswith(f"{path}:{line} $.expect[0]: ")
    assert "acl_deny" in result.output
    assert result.output.splitlines()[-1].startswith("FAIL ")


def test_check_as_json(tmp_path: Path) -> None:
    path = edited(tmp_path, "reason: no_route", "reason: acl_deny")
    result = dataplane("check", path, DEMO, "-o", "json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert all(finding["passed"] for finding in told[str(DEMO)]["findings"])
    failed = [f["path"] for f in told[str(path)]["findings"] if not f["passed"]]
    assert failed == ["$.expect[5]"]
    assert told[str(path)]["warnings"] == []


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("command", ["check", "diff", "run", "trace"])
def test_bad_documents_are_said_in_one_line_each(kind: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(GARBAGE[kind])
    words = [path] if command != "trace" else ["-f", path, f"udp {WEB}:1 > {DB}:2"]
    result = dataplane(command, *words)
    assert result.exit_code == 2, result.exception
    assert all(line.startswith(f"{path}") for line in result.stderr.splitlines())
    assert "$" in result.stderr


def test_missing_file_is_bad_input() -> None:
    result = dataplane("check", "/nonexistent/policy.yaml")
    assert result.exit_code == 2
    assert "/nonexistent/policy.yaml" in result.stderr


# ---- diff --------------------------------------------------------------------------------------


def test_diff_of_equals_is_silent() -> None:
    result = dataplane("diff", DEMO, DEMO)
    assert (result.exit_code, result.output) == (0, "")


def test_diff_shows_what_changes(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "name: telnet, direction: in, action: block",
        "name: telnet, direction: in, action: allow",
    )
    result = dataplane("diff", DEMO, path)
    assert result.exit_code == 1
    marked = [line.split()[:2] for line in result.output.splitlines() if line[0] in "+-"]
    assert marked == [["-", "acl/blue/db/telnet"], ["+", "acl/blue/db/telnet"]]


def test_diff_against_nothing_creates_all() -> None:
    result = dataplane("diff", DEMO, "--node", "a")
    assert result.exit_code == 1
    assert all(line.startswith("+ ") for line in result.output.splitlines())
    assert "+ endpoint/green/web" in result.output


def test_diff_as_json_names_nodes_that_go(tmp_path: Path) -> None:
    text = DEMO.read_text()
    path = tmp_path / "one.yaml"
    path.write_text(text[: text.index("  - name: b\n")])
    result = dataplane("diff", DEMO, path, "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"nodes": {"a": []}, "removed": ["b"], "changed": True}


# ---- trace -------------------------------------------------------------------------------------


def test_trace_follows_to_the_next_node() -> None:
    result = dataplane("trace", "-f", DEMO, "--in", "a/blue/web", f"tcp {WEB}:4000 > {DB}:23")
    assert result.exit_code == 1
    assert "node  a" in result.output
    assert "rule blue/db/telnet, reason acl_deny" in result.output


def test_trace_finds_the_entry_by_the_source_address() -> None:
    result = dataplane("trace", "-f", DEMO, "-n", "a", f"tcp {WEB}:4000 > {DB}:5000")
    assert result.exit_code == 2  # blue and green both have it
    assert "a/blue/web, a/green/web" in result.stderr


def test_trace_as_json() -> None:
    words = ("--node", "a", "--in", "green/web", f"tcp {WEB}:4000 > {DB}:5000")
    result = dataplane("trace", "-f", DEMO, *words, "-o", "json")
    assert result.exit_code == 0
    hops = json.loads(result.stdout)
    assert [(hop["node"], hop["egress"]) for hop in hops] == [("a", "underlay"), ("b", "green/db")]


def test_trace_as_flow_chart() -> None:
    result = dataplane(
        "trace", "-f", DEMO, "--in", "a/blue/web", f"tcp {WEB}:4 > {DB}:5000", "--mermaid"
    )
    assert result.output.startswith("flowchart LR")


def test_trace_from_the_underlay_wants_a_vni_when_addresses_do_not_tell() -> None:
    words = ("trace", "-f", DEMO, "--node", "b", "--in", "underlay", f"tcp {WEB}:4 > {DB}:5000")
    assert "blue (--vni 4096), green (--vni 4097)" in dataplane(*words).stderr
    result = dataplane(*words, "--vni", "4096")
    assert result.exit_code == 0
    assert "to blue/db" in result.output


def test_trace_from_the_host() -> None:
    result = dataplane(
        "trace", "-f", DEMO, "--node", "a", "--in", "host", "icmp 169.254.77.1 > 169.254.77.2 echo"
    )
    assert result.exit_code == 0
    assert "ANSWER" in result.output


def test_trace_takes_frames_of_a_capture(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    with Writer(path) as capture:
        for port in (23, 5000):
            spec = parse(f"tcp {WEB}:4000 > {DB}:{port}")
            frame = build(spec, "0e:2a:0a:01:01:02", "02:aa:00:00:10:01")
            capture.write(Packet(0, frame))
    words = ("trace", "-f", DEMO, "--in", "a/blue/web", "--pcap", path, "--frame")
    assert dataplane(*words, "1").exit_code == 1
    assert dataplane(*words, "2").exit_code == 0
    beyond = dataplane(*words, "3")
    assert (beyond.exit_code, beyond.stderr) == (2, f"{path}: has no frame 3\n")


@pytest.mark.parametrize(
    "words",
    [
        ("--in", "a/blue/web"),
        ("--in", "a/blue/web", "tcp nonsense"),
        ("--in", "nobody", f"tcp {WEB}:1 > {DB}:2"),
        ("--in", "web", f"tcp {WEB}:1 > {DB}:2"),
        ("--in", "underlay", f"tcp {WEB}:1 > {DB}:2"),
        ("--node", "x", "--in", "web", f"tcp {WEB}:1 > {DB}:2"),
        ("--node", "b", "--in", "host", f"tcp {WEB}:1 > {DB}:2"),
        ("--in", "a/blue/web", "--pcap", "/nonexistent"),
        ("--in", "a/blue/web", "--pcap", str(DEMO)),
    ],
)
def test_trace_says_what_it_cannot_use(words: tuple[str, ...]) -> None:
    result = dataplane("trace", "-f", DEMO, *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


# ---- run ---------------------------------------------------------------------------------------


def test_run_wants_a_node_of_several() -> None:
    done = process("-m", "dataplane", "run", str(DEMO))
    assert (done.returncode, done.stderr) == (2, "which node? There are: a, b\n")


def test_the_log_may_be_json() -> None:
    code = (
        "import logging; from dataplane import logs; logs.begin('json');"
        "log = logging.getLogger('dataplane'); log.warning('two\\nlines of %s', 1);"
        "\ntry: 1 / 0\nexcept ZeroDivisionError: log.exception('at')"
    )
    first, second = (json.loads(line) for line in process("-c", code).stderr.splitlines())
    assert (first["level"], first["message"]) == ("warning", "two\nlines of 1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert "ZeroDivisionError" in second["exception"]


def test_run_says_which_port_it_cannot_open() -> None:
    done = process("-m", "dataplane", "run", str(DEMO), "--node", "b")
    assert done.returncode == 1
    assert done.stderr.startswith("udp 192.0.2.65 port 4789: no interface of this namespace has")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m dataplane schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        check=False,
        timeout=60,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def full_device(tmp_path: Path) -> Path:
    """One of our own that takes nothing, as /dev/full."""
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
        path.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"no device nodes: {error.strerror}")
    return path


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_said(tmp_path: Path, unbuffered: str) -> None:
    with full_device(tmp_path).open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dataplane", "check", str(DEMO)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            cwd=ROOT,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "output: No space left on device\n")


def test_help_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with full_device(tmp_path).open("wb") as full:
        for words in (("--help",), ("check", "--help")):
            done = subprocess.run(
                [sys.executable, "-m", "dataplane", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                check=False,
                timeout=60,
            )
            assert (done.returncode, done.stderr) == (1, "output: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&-"])
@pytest.mark.parametrize(("file", "code"), [(DEMO, 0), ("no-such-file", 2)])
def test_streams_may_be_closed(closed: str, file: Path | str, code: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m dataplane check "$1" {closed}', sys.executable, str(file)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == code and "Traceback" not in done.stderr
    assert ("no-such-file" in done.stderr) == (code == 2)


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    device = full_device(tmp_path)
    for content in ("not a number\n", f"{os.getppid()}\n"):
        foreign = tmp_path / "foreign.pid"
        foreign.write_text(content)
        done = dataplane("run", DEMO, "--node", "a", "--pid-file", foreign)
        assert done.exit_code == 1 and str(foreign) in done.output
        assert foreign.read_text() == content
    done = dataplane("run", DEMO, "--node", "a", "--pid-file", device)
    assert done.exit_code == 1 and "no regular file" in done.output
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for _ in range(2):
        run._write(link, "new")
        assert link.is_symlink() and target.read_text() == "new"
    with pytest.raises(OSError, match="No space left"):
        run._write(device, "new")
    assert device.is_char_device()
