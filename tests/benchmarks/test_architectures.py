import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mosrt_bench.architectures import main


@pytest.fixture
def clips(speech: np.ndarray[tuple[int], np.dtype[np.float32]], tmp_path: Path) -> list[str | Path]:
    found: list[str | Path] = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, np.roll(speech, 9000 * i)[:24_000], 16_000)
        found += ["--audio", path]
    return found


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_another_machine_is_held_against_the_first(clips: list[str | Path], tmp_path: Path) -> None:
    here, there, out = (tmp_path / f"{name}.json" for name in ("here", "there", "out"))
    heard = _run("hear", "--bundle", "nano", *clips, "--out", here)
    assert heard.exit_code == 0, heard.output
    run: dict[str, Any] = json.loads(here.read_text())
    fp32 = run["bundles"]["nano"]["variants"]["fp32"]
    assert fp32["repeats"]
    assert len(set(fp32["scores"])) == 3

    fp32["scores"][2] += 0.25
    fp32["repeats"] = False
    there.write_text(json.dumps(run))
    compared = _run("compare", here, there, "--out", out)
    assert compared.exit_code == 0, compared.output
    assert "NO" in compared.output
    (machine,) = json.loads(out.read_text())["others"]
    row = machine["bundles"]["nano"]["variants"]["fp32"]
    assert row["largest_difference"] == pytest.approx(0.25)
    assert row["mean_difference"] == pytest.approx(0.25 / 3)
    assert row["drift_from_fp32_there"] == 0

    here.write_text(json.dumps({**run, "bundles": {}}))
    compared = _run("compare", here, there, "--out", out)
    assert compared.exit_code == 0, compared.output
    assert "nan" in compared.output  # nothing to hold it against

    there.write_text(json.dumps({**run, "clips_sha256": "0"}))
    refused = _run("compare", here, there, "--out", tmp_path / "none.json")
    assert refused.exit_code == 1
    assert "same ones" in refused.output

    for wrong in ("", "{}", "[]"):
        there.write_text(wrong)
        refused = _run("compare", here, there, "--out", tmp_path / "none.json")
        assert refused.exit_code == 1
        assert "there.json: not a run" in refused.output


def test_one_clip_has_none_to_change_places_with(clips: list[str | Path], tmp_path: Path) -> None:
    refused = _run("hear", "--bundle", "nano", *clips[:2], "--out", tmp_path / "none.json")
    assert refused.exit_code == 2
    assert "two clips" in refused.output
