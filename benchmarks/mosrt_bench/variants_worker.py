"""A contestant of `mosrt_bench.variants` in a process of its own.

It imports no more than it needs, since its start is timed and its memory measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt import CropGeometry, CropPlan, PlanRule, load

__all__ = ["BASELINE", "RATE_HZ"]

Float32Array = npt.NDArray[np.float32]

BASELINE: Final = "torch and librosa"
RATE_HZ: Final = 16_000


def serve(kind: str, options: dict[str, Any]) -> None:
    """Scores the clip whose number each line of input gives.

    Args:
        kind: `BASELINE`, or anything else for mosrt.
        options: What to load, how many threads, and the file of clips.
    """
    clips = np.load(options["clips"])
    plan = PlanRule.parse("grid", 1).plan(clips.shape[1], CropGeometry())
    run = (_torch if kind == BASELINE else _mosrt)(options, plan)
    for line in sys.stdin:
        started = time.perf_counter()
        mos = run(clips[int(line)])
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        answer = {"ms": elapsed_ms, "mos": mos, "peak_mb": _own_peak_mb()}
        print(json.dumps(answer), flush=True)


def _mosrt(options: dict[str, Any], plan: CropPlan) -> Callable[[Float32Array], float | None]:
    scorer = load(
        options["bundle"],
        variant=options["variant"],
        provider=options["provider"],
        threads=options["threads"],
    )
    return lambda clip: scorer.score(clip, RATE_HZ, plan=plan).mos


def _torch(options: dict[str, Any], plan: CropPlan) -> Callable[[Float32Array], float]:
    from mosrt.bundle.bundle import Bundle  # noqa: PLC0415

    from .bench.torch_baseline import TorchBaseline  # noqa: PLC0415

    manifest = Bundle.open(options["bundle"]).manifest
    checkpoint = options["checkpoint"]
    baseline = TorchBaseline(
        None if checkpoint is None else Path(checkpoint), manifest, threads=options["threads"]
    )
    return lambda clip: baseline.score(clip, RATE_HZ, plan)


def _own_peak_mb() -> float:
    """Peak resident memory of this program in MB (1e6 bytes); Linux only.

    The kernel's own account, which a new program starts afresh: getrusage would also count the
    peak of the process that started it.
    """
    with Path("/proc/self/status").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    serve(sys.argv[2], json.loads(sys.argv[3]))
