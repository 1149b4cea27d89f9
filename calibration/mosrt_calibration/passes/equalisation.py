"""Equalises the channel ranges of neighbouring layers without changing the function.

A channel with large activations and small weights in the next layer costs all other channels
precision. If only a positively homogeneous function, f(s x) = s f(x) for s > 0, lies between two
layers, the scale can move from one to the other: M. Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction" (ICCV 2019, arXiv 1906.04721), section 4.1. ReLU is such a
function; SiLU and GELU are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt_calibration.graph import Topology, replace_value

__all__ = ["equalise"]

_HOMOGENEOUS: Final = ("LeakyRelu", "MaxPool", "Relu")
_ROUNDS: Final = 3
_TINY: Final = 1e-8


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two weighted nodes; only the second reads the output of the first."""

    first: Any
    second: Any
    between: tuple[str, ...]


def equalise(model: Any) -> frozenset[str]:
    """Equalises an FP32 graph in place, pair by pair, in three rounds.

    Args:
        model: onnx.ModelProto whose batch norms are folded.

    Returns:
        Names of the activations whose scale has changed, which lie between the layers of a pair.
    """
    topology = Topology(model)
    pairs = list(_pairs(topology))
    for _ in range(_ROUNDS):
        for pair in pairs:
            _scale(topology, pair)
    return frozenset(name for pair in pairs for name in pair.between)


def _pairs(topology: Topology) -> Iterator[_Pair]:
    """All pairs whose weights are read by no other node."""
    for first in topology.nodes.values():
        if first.op_type not in ("Conv", "Gemm") or not _owns_weights(topology, first):
            continue
        between = [first.output[0]]
        second = topology.only_reader(between[-1])
        while second is not None and second.op_type in _HOMOGENEOUS:
            between.append(second.output[0])
            second = topology.only_reader(between[-1])
        if (
            second is not None
            and second.op_type == first.op_type
            and _owns_weights(topology, second)
            and _ungrouped(first)
            and _ungrouped(second)
        ):
            yield _Pair(first, second, tuple(between))


def _owns_weights(topology: Topology, node: Any) -> bool:
    return topology.weighted(node) and all(
        name in topology.initializers and len(topology.consumers[name]) == 1
        for name in node.input[1:]
        if name
    )


def _ungrouped(node: Any) -> bool:
    """Whether channels are not grouped, and a Gemm neither scales nor transposes its input."""
    defaults = {"group": 1, "transA": 0}
    return all(
        attribute.i == defaults[attribute.name]
        for attribute in node.attribute
        if attribute.name in defaults
    ) and all(
        attribute.f == 1.0 for attribute in node.attribute if attribute.name in ("alpha", "beta")
    )


def _scale(topology: Topology, pair: _Pair) -> None:
    first, second = (_by_output(topology, node) for node in (pair.first, pair.second))
    made = np.abs(first).reshape(len(first), -1).max(axis=1)
    read = np.abs(np.swapaxes(second, 0, 1)).reshape(second.shape[1], -1).max(axis=1)
    live = (made > _TINY) & (read > _TINY)
    scale = np.where(live, np.sqrt(np.maximum(made, _TINY) / np.maximum(read, _TINY)), 1.0)
    _store(topology, pair.first, first / scale.reshape(-1, *[1] * (first.ndim - 1)))
    _store(topology, pair.second, second * scale.reshape(1, -1, *[1] * (second.ndim - 2)))
    if len(pair.first.input) > 2 and pair.first.input[2]:
        name = pair.first.input[2]
        bias = topology.value(name).astype(np.float64) / scale
        replace_value(topology.initializers[name], bias.astype(np.float32))


def _by_output(topology: Topology, node: Any) -> FloatArray:
    """Weights (out, in, ...), in double precision, so that rounding errors do not add up."""
    weights = topology.value(node.input[1]).astype(np.float64)
    return weights.T if topology.output_axis(node) == 1 else weights


def _store(topology: Topology, node: Any, weights: FloatArray) -> None:
    value = weights.T if topology.output_axis(node) == 1 else weights
    replace_value(topology.initializers[node.input[1]], value.astype(np.float32))
