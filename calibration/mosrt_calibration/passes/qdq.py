"""Integer graphs: Q/DQ pairs on our ranges.

The pairs go where ONNX Runtime's quantiser puts them, and the bytes are the same (a test compares
both). It is not used itself because it looks every tensor up in a list, copies all weights, and
takes their channels one by one: minutes for 200 million weights, where this takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mosrt_calibration.graph import WEIGHTED_OPS, Topology, rebuilt

from .qparams import (
    QuantParams,
    quant_params,
    rounded_bias,
    rounded_constant,
    rounded_weights,
    scales_for_bias,
    stored,
    stored_parameters,
    weight_scales,
)

__all__ = ["qdq_s8s8", "qdq_u8s8"]

Ranges = Mapping[str, tuple[float, float]]

# Operators that move values and make no new ones: what they give has the params of what they read.
_MOVES: Final = frozenset(
    {
        "AveragePool",
        "Flatten",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_CLIPS: Final = ("Clip", "Relu")
_BACK: Final = "_DequantizeLinear_Output"


def qdq_u8s8(model: Any, ranges: Ranges, nodes: Sequence[str], *, weight_bits: int = 8) -> Any:
    """Q/DQ for CPUs: unsigned asymmetric activations, signed weights per channel, int32 biases.

    Args:
        model: Float32 onnx.ModelProto; left as it is.
        ranges: Lowest and highest value of every activation that the nodes read or make.
        nodes: Names of the nodes to quantise, weighted or not.
        weight_bits: Of weights, 8 or 7; see `mosrt_calibration.passes.qparams.weight_scales`.
    """
    return _Insertion(model, ranges, nodes, symmetric=False, weight_bits=weight_bits).model()


def qdq_s8s8(model: Any, ranges: Ranges, nodes: Sequence[str]) -> Any:
    """Q/DQ for TensorRT: signed and symmetric throughout, so that every zero point is zero.

    Only what weighted nodes read is quantised: TensorRT decides itself where bytes go on, and it
    takes biases as floats.

    Args:
        model: Float32 onnx.ModelProto; left as it is.
        ranges: Lowest and highest value of every activation that the nodes read.
        nodes: Names of the weighted nodes to quantise.
    """
    return _Insertion(model, ranges, nodes, symmetric=True).model()


@dataclass(frozen=True, slots=True)
class _Bias:
    """What decides the form of a bias: what the node reads, its weights, and a factor."""

    name: str
    source: str
    weights: str
    factor: float


@dataclass(slots=True)
class _Plan:
    """What is to become bytes, and how.

    Attributes:
        params: By activation.
        shared: The activation whose params another one has.
        constants: Constants that are added or multiplied.
        weights: Axis of the outputs by weights.
        biases: By node.
        dropped: What nodes give whose clipping the range does anyway, by what they read.
    """

    params: dict[str, QuantParams | None] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    constants: dict[str, None] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    biases: dict[str, _Bias] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


class _Insertion:
    """Q/DQ pairs put into one graph."""

    def __init__(
        self,
        model: Any,
        ranges: Ranges,
        nodes: Sequence[str],
        *,
        symmetric: bool,
        weight_bits: int = 8,
    ) -> None:
        self._model = model
        self._ranges = dict(ranges)
        self._wanted = set(nodes)
        self._symmetric = symmetric
        self._weight_bits = weight_bits
        self._topology = Topology(model)
        self._plan = _Plan()
        self._constants: list[Any] = []
        # What nodes read instead of a tensor.
        self._renamed: dict[str, str] = {}
        # What a node reads as its bias.
        self._bias_of: dict[str, str] = {}

    def model(self) -> Any:
        """The graph with its pairs."""
        for node in self._model.graph.node:
            if node.name in self._wanted:
                self._look_at(node)
        params = {name: self._params(name) for name in self._plan.params}
        front = [*self._weights(params), *self._small_constants()]
        pairs = {name: self._pair(name, self._origin(name)) for name in params}
        for name, one in params.items():
            if self._origin(name) == name:
                self._constants += stored_parameters(name, one)
        made = front
        for value in self._model.graph.input:
            made += pairs.get(value.name, ())
        for node in self._model.graph.node:
            if node.output and node.output[0] in self._plan.dropped.values():
                made += pairs.get(node.output[0], ())
                continue
            made.append(self._rewired(node))
            for name in node.output:
                made += pairs.get(name, ())
        return rebuilt(self._model, made, [*self._model.graph.initializer, *self._constants])

    def _look_at(self, node: Any) -> None:
        """Notes what becomes bytes for a node."""
        if node.op_type in WEIGHTED_OPS and node.input[1] in self._topology.initializers:
            self._note(node.input[0])
            self._plan.weights[node.input[1]] = self._topology.output_axis(node)
            if not self._symmetric:
                self._note(node.output[0])
                self._note_bias(node)
        elif node.op_type in _MOVES:
            if node.input[0] in self._plan.params:
                for name in node.output:
                    self._note(name)
                    self._plan.shared[name] = node.input[0]
        elif node.op_type in _CLIPS:
            self._look_at_clip(node)
        else:
            for name in (*node.input, *node.output):
                self._note(name)

    def _look_at_clip(self, node: Any) -> None:
        """A node that only clips goes away where the range of what it gives does the same."""
        before, after = node.input[0], node.output[0]
        if before not in self._plan.params:
            return
        alone = self._topology.only_reader(before) is not None and before in self._topology.producer
        if alone and not self._symmetric:
            del self._plan.params[before]
            self._plan.dropped[before] = after
        self._note(after)

    def _note(self, name: str) -> None:
        if self._topology.is_float_activation(name):
            self._plan.params.setdefault(name)
            return
        constant = self._topology.initializers.get(name)
        if constant is not None and constant.data_type == TensorProto.FLOAT:
            self._plan.constants[name] = None

    def _note_bias(self, node: Any) -> None:
        """A bias is added to products of bytes where there is one number for every output."""
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias not in self._topology.initializers:
            return
        n_outputs = self._topology.initializers[node.input[1]].dims[
            self._topology.output_axis(node)
        ]
        if list(self._topology.initializers[bias].dims) != [n_outputs]:
            return
        factor = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
        self._plan.biases[node.name] = _Bias(bias, node.input[0], node.input[1], factor)

    def _origin(self, name: str) -> str:
        """The activation whose params a tensor has."""
        while name in self._plan.shared:
            name = self._plan.shared[name]
        return name

    def _params(self, name: str) -> QuantParams:
        low, high = self._ranges[self._origin(name)]
        return quant_params(low, high, symmetric=self._symmetric)

    def _weights(self, params: Mapping[str, QuantParams]) -> Iterator[Any]:
        """Weights and biases in their narrow form; gives the nodes that turn them back."""
        scales: dict[str, NDArray[np.float32]] = {}
        for weights, axis in self._plan.weights.items():
            scales[weights] = weight_scales(self._topology.value(weights), axis, self._weight_bits)
        for bias in self._plan.biases.values():
            wanted = scales_for_bias(self._bias(bias), params[bias.source][0], scales[bias.weights])
            scales[bias.weights] = np.maximum(scales[bias.weights], wanted)
        for weights, axis in self._plan.weights.items():
            value = self._topology.value(weights)
            self._constants += stored(weights, *rounded_weights(value, axis, scales[weights]))
            self._renamed[weights] = f"{weights}{_BACK}"
            yield _back(weights, axis=axis)
        taken: set[str] = set()
        for node, bias in self._plan.biases.items():
            name = f"{node}_{bias.name}" if bias.name in taken else bias.name
            taken.add(name)
            found, scale = rounded_bias(
                self._bias(bias), params[bias.source][0], scales[bias.weights]
            )
            self._constants += stored(name, found, (scale, np.zeros(scale.shape, np.int32)))
            self._bias_of[node] = f"{name}{_BACK}"
            yield _back(name, axis=0)

    def _bias(self, bias: _Bias) -> NDArray[np.float32]:
        return (bias.factor * self._topology.value(bias.name)).astype(np.float32)

    def _small_constants(self) -> Iterator[Any]:
        for name in self._plan.constants:
            found = rounded_constant(self._topology.value(name), symmetric=self._symmetric)
            self._constants += stored(name, *found)
            self._renamed[name] = f"{name}{_BACK}"
            yield _back(name)

    def _pair(self, name: str, params_of: str) -> list[Any]:
        """The pair behind an activation; a graph's output keeps its name."""
        source, back = name, f"{name}{_BACK}"
        if name in self._topology.outputs:
            source, back = f"{name}_QuantizeLinear_Input", name
        self._renamed[name] = back
        params = [f"{params_of}_scale", f"{params_of}_zero_point"]
        between = f"{name}_QuantizeLinear_Output"
        return [
            helper.make_node(
                "QuantizeLinear", [source, *params], [between], f"{name}_QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [between, *params], [back], f"{name}_DequantizeLinear"
            ),
        ]

    def _rewired(self, node: Any) -> Any:
        """A node that reads what the pairs give."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for i, name in enumerate(node.input):
            made.input[i] = self._renamed.get(name, name)
        if node.name in self._bias_of:
            made.input[2] = self._bias_of[node.name]
        for i, name in enumerate(node.output):
            kept = self._plan.dropped.get(name, name)
            while kept in self._plan.dropped:
                kept = self._plan.dropped[kept]
            quantised = kept in self._plan.params and kept in self._topology.outputs
            made.output[i] = f"{kept}_QuantizeLinear_Input" if quantised else kept
        for attribute in made.attribute:
            if attribute.name == "beta" and node.name in self._plan.biases:
                attribute.f = 1.0
        return made


def _back(name: str, **attributes: int) -> Any:
    """The node that makes floats of a constant's narrow form."""
    inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    label = f"{name}_DequantizeLinear"
    return helper.make_node("DequantizeLinear", inputs, [f"{name}{_BACK}"], label, **attributes)
