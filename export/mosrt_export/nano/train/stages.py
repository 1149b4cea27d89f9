"""Trains the model in two stages: the training proper, then a tuning."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import Float32Array, IntArray
from mosrt.host.files import replacing
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import vary_response

from .model import Nano
from .training import Standardisation, TrainingConfig, correlations, predict, train

__all__ = ["Clips", "Outcome", "Plan", "ablation_table", "train_nano"]

Ablation: TypeAlias = dict[str, dict[str, tuple[float, float]]]
"""(Pearson, Spearman) correlations by stage, then by domain."""

Progress: TypeAlias = Callable[[str, float, float], None]
"""Called with the name of the stage, the share of it that is done, and the loss."""

VALIDATION_SHARE: Final = 0.03
_LABEL_BINS: Final = 24


@dataclass(frozen=True, slots=True)
class Clips:
    """A data set as the networks read it.

    Attributes:
        images: Memory-mapped files of images, each with the same number of clips.
        labels: Labels (clips, domains) float32, nan where unknown.
        ladders: Numbers of the clips of ladders (ladders, rungs), the least degraded first. They
            come after all single clips.
    """

    images: list[NDArray[np.float16]]
    labels: Float32Array
    ladders: IntArray

    def split(self) -> tuple[IntArray, IntArray]:
        """Returns the numbers of the single clips for training, and those for validation."""
        n = len(self.labels) - self.ladders.size
        kept = n - max(1, int(n * VALIDATION_SHARE))
        return np.arange(kept), np.arange(kept, n)

    def groups(self, chosen: IntArray) -> IntArray:
        """Returns a number per clip (clips,), which is the same for all clips of a ladder."""
        n = len(self.labels) - self.ladders.size
        return np.where(chosen < n, chosen, n + (chosen - n) // self.ladders.shape[1])

    def sampling_weights(self) -> Float32Array:
        """Returns a sampling weight per clip (clips,), larger where the first label is rare.

        The weight is 1 / √(frequency of the label). Good synthetic speech is at the top of the
        scale, where there are few clips; the square root limits overfitting to their labels.
        """
        first = self.labels[:, 0]
        counts, edges = np.histogram(first, bins=_LABEL_BINS)
        where = np.clip(np.digitize(first, edges) - 1, 0, _LABEL_BINS - 1)
        return np.asarray(1 / np.sqrt(counts[where]), np.float32)

    def image_batch(self, chosen: IntArray, device: torch.device, *, reduced: bool) -> torch.Tensor:
        """Returns images (clips, windows, mels, frames), float32, or bfloat16 if `reduced`."""
        size = len(self.images[0])
        batch = np.stack([self.images[i // size][i % size] for i in chosen])
        images = torch.from_numpy(batch).to(device)
        # bfloat16 halves the memory traffic, and rounds to 0.4 dB in the upper half of the range.
        images = images.bfloat16() if reduced else images.float()
        return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of the stages. An epoch is a pass over the data.

    Attributes:
        epochs: Epochs of the training.
        tuning_epochs: Epochs of the tuning, with random frequency responses and more ladders.
        tuning_rate: Largest learning rate of the tuning.
        tuning_ladders: Ladders per batch of the tuning.
        tuning_climbing: Weight of the ranking loss within ladders in the tuning.
        batch: Clips per step.
        seed: Seed of all random choices.
        reduced: Whether convolutions run in bfloat16.
    """

    epochs: float = 10.0
    tuning_epochs: float = 1.2
    tuning_rate: float = 1e-3
    tuning_ladders: int = 6
    tuning_climbing: float = 2.0
    batch: int = 48
    seed: int = 0
    reduced: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained model and the results of the stages.

    Attributes:
        model: The model, in evaluation mode on the CPU.
        standard: Mean and standard deviation of the labels.
        ablation: (Pearson, Spearman) correlations on validation clips, by stage and domain.
    """

    model: Nano
    standard: Standardisation
    ablation: Ablation


def train_nano(
    clips: Clips, plan: Plan, device: torch.device, progress: Progress, resume: Path
) -> Outcome:
    """Trains the model, and then tunes it.

    Args:
        clips: The data.
        plan: Settings.
        device: Device to train on.
        progress: Called after every step.
        resume: File for the trained model; with ".tuned" added for the tuned one. The same plan on
            the same labels continues from these files.
    """
    torch.manual_seed(plan.seed)
    chosen, held = clips.split()
    standard = Standardisation.of(clips.labels[chosen])
    rng = np.random.default_rng(plan.seed)

    def rolled(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        # Clips are excerpts, so that it does not matter where one begins.
        images = clips.image_batch(numbers, device, reduced=plan.reduced)
        return (images.roll(int(rng.integers(images.shape[3])), dims=3),)

    def varied(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        images = clips.image_batch(numbers, torch.device("cpu"), reduced=False)
        images = images.roll(int(rng.integers(images.shape[3])), dims=3)
        images = vary_response(images, clips.groups(numbers), rng).to(device)
        images = images.bfloat16() if plan.reduced else images
        return (images.contiguous(memory_format=torch.channels_last),)

    def unchanged(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        return (clips.image_batch(numbers, device, reduced=plan.reduced),)

    model = Nano().to(device)
    model.to(memory_format=torch.channels_last)
    training = TrainingConfig(
        epochs=plan.epochs, batch=plan.batch, seed=plan.seed, reduced=plan.reduced
    )
    tuning = dataclasses.replace(
        training, epochs=plan.tuning_epochs, seed=plan.seed + 1, rate=plan.tuning_rate,
        ladders=plan.tuning_ladders, climbing=plan.tuning_climbing,
    )  # fmt: skip
    # Other data has other labels, which are far fewer bytes than the samples.
    digest = hashlib.sha256(clips.labels.tobytes()).hexdigest()
    stages: list[dict[str, Any]] = []
    ablation: Ablation = {}
    for name, path, inputs, config in (
        ("mel", resume, rolled, training),
        ("mel, tuned", resume.with_name(f"{resume.name}.tuned"), varied, tuning),
    ):
        stages.append(dataclasses.asdict(config))
        key = {"stages": stages, "labels_sha256": digest}
        saved = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
        if saved.get("key") == key:
            model.load_state_dict(saved["state"])
        else:
            for done, loss in train(
                model, inputs, clips.labels, chosen, standard, config, clips.sampling_weights(),
                clips.ladders,
            ):  # fmt: skip
                progress(name, done, loss)
            with replacing(path) as part:
                torch.save({"key": key, "state": model.state_dict()}, part)
        scores = predict(model, unchanged, held, standard, reduced=plan.reduced)
        ablation[name] = dict(zip(LABELS, correlations(scores, clips.labels[held]), strict=True))
    return Outcome(model.cpu().eval(), standard, ablation)


def ablation_table(ablation: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Returns a Markdown table of Pearson / Spearman correlations by network and domain."""
    lines = ["| network | " + " | ".join(LABELS) + " |", "|---" * (len(LABELS) + 1) + "|"]
    for network, row in ablation.items():
        cells = " | ".join(f"{row[name][0]:.3f} / {row[name][1]:.3f}" for name in LABELS)
        lines.append(f"| {network} | {cells} |")
    return "\n".join(lines)
