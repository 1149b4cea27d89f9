"""The command line with models that score by their uncertainty, and their MOS map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import mosrt
from mosrt.cli import main
from tests.conftest import noise


def test_command_line(tiny_wav2vec: Path, clips: list[Path], tmp_path: Path) -> None:
    command = ["score", *map(str, clips[:2]), "--model", str(tiny_wav2vec)]
    table = CliRunner().invoke(main, command)
    assert table.exit_code == 0
    with mosrt.load(tiny_wav2vec) as scorer:
        expected = [scorer.score_file(clip, frames=True) for clip in clips[:2]]
    lines = table.stdout.splitlines()
    assert "uncertainty" in lines[0]
    for line, score in zip(lines[1:], expected, strict=True):
        assert line.split()[2:5] == ["-", "-", f"{score.measures['uncertainty']:.3f}"]
    rows = CliRunner().invoke(main, [*command, "--format", "csv"]).stdout.splitlines()
    assert rows[0].endswith("provider,uncertainty," + ",".join(list(expected[0].measures)[1:]))
    assert float(rows[1].split(",")[-1]) == expected[0].measures["dense.entropy"]
    lines = (
        CliRunner()
        .invoke(main, [*command, "--format", "jsonl", "--frames", "--horizons"])
        .stdout.splitlines()
    )
    found = json.loads(lines[1])
    assert found["mos"] is None
    assert found["frames"][3:] == list(expected[1].frames[3:])
    assert "dense.entropy@14" in found["measures"]
    facts = CliRunner().invoke(main, ["info", str(tiny_wav2vec)]).stdout
    assert "dense.entropy; layouts paper, contrastive, dense; seed 0" in facts
    refused = CliRunner().invoke(main, [*command, "--plot", str(tmp_path / "both.png")])
    assert refused.exit_code == 2


def test_plot(tiny_wav2vec: Path, clips: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "clip.png"
    command = ["score", str(clips[0]), "--model", str(tiny_wav2vec), "--plot", str(target)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [target]


def test_calibration(tiny: Path, tiny_wav2vec: Path, tmp_path: Path) -> None:
    """Rated noise of rising level: MOS afterwards, from Python and the command line alike."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_wav2vec.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with mosrt.load(tiny_wav2vec) as scorer:
        found = []
        for i in range(9):
            soundfile.write(tmp_path / f"{i}.wav", noise(16_000 + 500 * i), 16_000)
            found.append(scorer.score_file(tmp_path / f"{i}.wav").measures["uncertainty"])
    order = np.argsort(np.argsort(found))
    lines = [f"{i}.wav,{4.5 - 0.4 * order[i]}" for i in range(9)]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("\n".join(["path,mos", *lines, "missing.wav,3"]))
    command = ["calibrate-mos", str(ratings), "--model", str(model), "--description", "noise"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "missing.wav cannot be scored" in result.output
    assert "from 9 recordings; leave-one-out error 0." in result.output
    with mosrt.load(model) as scorer:
        for i in range(9):
            score = scorer.score_file(tmp_path / f"{i}.wav")
            assert score.mos == pytest.approx(4.5 - 0.4 * order[i])
        stored = scorer.manifest.uncertainty
    assert stored is not None
    assert stored.mos_map is not None
    assert stored.mos_map.description == "noise"
    again = CliRunner().invoke(main, [*command, "--kind", "linear"])
    assert again.exit_code == 0
    ratings.write_text("file,score\n")
    assert CliRunner().invoke(main, command).exit_code == 2
    ratings.write_text("\n".join(["path,mos", *lines]))
    refused = CliRunner().invoke(main, ["calibrate-mos", str(ratings), "--model", str(tiny)])
    assert refused.exit_code == 3
