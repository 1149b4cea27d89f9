"""What long recordings take of memory, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# VmHWM is this process's own peak; ru_maxrss starts at that of the process it was forked from
LONG_SCRIPT = """
import sys
import numpy as np, soundfile
import mosrt
def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
path, bundle, minutes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(0)
with soundfile.SoundFile(path, "w", 16_000, 1, subtype="PCM_16") as file:
    for _ in range(minutes):
        file.write(rng.normal(0, 0.1, 60 * 16_000))
with mosrt.load(bundle, threads=1) as scorer:
    scorer.score(np.ones(320_000) * rng.normal(0, 0.1, 320_000), 16_000)
    before = peak_bytes()
    score = scorer.score_file(path)
    after = peak_bytes()
print(score.n_views, before, after)
"""


def run_long(path: Path, bundle: Path, minutes: int) -> list[int]:
    script = [sys.executable, "-c", LONG_SCRIPT, str(path), str(bundle), str(minutes)]
    run = subprocess.run(script, capture_output=True, check=True, text=True)
    return [int(number) for number in run.stdout.split()]


def changed(bundle: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the bundle with another manifest."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def paper_only(manifest: dict[str, Any]) -> None:
    """Without what takes time for every pair of frames."""
    manifest["uncertainty"] |= {"layouts": ["paper"], "measure": "paper.entropy"}
    manifest["variants"]["fp32"]["members"].pop()


def two_steps(manifest: dict[str, Any]) -> None:
    """A sixth of the time; logits exist a block at a time, of which two steps give four a chunk."""
    manifest["uncertainty"]["contrast"]["n_steps"] = 2


def test_long_audio_needs_no_more_memory_than_a_chunk(tiny_wav2vec: Path, tmp_path: Path) -> None:
    """Beyond ten minutes recordings are not kept: what ten minutes take is all that is added."""
    model = changed(tiny_wav2vec, tmp_path / "model", paper_only)
    n_chunks, before, after = run_long(tmp_path / "long.wav", model, 15)
    assert n_chunks == 46
    ten_minutes = 600 * 16_000 * 4
    assert after - before < 2.5 * ten_minutes


@pytest.mark.full
def test_an_hour(tiny_wav2vec: Path, tmp_path: Path) -> None:
    """With every layout; the model here is tiny, so that this is the runtime's own need."""
    model = changed(tiny_wav2vec, tmp_path / "model", two_steps)
    n_chunks, _, peak = run_long(tmp_path / "hour.wav", model, 60)
    assert n_chunks == 181
    assert peak < 0.6e9
