"""Scores recordings with a model that predicts MOS from crops."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Float32Array, FloatArray, IntArray
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.backends import Backend
from mosrt.backends.base import OPENVINO, run_views
from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropGeometry, CropPlan, Plan, PlanRule, normalised, resolve_plan
from mosrt.errors import AudioError, MeasureError
from mosrt.host.fork import fork_waits
from mosrt.host.thread_pool import ThreadPool
from mosrt.mel.front_end import MelFrontEnd
from mosrt.score import Score, interval_95
from mosrt.scorer import Item, Request, Scorer

__all__ = ["FusionFrontEnd", "FusionScorer"]

# Views whose crops are read in one pass: a recording too long to keep is decoded once for each 64.
_VIEWS_READ: Final = 64
_Filler = Literal["wrap", "constant"]


RunViews = Callable[
    [Sequence[Mapping[str, Float32Array]], Sequence[str]], list[dict[str, Float32Array]]
]
"""Runs views, given as input tensors by name, and gives the named outputs of each."""


class FusionFrontEnd:
    """Makes a model's inputs from a recording and a crop plan. It keeps no state of a recording.

    If the front end is in the model's graph, the inputs are the crops themselves.

    Args:
        manifest: Manifest of a bundle of family "fusion", "spec", "ssl" or "segments".

    Attributes:
        geometry: Crop lengths and counts that a plan must have, and the density of a grid.
    """

    def __init__(self, manifest: Manifest) -> None:
        ssl, mel = manifest.ssl, manifest.mel
        self._ssl = ssl
        self._mel = mel
        self._in_graph = manifest.front_end == "graph"
        self._mel_front_end = (
            None if mel is None or self._in_graph else MelFrontEnd(mel, manifest.sample_rate_hz)
        )
        self.geometry = CropGeometry(
            ssl_samples=0 if ssl is None else ssl.crop_samples,
            spec_samples=0 if mel is None else mel.crop_samples,
            n_crops=0 if mel is None else mel.n_crops,
            n_windows=0 if mel is None else len(mel.windows),
            view_every_samples=max(1, round(manifest.grid.view_every_s * manifest.sample_rate_hz)),
            min_views=manifest.grid.min_views,
            max_views=manifest.grid.max_views,
            can_mix=not self._in_graph,
            segment_hop_samples=0 if ssl is None else ssl.segment_hop_samples,
            segment_repeat=ssl is not None and ssl.segment_repeat,
        )

    def plan(self, recording: Recording, plan: CropPlan | PlanRule) -> CropPlan:
        """The crops of a recording, which a grid trims to its speech if the manifest says so.

        Raises:
            PlanError: The plan does not fit the recording or the model.
        """
        if isinstance(plan, PlanRule):
            if plan.kind == "grid":
                recording.trim()
            plan = plan.plan(recording.n_samples, self.geometry, recording.speech)
        plan.check(recording.n_samples, self.geometry)
        return plan

    def views(
        self,
        recording: Recording,
        plan: CropPlan,
        pool: ThreadPool | None = None,
        at_once: int = 1,
        *,
        short: bool = False,
    ) -> Iterator[dict[str, Float32Array]]:
        """Makes the inputs of a plan's views, one view after the other.

        Args:
            recording: The recording to score.
            plan: The crops; must fit the recording and `geometry`.
            pool: Threads that share the work; by default the caller's alone.
            at_once: Views to prepare together, so that all threads have work.
            short: Whether a recording that is shorter than a segment becomes a shorter input.

        Yields:
            Per view, tensors by input name, float32, without the batch axis.
        """
        if self._ssl is not None and self._ssl.segment_hop_samples:
            yield from _segments(recording, plan, self._ssl, short=short)
            return
        pool = pool or ThreadPool(1)
        for rows in _blocks(range(plan.n_views), _VIEWS_READ):
            requests: list[tuple[IntArray, int]] = []
            if self._ssl is not None:
                requests.append((plan.ssl_starts[rows], self._ssl.crop_samples))
            if self._mel is not None:
                starts = list(_windows_by_start(plan, rows, self._mel))
                requests.append((np.array(starts, np.int64), self._mel.crop_samples))
            read = recording.gather(requests)
            crops = {} if self._mel is None else dict(zip(starts, read[-1], strict=True))
            for some in _blocks(rows, at_once):
                images = self._images(crops, plan, some, pool)
                for row in some:
                    feeds = {}
                    if self._ssl is not None:
                        crop = read[0][row - rows[0]]
                        feeds[self._ssl.tensor] = (
                            crop if self._in_graph else normalised(crop, self._ssl.epsilon)
                        )
                    if self._mel is not None:
                        feeds[self._mel.tensor] = (
                            np.stack([crops[start] for start in plan.spec_starts[row].tolist()])
                            if self._in_graph
                            else _view_images(plan, row, self._mel, images)
                        )
                    yield feeds

    def _images(
        self, crops: Mapping[int, Float32Array], plan: CropPlan, rows: range, pool: ThreadPool
    ) -> dict[int, dict[int, Float32Array]]:
        """The images that some views need, by crop start and window length."""
        spec, front_end = self._mel, self._mel_front_end
        if spec is None or front_end is None:
            return {}
        windows = _windows_by_start(plan, rows, spec)

        def make(start: int) -> dict[int, Float32Array]:
            with fork_waits():  # NumPy's matrix products have a lock
                return front_end.images(crops[start], windows[start])

        return dict(zip(windows, pool.map(make, windows), strict=True))


def _segments(
    recording: Recording, plan: CropPlan, spec: SslSpec, *, short: bool
) -> Iterator[dict[str, Float32Array]]:
    """A model's inputs for each segment; segments in order of time are read in one pass."""
    length = padded = spec.crop_samples
    if recording.n_samples < length:
        length = recording.n_samples
        padded = spec.padded_samples(length) if short else padded
    filler: _Filler = "wrap" if spec.segment_repeat else "constant"
    all_starts = plan.ssl_starts % recording.n_samples
    back = np.flatnonzero(np.diff(all_starts) < 0) + 1
    for starts in np.split(all_starts, back):
        for segment in recording.chunks([(start, start + length) for start in starts.tolist()]):
            yield {spec.tensor: np.pad(segment, (0, padded - length), filler)}


