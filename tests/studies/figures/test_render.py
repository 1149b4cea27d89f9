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
    for path in sorted(RESULTS.glob("accuracy*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "ladder" in run:
            rest = {key: value for key, value in run.items() if key not in run["parts"]}
            run = {**rest, "parts": ["ladder"], "ladder": run["ladder"]}
            (tmp_path / "accuracy.json").write_text(json.dumps(run), encoding="utf-8")
    text = render(tmp_path)
    assert "### Severity of degradations" in text
    assert "### Agreement with listeners" not in text


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


def test_a_drift_table_by_folder(tmp_path: Path) -> None:
    """The mean and the largest difference from the reference, by folder of the clips."""
    run = json.loads((RESULTS / "bench_nano.json").read_text(encoding="utf-8"))
    (bundle,) = run["bundles"]
    variant = "nano fp16 cpu"
    domain = bundle["default_domain"]
    shifts = {"clean/a.wav": 0.01, "clean/b.wav": -0.03, "test1/c.wav": 0.5}
    run["scores"] = {
        bundle["reference"]: {clip: {domain: 3.0} for clip in shifts},
        variant: {clip: {domain: 3.0 + shift} for clip, shift in shifts.items()},
    }
    (tmp_path / "variants_nano.json").write_text(json.dumps(run), encoding="utf-8")
    text = render(tmp_path)
    assert f"| clips | number | {variant} |\n" in text
    assert "| clean | 2 | 0.0200 / 0.030 |\n| test1 | 1 | 0.5000 / 0.500 |\n" in text


def test_the_readme_joins_cost_drift_and_agreement(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "bench_nano.json", tmp_path / "variants_nano.json")
    fresh = {"model": "nano", "bytes": 1.3e6, "first_score_s": 0.5, "cpu_s": 0.4, "peak_mb": 90.0}
    names = {"nano overall": "fp32", "nano fp16 overall": "fp16"}
    cost = {
        "processes": {name: {**fresh, "variant": variant} for name, variant in names.items()}
        | {"Peer": {**fresh, "model": "Peer", "variant": ""}},
        "timings": {name: {"median_ms": 12.34} for name in (*names, "Peer")},
    }
    (tmp_path / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    tests = {"rated": {"agreement": {"nano overall": {"concordance": 0.754}}}}
    (tmp_path / "accuracy.json").write_text(json.dumps({"listening": tests}), encoding="utf-8")
    _, _, fp32, fp16, peer = readme_table(tmp_path).splitlines()
    assert fp32 == "| `nano` | fp32 | 75% | - | 12.3 ms | 90 MB | 1.3 MB |"
    assert fp16 == "| `nano` | fp16 | - | 0.0007 MOS | 12.3 ms | 90 MB | 1.3 MB |"
    assert peer == "| Peer | - | - | - | 12.3 ms | 90 MB | 1.3 MB |"


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match="markers"):
        replaced("no markers", "table")
