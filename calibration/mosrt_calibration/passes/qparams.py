"""Quantisation parameters: scales and zero points, and the integers they give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = [
    "QuantParams",
    "largest_weight",
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
# Of 7 bits: two products with unsigned bytes add up to no more than 2 * 255 * 64 < 2**15.
_LARGEST_NARROW: Final = 64
_INT32: Final = np.iinfo(np.int32)
_MARGIN: Final = 1.0001

QuantParams = tuple[NDArray[np.float32], NDArray[Any]]
"""Scale (float32) and zero point (of the kind of byte), scalars or one per output."""


def quant_params(low: float, high: float, *, symmetric: bool) -> QuantParams:
    """Scale and zero point of a tensor that lies within a range.

    Args:
        low: Smallest value to represent; what is above zero counts as zero.
        high: Largest value to represent; what is below zero counts as zero.
        symmetric: Signed bytes from -127 to 127 around zero instead of unsigned ones.
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


def rounded_constant(
    value: NDArray[np.float32], *, symmetric: bool
) -> tuple[NDArray[Any], QuantParams]:
    """A constant that is added or multiplied, as bytes of the kind activations have."""
    scale, zero_point = quant_params(float(value.min()), float(value.max()), symmetric=symmetric)
    limits = np.iinfo(zero_point.dtype)
    found = np.clip(np.round(value / scale) + zero_point, limits.min, limits.max)
    return found.astype(zero_point.dtype), (scale, zero_point)


def largest_weight(bits: int) -> int:
    """The largest whole number for weights of 8 or 7 bits; the smallest is minus that."""
    return {8: _LARGEST, 7: _LARGEST_NARROW}[bits]


def weight_scales(value: NDArray[np.float32], axis: int, bits: int = 8) -> NDArray[np.float32]:
    """Scales (outputs,) that make signed bytes of weights.

    Args:
        value: Weights.
        axis: That of the outputs.
        bits: 8 for whole numbers from -127 to 127; 7 for -64 to 64, whose products with unsigned
            bytes add up in pairs without overflow in 16 bits, as CPUs add them that have no 8-bit
            dot products.
    """
    others = tuple(i for i in range(value.ndim) if i != axis)
    # Not by np.abs, which would copy them.
    largest = np.maximum(value.max(axis=others), -value.min(axis=others)).astype(np.float64)
    scales = largest / largest_weight(bits)
    return np.where(scales < np.finfo(np.float32).tiny, 1.0, scales).astype(np.float32)


def rounded_weights(
    value: NDArray[np.float32], axis: int, scales: NDArray[np.float32]
) -> tuple[NDArray[np.int8], QuantParams]:
    """Weights as signed bytes with a scale for every output; every zero point is zero."""
    along = [1] * value.ndim
    along[axis] = -1
    found = value / scales.reshape(along)
    np.round(found, out=found)
    np.clip(found, -_LARGEST - 1, _LARGEST, out=found)
    return found.astype(np.int8), (scales, np.zeros(scales.shape, np.int8))


def scales_for_bias(
    bias: NDArray[np.float32], input_scale: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scales of weights (outputs,), larger where a bias would not fit into 32 bits otherwise."""
    product = input_scale.astype(np.float64) * scales.astype(np.float64)
    smallest = _MARGIN * np.abs(bias.astype(np.float64)) / _INT32.max
    short = (product < smallest) & (product > 0)
    ratio = np.where(short, smallest / np.where(short, product, 1.0), 1.0)
    return (scales * ratio).astype(np.float32)


def rounded_bias(
    bias: NDArray[np.float32], input_scale: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A bias as 32-bit integers, and their scale: what products of bytes have."""
    product = (input_scale * scale).astype(np.float32)
    found = np.round(bias.astype(np.float64) / product.astype(np.float64))
    return np.clip(found, _INT32.min, _INT32.max).astype(np.int32), product


def stored(name: str, value: NDArray[Any], params: QuantParams) -> Iterator[Any]:
    """The tensors (onnx.TensorProto) that keep a constant in its narrow form."""
    yield numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_quantized")
    yield from stored_parameters(name, params)


def stored_parameters(name: str, params: QuantParams) -> Iterator[Any]:
    """The tensors that keep a scale and a zero point."""
    scale, zero_point = params
    yield numpy_helper.from_array(scale, f"{name}_scale")
    yield numpy_helper.from_array(zero_point, f"{name}_zero_point")
