"""Computes scales and zero points, and quantises weights, biases and constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from mosrt._arrays import Array, Float32Array

__all__ = [
    "LARGEST_WEIGHT",
    "QuantParams",
    "quant_params",
    "rounded_bias",
    "rounded_constant",
    "rounded_weights",
    "scales_for_bias",
    "stored",
    "stored_parameters",
    "weight_scales",
]

_LARGEST: Final = 127
# For 7 bits: the sum of two products with UINT8 is at most 2 * 255 * 64 < 2**15.
LARGEST_WEIGHT: Final = {8: _LARGEST, 7: 64}
"""The largest integer for weights by their bits; the smallest is minus that."""
_INT32: Final = np.iinfo(np.int32)
_MARGIN: Final = 1.0001

QuantParams = tuple[Float32Array, Array]
"""Scale (float32) and zero point (int8 or uint8), scalars or one per output."""


def quant_params(low: float, high: float, *, symmetric: bool) -> QuantParams:
    """Scale and zero point of a tensor that lies within a range.

    Args:
        low: Smallest value to represent; a positive one counts as zero.
        high: Largest value to represent; a negative one counts as zero.
        symmetric: INT8 from -127 to 127 with a zero point of 0, instead of UINT8.
    """
    low, high = (np.float64(np.float32(value)) for value in (min(low, 0.0), max(high, 0.0)))
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale = (high - low) / (2 * _LARGEST if symmetric else 255)
    kind = np.int8 if symmetric else np.uint8
    if scale < np.finfo(np.float32).tiny:  # a tensor of zeros
        return np.array(1.0, np.float32), np.array(0, kind)
    zero_point = 0 if symmetric else np.round(-low / scale)
    return np.array(scale, np.float32), np.array(zero_point, kind)


def rounded_constant(value: Float32Array, *, symmetric: bool) -> tuple[Array, QuantParams]:
    """Quantises a constant that is added or multiplied as activations are quantised."""
    scale, zero_point = quant_params(float(value.min()), float(value.max()), symmetric=symmetric)
    limits = np.iinfo(zero_point.dtype)
    found = np.clip(np.round(value / scale) + zero_point, limits.min, limits.max)
    return found.astype(zero_point.dtype), (scale, zero_point)


def weight_scales(value: Float32Array, axis: int, bits: int = 8) -> Float32Array:
    """Scales (outputs,) of INT8 weights.

    Args:
        value: Weights.
        axis: Axis of the outputs.
        bits: 8 for integers from -127 to 127; 7 for -64 to 64. The sum of two products of 7-bit
            weights with UINT8 fits into 16 bits, in which CPUs without 8-bit dot products add.
    """
    others = tuple(i for i in range(value.ndim) if i != axis)
    # np.abs would copy them.
    largest = np.maximum(value.max(axis=others), -value.min(axis=others)).astype(np.float64)
    scales = largest / LARGEST_WEIGHT[bits]
    return np.where(scales < np.finfo(np.float32).tiny, 1.0, scales).astype(np.float32)


def rounded_weights(
    value: Float32Array, axis: int, scales: Float32Array
) -> tuple[NDArray[np.int8], QuantParams]:
    """Quantises weights to INT8 with a scale per output; every zero point is zero."""
    along = [1] * value.ndim
    along[axis] = -1
    found = value / scales.reshape(along)
    np.round(found, out=found)
    np.clip(found, -_LARGEST - 1, _LARGEST, out=found)
    return found.astype(np.int8), (scales, np.zeros(scales.shape, np.int8))


def scales_for_bias(
    bias: Float32Array, input_scale: Float32Array, scales: Float32Array
) -> Float32Array:
    """Scales of weights (outputs,), enlarged where a bias would not fit into 32 bits."""
    product = input_scale.astype(np.float64) * scales.astype(np.float64)
    smallest = _MARGIN * np.abs(bias.astype(np.float64)) / _INT32.max
    short = (product < smallest) & (product > 0)
    ratio = np.where(short, smallest / np.where(short, product, 1.0), 1.0)
    return (scales * ratio).astype(np.float32)


def rounded_bias(
    bias: Float32Array, input_scale: Float32Array, scale: Float32Array
) -> tuple[NDArray[np.int32], Float32Array]:
    """Quantises a bias to INT32 with the scale of the products; gives both."""
    product = (input_scale * scale).astype(np.float32)
    found = np.round(bias.astype(np.float64) / product.astype(np.float64))
    return np.clip(found, _INT32.min, _INT32.max).astype(np.int32), product


def stored(name: str, value: Array, params: QuantParams) -> Iterator[Any]:
    """The tensors (onnx.TensorProto) of a quantised constant."""
    yield numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_quantized")
    yield from stored_parameters(name, params)


def stored_parameters(name: str, params: QuantParams) -> Iterator[Any]:
    """The tensors of a scale and a zero point."""
    scale, zero_point = params
    yield numpy_helper.from_array(scale, f"{name}_scale")
    yield numpy_helper.from_array(zero_point, f"{name}_zero_point")
