"""Tests that commands import little before they run, and name what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from mosrt.cli.command import ExitStatus
from mosrt_export.distill.data.clips import CLIP_SAMPLES
from mosrt_export.nano import pretraining, voices
from mosrt_export.nano.cli import nano
from mosrt_export.nano.pretraining import ARCHITECTURE, PretrainingConfig
from mosrt_export.nano.voices import Voice, VoiceError, synthetic_voices
from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec

COMMANDS = ("voices", "pretrain")


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
        "python -m mosrt_export.nano voices -o",
        "mosrt distill bvcc=",
        "pip install 'mosrt[train]'",
        "--reduced",
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
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
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


def test_missing_programs_stop_it_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("voices", "--output", tmp_path / "voices")
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "is missing: install the system package" in result.output
    assert not (tmp_path / "voices").exists()


def test_a_voice_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []

    def write(voice: Voice, seed: int, out: Path) -> None:
        assert (seed, out) == (5, tmp_path / "voices")
        written.append(voice.name)
        if voice.name == "flite kal":
            raise VoiceError(f"{voice.name} failed")

    monkeypatch.setattr(voices, "missing_programs", lambda _voices: {})
    monkeypatch.setattr(voices, "write_utterances", write)
    given = ("voices", "--output", tmp_path / "voices", "--seed", 5, "--workers", 1)
    result = run(*given)
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "flite kal failed" in result.output
    written.clear()
    monkeypatch.setattr(voices, "write_utterances", lambda voice, *_: written.append(voice.name))
    assert run(*given).exit_code == 0
    # Held-out voices are synthesised, too: the student is tested on them.
    assert sorted(written) == sorted(voice.name for voice in synthetic_voices())


def test_no_data_is_an_error(tmp_path: Path) -> None:
    result = run("pretrain", "--data", tmp_path, "--output", tmp_path / "x.pt")
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "run `mosrt distill` first" in result.output
    result = run("pretrain", "--data", tmp_path, "--output", tmp_path / "none" / "x.pt")
    assert "does not exist; create it first" in result.output
    assert not list(tmp_path.glob("*.pt"))


def test_pretraining_writes_what_export_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    waveforms = rng.integers(-999, 999, (2, CLIP_SAMPLES)).astype(np.int16)
    np.save(tmp_path / "clips-00000.waveforms.npy", waveforms)
    np.savez(
        tmp_path / "clips-00000.npz",
        notes=np.array(["anna|clean|0.000", "flite-diphone/kal16|clean|0.000"]),
    )

    def small(**options: Any) -> Any:
        return PretrainingConfig(**options, batch=1, excerpt_samples=8000)

    monkeypatch.setattr(pretraining, "PretrainingConfig", small)
    out = tmp_path / "wav2vec.pt"
    result = run("pretrain", "--data", tmp_path, "--output", out, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "nats, accuracy" in result.output
    assert read_wav2vec(out).build().architecture == ARCHITECTURE
    facts = torch.load(out, weights_only=False)["provenance"]
    assert (facts["clips"], facts["steps"], facts["seed"]) == (1, 2, 7)
