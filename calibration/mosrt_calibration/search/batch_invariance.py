"""Tests whether a variant is batch-invariant: whether a view's score depends on its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Variant
from mosrt.errors import MosrtError
from mosrt_calibration.clips import Clip
from mosrt_calibration.scoring import ModelUnderTest

__all__ = ["BatchInvarianceError", "fixed_batch"]

_BATCH: Final = 4

Feeds = Mapping[str, Array]


class BatchInvarianceError(MosrtError, RuntimeError):
    """A variant does not give the same score twice."""


class _CapturedError(Exception):
    """The first view was captured."""


class _Capture:
    """A backend that keeps the first view that it is given, and stops there."""

    provider = "cpu"
    batch_size = 1

    def __init__(self) -> None:
        self.view: dict[str, Array] = {}

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Keeps a copy of the inputs; see `mosrt.backends.Backend`."""
        del outputs
        self.view = {name: value.copy() for name, value in feeds.items()}
        raise _CapturedError

    def close(self) -> None:
        """Nothing to release."""


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
    if tested.manifest.uncertainty is not None:
        with tested.scorer(variant) as scorer:
            once, twice = (scorer.score_file(clips[0].path).measures for _ in range(2))
        _check_repeats(once == twice)
        return None
    views = [_view(tested, clip) for clip in clips[:_BATCH]]
    views += [views[-1]] * (_BATCH - len(views))
    backend = tested.backend(variant)
    output = tested.manifest.outputs[0].name
    try:
        alone = np.concatenate([backend.run(view, [output])[output] for view in views], axis=1)
        again = backend.run(views[0], [output])[output]
        batch = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
        together = backend.run(batch, [output])[output]
    finally:
        backend.close()
    _check_repeats(np.array_equal(alone[:, :1], again))
    return None if np.array_equal(alone, together) else 1


def _check_repeats(same: bool) -> None:
    if not same:
        raise BatchInvarianceError(
            "the same clip gives two scores; nothing was written. Try --threads 1 or another "
            "version of onnxruntime"
        )


def _view(tested: ModelUnderTest, clip: Clip) -> Feeds:
    """The first view of a clip, as a batch of one."""
    capture = _Capture()
    with (
        tested.probed(tested.reference.members[0], capture) as scorer,
        contextlib.suppress(_CapturedError),
    ):
        tested.score_clip(scorer, clip)
    return capture.view
