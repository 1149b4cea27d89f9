"""Trains the network in stages, and continues an interrupted training as if nothing had happened.

All random choices of a step come from the seed and the number of the step.
"""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt._arrays import Float32Array, IntArray
from mosrt.host.files import replacing
from mosrt_export.distill.data.batches import Dataset
from mosrt_export.distill.recipe import Stage

from .network import BINS, SEGMENT_SAMPLES, StudentNetwork

__all__ = ["Standardisation", "Training", "update"]

_STEEPNESS: Final = 8.0
_WEIGHT_DECAY: Final = 2e-2
_RANKING: Final = 0.3
_MARGIN: Final = 0.2
_AVERAGE: Final = 0.998
_HINTS: Final = 1.0
# Random frequency responses of other microphones.
_KNOTS: Final = 7
_RESPONSE_DB: Final = 3.0
_RESPONSE_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean and standard deviation of the labels, (domains,) each."""

    mean: Float32Array
    deviation: Float32Array

    @classmethod
    def of(cls, labels: Float32Array) -> Standardisation:
        """Measures them on labels (clips, domains), which are nan where unknown."""
        return cls(np.nanmean(labels, axis=0), np.maximum(np.nanstd(labels, axis=0), 1e-3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training of a network in one stage after another.

    Attributes:
        dataset: Waveforms and labels.
        standard: Mean and standard deviation of the labels.
        default: Maps scores (clips, domains) in MOS to the default score (clips, 1).
        stages: The stages.
        batch: Clips per step.
        seed: Seed of all random choices.
        reduced: Whether convolutions run in bfloat16.
        resume: File for the state of the training; the same training continues from it.
        save_every_s: Seconds between two states that are saved.
    """

    dataset: Dataset
    standard: Standardisation
    default: Callable[[torch.Tensor], torch.Tensor]
    stages: tuple[Stage, ...]
    batch: int
    seed: int
    reduced: bool
    resume: Path
    save_every_s: float = 300.0

    def run(self, network: StudentNetwork) -> Iterator[tuple[str, float, float]]:
        """Trains a network in place; it ends as the moving average of its weights.

        Yields:
            After each step the name of the stage, the share of it that is done, and the loss.
        """
        key = {
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "batch": self.batch,
            "seed": self.seed,
            "reduced": self.reduced,
            "labels_sha256": self.dataset.sha256(),
        }
        saved: dict[str, Any] = {}
        if self.resume.exists():
            saved = torch.load(self.resume, map_location="cpu", weights_only=True)
            saved = saved if saved["key"] == key else {}
        for number, stage in enumerate(self.stages):
            if number >= saved.get("stage", 0):
                own = saved if number == saved.get("stage") else {}
                yield from self._train(network, number, stage, own, {"key": key, "stage": number})
        network.eval()

    def _train(
        self, network: StudentNetwork, number: int, stage: Stage, saved: dict[str, Any],
        facts: dict[str, Any],
    ) -> Iterator[tuple[str, float, float]]:  # fmt: skip
        device = next(network.parameters()).device
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY)
        averaged = copy.deepcopy(network)
        if saved:
            network.load_state_dict(saved["network"])
            averaged.load_state_dict(saved["averaged"])
            optimiser.load_state_dict(saved["optimiser"])
        data = self.dataset
        mean, spread = map(torch.from_numpy, (self.standard.mean, self.standard.deviation))
        labels = torch.from_numpy(data.labels)
        n_ladders = min(stage.ladders, len(data.ladders))
        n_single = self.batch - data.ladders.shape[1] * n_ladders
        n_steps = max(1, int(stage.epochs * data.n_single) // n_single)
        first = saved.get("step", 0)
        network.train()
        shown = time.monotonic()
        for step, batch in self._batches(stage, number, first, n_steps, n_ladders):
            torch.manual_seed((self.seed + number) * 10**9 + step)  # of dropout
            with torch.autocast(device.type, torch.bfloat16, enabled=self.reduced):
                frames, features = network.encoder(
                    batch.waveforms.to(device), batch.gains.to(device)
                )
                scores, deviation = network.head(features)
            scores = scores.float()
            wanted = labels[torch.from_numpy(batch.chosen)]
            loss = label_loss(scores, ((wanted - mean) / spread).to(device))
            error = self.default(scores.detach().cpu() * spread + mean) - self.default(wanted)
            loss = loss + deviation_loss(deviation, error.to(device))
            if batch.hints is not None and network.hint is not None:
                found = network.hint(frames[:, :, : batch.hints.shape[2]]).float()
                loss = loss + _HINTS * hint_loss(found, batch.hints.to(device))
            if n_ladders:
                climbing = scores[n_single:].reshape(n_ladders, -1, scores.shape[1])
                loss = loss + stage.climbing * ladder_loss(climbing)
            value = update(optimiser, loss, stage.rate * schedule(step / n_steps))
            # A smaller decay at the start, so that the average forgets the random initial weights.
            _average(averaged, network, min(_AVERAGE, step / (step + 10)))
            last = step + 1 == n_steps
            if last:
                network.load_state_dict(averaged.state_dict())
            if last or time.monotonic() - shown > self.save_every_s:
                shown = time.monotonic()
                state = {
                    **facts,
                    "step": step + 1,
                    "network": network.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                }
                with replacing(self.resume) as part:
                    torch.save(state, part)
            yield stage.name, (step + 1) / n_steps, value

    def _batches(
        self, stage: Stage, number: int, first: int, n_steps: int, n_ladders: int
    ) -> Iterator[tuple[int, _Batch]]:
        """Yields each step and its batch, which a thread reads during the step before."""
        data = self.dataset
        shares = data.sampling_shares()
        n_single = self.batch - data.ladders.shape[1] * n_ladders

        def read(step: int) -> tuple[int, _Batch]:
            rng = np.random.default_rng([self.seed, number, step])
            single = rng.choice(data.n_single, n_single, p=shares)
            rows = rng.permutation(len(data.ladders))[:n_ladders]
            chosen = np.concatenate([single, data.ladders[rows].ravel()])
            groups = data.groups(chosen)
            waveforms = data.waveform_batch(chosen)
            # Polarity is inaudible.
            waveforms *= rng.choice(np.array([-1, 1], np.float32), (len(chosen), 1))
            waveforms = np.pad(waveforms, ((0, 0), (0, SEGMENT_SAMPLES - waveforms.shape[1])))
            gains = (
                random_responses(groups, rng)
                if stage.microphones
                else np.ones((len(chosen), BINS), np.float32)
            )
            hints = data.hint_batch(chosen)
            return step, _Batch(
                chosen=chosen,
                waveforms=torch.from_numpy(waveforms),
                gains=torch.from_numpy(gains),
                hints=None if hints is None else torch.from_numpy(hints),
            )

        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            coming = executor.submit(read, first)
            for step in range(first, n_steps):
                ready = coming.result()
                coming = executor.submit(read, step + 1)
                yield ready


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Clips of one step, those of ladders last.

    `waveforms` (clips, SEGMENT_SAMPLES), `gains` (clips, BINS), `hints` (clips, size, frames).
    """

    chosen: IntArray
    waveforms: torch.Tensor
    gains: torch.Tensor
    hints: torch.Tensor | None


def random_responses(groups: IntArray, rng: np.random.Generator) -> Float32Array:
    """Returns smooth random frequency responses, as of other microphones.

    The gains in dB interpolate linearly between knots, whose standard deviation is 3 dB. Knots are
    equally far from one another on a scale that is linear at low and logarithmic at high
    frequencies. Three clips in ten get none.

    Args:
        groups: A number per clip (clips,). Clips with the same number get the same response, so
            that it does not change what differs between them.
        rng: Source of the responses.

    Returns:
        Gains (clips, BINS).
    """
    distinct, which = np.unique(groups, return_inverse=True)
    knots_db = rng.normal(0, _RESPONSE_DB, (len(distinct), _KNOTS))
    knots_db *= rng.random((len(distinct), 1)) < _RESPONSE_SHARE
    places = np.log1p(np.arange(BINS) / 14)  # 700 Hz, as on the mel scale
    grid = np.linspace(0, places[-1], _KNOTS)
    curves_db = np.stack([np.interp(places, grid, row) for row in knots_db])
    return (10 ** (curves_db[which] / 20)).astype(np.float32)


def update(optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> float:
    """Takes one step at a learning rate, with clipped gradients, and returns the loss."""
    parameters = []
    for group in optimiser.param_groups:
        group["lr"] = rate
        parameters += group["params"]
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 5.0)
    optimiser.step()
    return float(loss.detach())


def schedule(done: float) -> float:
    """Returns the learning rate, relative to its largest, when a share of the steps is done."""
    warm = 0.1
    if done < warm:
        return done / warm
    return 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))


def label_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the squared error plus a logistic loss for wrongly ordered pairs of clips."""
    known = torch.isfinite(targets)
    wanted = torch.where(known, targets, torch.zeros_like(targets))
    error = torch.where(known, scores - wanted, torch.zeros_like(scores))
    # Every domain counts the same, however many labels it has.
    squared = (error.square().sum(dim=0) / known.sum(dim=0).clamp(min=1)).mean()
    gap = wanted[:, None] - wanted[None]
    margin = scores[:, None] - scores[None]
    pairs = (gap > _MARGIN) & known[:, None] & known[None]
    wrong = torch.where(pairs, nn.functional.softplus(-3 * margin) / 3, torch.zeros_like(margin))
    ranked = (wrong.sum(dim=(0, 1)) / pairs.sum(dim=(0, 1)).clamp(min=1)).mean()
    return squared + _RANKING * ranked


def hint_loss(found: torch.Tensor, hints: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error of frames (clips, size, frames), where hints are not nan."""
    known = torch.isfinite(hints)
    squared = torch.where(known, found - hints, torch.zeros_like(found)).square()
    return squared.sum() / known.sum().clamp(min=1)


def deviation_loss(deviation: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Returns the mean negative log-likelihood of errors of a normal distribution, less a constant.

    Args:
        deviation: Standard deviations (clips, 1).
        error: Errors (clips, 1), nan where unknown.
    """
    known = torch.isfinite(error)
    squared = torch.where(known, error, torch.zeros_like(error)) ** 2
    terms = torch.where(known, deviation.log() + squared / (2 * deviation**2), 0 * deviation)
    return terms.sum() / known.sum().clamp(min=1)


def ladder_loss(scores: torch.Tensor) -> torch.Tensor:
    """Returns a logistic loss for clips that score above a less degraded one of their ladder.

    It is steep, so that small differences suffice; the labels decide how large they are.

    Args:
        scores: Scores (ladders, rungs, domains).
    """
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1)
    gap = scores[:, better] - scores[:, worse]
    return (nn.functional.softplus(-_STEEPNESS * gap) / _STEEPNESS).mean()


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, keep: float) -> None:
    for old, new in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - keep)
        else:
            old.copy_(new)
