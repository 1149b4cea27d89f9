"""Tests a whole distillation, here of the embedded model, and the command."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner, Result
from scipy.stats import pearsonr, rankdata

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.cli.command import EXTRAS, ExitStatus
from mosrt_export.cli import distill as command
from mosrt_export.distill.distillation import agreement
from mosrt_export.distill.train.exporting import fidelity_table
from tests.conftest import HANG_S
from tests.standins.nano import recordings

RECIPE = """
hours = 0.02
test_hours = 0.02
chunk_clips = 4
batch = 8
[[stages]]
name = "training"
epochs = 2.0
ladders = 1
[[stages]]
name = "tuning"
epochs = 1.0
ladders = 1
microphones = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three speakers, and a recipe that takes seconds."""
    folder = tmp_path_factory.mktemp("distill")
    recordings(folder / "audio", ["anna", "bert", "carl"])
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


def run(folder: Path, *arguments: object, output: str = "student") -> Result:
    given = ["--audio", folder / "audio", "--output", folder / output,
             "--recipe", folder / "tiny.toml", "--workers", 1, *arguments]  # fmt: skip
    return CliRunner().invoke(command.distill, [*map(str, given)])


@pytest.fixture(scope="module")
def student(folder: Path) -> Path:
    result = run(folder, "base=nano")
    assert result.exit_code == 0, result.output
    assert "| held-out speakers (16) | base |" in result.output
    assert "times the student's time" in result.output
    return folder / "student"


@pytest.mark.full
def test_a_student_scores_and_says_how_well(student: Path) -> None:
    bundle = Bundle.open(student)
    bundle.verify()
    assert bundle.manifest.domains == ("base",)
    provenance = bundle.manifest.provenance
    assert set(provenance["fidelity"]) == {"held-out recordings", "held-out speakers"}
    for domains in provenance["fidelity"].values():
        assert set(domains["base"]) == {"lcc", "srcc", "mae", "clips"}
        assert domains["base"]["mae"] < 4
    sizes = [
        sum(file.stat().st_size for file in Path(path).glob("model.*"))
        for path in (find_bundle("nano"), student)
    ]
    larger = provenance["cost"]["base=nano"]["times_larger"]
    assert larger == pytest.approx(sizes[0] / sizes[1], rel=0.05)
    assert provenance["training"]["speakers"] == 2
    assert "base" in bundle.model_card()
    with mosrt.load(student, threads=1) as scorer:
        noise = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
        assert math.isfinite(scorer.score(noise, 16_000).mos)


@pytest.mark.full
def test_the_interval_holds_95_percent_of_what_was_held_out(folder: Path, student: Path) -> None:
    """Of 32 clips, all but the two that are furthest off for their predicted deviation."""
    inside = []
    with mosrt.load(student, threads=1) as scorer:
        for path in sorted((folder / "student.data").glob("*.waveforms.npy")):
            part = path.name.partition(".")[0]
            if not part.startswith(("recordings", "speakers")):
                continue
            (labels,) = path.parent.glob(f"{part}.*.default.npy")
            clips = np.load(path).astype(np.float32) / 32_768
            for clip, label in zip(clips, np.load(labels)[:, 0], strict=True):
                score = scorer.score(clip, 16_000)
                inside.append(score.low <= label <= score.high)
    assert (len(inside), sum(inside)) == (32, 30)


@pytest.mark.full
@pytest.mark.parametrize("broken_in", ["clips and labels", "tuning", "test"])
def test_a_resumed_run_equals_an_undisturbed_one(
    broken_in: str, folder: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs and weights are the same bytes, wherever the run was interrupted."""
    show = command.ProgressLines.__call__

    def breaks(
        self: command.ProgressLines, step: str, done: float, loss: float | None = None
    ) -> None:
        show(self, step, done, loss)
        if step == broken_in:
            raise KeyboardInterrupt

    name = broken_in.replace(" ", "-")
    with monkeypatch.context() as patch:
        patch.setattr(command.ProgressLines, "__call__", breaks)
        result = run(folder, "base=nano", output=name)
    assert result.exit_code == ExitStatus.INTERRUPTED
    assert not (folder / name).exists()
    result = run(folder, "base=nano", output=name)
    assert result.exit_code == 0, result.output
    for file in ("model.fp32.onnx", "model.fp32.onnx.data"):
        assert (folder / name / file).read_bytes() == (student / file).read_bytes()
    fidelity = [
        json.loads((path / "manifest.json").read_text())["provenance"]["fidelity"]
        for path in (student, folder / name)
    ]
    assert fidelity[0] == fidelity[1]


