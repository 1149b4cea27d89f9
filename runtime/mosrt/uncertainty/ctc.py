"""wav2vec 2.0 and HuBERT: mean logits over passes with dropout on the convolutional features.

As in the published code of arXiv 2312.15616, the mean is over logits, not probabilities, and only
that dropout differs from inference.
"""

from __future__ import annotations

import numpy as np

from mosrt._arrays import Float32Array
from mosrt.bundle.uncertainty_spec import DropoutSpec, UncertaintySpec

from .chunks import normalised
from .family import Rows, Stages, run
from .measures import row_measures
from .sampling import SeededSampler

__all__ = ["DropoutFamily"]


class DropoutFamily:
    """Measures a CTC model, or the hidden units of a model that has no such head.

    Args:
        spec: The section on uncertainty of the bundle's manifest.
        dropout: The part of `spec` for this family.
        stages: Runs "convolutions", once per chunk, and "encoder", once per several passes.
    """

    def __init__(self, spec: UncertaintySpec, dropout: DropoutSpec, stages: Stages) -> None:
        self._spec = spec
        self._dropout = dropout
        self._stages = stages

    def features(self, chunk: Float32Array) -> dict[str, Float32Array]:
        """Features of the convolutions, (frames, channels)."""
        return {"features": self._convolve(chunk)[0]}

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
            logits = self.logits(features, sampler.keep(dropout.probability, shape))
            # Pass by pass, so that the sum does not depend on how passes are grouped.
            for one in logits:
                total = total + one
            done += n
        mean = np.delete(total / done, dropout.dropped_columns, axis=1)
        return {"ctc": Rows(values=row_measures(mean), frames=np.arange(len(mean)))}

    def logits(self, features: Float32Array, keep: Float32Array) -> Float32Array:
        """Logits of some passes.

        Args:
            features: Features of the convolutions, (1, frames, channels).
            keep: Factor of each feature in each pass, (passes, frames, channels).

        Returns:
            (passes, frames, columns) float32.
        """
        feeds = {"features": features, "keep": keep}
        return run(self._stages["encoder"], feeds, "logits")

    def _convolve(self, chunk: Float32Array) -> Float32Array:
        samples = normalised(chunk) if self._spec.normalised else chunk
        return run(self._stages["convolutions"], {"waveform": samples[np.newaxis]}, "features")
