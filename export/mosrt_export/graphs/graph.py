"""Writes torch modules as ONNX files: a graph, and its weights in one file beside it.

Nodes and tensors get readable names, and means over images a faster operator. The same module gives
the same bytes: nothing in the files depends on time, paths, the process or the machine.
"""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from mosrt.bundle.front_end_spec import FRONT_END_SCOPE
from mosrt.bundle.manifest import Member, TensorSpec
from mosrt.bundle.writer import bundle_file

__all__ = ["BATCH", "FRAMES", "OPSET", "OnnxModule", "tensor", "write_graph"]

BATCH: Final = "batch"
OPSET: Final = 18
FRAMES: Final = "frames"
"""Output (batch, frames, size) of a graph that says what it knows of each frame of a segment."""
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
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
    name: str,
    module: nn.Module,
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sizes: Mapping[str, int] | None = None,
    half_weights: bool = False,
) -> Member:
    """Writes a graph whose dimensions are dynamic where the specs name them.

    Args:
        name: Name of the network in its bundle.
        module: The module, in evaluation mode.
        path: The graph's file, `<stem>.onnx`; weights go to `<stem>.onnx.data`.
        inputs: Names, dtypes and shapes of the inputs.
        outputs: Names and shapes of the outputs.
        sizes: A size above 1 for each named dimension of the inputs, to trace with; by default a
            batch of 2.
        half_weights: Whether weights are rounded to float16 in the file, except those of the front
            end. The graph computes in float32: an engine converts them when it loads the graph.

    Returns:
        The network's entry in the manifest.
    """
    shapes = {spec.name: spec.shape for spec in (*inputs, *outputs)}
    model = _convert(module, inputs, [spec.name for spec in outputs], sizes or {BATCH: 2})
    _use_global_pooling(model.graph)
    _name_nodes(model.graph)
    _name_values(model.graph)
    if {size for spec in inputs for size in spec.shape if isinstance(size, str)} == {BATCH}:
        _name_batch(model.graph)
    else:
        _name_dimensions(model.graph, shapes)
    _forget_origin(model)
    if half_weights:
        _halve_weights(model.graph)
    weights = _move_weights(model, path.with_name(f"{path.name}.data"))
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return Member(
        name=name,
        graph=bundle_file(path),
        weights=None if weights is None else bundle_file(weights),
    )


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    """An input or output of a graph."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _convert(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: list[str], sizes: Mapping[str, int]
) -> ir.Model:
    """Traces a module with zeros."""
    examples = [
        torch.zeros(
            [sizes[size] if isinstance(size, str) else size for size in spec.shape],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in inputs
    ]
    dynamic: Any = tuple(
        {i: torch.export.Dim.DYNAMIC for i, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    if isinstance(module, OnnxModule):
        dynamic = (dynamic,)  # its `forward` takes *inputs
    with _quiet_exporter():
        program = torch.export.export(module, tuple(examples), dynamic_shapes=dynamic, strict=False)
        converted: Any = torch.onnx.export(
            program,
            (),
            input_names=[spec.name for spec in inputs],
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    model: ir.Model = converted.model
    return model


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


def _move_weights(model: ir.Model, path: Path) -> Path | None:
    """Writes large float tensors to `path`, if there are any, and makes the model refer to them.

    The layout is written here because the library's has changed between versions. Every tensor
    starts on a cache line and every large one on a page, so that a runtime can map the file.
    """
    with path.open("wb") as stream:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
            if tensor is None or tensor.nbytes < _INLINE_BYTES or tensor.dtype not in kinds:
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
    if path.stat().st_size:
        return path
    path.unlink()
    return None


def _halve_weights(graph: ir.Graph) -> None:
    """Rounds large weights to float16, and converts them to float32 where they are used."""
    casts = []
    for name, value in list(graph.initializers.items()):
        weights = value.const_value
        if weights is None or weights.nbytes < _INLINE_BYTES or weights.dtype != ir.DataType.FLOAT:
            continue
        if FRONT_END_SCOPE in name.partition("/")[0].split("."):
            continue
        half = ir.tensor(weights.numpy().astype(np.float16), name=f"{name}:half")
        stored = ir.Value(name=half.name, shape=value.shape, const_value=half)
        stored.type = ir.TensorType(half.dtype)
        cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", ir.DataType.FLOAT)])
        cast.name, cast.outputs[0].name = f"{name}/Cast", f"{name}:float"
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.initializers.add(stored)
        casts.append(cast)
    graph.insert_before(graph[0], casts)


def _use_global_pooling(graph: ir.Graph) -> None:
    """Replaces means over an image by GlobalAveragePool, which runs in a blocked layout."""
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.attributes.get_int("keepdims", 1) != 1:
            continue
        source, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        if source is None or source.shape is None or axes is None or axes.const_value is None:
            continue
        rank = len(source.shape)
        if rank == 4 and sorted(int(a) % rank for a in axes.const_value.numpy()) == [2, 3]:
            kept = dict(node.metadata_props)
            pool = ir.Node("", "GlobalAveragePool", [source], metadata_props=kept)
            pool.outputs[0].shape = node.outputs[0].shape
            pool.outputs[0].type = node.outputs[0].type
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], [pool], node.outputs, pool.outputs
            )


def _name_nodes(graph: ir.Graph) -> None:
    """Names nodes after the module they come from, e.g. "ssl.…layers.3.attention.q_proj/MatMul"."""
    seen: Counter[str] = Counter()
    for node in graph:
        label = f"{_scope(node)}/{node.op_type}".lstrip("/")
        seen[label] += 1
        node.name = label if seen[label] == 1 else f"{label}_{seen[label]}"


def _scope(node: ir.Node) -> str:
    """Dotted name of the module a node was traced in, or "" if the exporter added the node."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) >= 2 else ""


