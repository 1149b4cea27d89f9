"""Scores recordings with a model that predicts MOS from crops."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.backends import Backend
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropPlan, Plan, PlanRule, resolve_plan
from mosrt.errors import AudioError, MeasureError
from mosrt.score import Score, interval_95
from mosrt.scorer import Item, Request, Scorer

from .front_end import FusionFrontEnd

__all__ = ["FusionScorer"]


class FusionScorer(Scorer):
    """Scores with a model of family "fusion", "spec" or "ssl"; see `Scorer`.

    Args:
        manifest: What the model is.
        backend: Runs it.
        front_end: Makes its inputs; by default that of the manifest.
        batch_size: As for `Scorer`; by default as many as `backend` runs at once.
        **options: As for `Scorer`.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        *,
        front_end: FusionFrontEnd | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            manifest,
            provider=backend.provider,
            batch_size=batch_size or backend.batch_size,
            **options,
        )
        self._backend = backend
        self._front_end = FusionFrontEnd(manifest) if front_end is None else front_end

    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan | None = None
    ) -> dict[str, Float32Array]:
        """All outputs of the model; see `Scorer.features`."""
        clip = self._open_clip((waveform, sample_rate), resolve_plan(plan))
        if isinstance(clip, AudioError):
            raise clip
        names = [tensor.name for tensor in self.manifest.outputs]
        self._run([clip], names)
        return {name: np.stack([out[name] for out in clip.outputs], axis=1) for name in names}

    def close(self) -> None:
        """Releases the model's memory and the threads; the scorer cannot be used afterwards."""
        self._backend.close()
        super().close()

    def _score(
        self, items: Sequence[Item], domains: tuple[str, ...], request: Request
    ) -> list[dict[str, Score]]:
        if request.frames or request.horizons:
            raise MeasureError(
                f"{self.manifest.name} predicts MOS, which has no values over time or per horizon; "
                "leave frames and horizons out, or load a model that scores by its uncertainty"
            )
        clips = [self._open_clip(item, request.plan) for item in items]
        self._run(
            [clip for clip in clips if not isinstance(clip, AudioError)],
            [self.manifest.outputs[0].name],
        )
        return [self._to_scores(clip, domains) for clip in clips]

    def _open_clip(self, item: Item, plan: CropPlan | PlanRule) -> _Clip | AudioError:
        """Opens a recording, and plans its crops."""
        recording = self._open(item)
        if isinstance(recording, AudioError):
            return recording
        geometry = self._front_end.geometry
        if isinstance(plan, PlanRule):
            plan = plan.plan(recording.n_samples, geometry)
        plan.check(recording.n_samples, geometry)
        return _Clip(recording, plan)

    def _run(self, clips: Sequence[_Clip], outputs: Sequence[str]) -> None:
        """Runs every view of every clip through the model, filling each clip's `outputs`."""
        pool = self._pool
        # As many views at a time as have crops for all threads.
        at_once = max(1, self.threads // max(1, self._front_end.geometry.n_crops))
        pending: list[tuple[_Clip, dict[str, Float32Array]]] = []
        for clip in clips:
            started = time.perf_counter()
            for feeds in self._front_end.views(clip.recording, clip.plan, pool, at_once):
                clip.front_end_ms += 1e3 * (time.perf_counter() - started)
                pending.append((clip, feeds))
                if len(pending) == self._backend.batch_size:
                    self._run_batch(pending, outputs)
                    pending.clear()
                started = time.perf_counter()
        if pending:
            self._run_batch(pending, outputs)

    def _run_batch(
        self,
        pending: Sequence[tuple[_Clip, Mapping[str, Float32Array]]],
        outputs: Sequence[str],
    ) -> None:
        started = time.perf_counter()
        views = [feeds for _, feeds in pending]
        views += [views[-1]] * (self._backend.batch_size - len(views))
        feeds = {name: np.stack([view[name] for view in views]) for name in views[0]}
        results = self._backend.run(feeds, outputs)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        for i, (clip, _) in enumerate(pending):
            clip.outputs.append({name: result[:, i] for name, result in results.items()})
            clip.model_ms += elapsed_ms / len(pending)

    def _to_scores(self, clip: _Clip | AudioError, domains: tuple[str, ...]) -> dict[str, Score]:
        if isinstance(clip, AudioError):
            return {name: self._failed_score(clip, name, self.domains) for name in domains}
        output = self.manifest.outputs[0].name
        # (networks, views, domains): all views of the first network, then of the second, ...
        values = np.stack([out[output] for out in clip.outputs], axis=1).astype(np.float64)
        views = {name: values[:, :, i].ravel() for i, name in enumerate(self.domains)}
        mos = {name: float(each.mean()) for name, each in views.items()}
        recording = clip.recording
        windows = self._windows(clip)
        timings_ms = {
            **recording.timings_ms,
            "front_end": clip.front_end_ms,
            "model": clip.model_ms,
        }
        scores = {}
        for name in domains:
            low, high = interval_95(views[name])
            scores[name] = self._make_score(
                name,
                mos=mos[name],
                low=low,
                high=high,
                n_views=len(views[name]),
                views=tuple(views[name].tolist()),
                windows=windows,
                domains=mos,
                flags=recording.flags,
                duration_s=recording.duration_s,
                timings_ms=timings_ms,
            )
        return scores

    def _windows(self, clip: _Clip) -> tuple[tuple[float, float], ...]:
        """Span in seconds from the first to the last sample that each view reads."""
        geometry, plan = self._front_end.geometry, clip.plan
        spans = []
        for view in range(plan.n_views):
            crops = [
                self._span(start, geometry.spec_samples, clip.recording)
                for start in plan.spec_starts[view].tolist()
            ]
            if geometry.ssl_samples:
                start = int(plan.ssl_starts[view])
                crops.append(self._span(start, geometry.ssl_samples, clip.recording))
            spans.append((min(first for first, _ in crops), max(last for _, last in crops)))
        return tuple(spans)

    def _span(self, start: int, length: int, recording: Recording) -> tuple[float, float]:
        """Span in seconds of one crop; a recording that is repeated for it is read whole."""
        if recording.n_samples <= length:
            start, length = 0, recording.n_samples
        rate_hz = self.manifest.sample_rate_hz
        # Resampling may have rounded the number of samples up.
        return start / rate_hz, min((start + length) / rate_hz, recording.duration_s)


@dataclass(slots=True)
class _Clip:
    """A recording, its plan, and what the model has given for it so far."""

    recording: Recording
    plan: CropPlan
    outputs: list[dict[str, Float32Array]] = field(default_factory=list)
    front_end_ms: float = 0.0
    model_ms: float = 0.0
