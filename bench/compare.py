"""`make compare`: the engine beside that of an earlier commit, in turns on the same core.

Both are measured as `dataplane bench --quick` does, so outputs are checked before they are timed.
Ratios are of neighbouring turns, as other processes slow both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KEYS = "work", "path", "acl_rules", "flows"

Figures = dict[str, float]  # cycles a packet, by what was done


class Compared(NamedTuple):
    """Of one work: cycles a packet before (least), and ratios to it, turn by turn."""

    work: str
    before: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def __str__(self) -> str:
        least, most = min(self.ratios), max(self.ratios)
        return f"{self.work:<40} {self.before:>8.1f} {self.ratio:>7.3f}  ({least:.3f}-{most:.3f})"


def figures_of(report: dict[str, Any]) -> Figures:
    """Of standing and of new flows."""
    rows = [row for row in report["results"] if {*KEYS, "cycles_per_packet"} <= row.keys()]
    return {
        f"{row['work']} {row['path']}, {row['flows']:,} flows, {row['acl_rules']} rules": row[
            "cycles_per_packet"
        ]
        for row in rows
    }


def compared(turns: list[tuple[Figures, Figures]]) -> Iterator[Compared]:
    """`turns`: before and now. What only one of both knows is left out."""
    for work in turns[0][0]:
        if all(work in before and work in now for before, now in turns):
            ratios = [now[work] / before[work] for before, now in turns]
            yield Compared(work, min(before[work] for before, _ in turns), ratios)


@contextmanager
def built(commit: str) -> Iterator[Path]:
    """The tree of a commit, with its engine, until the block ends."""
    with tempfile.TemporaryDirectory(dir=_made(ROOT / "build"), prefix="compare-") as place:
        text = subprocess.check_output(["git", "archive", commit], cwd=ROOT)
        subprocess.run(["tar", "-x", "-C", place], input=text, check=True)
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=place, check=True)
        yield Path(place)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


def measured(tree: Path) -> Figures:
    bench = [sys.executable, "-m", "dataplane", "bench", "--quick", "--json"]
    done = subprocess.run(bench, cwd=tree, check=True, stdout=subprocess.PIPE)
    return figures_of(json.loads(done.stdout))


def main(words: list[str] | None = None) -> int:
    """1: the median of some work's ratios is larger than it may be; 2: there is nothing to compare,
    as without such a commit."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.1, help="the largest ratio that passes")
    given = parser.parse_args(words)
    try:
        with built(given.commit) as before:
            turns = [(measured(before), measured(ROOT)) for _ in range(max(given.turns, 1))]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)  # the command has said why
        return 2
    found = list(compared(turns))
    if not found:
        print(f"{parser.prog}: {given.commit} measures nothing of this", file=sys.stderr)
        return 2
    print(f"{'cycles a packet':<40} {'before':>8} {'ratio':>7}  (least-most), {len(turns)} turns")
    print(*found, sep="\n")
    slower = [each.work for each in found if each.ratio > given.most]
    print(*(f"slower than {given.most} times: {work}" for work in slower), sep="\n", end="")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
