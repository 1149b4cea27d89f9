"""Fits a domain to rated clips: simple and richer maps, chosen among by cross-validation."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray, IntArray
from mosrt.bundle.domain_head import DomainHead
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.mos_map import falling_fit
from mosrt.cli.ratings import Rating

__all__ = [
    "MIN_CLIPS", "MIN_GROUPS", "RatedClips", "affine", "fit_head", "folds", "grouped_mean",
]  # fmt: skip

MIN_CLIPS: Final = 5
MIN_GROUPS: Final = 5  # for a bootstrap
# From the simplest to the richest, with the clips that each needs.
_KINDS: Final = {"affine": 0, "domains": 20, "monotone": 50, "features": 50}
_INNER_FOLDS: Final = 5
_MAX_COMPONENTS: Final = 64
_PENALTIES: Final = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
_COLUMNS: Final = "columns"
_Mask: TypeAlias = npt.NDArray[np.bool_]


class RatedClips:
    """Rated clips with the outputs of a model that predicts MOS.

    Args:
        ratings: The ratings of the clips.
        outputs: Outputs of the graph by name, the MOS first, means over views, (clips, size).
        manifest: What the model is.

    Attributes:
        mos: The listeners' mean ratings, (clips,).
        domains: The domains of the graph.
        scores: MOS by domain of the model, those of earlier ratings included, (clips,).
        grouped_by: What is never divided by a cross-validation: "system", "speaker", "system and
            speaker", "folder" or "clip".
        groups: Group of each clip, (clips, 1), or its system and its speaker, (clips, 2).
        basis: By name of an output, what its columns weigh in the predictors, (size, predictors).
        predictors: What heads are fitted to, (clips, predictors).
    """

    def __init__(
        self, ratings: Sequence[Rating], outputs: Mapping[str, FloatArray], manifest: Manifest
    ) -> None:
        self.ratings = ratings
        self.domains = manifest.domains
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
    """What a group is, and the groups of each clip, (clips, kinds of groups).

    They are its system and its speaker, or the one of them that is known; else its folder; else
    the clip. Of systems that have one speaker each, the speakers say it all, and the other way
    round.
    """
    names = {kind: [getattr(rating, kind) for rating in ratings] for kind in ("system", "speaker")}
    kinds = {
        kind: np.unique(np.array(found), return_inverse=True)[1]
        for kind, found in names.items()
        if None not in found and len(set(found)) >= MIN_GROUPS
    }
    n_pairs = len(np.unique(np.stack(list(kinds.values()), axis=1), axis=0)) if kinds else 0
    for kind in ("speaker", "system"):
        if len(kinds) == 2 and n_pairs == kinds[kind].max() + 1:
            del kinds[kind]
    if kinds:
        return " and ".join(kinds), np.stack(list(kinds.values()), axis=1)
    folders = [PurePath(rating.path).parent.as_posix() for rating in ratings]
    if len(set(folders)) >= MIN_GROUPS:
        return "folder", np.unique(np.array(folders), return_inverse=True)[1][:, None]
    return "clip", np.arange(len(ratings))[:, None]


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


def fit_head(
    clips: RatedClips, chosen: IntArray, description: str = "", *, order_of: str | None = None
) -> DomainHead:
    """Fits a head to some clips.

    Candidates are an affine map of a domain, a ridge regression on all domains, which is shrunk
    towards the affine map of the best one, a monotone map of a domain, and a ridge regression on
    domains and features. Few clips allow only the first ones. The simplest is taken that predicts
    the ratings of other groups as well as the best, but for one standard error.

    `chosen` are indices of the clips to fit, (n,). With `order_of`, the head is the affine map of
    this domain of the graph, and so orders clips as it does.
    """
    x, y, groups = clips.predictors[chosen], clips.mos[chosen], clips.groups[chosen]
    if order_of is not None:
        column = clips.domains.index(order_of)
        slope, bias = affine(x[:, column], y)
        row = slope * np.eye(len(clips.domains))[column]
        return DomainHead(
            kind="affine", weights={next(iter(clips.basis)): tuple(row.tolist())}, bias=bias,
            n_clips=len(y), description=description,
        )  # fmt: skip
    n_domains = len(clips.domains)
    kinds = [kind for kind, least in _KINDS.items() if len(y) >= least]
    heads = list(_heads(x, y, n_domains, kinds))
    squares = np.empty((len(heads), len(y)))
    for fitted, test in folds(groups, _INNER_FOLDS):
        others = _heads(x[fitted], y[fitted], n_domains, kinds)
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


def folds(groups: IntArray, n_folds: int) -> Iterator[tuple[_Mask, _Mask]]:
    """Yields which clips are fitted to and which are tested in each fold, (n,) each.

    Each clip is tested once, and no group of its own, (n, kinds of groups), is fitted to: with
    systems and speakers, neither its system nor its speaker.
    """
    columns = [column for column in groups.T if len(np.unique(column)) > 1]
    columns = columns or [np.arange(len(groups))]  # groups that cannot be kept apart
    n_folds = -(-n_folds // len(columns))
    parts = []
    for column in columns:
        names, group = np.unique(column, return_inverse=True)
        order = np.random.default_rng(0).permutation(len(names))
        parts.append((order % min(n_folds, len(names)))[group])
    for cell in itertools.product(*(range(part.max() + 1) for part in parts)):
        same = np.stack([part == i for part, i in zip(parts, cell, strict=True)])
        test: _Mask = np.all(same, axis=0)
        fitted: _Mask = ~np.any(same, axis=0)
        if np.any(test):
            yield (fitted if np.sum(fitted) > 1 else ~same[0]), test


def grouped_mean(values: FloatArray, groups: IntArray) -> tuple[float, float]:
    """Mean of values (n,), and its standard error if groups were drawn at random.

    With several kinds of groups, (n, kinds of groups), it is the largest of their errors.
    """
    mean = float(values.mean())
    errors = []
    for column in groups.T:
        _, group = np.unique(column, return_inverse=True)
        sums, counts = np.bincount(group, values), np.bincount(group)
        spread = np.square(sums - counts * mean).sum() * len(counts) / max(1, len(counts) - 1)
        errors.append(float(np.sqrt(spread)) / len(values))
    return mean, max(errors)
