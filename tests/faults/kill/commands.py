"""The commands that write, each on a small bundle, with what makes its target complete."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from mosrt.bundle.bundle import Bundle
from tests.fakes import triton_server
from tests.standins.quantizable import convolutional, write_bundle

ROOT = Path(__file__).parents[2]
CLIPS = sorted((ROOT / "data").glob("*_*.*"))[:5]
TINY = ROOT / "standins" / "tiny"
WAV2VEC = ROOT / "standins" / "checkpoints" / "wav2vec.pt"
TINY_WAV2VEC = ROOT / "standins" / "tiny_wav2vec"


@dataclass(frozen=True)
class WritingCommand:
    """A command that writes one file or directory.

    Attributes:
        name: As in `mosrt NAME`.
        arguments: What follows `mosrt`, run in the workspace.
        target: What it writes, relative to the workspace.
        prepare: Fills an empty workspace with what the command reads, and the target's old state.
        check: Raises if the target is not a complete new one.
    """

    name: str
    arguments: tuple[str, ...]
    target: str
    prepare: Callable[[Path], None]
    check: Callable[[Path], None]


def _prepare_score(workspace: Path) -> None:
    (workspace / "scores.jsonl").write_text("an older file\n")


def _check_score(target: Path) -> None:
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == [clip.name for clip in CLIPS]


def _prepare_gate(workspace: Path) -> None:
    (workspace / "gate.json").write_text("{}")


def _check_gate(target: Path) -> None:
    recorded = json.loads(target.read_text())
    assert all(clip.name in json.dumps(recorded) for clip in CLIPS)


def _prepare_fit_mos(workspace: Path) -> None:
    shutil.copytree(TINY_WAV2VEC, workspace / "bundle")
    lines = [f"{clip},{mos}" for clip, mos in zip(CLIPS, (4.5, 3.1, 2.2, 1.4, 1.2), strict=True)]
    (workspace / "ratings.csv").write_text("\n".join(["path,mos", *lines]) + "\n")


def _check_fit_mos(target: Path) -> None:
    bundle = Bundle.open(target)
    bundle.verify()
    assert "mos_map" in (target / "manifest.json").read_text()


def _prepare_quantize(workspace: Path) -> None:
    write_bundle(workspace / "bundle", convolutional(n_blocks=2))
    rng = np.random.default_rng(0)
    (workspace / "speech").mkdir()
    for i in range(12):
        samples = rng.normal(0, 0.02 * (i + 1), 16_000 + 700 * i)
        soundfile.write(workspace / "speech" / f"{i}.wav", samples, 16_000)


def _check_quantize(target: Path) -> None:
    bundle = Bundle.open(target)
    bundle.verify()
    assert "int8-cpu" in bundle.manifest.variants


def _prepare_export(workspace: Path) -> None:
    shutil.copytree(TINY, workspace / "bundle")


def _check_export(target: Path) -> None:
    bundle = Bundle.open(target)
    bundle.verify()
    assert bundle.manifest.family == "wav2vec"


def _prepare_nothing(workspace: Path) -> None:
    del workspace


def _prepare_triton(workspace: Path) -> None:
    triton_server.made(workspace / "repository", "nano", "--cpu")


def _check_triton(target: Path) -> None:
    triton_server.Repository(target)
    assert "tiny" in (target / "README.md").read_text()


def _check_engines(target: Path) -> None:
    """A directory that engines are added to, one at a time: each is complete, or not there yet."""
    cached = [path.read_bytes() for path in target.parent.glob("cache/engines/*.engine")]
    for path in target.glob("*.engine"):  # a file that is being written has another name
        engine = path.read_bytes()
        assert engine
        assert any(each.endswith(engine) for each in cached)


_ONE_CLIP = ("--layout", "paper", "--measure", "paper.mean", "--parity-audio", str(CLIPS[0]))
# fmt: off
_QUICK = (
    "--variant", "int8-cpu", "--clips", "4", "--eval-clips", "8", "--method", "min-max",
    "--min-srcc", "-1", "--max-drift", "1", "--threads", "1",
)
# fmt: on

SCORE = WritingCommand(
    "score",
    ("score", *map(str, CLIPS), "-m", str(TINY), "--format", "jsonl", "-o", "scores.jsonl"),
    "scores.jsonl",
    _prepare_score,
    _check_score,
)
GATE = WritingCommand(
    "gate --update",
    (
        "gate",
        *map(str, CLIPS),
        "-m",
        str(TINY),
        "--baseline",
        "gate.json",
        "--update",
        "--views",
        "2",
    ),
    "gate.json",
    _prepare_gate,
    _check_gate,
)
FIT_MOS = WritingCommand(
    "fit-mos",
    ("fit-mos", "ratings.csv", "-m", "bundle", "--kind", "linear"),
    "bundle",
    _prepare_fit_mos,
    _check_fit_mos,
)
QUANTIZE = WritingCommand(
    "quantize",
    ("quantize", "bundle", "--audio", "speech", "--cache", "statistics", *_QUICK),
    "bundle",
    _prepare_quantize,
    _check_quantize,
)
EXPORT = WritingCommand(
    "export wav2vec",
    ("export", "wav2vec", str(WAV2VEC), "--force", "-o", "bundle", *_ONE_CLIP),
    "bundle",
    _prepare_export,
    _check_export,
)
BUILD = WritingCommand(
    "build",
    ("build", "nano", "--level", "0", "--opt-batch", "2", "-o", "engines"),
    "engines",
    _prepare_nothing,
    _check_engines,
)
TRITON = WritingCommand(
    "export triton",
    ("export", "triton", str(TINY), "--cpu", "--force", "-o", "repository"),
    "repository",
    _prepare_triton,
    _check_triton,
)

COMMANDS = (SCORE, GATE, FIT_MOS, QUANTIZE, EXPORT, BUILD, TRITON)
