"""The families of wav2vec 2.0 and HuBERT: a CTC head under dropout, and the pretraining head."""

from __future__ import annotations

import numpy as np

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.bundle.uncertainty_spec import DropoutSpec, MaskingSpec, UncertaintySpec
from mosrt.crops import normalised

from .family import Rows, Stages, row_measures, run
from .sampling import SeededSampler

__all__ = ["DropoutFamily", "MaskingFamily"]


class _ConvolutionFamily:
    def __init__(self, spec: UncertaintySpec, stages: Stages) -> None:
        self._spec = spec
        self._stages = stages

    def features(self, chunk: Float32Array) -> dict[str, Float32Array]:
        """Features of the convolutions, (frames, channels)."""
        return {"features": self._convolve(chunk)[0]}

    def _convolve(self, chunk: Float32Array) -> Float32Array:
        samples = normalised(chunk) if self._spec.normalised else chunk
        return run(self._stages["convolutions"], {"waveform": samples[np.newaxis]}, "features")


class DropoutFamily(_ConvolutionFamily):
    """Measures a CTC model, or the hidden units of a model that has no such head.

    Args:
        spec: The section on uncertainty of the bundle's manifest.
        dropout: The part of `spec` for this family.
        stages: Runs "convolutions", once per chunk, and "encoder", once per several passes.
    """

    def __init__(self, spec: UncertaintySpec, dropout: DropoutSpec, stages: Stages) -> None:
        super().__init__(spec, stages)
        self._dropout = dropout

    def measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout; see `ModelFamily`."""
        dropout = self._dropout
        features = self._convolve(chunk)
        sampler = SeededSampler(self._spec.seed, number)
        total = np.zeros(())
        done = 0
        while done < dropout.n_passes:
            n = min(dropout.passes_per_run, dropout.n_passes - done)
            shape = (n, features.shape[1], dropout.channels)
            feeds = {"features": features, "keep": sampler.keep(dropout.probability, shape)}
            logits = run(self._stages["encoder"], feeds, "logits")  # (passes, frames, columns)
            # Pass by pass, so that the sum does not depend on how passes are grouped.
            with np.errstate(invalid="ignore", over="ignore"):  # the scorer reports it
                for one in logits:
                    total = total + one
            done += n
        mean = np.delete(total / done, dropout.dropped_columns, axis=1)
        return {"ctc": Rows(values=row_measures(mean), frames=np.arange(len(mean)))}


class MaskingFamily(_ConvolutionFamily):
    """Measures a wav2vec 2.0 model with its pretraining head.

    Args:
        spec: The section on uncertainty of the bundle's manifest.
        masking: The part of `spec` for this family.
        stages: Runs "convolutions", once per chunk, and "encoder", once per pass.
    """

    def __init__(self, spec: UncertaintySpec, masking: MaskingSpec, stages: Stages) -> None:
        super().__init__(spec, stages)
        self._masking = masking

    def measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout; see `ModelFamily`."""
        features = self._convolve(chunk)
        sampler = SeededSampler(self._spec.seed, number)
        values, frames = [], []
        for _ in range(self._masking.n_passes):
            spans, negatives = self.sample(sampler, features.shape[1])
            masked = np.flatnonzero(spans)
            logits = self.logits(features, spans, negatives)[masked]
            values.append(row_measures(collapsed(logits)))
            frames.append(masked)
        return {
            "pretraining": Rows(
                values=np.concatenate(values, axis=1), frames=np.concatenate(frames)
            )
        }

    def sample(self, sampler: SeededSampler, n_frames: int) -> tuple[Float32Array, IntArray]:
        """Spans (frames,), 1 where masked, and distractors (frames, negatives) for every frame.

        Distractors of a masked frame are other masked frames; where it is alone, any others.
        """
        masking = self._masking
        spans = sampler.spans(masking.probability, masking.span_frames, n_frames)
        masked = np.flatnonzero(spans)
        pool = masked if len(masked) > 1 else np.arange(n_frames)
        negatives = np.zeros((n_frames, masking.n_negatives), np.int64)
        sampled = sampler.integers(len(pool) - 1, (len(masked), masking.n_negatives))
        own = np.searchsorted(pool, masked)
        sampled[sampled >= own[:, np.newaxis]] += 1
        negatives[masked] = pool[sampled]
        return spans, negatives

    def logits(
        self, features: Float32Array, spans: Float32Array, negatives: IntArray
    ) -> Float32Array:
        """Logits of one pass, (frames, 1 + negatives), with each frame's own first."""
        feeds: dict[str, Array] = {
            "features": features,
            "spans": spans[np.newaxis],
            "negatives": negatives[np.newaxis],
        }
        logits: Float32Array = run(self._stages["encoder"], feeds, "logits")[0]
        return logits


def collapsed(logits: Float32Array) -> FloatArray:
    """Log probabilities of the first column and of all others together, (rows, 2) float64.

    A distractor whose quantised features are the frame's own has a logit of minus infinity.
    """
    values = logits.astype(np.float64)
    # Every distractor may be the frame's own code, and the scorer reports what is not finite.
    with np.errstate(all="ignore"):
        largest = values.max(axis=1)
        weights = np.exp(values - largest[:, np.newaxis])
        others = weights[:, 1:].sum(axis=1)
        total = weights[:, 0] + others
        found: FloatArray = np.log(np.stack([weights[:, 0] / total, others / total], axis=1))
    return found
