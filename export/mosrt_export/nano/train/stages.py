"""Stages: how the fusion model is trained, branches alone, then the head, then all together."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import Float32Array, IntArray
from mosrt.host.files import replacing
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import other_microphones
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

from .model import Nano
from .network import NanoHead
from .training import (
    Inputs,
    Standardisation,
    TrainingConfig,
    correlations,
    predict,
    train,
)

__all__ = ["Clips", "Outcome", "Plan", "train_nano"]

Progress = Callable[[str, float, float], None]
"""Called with the stage, the share of it that is done, and the loss."""

VALIDATION_SHARE: Final = 0.03
_DRAW_BINS: Final = 24


@dataclass(frozen=True, slots=True)
class Clips:
    """A data set as the networks read it.

    Attributes:
        waveforms: (clips, samples) int16.
        images: Files of images, each of as many clips as the others, memory-mapped.
        labels: (clips, domains) float32, nan where unknown.
        ladders: (ladders, rungs), numbers of clips that differ in severity alone, the best first;
            they come after all other clips.
    """

    waveforms: NDArray[np.int16]
    images: list[NDArray[np.float16]]
    labels: Float32Array
    ladders: IntArray

    def split(self) -> tuple[IntArray, IntArray]:
        """Numbers of the single clips to train on, and of the last ones, to validate on."""
        n = len(self.waveforms) - self.ladders.size
        kept = n - max(1, int(n * VALIDATION_SHARE))
        return np.arange(kept), np.arange(kept, n)

    def speeches(self, chosen: IntArray) -> IntArray:
        """A number per clip, (clips,): the same for all clips of a ladder."""
        n = len(self.waveforms) - self.ladders.size
        return np.where(chosen < n, chosen, n + (chosen - n) // self.ladders.shape[1])

    def draw_weights(self) -> Float32Array:
        """How often each clip is drawn, (clips,): more often where its first label is rare.

        By the square root of how rare it is: good synthesis lives at the top of the scale, where
        few clips are, and noise in the labels must not be learned by heart there.
        """
        first = self.labels[:, 0]
        counts, edges = np.histogram(first, bins=_DRAW_BINS)
        where = np.clip(np.digitize(first, edges) - 1, 0, _DRAW_BINS - 1)
        return np.asarray(1 / np.sqrt(counts[where]), np.float32)

    def image_batch(self, chosen: IntArray, device: torch.device, *, reduced: bool) -> torch.Tensor:
        """Images (clips, windows, mels, frames), float32, or bfloat16 if `reduced`."""
        size = len(self.images[0])
        batch = np.stack([self.images[i // size][i % size] for i in chosen])
        images = torch.from_numpy(batch).to(device)
        # half the memory to move; in the upper half of the range it rounds to 0.4 dB
        images = images.bfloat16() if reduced else images.float()
        return images.contiguous(memory_format=torch.channels_last)

    def waveform_batch(self, chosen: IntArray, device: torch.device) -> torch.Tensor:
        """Waveforms (clips, samples) float32 at zero mean and unit variance."""
        batch = torch.from_numpy(self.waveforms[chosen].astype(np.float32)).to(device)
        centred = batch - batch.mean(dim=1, keepdim=True)
        scaled: torch.Tensor = centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp(
            min=1e-3
        )
        return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long each stage is, in passes over the data.

    Attributes:
        mel_epochs: The spectrogram branch alone.
        tuning_epochs: The same again, as other microphones hear it and with more ladders.
        tuning_rate: Its rate.
        tuning_ladders: Ladders in a batch of it.
        tuning_climbing: Weight of the loss within them.
        head_epochs: A head on frozen branches.
        joint_epochs: All together, at a small rate.
        joint_rate: That rate.
        batch: Clips per step.
        seed: Of everything random.
        reduced: Whether convolutions run in bfloat16.
        gain: Mean Spearman correlation that the waveform branch must add to be kept.
    """

    mel_epochs: float = 10.0
    tuning_epochs: float = 1.2
    tuning_rate: float = 1e-3
    tuning_ladders: int = 6
    tuning_climbing: float = 2.0
    head_epochs: float = 20.0
    joint_epochs: float = 1.0
    joint_rate: float = 3e-4
    batch: int = 48
    seed: int = 0
    reduced: bool = True
    gain: float = 0.005


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained model and what was found on the way.

    Attributes:
        model: The best one.
        standard: Units of the labels.
        ablation: Correlations on validation clips by network, then by domain: (Pearson, Spearman).
    """

    model: Nano
    standard: Standardisation
    ablation: dict[str, dict[str, tuple[float, float]]]


def train_nano(clips: Clips, wav2vec: Wav2Vec | None, plan: Plan, device: torch.device,
               progress: Progress, resume: Path) -> Outcome:  # fmt: skip
    """Trains the model in stages; keeps the waveform branch only if it earns its cost.

    Args:
        clips: The data.
        wav2vec: Pretrained encoder of the waveform branch, or None for none.
        plan: How long.
        device: Where.
        progress: Told what happens.
        resume: File in which the spectrogram branch is kept when it is done, and with ".tuned"
            added when it is tuned; the same plan on the same labels goes on from there.
    """
    torch.manual_seed(plan.seed)
    chosen, held = clips.split()
    standard = Standardisation.of(clips.labels[chosen])
    ablation: dict[str, dict[str, tuple[float, float]]] = {}

    def fit(name: str, network: torch.nn.Module, inputs: Inputs, validation: Inputs,
            config: TrainingConfig) -> None:  # fmt: skip
        for done, loss in train(
            network, inputs, clips.labels, chosen, standard, config, clips.draw_weights(),
            clips.ladders,
        ):  # fmt: skip
            progress(name, done, loss)
        validate(name, network, validation)

    def validate(name: str, network: torch.nn.Module, validation: Inputs) -> None:
        scores = predict(network, validation, held, standard, reduced=plan.reduced)
        ablation[name] = dict(zip(LABELS, correlations(scores, clips.labels[held]), strict=True))

    mel = _spectrogram_branch(clips, plan, device, resume, fit, validate)
    if wav2vec is None:
        return Outcome(mel.cpu().eval(), standard, ablation)

    fusion = Nano(with_mel=True, with_ssl=True).to(device)
    if fusion.mel is None or fusion.ssl is None or mel.mel is None:
        raise RuntimeError("a fusion model has both branches")
    fusion.mel.load_state_dict(mel.mel.state_dict())
    fusion.ssl.encoder.load_state_dict(wav2vec.feature_extractor.state_dict())
    cached = _embed(fusion, clips, device, plan, progress)
    n_ssl = fusion.ssl.feature_size
    config = TrainingConfig(epochs=plan.head_epochs, batch=128, rate=2e-3, seed=plan.seed,
                            reduced=False)  # fmt: skip
    for name, columns in (
        ("ssl", slice(0, n_ssl)),
        ("mel, new head", slice(n_ssl, None)),
        ("fusion", slice(None)),
    ):
        part = cached[:, columns]

        def embedded(numbers: IntArray, part: Float32Array = part) -> tuple[torch.Tensor, ...]:
            return (torch.from_numpy(part[numbers]).to(device),)

        head = NanoHead(part.shape[1], len(LABELS)).to(device)
        fit(name, head, embedded, embedded, config)
        if name == "fusion":
            fusion.head.load_state_dict(head.state_dict())
    if _mean(ablation["fusion"]) < _mean(ablation["mel, new head"]) + plan.gain:
        return Outcome(mel.cpu().eval(), standard, ablation)

    def both(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        return (
            clips.waveform_batch(numbers, device),
            clips.image_batch(numbers, device, reduced=plan.reduced),
        )

    if plan.joint_epochs:
        config = TrainingConfig(epochs=plan.joint_epochs, batch=plan.batch, rate=plan.joint_rate,
                                seed=plan.seed + 1, reduced=plan.reduced)  # fmt: skip
        before = copy.deepcopy(fusion)
        fit("all together", fusion, both, both, config)
        if _mean(ablation["all together"]) < _mean(ablation["fusion"]):
            fusion = before
    return Outcome(fusion.cpu().eval(), standard, ablation)


def _spectrogram_branch(
    clips: Clips,
    plan: Plan,
    device: torch.device,
    resume: Path,
    fit: Callable[[str, Nano, Inputs, Inputs, TrainingConfig], None],
    validate: Callable[[str, Nano, Inputs], None],
) -> Nano:
    """The spectrogram branch with a head: trained, then tuned to other microphones."""
    rng = np.random.default_rng(plan.seed)

    def rolled(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        # clips are excerpts, so that where one begins does not matter
        images = clips.image_batch(numbers, device, reduced=plan.reduced)
        return (images.roll(int(rng.integers(images.shape[3])), dims=3),)

    def retoned(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        images = clips.image_batch(numbers, torch.device("cpu"), reduced=False)
        images = images.roll(int(rng.integers(images.shape[3])), dims=3)
        images = other_microphones(images, clips.speeches(numbers), rng).to(device)
        images = images.bfloat16() if plan.reduced else images
        return (images.contiguous(memory_format=torch.channels_last),)

    def still(numbers: IntArray) -> tuple[torch.Tensor, ...]:
        return (clips.image_batch(numbers, device, reduced=plan.reduced),)

    mel = Nano(with_mel=True, with_ssl=False).to(device)
    mel.to(memory_format=torch.channels_last)
    plain = TrainingConfig(
        epochs=plan.mel_epochs, batch=plan.batch, seed=plan.seed, reduced=plan.reduced
    )
    tuning = TrainingConfig(
        epochs=plan.tuning_epochs, batch=plan.batch, seed=plan.seed + 1, reduced=plan.reduced,
        rate=plan.tuning_rate, ladders=plan.tuning_ladders, climbing=plan.tuning_climbing,
    )  # fmt: skip
    so_far = []
    for name, path, inputs, config in (
        ("mel", resume, rolled, plain),
        ("mel, tuned", resume.with_name(f"{resume.name}.tuned"), retoned, tuning),
    ):
        so_far.append(config)
        if (saved := _resumed(path, so_far, clips.labels)) is not None:
            mel.load_state_dict(saved)
            validate(name, mel, still)
        else:
            fit(name, mel, inputs, still, config)
            _keep(path, mel, so_far, clips.labels)
    return mel


@torch.inference_mode()
def _embed(model: Nano, clips: Clips, device: torch.device, plan: Plan,
           progress: Progress) -> Float32Array:  # fmt: skip
    """Features of all clips by frozen branches, (clips, size)."""
    model.eval()
    rows = []
    n = len(clips.waveforms)
    for start in range(0, n, 64):
        numbers = np.arange(start, min(start + 64, n))
        inputs = {
            "waveform": clips.waveform_batch(numbers, device),
            "images": clips.image_batch(numbers, device, reduced=plan.reduced),
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.reduced):
            features = model.features(inputs)
        rows.append(torch.cat([part.float() for part in features.values()], dim=1).cpu().numpy())
        progress("embedding", (start + len(numbers)) / n, float("nan"))
    return np.concatenate(rows)


def _key(stages: list[TrainingConfig], labels: Float32Array) -> dict[str, Any]:
    """How a kept branch must have been trained, from its first stage on, and on what."""
    return {
        "stages": [dataclasses.asdict(config) for config in stages],
        # other data, other labels, and they are far fewer bytes than the samples
        "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
    }


def _keep(path: Path, mel: Nano, stages: list[TrainingConfig], labels: Float32Array) -> None:
    with replacing(path) as part:
        torch.save({"key": _key(stages, labels), "state": mel.state_dict()}, part)


def _resumed(
    path: Path, stages: list[TrainingConfig], labels: Float32Array
) -> dict[str, torch.Tensor] | None:
    """The state of a branch trained before in the same way on the same data, if there is one."""
    if not path.exists():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, torch.Tensor] = saved["state"]
    return state if saved["key"] == _key(stages, labels) else None


def _mean(row: dict[str, tuple[float, float]]) -> float:
    """Mean Spearman correlation of the two listener domains, which make the default score."""
    return float(np.mean([row[name][1] for name in ("bvcc", "p808")]))


def summary(ablation: dict[str, Any]) -> str:
    """The ablation as a table: Pearson / Spearman by network and domain."""
    lines = [f"{'network':16}" + "".join(f"{name:>14}" for name in LABELS)]
    for network, row in ablation.items():
        cells = "".join(f"{row[name][0]:8.3f}/{row[name][1]:.3f}" for name in LABELS)
        lines.append(f"{network:16}{cells}")
    return "\n".join(lines)
