"""Describes in a manifest a data domain that is computed from the outputs of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mosrt._arrays import Float32Array, FloatArray

from .fields import Section, manifest_error

__all__ = ["MOS_RANGE", "DomainHead"]

MOS_RANGE: Final = (1.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainHead(Section):
    """A weighted sum of outputs of the graph, which may pass a rising map; from 1 to 5.

    Attributes:
        kind: How it was fitted, for people to read: "affine", "monotone", "domains", "features".
        weights: Weights by name of an output, one for each of its columns.
        bias: What is added to the sum.
        x: Abscissae of a piecewise linear map, increasing; () for none. It is constant beyond them.
        y: Its ordinates, not decreasing.
        n_clips: Number of rated clips that it was fitted to.
        description: Description of the rated clips.
        evaluation: How well it predicts the ratings of other clips, for people to read.
    """

    kind: str
    weights: Mapping[str, tuple[float, ...]]
    bias: float
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    n_clips: int
    description: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, outputs: Mapping[str, Float32Array | FloatArray]) -> FloatArray:
        """The MOS of views, (...), from the outputs of the graph by name, (..., size)."""
        # Sums instead of matrix products: they are the same for any number of views and threads.
        sums = [(outputs[name] * np.array(row)).sum(-1) for name, row in self.weights.items()]
        total: FloatArray = self.bias + np.sum(sums, axis=0)
        return np.clip(np.interp(total, self.x, self.y) if self.x else total, *MOS_RANGE)

    def check(self, where: str) -> None:
        """Raises BundleError unless there are weights, and the map rises."""
        steps_x, steps_y = np.diff(self.x), np.diff(self.y)
        if len(self.x) != len(self.y) or np.any(steps_x <= 0) or np.any(steps_y < 0):
            raise manifest_error(f"{where}: x must rise, and y not fall; run `mosrt adapt` again")
        if not self.weights:
            raise manifest_error(f"{where}.weights must name an output; run `mosrt adapt` again")
