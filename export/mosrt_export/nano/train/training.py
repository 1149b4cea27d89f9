"""Trains a network to predict the labels of all domains, and scores its predictions."""

from __future__ import annotations

import concurrent.futures
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from mosrt._arrays import Float32Array, FloatArray, IntArray

__all__ = [
    "Inputs",
    "Standardisation",
    "TrainingConfig",
    "correlations",
    "predict",
    "train",
    "update",
]

_STEEPNESS: Final = 8.0
Inputs = Callable[[IntArray], tuple[torch.Tensor, ...]]
"""Maps numbers of clips to the network's inputs for these clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of a training.

    Attributes:
        epochs: Passes over the data.
        batch: Clips per step.
        rate: Largest learning rate; it rises over a tenth of the steps, then falls to zero.
        weight_decay: Weight decay of AdamW.
        ranking: Weight of the pairwise ranking loss relative to the squared error.
        margin: Smallest difference of standardised labels for which a pair is ranked.
        ladders: Ladders per batch.
        climbing: Weight of the ranking loss within ladders.
        average: Decay of the exponential moving average of the weights.
        seed: Seed of the order of clips.
        reduced: Whether convolutions run in bfloat16.
    """

    epochs: float
    batch: int = 48
    rate: float = 3e-3
    weight_decay: float = 2e-2
    ranking: float = 0.3
    margin: float = 0.2
    ladders: int = 3
    climbing: float = 0.5
    average: float = 0.998
    seed: int = 0
    reduced: bool = True


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean and standard deviation of the labels, (domains,) each."""

    mean: Float32Array
    deviation: Float32Array

    @classmethod
    def of(cls, labels: Float32Array) -> Standardisation:
        """Measures them on labels (clips, domains), which are nan where unknown."""
        return cls(np.nanmean(labels, axis=0), np.nanstd(labels, axis=0))


def train(
    network: nn.Module,
    inputs: Inputs,
    labels: Float32Array,
    chosen: IntArray,
    standard: Standardisation,
    config: TrainingConfig,
    weights: Float32Array | None = None,
    ladders: IntArray | None = None,
) -> Iterator[tuple[float, float]]:
    """Trains a network in place, and ends with the moving average of its weights.

    Args:
        network: Maps inputs to standardised scores (batch, domains).
        inputs: Returns the inputs of clips.
        labels: Labels (clips, domains), nan where unknown.
        chosen: Numbers of the clips to train on.
        standard: Mean and standard deviation of the labels.
        config: Settings.
        weights: Relative sampling weight of each clip (clips,); None weighs all the same.
        ladders: Numbers of the clips of ladders (ladders, rungs), the least degraded first. Within
            a ladder, a more degraded clip must not score higher, whatever the labels say.

    Yields:
        After each step, the share that is done and the loss.
    """
    device = next(network.parameters()).device
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    targets = torch.from_numpy((labels - standard.mean) / standard.deviation)
    rng = np.random.default_rng(config.seed)
    if ladders is None or not len(ladders):
        ladders = np.empty((0, 1), np.int64)
    n_climbing = config.ladders if len(ladders) else 0
    n_single = config.batch - n_climbing * ladders.shape[1]
    n_steps = max(1, int(config.epochs * len(chosen)) // n_single)
    averaged = copy.deepcopy(network)
    network.train()
    shares = None
    if weights is not None:
        shares = weights[chosen].astype(np.float64)
        shares /= shares.sum()
    singles = sample_batches(chosen, n_single, n_steps, rng, shares)
    rows = sample_batches(np.arange(len(ladders)), n_climbing, n_steps, rng)
    batches = (
        np.concatenate([single, ladders[row].ravel()])
        for single, row in zip(singles, rows, strict=True)
    )
    for step, (batch, made) in enumerate(_ahead(batches, inputs)):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.reduced):
            scores = network(*made)
        scores = scores.float()
        loss = label_loss(scores, targets[torch.from_numpy(batch)].to(device), config)
        if n_climbing:
            climbing = scores[n_single:].reshape(n_climbing, ladders.shape[1], -1)
            loss = loss + config.climbing * ladder_loss(climbing)
        value = update(optimiser, loss, config.rate * schedule(step / n_steps))
        # A smaller decay at the start, so that the average forgets the random initial weights.
        _average(averaged, network, min(config.average, step / (step + 10)))
        yield (step + 1) / n_steps, value
    network.load_state_dict(averaged.state_dict())
    network.eval()


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


def sample_batches(
    chosen: IntArray,
    size: int,
    n_steps: int,
    rng: np.random.Generator,
    shares: FloatArray | None = None,
) -> Iterator[IntArray]:
    """Yields `n_steps` batches of `size` numbers out of `chosen`.

    All numbers come up once per pass, or by their probabilities `shares` if these are given.
    """
    waiting: IntArray = np.empty(0, np.int64)
    for _ in range(n_steps):
        while len(waiting) < size:
            if shares is None:
                sampled = rng.permutation(chosen)
            else:
                sampled = rng.choice(chosen, len(chosen), p=shares)
            waiting = np.concatenate([waiting, sampled])
        yield waiting[:size]
        waiting = waiting[size:]


def _ahead(
    batches: Iterator[IntArray], inputs: Inputs
) -> Iterator[tuple[IntArray, tuple[torch.Tensor, ...]]]:
    """Yields each batch with its inputs, which a thread prepares during the step before."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        waiting = None
        for batch in batches:
            coming = (batch, executor.submit(inputs, batch))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def label_loss(scores: torch.Tensor, targets: torch.Tensor, config: TrainingConfig) -> torch.Tensor:
    """Returns the squared error plus a logistic loss for wrongly ordered pairs of clips."""
    known = torch.isfinite(targets)
    wanted = torch.where(known, targets, torch.zeros_like(targets))
    error = torch.where(known, scores - wanted, torch.zeros_like(scores))
    # Every domain counts the same, however many labels it has.
    squared = (error.square().sum(dim=0) / known.sum(dim=0).clamp(min=1)).mean()
    gap = wanted[:, None] - wanted[None]
    margin = scores[:, None] - scores[None]
    pairs = (gap > config.margin) & known[:, None] & known[None]
    wrong = torch.where(pairs, nn.functional.softplus(-3 * margin) / 3, torch.zeros_like(margin))
    ranked = (wrong.sum(dim=(0, 1)) / pairs.sum(dim=(0, 1)).clamp(min=1)).mean()
    return squared + config.ranking * ranked


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


@torch.inference_mode()
def predict(network: nn.Module, inputs: Inputs, chosen: IntArray,
            standard: Standardisation, *, reduced: bool = False) -> Float32Array:  # fmt: skip
    """Returns scores (clips, domains) on the labels' scales."""
    device = next(network.parameters()).device
    network.eval()
    rows = []
    for start in range(0, len(chosen), 32):
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            scores = network(*inputs(chosen[start : start + 32]))
        rows.append(scores.float().cpu().numpy())
    scaled: Float32Array = np.concatenate(rows) * standard.deviation + standard.mean
    return scaled


def correlations(scores: Float32Array, labels: Float32Array) -> list[tuple[float, float]]:
    """Returns Pearson's and Spearman's correlation of each domain, over clips with a label."""
    result = []
    for predicted, wanted in zip(scores.T, labels.T, strict=True):
        known = np.isfinite(wanted)
        pearson = float(np.corrcoef(predicted[known], wanted[known])[0, 1])
        result.append((pearson, float(spearmanr(predicted[known], wanted[known])[0])))
    return result
