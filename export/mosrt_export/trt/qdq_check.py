"""Zero points: graphs quantised for CPUs are refused before TensorRT misreads them.

TensorRT's 8 bits are signed and symmetric. It refuses a zero point other than 0, with words about
an accelerator that few machines have, and takes unsigned values with zero point 0 for signed ones,
which makes every value over 127 saturate without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mosrt.bundle.onnx_header import Node, Tensor, read_graph
from mosrt_export.errors import EngineError

__all__ = ["check_zero_points"]

# Numbers of TensorProto.DataType.
_UNSIGNED_OR_WIDE: Final = {2: "uint8", 4: "uint16", 5: "int16", 6: "int32", 21: "uint4"}
_QUANTIZE: Final = "QuantizeLinear"
_DEQUANTIZE: Final = "DequantizeLinear"
_INT32: Final = 6


def check_zero_points(path: Path) -> None:
    """Refuses a graph with quantisation that TensorRT does not have.

    Raises:
        EngineError: Naming the first node that is quantised to an unsigned type or around another
            zero point than 0; or the file cannot be read.
    """
    nodes, constants = read_graph(path)
    for node in nodes:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            try:
                reason = _reason(node, constants)
            except OSError as exc:
                raise EngineError(
                    f"{path}: its constants cannot be read ({exc}); copy the bundle again"
                ) from exc
            if reason is not None:
                raise EngineError(
                    f"{path}: node {node.name!r} ({node.op_type}) {reason}, and TensorRT knows "
                    "symmetric int8 only (all zero points 0); this looks like a variant for CPUs: "
                    "choose --variant int8-trt, or make one with `mosrt quantize`"
                )


def _reason(node: Node, constants: dict[str, Tensor]) -> str | None:
    """What is wrong with a node's zero point, if anything."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        unsigned = node.op_type == _QUANTIZE and node.integers.get("output_dtype", 0) in (0, 2)
        return "has no zero point, which means uint8" if unsigned else None
    tensor = constants.get(name)
    if tensor is None:
        return "has a zero point that is computed"
    # Biases are 32 bits wide, and only ever read.
    if tensor.data_type == _INT32 and node.op_type == _DEQUANTIZE and tensor.all_zeros():
        return None
    if tensor.data_type in _UNSIGNED_OR_WIDE:
        return f"is of type {_UNSIGNED_OR_WIDE[tensor.data_type]}"
    return None if tensor.all_zeros() else "has a zero point other than 0"
