"""Fusion scorer: views of a recording through a MOS model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mosrt.audio.guards import BadAudioPolicy
from mosrt.audio.recording import Recording
from mosrt.backends import Backend
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropPlan
from mosrt.errors import AudioError, MeasureError
from mosrt.plan_rule import PlanRule
from mosrt.score import Score, interval_95
from mosrt.scorer import Item, Plan, Request, Scorer

from .fusion import FusionFrontEnd

__all__ = ["FusionScorer"]

Float32Array = npt.NDArray[np.float32]


class FusionScorer(Scorer):
    """Scores with a model of family "fusion", "spec" or "ssl"; see `Scorer`.

    Args:
        manifest: What the model is.
        backend: Runs it.
        front_end: Of that manifest; made if left out.
        variant: As for `Scorer`, like what follows.
        threads: See there.
        on_bad_audio: See there.
        remove_silence: See there.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        *,
        front_end: FusionFrontEnd | None = None,
        variant: str,
        threads: int,
        on_bad_audio: BadAudioPolicy,
        remove_silence: bool,
    ) -> None:
        super().__init__(
            manifest,
            variant=variant,
            provider=backend.provider,
            threads=threads,
            on_bad_audio=on_bad_audio,
            remove_silence=remove_silence,
        )
        self._backend = backend
        self._front_end = FusionFrontEnd(manifest) if front_end is None else front_end

    @property
    def batch_size(self) -> int:
        """Recordings that `score_many` has in hand at once by default."""
        return self._backend.batch_size

    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan = "grid"
    ) -> dict[str, Float32Array]:
        """All outputs of the model; see `Scorer.features`."""
        clip = self._open_clip((waveform, sample_rate), plan)
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
        return [{domain: self._to_score(clip, domain) for domain in domains} for clip in clips]

    def _open_clip(self, item: Item, plan: Plan) -> _Clip | AudioError:
        """Opens a recording, and plans its crops."""
        recording = self._open(item)
        if isinstance(recording, AudioError):
            return recording
        return _Clip(recording, self._plan(recording.n_samples, plan))

    def _plan(self, n_samples: int, plan: Plan) -> CropPlan:
        geometry = self._front_end.geometry
        if isinstance(plan, str):
            plan = PlanRule.parse(plan)
        if isinstance(plan, PlanRule):
            plan = plan.plan(n_samples, geometry)
        plan.check(n_samples, geometry)
        return plan

    def _run(self, clips: Sequence[_Clip], outputs: Sequence[str]) -> None:
        """Runs every view of every clip through the model, filling each clip's `outputs`."""
        crew = self._crew
        # As many views at a time as have crops for all threads.
        at_once = max(1, self.threads // max(1, self._front_end.geometry.n_crops))
        pending: list[tuple[_Clip, dict[str, Float32Array]]] = []
        for clip in clips:
            started = time.perf_counter()
            for feeds in self._front_end.views(clip.recording, clip.plan, crew, at_once):
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

    def _to_score(self, clip: _Clip | AudioError, domain: str) -> Score:
        common: dict[str, Any] = {
            "domain": domain,
            "model": self.manifest.name,
            "variant": self.variant,
            "provider": self.provider,
        }
        if isinstance(clip, AudioError):
            return Score(
                mos=math.nan,
                low=math.nan,
                high=math.nan,
                n_views=0,
                views=(),
                windows=(),
                flags=clip.flags,
                duration_s=math.nan,
                **common,
            )
        column = self.domains.index(domain)
        mos = self.manifest.outputs[0].name
        # (networks, views): all views of the first network, then of the second, ...
        values = np.stack([out[mos][:, column] for out in clip.outputs], axis=1)
        views = values.astype(np.float64).ravel()
        low, high = interval_95(views)
        recording = clip.recording
        return Score(
            mos=float(views.mean()),
            low=low,
            high=high,
            n_views=len(views),
            views=tuple(views.tolist()),
            windows=self._windows(clip.plan),
            flags=recording.flags,
            duration_s=recording.duration_s,
            timings_ms={
                **recording.timings_ms,
                "front_end": clip.front_end_ms,
                "model": clip.model_ms,
            },
            **common,
        )

    def _windows(self, plan: CropPlan) -> tuple[tuple[float, float], ...]:
        """Span in seconds from the first to the last sample that each view reads."""
        geometry = self._front_end.geometry
        rate_hz = self.manifest.sample_rate_hz
        spans = []
        for view in range(plan.n_views):
            starts, ends = [], []
            if geometry.ssl_samples:
                starts.append(int(plan.ssl_starts[view]))
                ends.append(starts[-1] + geometry.ssl_samples)
            for start in plan.spec_starts[view].tolist():
                starts.append(start)
                ends.append(start + geometry.spec_samples)
            spans.append((min(starts) / rate_hz, max(ends) / rate_hz))
        return tuple(spans)


@dataclass(slots=True)
class _Clip:
    """A recording on its way through the model."""

    recording: Recording
    plan: CropPlan
    outputs: list[dict[str, Float32Array]] = field(default_factory=list)
    front_end_ms: float = 0.0
    model_ms: float = 0.0
