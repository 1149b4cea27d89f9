"""The interface of a model family, the chunks it scores, and the backends of its graphs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.backends import Backend, open_backend
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.bundle.uncertainty_spec import STAGES, UncertaintySpec

__all__ = [
    "ModelFamily",
    "Rows",
    "Stages",
    "chunk_bounds",
    "load_stages",
    "row_measures",
    "run",
    "zero_padded",
]

Stages = Mapping[str, Backend]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measures of the rows of one layout in one chunk.

    Attributes:
        values: (4, rows), in the order of `mosrt.bundle.uncertainty_spec.MEASURES`.
        frames: Feature frame of the chunk that each row is about, (rows,), or None if rows are not
            about single frames.
        horizons: Frames from each row's context to what it predicts, (rows,), or None if the model
            does not predict ahead.
    """

    values: FloatArray
    frames: IntArray | None = None
    horizons: IntArray | None = None


class ModelFamily(Protocol):
    """Measures how uncertain a model is about a chunk."""

    def features(self, chunk: Float32Array) -> dict[str, Float32Array]:
        """Outputs of the first graph for a chunk (samples,), (frames, size) by name."""
        ...

    def measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout of a chunk (samples,), the `number`th of its recording."""
        ...


def run(stage: Backend, feeds: Mapping[str, Array], output: str) -> Float32Array:
    """One output of a stage's only network, (batch, ...)."""
    found: Float32Array = stage.run(feeds, [output])[output][0]
    return found


def row_measures(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """The four measures of arXiv 2312.15616 of each row, in the order of `MEASURES`.

    A logit of minus infinity counts as the smallest finite one of the matrix.

    Args:
        logits: (rows, columns), at least two columns, each row with a finite value.

    Returns:
        (4, rows) float64.
    """
    with np.errstate(all="ignore"):  # the scorer reports what is not finite
        values = logits.astype(np.float64)
        lowest = np.isneginf(values)
        if not lowest.all() and lowest.any():
            values[lowest] = values[~lowest].min()
        mean = values.mean(axis=1)
        centred = values - mean[:, np.newaxis]
        std = np.sqrt(np.square(centred).sum(axis=1) / (values.shape[1] - 1))
        largest = values.max(axis=1)
        np.subtract(values, largest[:, np.newaxis], out=values)
        weights = np.exp(values, out=centred)
        total = weights.sum(axis=1)
        # With x = logits - max and w = exp(x): entropy = log Σw - Σwx / Σw.
        entropy = np.log(total) - np.einsum("rk,rk->r", weights, values) / total
        return np.stack([mean, std, largest, entropy])


def load_stages(
    manifest: Manifest, variant: Variant, directory: Path, **engine: Any
) -> dict[str, Backend]:
    """Opens a backend for each graph, by the graph's name.

    Args:
        manifest: Of an uncertainty family.
        variant: The precision variant to run.
        directory: Where its files are.
        **engine: Provider, threads and cache, as for `open_backend`.

    Raises:
        ProviderError: The provider is not available.
        BundleError: A graph does not load, or is not what the manifest says.
    """
    tensors = {tensor.name: tensor for tensor in (*manifest.inputs, *manifest.outputs)}
    stages: dict[str, Backend] = {}
    try:
        for member in variant.members:
            taken, given = STAGES[manifest.family][member.name]
            stages[member.name] = open_backend(
                directory,
                dataclasses.replace(variant, members=(member,)),
                inputs=[tensors[name] for name in taken],
                outputs=[tensors[name] for name in given],
                **engine,
            )
    except BaseException:
        for stage in stages.values():
            stage.close()
        raise
    return stages


def chunk_bounds(n_samples: int, spec: UncertaintySpec) -> list[tuple[int, int]]:
    """First sample and one past the last of each chunk of a recording of `n_samples`.

    Chunks are about equally long, at most `spec.window_samples`, and have no frame in common.
    """
    if n_samples <= spec.window_samples:
        return [(0, n_samples)]
    n_frames = spec.n_frames(n_samples)
    n_chunks = math.ceil(n_frames / spec.n_frames(spec.window_samples))
    bounds = [i * n_frames // n_chunks for i in range(n_chunks + 1)]
    hop_samples = spec.hop_samples
    return [
        (first * hop_samples, (last - 1) * hop_samples + spec.receptive_samples)
        for first, last in pairwise(bounds)
    ]


def zero_padded(chunk: Float32Array, below_samples: int) -> Float32Array:
    """A recording (samples,) with as many zeros before it, if it has under `below_samples`.

    The published code of arXiv 2312.15616 does the same.
    """
    if len(chunk) >= below_samples:
        return chunk
    return np.concatenate([np.zeros_like(chunk), chunk])
