"""A bundle without its weights, to time a large model on a machine that it cannot be copied to.

    python -m mosrt_bench.outline take utmosv2 --out utmosv2-outline
    python -m mosrt_bench.outline draw utmosv2-outline --out utmosv2-drawn

An outline holds a bundle's graphs as they are, its small tensors (biases, norms, scales, zero
points), and the root mean square of every channel of the large ones: some MB instead of a GB.
`draw` makes a bundle of it whose large tensors are drawn from those, from a seed of each tensor's
name, so that its variants are as fast and as large as the bundle's own, FP16 is near FP32, and two
machines draw the same. Its scores say nothing about speech, and its manifest says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import click
import numpy as np
import numpy.typing as npt
import onnx

from mosrt.bundle import MANIFEST_NAME, Bundle
from mosrt.errors import BundleError
from mosrt.manifest import Manifest, Member
from mosrt_export.writer import bundle_file, staged, write_manifest

from .runs import PlainErrors

__all__ = ["draw", "take"]

_LARGE: Final = 1024
_STATISTICS: Final = "statistics.npz"
_KIND: Final = "outline"
_EXTERNAL: Final = onnx.TensorProto.EXTERNAL

Array = npt.NDArray[Any]


def take(bundle: Path, out: Path) -> None:
    """Writes the outline of a bundle.

    Args:
        bundle: A directory.
        out: Where the outline goes; nothing may be there.

    Raises:
        BundleError: The bundle cannot be opened, or is a zip.
        OutputError: Something is at `out`.
    """
    opened = Bundle.open(bundle)
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: unpack it; an outline is taken of a directory")
    known: dict[str, Array] = {}
    with staged(out, force=False, kind=_KIND, mark=_STATISTICS) as directory:
        write_manifest(directory, opened.manifest)
        for member in _members(opened.manifest):
            shutil.copyfile(bundle / member.graph.path, directory / member.graph.path)
            if member.weights is None:
                continue
            weights = np.memmap(bundle / member.weights.path, mode="r")
            for tensor, offset in _external(directory / member.graph.path):
                values = _view(weights, tensor, offset)
                key = f"{member.weights.path}/{tensor.name}"
                if values.size < _LARGE:
                    known[key] = np.array(values)
                    continue
                rows = _rows(values.astype(np.float64))
                known[f"{key}:rms"] = np.sqrt((rows**2).mean(1)).astype(np.float32)
                known[f"{key}:range"] = np.array([values.min(), values.max()])
        np.savez_compressed(directory / _STATISTICS, allow_pickle=False, **known)


def draw(outline: Path, out: Path) -> None:
    """Writes a bundle like the one an outline was taken of, its large tensors drawn anew.

    Args:
        outline: What `take` wrote.
        out: Where the bundle goes; nothing may be there.

    Raises:
        BundleError: It is no outline.
        OutputError: Something is at `out`.
    """
    try:
        manifest = Manifest.from_dict(
            json.loads((outline / MANIFEST_NAME).read_text(encoding="utf-8"))
        )
        with (outline / _STATISTICS).open("rb") as file:
            known = dict(np.load(file, allow_pickle=False))
    except (OSError, ValueError, BadZipFile) as exc:
        raise BundleError(f"{outline}: no outline that can be read ({exc}); take it again") from exc
    files = {}
    with staged(out, force=False) as directory:
        for member in _members(manifest):
            graph = directory / member.graph.path
            shutil.copyfile(outline / member.graph.path, graph)
            files[member.graph.path] = bundle_file(graph)
            if member.weights is None:
                continue
            data = directory / member.weights.path
            weights = np.memmap(data, mode="w+", shape=member.weights.bytes)
            for tensor, offset in _external(graph):
                _fill(_view(weights, tensor, offset), known, f"{member.weights.path}/{tensor.name}")
            weights.flush()
            files[member.weights.path] = bundle_file(data)
        write_manifest(directory, _drawn(manifest, files))


def _members(manifest: Manifest) -> Iterator[Member]:
    for variant in manifest.variants.values():
        yield from variant.members


def _external(graph: Path) -> Iterator[tuple[onnx.TensorProto, int]]:
    """The tensors of a graph whose values are in the file of weights, and where they start."""
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == _EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            yield tensor, int(entries.get("offset", 0))


def _view(weights: Array, tensor: onnx.TensorProto, offset: int) -> Array:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    n_bytes = dtype.itemsize * math.prod(tensor.dims)
    values: Array = weights[offset : offset + n_bytes].view(dtype)
    return values.reshape(tuple(tensor.dims))


def _rows(values: Array) -> Array:
    """A channel of the output in each row: the last axis of a matrix, else the first."""
    if values.ndim == 2:
        return values.T
    return values.reshape(len(values), -1) if values.ndim > 2 else values.reshape(1, -1)


def _fill(values: Array, known: dict[str, Array], key: str) -> None:
    if key in known:
        values[...] = known[key]
        return
    if f"{key}:rms" not in known:
        raise BundleError(f"the outline does not know {key}; take it again")
    low, high = known[f"{key}:range"]
    # The name without what tells variants apart: they get the same values, each in its precision.
    seed = zlib.crc32(key.rpartition("/")[2].encode())
    shape = _rows(values).shape
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    drawn = drawn * known[f"{key}:rms"][:, None]
    np.clip(drawn, low, high, out=drawn)
    if values.dtype.kind in "iu":
        np.rint(drawn, out=drawn)
    values[...] = (drawn.T if values.ndim == 2 else drawn.reshape(values.shape)).astype(
        values.dtype
    )


def _drawn(manifest: Manifest, files: dict[str, Any]) -> Manifest:
    variants = {
        name: dataclasses.replace(
            variant,
            members=tuple(
                dataclasses.replace(
                    member,
                    graph=files[member.graph.path],
                    weights=None if member.weights is None else files[member.weights.path],
                )
                for member in variant.members
            ),
        )
        for name, variant in manifest.variants.items()
    }
    return dataclasses.replace(
        manifest,
        name=f"{manifest.name}-drawn",
        variants=variants,
        provenance={
            **manifest.provenance,
            "weights": f"drawn at random, like those of {manifest.name} channel by channel; for "
            "timing only",
        },
    )


@click.group()
def main() -> None:
    """Take a bundle's outline, or draw a bundle of the same speed from one."""


@main.command("take", cls=PlainErrors)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
def _take(bundle: Path, out: Path) -> None:
    """Write BUNDLE's graphs and what its weights are like."""
    take(bundle, out)


@main.command("draw", cls=PlainErrors)
@click.argument("outline", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write.")
def _draw(outline: Path, out: Path) -> None:
    """Write a bundle with OUTLINE's graphs and drawn weights, for timing only."""
    draw(outline, out)


if __name__ == "__main__":
    main()
