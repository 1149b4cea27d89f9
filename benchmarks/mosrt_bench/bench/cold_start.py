"""Cold start: fresh processes that import mosrt, load a model and score their first clip.

While one runs, all GPUs' memory is watched from outside, so that the process needs neither torch
nor CUDA for it, and what libraries and the context take counts too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt_bench.energy.nvml import Nvml
from mosrt_bench.errors import BenchError
from mosrt_bench.worker.device import MemoryPeak, UsedBytes

from .configurations import Contestant

__all__ = ["cold_starts", "device_memory"]

_ON_NVIDIA: Final = ("cuda", "tensorrt", "tensorrt-ep")

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


def device_memory(nvml: Nvml | None = None) -> tuple[UsedBytes | None, list[str]]:
    """What tells the memory in use on all GPUs together, or why nothing does.

    Args:
        nvml: The library to ask; the system's by default.
    """
    try:
        library = Nvml() if nvml is None else nvml

        def used_bytes() -> int:
            return sum(library.used_bytes(gpu) for gpu in range(library.n_gpus))

        used_bytes()
    except OSError as exc:
        return None, [f"device memory: {exc}"]
    return used_bytes, []


def cold_starts(
    contestants: Sequence[Contestant],
    clip: bytes,
    *,
    runs: int,
    used_bytes: UsedBytes | None = None,
) -> list[dict[str, Any]]:
    """Starts a process per contestant and round, in turn.

    Files are in the system's cache but the first time: what is measured is the program, not disks.

    Args:
        contestants: What to start.
        clip: A whole audio file.
        runs: Rounds.
        used_bytes: Tells the memory in use on the GPUs; None where nothing does.

    Returns:
        Rows with "contestant", "runs", medians "process_ms" (on the clock, from start to end),
        "import_ms", "load_ms", "first_score_ms" and "second_score_ms", the largest "peak_mb"
        (1e6 bytes; None where the system does not tell), and the largest "device_peak_mb" over
        what was in use before (None for providers of no NVIDIA GPU, and where nothing tells).
    """
    answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in contestants}
    with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
        file = Path(directory, "clip.wav")
        file.write_bytes(clip)
        for _ in range(runs):
            for contestant in contestants:
                answers[contestant.name].append(_start(contestant, file, used_bytes))
    return [_row(name, found) for name, found in answers.items()]


def _start(contestant: Contestant, clip: Path, used_bytes: UsedBytes | None) -> dict[str, Any]:
    arguments = (
        contestant.bundle.path,
        contestant.variant,
        contestant.provider,
        contestant.threads,
        clip,
    )
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    device_peak_mb = None
    with ExitStack() as stack:
        watch = None
        if used_bytes is not None and contestant.provider in _ON_NVIDIA:
            watch = stack.enter_context(MemoryPeak(used_bytes))
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        process_ms = 1e3 * (time.perf_counter() - started)
    if watch is not None:
        device_peak_mb = watch.peak_mb
    if done.returncode:
        raise BenchError(f"{contestant.name}: a fresh process failed: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "process": process_ms, "device_peak_mb": device_peak_mb}


def _row(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return float(np.median([answer[key] for answer in answers]))

    peaks = [answer["peak"] for answer in answers if answer["peak"] is not None]
    on_device = [a["device_peak_mb"] for a in answers if a["device_peak_mb"] is not None]
    return {
        "contestant": name,
        "runs": len(answers),
        "process_ms": median("process"),
        "import_ms": median("import"),
        "load_ms": median("load"),
        "first_score_ms": median("first"),
        "second_score_ms": median("second"),
        "peak_mb": max(peaks) / 1e6 if peaks else None,
        "device_peak_mb": max(on_device) if on_device else None,
    }
