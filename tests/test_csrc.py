"""The C unit tests of tests/csrc, each a program built with sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conformance import c_marks

ROOT = Path(__file__).resolve().parent.parent
CC = os.environ.get("CC", "cc")
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
]


PROGRAMS = [
    pytest.param(path, marks=pytest.mark.conformance(*c_marks(path)), id=path.stem)
    for path in sorted(ROOT.glob("tests/csrc/test_*.c"))
]


@pytest.mark.parametrize("source", PROGRAMS)
def test_c(source: Path, tmp_path: Path) -> None:
    if not shutil.which(CC):
        pytest.skip("needs a C compiler")
    program = tmp_path / source.stem
    subprocess.run([CC, *FLAGS, f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
