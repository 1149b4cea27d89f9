"""Tests that commands import little before they run, and name what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner, Result

from mosrt.cli.command import EXTRAS, ExitStatus
from mosrt_export.nano import commands
from mosrt_export.nano.cli import nano
from mosrt_export.nano.data import dataset
from mosrt_export.nano.data.clips import CLIP_SAMPLES
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.voices import Voice, VoiceError
from mosrt_export.nano.train.model import save_nano
from mosrt_export.nano.train.pretraining import ARCHITECTURE, PretrainingConfig
from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec
from tests.standins.nano import STANDARD, provenance, random_nano

COMMANDS = ("generate", "pretrain", "train", "export")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(nano, [*map(str, arguments)])


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mosrt_export.nano.cli import nano\n"
        f"for name in ('', *{COMMANDS}):\n"
        "    result = CliRunner().invoke(nano, [*name.split(), '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    print(result.output)\n"
        "heavy = {'torch', 'onnx', 'librosa', 'scipy', 'pesq', 'pyworld', 'timm'}\n"
        "print(sorted(heavy & {m.split('.')[0] for m in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, heavy = found.stdout.strip().splitlines()
    assert heavy == "[]"
    for words in (
        "python -m mosrt_export.nano generate --speech",
        "pip install 'mosrt[train]'",
        "--reduced",
        "--epochs",
        "--evaluation",
    ):
        assert any(words in line for line in text), words


def test_every_command_is_described() -> None:
    assert set(nano.commands) == set(COMMANDS)
    for command in nano.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                assert parameter.make_metavar(click.Context(command)) in str(command.help)
                continue
            assert getattr(parameter, "help", None), (command.name, parameter.name)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mosrt_export.nano.cli import nano\n"
        f"nano(['pretrain', '--data', {str(tmp_path)!r}, '--output', {str(tmp_path / 'x')!r}])"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == ExitStatus.UNUSABLE
    assert "pip install 'mosrt[train]'" in found.stderr
    assert "torch" in found.stderr
    assert "Traceback" not in found.stderr
    assert {"torch", "pesq", "pyworld", "librosa", "scipy"} <= EXTRAS["train"]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "speech" / "anna"
    folder.mkdir(parents=True)
    sf.write(folder / "a.flac", np.zeros(100), 16_000)
    return folder.parent


def generating(speech: Path, tmp_path: Path, *more: object) -> Result:
    return run("generate", "--speech", speech, "--teachers", tmp_path, "--output",
               tmp_path / "data", *more)  # fmt: skip


def test_held_out_voices_are_never_trained_on(
    monkeypatch: pytest.MonkeyPatch, recordings: Path, tmp_path: Path
) -> None:
    used: list[Voice] = []
    asked: dict[str, Any] = {}

    def build_pool(voice: Voice, seed: int, out: Path) -> Path:
        assert seed == 5
        used.append(voice)
        return out / voice.name

    def generate(
        voices: list[Voice], pools: list[Path], recipe: Any, chunks: range, ladders: range,
        out: Path, workers: int,
    ) -> Iterator[Path]:  # fmt: skip
        asked.update(voices=voices, pools=pools, recipe=recipe, chunks=chunks, ladders=ladders)
        assert (out, workers) == (tmp_path / "data", 1)
        yield from (out / str(number) for number in (*chunks, *ladders))

    monkeypatch.setattr(commands, "missing_programs", lambda _voices: {})
    monkeypatch.setattr(commands, "build_pool", build_pool)
    monkeypatch.setattr(commands, "generate", generate)
    monkeypatch.setattr(commands, "record_recipe", lambda _recipe, _out: None)
    result = generating(recordings, tmp_path, "--hours", 1, "--ladder-hours", 0.5, "--seed", 5,
                        "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {voice.engine for voice in used} == {"recorded", "flite", "festival", "espeak-ng"}
    assert not [voice.name for voice in asked["voices"] if voice.held_out]
    assert {voice.name for voice in used} == {voice.name for voice in asked["voices"]}
    # Pools are in the order of their voices, though they are made in parallel.
    assert [path.name for path in asked["pools"]] == [voice.name for voice in asked["voices"]]
    # One hour is 720 clips of 5 s.
    assert (asked["chunks"], asked["ladders"]) == (range(8), range(4))
    assert asked["recipe"].seed == 5


def test_a_voice_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, recordings: Path, tmp_path: Path
) -> None:
    asked: list[str] = []

    def build_pool(voice: Voice, _seed: int, _out: Path) -> Path:
        asked.append(voice.name)
        raise VoiceError(f"{voice.name} failed")

    monkeypatch.setattr(commands, "missing_programs", lambda _voices: {})
    monkeypatch.setattr(commands, "build_pool", build_pool)
    monkeypatch.setattr(commands, "record_recipe", lambda _recipe, _out: None)
    result = generating(recordings, tmp_path, "--workers", 1)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert any(f"{name} failed" in result.output for name in asked)
    assert not list(tmp_path.glob("data/**/*"))


def test_missing_programs_stop_it_at_once(
    monkeypatch: pytest.MonkeyPatch, recordings: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = generating(recordings, tmp_path)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "is missing: install the system package" in result.output
    assert not (tmp_path / "data").exists()


def test_no_recordings_are_an_error(tmp_path: Path) -> None:
    result = generating(tmp_path, tmp_path)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "no folders of FLAC recordings" in result.output


@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_no_data_is_an_error(command: str, tmp_path: Path) -> None:
    result = run(command, "--data", tmp_path, "--output", tmp_path / "x.pt")
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "no chunks of clips; run `generate` first" in result.output
    assert not list(tmp_path.glob("*.pt"))


def test_pretraining_writes_what_export_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dataset, "CHUNK_CLIPS", 2)
    rng = np.random.default_rng(0)
    dataset.save_arrays(
        dataset.chunk_path(tmp_path, 0, ladders=False),
        waveforms=rng.integers(-999, 999, (2, CLIP_SAMPLES)).astype(np.int16),
        labels=np.zeros((2, len(LABELS)), np.float32),
        notes=np.array(["recorded anna|clean|0.000", "flite slt|clean|0.000"]),
    )

    def small(**options: Any) -> Any:
        return PretrainingConfig(**options, batch=1, excerpt_samples=8000)

    monkeypatch.setattr(commands, "PretrainingConfig", small)
    out = tmp_path / "wav2vec.pt"
    result = run("pretrain", "--data", tmp_path, "--output", out, "--steps", 2, "--full-precision")
    assert result.exit_code == 0, result.output
    assert "1 clean clips" in result.output
    assert "chance 3.71" in result.output  # log 41
    assert read_wav2vec(out).build().architecture == ARCHITECTURE


def test_export_refuses_other_files(tmp_path: Path) -> None:
    checkpoint, results = tmp_path / "x.pt", tmp_path / "results.json"
    checkpoint.write_text("nothing")
    results.write_text("{broken")
    out = tmp_path / "bundle"
    result = run("export", checkpoint, "--output", out)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "x.pt: not a checkpoint" in result.output
    save_nano(checkpoint, random_nano(), STANDARD, provenance())
    result = run("export", checkpoint, "--output", out, "--evaluation", results)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "results.json: not JSON" in result.output
    assert not out.exists()


def test_export_shows_the_measured_differences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Results for the card reach the exporter, and its measurements are printed."""
    asked: dict[str, Any] = {}

    class Shown:
        def table(self) -> str:
            return "a table"

    def export_nano(checkpoint: Path, out: Path, **options: Any) -> Shown:
        asked.update(options, checkpoint=checkpoint, out=out)
        return Shown()

    monkeypatch.setattr(commands, "export_nano", export_nano)
    checkpoint, results = tmp_path / "x.pt", tmp_path / "results.json"
    checkpoint.touch()
    results.write_text(json.dumps({"SRCC": "0.9"}))
    result = run("export", checkpoint, "--output", tmp_path / "b", "--evaluation",
                 results, "--force")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "a table" in result.output
    assert asked["evaluation"] == {"SRCC": "0.9"}
    assert asked["force"] is True
    assert len(asked["clips"]) > 3
