"""Study how many views are enough.

The public code draws its crops at random, so its score is a random variable; the plan
`reference:SEED` reproduces its draws. A grid takes evenly spaced crops and always gives the same
score. Both are compared with what the public code converges to: the mean over many seeds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.crops import PlanRule
from mosrt.score import t_95
from mosrt.scorer import Scorer
from mosrt_bench.clips import AudioFile
from mosrt_bench.errors import BenchError

__all__ = ["study_views"]


def study_views(
    scorer: Scorer, clips: Sequence[AudioFile], *, seeds: int, max_views: int, wanted: float
) -> dict[str, Any]:
    """Compares `reference` draws with grids of 1 to `max_views` views.

    Args:
        scorer: A MOS model with crops.
        clips: What to score; clips that cannot be scored are left out.
        seeds: Draws of the reference.
        max_views: Most views of a grid.
        wanted: Half-width of a 95 % interval that is narrow enough, in MOS.

    Returns:
        What REPORT.md describes under "estimator". The half-width of one view is None, and
        "recommended_views" is None if even the most views are too few.

    Raises:
        BenchError: The model has no crops, or no clip can be scored.
    """
    if scorer.manifest.uncertainty is not None:
        raise BenchError(f"{scorer.manifest.name} scores whole recordings and has no views")
    drawn, used = [], []
    reference_s = 0.0
    for clip in clips:
        started = time.perf_counter()
        score = scorer.score_file(clip.path, plan=PlanRule(kind="reference", views=seeds))
        if score.n_views == 0:
            continue
        reference_s += time.perf_counter() - started
        drawn.append(_by_view(score.views, seeds))
        used.append(clip)
    if not used:
        raise BenchError("no clip of the set can be scored")
    draws = np.array(drawn)
    targets = draws.mean(axis=1)
    rows: list[dict[str, Any]] = []
    for views in range(1, max_views + 1):
        started = time.perf_counter()
        found = [scorer.score_file(c.path, plan=PlanRule(views=views)) for c in used]
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        per_view = np.array([_by_view(score.views, views) for score in found])
        difference = per_view.mean(axis=1) - targets
        half_width = None
        if views > 1:
            deviation = np.median(per_view.std(axis=1, ddof=1))
            half_width = float(t_95(views - 1) * deviation / np.sqrt(views))
        rows.append(
            {
                "views": views,
                "bias": float(difference.mean()),
                "sd": float(difference.std(ddof=1)) if len(used) > 1 else None,
                "half_width": half_width,
                "ms": elapsed_ms / len(used),
            }
        )
    enough = (r["views"] for r in rows if r["half_width"] is not None and r["half_width"] <= wanted)
    spread = draws.std(axis=1, ddof=1)
    return {
        "model": scorer.manifest.name,
        "clips": len(used),
        "seeds": seeds,
        "wanted_half_width": wanted,
        "reference": {
            "sd": float(np.sqrt(np.mean(np.square(spread)))),
            "largest_sd": float(spread.max()),
            # standard error of the target itself
            "target_sd": float(np.sqrt(np.mean(np.square(spread)) / seeds)),
            "ms": 1e3 * reference_s / (len(used) * seeds),
        },
        "grid": rows,
        "recommended_views": next(enough, None),
    }


def _by_view(values: Sequence[float], views: int) -> FloatArray:
    """Mean over networks of each view; a score lists the first network's views first."""
    means: FloatArray = np.asarray(values).reshape(-1, views).mean(axis=0)
    return means
