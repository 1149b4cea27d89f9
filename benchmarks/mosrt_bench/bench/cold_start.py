"""Start fresh processes that import a library, load a model and score their first clip.

While one runs, the memory of all GPUs is read from outside, so that the memory of libraries and of
the CUDA context counts too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt_bench.errors import WorkerError, WorkerTimeoutError
from mosrt_bench.worker.device import UsedBytes, memory_peak
from mosrt_bench.worker.protocol import Configuration

__all__ = ["cold_start", "cold_start_row"]

_PROGRAM: Final = """
import json, sys, time
from pathlib import Path
begun = time.perf_counter()
{imports}
imported = time.perf_counter()
options, clip = json.loads(sys.argv[1]), Path(sys.argv[2])
{load}
loaded = time.perf_counter()
score()
first = time.perf_counter()
score()
second = time.perf_counter()
from mosrt_bench.worker.worker import peak_mb
print(json.dumps({{"import_ms": 1e3 * (imported - begun), "load_ms": 1e3 * (loaded - imported),
    "first_score_ms": 1e3 * (first - loaded), "second_score_ms": 1e3 * (second - first),
    "peak_mb": peak_mb()}}))
"""
_OF_MOSRT: Final = _PROGRAM.format(
    imports="import mosrt",
    load="""
plan = {name: options[name] for name in ("plan", "views")}
names = "variant", "provider", "threads"
scorer = mosrt.load(Path(options["bundle"]), **{name: options[name] for name in names})
def score():
    scorer.score_file(clip, **plan)
""",
)
_OF_TORCH: Final = _PROGRAM.format(
    imports="""
from mosrt_bench.worker.protocol import Configuration
from mosrt_bench.worker.worker import open_runner
import torch, librosa
""",
    load="""
runner = open_runner(Configuration(**options))
def score():
    runner.time(clip)
""",
)


def cold_start(
    configuration: Configuration,
    clip: Path,
    *,
    used_bytes: UsedBytes | None = None,
    limit_s: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Runs one process to its end; files are in the system's cache after the first.

    Args:
        configuration: What it loads.
        clip: An audio file, which it scores twice.
        used_bytes: Gives the memory in use on the GPUs; None where nothing does.
        limit_s: Gives the longest time that it may take, in seconds; None for no limit.

    Returns:
        What `cold_start_row` takes.

    Raises:
        WorkerError: It failed, or did not end in time.
    """
    longest_s = None if limit_s is None else limit_s()
    program = _OF_TORCH if configuration.is_torch else _OF_MOSRT
    options = json.dumps(asdict(configuration))
    used_bytes = used_bytes if configuration.on_nvidia else None
    with nullcontext() if used_bytes is None else memory_peak(used_bytes) as peak_mb:
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-c", program, options, str(clip)],
                capture_output=True,
                text=True,
                check=False,
                timeout=longest_s,
            )
        except subprocess.TimeoutExpired:
            raise WorkerTimeoutError(
                f"a fresh process did not end within {longest_s:.0f} s"
            ) from None
        process_ms = 1e3 * (time.perf_counter() - started)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it wrote no message"]
        raise WorkerError(
            f"a fresh process ended with status {done.returncode}: {lines[-1].strip()}"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    device_peak_mb = None if peak_mb is None else peak_mb()
    return {**answer, "process_ms": process_ms, "device_peak_mb": device_peak_mb}


def cold_start_row(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a report keeps of a configuration's fresh processes; REPORT.md describes it."""
    row: dict[str, Any] = {"contestant": name, "runs": len(answers)}
    for key in ("process_ms", "import_ms", "load_ms", "first_score_ms", "second_score_ms"):
        row[key] = float(np.median([answer[key] for answer in answers]))
    for key in ("peak_mb", "device_peak_mb"):
        row[key] = max((a[key] for a in answers if a[key] is not None), default=None)
    return row
