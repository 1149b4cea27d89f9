"""Exporting: a trained checkpoint becomes a bundle, compared with torch on the way."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import GridSpec, SslSpec
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.writer import bundle_file, new_directory, write_card, write_manifest
from mosrt.host.files import sha256_of
from mosrt_export.errors import ParityError
from mosrt_export.graphs.canonical import BATCH
from mosrt_export.graphs.front_end import AudioGraph, taking_audio
from mosrt_export.graphs.graph import OPSET, OnnxModule, write_graph
from mosrt_export.graphs.rewrites import fold_batch_norm
from mosrt_export.nano.data.clips import CLIP_SAMPLES
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.data.voices import SAMPLE_RATE_HZ
from mosrt_export.utmosv2.parity import TOLERANCE_MOS, Drift, compare, make_views

from .card import nano_card
from .model import OVERALL, NanoGraph, load_nano
from .network import Combination
from .training import Standardisation

__all__ = ["default_score", "export_nano"]

# The two listener domains count the same. Fidelity and anchor only pull down what is plainly broken
# or plainly an old machine: above that they say nothing about how natural modern synthesis sounds.
_AVERAGED: Final = ("p808", "bvcc")
_PENALTIES: Final = {"fidelity": (3.0, 0.4), "anchor": (2.8, 0.5)}
_OFFSET: Final = 3.4
_SCALE: Final = 0.6

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
        checkpoint: The file.
        out: The bundle's directory to be.
        clips: Audio on which graph and torch module are compared.
        evaluation: Measured figures for the model card, by claim.
        front_end: One of `mosrt.bundle.front_end_spec.FRONT_ENDS`.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        What was measured, which is also in the manifest.

    Raises:
        NanoError: The checkpoint cannot be used.
        OutputError: `out` must not or cannot be written.
        ParityError: Graph and torch module disagree; nothing was written.
    """
    model, standard, training = load_nano(checkpoint)
    combination = default_score(standard)
    faithful = NanoGraph(model, standard, combination)
    graph: OnnxModule = folded(faithful)
    ssl = None
    if model.ssl is not None:
        ssl = SslSpec(tensor="waveform", crop_samples=CLIP_SAMPLES, epsilon=1e-7)
    mel = None if model.mel is None else MEL
    manifest = Manifest(
        name=out.name,
        family=faithful.kind,
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=ssl,
        mel=mel,
        domains=faithful.domains,
        default_domain=OVERALL,
        inputs=_inputs(faithful),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=(BATCH, size))
            for name, size in graph.output_sizes.items()
        ),
        variants={},
        grid=GridSpec(view_every_s=CLIP_SAMPLES / SAMPLE_RATE_HZ, min_views=1, max_views=12),
        provenance=_provenance(checkpoint, training, combination, evaluation),
    )
    if front_end == "graph":
        graph = AudioGraph(graph, ssl=ssl, mel=mel, sample_rate_hz=SAMPLE_RATE_HZ)
        manifest = taking_audio(manifest)
    with new_directory(out, force=force) as directory:
        shapes = {
            tensor.name: tuple(int(size) for size in tensor.shape[1:]) for tensor in manifest.inputs
        }
        files = write_graph(
            graph,
            shapes,
            directory / "model.fp32.onnx",
        )
        member = Member(name=_MEMBER, graph=bundle_file(files[0]), weights=bundle_file(files[1]))
        variant = Variant(opset=OPSET, members=(member,))
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        views = make_views(manifest, clips)
        drift = Drift(rows=tuple(compare(directory, manifest, member, faithful, views)))
        if not drift.passed:
            raise ParityError(
                f"the graph differs from torch by more than {TOLERANCE_MOS:g} MOS, or is not "
                f"finite; nothing was written\n{drift.table()}"
            )
        variant = dataclasses.replace(variant, drift=drift.to_dict())
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        write_manifest(directory, manifest)
        write_card(directory, nano_card(manifest))
    return drift


def default_score(standard: Standardisation) -> Combination:
    """How the default score is made: z-scores are taken over the training data.

    Rounded, so that the card tells what the graph computes.
    """
    return Combination(
        averaged={
            name: (
                round(float(standard.mean[LABELS.index(name)]), 3),
                round(float(standard.deviation[LABELS.index(name)]), 3),
            )
            for name in _AVERAGED
        },
        penalties=_PENALTIES,
        offset=_OFFSET,
        scale=_SCALE,
    )


def folded(model: NanoGraph) -> NanoGraph:
    """The same scores without batch norms: folded into the convolutions before them."""
    graph = copy.deepcopy(model)
    if graph.model.mel is not None:
        example = torch.zeros(1, len(MEL.windows), MEL.image_height, MEL.image_width)
        fold_batch_norm(graph.model.mel, example)
    return graph.eval().requires_grad_(False)


def _inputs(graph: NanoGraph) -> tuple[TensorSpec, ...]:
    shapes: dict[str, tuple[int | str, ...]] = {
        "waveform": (BATCH, CLIP_SAMPLES),
        "images": (BATCH, len(MEL.windows), MEL.image_height, MEL.image_width),
    }
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in graph.input_names
    )


def _provenance(
    checkpoint: Path,
    training: dict[str, Any],
    combination: Combination,
    evaluation: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "checkpoints": [
            {"member": _MEMBER, "file": checkpoint.name, "sha256": sha256_of(checkpoint)}
        ],
        "licence": _LICENCE,
        "training": training,
        "combination": {"of": OVERALL, **combination.to_dict()},
        "evaluation": dict(evaluation),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
