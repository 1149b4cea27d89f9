"""The command line with models that score by their uncertainty, and their MOS map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import mosrt
from mosrt.bundle.embedded import find_bundle
from mosrt.cli.main import main
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


def test_fit_mos(tiny: Path, tiny_wav2vec: Path, tmp_path: Path) -> None:
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
            assert score.domains == {score.domain: score.mos}
        stored = scorer.manifest.uncertainty
    assert stored is not None
    assert stored.mos_map is not None
    assert stored.mos_map.description == "noise"
    again = CliRunner().invoke(main, [*command, "--kind", "linear"])
    assert again.exit_code == 0
    ratings.write_text(
        "\n".join(["path,mos", *(f"{i}.wav,{1 + 0.4 * order[i]}" for i in range(9))])
    )
    rising = CliRunner().invoke(main, command)
    assert rising.exit_code == 1
    assert "not rated lower" in rising.output
    ratings.write_text("file,score\n")
    assert CliRunner().invoke(main, command).exit_code == 2
    ratings.write_text("\n".join(["path,mos", *lines]))
    refused = CliRunner().invoke(main, ["fit-mos", str(ratings), "--model", str(tiny)])
    assert refused.exit_code == 3


def test_fit_mos_to_a_copy(tmp_path: Path) -> None:
    """What comes with mosrt stays as it is; the copy is whole and has the map."""
    embedded = find_bundle("nano-uncertainty")
    before = {file.name: file.read_bytes() for file in embedded.iterdir() if file.is_file()}
    clips = [tmp_path / f"{i}.wav" for i in range(6)]
    for i, clip in enumerate(clips):
        soundfile.write(clip, noise(16_000 + 500 * i), 16_000)
    with mosrt.load("nano-uncertainty") as scorer:
        found = [scorer.score_file(clip).measures["uncertainty"] for clip in clips]
    rated = [5 - value for value in found]
    ratings = tmp_path / "ratings.csv"
    lines = [f"{clip.name},{mos}" for clip, mos in zip(clips, rated, strict=True)]
    ratings.write_text("\n".join(["path,mos", *lines]))
    command = ["fit-mos", str(ratings), "--model", "nano-uncertainty", "--kind", "linear"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 3
    assert "comes with mosrt and is not changed in place" in refused.output
    out = tmp_path / "new" / "rated"
    done = CliRunner().invoke(main, [*command, "--output", str(out)])
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == set(before)
    assert list(out.parent.iterdir()) == [out]
    with mosrt.load(out) as scorer:
        scores = [scorer.score_file(clip) for clip in clips]
    assert [score.measures["uncertainty"] for score in scores] == found
    assert [score.mos for score in scores] == pytest.approx(rated)
    again = CliRunner().invoke(main, [*command, "--output", str(out)])
    assert again.exit_code == 3
    assert "exists already" in again.output
    (tmp_path / "file").touch()
    nowhere = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "file" / "rated")])
    assert nowhere.exit_code == 3
    assert "cannot be written" in nowhere.output
    assert {f.name: f.read_bytes() for f in embedded.iterdir() if f.is_file()} == before
