"""wav2vec v1: predictions of future features compared with those of other frames.

Step s of context frame t predicts the features of frame u = t + o, where the horizon o is
first_horizon + s. The logits are dot products of the prediction with the features of frame u and of
distractor frames. A layout arranges them in rows:

- "contrastive": one row per step and frame, with frame u first and then its distractors.
- "paper": as in the published code of arXiv 2312.15616. The logits of a step (all frames with
  themselves, then all with their first distractor, and so on) are cut into rows of as many columns
  as "contrastive" has. Most rows hold one distractor for consecutive frames.
- "dense": one row per step and frame, with all frames as columns; nothing is sampled.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.bundle.uncertainty_spec import ContrastSpec, UncertaintySpec
from mosrt.host.thread_pool import ThreadPool

from .family import Rows, Stages, row_measures, run
from .sampling import SeededSampler

__all__ = ["BLOCK_ROWS", "ContrastFamily"]

# Rows of the frame-by-frame matrix that exist at once: 8 MB in float32 for a chunk of 20 s.
BLOCK_ROWS: Final = 1024
# Rows that one thread measures at a time, so that they stay in its cache.
_SHARE_ROWS: Final = 64


class ContrastFamily:
    """Measures a wav2vec v1 model.

    Args:
        spec: The section on uncertainty of the bundle's manifest.
        contrast: The part of `spec` for this family.
        stages: Runs "encoder", "contrast" and "dense", the latter two if a layout needs them.
        pool: Threads that share the work of measuring.
    """

    def __init__(
        self, spec: UncertaintySpec, contrast: ContrastSpec, stages: Stages, pool: ThreadPool
    ) -> None:
        self._spec = spec
        self._contrast = contrast
        self._stages = stages
        self._pool = pool

    def features(self, chunk: Float32Array) -> dict[str, Float32Array]:
        """Features z (frames, channels)."""
        z = run(self._stages["encoder"], {"waveform": chunk[np.newaxis]}, "features")
        return {"features": np.ascontiguousarray(z[0].T)}

    def measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout; see `ModelFamily`."""
        features, predictions = self.encode(chunk)
        rows = {}
        if "contrast" in self._stages:
            n_frames = features.shape[2]
            negatives = SeededSampler(self._spec.seed, number).negatives(
                self._contrast.n_negatives, n_frames
            )
            logits = self.logits(features, predictions, negatives)
            if "paper" in self._spec.layouts:
                cut = np.concatenate([step.reshape(-1, step.shape[0]) for step in logits])
                paper = self._rows(row_measures(cut), n_frames)
                rows["paper"] = dataclasses.replace(paper, frames=None)
            if "contrastive" in self._spec.layouts:
                joined = np.concatenate([step.T for step in logits])
                rows["contrastive"] = self._rows(row_measures(joined), n_frames)
        if "dense" in self._stages:
            rows["dense"] = self._dense(features, predictions)
        return rows

    def encode(self, chunk: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Features (1, channels, frames) and predictions (1, steps, frames, channels) of a chunk.

        Step s at frame t predicts the features at frame t + first_horizon + s.
        """
        feeds = {"waveform": chunk[np.newaxis]}
        found = self._stages["encoder"].run(feeds, ["features", "predictions"])
        return found["features"][0], found["predictions"][0]

    def logits(
        self, features: Float32Array, predictions: Float32Array, negatives: IntArray
    ) -> list[Float32Array]:
        """Logits of each step against the frame itself and its distractors.

        Args:
            features: (1, channels, frames) float32.
            predictions: (1, steps, frames, channels) float32.
            negatives: Distractors of each frame, (negatives, frames).

        Returns:
            For each horizon that fits, (1 + negatives, frames - horizon); column i is about frame
            i + horizon.
        """
        feeds: dict[str, Array] = {
            "features": features,
            "predictions": predictions,
            "negatives": negatives[np.newaxis],
        }
        # (frames, steps, 1 + negatives), by the frame that is predicted
        found = run(self._stages["contrast"], feeds, "logits")[0]
        n_frames = features.shape[2]
        return [
            np.ascontiguousarray(found[horizon:, step].T)
            for step, horizon in enumerate(self._horizons(n_frames))
        ]

    def _horizons(self, n_frames: int) -> range:
        """The horizons that fit into a chunk."""
        first = self._contrast.first_horizon
        return range(first, min(first + self._contrast.n_steps, n_frames))

    def _rows(self, values: FloatArray, n_frames: int) -> Rows:
        """Rows for each predicted frame, steps in order."""
        horizons = self._horizons(n_frames)
        return Rows(
            values=values,
            frames=np.concatenate([np.arange(horizon, n_frames) for horizon in horizons]),
            horizons=np.repeat(horizons, [n_frames - horizon for horizon in horizons]),
        )

    def _dense(self, features: Float32Array, predictions: Float32Array) -> Rows:
        n_frames = features.shape[2]
        # Steps one after the other, each without the frames whose prediction has no target.
        queries = np.concatenate(
            [
                predictions[0, i, : n_frames - horizon]
                for i, horizon in enumerate(self._horizons(n_frames))
            ]
        )
        values = []
        for first in range(0, len(queries), BLOCK_ROWS):
            block = queries[np.newaxis, first : first + BLOCK_ROWS]
            feeds = {"queries": block, "features": features}
            matrix = run(self._stages["dense"], feeds, "similarities")[0]
            shares = [matrix[i : i + _SHARE_ROWS] for i in range(0, len(matrix), _SHARE_ROWS)]
            values += self._pool.map(row_measures, shares)
        return self._rows(np.concatenate(values, axis=1), n_frames)
