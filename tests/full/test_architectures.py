"""The embedded models on another processor, under an emulator.

MOSRT_TEST_AARCH64 names the Python of an aarch64 environment with mosrt's dependencies; the program
qemu-aarch64 runs it. Where either is missing the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

import mosrt
from tests.conftest import DATA

pytestmark = pytest.mark.full

_EMULATOR: Final = shutil.which("qemu-aarch64")
_PYTHON: Final = os.environ.get("MOSRT_TEST_AARCH64")
_CLIPS: Final = (
    "flite_kal_8k_mono.wav",
    "flite_slt_16k_mono.wav",
    "espeak_fr_16k_stereo.ogg",
)
_PROGRAM: Final = """
import json, platform, sys
import mosrt
model, *clips = sys.argv[1:]
with mosrt.load(model, provider="cpu", threads=1) as scorer:
    scores = [scorer.score_file(clip) for clip in clips]
    again = scorer.score_many(clips[::-1])[::-1]
values = [score.measures.get("uncertainty", score.mos) for score in scores]
print(json.dumps({"machine": platform.machine(), "values": values,
    "repeats": values == [score.measures.get("uncertainty", score.mos) for score in again]}))
"""


@pytest.mark.skipif(_EMULATOR is None, reason="needs qemu-aarch64")
@pytest.mark.skipif(_PYTHON is None, reason="needs an aarch64 Python, named by MOSRT_TEST_AARCH64")
@pytest.mark.parametrize("model", ["nano", "nano-uncertainty"])
def test_scores_are_those_of_this_machine(model: str) -> None:
    """Sums in another order round differently; a score repeats itself bit by bit."""
    clips = [str(DATA / name) for name in _CLIPS]
    command = [str(_EMULATOR), str(_PYTHON), "-c", _PROGRAM, model, *clips]
    environment = {**os.environ, "PYTHONPATH": str(Path(mosrt.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    there: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert there["machine"] == "aarch64"
    assert there["repeats"]
    with mosrt.load(model, provider="cpu", threads=1) as scorer:
        scores = [scorer.score_file(clip) for clip in clips]
    here = [score.measures.get("uncertainty", score.mos) for score in scores]
    assert there["values"] == pytest.approx(here, rel=1e-3)
