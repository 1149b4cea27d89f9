"""Stages of the training: one backbone, the waveform branch, both together, norms, the head.

Backbones are convolutional and their features are pooled over time, so that strips of the images
teach what whole images would, at an eighth of the cost. Every stage ends by the clock, since what
it is for is weights that mean something, soon; the norms' statistics and the head come last, from
images of the full size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from mosrt_export.utmosv2.fusion import Fusion

from .data import Lessons

__all__ = [
    "calibrate_norms",
    "fit_head",
    "predictions",
    "ridge",
    "train_backbone",
    "train_branches",
    "train_waveform",
]

Float32Array = NDArray[np.float32]

_STRIP_COLUMNS: Final = 64
_SHORT: Final = 24_000
_CENTRE: Final = 3.0  # of the MOS scale, so that networks predict about zero


def train_backbone(
    backbone: nn.Module, lessons: Lessons, minutes: float, seed: int
) -> Iterator[str]:
    """Trains one backbone on strips of images of all windows, of full height.

    Args:
        backbone: Trained in place.
        lessons: What to learn.
        minutes: For how long.
        seed: Of batches.

    Yields:
        How far it is.
    """
    rng = np.random.default_rng(seed)
    head = nn.Linear(int(backbone.num_features), 1)  # type: ignore[arg-type]  # timm has no types
    network = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).train()

    def loss() -> torch.Tensor:
        clips = rng.integers(len(lessons.targets), size=2)
        images = np.concatenate([lessons.images(int(clip), rng) for clip in clips])
        strips = torch.from_numpy(_strip(images, rng))[:, None].expand(-1, 3, -1, -1)
        targets = torch.from_numpy(lessons.targets[np.repeat(clips, len(images) // len(clips))])
        return functional.mse_loss(network(strips).squeeze(1), targets - _CENTRE)

    yield from _train(network, loss, minutes, rate=1e-3)


def train_waveform(model: Fusion, lessons: Lessons, minutes: float, seed: int) -> Iterator[str]:
    """Trains the waveform branch alone, on crops of 1.5 s, with a head of its own.

    Args:
        model: Its `ssl` is trained in place.
        lessons: What to learn.
        minutes: For how long.
        seed: Of batches.

    Yields:
        How far it is.
    """
    rng = np.random.default_rng(seed)
    model.ssl.weights.data.fill_(1 / len(model.ssl.weights))
    network = nn.ModuleDict({"ssl": model.ssl, "head": nn.Linear(model.ssl.feature_size, 1)})

    def loss() -> torch.Tensor:
        clips = rng.integers(len(lessons.targets), size=6)
        crops = np.stack([lessons.crop(int(clip), _SHORT, rng) for clip in clips])
        features = model.ssl.embed(torch.from_numpy(crops))
        targets = torch.from_numpy(lessons.targets[clips])
        return functional.mse_loss(network["head"](features).squeeze(1), targets - _CENTRE)

    yield from _train(network, loss, minutes, rate=2e-4)


def train_branches(
    model: Fusion, backbone: nn.Module, lessons: Lessons, minutes: float, seed: int
) -> Iterator[str]:
    """Trains the whole: each window's backbone starts as `backbone`.

    Args:
        model: Trained in place.
        backbone: Of `train_backbone`.
        lessons: What to learn.
        minutes: For how long.
        seed: Of batches.

    Yields:
        How far it is.
    """
    rng = np.random.default_rng(seed)
    branch = model.spec_long
    for copy in branch.backbones:
        copy.load_state_dict(backbone.state_dict())
    branch.weights.data.fill_(1 / branch.n_windows)
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.constant_(model.fc.bias, _CENTRE)

    def loss() -> torch.Tensor:
        clips = rng.integers(len(lessons.targets), size=3)
        views = np.stack([lessons.view(int(clip), rng) for clip in clips])
        waveform = np.stack([lessons.crop(int(clip), _SHORT, rng) for clip in clips])
        inputs = {
            "images": torch.from_numpy(_strip(views, rng)),
            "waveform": torch.from_numpy(waveform),
        }
        scores = model(inputs, _domains(rng, len(clips), model.n_domains))
        return functional.mse_loss(scores, torch.from_numpy(lessons.targets[clips]))

    branch.train()
    yield from _train(model, loss, minutes, rate=3e-4)


def calibrate_norms(model: Fusion, lessons: Lessons, clips: int, seed: int) -> Iterator[str]:
    """Measures what batch norms hold on images of full size, which no stage has shown them.

    Args:
        model: Its statistics are replaced; it is in evaluation mode afterwards.
        lessons: What to listen to.
        clips: How many clips.
        seed: Of the crops.

    Yields:
        How far it is.
    """
    rng = np.random.default_rng(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what is shown
    model.spec_long.train()
    with torch.inference_mode():
        for clip in range(clips):
            view = torch.from_numpy(lessons.view(clip, rng))[None]
            model.spec_long.rows(view)
            yield f"norms: {clip + 1} of {clips} clips"
    model.eval()


def fit_head(model: Fusion, lessons: Lessons, clips: int, seed: int) -> Iterator[str]:
    """Fits the head to features of the full size by ridge regression, in closed form.

    The strength is the largest whose error on clips left out, each in turn, is within a standard
    error of the least: small slopes predict as well as far as anyone can tell, and hear less of
    what arithmetic of low precision changes.

    Args:
        model: Its head is replaced; all domains score alike.
        lessons: What to learn.
        clips: How many clips.
        seed: Of the crops.

    Yields:
        How far it is.
    """
    rng = np.random.default_rng(seed)
    model.eval()
    rows = []
    for clip in range(clips):
        with torch.inference_mode():
            features = model.features(_inputs(lessons, clip, rng))
        rows.append({name: value[0].double().numpy() for name, value in features.items()})
        yield f"head: {clip + 1} of {clips} clips"
    joined = np.stack([np.concatenate(list(row.values())) for row in rows])
    slopes, offset, error = ridge(joined, lessons.targets[:clips].astype(np.float64))
    columns = model.fc.weight.data[0].zero_()
    start, first = 0, 0
    for feature in rows[0].values():
        size = len(feature)
        columns[start : start + size] = torch.from_numpy(slopes[first : first + size]).float()
        start, first = start + size + model.n_domains, first + size
    model.fc.bias.data.fill_(offset)
    yield f"head: error {error:.3f} MOS on clips left out"


def ridge(
    features: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Ridge regression with many more features than rows.

    The error of leaving out is exact and costs one inverse: Golub, Heath and Wahba, Technometrics
    21 (1979). The rule of one standard error is that of Breiman, Friedman, Olshen and Stone,
    Classification and Regression Trees (1984), 3.4.3.

    Args:
        features: (rows, features).
        targets: (rows,).

    Returns:
        Slopes (features,), the offset, and the root mean square error on rows left out.
    """
    mean, centre = features.mean(axis=0), targets.mean()
    centred = features - mean
    kernel = centred @ centred.T
    fits = []
    for strength in np.trace(kernel) / len(kernel) * 10.0 ** np.arange(-5, 3, 0.5):
        inverse = np.linalg.inv(kernel + strength * np.eye(len(kernel)))
        duals = inverse @ (targets - centre)
        # what is left of a row's own target in its fit, with a free offset
        kept = strength * np.diag(inverse) - 1 / len(kernel)
        fits.append(((strength * duals / kept) ** 2, duals))
    least = min((errors for errors, _ in fits), key=np.mean)
    limit = least.mean() + least.std(ddof=1) / math.sqrt(len(least))
    errors, duals = next(fit for fit in reversed(fits) if fit[0].mean() <= limit)
    slopes = centred.T @ duals
    return slopes, float(centre - mean @ slopes), math.sqrt(errors.mean())


