"""Scorer: recordings in, scores out."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt

from .audio import ArraySource, AudioSource, FileSource
from .backends import Backend
from .crew import Crew
from .crops import CropPlan
from .errors import AudioError, DomainError
from .families.fusion import FusionFrontEnd
from .guards import FLAGS, BadAudioPolicy
from .manifest import Manifest
from .plan_rule import PlanRule
from .recording import Recording
from .score import Score, interval_95

__all__ = ["Item", "Plan", "Scorer"]

Float32Array = npt.NDArray[np.float32]
Item = str | os.PathLike[str] | bytes | tuple[npt.ArrayLike, float]
Plan = CropPlan | PlanRule | str

ALL_DOMAINS: Final = "all"
_LOG = logging.getLogger(__name__)


class Scorer:
    """Scores recordings with one model. Any number of threads may use one scorer at once.

    The same audio, bundle, variant, provider and number of threads give bit-identical scores:
    alone or in a batch, in any order. Make one with `mosrt.load`.

    Attributes:
        manifest: What the model is.
        variant: Name of the precision variant.
        provider: Name of the execution provider.
        threads: Threads that one call may use.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        *,
        variant: str,
        threads: int,
        on_bad_audio: BadAudioPolicy,
        remove_silence: bool,
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self.provider = backend.provider
        self.threads = threads
        self._backend = backend
        self._front_end = FusionFrontEnd(manifest)
        self._on_bad_audio = on_bad_audio
        self._remove_silence = remove_silence
        self._crew = Crew(threads)

    @property
    def domains(self) -> tuple[str, ...]:
        """The data domains that the model can score for."""
        return self.manifest.domains

    @overload
    def score(  # type: ignore[overload-overlap]  # a literal string is a string
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: Literal["all"],
        plan: Plan = "grid",
    ) -> dict[str, Score]: ...
    @overload
    def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
    ) -> Score: ...
    def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
    ) -> Score | dict[str, Score]:
        """Scores a waveform.

        Args:
            waveform: (samples,) or (channels, samples); float32 or float64 in [-1, 1], int16 or
                int32. Channels are averaged.
            sample_rate: Rate in Hz, 4 000 to 192 000; resampled to the model's by soxr HQ.
            domain: Data domain to score for, by default the model's own default; "all" gives a
                dict of all of them, at no extra cost.
            plan: Where to look: a CropPlan, or a rule that makes one from the recording's length:
                "grid" (the default), "reference:SEED", "paper", or a PlanRule.

        Raises:
            AudioError: A guard refuses the recording, and the policy is "error".
            DomainError: The model does not know the domain.
            PlanError: The plan does not fit the recording or the model.
        """
        return self._only((waveform, sample_rate), domain, plan)

    @overload
    def score_file(  # type: ignore[overload-overlap]  # a literal string is a string
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: Literal["all"],
        plan: Plan = "grid",
    ) -> dict[str, Score]: ...
    @overload
    def score_file(
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
    ) -> Score: ...
    def score_file(
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
    ) -> Score | dict[str, Score]:
        """Scores an audio file: a path, or a whole file's bytes. See `score`.

        A recording of any length is scored in bounded memory.
        """
        return self._only(path, domain, plan)

    def score_many(
        self,
        items: Iterable[Item],
        *,
        batch_size: int | None = None,
        domain: str | None = None,
        plan: Plan = "grid",
    ) -> list[Score]:
        """Scores many recordings; equal, bit for bit, to scoring each alone.

        Args:
            items: Paths, bytes of whole files, or (waveform, sample_rate) pairs.
            batch_size: Recordings to have in hand at once: more let a GPU fill its batches with
                the views of several. The CPU runs view by view whatever this is, since one view
                fills it.
            domain: Data domain to score for.
            plan: Where to look; a CropPlan is used for all, which only suits equal lengths.

        Returns:
            Scores in the order of `items`.
        """
        domain = self._checked_domain(domain)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        scores: list[Score] = []
        for group in _groups(items, batch_size or self._backend.batch_size):
            scores += [clip[domain] for clip in self._score(group, (domain,), plan)]
        return scores

    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan = "grid"
    ) -> dict[str, Float32Array]:
        """All outputs of the model: the scores of every domain, and the embeddings behind them.

        Returns:
            Arrays by output name, (networks, views, size) float32: "mos", and what the manifest
            lists beside it, such as "ssl_features" and "spec_features".

        Raises:
            AudioError: The recording cannot be scored.
            PlanError: The plan does not fit the recording or the model.
        """
        clip = self._open((waveform, sample_rate), plan)
        if isinstance(clip, AudioError):
            raise clip
        names = [tensor.name for tensor in self.manifest.outputs]
        self._run([clip], names)
        return {name: np.stack([out[name] for out in clip.outputs], axis=1) for name in names}

    def close(self) -> None:
        """Releases the model's memory and the threads; the scorer cannot be used afterwards."""
        self._backend.close()
        self._crew.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _only(self, item: Item, domain: str | None, plan: Plan) -> Score | dict[str, Score]:
        if domain == ALL_DOMAINS:
            return self._score([item], self.domains, plan)[0]
        domain = self._checked_domain(domain)
        return self._score([item], (domain,), plan)[0][domain]

    def _checked_domain(self, domain: str | None) -> str:
        if domain is None:
            return self.manifest.default_domain
        if domain not in self.domains:
            raise DomainError(domain, self.domains)
        return domain

    def _score(
        self, items: Sequence[Item], domains: tuple[str, ...], plan: Plan
    ) -> list[dict[str, Score]]:
        """Scores a group of recordings for each of `domains`."""
        clips = [self._open(item, plan) for item in items]
        self._run(
            [clip for clip in clips if not isinstance(clip, AudioError)],
            [self.manifest.outputs[0].name],
        )
        return [{domain: self._to_score(clip, domain) for domain in domains} for clip in clips]

    def _open(self, item: Item, plan: Plan) -> _Clip | AudioError:
        """Decodes and guards a recording, and plans its crops."""
        try:
            recording = Recording(
                _source(item),
                self.manifest.sample_rate_hz,
                remove_silence=self._remove_silence,
            )
        except AudioError as exc:
            if self._on_bad_audio == "error":
                raise
            if self._on_bad_audio == "warn":
                _LOG.warning("%s", exc)
            return exc
        if recording.flags:
            reasons = "; ".join(FLAGS[flag] for flag in recording.flags)
            error = AudioError(f"{recording.name}: {reasons}", flags=recording.flags)
            if self._on_bad_audio == "error":
                raise error
            if self._on_bad_audio == "nan":
                return error
            _LOG.warning("%s; its score may mean little", error)
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


def _source(item: Item) -> AudioSource:
    if isinstance(item, tuple):
        return ArraySource(*item)
    return FileSource(item)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
