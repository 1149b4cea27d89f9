"""Exports wav2vec v1 and vq-wav2vec checkpoints as uncertainty bundles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from mosrt._arrays import Float32Array, FloatArray, IntArray
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.uncertainty_spec import ContrastSpec
from mosrt.host.files import sha256_of
from mosrt.host.thread_pool import ThreadPool
from mosrt.uncertainty.family import Stages
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec import ContrastFamily
from mosrt_export.graphs.graph import tensor
from mosrt_export.parity import relative
from mosrt_export.uncertainty.bundle import StagedModel, StagedRequest

from .checkpoint import Wav2VecCheckpoint, read_wav2vec
from .graphs import Contrast, Dense, Wav2VecGraph
from .model import Architecture, Wav2Vec

__all__ = ["StagedWav2Vec", "Wav2VecRequest"]

_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2VecRequest(StagedRequest):
    """Options of an export; `measure` is "LAYOUT.MEASURE".

    Attributes:
        checkpoint: The checkpoint file.
        layouts: Layouts of logits for which the bundle gives measures.
    """

    checkpoint: Path
    layouts: tuple[str, ...]

    @property
    def first_step(self) -> str:
        """Names the file."""
        return f"reading {self.checkpoint.name}"

    def load(self) -> StagedWav2Vec:
        """Reads the checkpoint."""
        checkpoint = read_wav2vec(self.checkpoint)
        return StagedWav2Vec(checkpoint.build(), _manifest(self, checkpoint))


def _contrast(a: Architecture) -> ContrastSpec:
    return ContrastSpec(n_steps=a.n_steps, first_horizon=a.first_horizon, n_negatives=a.n_negatives)


def _manifest(request: Wav2VecRequest, checkpoint: Wav2VecCheckpoint) -> Manifest:
    """The manifest without variants."""
    a = checkpoint.architecture
    return request.manifest(
        "wav2vec",
        inputs=(
            tensor("waveform", "batch", "samples"),
            tensor("negatives", "batch", a.n_negatives, "frames", dtype="int64"),
            tensor("queries", "batch", "queries", a.channels),
        ),
        outputs=(
            tensor("features", "batch", a.channels, "frames"),
            tensor("predictions", "batch", a.n_steps, "frames", a.channels),
            tensor("logits", "batch", "frames", a.n_steps, 1 + a.n_negatives),
            tensor("similarities", "batch", "queries", "frames"),
        ),
        checkpoint={"file": request.checkpoint.name, "sha256": sha256_of(request.checkpoint)},
        config=dataclasses.asdict(a),
        libraries=_LIBRARIES,
        hop_samples=a.hop_samples,
        receptive_samples=a.receptive_samples,
        min_samples=a.min_samples,
        normalised=False,
        layouts=request.layouts,
        measure=request.measure,
        contrast=_contrast(a),
    )


class StagedWav2Vec(StagedModel):
    """A wav2vec v1 or vq-wav2vec network and the manifest of its bundle."""

    parity_samples = (1_000, 32_000)

    def __init__(self, model: Wav2Vec, manifest: Manifest) -> None:
        self.model, self.manifest = model, manifest
        a = model.architecture
        samples = a.min_samples + 8 * a.hop_samples
        self.sizes = {"batch": 2, "samples": samples, "frames": 11, "queries": 7}

    def modules(self) -> dict[str, nn.Module]:
        """The encoder, the contrastive logits and the dense ones."""
        a = self.model.architecture
        return {
            "encoder": Wav2VecGraph(self.model),
            "contrast": Contrast(n_steps=a.n_steps, first_horizon=a.first_horizon),
            "dense": Dense(),
        }

    def differences(
        self,
        stages: Stages,
        samples: Float32Array,
        number: int,  # noqa: ARG002
    ) -> Iterator[tuple[str, float]]:
        """Features and predictions compared with torch, logits with their definition."""
        contrast = _contrast(self.model.architecture)
        with torch.inference_mode():
            z, p = (x.numpy() for x in self.model(torch.from_numpy(samples)[None]))
        answer = stages["encoder"].run({"waveform": samples[None]}, ["features", "predictions"])
        yield "features", relative(answer["features"][0], z)
        yield "predictions", relative(answer["predictions"][0], p)
        if "contrast" in stages:
            family = ContrastFamily(self.spec, contrast, stages, ThreadPool(1))
            negatives = SeededSampler(self.spec.seed, 0).negatives(contrast.n_negatives, z.shape[2])
            for step, row in enumerate(family.logits(z, p, negatives)):
                expected = _logits(z[0], p[0, step], negatives, contrast.first_horizon + step)
                yield "logits", relative(row, expected)
        if "dense" in stages:
            feeds = {"queries": p[:, 0], "features": z}
            matrix = stages["dense"].run(feeds, ["similarities"])["similarities"][0]
            yield "similarities", relative(matrix, p[:, 0].astype(np.float64) @ z)


def _logits(z: Float32Array, p: Float32Array, negatives: IntArray, horizon: int) -> FloatArray:
    """Logits (copies, frames - horizon) in float64, computed from their definition.

    Args:
        z: Features, (channels, frames).
        p: Predictions at the horizon, (frames, channels).
        negatives: Distractors of each frame, (negatives, frames).
        horizon: Distance in frames from a context frame to the one it predicts.
    """
    features = z.astype(np.float64)
    targets = np.stack([features, *(features[:, row] for row in negatives)])[:, :, horizon:]
    context = p[: z.shape[1] - horizon].astype(np.float64)
    found: FloatArray = np.einsum("tc,nct->nt", context, targets)
    return found
