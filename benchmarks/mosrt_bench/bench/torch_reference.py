"""Torch reference: what the checkpoint itself says of the clips, in eager torch.

The runtime's front end and plan, so that what differs is the model. Needs the extra `export`; a
checkpoint of the embedded model's recipe also `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.bundle.bundle import Bundle
from mosrt.crops import PlanRule
from mosrt.errors import AudioError, MosrtError
from mosrt.mos.front_end import FusionFrontEnd
from mosrt_bench.clips import AudioFile
from mosrt_bench.errors import BenchError
from mosrt_export.graphs.audio import taking_features
from mosrt_export.utmosv2.checkpoint import load_strictly, read_checkpoint
from mosrt_export.utmosv2.config import ModelConfig
from mosrt_export.utmosv2.fusion import build
from mosrt_export.utmosv2.parity import Scored

from .parity import Judged

__all__ = ["torch_figures"]


def torch_figures(
    bundle: Bundle, checkpoints: Sequence[Path], clips: Sequence[AudioFile]
) -> Judged:
    """MOS by clip and domain: the mean over the grid's views and over checkpoints.

    Args:
        bundle: What the checkpoints became.
        checkpoints: One per network of the bundle.
        clips: What to hear.

    Raises:
        BenchError: The checkpoints are not those of a MOS model with the bundle's domains.
    """
    manifest = bundle.manifest
    if manifest.uncertainty is not None:
        raise BenchError(
            f"{manifest.name} scores by its uncertainty; --reference compares MOS models only"
        )
    networks = len(bundle.variant(next(iter(manifest.variants))).members)
    if len(checkpoints) != networks:
        raise BenchError(
            f"{manifest.name} has {networks} networks and {len(checkpoints)} checkpoints are "
            "given; pass --reference once for each"
        )
    models = [_model(path) for path in checkpoints]
    for path, model in zip(checkpoints, models, strict=True):
        if model.n_domains != len(manifest.domains):
            raise BenchError(
                f"{path}: {model.n_domains} domains, and {manifest.name} has "
                f"{len(manifest.domains)}; it is another model's checkpoint"
            )
    front_end = FusionFrontEnd(taking_features(manifest))
    return {clip.name: _figures(clip, bundle, front_end, models) for clip in clips}


def _model(path: Path) -> Scored:
    try:
        checkpoint = read_checkpoint(path)
    except MosrtError as not_fusion:
        from mosrt_export.nano.train.exporting import default_score  # noqa: PLC0415 - extra `train`
        from mosrt_export.nano.train.model import NanoError, NanoGraph, load_nano  # noqa: PLC0415

        try:
            nano, standard, _ = load_nano(path)
        except NanoError:
            raise not_fusion from None
        return NanoGraph(nano, standard, default_score(standard))
    model = build(checkpoint.kind, ModelConfig(), checkpoint.n_domains)
    load_strictly(model, checkpoint)
    return model


def _figures(
    clip: AudioFile, bundle: Bundle, front_end: FusionFrontEnd, models: Sequence[Scored]
) -> dict[str, float]:
    domains = bundle.manifest.domains
    try:
        recording = Recording(FileSource(clip.path), bundle.manifest.sample_rate_hz)
    except AudioError:
        return dict.fromkeys(domains, float("nan"))
    plan = PlanRule().plan(recording.n_samples, front_end.geometry)
    rows = []
    for feeds in front_end.views(recording, plan):
        inputs = {name: torch.from_numpy(value[np.newaxis]) for name, value in feeds.items()}
        rows += [_answer(model, inputs) for model in models]
    means = np.mean(np.asarray(rows, np.float64), axis=0)
    return dict(zip(domains, means.tolist(), strict=True))


def _answer(model: Scored, inputs: dict[str, torch.Tensor]) -> list[float]:
    with torch.inference_mode():
        features = model.features(inputs)
        n = model.n_domains
        repeated = {name: value.expand(n, -1) for name, value in features.items()}
        return [float(value) for value in model.score(repeated, torch.eye(n))]
