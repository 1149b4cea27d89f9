"""Train a UTMOSv2 on the scores of `nano`: the training data and the stages.

The stages are: one backbone, the waveform branch, both together, the statistics of batch norms, and
the head. Backbones are convolutional and their features are pooled over time, so strips of the
images teach what whole images would, at an eighth of the cost. Training stages end after a given
time. Statistics of batch norms and the head are fitted last, on images of full size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

import mosrt
from mosrt._arrays import Float32Array
from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.nano.data.degradations import DEGRADATIONS
from mosrt_export.nano.data.voices import SAMPLE_RATE_HZ, recorded, recorded_voices
from mosrt_export.utmosv2.config import SpectrogramConfig
from mosrt_export.utmosv2.fusion import Fusion
from mosrt_studies.accuracy.heldout import levelled

__all__ = [
    "TrainingData",
    "calibrate_norms",
    "fit_head",
    "make_training_data",
    "predictions",
    "ridge",
    "train_backbone",
    "train_branches",
    "train_waveform",
]


_CLIP_SAMPLES: Final = 4 * SAMPLE_RATE_HZ
_CLEAN_SHARE: Final = 0.25
_KINDS: Final = tuple(kind for kind in DEGRADATIONS if kind != "codec2")  # needs a program
_STRIP_COLUMNS: Final = 64
_SHORT: Final = 24_000
_CENTRE: Final = 3.0  # of the MOS scale, so that networks predict about zero


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Clips with the scores that `nano` gives them.

    Attributes:
        waveforms: (clips, samples) at 16 kHz.
        targets: (clips,) MOS of the default domain of `nano`.
        front_end: Computes the mel images.
        spec: Configuration of the images.
    """

    waveforms: Float32Array
    targets: Float32Array
    front_end: MelFrontEnd
    spec: SpectrogramConfig

    def images(self, clip: int, rng: np.random.Generator) -> Float32Array:
        """Images of one crop at a random position, (windows, mels, columns) in [0, 1]."""
        size = self.spec.crop_samples
        start = int(rng.integers(self.waveforms.shape[1] - size))
        made = self.front_end.images(self.waveforms[clip, start : start + size])
        return np.stack([made[window] for window in self.spec.windows])

    def view(self, clip: int, rng: np.random.Generator) -> Float32Array:
        """All images of one view, (crops * windows, mels, columns), crop by crop."""
        return np.concatenate([self.images(clip, rng) for _ in range(self.spec.n_crops)])

    def crop(self, clip: int, n_samples: int, rng: np.random.Generator) -> Float32Array:
        """A crop at a random position, (n_samples,), of zero mean and unit variance."""
        start = int(rng.integers(self.waveforms.shape[1] - n_samples + 1))
        crop = self.waveforms[clip, start : start + n_samples]
        return np.asarray((crop - crop.mean()) / np.sqrt(crop.var() + 1e-7), np.float32)


def make_training_data(
    speech: Path, count: int, spec: SpectrogramConfig, seed: int, *, held_out: bool
) -> TrainingData:
    """Cuts clips of 4 s from recorded voices, degrades three in four, and scores all with `nano`.

    Args:
        speech: Folder with a folder of recordings per voice.
        count: Number of clips.
        spec: Configuration of the images.
        seed: Seed of cuts and degradations.
        held_out: Whether to use the recordings held out from the training of `nano`, or the others.

    Raises:
        VoiceError: There are no recordings.
    """
    rng = np.random.default_rng(seed)
    voices = [
        [part for part in recorded(voice, held_out=held_out) if len(part) >= SAMPLE_RATE_HZ]
        for voice in recorded_voices(speech)
    ]
    waveforms = np.stack([_degraded(_cut(voices, rng), rng) for _ in range(count)])
    with mosrt.load("nano") as nano:
        scores = [nano.score(waveform, SAMPLE_RATE_HZ).mos for waveform in waveforms]
    return TrainingData(
        waveforms, np.array(scores, np.float32), MelFrontEnd(spec.images, SAMPLE_RATE_HZ), spec
    )


