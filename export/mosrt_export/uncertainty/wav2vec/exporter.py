"""Exports wav2vec v1 and vq-wav2vec checkpoints as uncertainty bundles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.bundle.manifest import Manifest, TensorSpec
from mosrt.bundle.uncertainty_spec import ContrastSpec, UncertaintySpec, stages_in_use
from mosrt.bundle.writer import check_target
from mosrt.host.files import sha256_of
from mosrt.host.thread_pool import ThreadPool
from mosrt.uncertainty.family import Stages
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec import ContrastFamily
from mosrt_export.graphs.graph import example_of, write_dynamic_graph
from mosrt_export.uncertainty.bundle import (
    Drift,
    GraphFiles,
    StagedRequest,
    keep_worst,
    provenance,
    write_bundle,
)
from mosrt_export.utmosv2.exporter import Step
from mosrt_export.utmosv2.parity import relative

from .checkpoint import Wav2VecCheckpoint, read_wav2vec
from .graphs import Contrast, Dense, Wav2VecGraph
from .model import Architecture, Wav2Vec

__all__ = ["TOLERANCE", "Wav2VecRequest", "differences", "export_wav2vec"]

DOMAIN: Final = "zero-shot"
SAMPLE_RATE_HZ: Final = 16_000
WINDOW_S: Final = 20
# The published code of arXiv 2312.15616 pads shorter clips with zeros at the start.
ZERO_PAD_BELOW_SAMPLES: Final = 750
TOLERANCE: Final = 1e-4
_PARITY_SAMPLES: Final = (1_000, 32_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2VecRequest(StagedRequest):
    """Options of an export; `measure` is "LAYOUT.MEASURE".

    Attributes:
        checkpoint: The checkpoint file.
        layouts: Layouts of logits for which the bundle gives measures.
        note: First paragraph of the model card, or None.
    """

    checkpoint: Path
    layouts: tuple[str, ...]
    note: str | None = None


def export_wav2vec(
    request: Wav2VecRequest,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    step: Step,
    force: bool = False,
) -> Drift:
    """Exports a wav2vec v1 or vq-wav2vec checkpoint as a bundle.

    Args:
        request: Options of the export.
        out: Directory of the bundle to write.
        clips: Audio on which graphs and torch modules are compared.
        step: Announces progress.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        BundleError: The layouts do not include that of the measure.
        OutputError: `out` must not or cannot be written.
        ParityError: A graph and its torch module disagree; nothing was written.
    """
    check_target(out, force=force)
    with step(f"reading {request.checkpoint.name}"):
        checkpoint = read_wav2vec(request.checkpoint)
        model = checkpoint.build()
        manifest = _manifest(request, checkpoint)

    def write(directory: Path) -> dict[str, GraphFiles]:
        return write_graphs(model, manifest, directory)

    def compare(stages: Stages) -> dict[str, float]:
        return differences(model, manifest, stages, clips)

    return write_bundle(
        manifest,
        out,
        write=write,
        compare=compare,
        n_clips=len(clips),
        tolerance=TOLERANCE,
        step=step,
        force=force,
    )


def write_graphs(model: Wav2Vec, manifest: Manifest, directory: Path) -> dict[str, GraphFiles]:
    """Writes the graphs that a manifest's layouts need, by stage."""
    a = model.architecture
    modules: dict[str, nn.Module] = {
        "encoder": Wav2VecGraph(model),
        "contrast": Contrast(n_steps=a.n_steps, first_horizon=a.first_horizon),
        "dense": Dense(),
    }
    sizes = {"batch": 2, "samples": a.min_samples + 8 * a.hop_samples, "frames": 11, "queries": 7}
    inputs, outputs = _tensors(a)
    specs = {spec.name: spec for spec in (*inputs, *outputs)}
    files = {}
    for stage, taken, given in (
        ("encoder", ("waveform",), ("features", "predictions")),
        ("contrast", ("features", "predictions", "negatives"), ("logits",)),
        ("dense", ("queries", "features"), ("similarities",)),
    ):
        if manifest.uncertainty is None or stage not in stages_in_use(
            manifest.family, manifest.uncertainty.layouts
        ):
            continue
        taken_specs = [specs[name] for name in taken]
        files[stage] = write_dynamic_graph(
            modules[stage],
            [example_of(spec, sizes) for spec in taken_specs],
            inputs=taken_specs,
            outputs=[specs[name] for name in given],
            path=directory / f"{stage}.fp32.onnx",
        )
    return files


