"""Exports a trained checkpoint to a bundle, and compares its graph with torch."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch

from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import GridSpec
from mosrt.bundle.manifest import Manifest, TensorSpec, Variant
from mosrt.bundle.writer import new_directory
from mosrt.host.files import sha256_of
from mosrt_export.graphs.front_end import AudioGraph, taking_audio
from mosrt_export.graphs.graph import BATCH, OPSET, OnnxModule, write_graph
from mosrt_export.graphs.rewrites import fold_batch_norm
from mosrt_export.markdown import refilled
from mosrt_export.nano.data.clips import CLIP_SAMPLES
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.data.voices import SAMPLE_RATE_HZ
from mosrt_export.parity import Drift, publish
from mosrt_export.utmosv2.parity import compare, drift_of, make_views

from .model import OVERALL, NanoGraph, load_nano
from .stages import ablation_table

__all__ = ["export_nano", "folded", "nano_card"]

_LICENCE: Final = "MIT"
_MEMBER: Final = "nano"
_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")


def export_nano(
    checkpoint: Path,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    evaluation: Mapping[str, str],
    front_end: str = "numpy",
    force: bool = False,
) -> Drift:
    """Writes the bundle of a checkpoint that `mosrt_export.nano train` wrote.

    Args:
        checkpoint: The checkpoint file.
        out: Bundle directory to write.
        clips: Audio on which graph and torch module are compared.
        evaluation: Measured results for the model card, by claim.
        front_end: One of `mosrt.bundle.front_end_spec.FRONT_ENDS`.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        NanoError: The checkpoint cannot be used.
        OutputError: `out` exists and is not replaced, or cannot be written.
        ParityError: Graph and torch module disagree; nothing was written.
    """
    model, standard, training = load_nano(checkpoint)
    reference = NanoGraph(model, standard)
    graph: OnnxModule = folded(reference)
    manifest = Manifest(
        name=out.name,
        family="spec",
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=None,
        mel=MEL,
        domains=reference.domains,
        default_domain=OVERALL,
        inputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=(BATCH, *shape))
            for name, shape in reference.input_shapes.items()
        ),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=(BATCH, size))
            for name, size in graph.output_sizes.items()
        ),
        variants={},
        grid=GridSpec(view_every_s=CLIP_SAMPLES / SAMPLE_RATE_HZ, min_views=1, max_views=12),
        provenance={
            "checkpoints": [
                {"member": _MEMBER, "file": checkpoint.name, "sha256": sha256_of(checkpoint)}
            ],
            "licence": _LICENCE,
            "training": training,
            "combination": {"of": OVERALL, **reference.combination},
            "evaluation": dict(evaluation),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
    )
    if front_end == "graph":
        graph = AudioGraph(graph, ssl=None, mel=MEL, sample_rate_hz=SAMPLE_RATE_HZ)
        manifest = taking_audio(manifest)
    with new_directory(out, force=force) as directory:
        path = directory / "model.fp32.onnx"
        inputs, outputs = manifest.inputs, manifest.outputs
        member = write_graph(_MEMBER, graph, path, inputs=inputs, outputs=outputs)
        variant = Variant(opset=OPSET, members=(member,))
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        views = make_views(manifest, clips)
        drift = drift_of(compare(directory, manifest, member, reference, views))
        publish(directory, manifest, drift, card=nano_card)
    return drift


def folded(model: NanoGraph) -> NanoGraph:
    """Returns a copy whose batch norms are folded into the convolutions before them."""
    graph = copy.deepcopy(model)
    fold_batch_norm(graph.model.mel, torch.zeros(1, *graph.input_shapes["images"]))
    return graph.eval().requires_grad_(False)


def nano_card(manifest: Manifest) -> str:
    """Returns the text of a bundle's model-card.md, in Markdown.

    Args:
        manifest: The bundle's manifest, with provenance and the measured drift of "fp32".
    """
    template = resources.files(__package__).joinpath("model-card.md").read_text(encoding="utf-8")
    provenance = manifest.provenance
    training = provenance["training"]
    evaluation = provenance.get("evaluation") or {}
    card = template.format(
        name=manifest.name,
        formula=_formula(provenance["combination"]),
        hours=training["hours"],
        clips=training["clips"],
        seed=training["seed"],
        digest=training["data_sha256"],
        evaluation="\n".join(f"- {claim}: {result}" for claim, result in evaluation.items())
        or "Not evaluated yet.",
        ablation=ablation_table(training["ablation"]),
        sample_rate_hz=manifest.sample_rate_hz,
        limit_hz=manifest.sample_rate_hz // 2,
        drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
        licence=provenance["licence"],
    )
    return refilled(card)


def _formula(combination: Mapping[str, Any]) -> str:
    offset, scale = combination["offset"], combination["scale"]
    text = f"{offset} + {scale} times the mean of the z-scores of "
    text += " and ".join(f"`{name}`" for name in combination["averaged"])
    for name, rule in combination["penalties"].items():
        cost = f"{rule['slope'] * scale:g}"
        text += f", less {cost} for every point of `{name}` below {rule['threshold']}"
    return text
