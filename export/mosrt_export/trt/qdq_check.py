"""Refuses graphs that are quantised in a way that TensorRT does not support.

TensorRT's INT8 is signed and symmetric. It rejects zero points other than 0 with a misleading
message, and reads unsigned values with zero point 0 as signed ones, so that values over 127
saturate without a warning.
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
    """Refuses a graph with quantisation that TensorRT does not support.

    Raises:
        EngineError: A node is quantised to an unsigned type or has a zero point other than 0, or
            constants cannot be read.
        BundleError: The file is not an ONNX file.
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
                    f"{path}: node {node.name!r} ({node.op_type}) {reason}, but TensorRT "
                    "supports symmetric int8 only (all zero points 0); this may be a variant for "
                    "CPUs: choose --variant int8-trt, or make one with `mosrt quantize`"
                )


def _reason(node: Node, constants: dict[str, Tensor]) -> str | None:
    """The problem with a node's zero point, or None."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        unsigned = node.op_type == _QUANTIZE and node.integers.get("output_dtype", 0) in (0, 2)
        return "has no zero point, which means uint8" if unsigned else None
    tensor = constants.get(name)
    if tensor is None:
        return "has a zero point that is computed"
    # Biases have 32 bits and are only dequantised.
    if tensor.data_type == _INT32 and node.op_type == _DEQUANTIZE and tensor.all_zeros():
        return None
    if tensor.data_type in _UNSIGNED_OR_WIDE:
        return f"is of type {_UNSIGNED_OR_WIDE[tensor.data_type]}"
    return None if tensor.all_zeros() else "has a zero point other than 0"
