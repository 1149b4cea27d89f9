"""Moves outlier channels of MatMul inputs into the weights (SmoothQuant).

A few channels of transformers are a hundred times as large as the rest. Dividing channel j of the
input by s_j = max|x_j|^a / max|w_j|^(1 - a) and multiplying row j of the weights by s_j changes
nothing in exact arithmetic, and makes both easier to quantise: G. Xiao et al., "SmoothQuant" (ICML
2023, arXiv 2211.10438), with a = 0.5. The division is folded into the preceding layer norm if
nothing else reads that. Otherwise it is a Mul node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from mosrt._arrays import FloatArray
from mosrt_calibration.graph import Topology, copied, replace_value
from mosrt_calibration.ranges.statistics import Channels

__all__ = ["smooth"]

_ALPHA: Final = 0.5
_TINY: Final = 1e-5


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
            value = topology.value(name) * scale[:, np.newaxis]
            replace_value(topology.initializers[name], value.astype(np.float32))
        whole = len(readers) == len(topology.consumers[tensor]) and tensor not in topology.outputs
        if whole and _folded(topology, tensor, scale):
            changed.add(tensor)
        else:
            changed.add(_insert(model, tensor, readers, scale))
    return frozenset(changed)


def _folded(topology: Topology, tensor: str, scale: FloatArray) -> bool:
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
        value = (topology.value(name) / scale).astype(np.float32)
        replace_value(topology.initializers[name], value)
    return True


def _insert(model: Any, tensor: str, readers: list[Any], scale: FloatArray) -> str:
    """Inserts a multiplication by 1 / scale before some nodes; gives its output."""
    scope = str(readers[0].name).rpartition("/")[0]
    name = f"{scope}/Smooth" if scope else f"{readers[0].name}_Smooth"
    output, factor = f"{name}:0", f"{name}:in1"
    model.graph.initializer.append(
        numpy_helper.from_array((1.0 / scale).astype(np.float32), factor)
    )
    node = onnx.helper.make_node("Mul", [tensor, factor], [output], name=name)
    position = next(i for i, other in enumerate(model.graph.node) if other.name == readers[0].name)
    model.graph.node.insert(position, node)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
    if tensor in known:
        value = copied(known[tensor])
        value.name = output
        model.graph.value_info.append(value)
    for reader in readers:
        reader.input[0] = output
    return output