def _name_values(graph: ir.Graph) -> None:
    """Names tensors after the node that computes them, constants after their first reader."""
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for i, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = f"{node.name}:{i}"
    constants: dict[int, ir.Value] = {}
    for node in graph:
        for i, read in enumerate(node.inputs):
            if read is not None and read.is_initializer() and id(read) not in constants:
                constants[id(read)] = read
                if (read.name or "").startswith("val_"):
                    read.name = f"{node.name}:in{i}"
    # In the order of first use, which drops unused constants.
    graph.initializers.clear()
    for read in constants.values():
        graph.initializers.add(read)


def _name_batch(graph: ir.Graph) -> None:
    """Names the dynamic dimension "batch" wherever it appears, as in "2*batch".

    Intermediate shapes are kept, because ONNX Runtime fuses more where it knows them.
    """
    symbol = next(
        dim for value in graph.inputs for dim in value.shape or () if not isinstance(dim, int)
    )
    values = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim
                    if isinstance(dim, int)
                    else ir.SymbolicDim(str(dim).replace(str(symbol), BATCH))
                    for dim in value.shape
                ]
            )


def _name_dimensions(graph: ir.Graph, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Names the dimensions of inputs and outputs.

    Intermediate shapes are dropped where they depend on lengths, whose symbols have no names.
    """
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(list(shapes[value.name or ""]))
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            known = value.shape is None or all(isinstance(dim, int) for dim in value.shape)
            if value not in outputs and not known:
                value.shape = None


def _forget_origin(model: ir.Model) -> None:
    """Removes stack traces, file names and versions."""
    graph = model.graph
    model.producer_name, model.producer_version = "mosrt", importlib.metadata.version("mosrt")
    model.doc_string = model.domain = None
    model.metadata_props.clear()
    graph.name = "mosrt"
    computed = (value for node in graph for value in node.outputs)
    constants = graph.initializers.values()
    for part in (graph, *graph, *computed, *graph.inputs, *graph.outputs, *constants):
        part.doc_string = None
        part.metadata_props.clear()
