from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from click.testing import CliRunner

from mosrt_studies.figures.render import render
from mosrt_studies.long_recording import main, write_recording

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_clips_one_after_the_other(tmp_path: Path) -> None:
    """The second clip is cut where the recording is long enough, in its second turn."""
    rng = np.random.default_rng(0)
    clips = [tmp_path / "a.wav", tmp_path / "b.wav"]
    written = [rng.uniform(-0.5, 0.5, n) for n in (3_000, 5_000)]
    for clip, samples in zip(clips, written, strict=True):
        soundfile.write(clip, samples, 16_000, subtype="FLOAT")
    write_recording(clips, tmp_path / "long.flac", n_samples=12_500)
    found, rate_hz = soundfile.read(tmp_path / "long.flac")
    assert rate_hz == 16_000
    expected = np.concatenate([*written, *written])[:12_500]
    np.testing.assert_allclose(found, expected, atol=1 / 32_768)


def test_command(tiny: Path, tiny_wav2vec: Path, clips: list[Path], tmp_path: Path) -> None:
    """45 seconds of the sample clips, which the uncertainty model scores in three chunks."""
    out = tmp_path / "run.json"
    command = ["--speech", str(clips[0].parent), "--minutes", "0.75", "--threads", "1"]
    models = ["--model", str(tiny_wav2vec), "--model", str(tiny), "--output", str(out)]
    result = CliRunner().invoke(main, [*command, *models], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    first, second = json.loads(out.read_text())["models"]
    assert first["views"] == 3
    assert second["model"] == "tiny"
    for model in (first, second):
        assert 0 < model["loaded_mb"] <= model["peak_mb"]


def test_an_hour_stays_within_its_limit() -> None:
    """The committed run: an hour, and every model under its limit."""
    run = json.loads((RESULTS / "long_recording.json").read_text())
    assert run["minutes"] == 60
    views = {model["model"]: model["views"] for model in run["models"]}
    assert views["nano-uncertainty"] > 180
    for model in run["models"]:
        assert model["peak_mb"] < run["limit_mb"] == 1500
        assert f"| `{model['model']}` | {model['peak_mb']:.0f} MB |" in render(RESULTS)
