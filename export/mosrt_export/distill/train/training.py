"""Trains the network in stages, and continues an interrupted training as if nothing had happened.

All random choices of a step come from the seed and the number of the step.
"""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt._arrays import Float32Array, IntArray
from mosrt.host.files import replacing
from mosrt_export.distill.data.dataset import Dataset
from mosrt_export.distill.data.images import vary_response
from mosrt_export.distill.recipe import Stage

__all__ = ["Standardisation", "Training", "update"]

_STEEPNESS: Final = 8.0
_WEIGHT_DECAY: Final = 2e-2
_RANKING: Final = 0.3
_MARGIN: Final = 0.2
_AVERAGE: Final = 0.998


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
        dataset: Images and labels.
        standard: Mean and standard deviation of the labels.
        stages: The stages.
        batch: Clips per step.
        seed: Seed of all random choices.
        reduced: Whether convolutions run in bfloat16.
        resume: File for the state of the training; the same training continues from it.
        save_every_s: Seconds between two states that are saved.
    """

    dataset: Dataset
    standard: Standardisation
    stages: tuple[Stage, ...]
    batch: int
    seed: int
    reduced: bool
    resume: Path
    save_every_s: float = 300.0

    def run(self, network: nn.Module) -> Iterator[tuple[str, float, float]]:
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
        self, network: nn.Module, number: int, stage: Stage, saved: dict[str, Any],
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
        targets = torch.from_numpy((data.labels - self.standard.mean) / self.standard.deviation)
        n_ladders = min(stage.ladders, len(data.ladders))
        n_single = self.batch - data.ladders.shape[1] * n_ladders
        n_steps = max(1, int(stage.epochs * data.n_single) // n_single)
        first = saved.get("step", 0)
        network.train()
        shown = time.monotonic()
        for step, chosen, images in self._batches(stage, number, first, n_steps, n_ladders):
            torch.manual_seed((self.seed + number) * 10**9 + step)  # of dropout
            given = images.to(device, torch.bfloat16 if self.reduced else torch.float32)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.reduced):
                scores = network(given.contiguous(memory_format=torch.channels_last))
            scores = scores.float()
            loss = label_loss(scores, targets[torch.from_numpy(chosen)].to(device))
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
    ) -> Iterator[tuple[int, IntArray, torch.Tensor]]:
        """Yields each step with its clips and images, which a thread reads during the step before.

        Clips of ladders come last.
        """
        data = self.dataset
        shares = data.sampling_shares()
        n_single = self.batch - data.ladders.shape[1] * n_ladders

        def read(step: int) -> tuple[int, IntArray, torch.Tensor]:
            rng = np.random.default_rng([self.seed, number, step])
            single = rng.choice(data.n_single, n_single, p=shares)
            rows = rng.permutation(len(data.ladders))[:n_ladders]
            chosen = np.concatenate([single, data.ladders[rows].ravel()])
            images = data.image_batch(chosen)
            # Clips are excerpts, so that it does not matter where one begins.
            images = images.roll(int(rng.integers(images.shape[3])), dims=3)
            if stage.microphones:
                images = vary_response(images, data.groups(chosen), rng)
            return step, chosen, images

        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            coming = executor.submit(read, first)
            for step in range(first, n_steps):
                ready = coming.result()
                coming = executor.submit(read, step + 1)
                yield ready


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
