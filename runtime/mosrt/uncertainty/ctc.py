"""wav2vec 2.0 and HuBERT: mean logits over passes with dropout on the convolutions' features.

As in the published code of arXiv 2312.15616: the mean is over logits, not probabilities, and
everything but that dropout is as at inference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mosrt.bundle.uncertainty_spec import DropoutSpec, UncertaintySpec

from .family import Rows, Stages, normalised, run
from .measures import row_measures
from .sampling import Draws

__all__ = ["DropoutListener"]

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]


class DropoutListener:
    """Hears with a CTC model, or with the hidden units of a model that has no such head.

    Args:
        spec: The manifest's section.
        dropout: Its part on this family.
        stages: What runs "convolutions", once per piece, and "encoder", once per several passes.
    """

    def __init__(self, spec: UncertaintySpec, dropout: DropoutSpec, stages: Stages) -> None:
        self._spec = spec
        self._dropout = dropout
        self._stages = stages

    def features(self, piece: Float32Array) -> dict[str, Float32Array]:
        """The convolutions' features (frames, channels)."""
        return {"features": self._convolve(piece)[0]}

    def hear(self, piece: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout; see `Listener`."""
        dropout = self._dropout
        features = self._convolve(piece)
        draws = Draws(self._spec.seed, number)
        total = np.zeros(())
        done = 0
        while done < dropout.n_passes:
            n = min(dropout.passes_per_run, dropout.n_passes - done)
            shape = (n, features.shape[1], dropout.channels)
            logits = self.logits(features, draws.keep(dropout.probability, shape))
            # Pass by pass, so that the sum does not depend on how passes are grouped.
            for one in logits:
                total = total + one
            done += n
        mean = np.delete(total / done, dropout.dropped_columns, axis=1)
        return {"ctc": Rows(values=row_measures(mean), frames=np.arange(len(mean)))}

    def logits(self, features: Float32Array, keep: Float32Array) -> Float32Array:
        """Logits of some passes.

        Args:
            features: The convolutions' features, (1, frames, channels).
            keep: What they are multiplied by in each pass, (passes, frames, channels).

        Returns:
            (passes, frames, columns) float32.
        """
        feeds = {"features": features, "keep": keep}
        return run(self._stages["encoder"], feeds, "logits")

    def _convolve(self, piece: Float32Array) -> Float32Array:
        samples = normalised(piece) if self._spec.normalised else piece
        return run(self._stages["convolutions"], {"waveform": samples[np.newaxis]}, "features")