def _windows_by_start(plan: CropPlan, rows: Sequence[int], spec: MelSpec) -> dict[int, set[int]]:
    """The window lengths that some views need at each crop start, so that none is made twice."""
    needed: dict[int, set[int]] = {}
    for row in rows:
        for crop, start in enumerate(plan.spec_starts[row].tolist()):
            needed.setdefault(start, set()).update(spec.windows)
            for window, other, _ in _mixes(plan, row, crop, spec):
                needed.setdefault(other, set()).add(window)
    return needed


def _mixes(plan: CropPlan, row: int, crop: int, spec: MelSpec) -> Iterator[tuple[int, int, float]]:
    """Window length, start of the crop mixed in, weight of the own crop; empty without mixing."""
    if plan.mix_starts is None or plan.mix_lambdas is None:
        return
    starts = plan.mix_starts[row, crop].tolist()
    weights = plan.mix_lambdas[row, crop].tolist()
    yield from zip(spec.windows, starts, weights, strict=True)


def _view_images(
    plan: CropPlan, row: int, spec: MelSpec, images: Mapping[int, Mapping[int, Float32Array]]
) -> Float32Array:
    """The images of one view, (crops * windows, height, width), mixed where the plan says so."""
    view: list[Float32Array] = []
    for crop, start in enumerate(plan.spec_starts[row].tolist()):
        own = dict(images[start])
        for window, other, weight in _mixes(plan, row, crop, spec):
            # Mixing after the resize is the same as before it: the resize is linear.
            own[window] = (
                np.float32(weight) * own[window] + np.float32(1.0 - weight) * images[other][window]
            )
        view += [own[window] for window in spec.windows]
    return np.stack(view)


def _blocks(rows: range, length: int) -> Iterator[range]:
    """Cuts a range into ranges of at most `length`."""
    for first in range(0, len(rows), length):
        yield rows[first : first + length]


