"""Pretrains a small wav2vec v1 model on clean speech, without labels."""

from __future__ import annotations

import hashlib
import json
import math
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt.host.files import replacing
from mosrt_export.distill.train.training import update
from mosrt_export.uncertainty.wav2vec.model import Architecture, Wav2Vec

__all__ = ["ARCHITECTURE", "PretrainingConfig", "pretrain", "save_wav2vec"]

# A thirtieth of the size of wav2vec large: the same strides and horizons, fewer, narrower layers.
ARCHITECTURE: Final = Architecture(
    encoder_layers=(
        (32, 10, 5), (64, 8, 4), (96, 4, 2), (128, 4, 2), (128, 4, 2), (128, 1, 1), (128, 1, 1),
    ),
    context_layers=tuple((128, kernel, 1) for kernel in range(2, 10)),
    n_steps=12,
    n_negatives=10,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """Settings of the pretraining.

    Attributes:
        steps: Number of updates.
        batch: Excerpts per update.
        excerpt_samples: Length of an excerpt.
        negatives: Distractor frames per prediction, sampled from the same excerpt.
        horizons: Prediction steps that each update samples. Fewer cost less, and all are learned.
        rate: Largest learning rate; it rises over a twentieth of the updates, then falls to zero.
        seed: Seed of excerpts, distractors and prediction steps.
        reduced: Whether convolutions run in bfloat16.
        architecture: The model.
    """

    steps: int
    batch: int = 16
    excerpt_samples: int = 40_000
    negatives: int = 40
    horizons: int = 4
    rate: float = 1.5e-3
    seed: int = 0
    reduced: bool = True
    architecture: Architecture = ARCHITECTURE


def pretrain(
    waveforms: NDArray[np.int16],
    config: PretrainingConfig,
    device: torch.device,
    progress: Callable[[str, float, float], None],
) -> tuple[Wav2Vec, dict[str, Any]]:
    """Trains a new model on clean speech with the contrastive loss of wav2vec.

    Args:
        waveforms: Clean speech (clips, samples) int16 at 16 kHz.
        config: Settings.
        device: Device to train on.
        progress: Called after every update with a name, the share that is done, and the loss.

    Returns:
        The model on the CPU in evaluation mode, and how it was trained as plain values.
    """
    torch.manual_seed(config.seed)
    model = Wav2Vec(config.architecture).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2, betas=(0.9, 0.98))
    rng = np.random.default_rng(config.seed)
    recent: deque[tuple[float, float]] = deque(maxlen=50)
    for step in range(config.steps):
        done = step / config.steps
        rate = config.rate * min(1.0, 20 * done) * (0.5 + 0.5 * math.cos(math.pi * done))
        batch = excerpts(waveforms, config, rng).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.reduced):
            features, predictions = model(batch)
        # Training starts with near frames; with all of them the loss stays at chance for long.
        reach = max(config.horizons, math.ceil(model.architecture.n_steps * min(1.0, 2 * done)))
        drawn = rng.choice(reach, config.horizons, replace=False).tolist()
        loss, right = contrastive_loss(
            features.float(),
            predictions.float(),
            {model.architecture.first_horizon + step: step for step in drawn},
            rng.integers(features.shape[2], size=(len(features), config.negatives)),
        )
        recent.append((update(optimiser, loss, rate), right))
        progress("pretraining", (step + 1) / config.steps, recent[-1][0])
    loss_nats, accuracy = np.mean(recent, axis=0).tolist()
    facts = {
        "seed": config.seed,
        "steps": config.steps,
        "data_sha256": hashlib.sha256(waveforms.tobytes()).hexdigest(),
        "clips": len(waveforms),
        "loss_nats": loss_nats,
        "accuracy": accuracy,
    }
    return model.cpu().eval(), facts


def excerpts(
    waveforms: NDArray[np.int16], config: PretrainingConfig, rng: np.random.Generator
) -> torch.Tensor:
    """Returns random excerpts (config.batch, config.excerpt_samples) float32 from -1 to 1."""
    rows = rng.integers(len(waveforms), size=config.batch)
    starts = rng.integers(waveforms.shape[1] - config.excerpt_samples + 1, size=config.batch)
    cut = np.stack([
        waveforms[row, start : start + config.excerpt_samples]
        for row, start in zip(rows, starts, strict=True)
    ])  # fmt: skip
    return torch.from_numpy(cut.astype(np.float32) / 32768)


def contrastive_loss(
    features: torch.Tensor,
    predictions: torch.Tensor,
    horizons: Mapping[int, int],
    negatives: NDArray[np.int64],
) -> tuple[torch.Tensor, float]:
    """Returns the cross entropy of the true frame among the negatives, and the accuracy.

    All frames of an excerpt share its negatives, which saves most of the computation. A negative
    that is the true frame is left out.

    Args:
        features: Features (batch, channels, frames).
        predictions: Predictions (batch, steps, frames, channels).
        horizons: Index of the prediction step, by how many frames it looks ahead.
        negatives: Frame numbers (batch, negatives).
    """
    n_frames = features.shape[2]
    chosen = torch.from_numpy(negatives).to(features.device)
    others = features.gather(2, chosen[:, None].expand(-1, features.shape[1], -1))
    losses, hits, count = [], 0, 0
    for ahead, step in horizons.items():
        guess = predictions[:, step, : n_frames - ahead]
        right = (guess * features[:, :, ahead:].transpose(1, 2)).sum(dim=2, keepdim=True)
        frames = torch.arange(ahead, n_frames, device=features.device)
        same = frames[None, :, None] == chosen[:, None]
        wrong = (guess @ others).masked_fill(same, -math.inf)
        scores = torch.cat([right, wrong], dim=2)
        losses.append((torch.logsumexp(scores, dim=2) - scores[:, :, 0]).mean())
        hits += int((scores.argmax(dim=2) == 0).sum())
        count += scores.shape[0] * scores.shape[1]
    return torch.stack(losses).mean(), hits / count


def save_wav2vec(path: Path, model: Wav2Vec, provenance: dict[str, Any]) -> None:
    """Writes a checkpoint with fairseq's keys, which `mosrt export wav2vec` reads."""
    a = model.architecture
    # What fairseq reads beside the architecture.
    options = resources.files(__package__).joinpath("fairseq-options.json").read_text("utf-8")
    args = Namespace(
        **json.loads(options),
        conv_feature_layers=str(list(a.encoder_layers)),
        conv_aggregator_layers=str(list(a.context_layers)),
        prediction_steps=a.n_steps,
        num_negatives=a.n_negatives,
        activation=a.activation,
        log_compression=a.log_compression,
        skip_connections_feat=a.encoder_skip,
        skip_connections_agg=a.context_skip,
        no_conv_bias=not a.context_bias,
        agg_zero_pad=a.zero_pad,
        non_affine_group_norm=not a.affine_norm,
    )
    with replacing(path) as part:
        torch.save({"args": args, "model": model.state_dict(), "provenance": provenance}, part)
