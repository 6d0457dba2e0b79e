"""Where figures go: `bench/results/`, which is made here and not kept under version control."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.svg import Chart, draw

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def write(
    name: str, report: Mapping[str, Any], text: str, charts: Mapping[str, Chart], to: Path = RESULTS
) -> list[Path]:
    """NAME.json, NAME.txt and NAME-CHART.svg; returns what was written."""
    to.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.json": json.dumps(report, indent=1) + "\n", f"{name}.txt": text + "\n"}
    texts |= {f"{name}-{what}.svg": draw(chart) for what, chart in charts.items()}
    for file, content in texts.items():
        (to / file).write_text(content)
    return [to / file for file in texts]


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def machine_line(report: Mapping[str, Any]) -> str:
    """One line of where and when it was measured."""
    machine = report["machine"]
    clock = f" at {machine['tsc_mhz'] / 1000:.2f} GHz TSC" if "tsc_mhz" in machine else ""
    return (
        f"{machine['cpu']}{clock}, {machine['cores']} cores, Linux {machine['kernel']}; "
        f"{report['command']}, {report['date']}"
    )