def predictions(model: Fusion, lessons: Lessons, seed: int) -> Iterator[tuple[float, float]]:
    """Target and score of each clip, one view of the full size."""
    rng = np.random.default_rng(seed)
    model.eval()
    for clip, target in enumerate(lessons.targets):
        with torch.inference_mode():
            score = model(_inputs(lessons, clip, rng), _domains(rng, 1, model.n_domains))
        yield float(target), float(score)


def _strip(images: Float32Array, rng: np.random.Generator) -> Float32Array:
    """A strip of images (..., mels, columns) at a random time."""
    start = int(rng.integers(images.shape[-1] - _STRIP_COLUMNS + 1))
    return np.ascontiguousarray(images[..., start : start + _STRIP_COLUMNS])


def _inputs(lessons: Lessons, clip: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One view of the full size."""
    return {
        "images": torch.from_numpy(lessons.view(clip, rng))[None],
        "waveform": torch.from_numpy(lessons.crop(clip, 2 * _SHORT, rng))[None],
    }


def _domains(rng: np.random.Generator, batch: int, count: int) -> torch.Tensor:
    chosen = torch.from_numpy(rng.integers(count, size=batch))
    return functional.one_hot(chosen, count).float()


def _train(
    network: nn.Module, loss: Callable[[], torch.Tensor], minutes: float, rate: float
) -> Iterator[str]:
    """AdamW by the clock: the rate rises over a twentieth of the time and falls to zero."""
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
