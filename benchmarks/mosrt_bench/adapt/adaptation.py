"""Scores rated clips with a model, and writes the model with a domain that is fitted to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import click
import numpy as np

from mosrt._arrays import FloatArray
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Variant
from mosrt.bundle.writer import updated_bundle, write_card, write_manifest
from mosrt.cli.ratings import Rating
from mosrt.cli.terminal import printable
from mosrt.errors import AudioError, BundleError, OutputError, ProviderError
from mosrt.loading import load
from mosrt.mos.scorer import FusionScorer
from mosrt_bench.errors import BenchError

from .fitting import MIN_CLIPS, RatedClips, fit_head

__all__ = ["check", "rated_clips", "write_adapted"]

_DRIFT_CLIPS: Final = 64


def check(bundle: Bundle, name: str, output: Path) -> None:
    """Raises a MosrtError if a bundle cannot get a domain `name` in a copy, `output`."""
    if bundle.manifest.uncertainty is not None:
        raise BundleError(f"{bundle.path}: predicts no MOS; take `mosrt fit-mos`")
    if name in bundle.manifest.all_domains:
        raise BenchError(f"{bundle.path}: has a domain {name!r}; choose another --name")
    if not bundle.path.is_dir():
        raise BundleError(f"{bundle.path}: a zip cannot be changed; unpack it first")
    if output.exists() or output.is_symlink():
        raise OutputError(f"{output}: exists already; choose another --output")


def rated_clips(
    bundle: Bundle, folder: Path, ratings: Iterable[Rating], threads: int | None
) -> RatedClips:
    """Runs the reference variant on the CPU; warns of clips in `folder` that cannot be scored.

    Raises:
        BenchError: Fewer than five clips can be scored, or all are rated alike.
    """
    scored = []
    means: dict[str, list[FloatArray]] = {each.name: [] for each in bundle.manifest.outputs}
    with load(bundle.path, provider="cpu", threads=threads) as scorer:
        for rating in ratings:
            try:
                found = cast(FusionScorer, scorer).features_of(folder / rating.path)
            except AudioError:
                text = f"warning: {printable(rating.path)} cannot be scored and is left out"
                click.echo(text, err=True)
                continue
            scored.append(rating)
            for name, values in found.items():
                means[name].append(values.mean(axis=(0, 1), dtype=np.float64))
    if len(scored) < MIN_CLIPS or len({rating.mos for rating in scored}) < 2:
        raise BenchError(
            f"{len(scored)} rated clips can be scored; rate at least {MIN_CLIPS}, not all alike"
        )
    outputs = {name: np.array(rows) for name, rows in means.items()}
    return RatedClips(scored, outputs, bundle.manifest)


def write_adapted(
    bundle: Bundle, clips: RatedClips, output: Path, *, folder: Path, name: str, description: str,
    order_of: str | None, evaluation: Mapping[str, Any], threads: int | None,
) -> str:  # fmt: skip
    """Writes a copy of a bundle with a new default domain, and measures the drift of its variants.

    Paths of clips are relative to `folder`; `order_of` is as of `fit_head`; `evaluation` is what
    the cross-validation gave. Returns the kind of head that was fitted.
    """
    head = fit_head(clips, np.arange(len(clips.mos)), description, order_of=order_of)
    head = dataclasses.replace(head, evaluation=evaluation)
    heads = {**bundle.manifest.heads, name: head}
    manifest = dataclasses.replace(bundle.manifest, heads=heads, default_domain=name)
    files = [folder / each.path for each in clips.ratings[:: -(-len(clips.mos) // _DRIFT_CLIPS)]]
    with updated_bundle(bundle.path, output) as directory:
        write_manifest(directory, manifest)
        variants = _with_drift(directory, manifest.variants, name, files, threads)
        write_manifest(directory, dataclasses.replace(manifest, variants=variants))
        text = f"Fitted to {head.n_clips} rated clips ({description}) by `mosrt adapt`."
        write_card(directory, f"{bundle.model_card()}\n## Domain `{name}`\n\n{text}\n")
    return head.kind


def _with_drift(
    directory: Path, variants: Mapping[str, Variant], domain: str, files: Sequence[Path],
    threads: int | None,
) -> dict[str, Variant]:  # fmt: skip
    """Variants with the drift from FP32 of a domain, which is the default, if they run on CPUs."""
    scores: dict[str, FloatArray] = {}
    for name in variants if len(variants) > 1 else ():
        with (
            suppress(ProviderError),  # the variant is made for another provider
            load(directory, variant=name, provider="cpu", threads=threads) as scorer,
        ):
            scores[name] = np.array([scorer.score_file(file).mos for file in files])
    measured = dict(variants)
    for name in [name for name in scores if name != "fp32" and "fp32" in scores]:
        errors = np.abs(scores[name] - scores["fp32"])
        drift = {f"{domain}_max_abs": errors.max(), f"{domain}_mean_abs": errors.mean()}
        drift = {**variants[name].drift, **{key: float(f"{e:.2g}") for key, e in drift.items()}}
        measured[name] = dataclasses.replace(variants[name], drift=drift)
    return measured
