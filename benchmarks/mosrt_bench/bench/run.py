"""Bench: everything that `mosrt bench` measures, gathered into one report.

What the report holds is described in REPORT.md beside this file.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from mosrt.bundle.bundle import Bundle
from mosrt_bench.clips import AudioFile, audio_files, rated_files
from mosrt_bench.errors import BenchError
from mosrt_bench.machine import describe
from mosrt_bench.output import finite
from mosrt_bench.peers import peer_results
from mosrt_bench.stats.voicemos import Rating, protocol, read_ratings

from .configurations import (
    Contestant,
    bundle_sha256,
    contestants,
    open_bundle,
    reference_variant,
)
from .parity import Judged
from .parity_run import run_parity
from .request import Request
from .speed import measure_speed
from .view_study import estimator_study

__all__ = ["SCHEMA_VERSION", "run_bench"]

SCHEMA_VERSION: Final = 1
_LOG: Final = logging.getLogger("mosrt")

Say = Callable[[str], None]


def run_bench(
    request: Request, say: Say = lambda _: None
) -> tuple[dict[str, Any], list[AudioFile]]:
    """Measures all that is asked for.

    Args:
        request: What to do.
        say: Told what is being done.

    Returns:
        The report, JSON-ready, and the recordings that it is about.

    Raises:
        MosrtError: Something asked for cannot be done.
    """
    bundles = [open_bundle(name) for name in request.bundles]
    field_of = contestants(
        bundles,
        variants=request.variants,
        providers=request.providers,
        threads=request.threads,
    )
    ratings, rated, clips = _clips(request)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "mosrt bench",
        "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": request.command,
        "machine": describe(),
        "settings": request.settings(),
        "audio": [clip.to_dict() for clip in clips],
        "bundles": [_bundle(bundle) for bundle in bundles],
        "notes": [],
    }
    with _quietly():
        parity = run_parity(bundles, field_of, clips, references=request.references, say=say)
        judged, runnable = parity.judged, parity.runnable
        report["parity"] = parity.rows
        report["scores"] = {
            name: {clip: _brief(figures) for clip, figures in by_clip.items()}
            for name, by_clip in judged.items()
        }
        if request.peers:
            say("hearing the peers")
            report["peers"] = peer_results(request.peers, clips)
        if ratings:
            say("comparing with the listeners")
            predictions = _predictions(bundles, judged, report.get("peers", []))
            report["labels"] = _labels(ratings, rated, bundles, predictions)
            report["ratings"] = [
                {
                    **asdict(rating),
                    "clip": rated[rating.path].name,
                    "predicted": _brief(
                        {n: p[rated[rating.path].name] for n, p in predictions.items()}
                    ),
                }
                for rating in ratings
            ]
        if request.estimator:
            report["estimator"] = list(_estimator(request, runnable, clips, say))
        if request.speed and runnable:
            source = _heard_by_all(clips, judged)
            measure_speed(request, runnable, source, parity.score_s, report, say)
    return finite(report), clips


def _clips(request: Request) -> tuple[list[Rating], dict[str, AudioFile], list[AudioFile]]:
    """Ratings, the clips that they are of, and all clips."""
    clips = audio_files(request.audio)
    if request.labels is None:
        if not clips:
            raise BenchError("nothing to hear: pass --audio a folder of recordings")
        return [], {}, clips
    ratings = read_ratings(request.labels)
    rated = rated_files(ratings, request.labels, request.audio)
    known = {clip.path.resolve(): clip for clip in clips}
    for path, clip in rated.items():
        rated[path] = known.setdefault(clip.path.resolve(), clip)
    return ratings, rated, list(known.values())


def _brief(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures with the seven digits that float32 has, which keeps reports small."""
    return {name: float(f"{value:.7g}") for name, value in figures.items()}


def _bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "family": manifest.family,
        "sha256": bundle_sha256(bundle),
        "bytes": bundle.n_bytes,
        "reference": f"{manifest.name} {reference_variant(bundle)} cpu",
        "default_domain": manifest.default_domain,
        "variants": {
            name: {"bytes": sum(f.bytes for f in v.files), "declared_drift": dict(v.drift)}
            for name, v in manifest.variants.items()
        },
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences warnings about clips: the same ones for every contestant."""
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOG.setLevel(level)


def _predictions(
    bundles: Sequence[Bundle],
    judged: Mapping[str, Judged],
    peers: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    """What to hold to the listeners, by contestant and clip: the larger, the better."""
    manifests = {bundle.manifest.name: bundle.manifest for bundle in bundles}
    columns = {}
    for name, by_clip in judged.items():
        manifest = manifests[name.rsplit(" ", 2)[0]]
        uncertainty = manifest.uncertainty
        columns[name] = {
            clip: figures[manifest.default_domain]
            if uncertainty is None
            else -figures["uncertainty"]
            if uncertainty.mos_map is None
            else uncertainty.mos_map(figures["uncertainty"])
            for clip, figures in by_clip.items()
        }
    return {**columns, **{peer["peer"]: dict(peer["scores"]) for peer in peers}}


def _labels(
    ratings: Sequence[Rating],
    rated: Mapping[str, AudioFile],
    bundles: Sequence[Bundle],
    predictions: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """The VoiceMOS table of every variant and provider, and of the peers."""
    unmapped = {
        bundle.manifest.name
        for bundle in bundles
        if bundle.manifest.uncertainty is not None and bundle.manifest.uncertainty.mos_map is None
    }
    rows = []
    for name, scores in predictions.items():
        predicted = {path: scores[clip.name] for path, clip in rated.items()}
        on_scale = name.rsplit(" ", 2)[0] not in unmapped
        rows += [
            {"contestant": name, **row} for row in protocol(ratings, predicted, on_scale=on_scale)
        ]
    return rows


def _estimator(
    request: Request, runnable: Sequence[Contestant], clips: Sequence[AudioFile], say: Say
) -> Iterator[dict[str, Any]]:
    for contestant in {c.model: c for c in reversed(runnable) if c.is_reference}.values():
        if contestant.bundle.manifest.uncertainty is not None:
            continue
        say(f"studying the number of views: {contestant.model}")
        with contestant.load() as scorer:
            yield estimator_study(
                scorer,
                clips,
                seeds=request.seeds,
                max_views=request.max_views,
                wanted=request.half_width,
            )


def _heard_by_all(clips: Sequence[AudioFile], judged: Mapping[str, Judged]) -> AudioFile:
    """The first clip that every contestant can score.

    Raises:
        BenchError: There is none.
    """
    for clip in clips:
        if all(
            math.isfinite(value) for found in judged.values() for value in found[clip.name].values()
        ):
            return clip
    raise BenchError("no clip that every contestant can score; pass --audio other recordings")