KILLED = {
    "labels": """
from mosrt_export.distill.teachers import OpenTeacher, Teacher
whole = Teacher.open
def opened(self, **options):
    scores = whole(self, **options).scores
    return OpenTeacher(lambda waveform: (count(6), scores(waveform))[1])
Teacher.open = opened
""",
    "training": """
from mosrt_export.distill.data.batches import Dataset
whole = Dataset.waveform_batch
Dataset.waveform_batch = lambda self, chosen: (count(3), whole(self, chosen))[1]
""",
}


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_run_ends_with_the_same_bytes(moment: str, folder: Path, student: Path) -> None:
    """Killed between a clip's label and the next, and between two steps of training."""
    code = f"""
import os, signal, sys
calls = []
def count(last):
    calls.append(0)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
{KILLED[moment]}
from mosrt_export.cli.distill import distill
distill(sys.argv[1:])
"""
    name = f"killed-{moment}"
    given = ["base=nano", "--audio", folder / "audio", "--output", folder / name,
             "--recipe", folder / "tiny.toml", "--workers", 1]  # fmt: skip
    killed = subprocess.run(
        [sys.executable, "-c", code, *map(str, given)], capture_output=True, timeout=HANG_S
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (folder / name).exists()
    result = run(folder, "base=nano", output=name)
    assert result.exit_code == 0, result.output
    for file in ("model.fp32.onnx", "model.fp32.onnx.data"):
        assert (folder / name / file).read_bytes() == (student / file).read_bytes()


def test_recordings_that_are_left_out_are_listed(folder: Path, tmp_path: Path) -> None:
    audio = tmp_path / "audio" / "dora"
    audio.mkdir(parents=True)
    for i in range(4):
        (audio / f"{i}.wav").write_bytes(b"not audio")
    sf.write(audio / "short.wav", np.ones(4_000), 16_000)
    sf.write(audio / "silent.wav", np.zeros(16_000), 16_000)
    result = run(folder, "nano", "--audio", tmp_path / "audio", "--device", "abacus")
    assert "left out" not in result.output  # what is wrong with the options comes first
    given = ["nano", "--audio", str(tmp_path / "audio"), "-o", str(tmp_path / "x")]
    result = CliRunner().invoke(command.distill, given)
    assert result.exit_code == ExitStatus.UNUSABLE
    dora = str(audio)
    assert (
        f"warning: left out, unreadable: 4 ({dora}/0.wav, {dora}/1.wav, {dora}/2.wav, …)"
        in result.output
    )
    assert f"warning: left out, shorter than 0.5 s: 1 ({dora}/short.wav)" in result.output
    assert f"warning: left out, silent: 1 ({dora}/silent.wav)" in result.output
    assert "none of 6 recordings can be used" in result.output
    assert not (tmp_path / "x.data").exists()


@pytest.mark.full
def test_an_older_bundle_is_not_replaced(folder: Path, student: Path) -> None:
    before = (student / "manifest.json").read_bytes()
    result = run(folder, "base=nano")
    assert result.exit_code == ExitStatus.UNUSABLE
    assert "--force" in result.output
    assert (student / "manifest.json").read_bytes() == before


def test_wrong_use_is_named_at_once(folder: Path, tmp_path: Path) -> None:
    for arguments, status, message in (
        ([], ExitStatus.USAGE, "TEACHER"),
        (["nobody"], ExitStatus.UNUSABLE, "no such bundle"),
        (["nano", "nano"], ExitStatus.UNUSABLE, "two teachers"),
        (["nano", "--recipe", "missing"], ExitStatus.UNUSABLE, "pass nano or a file"),
        (
            ["nano", "--evaluation", folder / "tiny.toml"],
            ExitStatus.UNUSABLE,
            "tiny.toml: not a JSON",
        ),
        (["nano", "--device", "abacus"], ExitStatus.UNUSABLE, "--device abacus cannot be used"),
    ):
        result = run(folder, *arguments, output="wrong")
        assert result.exit_code == status, result.output
        assert message in result.output
    assert not (folder / "wrong.data").exists()
    given = ["nano", "--audio", str(tmp_path), "-o", str(tmp_path / "x")]
    empty = CliRunner().invoke(command.distill, given)
    assert empty.exit_code == ExitStatus.UNUSABLE
    assert "no recordings" in empty.output


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mosrt_export.cli.distill import distill\n"
        "result = CliRunner().invoke(distill, ['--help'])\n"
        "assert result.exit_code == 0 and 'mosrt distill ./utmosv2' in result.output\n"
        "heavy = {'torch', 'onnx', 'librosa', 'scipy', 'pesq', 'numpy', 'onnxruntime'}\n"
        "print(sorted(heavy & {m.split('.')[0] for m in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mosrt_export.cli.distill import distill\n"
        f"distill(['nano', '--audio', {str(tmp_path)!r}, '-o', {str(tmp_path / 'x')!r}])"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == ExitStatus.UNUSABLE
    assert "pip install 'mosrt[train]'" in found.stderr
    assert "Traceback" not in found.stderr
    assert {"torch", "pesq", "pyworld", "librosa", "scipy"} <= EXTRAS["train"]


def test_agreement_is_scipys() -> None:
    """Spearman's is Pearson's of the ranks, ties shared; unknown labels are left out."""
    rng = np.random.default_rng(5)
    scores = np.round(rng.standard_normal((50, 2)), 1).astype(np.float32)
    labels = (scores + np.round(rng.standard_normal((50, 2)), 1)).astype(np.float32)
    labels[:7, 1] = np.nan
    found = agreement(scores, labels, ["a", "b"])
    rank: Callable[..., np.ndarray] = rankdata
    for domain, name in enumerate("ab"):
        known = ~np.isnan(labels[:, domain])
        a, b = scores[known, domain], labels[known, domain]
        assert found[name]["clips"] == known.sum()
        assert found[name]["lcc"] == pytest.approx(pearsonr(a, b)[0], abs=1e-4)
        assert found[name]["srcc"] == pytest.approx(pearsonr(rank(a), rank(b))[0], abs=1e-4)
        assert found[name]["mae"] == pytest.approx(float(np.abs(a - b).mean()), abs=1e-4)


def test_what_is_not_defined_is_none() -> None:
    """Not nan, which JSON does not have; and a card shows a dash."""
    scores = np.array([[1, 1], [1, 2], [1, 3]], np.float32)
    labels = np.array([[1, np.nan], [2, np.nan], [3, np.nan]], np.float32)
    found = agreement(scores, labels, ["equal", "unknown"])
    assert found["equal"] == {"lcc": None, "srcc": None, "mae": 1.0, "clips": 3}
    assert found["unknown"] == {"lcc": None, "srcc": None, "mae": None, "clips": 0}
    assert "| held out (3) | equal | - | - | 1.000 |" in fidelity_table({"held out": found})
