"""Scorer: recordings in, scores out."""

from __future__ import annotations

import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, overload

import numpy as np
import numpy.typing as npt

from .audio.guards import FLAGS, BadAudioPolicy
from .audio.recording import Recording
from .audio.sources import ArraySource, AudioSource, FileSource
from .bundle.manifest import Manifest
from .crops import CropPlan
from .errors import AudioError, DomainError
from .host.thread_pool import Crew
from .plan_rule import PlanRule
from .score import Score

__all__ = ["Item", "Plan", "Request", "Scorer"]

Float32Array = npt.NDArray[np.float32]
Item = str | os.PathLike[str] | bytes | tuple[npt.ArrayLike, float]
Plan = CropPlan | PlanRule | str

ALL_DOMAINS: Final = "all"
_LOG = logging.getLogger(__name__)


class Scorer(ABC):
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
        *,
        variant: str,
        provider: str,
        threads: int,
        on_bad_audio: BadAudioPolicy,
        remove_silence: bool,
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self.provider = provider
        self.threads = threads
        self._on_bad_audio = on_bad_audio
        self._remove_silence = remove_silence
        self._crew = Crew(threads)

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Recordings that `score_many` has in hand at once by default."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the figures in `Score.measures` that every score has; () for MOS models."""
        return ()

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
        frames: bool = False,
        horizons: bool = False,
    ) -> dict[str, Score]: ...
    @overload
    def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> Score: ...
    def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> Score | dict[str, Score]:
        """Scores a waveform.

        Args:
            waveform: (samples,) or (channels, samples); float32 or float64 in [-1, 1], int16 or
                int32. Channels are averaged.
            sample_rate: Rate in Hz, 4 000 to 192 000; resampled to the model's by soxr HQ.
            domain: Data domain to score for, by default the model's own default; "all" gives a
                dict of all of them, at no extra cost.
            plan: Where to look: a CropPlan, or a rule that makes one from the recording's length:
                "grid" (the default), "reference:SEED", "paper", or a PlanRule. A model that scores
                by its uncertainty hears all of every recording, and takes "grid" only.
            frames: Also give the uncertainty over time, `Score.frames`.
            horizons: Also give every measure per horizon, where the model predicts several.

        Raises:
            AudioError: A guard refuses the recording, and the policy is "error".
            DomainError: The model does not know the domain.
            MeasureError: The model gives no figures over time, or per horizon.
            PlanError: The plan does not fit the recording or the model.
        """
        return self._only((waveform, sample_rate), domain, Request(plan, frames, horizons))

    @overload
    def score_file(  # type: ignore[overload-overlap]  # a literal string is a string
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: Literal["all"],
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> dict[str, Score]: ...
    @overload
    def score_file(
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> Score: ...
    def score_file(
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        domain: str | None = None,
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> Score | dict[str, Score]:
        """Scores an audio file: a path, or a whole file's bytes. See `score`.

        A recording of any length is scored in bounded memory.
        """
        return self._only(path, domain, Request(plan, frames, horizons))

    def score_many(
        self,
        items: Iterable[Item],
        *,
        batch_size: int | None = None,
        domain: str | None = None,
        plan: Plan = "grid",
        frames: bool = False,
        horizons: bool = False,
    ) -> list[Score]:
        """Scores many recordings; equal, bit for bit, to scoring each alone.

        Args:
            items: Paths, bytes of whole files, or (waveform, sample_rate) pairs.
            batch_size: Recordings to have in hand at once: more let a GPU fill its batches with
                the views of several. The CPU runs view by view whatever this is, since one view
                fills it.
            domain: Data domain to score for.
            plan: Where to look; a CropPlan is used for all, which only suits equal lengths.
            frames: As in `score`.
            horizons: As in `score`.

        Returns:
            Scores in the order of `items`.
        """
        domain = self._checked_domain(domain)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        scores: list[Score] = []
        request = Request(plan, frames, horizons)
        for group in _groups(items, batch_size or self.batch_size):
            scores += [clip[domain] for clip in self._score(group, (domain,), request)]
        return scores

    @abstractmethod
    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan = "grid"
    ) -> dict[str, Float32Array]:
        """What the model makes of a recording on the way to its score.

        Returns:
            Arrays by name, (networks, views, size) float32: for MOS models "mos", and what the
            manifest lists beside it, such as "ssl_features" and "spec_features". For models that
            score by their uncertainty, what the first graph gives, (frames, size), of a recording
            that is heard in one piece.

        Raises:
            AudioError: The recording cannot be scored.
            PlanError: The plan does not fit the recording or the model.
        """

    def close(self) -> None:
        """Releases the model's memory and the threads; the scorer cannot be used afterwards."""
        self._crew.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _only(self, item: Item, domain: str | None, request: Request) -> Score | dict[str, Score]:
        if domain == ALL_DOMAINS:
            return self._score([item], self.domains, request)[0]
        domain = self._checked_domain(domain)
        return self._score([item], (domain,), request)[0][domain]

    def _checked_domain(self, domain: str | None) -> str:
        if domain is None:
            return self.manifest.default_domain
        if domain not in self.domains:
            raise DomainError(domain, self.domains)
        return domain

    @abstractmethod
    def _score(
        self, items: Sequence[Item], domains: tuple[str, ...], request: Request
    ) -> list[dict[str, Score]]:
        """Scores a group of recordings for each of `domains`."""

    def _open(self, item: Item) -> Recording | AudioError:
        """Decodes and guards a recording; gives an error that the policy lets pass."""
        try:
            recording = self._recording(_source(item))
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
        return recording

    def _recording(self, source: AudioSource) -> Recording:
        """A recording at the model's rate; AudioError if a guard refuses it."""
        return Recording(source, self.manifest.sample_rate_hz, remove_silence=self._remove_silence)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for beside the score; see `Scorer.score`."""

    plan: Plan = "grid"
    frames: bool = False
    horizons: bool = False


def _source(item: Item) -> AudioSource:
    if isinstance(item, tuple):
        return ArraySource(*item)
    return FileSource(item)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
