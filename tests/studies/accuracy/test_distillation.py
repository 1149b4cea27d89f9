"""Students over hours of audio: a tiny one of the embedded model."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mosrt_studies.accuracy import distillation
from mosrt_studies.figures.plots import PLOTS, draw
from tests.standins.nano import recordings

RECIPE = """
chunk_clips = 4
batch = 8
[[stages]]
name = "training"
epochs = 1.0
ladders = 1
"""


@pytest.mark.full
def test_students_share_clips_and_are_not_made_again(tmp_path: Path) -> None:
    recordings(tmp_path / "audio", ["anna", "bert", "carl"])
    (tmp_path / "tiny.toml").write_text(RECIPE)
    given = ["base=nano", "--audio", tmp_path / "audio", "--cache", tmp_path / "cache",
             "--recipe", tmp_path / "tiny.toml", "--hours", 0.03, "--hours", 0.01,
             "--test-hours", 0.005, "--workers", 1, "-o", tmp_path / "out.json"]  # fmt: skip
    result = CliRunner().invoke(distillation.main, [*map(str, given)])
    assert result.exit_code == 0, result.output
    run = json.loads((tmp_path / "out.json").read_text())
    assert list(run["hours"]) == ["0.01", "0.03"]
    for parts in run["hours"].values():
        assert set(parts) == {"held-out recordings", "held-out speakers"}
        assert parts["held-out speakers"]["base"]["clips"] == 4
    assert "| 0.03 | held-out speakers (4 clips) | base |" in result.output
    data = tmp_path / "cache" / "data"
    assert len(list(data.glob("speakers-*.npz"))) == 1
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    again = CliRunner().invoke(distillation.main, [*map(str, given)])
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before
    draw(PLOTS["distillation"](run), tmp_path / "plot.svg")
    assert "base, speakers" in (tmp_path / "plot.svg").read_text()
