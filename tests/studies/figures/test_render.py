import json
import math
from pathlib import Path

import click
import pytest

from mosrt_studies.figures.render import render, replaced

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_shows_the_raw_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, render(RESULTS)) == readme


def test_runs_say_where_they_come_from() -> None:
    for path in RESULTS.glob("*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        commands = ("python -m mosrt_bench.", "mosrt bench ", "mosrt calibrate ")
        assert run["command"].startswith(commands)
        assert run["machine"]["cpu"]
        assert run["machine"]["packages"]["onnxruntime"]
        for times in run.get("timings", {}).values():
            assert len(times["times_ms"]) >= 15
            assert all(math.isfinite(t) and t > 0 for t in times["times_ms"])


def test_markers_must_be_there() -> None:
    with pytest.raises(click.ClickException, match="markers"):
        replaced("no markers", "figures")
