"""Cold start: fresh processes that import mosrt, load a model and score their first clip."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from .contestants import BenchError, Contestant

__all__ = ["cold_starts"]

# The kernel's own account of this program's peak, which a new program starts afresh; where there
# is none, getrusage's, in kilobytes on Linux and bytes on macOS.
_PROGRAM: Final = """
import sys, time
begun = time.perf_counter()
import mosrt
imported = time.perf_counter()
path, variant, provider, threads, clip = sys.argv[1:]
from pathlib import Path
scorer = mosrt.load(Path(path), variant=variant, provider=provider, threads=int(threads))
loaded = time.perf_counter()
scorer.score_file(clip)
first = time.perf_counter()
scorer.score_file(clip)
second = time.perf_counter()
try:
    with open("/proc/self/status") as file:
        peak = int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024
except (OSError, StopIteration):
    try:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    except ImportError:
        peak = None
import json
print(json.dumps({"import": 1e3 * (imported - begun), "load": 1e3 * (loaded - imported),
    "first": 1e3 * (first - loaded), "second": 1e3 * (second - first), "peak": peak}))
"""


def cold_starts(
    contestants: Sequence[Contestant], clip: bytes, *, runs: int
) -> list[dict[str, Any]]:
    """Starts a process per contestant and round, in turn.

    Files are in the system's cache but the first time: what is measured is the program, not disks.

    Args:
        contestants: What to start.
        clip: A whole audio file.
        runs: Rounds.

    Returns:
        Rows with "contestant", "runs", medians "process_ms" (on the clock, from start to end),
        "import_ms", "load_ms", "first_score_ms" and "second_score_ms", and the largest "peak_mb"
        (1e6 bytes; None where the system does not tell).
    """
    answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in contestants}
    with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
        file = Path(directory, "clip.wav")
        file.write_bytes(clip)
        for _ in range(runs):
            for contestant in contestants:
                answers[contestant.name].append(_start(contestant, file))
    return [_row(name, found) for name, found in answers.items()]


def _start(contestant: Contestant, clip: Path) -> dict[str, Any]:
    arguments = (
        contestant.bundle.path,
        contestant.variant,
        contestant.provider,
        contestant.threads,
        clip,
    )
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    process_ms = 1e3 * (time.perf_counter() - started)
    if done.returncode:
        raise BenchError(f"{contestant.name}: a fresh process failed: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "process": process_ms}


def _row(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return float(np.median([answer[key] for answer in answers]))

    peaks = [answer["peak"] for answer in answers if answer["peak"] is not None]
    return {
        "contestant": name,
        "runs": len(answers),
        "process_ms": median("process"),
        "import_ms": median("import"),
        "load_ms": median("load"),
        "first_score_ms": median("first"),
        "second_score_ms": median("second"),
        "peak_mb": max(peaks) / 1e6 if peaks else None,
    }