class FusionScorer(Scorer):
    """Scores with a model of family "fusion", "spec", "ssl" or "segments"; see `Scorer`.

    Args:
        manifest: What the model is.
        backend: Runs it.
        front_end: Makes its inputs; by default that of the manifest.
        batch_size: As for `Scorer`; by default as many as `backend` runs at once.
        **options: As for `Scorer`.

    Attributes:
        backend: Runs the model.
        run_views: Runs some views of recordings, by default at once. A server may replace it to run
            those of several threads together.
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
        self.backend = backend
        self.run_views: RunViews = partial(run_views, backend)
        # The first output is the MOS of the graph's domains; other domains may need further ones.
        further = [name for head in manifest.heads.values() for name in head.weights]
        further += [] if manifest.deviation is None else [manifest.deviation.tensor]
        self._outputs = tuple(dict.fromkeys([manifest.outputs[0].name, *further]))
        # A batch has one length, as engines of TensorRT and the batches of a server have.
        self._short = backend.batch_size == 1 and backend.provider in ("cpu", *OPENVINO)
        self._front_end = FusionFrontEnd(manifest) if front_end is None else front_end

    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan | None = None
    ) -> dict[str, Float32Array]:
        """All outputs of the model; see `Scorer.features`."""
        return self.features_of((waveform, sample_rate), plan=plan)

    def features_of(self, item: Item, *, plan: Plan | None = None) -> dict[str, Float32Array]:
        """As `features`, for a file or a (waveform, sample_rate) pair, as `iter_scores` takes."""
        names = [tensor.name for tensor in self.manifest.outputs]
        with self._calls.one():
            clip = self._open_clip(item, resolve_plan(plan))
            if isinstance(clip, AudioError):
                raise clip
            self._run([clip], names)
        if not all(np.isfinite(out[name]).all() for out in clip.outputs for name in names):
            raise self._not_finite(clip.recording)
        return {name: np.stack([out[name] for out in clip.outputs], axis=1) for name in names}

    def _recording(self, source: AudioSource) -> Recording:
        return Recording(
            source,
            self.manifest.sample_rate_hz,
            remove_silence=self._remove_silence,
            speech=self.manifest.grid.speech,
        )

    def _release(self) -> None:
        self.backend.close()
        super()._release()

    def _score(
        self, items: Sequence[Item], domains: tuple[str, ...], request: Request
    ) -> list[dict[str, Score]]:
        if request.frames or request.horizons:
            raise MeasureError(
                f"{self.manifest.name} predicts MOS, which has no values over time or per horizon; "
                "leave frames and horizons out, or load a model that scores by its uncertainty"
            )
        clips = [self._open_clip(item, request.plan) for item in items]
        self._run([clip for clip in clips if not isinstance(clip, AudioError)], self._outputs)
        return [self._to_scores(clip, domains) for clip in clips]

    def _open_clip(self, item: Item, plan: CropPlan | PlanRule) -> _Clip | AudioError:
        """Opens a recording, and plans its crops."""
        recording = self._open(item)
        if isinstance(recording, AudioError):
            return recording
        return _Clip(recording, self._front_end.plan(recording, plan))

    def _run(self, clips: Sequence[_Clip], outputs: Sequence[str]) -> None:
        """Runs every view of every clip through the model, filling each clip's `outputs`."""
        inputs = self._inputs(clips)
        while batch := list(itertools.islice(inputs, self.backend.batch_size)):
            self._run_batch(batch, outputs)

    def _inputs(self, clips: Sequence[_Clip]) -> Iterator[tuple[_Clip, dict[str, Float32Array]]]:
        """Yields the model's inputs for every view of every clip."""
        # As many views at a time as have crops for all threads.
        at_once = max(1, self.threads // max(1, self._front_end.geometry.n_crops))
        for clip in clips:
            started = time.perf_counter()
            for feeds in self._front_end.views(
                clip.recording, clip.plan, self._pool, at_once, short=self._short
            ):
                clip.front_end_ms += 1e3 * (time.perf_counter() - started)
                yield clip, feeds
                started = time.perf_counter()

    def _run_batch(
        self, batch: Sequence[tuple[_Clip, Mapping[str, Float32Array]]], outputs: Sequence[str]
    ) -> None:
        started = time.perf_counter()
        results = self.run_views([feeds for _, feeds in batch], outputs)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        for (clip, _), result in zip(batch, results, strict=True):
            clip.outputs.append(result)
            clip.model_ms += elapsed_ms / len(batch)

    def _to_scores(self, clip: _Clip | AudioError, domains: tuple[str, ...]) -> dict[str, Score]:
        if isinstance(clip, AudioError):
            return {name: self._failed_score(clip, name, self.domains) for name in domains}
        # (networks, views, size): all views of the first network, then of the second, ...
        outputs = {
            name: np.stack([out[name] for out in clip.outputs], axis=1).astype(np.float64)
            for name in self._outputs
        }
        if not all(np.isfinite(values).all() for values in outputs.values()):
            return self._to_scores(self._not_finite(clip.recording), domains)
        least, most = self.manifest.mos_range or (-math.inf, math.inf)
        values = np.clip(outputs[self._outputs[0]], least, most)
        views = {name: values[:, :, i].ravel() for i, name in enumerate(self.manifest.domains)}
        views |= {name: head(outputs).ravel() for name, head in self.manifest.heads.items()}
        mos = {name: float(each.mean()) for name, each in views.items()}
        deviations = self._deviations(outputs)
        recording = clip.recording
        windows = self._windows(clip)
        timings_ms = {
            **recording.timings_ms,
            "front_end": clip.front_end_ms,
            "model": clip.model_ms,
        }
        scores = {}
        for name in domains:
            low, high = interval_95(views[name], deviations.get(name))
            scores[name] = self._make_score(
                name,
                mos=mos[name],
                low=min(max(low, least), most),  # nan stays
                high=min(max(high, least), most),
                n_views=len(views[name]),
                views=tuple(views[name].tolist()),
                windows=windows,
                domains=mos,
                flags=recording.flags,
                duration_s=recording.duration_s,
                timings_ms=timings_ms,
            )
        return scores

    def _deviations(self, outputs: Mapping[str, FloatArray]) -> dict[str, float]:
        """The predicted standard deviation of the MOS by domain, where the model predicts it.

        The mean over views and networks: all are of one recording, so that their errors are taken
        for one and the same, which no mean makes smaller.
        """
        spec = self.manifest.deviation
        if spec is None:
            return {}
        means = outputs[spec.tensor].mean(axis=(0, 1)) * np.array(spec.factors)
        return dict(zip(spec.domains, means.tolist(), strict=True))

    def _windows(self, clip: _Clip) -> tuple[tuple[float, float], ...]:
        """Span in seconds from the first to the last sample that each view reads."""
        geometry, plan = self._front_end.geometry, clip.plan
        n_samples, rate_hz = clip.recording.n_samples, self.manifest.sample_rate_hz
        crops = [(plan.spec_starts, geometry.spec_samples)]
        if geometry.ssl_samples:
            crops.append((plan.ssl_starts[:, np.newaxis], geometry.ssl_samples))
        # A recording that is not longer than a crop is read whole.
        first = [np.where(n_samples > length, starts, 0) for starts, length in crops]
        last = [np.minimum(starts + length, n_samples) for starts, length in crops]
        trimmed = clip.recording.start
        starts_s = (np.concatenate(first, axis=1).min(axis=1) + trimmed) / rate_hz
        ends_s = (np.concatenate(last, axis=1).max(axis=1) + trimmed) / rate_hz
        # Resampling may have rounded the number of samples up.
        ends_s = np.minimum(ends_s, clip.recording.duration_s)
        return tuple(zip(starts_s.tolist(), ends_s.tolist(), strict=True))


@dataclass(slots=True)
class _Clip:
    """A recording, its plan, and what the model has given for it so far."""

    recording: Recording
    plan: CropPlan
    outputs: list[dict[str, Float32Array]] = field(default_factory=list)
    front_end_ms: float = 0.0
    model_ms: float = 0.0
