"""Run everything that `mosrt bench run` measures, and gather it into one report.

REPORT.md describes what the report holds.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Manifest
from mosrt.cli.ratings import Rating, read_ratings
from mosrt_bench.clips import AudioFile, audio_files, rated_files
from mosrt_bench.errors import BenchError
from mosrt_bench.machine import describe
from mosrt_bench.output import finite
from mosrt_bench.stats.voicemos import protocol

from .configurations import list_configurations, open_bundle, reference_of
from .parity import Parity, Scores, run_parity
from .request import Request, Session, TimeBudget
from .speed import SpeedRun
from .view_study import study_views

__all__ = ["SCHEMA_VERSION", "Bench"]

SCHEMA_VERSION: Final = 1
_LOG: Final = logging.getLogger("mosrt")

Say = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]


class Bench:
    """A run of the bench, whose report grows as results come in.

    Args:
        request: What is asked for.
        say: Told what is being done.
        keep: Given the report whenever it has more.

    Attributes:
        clips: The recordings.

    Raises:
        MosrtError: Something that is asked for cannot be done.
    """

    def __init__(
        self, request: Request, say: Say = lambda _: None, keep: Keep = lambda _: None
    ) -> None:
        self._session = Session(
            request=request,
            budget=TimeBudget(request.budget_s),
            say=say,
            keep=lambda: keep(self.report),
        )
        self._bundles = [open_bundle(name) for name in request.bundles]
        self._configurations = list_configurations(self._bundles, request)
        self._ratings, self._rated, self.clips = _clips(request)
        self._parity = Parity()
        self._report: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "mosrt bench",
            "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "command": request.command,
            "machine": describe(),
            "settings": request.settings(),
            "audio": [clip.to_dict() for clip in self.clips],
            "bundles": [_bundle(bundle, request) for bundle in self._bundles],
            "notes": [],
            "finished": False,
            "not_measured": [],
        }

    @property
    def report(self) -> dict[str, Any]:
        """All results so far, JSON-ready."""
        scores = {
            name: {clip: _brief(scores) for clip, scores in by_clip.items()}
            for name, by_clip in self._parity.scores.items()
        }
        parity = {"parity": self._parity.rows, "facts": self._parity.facts, "scores": scores}
        report: dict[str, Any] = finite({**self._report, **parity})
        return report

    def run(self) -> None:
        """Measures everything.

        Raises:
            MosrtError: Something that is asked for cannot be done.
        """
        session, report, parity = self._session, self._report, self._parity
        request = session.request
        with _without_warnings():
            run_parity(session, self._bundles, self._configurations, self.clips, parity)
            if self._ratings:
                session.say("comparing with the ratings")
                self._compare_with_ratings()
            if request.view_study:
                report["estimator"] = list(self._study_views())
            if request.speed and parity.runnable:
                source = _scored_by_all(self.clips, parity.scores)
                SpeedRun(session, parity.runnable, source, report).run()
        report["finished"] = True
        session.keep()

    def _compare_with_ratings(self) -> None:
        report, rated = self._report, self._rated
        predictions = _predictions(self._bundles, self._parity.scores)
        report["labels"] = []
        for name, (scores, on_scale) in predictions.items():
            predicted = {path: scores[clip.name] for path, clip in rated.items()}
            rows = protocol(self._ratings, predicted, on_scale=on_scale)
            report["labels"] += [{"contestant": name, **row} for row in rows]
        report["ratings"] = []
        for rating in self._ratings:
            clip = rated[rating.path].name
            predicted = _brief({name: scores[clip] for name, (scores, _) in predictions.items()})
            report["ratings"].append({**asdict(rating), "clip": clip, "predicted": predicted})

    def _study_views(self) -> Iterator[dict[str, Any]]:
        """A study of each MOS model whose reference runs here."""
        uncertain = {b.manifest.name for b in self._bundles if b.manifest.uncertainty is not None}
        studied = {
            c.model: c
            for c, _ in reversed(self._parity.runnable)
            if c.is_reference and c.model not in uncertain
        }
        for name, configuration in studied.items():
            self._session.say(f"studying the number of views: {name}")
            with mosrt.load(
                Path(configuration.bundle),
                variant=configuration.variant,
                provider=configuration.provider,
                threads=configuration.threads,
            ) as scorer:
                yield study_views(
                    scorer,
                    self.clips,
                    seeds=self._session.request.seeds,
                    max_views=self._session.request.max_views,
                    wanted=self._session.request.half_width,
                )


def _clips(request: Request) -> tuple[list[Rating], dict[str, AudioFile], list[AudioFile]]:
    """Ratings, the clips that they are of, and all clips."""
    clips = audio_files(request.audio)
    if request.labels is None:
        if not clips:
            raise BenchError("no recordings: pass --audio a folder or a file")
        return [], {}, clips
    ratings = read_ratings(request.labels)
    rated = rated_files(ratings, request.labels, request.audio)
    known = {clip.path.resolve(): clip for clip in clips}
    for path, clip in rated.items():
        rated[path] = known.setdefault(clip.path.resolve(), clip)
    return ratings, rated, list(known.values())


def _brief(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores with the seven digits that float32 has, which keeps reports small."""
    return {name: float(f"{value:.7g}") for name, value in scores.items()}


def _bundle(bundle: Bundle, request: Request) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "family": manifest.family,
        "sha256": bundle.sha256,
        "bytes": bundle.n_bytes,
        "reference": reference_of(bundle, request).label,
        "default_domain": manifest.default_domain,
        "variants": {
            name: {"bytes": sum(f.bytes for f in v.files), "declared_drift": dict(v.drift)}
            for name, v in manifest.variants.items()
        },
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences warnings about clips, which would be the same for every configuration."""
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOG.setLevel(level)


def _predictions(
    bundles: Sequence[Bundle], scores: Mapping[str, Scores]
) -> dict[str, tuple[dict[str, float], bool]]:
    """What to compare with listeners, by configuration, and whether it is on the MOS scale.

    It is a number by clip, and larger means better.
    """
    manifests = {bundle.manifest.name: bundle.manifest for bundle in bundles}

    def predicted(manifest: Manifest, of_domain: Mapping[str, float]) -> float:
        if manifest.uncertainty is None:
            return of_domain[manifest.default_domain]
        value, mos_map = of_domain["uncertainty"], manifest.uncertainty.mos_map
        return -value if mos_map is None else mos_map(value)

    columns = {}
    for name, by_clip in scores.items():
        manifest = manifests[name.rsplit(" ", 2)[0]]
        on_scale = manifest.uncertainty is None or manifest.uncertainty.mos_map is not None
        column = {clip: predicted(manifest, of_domain) for clip, of_domain in by_clip.items()}
        columns[name] = column, on_scale
    return columns


def _scored_by_all(clips: Sequence[AudioFile], scores: Mapping[str, Scores]) -> AudioFile:
    """The first clip that every configuration can score.

    Raises:
        BenchError: There is none.
    """
    for clip in clips:
        if all(
            math.isfinite(value)
            for by_clip in scores.values()
            for value in by_clip[clip.name].values()
        ):
            return clip
    raise BenchError("no clip that every configuration can score; pass --audio other recordings")
