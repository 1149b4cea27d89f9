"""Dynamic graphs: modules whose inputs may have any length → one `.onnx` file with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from mosrt.bundle.manifest import TensorSpec

from . import canonical
from .graph import convert, move_weights, quiet_exporter

__all__ = ["example_of", "write_dynamic_graph"]


def write_dynamic_graph(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
    producer: str,
) -> tuple[Path, Path | None]:
    """Writes a graph whose dimensions are dynamic where the specs have names.

    The same module gives the same bytes: nothing in the files depends on time, paths or the
    process.

    Args:
        module: In evaluation mode.
        examples: An input to trace with, for each of `inputs`; dynamic sizes above 1.
        inputs: Names and shapes of the inputs.
        outputs: Names and shapes of the outputs.
        path: Where the graph goes, `<stem>.onnx`; weights go to `<stem>.onnx.data`.
        producer: Name and version of the exporter, e.g. "mosrt 0.1.0".

    Returns:
        The graph's path, and the weights' path or None if there are none.
    """
    dynamic: Any = tuple(
        {i: torch.export.Dim.DYNAMIC for i, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    with quiet_exporter():
        program = torch.export.export(module, tuple(examples), dynamic_shapes=dynamic, strict=False)
        exported = convert(program, [spec.name for spec in inputs], [spec.name for spec in outputs])
    shapes = {spec.name: spec.shape for spec in (*inputs, *outputs)}
    canonical.canonicalise(exported, name="mosrt", producer=producer, shapes=shapes)
    weights: Path | None = path.with_name(f"{path.name}.data")
    if weights is not None and not move_weights(exported, weights):
        weights.unlink()
        weights = None
    path.write_bytes(ir.to_proto(exported).SerializeToString(deterministic=True))
    return path, weights


def example_of(spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    """Zeros of a spec's shape and type, with the named sizes filled in."""
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))
