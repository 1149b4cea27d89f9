"""Selects the nodes to quantise, and groups them into blocks that can be kept in FP32."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from mosrt.bundle.front_end_spec import FRONT_END_SCOPE
from mosrt_calibration.graph import Topology

__all__ = ["Targets", "blocks", "front_end", "heads"]

# Operators that ONNX Runtime's CPU kernels run in INT8 between two weighted nodes. Others (norms,
# softmax, reductions, erf) would dequantise and quantise again.
_BETWEEN: Final = frozenset({
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool",
    "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_FUSED: Final = ("Clip", "Relu")
MOST_BLOCKS: Final = 64
# The first number of a module path that goes on after it: the 0 of "backbones.0.blocks.3.1".
_BRANCH: Final = re.compile(r"^([^0-9]*\.)[0-9]+(\..+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The nodes of a graph to quantise.

    Attributes:
        weighted: Names of nodes with constant weights, except heads and a front end.
        between: Names of inexpensive nodes whose inputs are all quantised, on a path to another
            weighted node or fused into the one before.
        part: By name of a node, the smallest unit around it that can be kept in FP32.
        block: By name of a part, the block whose sensitivity is measured. In models of up to 64
            parts, each part is a block.
    """

    weighted: tuple[str, ...]
    between: tuple[str, ...]
    part: dict[str, str]
    block: dict[str, str]

    @classmethod
    def of(cls, topology: Topology) -> Targets:
        """The targets of a graph."""
        left_out = heads(topology) | front_end(topology)
        weighted = tuple(
            name
            for name, node in topology.nodes.items()
            if topology.weighted(node) and name not in left_out
        )
        between = _between(topology, weighted)
        found = blocks(topology)
        part = _of_like_branches({name: found[name] for name in (*weighted, *between)}, weighted)
        block = _of_stages(part, weighted)
        return cls(weighted=weighted, between=between, part=part, block=block)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Parts with weights to quantise by block, both in the order of the graph."""
        found: dict[str, dict[str, None]] = {}
        for part in dict.fromkeys(self.part[name] for name in self.weighted):
            found.setdefault(self.block[part], {})[part] = None
        # A part with the name of the block cannot be told from the block.
        return {
            block: (block,) if block in parts else tuple(parts) for block, parts in found.items()
        }

    def keeps_fp32(self, node: str, kept_fp32: Collection[str]) -> bool:
        """Whether a node is in one of the given blocks or parts."""
        part = self.part[node]
        return part in kept_fp32 or self.block[part] in kept_fp32

    def only(
        self, topology: Topology, weighted: Collection[str], kept_fp32: Collection[str]
    ) -> Targets:
        """The targets if only some weighted nodes are quantised, and some blocks are kept in FP32.

        Args:
            topology: Topology of the graph.
            weighted: Names of the weighted nodes to quantise.
            kept_fp32: Names of blocks or parts.
        """
        kept = tuple(name for name in self.weighted if name in weighted)
        between = tuple(
            name
            for name in _between(topology, kept)
            if name in self.part and not self.keeps_fp32(name, kept_fp32)
        )
        return dataclasses.replace(self, weighted=kept, between=between)

    def tensors(self, topology: Topology) -> tuple[str, ...]:
        """The activations that targets read and make, whose ranges are needed."""
        nodes = [topology.nodes[name] for name in (*self.weighted, *self.between)]
        read_or_made = (tensor for node in nodes for tensor in (*node.input, *node.output))
        return tuple(dict.fromkeys(filter(topology.is_float_activation, read_or_made)))


def front_end(topology: Topology) -> set[str]:
    """Names of the front end's nodes, if the graph contains one.

    They are kept in FP32, because the range of power spectra is too wide for FP16 and INT8.
    """
    return {
        name for name, node in topology.nodes.items() if FRONT_END_SCOPE in _scope(node).split(".")
    }


def heads(topology: Topology) -> set[str]:
    """Gemm and MatMul nodes with no weighted node after them, which compute scores and logits.

    They are kept in FP32: they cost next to nothing, and an INT8 score would have 256 levels.
    """
    weighted = {name for name, node in topology.nodes.items() if topology.weighted(node)}
    return {
        name
        for name in weighted
        if topology.nodes[name].op_type in ("Gemm", "MatMul")
        and topology.after([name]) & weighted == {name}
    }


def _between(topology: Topology, weighted: Collection[str]) -> tuple[str, ...]:
    on_the_way = topology.before(weighted)
    quantised = dict.fromkeys(weighted)
    for name, node in topology.nodes.items():  # in topological order
        wanted = name in on_the_way or node.op_type in _FUSED
        if not wanted or node.op_type not in _BETWEEN or name in quantised:
            continue
        inputs = [tensor for tensor in node.input if topology.is_float_activation(tensor)]
        makers = [topology.producer.get(tensor) for tensor in inputs]
        if inputs and all(maker is not None and maker.name in quantised for maker in makers):
            quantised[name] = None
    return tuple(quantised)[len(weighted) :]


def blocks(topology: Topology) -> dict[str, str]:
    """The block of every node, by the node's name.

    Names of nodes contain the module they come from, as in "mel.stages.3.first.0/Conv". A block is
    the innermost numbered module with at least two weighted nodes, such as a residual block or a
    transformer layer ("mel.stages.3"). Where there is none, it is the module up to its next number
    ("mel.stages.0", "mel.frame"). A node without a module belongs to the block of the node that
    feeds it, or is a block of its own if it has weights.
    """
    weights = Counter(
        prefix
        for node in topology.nodes.values()
        if topology.weighted(node)
        for prefix in _numbered(_scope(node))
    )
    large = {prefix for prefix, count in weights.items() if count >= 2}
    units = {p for p in large if not any(q.startswith(f"{p}.") for q in large)}
    found: dict[str, str] = {}
    for name, node in topology.nodes.items():
        scope = _scope(node)
        if scope:
            found[name] = _block(scope, units, large)
            continue
        feeding = [topology.producer[t].name for t in node.input if t in topology.producer]
        begins = topology.weighted(node) or not feeding
        found[name] = name if begins else found.get(feeding[0], name)
    return found


def _of_like_branches(part: dict[str, str], weighted: Collection[str]) -> dict[str, str]:
    """Parts, where in a large model equal places of similar branches are one part.

    Such a part is "backbones.*.blocks.3.1".
    """
    if len({part[name] for name in weighted}) <= MOST_BLOCKS:
        return part
    return {node: _BRANCH.sub(r"\1*\2", name, count=1) for node, name in part.items()}


def _of_stages(part: dict[str, str], weighted: Collection[str]) -> dict[str, str]:
    """The block of each part. The deepest parts are merged by stage until there are few blocks.

    The sensitivity of each block may have to be measured, so there must not be too many. The search
    splits expensive blocks into their parts again.
    """
    block = {name: name for name in part.values()}
    while len({block[part[node]] for node in weighted}) > MOST_BLOCKS:
        depth = max(len(_numbered(name)) for name in block.values())
        if depth < 2:
            break
        block = {
            name: _numbered(whole)[-2] if len(_numbered(whole)) == depth else whole
            for name, whole in block.items()
        }
    return block


def _scope(node: Any) -> str:
    return str(node.name).rpartition("/")[0]


def _numbered(scope: str) -> list[str]:
    """All prefixes of a dotted name that end in a number, shortest first."""
    parts = scope.split(".")
    return [".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdecimal()]


def _block(scope: str, units: Collection[str], large: Collection[str]) -> str:
    numbered = _numbered(scope)
    unit = next((prefix for prefix in numbered if prefix in units), None)
    outer = max((prefix for prefix in numbered if prefix in large), key=len, default="")
    return unit or next((prefix for prefix in numbered if len(prefix) > len(outer)), scope)
