"""Tests whether a variant gives the same scores alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.bundle.manifest import Variant
from mosrt.crops import PlanRule
from mosrt.errors import MosrtError
from mosrt.mos.scorer import FusionFrontEnd
from mosrt_calibration.clips import Clip
from mosrt_calibration.scoring import ModelUnderTest

__all__ = ["BatchInvarianceError", "fixed_batch"]

_BATCH: Final = 4


class BatchInvarianceError(MosrtError, RuntimeError):
    """A variant does not give the same score twice."""


def fixed_batch(tested: ModelUnderTest, variant: Variant, clips: Sequence[Clip]) -> int | None:
    """The batch size that a variant needs for scores that do not depend on the batch.

    Four views are run alone, as one batch, and the first once more. A model that measures
    uncertainty runs one chunk at a time, and only has to give the same result twice.

    Args:
        tested: The model under test.
        variant: Variant of the model, with files below `tested.directory`.
        clips: Clips that the views are taken from.

    Returns:
        None if results are bit-identical alone and in a batch, 1 otherwise.

    Raises:
        BatchInvarianceError: Two runs of the same input give different results.
    """
    if tested.is_uncertainty:
        with tested.scorer(variant) as scorer:
            once, twice = (scorer.score_file(clips[0].path).measures for _ in range(2))
        repeats, invariant = once == twice, True
    else:
        repeats, invariant = _compare_views(tested, variant, clips)
    if not repeats:
        raise BatchInvarianceError(
            "the same clip gives two scores; nothing was written. Try --threads 1 or another "
            "version of onnxruntime"
        )
    return None if invariant else 1


def _compare_views(
    tested: ModelUnderTest, variant: Variant, clips: Sequence[Clip]
) -> tuple[bool, bool]:
    """Whether a view gives the same results twice, and views alone those of a batch."""
    views = [_view(tested, clip) for clip in clips[:_BATCH]]
    views += [views[-1]] * (_BATCH - len(views))
    batch = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
    output = tested.manifest.outputs[0].name
    backend = tested.backend(variant)
    try:
        alone, again, together = (
            np.concatenate([backend.run(feeds, [output])[output] for feeds in runs], axis=1)
            for runs in (views, views[:1], [batch])
        )
    finally:
        backend.close()
    return np.array_equal(alone[:, :1], again), np.array_equal(alone, together)


def _view(tested: ModelUnderTest, clip: Clip) -> dict[str, Float32Array]:
    """One view of a clip, as a batch of one."""
    front_end = FusionFrontEnd(tested.manifest)
    recording = Recording(FileSource(clip.path), tested.manifest.sample_rate_hz)
    plan = PlanRule(kind="grid", views=1).plan(recording.n_samples, front_end.geometry)
    (view,) = front_end.views(recording, plan)
    return {name: value[np.newaxis] for name, value in view.items()}
