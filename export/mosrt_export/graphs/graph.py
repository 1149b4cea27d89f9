"""ONNX graphs: an `OnnxModule` → one `.onnx` file and one file of weights beside it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn

from . import canonical

__all__ = ["OPSET", "OnnxModule", "convert", "move_weights", "quiet_exporter", "write_graph"]

OPSET: Final = 18
_INLINE_BYTES: Final = 1024
_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4096


class OnnxModule(nn.Module):
    """A module with the names that its graph is to have.

    Attributes:
        input_names: Inputs in order.
        output_sizes: Outputs in order, and the size of each beside the batch.
    """

    input_names: tuple[str, ...]
    output_sizes: dict[str, int]


def write_graph(
    model: OnnxModule, shapes: dict[str, tuple[int, ...]], path: Path, *, producer: str
) -> tuple[Path, Path]:
    """Writes a graph whose batch is dynamic and everything else static.

    The same model gives the same bytes: nothing in the files depends on time, paths or the
    process.

    Args:
        model: The exported form of a model.
        shapes: Shape of each input without the batch, by name.
        path: Where the graph goes, `<stem>.onnx`; the weights go to `<stem>.onnx.data`.
        producer: Name and version of the exporter, e.g. "mosrt 0.1.0".

    Returns:
        The graph's path and the weights' path.
    """
    exported = _trace(model, shapes)
    canonical.canonicalise(exported, name="mosrt", producer=producer)
    weights = path.with_name(f"{path.name}.data")
    move_weights(exported, weights)
    proto = ir.to_proto(exported)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path, weights


def _trace(model: OnnxModule, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    # a batch of 2 for tracing: torch.export treats a size of 1 as a constant
    example = tuple(torch.zeros(2, *shapes[name]) for name in model.input_names)
    batch = torch.export.Dim("batch", min=1, max=1024)
    with quiet_exporter():
        program = torch.export.export(
            model, example, dynamic_shapes=(tuple({0: batch} for _ in example),), strict=False
        )
        return convert(program, list(model.input_names), list(model.output_sizes))


def convert(
    program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]
) -> ir.Model:
    """A traced program as ONNX, its inputs and outputs named."""
    converted: Any = torch.onnx.export(
        program,
        (),
        input_names=inputs,
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    result: ir.Model = converted.model
    return result


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides the exporter's own remarks about its own internals."""
    remarks = logging.getLogger("onnxscript")
    level = remarks.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        remarks.setLevel(logging.ERROR)
        try:
            yield
        finally:
            remarks.setLevel(level)


def move_weights(model: ir.Model, path: Path) -> int:
    """Writes large float tensors to `path` and makes the model refer to them there.

    Done here and not by the library because its layout has changed between versions: every tensor
    starts on a cache line and every large one on a page, so that a runtime can map the file.

    Returns:
        How many tensors went there.
    """
    moved = 0
    with path.open("wb") as sink:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _INLINE_BYTES or tensor.dtype != ir.DataType.FLOAT:
                continue
            alignment = _PAGE_BYTES if tensor.nbytes >= _PAGE_BYTES else _ALIGNMENT_BYTES
            sink.write(b"\0" * (-sink.tell() % alignment))
            offset = sink.tell()
            sink.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                location=path.name,
                offset=offset,
                length=tensor.nbytes,
                dtype=tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=path.parent,
            )
            moved += 1
    return moved
