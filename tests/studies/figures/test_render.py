import json
import math
import shutil
from pathlib import Path

import pytest

from mosrt_studies.figures.render import readme_table, render, replaced

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def test_results_show_the_raw_results() -> None:
    """If this fails, run `python -m mosrt_studies.figures.render`."""
    written = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert written == render(RESULTS)


def test_the_readme_shows_the_raw_results() -> None:
    """If this fails, run `python -m mosrt_studies.figures.render`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, readme_table(RESULTS)) == readme
    assert len(readme_table(RESULTS).splitlines()) <= 12


def test_every_raw_result_is_shown() -> None:
    text = render(RESULTS)
    for path in RESULTS.glob("*.json"):
        assert f"results/{path.name}" in text


def test_missing_results_are_left_out(tmp_path: Path) -> None:
    assert "## Inputs" in render(tmp_path)
    assert readme_table(tmp_path).count("\n") == 1  # the heading alone
    shutil.copy(RESULTS / "order.json", tmp_path)
    text = render(tmp_path)
    assert "## Order of recordings and synthesisers" in text
    assert "## Agreement with listeners" not in text


def test_contents_link_to_headings() -> None:
    text = render(RESULTS)
    for line in text.splitlines():
        if line.startswith("- [") and "](#" in line:
            title, _, anchor = line.removeprefix("- [").removesuffix(")").partition("](#")
            assert f"\n## {title}\n" in text
            assert set(anchor) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_runs_say_where_they_come_from() -> None:
    for path in RESULTS.glob("*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        commands = ("python -m mosrt_", "mosrt bench run ", "mosrt quantize ", "nox ")
        assert run["command"].startswith(commands)
        assert run["machine"]["cpu"]
        assert run["machine"]["packages"]["onnxruntime"]
        for times in run.get("timings", {}).values():
            assert len(times["times_ms"]) >= 15
            assert all(math.isfinite(t) and t > 0 for t in times["times_ms"])


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match="markers"):
        replaced("no markers", "table")
