"""Corrects biases for the mean error of quantised weights, and MOS for its mean error.

Quantising weights shifts the mean output of a layer by (W - Q(W)) E[x], which does not average out
over time: M. Nagel et al. (ICCV 2019, arXiv 1906.04721), section 4.2. E[x] is measured per input
channel. Padding at the edges is neglected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from mosrt._arrays import FloatArray
from mosrt_calibration.graph import Topology, copied, rebuilt, replace_value
from mosrt_calibration.ranges.statistics import Channels

from .qparams import largest_weight

__all__ = ["correct_biases", "fake_quantised", "with_offsets"]


def correct_biases(
    model: Any, channels: Mapping[str, Channels], nodes: Sequence[str], *, weight_bits: int = 8
) -> int:
    """Corrects the biases of an FP32 graph in place, before it is quantised.

    Args:
        model: onnx.ModelProto.
        channels: Statistics per channel of the inputs of the nodes, by tensor.
        nodes: Names of the weighted nodes that will be quantised per channel.
        weight_bits: Bits of their weights, 8 or 7.

    Returns:
        Number of biases corrected. Biases that several nodes share are skipped.
    """
    topology = Topology(model)
    n_corrected = 0
    for name in nodes:
        node = topology.nodes[name]
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or not node.input[2]:
            continue
        bias, means = node.input[2], channels.get(node.input[0])
        shared = len(topology.consumers[bias]) > 1
        if means is None or shared or bias not in topology.initializers:
            continue
        shift = _shift(topology, node, means.mean, weight_bits)
        value = topology.value(bias).astype(np.float64)
        if value.shape != shift.shape:
            continue
        replace_value(topology.initializers[bias], (value + shift).astype(np.float32))
        n_corrected += 1
    return n_corrected


def fake_quantised(weights: FloatArray, bits: int = 8) -> FloatArray:
    """Weights (out, ...) after symmetric quantisation per output channel and dequantisation."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scale = np.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (weights.ndim - 1))
    scale /= largest_weight(bits)
    return np.round(weights / scale) * scale


def _shift(topology: Topology, node: Any, mean: FloatArray, weight_bits: int) -> FloatArray:
    """What the mean output loses by quantisation of the weights, (out,)."""
    weights = topology.value(node.input[1]).astype(np.float64)
    if topology.output_axis(node) == 1:
        weights = weights.T
    lost = weights - fake_quantised(weights, weight_bits)
    per_input = lost.reshape(*lost.shape[:2], -1).sum(axis=2)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    n_out, n_in = per_input.shape
    # An output of group g depends on the input channels of that group only.
    grouped = per_input.reshape(groups, n_out // groups, n_in)
    shift: FloatArray = np.einsum("goi,gi->go", grouped, mean.reshape(groups, n_in))
    return shift.ravel()


_OUTPUT = "mos"


def with_offsets(model: Any, offsets: Sequence[float]) -> Any:
    """A graph that adds an offset for each domain to its output "mos" (batch, domains).

    Args:
        model: onnx.ModelProto; not changed.
        offsets: Offsets in MOS, by domain.
    """
    before = f"{_OUTPUT}_before_offsets"
    nodes = []
    for node in model.graph.node:
        made = copied(node)
        for names in (made.input, made.output):
            for i, name in enumerate(names):
                if name == _OUTPUT:
                    names[i] = before
        nodes.append(made)
    constant = numpy_helper.from_array(np.array(offsets, np.float32), f"{_OUTPUT}_offsets")
    nodes.append(helper.make_node("Add", [before, constant.name], [_OUTPUT], "head/Offsets"))
    return rebuilt(model, nodes, [*model.graph.initializer, constant])
