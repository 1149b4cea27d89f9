"""Bench: everything that `mosrt bench` measures, gathered into one report.

What the report holds is described in REPORT.md beside this file.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mosrt.bundle import Bundle

from .audio_set import AudioFile, audio_files, rated_files
from .cold_start import cold_starts
from .contestants import (
    BenchError,
    Contestant,
    bundle_sha256,
    contestants,
    open_bundle,
    reference_variant,
)
from .energy import counters, energy
from .estimator import estimator_study
from .latency import Budget, clip_of, latency_row, take_turns, timed
from .machine import describe
from .parity import Judged
from .parity_run import run_parity
from .rated_peers import peer_figures
from .runs import finite
from .throughput import throughput
from .voicemos import Rating, protocol, read_ratings

__all__ = ["LENGTHS_S", "SCHEMA_VERSION", "Request", "run_bench"]

SCHEMA_VERSION: Final = 1
LENGTHS_S: Final = (1.0, 3.0, 5.0, 10.0, 30.0)
HEADLINE_S: Final = 5.0
_LOG: Final = logging.getLogger("mosrt")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a bench is asked for.

    Attributes:
        bundles: Names or paths of models.
        variants: Names, or "all".
        providers: Names, or "all" for those of this machine.
        audio: Files or folders.
        labels: CSV of listeners' ratings, or None.
        references: Torch checkpoints, one per network of the only bundle.
        peers: ONNX files of DNSMOS models.
        threads: Numbers of threads.
        batches: Batch sizes, for throughput.
        callers: Numbers of concurrent callers, for throughput.
        lengths_s: Lengths of clips for latency, in seconds.
        budget: Of each timing.
        starts: Fresh processes per contestant; 0 for none.
        estimator: Whether to study the number of views.
        seeds: Draws of that study.
        max_views: Most views of that study.
        half_width: Interval wanted of it.
        speed: Whether to time anything.
        command: How it was called, for the report.
    """

    bundles: tuple[str, ...]
    variants: tuple[str, ...] = ("all",)
    providers: tuple[str, ...] = ("all",)
    audio: tuple[Path, ...] = ()
    labels: Path | None = None
    references: tuple[Path, ...] = ()
    peers: tuple[Path, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 4)
    callers: tuple[int, ...] = (1, 2, 4)
    lengths_s: tuple[float, ...] = LENGTHS_S
    budget: Budget = field(default_factory=Budget)
    starts: int = 5
    estimator: bool = False
    seeds: int = 24
    max_views: int = 8
    half_width: float = 0.1
    speed: bool = True
    command: str = ""


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
        "settings": _settings(request),
        "audio": [clip.to_dict() for clip in clips],
        "bundles": [_bundle(bundle) for bundle in bundles],
        "notes": [],
    }
    with _quietly():
        parity = run_parity(bundles, field_of, clips, references=request.references, say=say)
        judged, runnable = parity.judged, parity.runnable
        report["parity"] = parity.rows
        report["scores"] = {name: dict(figures_by_clip) for name, figures_by_clip in judged.items()}
        if request.peers:
            say("hearing the peers")
            report["peers"] = peer_figures(request.peers, clips)
        if ratings:
            say("comparing with the listeners")
            predictions = _predictions(bundles, judged, report.get("peers", []))
            report["labels"] = _labels(ratings, rated, bundles, predictions)
            report["ratings"] = [
                {
                    **asdict(rating),
                    "clip": rated[rating.path].name,
                    "predicted": {n: p[rated[rating.path].name] for n, p in predictions.items()},
                }
                for rating in ratings
            ]
        if request.estimator:
            report["estimator"] = list(_estimator(request, runnable, clips, say))
        if request.speed and runnable:
            source = _heard_by_all(clips, judged)
            _speed(request, runnable, source, report, say)
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


def _settings(request: Request) -> dict[str, Any]:
    settings = asdict(request)
    for name in ("audio", "references", "peers"):
        settings[name] = [path.name for path in settings[name]]
    settings["labels"] = None if request.labels is None else request.labels.name
    del settings["command"]
    return settings


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


def _speed(
    request: Request,
    runnable: Sequence[Contestant],
    source: AudioFile,
    report: dict[str, Any],
    say: Say,
) -> None:
    """Latency, throughput, energy and cold starts, all on clips made of one recording."""
    report["timed_audio"] = source.name
    lengths = sorted({*request.lengths_s, HEADLINE_S})
    clip_by_length = {length_s: clip_of(source.path, length_s) for length_s in lengths}
    headline = clip_by_length[HEADLINE_S]
    with ExitStack() as stack:
        scorers = {c.name: stack.enter_context(c.load()) for c in runnable}
        first = next(iter(scorers))
        report["latency"] = []
        for length_s, clip in clip_by_length.items():
            say(f"timing {len(scorers)} contestants on {length_s:g} s")
            taken = take_turns(
                {name: timed(scorer, clip) for name, scorer in scorers.items()}, request.budget
            )
            report["latency"] += [
                {"contestant": name, "first": first, **latency_row(t, taken[first], length_s)}
                for name, t in taken.items()
            ]
        say("throughput")
        report["throughput"] = throughput(
            scorers,
            headline,
            clip_s=HEADLINE_S,
            batches=request.batches,
            callers=request.callers,
            budget=request.budget,
        )
        meters, notes = counters()
        report["notes"] += notes
        report["energy"] = energy(
            {name: timed(scorer, headline) for name, scorer in scorers.items()}, meters
        )
    if request.starts:
        say(f"{request.starts} fresh processes each")
        report["cold_start"] = cold_starts(runnable, headline, runs=request.starts)
