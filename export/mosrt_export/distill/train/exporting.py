"""Exports a trained student to a bundle, and compares its graph with torch."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from mosrt._arrays import Float32Array
from mosrt.audio.sources import AudioSource
from mosrt.bundle.deviation_spec import DeviationSpec
from mosrt.bundle.front_end_spec import SslSpec
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.bundle.writer import new_directory, write_manifest
from mosrt.host.files import sha256_of
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ
from mosrt_export.graphs.graph import BATCH, OPSET, tensor, write_graph
from mosrt_export.graphs.rewrites import fold_batch_norm
from mosrt_export.markdown import rendered
from mosrt_export.parity import Drift, compared, publish

from .model import MOS_RANGE, OVERALL, Student, StudentGraph
from .network import SEGMENT_SAMPLES, STEP_SAMPLES

__all__ = ["export_student", "folded", "student_card", "torch_scores"]

_MEMBER: Final = "nano"
_INPUTS: Final = (tensor("waveform", BATCH, "samples"),)
_TOLERANCE_MOS: Final = 1e-4
_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")


def export_student(
    checkpoint: Path,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    card: str,
    evaluation: Mapping[str, str] | None = None,
    measure: Callable[[Path], Mapping[str, Any]] | None = None,
    force: bool = False,
) -> Drift:
    """Writes the bundle of a student's checkpoint.

    Args:
        checkpoint: The checkpoint file.
        out: Bundle directory to write.
        clips: Audio on which graph and torch module are compared.
        card: Template of the model card.
        evaluation: Measured results for the model card, by claim.
        measure: Returns further provenance, measured on the bundle, which it gets the path of.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        OutputError: `out` exists and is not replaced, or cannot be written.
        ParityError: Graph and torch module disagree; nothing was written.
    """
    student = Student.load(checkpoint)
    reference = StudentGraph(student)
    graph = folded(reference)
    combination = {"of": OVERALL, **reference.combination} if reference.combination else {}
    manifest = Manifest(
        name=out.name,
        family="segments",
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=SslSpec(
            tensor="waveform",
            crop_samples=SEGMENT_SAMPLES,
            epsilon=0.0,
            segment_hop_samples=SEGMENT_SAMPLES,
            segment_step_samples=STEP_SAMPLES,
        ),
        mel=None,
        domains=reference.domains,
        default_domain=reference.domains[0],
        inputs=_INPUTS,
        outputs=tuple(tensor(name, BATCH, size) for name, size in graph.output_sizes.items()),
        variants={},
        front_end="graph",
        mos_range=MOS_RANGE,
        deviation=DeviationSpec(
            tensor="deviation",
            domains=(reference.domains[0],),
            factors=(student.deviation_factor,),
        ),
        provenance={
            "checkpoints": [
                {"member": _MEMBER, "file": checkpoint.name, "sha256": sha256_of(checkpoint)}
            ],
            "licence": student.provenance.get("licence", "MIT"),
            "training": dict(student.provenance),
            "combination": combination,
            "evaluation": dict(evaluation or {}),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
    )
    with new_directory(out, force=force) as directory:
        member = write_graph(
            _MEMBER,
            graph,
            directory / "model.fp32.onnx",
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            sizes={BATCH: 2, "samples": 2 * STEP_SAMPLES},
        )
        variant = Variant(opset=OPSET, members=(member,))
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        drift = compared(
            directory, manifest, lambda waveform: torch_scores(reference, waveform), clips,
            tolerance_mos=_TOLERANCE_MOS, against="torch fp32",
        )  # fmt: skip
        if measure is not None:
            write_manifest(directory, manifest)
            provenance = {**manifest.provenance, **measure(directory)}
            manifest = dataclasses.replace(manifest, provenance=provenance)
        publish(directory, manifest, drift, card=lambda filled: student_card(filled, card))
    return drift


def torch_scores(model: StudentGraph, waveform: Float32Array) -> Float32Array:
    """Returns a module's scores (domains,) of a recording (samples,) at 16 kHz.

    The mean over segments of full length, which start as far from one another as the fewest do
    that cover the recording; zeros follow a shorter recording.
    """
    missing = max(0, SEGMENT_SAMPLES - len(waveform))
    waveform = np.pad(waveform, (0, missing))
    last = len(waveform) - SEGMENT_SAMPLES
    n_segments = -(-last // SEGMENT_SAMPLES) + 1
    starts = np.linspace(0, last, n_segments).astype(int)
    segments = np.stack([waveform[start : start + SEGMENT_SAMPLES] for start in starts])
    with torch.inference_mode():
        scores: Float32Array = model(torch.from_numpy(segments))[0].mean(dim=0).numpy()
    return scores


def folded(model: StudentGraph) -> StudentGraph:
    """Returns a copy whose batch norms are folded into the convolutions before them."""
    graph = copy.deepcopy(model)
    fold_batch_norm(graph.model.encoder, torch.zeros(1, STEP_SAMPLES))
    return graph.eval().requires_grad_(False)


def student_card(manifest: Manifest, template: str) -> str:
    """Returns the model card of a bundle, in Markdown, by a template."""
    provenance = manifest.provenance
    training = provenance["training"]
    evaluation = [f"- {claim}: {result}" for claim, result in provenance["evaluation"].items()]
    fidelity = [fidelity_table(provenance["fidelity"])] if "fidelity" in provenance else []
    cost = [
        f"- {name}: {each['times_slower']:g} times the time of the student, and "
        f"{each['times_larger']:g} times its size."
        for name, each in provenance.get("cost", {}).items()
    ]
    formula = _formula(provenance["combination"])
    return rendered(
        template,
        manifest=manifest,
        training=training,
        formula=formula,
        # "overall" is a teacher's own where no formula makes it.
        domains=", ".join(
            f"`{name}`" for name in manifest.domains if name != OVERALL or not formula
        ),
        digest=training.get("data_sha256") or training["labels_sha256"],
        teachers="\n".join(
            f"- {name} (SHA-256 `{sha256}`)"
            for name, sha256 in training.get("teachers", {}).items()
        ),
        evaluation="\n".join([*fidelity, *evaluation]) or "Not evaluated yet.",
        cost="\n".join(cost) or "Not measured.",
        limit_hz=manifest.sample_rate_hz // 2,
        drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
        licence=provenance["licence"],
    )


def fidelity_table(fidelity: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Returns a Markdown table of agreement with the teachers, by part of the data and domain."""
    lines = ["| clips | domain | LCC | SRCC | MAE |", "|---|---|---|---|---|"]
    for part, domains in fidelity.items():
        for domain, row in domains.items():
            measured = [row[name] for name in ("lcc", "srcc", "mae")]
            values = " | ".join("-" if each is None else f"{each:.3f}" for each in measured)
            lines.append(f"| {part} ({row['clips']:g}) | {domain} | {values} |")
    return "\n".join(lines)


def _formula(combination: Mapping[str, Any]) -> str:
    if not combination:
        return ""
    offset, scale = combination["offset"], combination["scale"]
    text = f"{offset} + {scale} times the mean of the z-scores of "
    text += " and ".join(f"`{name}`" for name in combination["averaged"])
    for name, rule in combination["penalties"].items():
        cost = f"{rule['slope'] * scale:g}"
        text += f", less {cost} for every point of `{name}` below {rule['threshold']}"
    return text
