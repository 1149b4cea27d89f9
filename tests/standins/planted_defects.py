"""Bundles with planted defects: copies of a bundle with further variants made from its FP32 graph.

Files are hashed anew, so that nothing but the scores gives a defect away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import File, Member, Variant

Change = Callable[[onnx.ModelProto], None]


def unchanged(_: onnx.ModelProto) -> None:
    """The same graph under another name."""


def rounded_weights(model: onnx.ModelProto) -> None:
    """Weights as FP16 has them, computed with in FP32: an honest reduced precision."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def one_weight_off(model: onnx.ModelProto) -> None:
    """One weight of the embedded model's head, which a domain's score ends in, is wrong."""
    weights = next(t for t in model.graph.initializer if t.name == "model.head.offset")
    values = numpy_helper.to_array(weights).copy()
    values[1] += 0.25
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))


def swapped_domains(model: onnx.ModelProto) -> None:
    """The second and the third domain answer for each other."""
    producer = next(node for node in model.graph.node if "mos" in node.output)
    producer.output[:] = ["mos as it was" if name == "mos" else name for name in producer.output]
    n_domains = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    order = np.array([0, 2, 1, *range(3, n_domains)], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    model.graph.node.append(
        onnx.helper.make_node("Gather", ["mos as it was", "order"], ["mos"], axis=1)
    )


def with_variants(
    source: Path, target: Path, changes: Mapping[str, Change], *, name: str | None = None
) -> Path:
    """A copy of the bundle at `source` with a variant more for every change."""
    shutil.copytree(source, target)
    manifest = Bundle.open(target).manifest
    variants = dict(manifest.variants)
    for variant, change in changes.items():
        members: list[Member] = []
        for member in variants["fp32"].members:
            model = onnx.load(target / member.graph.path)
            change(model)
            file = f"model.{member.name}.{variant}.onnx"
            onnx.save(model, target / file)
            data = (target / file).read_bytes()
            graph = File(path=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            members.append(Member(name=member.name, graph=graph))
        variants[variant] = Variant(opset=variants["fp32"].opset, members=tuple(members))
    manifest = dataclasses.replace(manifest, variants=variants, name=name or manifest.name)
    (target / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    return target
