"""Training: a network taught to predict the labels of a data set, domain by domain."""

from __future__ import annotations

import concurrent.futures
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from mosrt._arrays import Float32Array

__all__ = ["Standardisation", "TrainingConfig", "correlations", "train"]

_STEEPNESS: Final = 8.0
Inputs = Callable[[NDArray[np.int64]], tuple[torch.Tensor, ...]]
"""Numbers of clips -> the network's inputs for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: Passes over the data.
        batch: Clips per step.
        rate: Largest learning rate; it rises over a tenth of the steps and falls to zero.
        weight_decay: Of AdamW.
        ranking: Weight of the pairwise ranking loss beside the squared error.
        margin: Pairs whose standardised labels differ by less are not ranked.
        ladders: Ladders in every batch.
        climbing: Weight of the ranking loss within ladders.
        average: Share of the running average of the weights that a step keeps.
        seed: Of the order of clips.
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
    """Mean and standard deviation of each label, (domains,) each."""

    mean: Float32Array
    deviation: Float32Array

    @classmethod
    def of(cls, labels: Float32Array) -> Standardisation:
        """From labels (clips, domains), nan where unknown."""
        return cls(np.nanmean(labels, axis=0), np.nanstd(labels, axis=0))


def train(
    network: nn.Module,
    inputs: Inputs,
    labels: Float32Array,
    chosen: NDArray[np.int64],
    standard: Standardisation,
    config: TrainingConfig,
    weights: Float32Array | None = None,
    ladders: NDArray[np.int64] | None = None,
) -> Iterator[tuple[float, float]]:
    """Trains a network in place; its weights end as their running average.

    Args:
        network: Inputs -> standardised scores (batch, domains).
        inputs: Makes the inputs of some clips.
        labels: (clips, domains), nan where unknown.
        chosen: Clips to train on.
        standard: Of the labels.
        config: How.
        weights: (clips,), how often each clip is drawn, relative to the others; all alike if None.
        ladders: (ladders, rungs), numbers of clips of the same speech, ever more damaged. Some are
            in every batch, and whatever a domain's labels say, more damage must not score higher.

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
    singles = _batches(chosen, n_single, n_steps, rng, shares)
    rows = _batches(np.arange(len(ladders)), n_climbing, n_steps, rng)
    batches = (
        np.concatenate([single, ladders[row].ravel()])
        for single, row in zip(singles, rows, strict=True)
    )
    for step, (batch, made) in enumerate(_ahead(batches, inputs)):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * _schedule(step / n_steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.reduced):
            scores = network(*made)
        scores = scores.float()
        loss = _loss(scores, targets[torch.from_numpy(batch)].to(device), config)
        if n_climbing:
            climbing = scores[n_single:].reshape(n_climbing, ladders.shape[1], -1)
            loss = loss + config.climbing * _climbing_loss(climbing)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        # early on the average must not remember the random start
        _average(averaged, network, min(config.average, step / (step + 10)))
        yield (step + 1) / n_steps, float(loss.detach())
    network.load_state_dict(averaged.state_dict())
    network.eval()


def _schedule(done: float) -> float:
    warm = 0.1
    return (
        done / warm if done < warm else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
    )


def _batches(
    chosen: NDArray[np.int64],
    size: int,
    n_steps: int,
    rng: np.random.Generator,
    shares: NDArray[np.float64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    waiting: NDArray[np.int64] = np.empty(0, np.int64)
    for _ in range(n_steps):
        while len(waiting) < size:
            drawn = (
                rng.permutation(chosen)
                if shares is None
                else rng.choice(chosen, len(chosen), p=shares)
            )
            waiting = np.concatenate([waiting, drawn])
        yield waiting[:size]
        waiting = waiting[size:]


def _ahead(
    batches: Iterator[NDArray[np.int64]], inputs: Inputs
) -> Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]:
    """Each batch with its inputs, which a thread makes while the network is at the one before."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        waiting = None
        for batch in batches:
            coming = (batch, executor.submit(inputs, batch))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _loss(scores: torch.Tensor, targets: torch.Tensor, config: TrainingConfig) -> torch.Tensor:
    """Squared error, and a logistic loss for pairs of clips in the wrong order, by domain."""
    known = torch.isfinite(targets)
    wanted = torch.where(known, targets, torch.zeros_like(targets))
    error = torch.where(known, scores - wanted, torch.zeros_like(scores))
    # every domain counts the same, however many labels it has
    squared = (error.square().sum(dim=0) / known.sum(dim=0).clamp(min=1)).mean()
    gap = wanted[:, None] - wanted[None]
    margin = scores[:, None] - scores[None]
    pairs = (gap > config.margin) & known[:, None] & known[None]
    wrong = torch.where(pairs, nn.functional.softplus(-3 * margin) / 3, torch.zeros_like(margin))
    ranked = (wrong.sum(dim=(0, 1)) / pairs.sum(dim=(0, 1)).clamp(min=1)).mean()
    return squared + config.ranking * ranked


def _climbing_loss(scores: torch.Tensor) -> torch.Tensor:
    """A logistic loss for rungs (ladders, rungs, domains) that score above a better one.

    It is steep: small steps are enough, since how large they are is what the labels say.
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
def predict(network: nn.Module, inputs: Inputs, chosen: NDArray[np.int64],
            standard: Standardisation, *, reduced: bool = False) -> Float32Array:  # fmt: skip
    """Scores (clips, domains) in the labels' own units."""
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
    """Pearson's and Spearman's correlation of each domain, over the clips whose label is known."""
    result = []
    for predicted, wanted in zip(scores.T, labels.T, strict=True):
        known = np.isfinite(wanted)
        pearson = float(np.corrcoef(predicted[known], wanted[known])[0, 1])
        result.append((pearson, float(spearmanr(predicted[known], wanted[known])[0])))
    return result
