"""Scores whole recordings by how uncertain a model is: the less certain, the poorer the speech."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Float32Array, FloatArray
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.uncertainty_spec import MEASURES
from mosrt.crops import CropPlan, Plan, PlanRule, resolve_plan
from mosrt.errors import AudioError, BundleError, MeasureError, MosrtError, PlanError
from mosrt.score import Score
from mosrt.scorer import Item, Request, Scorer

from .family import ModelFamily, Rows, Stages, chunk_bounds, zero_padded
from .wav2vec import ContrastFamily
from .wav2vec2 import DropoutFamily, MaskingFamily

__all__ = ["UncertaintyScorer"]


class UncertaintyScorer(Scorer):
    """Scores with a model of an uncertainty family; see `Scorer`.

    A measure of a recording is the mean over the rows of all of its chunks, each row counted once.
    """

    def __init__(
        self, manifest: Manifest, stages: Stages, *, batch_size: int | None = None, **options: Any
    ) -> None:
        if manifest.uncertainty is None:
            raise BundleError(f"manifest.json: {manifest.name!r} gives no uncertainty")
        super().__init__(
            manifest,
            provider=next(iter(stages.values())).provider,
            batch_size=batch_size or 1,  # each recording is run at its own length
            **options,
        )
        self._spec = manifest.uncertainty
        self._stages = stages
        self._family = self._make_family()

    @property
    def measures(self) -> tuple[str, ...]:
        """The name "uncertainty", then every layout's measures as "LAYOUT.MEASURE"."""
        return ("uncertainty", *self._spec.names())

    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan | None = None
    ) -> dict[str, Float32Array]:
        """What the first graph gives; see `Scorer.features`.

        Raises:
            MeasureError: The recording is too long to be read in one chunk.
        """
        self._check_plan(resolve_plan(plan))
        with self._calls.one():
            recording = self._open((waveform, sample_rate))
            if isinstance(recording, AudioError):
                raise recording
            bounds = chunk_bounds(recording.n_samples, self._spec)
            if len(bounds) > 1:
                limit_s = self._spec.window_samples / self.manifest.sample_rate_hz
                raise MeasureError(
                    f"{recording.name}: {recording.duration_s:.1f} s is too long for features, "
                    f"which are given for one chunk; cut it to {limit_s:g} s"
                )
            whole = next(recording.chunks(bounds))
            chunk = zero_padded(whole, self._spec.zero_pad_below_samples)
            features = self._family.features(chunk)
        if not all(np.isfinite(each).all() for each in features.values()):
            raise self._not_finite(recording)
        return features

    def _release(self) -> None:
        for stage in self._stages.values():
            stage.close()
        super()._release()

    def _make_family(self) -> ModelFamily:
        spec, stages = self._spec, self._stages
        if spec.contrast is not None:
            return ContrastFamily(spec, spec.contrast, stages, self._pool)
        if spec.dropout is not None:
            return DropoutFamily(spec, spec.dropout, stages)
        if spec.masking is not None:
            return MaskingFamily(spec, spec.masking, stages)
        raise BundleError(f"manifest.json: family {self.manifest.family!r} gives no uncertainty")

    def _recording(self, source: AudioSource) -> Recording:
        recording = Recording(
            source,
            self.manifest.sample_rate_hz,
            remove_silence=self._remove_silence,
            min_duration_s=0.0,  # the model has a limit of its own
        )
        n_samples = recording.n_samples
        if n_samples < self._spec.zero_pad_below_samples:
            n_samples *= 2
            recording.flags += ("padded",)
        if n_samples < self._spec.min_samples:
            rate_hz = self.manifest.sample_rate_hz
            raise AudioError(
                f"{recording.name}: cannot be scored: it has {recording.n_samples} samples at "
                f"{rate_hz} Hz, and {self.manifest.name} needs {self._spec.min_samples} "
                f"({1e3 * self._spec.min_samples / rate_hz:.0f} ms)",
                flags=("too-short",),
            )
        return recording

    def _check_plan(self, plan: CropPlan | PlanRule) -> None:
        if plan != PlanRule():
            raise PlanError(
                f"{self.manifest.name} reads all of every recording; leave plan and views out"
            )

    def _score(
        self, items: Sequence[Item], domains: tuple[str, ...], request: Request
    ) -> list[dict[str, Score]]:
        self._check_plan(request.plan)
        if request.horizons and self._spec.contrast is None:
            raise MeasureError(
                f"{self.manifest.name} predicts no future frames, so it has no horizons; leave "
                "horizons out"
            )
        return [dict.fromkeys(domains, self._score_recording(item, request)) for item in items]

    def _score_recording(self, item: Item, request: Request) -> Score:
        recording = self._open(item)
        domain, mos_map = self.manifest.default_domain, self._spec.mos_map
        with_mos = () if mos_map is None else self.domains
        if isinstance(recording, AudioError):
            return self._failed_score(recording, domain, with_mos)
        bounds = chunk_bounds(recording.n_samples, self._spec)
        totals = _Totals()
        curves = []
        started = time.perf_counter()
        for number, chunk in enumerate(recording.chunks(bounds)):
            samples = zero_padded(chunk, self._spec.zero_pad_below_samples)
            rows = self._measure(samples, number)
            totals.add(rows)
            if request.frames:
                n_frames = self._spec.n_frames(len(samples))
                # Frames that depend on nothing but the added zeros are no part of the recording.
                added = n_frames - self._spec.n_frames(len(chunk))
                curves.append(self._curve(rows, n_frames)[added:])
        model_ms = 1e3 * (time.perf_counter() - started)
        measures = totals.means(per_horizon=request.horizons)
        uncertainty = self._spec.sign * measures[self._spec.measure]
        if not np.isfinite(list(measures.values())).all():
            return self._failed_score(self._not_finite(recording), domain, with_mos)
        rate_hz = self.manifest.sample_rate_hz
        mos = math.nan if mos_map is None else mos_map(uncertainty)
        end_s = recording.duration_s  # resampling may have rounded the number of samples up
        return self._make_score(
            domain,
            mos=mos,
            n_views=len(bounds),
            windows=tuple((first / rate_hz, min(last / rate_hz, end_s)) for first, last in bounds),
            domains=dict.fromkeys(with_mos, mos),
            measures={"uncertainty": uncertainty, **measures},
            frames=tuple(np.concatenate(curves).tolist()) if curves else (),
            frame_rate_hz=rate_hz / self._spec.hop_samples if curves else math.nan,
            flags=recording.flags,
            duration_s=recording.duration_s,
            timings_ms={**recording.timings_ms, "model": model_ms},
        )

    def _measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """As the family's; BundleError if the outputs of its graphs do not fit together."""
        try:
            return self._family.measure(chunk, number)
        except MosrtError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as exc:
            raise BundleError(
                f"the graphs do not fit together ({exc}); copy or export the bundle again"
            ) from exc

    def _curve(self, rows_of: Mapping[str, Rows], n_frames: int) -> FloatArray:
        """Uncertainty of each frame of a chunk, (n_frames,): the mean over rows that are about it.

        If the rows of the measure's own layout are not about single frames, the same measure of
        another layout is taken.
        """
        layout, _, measure = self._spec.measure.partition(".")
        candidates = [rows_of[layout], *list(rows_of.values())[::-1]]
        for rows in candidates:
            if rows.frames is not None:
                values = self._spec.sign * rows.values[MEASURES.index(measure)]
                sums = np.bincount(rows.frames, weights=values, minlength=n_frames)
                with np.errstate(invalid="ignore"):  # frames that nothing predicts give 0 / 0
                    return sums / np.bincount(rows.frames, minlength=n_frames)
        raise MeasureError(
            f"{self.manifest.name} gives only the layout {layout!r}, whose rows are not about "
            "single frames; leave frames out, or export with more layouts"
        )