def _tensors(a: Architecture) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """All inputs and outputs of all graphs."""

    def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=("batch", *shape))

    inputs = (
        tensor("waveform", "samples"),
        tensor("negatives", a.n_negatives, "frames", dtype="int64"),
        tensor("queries", "queries", a.channels),
    )
    outputs = (
        tensor("features", a.channels, "frames"),
        tensor("predictions", a.n_steps, "frames", a.channels),
        tensor("logits", "frames", a.n_steps, 1 + a.n_negatives),
        tensor("similarities", "queries", "frames"),
    )
    return inputs, outputs


def _manifest(request: Wav2VecRequest, checkpoint: Wav2VecCheckpoint) -> Manifest:
    """The manifest without variants."""
    a = checkpoint.architecture
    inputs, outputs = _tensors(a)
    return Manifest(
        name=request.name,
        family="wav2vec",
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=None,
        mel=None,
        domains=(DOMAIN,),
        default_domain=DOMAIN,
        inputs=inputs,
        outputs=outputs,
        variants={},
        provenance=provenance(
            source=[{"file": request.checkpoint.name, "sha256": sha256_of(request.checkpoint)}],
            config=dataclasses.asdict(a),
            licence=request.licence,
            training_data=request.training_data,
            note=request.note,
        ),
        uncertainty=UncertaintySpec(
            hop_samples=a.hop_samples,
            receptive_samples=a.receptive_samples,
            min_samples=a.min_samples,
            zero_pad_below_samples=ZERO_PAD_BELOW_SAMPLES,
            window_samples=WINDOW_S * SAMPLE_RATE_HZ,
            normalised=False,
            layouts=request.layouts,
            measure=request.measure,
            sign=request.sign,
            seed=request.seed,
            contrast=ContrastSpec(
                n_steps=a.n_steps, first_horizon=a.first_horizon, n_negatives=a.n_negatives
            ),
        ),
    )


def differences(
    model: Wav2Vec, manifest: Manifest, stages: Stages, clips: Sequence[AudioSource]
) -> dict[str, float]:
    """Largest relative differences between the bundle's graphs and the torch modules."""
    spec = manifest.uncertainty
    if spec is None or spec.contrast is None:
        raise ValueError("not a wav2vec manifest")
    family = ContrastFamily(spec, spec.contrast, stages, ThreadPool(1))
    found: dict[str, float] = {"features": 0.0, "predictions": 0.0}
    for i, clip in enumerate(clips):
        recording = Recording(clip, manifest.sample_rate_hz)
        n_samples = min(recording.n_samples, _PARITY_SAMPLES[i > 0])
        chunk = next(recording.chunks([(0, n_samples)]))
        with torch.inference_mode():
            z, p = (x.numpy() for x in model(torch.from_numpy(chunk)[None]))
        answer = stages["encoder"].run({"waveform": chunk[None]}, ["features", "predictions"])
        keep_worst(found, "features", relative(answer["features"][0], z))
        keep_worst(found, "predictions", relative(answer["predictions"][0], p))
        if "contrast" in stages:
            negatives = SeededSampler(spec.seed, 0).negatives(spec.contrast.n_negatives, z.shape[2])
            logits = family.logits(z, p, negatives)
            for step, row in enumerate(logits):
                expected = _expected_logits(z, p, negatives, step, spec.contrast.first_horizon)
                keep_worst(found, "logits", relative(row, expected))
        if "dense" in stages:
            feeds = {"queries": p[:, 0], "features": z}
            matrix = stages["dense"].run(feeds, ["similarities"])["similarities"][0]
            expected = p[:, 0].astype(np.float64) @ z
            keep_worst(found, "similarities", relative(matrix, expected))
    return found


def _expected_logits(
    z: NDArray[np.float32],
    p: NDArray[np.float32],
    negatives: NDArray[np.int64],
    step: int,
    first_horizon: int,
) -> NDArray[np.float64]:
    """Logits (copies, frames - horizon) in float64, computed from their definition."""
    horizon = first_horizon + step
    features = z[0].astype(np.float64)
    targets = np.stack([features, *(features[:, row] for row in negatives)])[:, :, horizon:]
    context = p[0, step, : z.shape[2] - horizon].astype(np.float64)
    found: NDArray[np.float64] = np.einsum("tc,nct->nt", context, targets)
    return found