def train_backbone(
    backbone: nn.Module, data: TrainingData, minutes: float, seed: int
) -> Iterator[str]:
    """Trains a backbone in place on strips of the images of all windows; yields its progress."""
    rng = np.random.default_rng(seed)
    head = nn.Linear(int(backbone.num_features), 1)  # type: ignore[arg-type]  # timm has no types
    network = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).train()

    def loss() -> torch.Tensor:
        clips = rng.integers(len(data.targets), size=2)
        images = np.concatenate([data.images(int(clip), rng) for clip in clips])
        strips = torch.from_numpy(_strip(images, rng))[:, None].expand(-1, 3, -1, -1)
        targets = torch.from_numpy(data.targets[np.repeat(clips, len(images) // len(clips))])
        return functional.mse_loss(network(strips).squeeze(1), targets - _CENTRE)

    yield from _train(network, loss, minutes, rate=1e-3)


def train_waveform(model: Fusion, data: TrainingData, minutes: float, seed: int) -> Iterator[str]:
    """Trains the waveform branch `ssl` in place, on crops of 1.5 s; yields its progress."""
    rng = np.random.default_rng(seed)
    model.ssl.weights.data.fill_(1 / len(model.ssl.weights))
    network = nn.ModuleDict({"ssl": model.ssl, "head": nn.Linear(model.ssl.feature_size, 1)})

    def loss() -> torch.Tensor:
        clips = rng.integers(len(data.targets), size=6)
        crops = np.stack([data.crop(int(clip), _SHORT, rng) for clip in clips])
        features = model.ssl.embed(torch.from_numpy(crops))
        targets = torch.from_numpy(data.targets[clips])
        return functional.mse_loss(network["head"](features).squeeze(1), targets - _CENTRE)

    yield from _train(network, loss, minutes, rate=2e-4)


def train_branches(
    model: Fusion, backbone: nn.Module, data: TrainingData, minutes: float, seed: int
) -> Iterator[str]:
    """Trains the whole model in place, every backbone starting as `backbone`; yields progress."""
    rng = np.random.default_rng(seed)
    branch = model.spec_long
    for copy in branch.backbones:
        copy.load_state_dict(backbone.state_dict())
    branch.weights.data.fill_(1 / branch.n_windows)
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.constant_(model.fc.bias, _CENTRE)

    def loss() -> torch.Tensor:
        clips = rng.integers(len(data.targets), size=3)
        views = np.stack([data.view(int(clip), rng) for clip in clips])
        waveform = np.stack([data.crop(int(clip), _SHORT, rng) for clip in clips])
        inputs = {
            "images": torch.from_numpy(_strip(views, rng)),
            "waveform": torch.from_numpy(waveform),
        }
        scores = model(inputs, _domains(rng, len(clips), model.n_domains))
        return functional.mse_loss(scores, torch.from_numpy(data.targets[clips]))

    branch.train()
    yield from _train(model, loss, minutes, rate=3e-4)


def calibrate_norms(model: Fusion, data: TrainingData, clips: int, seed: int) -> Iterator[str]:
    """Replaces the statistics of batch norms by those of images of full size; yields progress.

    The model is in evaluation mode afterwards.
    """
    rng = np.random.default_rng(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all images
    model.spec_long.train()
    with torch.inference_mode():
        for clip in range(clips):
            view = torch.from_numpy(data.view(clip, rng))[None]
            model.spec_long.rows(view)
            yield f"norms: {clip + 1} of {clips} clips"
    model.eval()


def fit_head(model: Fusion, data: TrainingData, clips: int, seed: int) -> Iterator[str]:
    """Replaces the head by a ridge regression on features of images of full size.

    The strength of the penalty is the largest whose leave-one-out error is within a standard error
    of the smallest one. Small slopes then predict as well as can be told apart, and are less
    sensitive to low numeric precision. All domains get the same head.

    Yields:
        Progress messages.
    """
    rng = np.random.default_rng(seed)
    model.eval()
    rows = []
    for clip in range(clips):
        with torch.inference_mode():
            features = model.features(_inputs(data, clip, rng))
        rows.append({name: value[0].double().numpy() for name, value in features.items()})
        yield f"head: {clip + 1} of {clips} clips"
    joined = np.stack([np.concatenate(list(row.values())) for row in rows])
    slopes, offset, error = ridge(joined, data.targets[:clips].astype(np.float64))
    columns = model.fc.weight.data[0].zero_()
    start, first = 0, 0
    for feature in rows[0].values():
        size = len(feature)
        columns[start : start + size] = torch.from_numpy(slopes[first : first + size]).float()
        start, first = start + size + model.n_domains, first + size
    model.fc.bias.data.fill_(offset)
    yield f"head: error {error:.3f} MOS, leave-one-out"


def ridge(
    features: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Ridge regression with many more features than rows, by the one-standard-error rule.

    The leave-one-out error is exact and costs one inverse: Golub, Heath and Wahba, Technometrics 21
    (1979). The rule is that of Breiman, Friedman, Olshen and Stone, Classification and Regression
    Trees (1984), 3.4.3.

    Args:
        features: (rows, features).
        targets: (rows,).

    Returns:
        Slopes (features,), the offset, and the leave-one-out root mean square error.
    """
    mean, centre = features.mean(axis=0), targets.mean()
    centred = features - mean
    kernel = centred @ centred.T
    fits = []
    for strength in np.trace(kernel) / len(kernel) * 10.0 ** np.arange(-5, 3, 0.5):
        inverse = np.linalg.inv(kernel + strength * np.eye(len(kernel)))
        duals = inverse @ (targets - centre)
        # the share of a row's own target that its residual keeps, with a free offset
        kept = strength * np.diag(inverse) - 1 / len(kernel)
        fits.append(((strength * duals / kept) ** 2, duals))
    least = min((errors for errors, _ in fits), key=np.mean)
    limit = least.mean() + least.std(ddof=1) / math.sqrt(len(least))
    errors, duals = next(fit for fit in reversed(fits) if fit[0].mean() <= limit)
    slopes = centred.T @ duals
    return slopes, float(centre - mean @ slopes), math.sqrt(errors.mean())


def predictions(model: Fusion, data: TrainingData, seed: int) -> Iterator[tuple[float, float]]:
    """Target and score of each clip, from one view of full size."""
    rng = np.random.default_rng(seed)
    model.eval()
    for clip, target in enumerate(data.targets):
        with torch.inference_mode():
            score = model(_inputs(data, clip, rng), _domains(rng, 1, model.n_domains))
        yield float(target), float(score)


def _strip(images: Float32Array, rng: np.random.Generator) -> Float32Array:
    """A strip of images (..., mels, columns) at a random position."""
    start = int(rng.integers(images.shape[-1] - _STRIP_COLUMNS + 1))
    return np.ascontiguousarray(images[..., start : start + _STRIP_COLUMNS])


def _inputs(data: TrainingData, clip: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One view of full size."""
    return {
        "images": torch.from_numpy(data.view(clip, rng))[None],
        "waveform": torch.from_numpy(data.crop(clip, 2 * _SHORT, rng))[None],
    }


def _domains(rng: np.random.Generator, batch: int, count: int) -> torch.Tensor:
    chosen = torch.from_numpy(rng.integers(count, size=batch))
    return functional.one_hot(chosen, count).float()


def _train(
    network: nn.Module, loss: Callable[[], torch.Tensor], minutes: float, rate: float
) -> Iterator[str]:
    """AdamW for a given time: the rate rises over 5 % of the time, then falls to zero."""
    network.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    began = time.monotonic()
    recent: list[float] = []
    step = 0
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        recent = [*recent[-49:], float(value.detach())]
        step += 1
        if step % 10 == 0:
            yield f"{done:4.0%}, step {step}: error {math.sqrt(sum(recent) / len(recent)):.3f} MOS"
    network.requires_grad_(False)


def _cut(voices: Sequence[Sequence[Float32Array]], rng: np.random.Generator) -> Float32Array:
    """Consecutive utterances of one voice, (_CLIP_SAMPLES,)."""
    utterances = voices[int(rng.integers(len(voices)))]
    parts: list[Float32Array] = []
    while sum(map(len, parts)) < _CLIP_SAMPLES:
        parts.append(utterances[int(rng.integers(len(utterances)))])
    return np.concatenate(parts)[:_CLIP_SAMPLES]


def _degraded(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    loud = levelled(speech)
    if rng.random() >= _CLEAN_SHARE:
        kind = _KINDS[int(rng.integers(len(_KINDS)))]
        loud = levelled(DEGRADATIONS[kind](loud, float(rng.beta(1.0, 1.3)), rng))
    return loud * np.float32(10 ** (rng.uniform(-10, 3) / 20))
