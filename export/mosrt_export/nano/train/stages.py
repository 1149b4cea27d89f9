"""Trains the fusion model in stages: each branch alone, then the head, then all parts together."""

from __future__ import annotations

import copy
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
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

from .model import Nano, NanoHead
from .training import Inputs, Standardisation, TrainingConfig, correlations, predict, train

__all__ = ["Clips", "Outcome", "Plan", "ablation_table", "train_nano"]

Ablation: TypeAlias = dict[str, dict[str, tuple[float, float]]]
"""(Pearson, Spearman) correlations by network, then by domain."""

Progress: TypeAlias = Callable[[str, float, float], None]
"""Called with the name of the stage, the share of it that is done, and the loss."""

VALIDATION_SHARE: Final = 0.03
_LABEL_BINS: Final = 24


@dataclass(frozen=True, slots=True)
class Clips:
    """A data set as the networks read it.

    Attributes:
        waveforms: Waveforms (clips, samples) int16.
        images: Memory-mapped files of images, each with the same number of clips.
        labels: Labels (clips, domains) float32, nan where unknown.
        ladders: Numbers of the clips of ladders (ladders, rungs), the least degraded first. They
            come after all single clips.
    """

    waveforms: NDArray[np.int16]
    images: list[NDArray[np.float16]]
    labels: Float32Array
    ladders: IntArray

    def split(self) -> tuple[IntArray, IntArray]:
        """Returns the numbers of the single clips for training, and those for validation."""
        n = len(self.waveforms) - self.ladders.size
        kept = n - max(1, int(n * VALIDATION_SHARE))
        return np.arange(kept), np.arange(kept, n)

    def groups(self, chosen: IntArray) -> IntArray:
        """Returns a number per clip (clips,), which is the same for all clips of a ladder."""
        n = len(self.waveforms) - self.ladders.size
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

    def waveform_batch(self, chosen: IntArray, device: torch.device) -> torch.Tensor:
        """Returns waveforms (clips, samples) float32 with zero mean and unit variance."""
        batch = torch.from_numpy(self.waveforms[chosen].astype(np.float32)).to(device)
        centred = batch - batch.mean(dim=1, keepdim=True)
        rms = centred.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
        return centred / rms


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of the stages. An epoch is a pass over the data.

    Attributes:
        mel_epochs: Epochs of the spectrogram branch alone.
        tuning_epochs: Epochs of its tuning, with random frequency responses and more ladders.
        tuning_rate: Largest learning rate of the tuning.
        tuning_ladders: Ladders per batch of the tuning.
        tuning_climbing: Weight of the ranking loss within ladders in the tuning.
        head_epochs: Epochs of a head on frozen branches.
        joint_epochs: Epochs of all parts together.
        joint_rate: Largest learning rate of all parts together.
        batch: Clips per step.
        seed: Seed of all random choices.
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
    """A trained model and the results of the stages.

    Attributes:
        model: The best model, in evaluation mode on the CPU.
        standard: Mean and standard deviation of the labels.
        ablation: (Pearson, Spearman) correlations on validation clips, by network and domain.
    """

    model: Nano
    standard: Standardisation
    ablation: Ablation


def train_nano(clips: Clips, wav2vec: Wav2Vec | None, plan: Plan, device: torch.device,
               progress: Progress, resume: Path) -> Outcome:  # fmt: skip
    """Trains the model in stages, and keeps the waveform branch only if it adds enough.

    Args:
        clips: The data.
        wav2vec: Pretrained encoder of the waveform branch; None trains no such branch.
        plan: Settings.
        device: Device to train on.
        progress: Called after every step.
        resume: File for the trained spectrogram branch; with ".tuned" added for the tuned one. The
            same plan on the same labels continues from these files.
    """
    torch.manual_seed(plan.seed)
    chosen, held = clips.split()
    standard = Standardisation.of(clips.labels[chosen])
    ablation: Ablation = {}

    def fit(name: str, network: torch.nn.Module, inputs: Inputs, validation: Inputs,
            config: TrainingConfig) -> None:  # fmt: skip
        for done, loss in train(
            network, inputs, clips.labels, chosen, standard, config, clips.sampling_weights(),
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

    fusion = Nano(with_ssl=True).to(device)
    if fusion.ssl is None:
        raise RuntimeError("a fusion model has a waveform branch")
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
        images = clips.image_batch(numbers, device, reduced=plan.reduced)
        return clips.waveform_batch(numbers, device), images

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
    """Returns the spectrogram branch with a head, trained and then tuned."""
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

    mel = Nano(with_ssl=False).to(device)
    mel.to(memory_format=torch.channels_last)
    plain = TrainingConfig(
        epochs=plan.mel_epochs, batch=plan.batch, seed=plan.seed, reduced=plan.reduced
    )
    tuning = dataclasses.replace(
        plain, epochs=plan.tuning_epochs, seed=plan.seed + 1, rate=plan.tuning_rate,
        ladders=plan.tuning_ladders, climbing=plan.tuning_climbing,
    )  # fmt: skip
    # Other data has other labels, which are far fewer bytes than the samples.
    digest = hashlib.sha256(clips.labels.tobytes()).hexdigest()
    stages: list[dict[str, Any]] = []
    for name, path, inputs, config in (
        ("mel", resume, rolled, plain),
        ("mel, tuned", resume.with_name(f"{resume.name}.tuned"), varied, tuning),
    ):
        stages.append(dataclasses.asdict(config))
        key = {"stages": stages, "labels_sha256": digest}
        saved = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
        if saved.get("key") == key:
            mel.load_state_dict(saved["state"])
            validate(name, mel, unchanged)
        else:
            fit(name, mel, inputs, unchanged, config)
            with replacing(path) as part:
                torch.save({"key": key, "state": mel.state_dict()}, part)
    return mel


@torch.inference_mode()
def _embed(model: Nano, clips: Clips, device: torch.device, plan: Plan,
           progress: Progress) -> Float32Array:  # fmt: skip
    """Returns features of all clips by frozen branches, (clips, size)."""
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


def _mean(row: dict[str, tuple[float, float]]) -> float:
    """Returns the mean Spearman correlation of the two domains that the default score averages."""
    return float(np.mean([row[name][1] for name in ("bvcc", "p808")]))


def ablation_table(ablation: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Returns a Markdown table of Pearson / Spearman correlations by network and domain."""
    lines = ["| network | " + " | ".join(LABELS) + " |", "|---" * (len(LABELS) + 1) + "|"]
    for network, row in ablation.items():
        cells = " | ".join(f"{row[name][0]:.3f} / {row[name][1]:.3f}" for name in LABELS)
        lines.append(f"| {network} | {cells} |")
    return "\n".join(lines)
