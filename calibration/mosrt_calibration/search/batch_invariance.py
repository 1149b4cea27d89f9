"""Independence: whether a view's score is the same whatever else is in its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.backends import Backend, OrtBackend
from mosrt.bundle.manifest import Variant
from mosrt.errors import MosrtError
from mosrt_calibration.clips import Clip
from mosrt_calibration.scoring import ModelUnderTest

__all__ = ["BatchInvarianceError", "fixed_batch"]

_BATCH: Final = 4

Feeds = Mapping[str, NDArray[Any]]


class BatchInvarianceError(MosrtError, RuntimeError):
    """A variant does not even repeat itself."""


class _EnoughError(Exception):
    """Enough views were seen."""


class _Capture:
    """A backend that keeps what it is fed, and answers nothing of use."""

    provider = "cpu"
    batch_size = 1

    def __init__(self) -> None:
        self.seen: list[dict[str, NDArray[Any]]] = []

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Keeps a copy; see `mosrt.backends.Backend`."""
        del outputs
        self.seen.append({name: value.copy() for name, value in feeds.items()})
        raise _EnoughError

    def close(self) -> None:
        """Nothing to release."""


def fixed_batch(tested: ModelUnderTest, variant: Variant, clips: Sequence[Clip]) -> int | None:
    """Views per run on which a variant must be run for a view's score to be its own.

    The same views are run alone, together, and once more. A model that scores by its uncertainty
    hears one piece at a time, and need only repeat itself.

    Returns:
        None if results are bit-identical alone and in a batch; else 1.

    Raises:
        BatchInvarianceError: The same run twice gives two results.
    """
    if tested.manifest.uncertainty is not None:
        with tested.scorer(variant) as scorer:
            once, twice = (scorer.score_file(clips[0].path).measures for _ in range(2))
        _check_repeats(once == twice)
        return None
    views = [_view(tested, clip) for clip in clips[:_BATCH]]
    views += [views[-1]] * (_BATCH - len(views))
    backend: Backend = OrtBackend(
        tested.directory,
        variant,
        inputs=tested.manifest.inputs,
        outputs=tested.manifest.outputs,
        provider="cpu",
        threads=tested.threads,
    )
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
            "the same clip twice gives two scores; nothing was written. Try --threads 1, and "
            "another version of onnxruntime"
        )


def _view(tested: ModelUnderTest, clip: Clip) -> Feeds:
    """The first view of a clip, a batch of one."""
    capture = _Capture()
    with (
        tested.probed(tested.reference.members[0], capture) as scorer,
        contextlib.suppress(_EnoughError),
    ):
        tested.score_clip(scorer, clip)
    return capture.seen[0]
