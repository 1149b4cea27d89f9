"""Fits a domain to rated clips: simple and richer maps, chosen among by cross-validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray, IntArray
from mosrt.bundle.domain_head import DomainHead
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.mos_map import falling_fit
from mosrt.cli.ratings import Rating

__all__ = ["MIN_CLIPS", "RatedClips", "affine", "fit_head", "folds", "grouped_mean"]

MIN_CLIPS: Final = 5
# From the simplest to the richest, with the clips that each needs.
_KINDS: Final = {"affine": 0, "domains": 20, "monotone": 50, "features": 50}
_MIN_GROUPS: Final = 5  # for a bootstrap
_INNER_FOLDS: Final = 5
_MAX_COMPONENTS: Final = 64
_PENALTIES: Final = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
_COLUMNS: Final = "columns"


class RatedClips:
    """Rated clips with the outputs of a model that predicts MOS.

    Args:
        ratings: The ratings of the clips.
        outputs: Outputs of the graph by name, the MOS first, means over views, (clips, size).
        manifest: What the model is.

    Attributes:
        mos: The listeners' mean ratings, (clips,).
        scores: MOS by domain of the model, (clips,).
        grouped_by: What is never divided by a cross-validation: "system", "folder" or "clip".
        groups: Group of each clip, (clips,).
        basis: By name of an output, what its columns weigh in the predictors, (size, predictors).
        predictors: What heads are fitted to, (clips, predictors).
    """

    def __init__(
        self, ratings: Sequence[Rating], outputs: Mapping[str, FloatArray], manifest: Manifest
    ) -> None:
        self.ratings = ratings
        self.outputs = outputs
        self.mos = np.array([rating.mos for rating in ratings])
        heads = {name: head(outputs) for name, head in manifest.heads.items()}
        columns = next(iter(outputs.values())).T
        self.scores = dict(zip(manifest.domains, columns, strict=True)) | heads
        self.grouped_by, self.groups = _groups(ratings)
        # The features of two networks of an ensemble have nothing in common.
        alone = all(len(variant.members) == 1 for variant in manifest.variants.values())
        self.basis = _basis(outputs if alone else dict(list(outputs.items())[:1]))
        parts = [outputs[name] @ matrix for name, matrix in self.basis.items()]
        self.predictors: FloatArray = np.sum(parts, axis=0)


def _groups(ratings: Sequence[Rating]) -> tuple[str, IntArray]:
    """What a group is, and that of each clip: its system, else its folder, else the clip."""
    folders = [PurePath(rating.path).parent.as_posix() for rating in ratings]
    for kind, names in (("system", [rating.system for rating in ratings]), ("folder", folders)):
        if None not in names and len(set(names)) >= _MIN_GROUPS:
            return kind, np.unique(np.array(names), return_inverse=True)[1]
    return "clip", np.arange(len(ratings))


def _basis(outputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Predictors: the domains of the graph, then principal components of standardised features.

    The components vary as much as the domains in all. No rating has a part in them.
    """
    first, *names = outputs
    n_domains = outputs[first].shape[1]
    if not names:
        return {first: np.eye(n_domains)}
    features = np.concatenate([outputs[name] for name in names], axis=1)
    scale = features.std(axis=0)
    scale[scale < 1e-6] = np.inf  # a constant column tells nothing
    standard = (features - features.mean(axis=0)) / scale
    _, size, axes = np.linalg.svd(standard, full_matrices=False)
    axes, spread = axes[:_MAX_COMPONENTS], float(np.square(size[:_MAX_COMPONENTS]).sum())
    weights = np.sqrt(n_domains * len(features) / max(spread, 1e-9)) * axes.T / scale[:, None]
    ends = np.cumsum([outputs[name].shape[1] for name in names])[:-1]
    parts = np.split(np.pad(weights, ((0, 0), (n_domains, 0))), ends)
    return {first: np.eye(n_domains, n_domains + len(axes)), **dict(zip(names, parts, strict=True))}


