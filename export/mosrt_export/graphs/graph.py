"""Writes torch modules as ONNX files: a graph, and its weights in one file beside it.

The same module gives the same bytes: nothing in the files depends on time, paths or the process.
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn

from mosrt.bundle.manifest import TensorSpec

from .canonical import canonicalise

__all__ = ["OPSET", "OnnxModule", "example_of", "write_dynamic_graph", "write_graph"]

OPSET: Final = 18
_INLINE_BYTES: Final = 1024
_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4096


class OnnxModule(nn.Module):
    """A module that names the inputs and outputs of its graph.

    Attributes:
        input_names: Inputs in order.
        output_sizes: Outputs in order, and the size of each without the batch.
    """

    input_names: tuple[str, ...]
    output_sizes: dict[str, int]


def write_graph(
    model: OnnxModule, shapes: dict[str, tuple[int, ...]], path: Path
) -> tuple[Path, Path]:
    """Writes a graph whose batch size is dynamic and all other sizes static.

    Args:
        model: The module, in evaluation mode.
        shapes: Shape of each input without the batch, by name.
        path: The graph's file, `<stem>.onnx`; the weights go to `<stem>.onnx.data`.

    Returns:
        The graph's path and the weights' path.
    """
    # A batch of 2 for tracing: torch.export treats a size of 1 as a constant.
    examples = [torch.zeros(2, *shapes[name]) for name in model.input_names]
    batch = torch.export.Dim("batch", min=1, max=1024)
    dynamic = (tuple({0: batch} for _ in examples),)
    exported = _convert(model, examples, dynamic, model.input_names, list(model.output_sizes))
    weights, _ = _save(exported, path, None)
    return path, weights


def write_dynamic_graph(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
) -> tuple[Path, Path | None]:
    """Writes a graph whose dimensions are dynamic where the specs name them.

    Args:
        module: The module, in evaluation mode.
        examples: One tensor to trace with for each of `inputs`; dynamic sizes above 1.
        inputs: Names and shapes of the inputs.
        outputs: Names and shapes of the outputs.
        path: The graph's file, `<stem>.onnx`; weights go to `<stem>.onnx.data`.

    Returns:
        The graph's path, and the weights' path or None if there are none.
    """
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    exported = _convert(
        module, examples, dynamic, [spec.name for spec in inputs], [spec.name for spec in outputs]
    )
    weights, n_moved = _save(
        exported, path, {spec.name: spec.shape for spec in (*inputs, *outputs)}
    )
    if n_moved:
        return path, weights
    weights.unlink()
    return path, None


def example_of(spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    """Zeros with a spec's shape and dtype; `sizes` gives the sizes of its named dimensions."""
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _convert(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    dynamic: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    with _quiet_exporter():
        program = torch.export.export(module, tuple(examples), dynamic_shapes=dynamic, strict=False)
        converted: Any = torch.onnx.export(
            program,
            (),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    model: ir.Model = converted.model
    return model


def _save(
    model: ir.Model, path: Path, shapes: Mapping[str, Sequence[int | str]] | None
) -> tuple[Path, int]:
    """Writes both files; returns the weights' path and the number of tensors in it."""
    producer = f"mosrt {importlib.metadata.version('mosrt')}"
    canonicalise(model, name="mosrt", producer=producer, shapes=shapes)
    weights = path.with_name(f"{path.name}.data")
    n_moved = _move_weights(model, weights)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return weights, n_moved


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hides warnings of torch's exporter about its own internals."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _move_weights(model: ir.Model, path: Path) -> int:
    """Writes large float tensors to `path` and makes the model refer to them there.

    The layout is written here because the library's has changed between versions. Every tensor
    starts on a cache line and every large one on a page, so that a runtime can map the file.
    """
    n_moved = 0
    with path.open("wb") as stream:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _INLINE_BYTES or tensor.dtype != ir.DataType.FLOAT:
                continue
            alignment = _PAGE_BYTES if tensor.nbytes >= _PAGE_BYTES else _ALIGNMENT_BYTES
            stream.write(b"\0" * (-stream.tell() % alignment))
            offset = stream.tell()
            stream.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                location=path.name,
                offset=offset,
                length=tensor.nbytes,
                dtype=tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=path.parent,
            )
            n_moved += 1
    return n_moved
