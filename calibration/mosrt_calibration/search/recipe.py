"""Recipes: how an integer variant is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The choices behind an integer graph, beside which blocks stay in float.

    Attributes:
        method: How ranges are chosen; one of `mosrt_calibration.ranges.ranges.METHODS`.
        equalise: Whether neighbouring layers are equalised first.
        correct_biases: Whether the mean error of rounded weights is taken off biases.
        smooth: Whether outlier channels of MatMul inputs are moved into the weights.
        dynamic: Whether MatMul scales its input at every run instead of by a range.
        weight_bits: Of whole numbers for weights, 8 or 7; graphs for TensorRT have 8.
    """

    method: str
    equalise: bool = False
    correct_biases: bool = False
    smooth: bool = False
    dynamic: bool = False
    weight_bits: int = 8

    def __str__(self) -> str:
        parts = [self.method]
        parts += ["equalised"] if self.equalise else []
        parts += ["smoothed"] if self.smooth else []
        parts += ["biases corrected"] if self.correct_biases else []
        parts += ["dynamic MatMul"] if self.dynamic else []
        parts += ["7-bit weights"] if self.weight_bits == 7 else []
        return ", ".join(parts)

    def kind(self, *, symmetric: bool) -> str:
        """Arithmetic of the graphs, as the manifest has it; `symmetric` for TensorRT."""
        if symmetric:
            return "qdq-s8s8"
        return f"qdq-u8s{self.weight_bits}{'+dynamic' if self.dynamic else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries."""
        return {
            "method": self.method,
            "equalised": self.equalise,
            "biases_corrected": self.correct_biases,
            "smoothed": self.smooth,
            "dynamic_matmul": self.dynamic,
            "weight_bits": self.weight_bits,
        }
