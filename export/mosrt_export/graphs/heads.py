"""Writes bundles whose graphs compute the domains that mosrt computes from their outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import mosrt
from mosrt._arrays import Float32Array, FloatArray
from mosrt.audio.sources import AudioSource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.domain_head import MOS_RANGE, DomainHead
from mosrt.bundle.manifest import File, Manifest, Member
from mosrt.bundle.writer import new_directory, write_card
from mosrt.errors import BundleError
from mosrt.host.files import sha256_of
from mosrt_export.parity import Drift, compared

__all__ = ["fold_graph", "write_folded"]

_TOLERANCE_MOS: Final = 1e-4  # float32 in the graph, float64 at run time
_OLDEST_OPSET: Final = 13  # whose ReduceSum takes its axes as an input
_Constants = dict[str, npt.NDArray[Any]]


def write_folded(
    bundle: Bundle, out: Path, *, clips: Sequence[AudioSource], force: bool = False
) -> Drift:
    """Writes a copy of a bundle with all variants, whose graphs compute every domain.

    Scores of the domains that were in the graphs before stay as they are. The others are compared
    on `clips`, in FP32 on the CPU.

    Returns:
        The differences.

    Raises:
        BundleError: The bundle has no domain that is computed from the outputs of its graphs, or
            its graphs are too old.
        AudioError: A clip cannot be scored.
        ParityError: A score differs by more than 0.0001 MOS; nothing is written.
        OutputError: `out` must not or cannot be written.
    """
    manifest = bundle.manifest
    if not manifest.heads:
        raise BundleError(f"{bundle.path}: its graphs compute all of its domains already")
    with new_directory(out, force=force) as directory:
        written: dict[str, File] = {}
        variants = {}
        for name, variant in manifest.variants.items():
            if variant.opset < _OLDEST_OPSET:
                raise BundleError(f"{bundle.path}: opset {variant.opset} is too old; export again")
            with bundle.extracted(variant) as source:
                members = tuple(
                    _folded(manifest, member, source, directory, written)
                    for member in variant.members
                )
            variants[name] = dataclasses.replace(variant, members=members)
        scores, *others = manifest.outputs
        columns = (*scores.shape[:1], len(manifest.all_domains))
        outputs = (dataclasses.replace(scores, shape=columns), *others)
        heads = {
            name: {key: getattr(head, key) for key in ("kind", "n_clips", "description")}
            for name, head in manifest.heads.items()
        }
        folded = dataclasses.replace(
            manifest, domains=manifest.all_domains, heads={}, outputs=outputs, variants=variants,
            provenance={**manifest.provenance, "folded_heads": heads},
        )  # fmt: skip
        if card := bundle.model_card():
            write_card(directory, card)
        with mosrt.load(bundle.path, provider="cpu", on_bad_audio="nan") as scorer:

            def before(waveform: Float32Array) -> FloatArray:
                domains = scorer.score(waveform, manifest.sample_rate_hz).domains
                return np.array(list(domains.values()))

            return compared(
                directory, folded, before, clips, tolerance_mos=_TOLERANCE_MOS,
                against=f"{manifest.name} with domains outside of the graph",
            )  # fmt: skip


def _folded(
    manifest: Manifest, member: Member, source: Path, out: Path, written: dict[str, File]
) -> Member:
    """Writes a network to `out` with its domains, once, and copies its weights."""
    import onnx  # noqa: PLC0415 - optional

    if member.graph.path not in written:
        for file in member.files:
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        graph = out / member.graph.path
        model = onnx.load(source / member.graph.path, load_external_data=False)
        fold_graph(model.graph, manifest.outputs[0].name, manifest.heads)
        onnx.save(model, graph)
        if member.weights is not None and not (out / member.weights.path).exists():
            copyfile(source / member.weights.path, out / member.weights.path)
        onnx.checker.check_model(graph)
        written[member.graph.path] = File(
            path=member.graph.path, sha256=sha256_of(graph), bytes=graph.stat().st_size
        )
    return dataclasses.replace(member, graph=written[member.graph.path])


def fold_graph(graph: Any, scores: str, heads: Mapping[str, DomainHead]) -> None:
    """Appends the columns of heads to the output `scores` (batch, domains) of a graph."""
    from onnx import helper, numpy_helper  # noqa: PLC0415 - optional

    inner = f"{scores}/graph"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == scores:
                    names[i] = inner
    columns = [inner]
    constants: _Constants = {"heads/columns": np.array([1], np.int64)}
    nodes = []
    for number, head in enumerate(heads.values()):
        prefix = f"heads/{number}"
        columns.append(f"{prefix}/mos")
        for operator, inputs, output in _steps(prefix, head, {scores: inner}, constants):
            attributes = {"keepdims": 1} if operator == "ReduceSum" else {}
            nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
    nodes.append(helper.make_node("Concat", columns, [scores], name="heads/concat", axis=1))
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    (output,) = (each for each in graph.output if each.name == scores)
    size = output.type.tensor_type.shape.dim[1]
    size.dim_value += len(heads)
    for info in [each for each in graph.value_info if each.name == scores]:
        graph.value_info.remove(info)


def _steps(
    prefix: str, head: DomainHead, renamed: Mapping[str, str], constants: _Constants
) -> Iterator[tuple[str, list[str], str]]:
    """Operator, inputs and output of the nodes of a head (batch, 1); adds their constants.

    Sums of products, and no matrix product, give the same for any number of views.
    """

    def constant(name: str, values: npt.ArrayLike) -> str:
        constants[f"{prefix}/{name}"] = np.asarray(values, np.float32)
        return f"{prefix}/{name}"

    axis = "heads/columns"
    total = constant("bias", [[head.bias]])
    for i, (name, row) in enumerate(head.weights.items()):
        weights = constant(f"weights{i}", [row])
        yield "Mul", [renamed.get(name, name), weights], f"{prefix}/products{i}"
        yield "ReduceSum", [f"{prefix}/products{i}", axis], f"{prefix}/sum{i}"
        yield "Add", [total, f"{prefix}/sum{i}"], f"{prefix}/total{i}"
        total = f"{prefix}/total{i}"
    if len(head.x) > 1:
        # The map is its first ordinate and, for each step, the share of the step that is passed.
        yield "Sub", [total, constant("starts", [head.x[:-1]])], f"{prefix}/above"
        yield "Div", [f"{prefix}/above", constant("widths", [np.diff(head.x)])], f"{prefix}/ratio"
        low, high = constant("none", 0.0), constant("all", 1.0)
        yield "Clip", [f"{prefix}/ratio", low, high], f"{prefix}/share"
        yield "Mul", [f"{prefix}/share", constant("rises", [np.diff(head.y)])], f"{prefix}/rise"
        yield "ReduceSum", [f"{prefix}/rise", axis], f"{prefix}/risen"
        yield "Add", [f"{prefix}/risen", constant("first", [[head.y[0]]])], f"{prefix}/mapped"
        total = f"{prefix}/mapped"
    elif head.x:  # one point: a constant, which depends on the views' number alone
        yield "Mul", [total, constant("zero", [[0.0]])], f"{prefix}/zero_of"
        yield "Add", [f"{prefix}/zero_of", constant("first", [[head.y[0]]])], f"{prefix}/mapped"
        total = f"{prefix}/mapped"
    low, high = (
        constant(name, value) for name, value in zip(("low", "high"), MOS_RANGE, strict=True)
    )
    yield "Clip", [total, low, high], f"{prefix}/mos"
