"""Half precision: FP16 weights and arithmetic, but where range or precision needs float32."""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from .graph import Topology
from .targets import heads

__all__ = ["to_half"]

_NORMS: Final = frozenset(
    {
        "BatchNormalization",
        "Exp",
        "GlobalAveragePool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "Pow",
        "Reciprocal",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
        "Sqrt",
    }
)
_ARITHMETIC: Final = ("Add", "Div", "Mul", "Sub")


def to_half(model: Any) -> Any:
    """A float16 graph whose inputs and outputs stay float32.

    Norms and softmax stay float32, written as one operator or taken apart: arithmetic that reads
    or feeds a mean, a root or a reciprocal belongs to them. So do the heads, which make scores and
    logits, and all that comes after.

    Args:
        model: Float32 onnx.ModelProto; left as it is.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    topology = Topology(copy)
    kept = topology.after(heads(topology)) | _norms(topology)
    return convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,  # done by read_graph
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_NORMS],
        node_block_list=sorted(kept),
    )


def _norms(topology: Topology) -> set[str]:
    """Arithmetic nodes next to a reduction, a root or a reciprocal."""
    found = set()
    for name, node in topology.nodes.items():
        if node.op_type not in _ARITHMETIC:
            continue
        makers = [topology.producer[tensor] for tensor in node.input if tensor in topology.producer]
        readers = [reader for tensor in node.output for reader in topology.consumers[tensor]]
        if any(other.op_type in _NORMS for other in (*makers, *readers)):
            found.add(name)
    return found