class _Totals:
    """Sums over rows by layout and horizon; the horizon is None for all rows of the layout."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int | None], FloatArray] = {}
        self._counts: Counter[tuple[str, int | None]] = Counter()

    def add(self, rows_of: Mapping[str, Rows]) -> None:
        """Adds the rows of a chunk, by layout."""
        for layout, rows in rows_of.items():
            self._add((layout, None), rows.values)
            if rows.horizons is not None:
                for horizon in np.unique(rows.horizons).tolist():
                    self._add((layout, horizon), rows.values[:, rows.horizons == horizon])

    def _add(self, key: tuple[str, int | None], values: FloatArray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # the scorer reports it
            self._sums[key] = self._sums.get(key, np.zeros(len(MEASURES))) + values.sum(axis=1)
        self._counts[key] += values.shape[1]

    def means(self, *, per_horizon: bool) -> dict[str, float]:
        """Means by name: "dense.entropy", and then "dense.entropy@3" per horizon if asked for."""
        found, found_at = {}, {}
        for (layout, horizon), sums in self._sums.items():
            means = (sums / self._counts[layout, horizon]).tolist()
            for measure, mean in zip(MEASURES, means, strict=True):
                if horizon is None:
                    found[f"{layout}.{measure}"] = mean
                else:
                    found_at[f"{layout}.{measure}@{horizon}"] = mean
        return found | found_at if per_horizon else found
