"""Inserts QuantizeLinear/DequantizeLinear (Q/DQ) pairs into a graph.

The pairs are where ONNX Runtime's quantiser puts them, with the same values; a test compares both.
That quantiser is not used because it takes minutes for 200 million weights, which take seconds
here: it searches lists for every tensor, copies all weights, and quantises channel by channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mosrt_calibration.graph import WEIGHTED_OPS, Topology, copied, rebuilt

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

# Operators whose outputs have the quantisation parameters of their inputs.
_MOVES: Final = frozenset({
    "AveragePool", "Flatten", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_CLIPS: Final = ("Clip", "Relu")
_DEQUANTISED: Final = "_DequantizeLinear_Output"


def qdq_u8s8(model: Any, ranges: Ranges, nodes: Sequence[str], *, weight_bits: int = 8) -> Any:
    """Q/DQ for CPUs: asymmetric UINT8 activations, INT8 weights per channel, INT32 biases.

    Args:
        model: FP32 onnx.ModelProto; not changed.
        ranges: Lowest and highest value of every activation that the nodes read or make.
        nodes: Names of the nodes to quantise, weighted or not.
        weight_bits: Bits of the weights, 8 or 7; see `qparams.weight_scales`.
    """
    return _Insertion(model, ranges, nodes, symmetric=False, weight_bits=weight_bits).model()


def qdq_s8s8(model: Any, ranges: Ranges, nodes: Sequence[str]) -> Any:
    """Q/DQ for TensorRT: symmetric INT8 throughout, so that every zero point is zero.

    Only the inputs of weighted nodes are quantised. TensorRT decides where INT8 continues, and
    takes biases in FP32.

    Args:
        model: FP32 onnx.ModelProto; not changed.
        ranges: Lowest and highest value of every activation that the nodes read.
        nodes: Names of the weighted nodes to quantise.
    """
    return _Insertion(model, ranges, nodes, symmetric=True).model()


@dataclass(frozen=True, slots=True)
class _Bias:
    """A bias with the tensors whose scales it depends on, and a factor."""

    name: str
    source: str
    weights: str
    factor: float


@dataclass(slots=True)
class _Plan:
    """Tensors to quantise.

    Attributes:
        params: Activations to quantise.
        shared: Activations that take the parameters of another one, with its name.
        constants: Constants that are added or multiplied.
        weights: Output axis of each weight tensor.
        biases: Biases by node.
        dropped: Outputs of nodes that clip as the range does, by the tensor that they read.
    """

    params: dict[str, QuantParams | None] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    constants: dict[str, None] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    biases: dict[str, _Bias] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


class _Insertion:
    """Inserts Q/DQ pairs into one graph."""

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
        # The tensor that nodes read instead of another.
        self._renamed: dict[str, str] = {}
        # The bias of each node.
        self._bias_of: dict[str, str] = {}

    def model(self) -> Any:
        """The graph with Q/DQ pairs."""
        for node in self._model.graph.node:
            if node.name in self._wanted:
                self._plan_node(node)
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

    def _plan_node(self, node: Any) -> None:
        """Plans which tensors of a node are quantised."""
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
            self._plan_clip(node)
        else:
            for name in (*node.input, *node.output):
                self._note(name)

    def _plan_clip(self, node: Any) -> None:
        """Drops a node that only clips, if the range of its output does the same."""
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
        """Plans the bias of a node, if it has one value for every output."""
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
        """The activation whose parameters a tensor has."""
        while name in self._plan.shared:
            name = self._plan.shared[name]
        return name

    def _params(self, name: str) -> QuantParams:
        low, high = self._ranges[self._origin(name)]
        return quant_params(low, high, symmetric=self._symmetric)

    def _weights(self, params: Mapping[str, QuantParams]) -> Iterator[Any]:
        """Quantises weights and biases; gives the nodes that dequantise them."""
        scales: dict[str, NDArray[np.float32]] = {}
        for weights, axis in self._plan.weights.items():
            scales[weights] = weight_scales(self._topology.value(weights), axis, self._weight_bits)
        for bias in self._plan.biases.values():
            wanted = scales_for_bias(self._bias(bias), params[bias.source][0], scales[bias.weights])
            scales[bias.weights] = np.maximum(scales[bias.weights], wanted)
        for weights, axis in self._plan.weights.items():
            value = self._topology.value(weights)
            self._constants += stored(weights, *rounded_weights(value, axis, scales[weights]))
            self._renamed[weights] = f"{weights}{_DEQUANTISED}"
            yield _dequantise(weights, axis=axis)
        taken: set[str] = set()
        for node, bias in self._plan.biases.items():
            name = f"{node}_{bias.name}" if bias.name in taken else bias.name
            taken.add(name)
            found, scale = rounded_bias(
                self._bias(bias), params[bias.source][0], scales[bias.weights]
            )
            self._constants += stored(name, found, (scale, np.zeros(scale.shape, np.int32)))
            self._bias_of[node] = f"{name}{_DEQUANTISED}"
            yield _dequantise(name, axis=0)

    def _bias(self, bias: _Bias) -> NDArray[np.float32]:
        return (bias.factor * self._topology.value(bias.name)).astype(np.float32)

    def _small_constants(self) -> Iterator[Any]:
        for name in self._plan.constants:
            found = rounded_constant(self._topology.value(name), symmetric=self._symmetric)
            self._constants += stored(name, *found)
            self._renamed[name] = f"{name}{_DEQUANTISED}"
            yield _dequantise(name)

    def _pair(self, name: str, params_of: str) -> list[Any]:
        """The pair behind an activation. An output of the graph keeps its name."""
        source, output = name, f"{name}{_DEQUANTISED}"
        if name in self._topology.outputs:
            source, output = f"{name}_QuantizeLinear_Input", name
        self._renamed[name] = output
        params = [f"{params_of}_scale", f"{params_of}_zero_point"]
        between = f"{name}_QuantizeLinear_Output"
        return [
            helper.make_node(
                "QuantizeLinear", [source, *params], [between], f"{name}_QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [between, *params], [output], f"{name}_DequantizeLinear"
            ),
        ]

    def _rewired(self, node: Any) -> Any:
        """A node that reads the outputs of the pairs."""
        made = copied(node)
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


def _dequantise(name: str, **attributes: int) -> Any:
    """The node that dequantises a constant."""
    inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    label = f"{name}_DequantizeLinear"
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}{_DEQUANTISED}"], label, **attributes
    )
