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
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt_bench.errors import WorkerError, WorkerTimeoutError
from mosrt_bench.worker.device import MemoryPeak, UsedBytes

from .configurations import Configuration

__all__ = ["ColdStarts"]

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
plan, views = options["plan"], options["views"]
plan = {} if plan is None and views is None else {"plan": plan or "grid", "views": views}
names = "variant", "provider", "threads"
scorer = mosrt.load(Path(options["bundle"]), **{name: options[name] for name in names})
def score():
    scorer.score_file(clip, **plan)
""",
)
_OF_TORCH: Final = _PROGRAM.format(
    imports="from mosrt_bench.worker.worker import open_runner\nimport torch, librosa",
    load="""
runner = open_runner(options)
def score():
    runner.time(clip)
""",
)


class ColdStarts:
    """Fresh processes of several configurations, and what they took.

    Files are in the system's cache after the first: this measures the program, not the disk.

    Args:
        clip: An audio file.
        used_bytes: Gives the memory in use on the GPUs; None where nothing does.
        limit_s: Gives the longest time for the next process, in seconds; None for no limit.
    """

    def __init__(
        self,
        clip: Path,
        *,
        used_bytes: UsedBytes | None = None,
        limit_s: Callable[[], float] | None = None,
    ) -> None:
        self._clip = clip
        self._used_bytes = used_bytes
        self._limit_s = limit_s
        self._answers: dict[str, list[dict[str, Any]]] = {}

    def start(self, configuration: Configuration) -> None:
        """Runs one process to its end.

        Raises:
            WorkerError: It failed, or did not end in time.
        """
        limit_s = None if self._limit_s is None else self._limit_s()
        used_bytes = self._used_bytes if configuration.on_nvidia else None
        program = _OF_TORCH if configuration.is_torch else _OF_MOSRT
        options = json.dumps(configuration.options())
        with nullcontext() if used_bytes is None else MemoryPeak(used_bytes) as watch:
            started = time.perf_counter()
            try:
                done = subprocess.run(
                    [sys.executable, "-c", program, options, str(self._clip)],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=limit_s,
                )
            except subprocess.TimeoutExpired:
                raise WorkerTimeoutError(
                    f"a fresh process did not end within {limit_s:.0f} s"
                ) from None
            process_ms = 1e3 * (time.perf_counter() - started)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it wrote no message"]
            raise WorkerError(
                f"a fresh process ended with status {done.returncode}: {lines[-1].strip()}"
            )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        device_peak_mb = None if watch is None else watch.peak_mb
        answer |= {"process_ms": process_ms, "device_peak_mb": device_peak_mb}
        self._answers.setdefault(configuration.name, []).append(answer)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a report, JSON-ready.

        Returns:
            Rows with "contestant", "runs", medians "process_ms" (from start to end), "import_ms",
            "load_ms", "first_score_ms" and "second_score_ms", the largest "peak_mb" (1e6 bytes;
            None where the system does not tell), and the largest "device_peak_mb" over what was in
            use before (None without an NVIDIA GPU, and where nothing tells).
        """
        return [_row(name, answers) for name, answers in self._answers.items()]


def _row(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"contestant": name, "runs": len(answers)}
    for key in ("process_ms", "import_ms", "load_ms", "first_score_ms", "second_score_ms"):
        row[key] = float(np.median([answer[key] for answer in answers]))
    for key in ("peak_mb", "device_peak_mb"):
        row[key] = max((a[key] for a in answers if a[key] is not None), default=None)
    return row
