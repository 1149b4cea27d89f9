"""Inserts QuantizeLinear/DequantizeLinear (Q/DQ) pairs into a graph.

The pairs are where ONNX Runtime's quantiser puts them, with the same values; a test compares both.
That quantiser is not used because it takes minutes for 200 million weights, which take seconds
here: it searches lists for every tensor, copies all weights, and quantises channel by channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper

from mosrt_calibration.graph import Topology, attribute, copied, rebuilt

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

__all__ = ["with_qdq"]

Ranges = Mapping[str, tuple[float, float]]

# Operators whose outputs have the quantisation parameters of their inputs.
_MOVES: Final = frozenset({
    "AveragePool", "Flatten", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_CLIPS: Final = ("Clip", "Relu")
_DEQUANTISED: Final = "_DequantizeLinear_Output"


def with_qdq(
    model: Any, ranges: Ranges, nodes: Sequence[str], *, symmetric: bool, weight_bits: int = 8
) -> Any:
    """A graph with Q/DQ pairs, for CPUs or symmetric for TensorRT.

    For CPUs, activations are asymmetric UINT8, weights INT8 per channel, and biases INT32. For
    TensorRT all is symmetric INT8, so that every zero point is zero, and only the inputs of
    weighted nodes are quantised: TensorRT decides where INT8 continues, and takes biases in FP32.

    Args:
        model: FP32 onnx.ModelProto; not changed.
        ranges: Lowest and highest value of every activation that the nodes read or make.
        nodes: Names of the nodes to quantise; weighted ones only if symmetric.
        symmetric: Whether the graph is for TensorRT.
        weight_bits: Bits of the weights, 8 or 7; see `qparams.weight_scales`.
    """
    return _Insertion(model, ranges, nodes, symmetric, weight_bits).model()


class _Insertion:
    """Inserts Q/DQ pairs into one graph."""

    def __init__(
        self, model: Any, ranges: Ranges, nodes: Sequence[str], symmetric: bool, weight_bits: int
    ) -> None:
        self._model = model
        self._ranges = ranges
        self._wanted = set(nodes)
        self._symmetric = symmetric
        self._weight_bits = weight_bits
        self._topology = Topology(model)
        # Activations to quantise, and constants that are added or multiplied.
        self._activations: dict[str, None] = {}
        self._small: dict[str, None] = {}
        # The activation whose parameters another one takes.
        self._shared: dict[str, str] = {}
        # Output axis of weights.
        self._weights: dict[str, int] = {}
        # The nodes whose biases are quantised.
        self._biased: dict[str, Any] = {}
        # Outputs of nodes that clip as the range does, by the tensor that they read.
        self._dropped: dict[str, str] = {}
        # What is made: constants, and the tensors that nodes read instead of others.
        self._constants: list[Any] = []
        self._renamed: dict[str, str] = {}
        self._bias_of: dict[str, str] = {}

    def model(self) -> Any:
        """The graph with Q/DQ pairs."""
        for node in self._model.graph.node:
            if node.name in self._wanted:
                self._plan_node(node)
        params = {name: self._params(name) for name in self._activations}
        made = [*self._dequantised_weights(params), *self._dequantised_constants()]
        pairs = {name: self._pair(name) for name in params}
        for name, one in params.items():
            if name not in self._shared:
                self._constants += stored_parameters(name, one)
        for value in self._model.graph.input:
            made += pairs.get(value.name, ())
        for node in self._model.graph.node:
            if not node.output or node.output[0] not in self._dropped.values():
                made.append(self._rewired(node))
            for name in node.output:
                made += pairs.get(name, ())
        return rebuilt(self._model, made, [*self._model.graph.initializer, *self._constants])

    def _plan_node(self, node: Any) -> None:
        """Plans which tensors of a node are quantised."""
        if self._topology.weighted(node):
            self._note(node.input[0])
            self._weights[node.input[1]] = self._topology.output_axis(node)
            if not self._symmetric:
                self._note(node.output[0])
                if self._has_bias(node):
                    self._biased[node.name] = node
        elif node.op_type in _MOVES:
            if node.input[0] in self._activations:
                for name in node.output:
                    self._note(name)
                    self._shared[name] = node.input[0]
        elif node.op_type in _CLIPS:
            self._plan_clip(node)
        else:
            for name in (*node.input, *node.output):
                self._note(name)

    def _plan_clip(self, node: Any) -> None:
        """Drops a node that only clips, if the range of its output does the same."""
        before, after = node.input[0], node.output[0]
        if before not in self._activations:
            return
        alone = self._topology.only_reader(before) is not None and before in self._topology.producer
        if alone and not self._symmetric:
            del self._activations[before]
            self._dropped[before] = after
        self._note(after)

    def _note(self, name: str) -> None:
        constant = self._topology.initializers.get(name)
        if self._topology.is_float_activation(name):
            self._activations[name] = None
        elif constant is not None and constant.data_type == TensorProto.FLOAT:
            self._small[name] = None

    def _has_bias(self, node: Any) -> bool:
        """Whether a node has a constant bias with one value for every output."""
        constants = self._topology.initializers
        if len(node.input) < 3 or node.input[2] not in constants:
            return False
        n_outputs = constants[node.input[1]].dims[self._topology.output_axis(node)]
        return list(constants[node.input[2]].dims) == [n_outputs]

    def _origin(self, name: str) -> str:
        """The activation whose parameters a tensor has."""
        while name in self._shared:
            name = self._shared[name]
        return name

    def _params(self, name: str) -> QuantParams:
        low, high = self._ranges[self._origin(name)]
        return quant_params(low, high, symmetric=self._symmetric)

    def _dequantised_weights(self, params: Mapping[str, QuantParams]) -> Iterator[Any]:
        """Quantises weights and biases; gives the nodes that dequantise them."""
        values = {weights: self._topology.value(weights) for weights in self._weights}
        scales = {
            weights: weight_scales(values[weights], axis, self._weight_bits)
            for weights, axis in self._weights.items()
        }
        biases = {}
        for name, node in self._biased.items():
            factor = attribute(node, "beta", 1.0)
            biases[name] = (factor * self._topology.value(node.input[2])).astype(np.float32)
            source, weights = node.input[:2]
            wanted = scales_for_bias(biases[name], params[source][0], scales[weights])
            scales[weights] = np.maximum(scales[weights], wanted)
        for weights, axis in self._weights.items():
            self._constants += stored(
                weights, *rounded_weights(values[weights], axis, scales[weights])
            )
            self._renamed[weights] = f"{weights}{_DEQUANTISED}"
            yield _dequantise(weights, axis=axis)
        taken: set[str] = set()
        for label, node in self._biased.items():
            source, weights, bias = node.input
            name = f"{label}_{bias}" if bias in taken else bias
            taken.add(name)
            found, scale = rounded_bias(biases[label], params[source][0], scales[weights])
            self._constants += stored(name, found, (scale, np.zeros(scale.shape, np.int32)))
            self._bias_of[label] = f"{name}{_DEQUANTISED}"
            yield _dequantise(name, axis=0)

    def _dequantised_constants(self) -> Iterator[Any]:
        """Quantises constants that are added or multiplied, as weights are."""
        for name in self._small:
            found = rounded_constant(self._topology.value(name), symmetric=self._symmetric)
            self._constants += stored(name, *found)
            self._renamed[name] = f"{name}{_DEQUANTISED}"
            yield _dequantise(name)

    def _pair(self, name: str) -> list[Any]:
        """The pair behind an activation. An output of the graph keeps its name."""
        source, output = name, f"{name}{_DEQUANTISED}"
        if name in self._topology.outputs:
            source, output = f"{name}_QuantizeLinear_Input", name
        self._renamed[name] = output
        params = [f"{self._origin(name)}{end}" for end in ("_scale", "_zero_point")]
        between = f"{name}_QuantizeLinear_Output"
        return [
            helper.make_node(op, [read, *params], [made], f"{name}_{op}")
            for op, read, made in (
                ("QuantizeLinear", source, between),
                ("DequantizeLinear", between, output),
            )
        ]

    def _rewired(self, node: Any) -> Any:
        """A node that reads the outputs of the pairs."""
        made = copied(node)
        for i, name in enumerate(node.input):
            made.input[i] = self._renamed.get(name, name)
        if node.name in self._bias_of:
            made.input[2] = self._bias_of[node.name]
        for i, name in enumerate(node.output):
            kept = self._dropped.get(name, name)
            while kept in self._dropped:
                kept = self._dropped[kept]
            quantised = kept in self._activations and kept in self._topology.outputs
            made.output[i] = f"{kept}_QuantizeLinear_Input" if quantised else kept
        for one in made.attribute:
            if one.name == "beta" and node.name in self._biased:
                one.f = 1.0
        return made


def _dequantise(name: str, **attributes: int) -> Any:
    """The node that dequantises a constant."""
    inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    label = f"{name}_DequantizeLinear"
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}{_DEQUANTISED}"], label, **attributes
    )