def fit_head(clips: RatedClips, chosen: IntArray, description: str = "") -> DomainHead:
    """Fits a head to some clips.

    Candidates are an affine map of a domain, a ridge regression on all domains, which is shrunk
    towards the affine map of the best one, a monotone map of a domain, and a ridge regression on
    domains and features. Few clips allow only the first ones. The simplest is taken that predicts
    the ratings of other groups as well as the best, but for one standard error.

    `chosen` are indices of the clips to fit, (n,).
    """
    x, y, groups = clips.predictors[chosen], clips.mos[chosen], clips.groups[chosen]
    n_domains = len(next(iter(clips.basis.values())))
    kinds = [kind for kind, least in _KINDS.items() if len(y) >= least]
    heads = list(_heads(x, y, n_domains, kinds))
    squares = np.empty((len(heads), len(y)))
    for test in folds(groups, _INNER_FOLDS):
        others = _heads(x[~test], y[~test], n_domains, kinds)
        for row, head in zip(squares, others, strict=True):
            row[test] = np.square(head({_COLUMNS: x[test]}) - y[test])
    means = squares.mean(axis=1)
    for kind in kinds:
        of_kind = [i for i, head in enumerate(heads) if head.kind == kind]
        found = min(of_kind, key=lambda i: means[i], default=0)
        excess, error = grouped_mean(squares[found] - squares[means.argmin()], groups)
        if excess <= error:
            break
    row = np.array(heads[found].weights[_COLUMNS])
    weights = {name: tuple((matrix @ row).tolist()) for name, matrix in clips.basis.items()}
    if heads[found].kind != "features":
        weights = dict(list(weights.items())[:1])
    return dataclasses.replace(heads[found], weights=weights, description=description)


def _heads(
    x: FloatArray, y: FloatArray, n_domains: int, kinds: Sequence[str]
) -> Iterator[DomainHead]:
    """Every candidate of some kinds, fitted to predictors x (n, predictors) and ratings y (n,)."""

    def head(kind: str, weights: FloatArray, bias: float, **points: Any) -> DomainHead:
        columns = {_COLUMNS: tuple(weights.tolist())}
        return DomainHead(
            kind=kind, weights=columns, bias=float(bias), n_clips=len(y), description="", **points
        )

    lines = []
    for unit, column in zip(np.eye(n_domains, x.shape[1]), x.T, strict=False):
        slope, bias = affine(column, y)
        lines.append((float(np.square(slope * column + bias - y).sum()), slope * unit, bias))
        yield head("affine", slope * unit, bias)
        if "monotone" in kinds:
            ends, values = falling_fit(column, -y)
            # Lines through the middles of its steps, so that few clips become equal.
            steps, step = np.unique(-values, return_inverse=True)
            middles = np.bincount(step, ends) / np.bincount(step)
            yield head("monotone", unit, 0, x=tuple(middles.tolist()), y=tuple(steps.tolist()))
    _, line, bias = min(lines, key=lambda each: each[0])
    residual = y - x @ line - bias
    scale = np.where(np.arange(x.shape[1]) < n_domains, np.maximum(x.std(axis=0), 1e-6), 1.0)
    for kind, first, last in (("domains", 1, n_domains), ("features", n_domains, x.shape[1])):
        if kind not in kinds or last <= first:
            continue
        mean = x[:, :last].mean(axis=0)
        left, size, right = np.linalg.svd((x[:, :last] - mean) / scale[:last], full_matrices=False)
        for penalty in _PENALTIES:
            shrunk = size / (size**2 + penalty * len(y)) * (left.T @ residual)
            added = right.T @ shrunk / scale[:last]
            weights = line + np.pad(added, (0, x.shape[1] - last))
            yield head(kind, weights, bias + residual.mean() - mean @ added)


def affine(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Slope, at least 0, and offset of the least-squares line."""
    spread = float(np.square(x - x.mean()).sum())
    slope = max(0.0, float(((x - x.mean()) * y).sum()) / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def folds(groups: IntArray, n_folds: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yields which clips are in the test part of each fold, (n,); groups (n,) stay whole."""
    if len(np.unique(groups)) < 2:  # they cannot be kept apart
        groups = np.arange(len(groups))
    names, group = np.unique(groups, return_inverse=True)
    n_folds = min(n_folds, len(names))
    fold = (np.random.default_rng(0).permutation(len(names)) % n_folds)[group]
    for i in range(n_folds):
        yield fold == i


def grouped_mean(values: FloatArray, groups: IntArray) -> tuple[float, float]:
    """Mean of values (n,), and its standard error if groups were drawn at random."""
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    mean, n = float(values.mean()), len(counts)
    spread = np.square(sums - counts * mean).sum() * n / max(1, n - 1)
    return mean, float(np.sqrt(spread)) / len(values)
