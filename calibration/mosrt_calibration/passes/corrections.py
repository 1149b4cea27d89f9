"""Corrections that let INT8 graphs drift less: equalisation, smoothing, bias correction, offsets.

Equalisation and smoothing do not change the function of the FP32 graph. Both move the scale of
channels from one layer to another, because a channel with large activations and small weights costs
all other channels precision.

Equalisation (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, arXiv 1906.04721, section 4.1) needs a positively homogeneous function,
f(s x) = s f(x) for s > 0, between two layers. ReLU is such a function; SiLU and GELU are not.

Smoothing (G. Xiao et al., "SmoothQuant", ICML 2023, arXiv 2211.10438, with a = 0.5) divides channel
j of a MatMul's input by s_j = max|x_j|^a / max|w_j|^(1 - a) and multiplies row j of the weights by
s_j. A few channels of transformers are a hundred times as large as the rest. The division is folded
into the preceding layer norm if nothing else reads that. Otherwise it is a Mul node.

Quantising weights shifts the mean output of a layer by (W - Q(W)) E[x], which does not average out
over time. Bias correction (Nagel et al., section 4.2) subtracts it. E[x] is measured per input
channel. Padding at the edges is neglected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import helper, numpy_helper

from mosrt._arrays import FloatArray
from mosrt_calibration.graph import Topology, attribute, copied, rebuilt, replace_value
from mosrt_calibration.ranges.statistics import Channels

from .qparams import LARGEST_WEIGHT

__all__ = ["correct_biases", "equalise", "fake_quantised", "smooth", "with_offsets"]

_HOMOGENEOUS: Final = ("LeakyRelu", "MaxPool", "Relu")
_ROUNDS: Final = 3
_TINY_WEIGHT: Final = 1e-8
_ALPHA: Final = 0.5
_TINY: Final = 1e-5
_OUTPUT: Final = "mos"


def equalise(model: Any) -> frozenset[str]:
    """Equalises an FP32 graph in place, pair of layers by pair, in three rounds.

    Args:
        model: onnx.ModelProto whose batch norms are folded.

    Returns:
        Names of the activations whose scale has changed, which lie between the layers of a pair.
    """
    topology = Topology(model)
    pairs = list(_pairs(topology))
    for _ in range(_ROUNDS):
        for first, second, _ in pairs:
            _equalise_pair(topology, first, second)
    return frozenset(name for _, _, between in pairs for name in between)


def _pairs(topology: Topology) -> Iterator[tuple[Any, Any, list[str]]]:
    """Weighted nodes of which only the second reads the first, and the activations between."""
    for first in topology.nodes.values():
        if not _can_be_scaled(topology, first):
            continue
        between = [first.output[0]]
        second = topology.only_reader(between[-1])
        while second is not None and second.op_type in _HOMOGENEOUS:
            between.append(second.output[0])
            second = topology.only_reader(between[-1])
        if (
            second is not None
            and second.op_type == first.op_type
            and _can_be_scaled(topology, second)
        ):
            yield first, second, between


def _can_be_scaled(topology: Topology, node: Any) -> bool:
    """Whether only this node reads its constants, and they alone scale its channels."""
    defaults = {"group": 1, "transA": 0, "alpha": 1.0, "beta": 1.0}
    return (
        node.op_type in ("Conv", "Gemm")
        and all(
            name in topology.initializers and len(topology.consumers[name]) == 1
            for name in node.input[1:]
            if name
        )
        and all(attribute(node, name, default) == default for name, default in defaults.items())
    )


def _equalise_pair(topology: Topology, first: Any, second: Any) -> None:
    made, read = _weights(topology, first), _weights(topology, second)
    largest_made, largest_read = _largest(made), _largest(np.swapaxes(read, 0, 1))
    live = (largest_made > _TINY_WEIGHT) & (largest_read > _TINY_WEIGHT)
    ratio = np.maximum(largest_made, _TINY_WEIGHT) / np.maximum(largest_read, _TINY_WEIGHT)
    scale = np.where(live, np.sqrt(ratio), 1.0)
    _store(topology, first, made / scale.reshape(-1, *[1] * (made.ndim - 1)))
    _store(topology, second, read * scale.reshape(1, -1, *[1] * (read.ndim - 2)))
    if len(first.input) > 2 and first.input[2]:
        _replace(topology, first.input[2], topology.value(first.input[2]) / scale)


def _weights(topology: Topology, node: Any) -> FloatArray:
    """Weights (out, in, ...), in double precision, so that rounding errors do not add up."""
    weights = topology.value(node.input[1]).astype(np.float64)
    return weights.T if topology.output_axis(node) == 1 else weights


def _store(topology: Topology, node: Any, weights: FloatArray) -> None:
    """Replaces the weights of a node by others (out, in, ...)."""
    value = weights.T if topology.output_axis(node) == 1 else weights
    _replace(topology, node.input[1], value)


def _replace(topology: Topology, name: str, value: FloatArray) -> None:
    replace_value(topology.initializers[name], value.astype(np.float32))


def _largest(weights: FloatArray) -> FloatArray:
    """Largest absolute value along the first axis."""
    found: FloatArray = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    return found


def smooth(model: Any, channels: Mapping[str, Channels]) -> frozenset[str]:
    """Smooths the inputs of MatMul nodes with constant weights, in place.

    Args:
        model: FP32 onnx.ModelProto with types of all tensors.
        channels: Statistics per channel of the inputs of weighted nodes, by tensor.

    Returns:
        Names of the activations that are new or whose scale has changed.
    """
    topology = Topology(model)
    changed = set()
    for tensor, seen in channels.items():
        readers = [
            node
            for node in topology.consumers[tensor]
            if node.op_type == "MatMul" and topology.weighted(node) and node.input[0] == tensor
        ]
        weights = list(dict.fromkeys(node.input[1] for node in readers))
        shared = any(len(topology.consumers[name]) > 1 for name in weights)
        if not readers or shared or topology.value(weights[0]).ndim != 2:
            continue
        rows = np.max([np.abs(topology.value(name)).max(axis=1) for name in weights], axis=0)
        largest = np.maximum(seen.largest, _TINY)
        scale = largest**_ALPHA / np.maximum(rows, _TINY) ** (1.0 - _ALPHA)
        for name in weights:
            _replace(topology, name, topology.value(name) * scale[:, np.newaxis])
        whole = len(readers) == len(topology.consumers[tensor]) and tensor not in topology.outputs
        if whole and _fold_into_norm(topology, tensor, scale):
            changed.add(tensor)
        else:
            changed.add(_insert_division(model, topology, tensor, readers, scale))
    return frozenset(changed)


def _fold_into_norm(topology: Topology, tensor: str, scale: FloatArray) -> bool:
    """Folds the division into the layer norm that makes a tensor, if that is possible."""
    norm = topology.producer.get(tensor)
    if norm is None or norm.op_type != "LayerNormalization":
        return False
    names = [name for name in norm.input[1:] if name]
    if any(
        name not in topology.initializers
        or len(topology.consumers[name]) > 1
        or topology.value(name).shape != scale.shape
        for name in names
    ):
        return False
    for name in names:
        _replace(topology, name, topology.value(name) / scale)
    return True


def _insert_division(
    model: Any, topology: Topology, tensor: str, readers: list[Any], scale: FloatArray
) -> str:
    """Inserts a multiplication by 1 / scale before some nodes; gives its output."""
    scope = str(readers[0].name).rpartition("/")[0]
    name = f"{scope}/Smooth" if scope else f"{readers[0].name}_Smooth"
    output, factor = f"{name}:0", f"{name}:in1"
    constant = numpy_helper.from_array((1.0 / scale).astype(np.float32), factor)
    model.graph.initializer.append(constant)
    node = helper.make_node("Mul", [tensor, factor], [output], name=name)
    position = next(i for i, other in enumerate(model.graph.node) if other.name == readers[0].name)
    model.graph.node.insert(position, node)
    if tensor in topology.values:
        value = copied(topology.values[tensor])
        value.name = output
        model.graph.value_info.append(value)
    for reader in readers:
        reader.input[0] = output
    return output


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
        bias, seen = node.input[2], channels.get(node.input[0])
        shared = len(topology.consumers[bias]) > 1
        if seen is None or shared or bias not in topology.initializers:
            continue
        weights = _weights(topology, node)
        lost = weights - fake_quantised(weights, weight_bits)
        per_input = lost.reshape(*lost.shape[:2], -1).sum(axis=2)
        groups = attribute(node, "group", 1)
        n_out, n_in = per_input.shape
        # An output of group g depends on the input channels of that group only.
        grouped = per_input.reshape(groups, n_out // groups, n_in)
        shift = np.einsum("goi,gi->go", grouped, seen.mean.reshape(groups, n_in)).ravel()
        value = topology.value(bias)
        if value.shape == shift.shape:
            _replace(topology, bias, value + shift)
            n_corrected += 1
    return n_corrected


def fake_quantised(weights: FloatArray, bits: int = 8) -> FloatArray:
    """Weights (out, ...) after symmetric quantisation per output channel and dequantisation."""
    largest = _largest(weights)
    scale = np.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (weights.ndim - 1))
    scale /= LARGEST_WEIGHT[bits]
    return np.round(weights / scale) * scale


def with_offsets(model: Any, offsets: Sequence[float]) -> Any:
    """A graph that adds an offset for each domain to its output "mos" (batch, domains).

    Args:
        model: onnx.ModelProto; not changed.
        offsets: Offsets in MOS, by domain.
    """
    before = f"{_OUTPUT}_before_offsets"
    nodes = [copied(node) for node in model.graph.node]
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == _OUTPUT:
                    names[i] = before
    constant = numpy_helper.from_array(np.array(offsets, np.float32), f"{_OUTPUT}_offsets")
    nodes.append(helper.make_node("Add", [before, constant.name], [_OUTPUT], "head/Offsets"))
    return rebuilt(model, nodes, [*model.graph.initializer, constant])
