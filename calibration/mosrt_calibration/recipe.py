"""Recipes: how an integer variant is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The choices behind an integer graph, beside which blocks stay in float.

    Attributes:
        method: How ranges are chosen; one of `mosrt_calibration.ranges.METHODS`.
        equalise: Whether neighbouring layers are equalised first.
        correct_biases: Whether the mean error of rounded weights is taken off biases.
        smooth: Whether outlier channels of MatMul inputs are moved into the weights.
        dynamic: Whether MatMul scales its input at every run instead of by a range.
    """

    method: str
    equalise: bool = False
    correct_biases: bool = False
    smooth: bool = False
    dynamic: bool = False

    def __str__(self) -> str:
        parts = [self.method]
        parts += ["equalised"] if self.equalise else []
        parts += ["smoothed"] if self.smooth else []
        parts += ["biases corrected"] if self.correct_biases else []
        parts += ["dynamic MatMul"] if self.dynamic else []
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries."""
        return {
            "method": self.method,
            "equalised": self.equalise,
            "biases_corrected": self.correct_biases,
            "smoothed": self.smooth,
            "dynamic_matmul": self.dynamic,
        }
