"""The repository itself: what documents promise, how long functions are, what is packaged."""

import ast
import contextlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane._engine import lib
from dataplane.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
IGNORED = (ROOT / ".gitignore").read_text().split()
LONGEST = 60  # lines of a function
LONGER: dict[str, int] = {}  # "file:function": lines, for those with a reason to be


def texts() -> Iterator[Path]:
    """Every file of ours that is text."""
    tops = ("dataplane", "csrc", "tests", "bench", "policies", "docs", ".ci")
    for path in [*ROOT.glob("*"), *(p for top in tops for p in (ROOT / top).rglob("*"))]:
        if path.suffix not in (".so", ".pyc", ".o") and path.is_file():
            yield path


# ---- documents ---------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_no_path_of_a_machine() -> None:
    machine = re.compile(r"/(?:home|root|Users|work)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in texts()
        for line in path.read_text(errors="ignore").splitlines()
        if machine.search(line) and path != Path(__file__)
    ]
    assert found == []


def test_every_target_is_explained() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert targets - explained == {"system", "peers"}  # steps of other targets


@pytest.mark.parametrize("document", [README, (ROOT / "ARCHITECTURE.md").read_text()])
def test_documents_name_what_exists(document: str) -> None:
    for target in re.findall(r"\bmake ([\w-]+)", " ".join(re.findall(r"`+[^`]+`+", document))):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"make {target}"
    for path in re.findall(
        r"(?<!/)\b(?:policies|tests|bench|csrc|docs|dataplane)/[\w./@-]*\w", document
    ):
        assert (ROOT / path).exists() or f"/{path}/" in IGNORED, path
    for path in re.findall(r"\]\(([^)#:]+)\)", document):
        assert (ROOT / path).exists(), path


def test_readme_commands_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    used = [line.split() for line in lines if line.startswith("dataplane ")]
    assert used
    for _, command, *words in used:
        options = {o for p in cli.commands[command].params for o in (*p.opts, *p.secondary_opts)}
        ends = [words.index(end) for end in "#|" if end in words]
        own = words[: min(ends, default=len(words))]
        assert {w for w in own if w.startswith("-")} - {"-"} <= options, command


def test_readme_quick_start_runs() -> None:
    pytest.importorskip("scapy", reason="needs scapy")
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 12
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    assert "10.1.1.2" in said.getvalue() and "FORWARD to blue/db" in said.getvalue()


def test_changelog_knows_the_version() -> None:
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


# ---- code --------------------------------------------------------------------------------------


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


def c_functions(path: Path) -> Iterator[tuple[str, int]]:
    """As clang-format lays them out: the head at the margin, the end a brace of its own."""
    name, start = "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if head := re.match(r"[a-z][\w ]*[ *](\w+)\(", line):
            name, start = head[1], number
        elif line == "}" and name:
            yield name, number - start + 1
            name = ""


def test_no_function_is_too_long() -> None:
    files = [(p, python_functions) for top in ("dataplane", "tests", "bench", "csrc")
             for p in (ROOT / top).rglob("*.py")]  # fmt: skip
    files += [(p, c_functions) for top in ("csrc", "tests") for p in (ROOT / top).rglob("*.[ch]")]
    lengths = {
        f"{path.relative_to(ROOT)}:{name}": n for path, find in files for name, n in find(path)
    }
    assert len(lengths) > 500  # they are found at all
    assert {f: n for f, n in lengths.items() if n > LONGER.get(f, LONGEST)} == {}


def test_cdef_is_what_the_engine_exports() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "csrc/build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    declared = set(re.findall(r"\b(dp_\w+)\(", build.cdef()))
    constants = set(re.findall(r"\b(DP_[A-Z0-9_]+)\b *[=,}]", build.cdef()))
    assert len(declared) > 30 and len(constants) > 30
    assert declared | constants <= set(dir(lib)) and lib.dp_abi() == lib.DP_ABI


def test_headers_declare_nothing_outside_the_markers() -> None:
    for header in (ROOT / "csrc").glob("dp*.h"):
        before, _, rest = header.read_text().partition("/* cffi:begin */")
        outside = re.sub(r"/\*.*?\*/", "", before + rest.partition("/* cffi:end */")[2], flags=re.S)
        assert [ln for ln in outside.splitlines() if ln and not ln.startswith("#")] == []


# ---- package -----------------------------------------------------------------------------------


def test_package_list_is_complete() -> None:
    found = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for p in (ROOT / "dataplane").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert not (ROOT / "policies/__init__.py").exists()


DATA_FILES = """
from setuptools import Distribution
made = Distribution()
made.parse_config_files()
command = made.get_command_obj("build_py")
command.ensure_finalized()
for _, source, _, names in command.data_files:
    print(*(f"{source}/{name}" for name in names), sep="\\n")
"""


def test_data_is_packaged() -> None:
    """What setuptools puts into the wheel besides Python is all there is."""
    done = subprocess.run(
        [sys.executable, "-c", DATA_FILES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    built = {".py", ".pyc", ".so", ".c"}
    files = (p for p in (ROOT / "dataplane").rglob("*") if p.is_file() and p.suffix not in built)
    data = {str(path.relative_to(ROOT)) for path in files}
    assert "dataplane/api/page.html" in data
    assert set(done.stdout.split()) == data


def test_installed_metadata() -> None:
    try:
        found = importlib.metadata.distribution("vxlan-dataplane")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vxlan-dataplane is not installed, only imported")
    assert found.version == PROJECT["project"]["version"]
    assert {"node", "scapy", "dev"} <= set(found.metadata.get_all("Provides-Extra") or [])
    scripts = {e.name: e.value for e in found.entry_points if e.group == "console_scripts"}
    assert scripts == {"dataplane": "dataplane.cli:main"}


def test_ignored_files_are_not_committed() -> None:
    done = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == ""
