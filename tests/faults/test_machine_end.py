"""How a run ends: signals at any moment, and misuse of the library."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mosrt
from tests.conftest import HANG_S

from .machines import CLIP

# What a shell starts in the background ignores SIGINT, and under nohup SIGHUP; so would children.
HEED = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "hasattr(signal, 'SIGHUP') and signal.signal(signal.SIGHUP, signal.SIG_DFL);"
)
COMMAND = (
    sys.executable,
    "-c",
    f"{HEED} from mosrt.cli.main import main; print(flush=True); main()",
)


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.4, 2.0])
def test_signals_while_importing_loading_and_scoring(
    name: str, status: int, after_s: float, tmp_path: Path
) -> None:
    target = tmp_path / "scores.csv"
    target.write_text("old")
    arguments = ["score", *[str(CLIP)] * 3000, "--format", "csv", "-o", str(target)]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the command is about to start
        time.sleep(after_s)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == status, errors
    assert b"Traceback" not in errors
    assert target.read_text() == "old"
    left = {path.name for path in tmp_path.iterdir()} - {"scores.csv"}
    assert left <= ({"scores.partial.csv"} if name == "SIGINT" else set())
    for each in left:  # what was done is kept beside the older file
        rows = (tmp_path / each).read_text().splitlines()
        assert f"{len(rows) - 1} of 3000 files are done" in errors.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_nohup_is_heeded() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from mosrt.cli.terminal import terminal\n"
        "with terminal():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize(
    "items",
    [str(CLIP), CLIP, CLIP.read_bytes(), bytearray(10), io.BytesIO(b"RIFF"), np.zeros(16_000)],
    ids=lambda value: type(value).__name__,
)
def test_one_recording_is_not_many(items: Any, tiny: Path) -> None:
    with mosrt.load(tiny) as scorer:
        for call in (scorer.score_many, scorer.iter_scores):
            with pytest.raises(TypeError, match="use score_file or score for one"):
                call(items)


def test_a_closed_scorer_says_so(tiny: Path) -> None:
    scorer = mosrt.load(tiny)
    lazy = scorer.iter_scores([CLIP])
    scorer.close()
    scorer.close()
    for use in (
        lambda: scorer.score(np.zeros(16_000), 16_000),
        lambda: scorer.score_file(CLIP),
        lambda: scorer.score_many([CLIP]),
        lambda: scorer.features(np.zeros(16_000), 16_000),
        lambda: next(lazy),
    ):
        with pytest.raises(mosrt.ClosedError, match="closed; load the model again"):
            use()
