"""The interface that recordings are scored through, whatever the model."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Float32Array
from .audio.guards import FLAGS, TOO_LOUD, BadAudioPolicy
from .audio.items import AudioFile, Item, portable, source_of
from .audio.recording import Recording
from .audio.sources import AudioSource
from .bundle.manifest import Manifest
from .crops import CropPlan, Plan, PlanRule, resolve_plan
from .errors import AudioError, BundleError, DomainError
from .host.thread_pool import Calls, ThreadPool
from .parallel import SMALL_BYTES, Parallel
from .score import Score

__all__ = ["AudioFile", "Item", "Request", "Scorer"]

_LOG = logging.getLogger(__name__)


class Scorer(ABC):
    """Scores recordings with one model. Any number of threads may use one scorer at once.

    The same audio, bundle, variant, provider and number of threads give bit-identical scores:
    alone or in a batch, in any order. Make one with `mosrt.load`. A pickled scorer opens its bundle
    again where it is unpickled, with the same variant, provider and number of threads.

    Attributes:
        manifest: What the model is.
        variant: Name of the precision variant.
        provider: Name of the execution provider.
        digest: SHA-256 in hex of the bundle's manifest.json, which has the hashes of all its files.
        threads: Threads that one call may use.
        many: Worker processes for many recordings; None where there are none. It tells which rates
            the choice between them and threads within each recording was made by.
        batch_size: Recordings that `score_many` and `iter_scores` decode before they run the
            model, so that a GPU's batches are full. It changes no score and may be set at any time.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        variant: str,
        provider: str,
        threads: int,
        batch_size: int,
        on_bad_audio: BadAudioPolicy,
        remove_silence: bool,
        any_format: bool = False,
        reopen: Callable[..., Scorer] | None = None,
        digest: str = "",
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self.variant = variant
        self.provider = provider
        self.threads = threads
        self.batch_size = batch_size
        self._on_bad_audio = on_bad_audio
        self._remove_silence = remove_silence
        self._any_format = any_format
        self._reopen = reopen
        self.many = self._make_parallel()
        self._pool = ThreadPool(threads)
        self._calls = Calls("the scorer", self._release)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures in `Score.measures` that every score has; () for MOS models."""
        return ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The data domains that the model can score for."""
        return self.manifest.all_domains

    def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
        frames: bool = False,
        horizons: bool = False,
    ) -> Score:
        """Scores a waveform.

        Args:
            waveform: (samples,) or (channels, samples); float32 or float64 in [-1, 1], int16 or
                int32. Channels are averaged.
            sample_rate: Sampling rate in Hz, 4 000 to 192 000; resampled to the model's by soxr HQ.
            domain: Data domain to score for, by default the model's own default. The MOS of every
                domain is in `Score.domains` whichever this is.
            views: Number of evenly spaced views, 1 to 10 000; by default the model's choice for the
                recording's length. More views narrow the interval and take more time.
            plan: Where to look instead: a CropPlan, or a rule that makes one from the recording's
                length: "grid" (the default), "reference:SEED", "paper", or a PlanRule. A model that
                scores by its uncertainty reads all of every recording and takes neither.
            frames: Also give the uncertainty over time, `Score.frames`.
            horizons: Also give every measure per prediction horizon, where the model has several.

        Raises:
            AudioError: A guard refuses the recording, and the policy is "error".
            BundleError: The model's files turn out to be damaged.
            ClosedError: The scorer was closed.
            DomainError: The model does not know the domain.
            MeasureError: The model has no uncertainty over time, or no horizons.
            PlanError: The plan does not fit the recording or the model, or `views` the plan.
        """
        request = Request(resolve_plan(plan, views), frames, horizons)
        return self.score_item((waveform, sample_rate), domain, request)

    def score_file(
        self,
        file: AudioFile,
        *,
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
        frames: bool = False,
        horizons: bool = False,
    ) -> Score:
        """Scores an audio file: WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg, MP3 or NIST SPHERE.

        `file` is a path, the bytes of a whole file, or a binary file object, which is read into
        memory from its position to its end. A regular file is scored in bounded memory; a pipe is
        read into memory, up to 1 GiB. The other arguments are those of `score`.

        Raises:
            MosrtError: As for `score`.
            TypeError: The file object is not binary.
        """
        return self.score_item(file, domain, Request(resolve_plan(plan, views), frames, horizons))

    def score_many(
        self,
        items: Iterable[Item],
        *,
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
        frames: bool = False,
        horizons: bool = False,
    ) -> list[Score]:
        """Scores many recordings; a list of what `iter_scores` gives."""
        scores = self.iter_scores(
            items, domain=domain, views=views, plan=plan, frames=frames, horizons=horizons
        )
        return list(scores)

    def iter_scores(
        self,
        items: Iterable[Item],
        *,
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
        frames: bool = False,
        horizons: bool = False,
    ) -> Iterator[Score]:
        """Scores recordings one after the other, in their order, as they are asked for.

        Scores equal, bit for bit, those of each recording alone. At most `batch_size` recordings
        are read ahead of the score that is given, so that memory is bounded for any number.

        On Linux, a small model on a CPU with several `threads` scores several recordings at once:
        after a second of such work it starts as many worker processes, which read four recordings
        each ahead at most. They are used only as long as they are faster.

        `items` are files as `score_file` takes them, or (waveform, sample_rate) pairs. The other
        arguments are those of `score`; a CropPlan is used for all, which suits equal lengths only.

        Raises:
            MosrtError: As for `score`. A wrong domain or plan is an error of the call itself, a
                recording's error is raised where its score is due.
            TypeError: `items` is one recording.
        """
        if isinstance(
            items, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray
        ) or hasattr(items, "read"):
            raise TypeError("items must be several recordings; use score_file or score for one")
        request = Request(resolve_plan(plan, views), frames, horizons)
        with self._calls.one():
            domain = self.checked_domain(domain)
        return (each[domain] for each in self.iter_domains(items, (domain,), request))

    @abstractmethod
    def features(
        self, waveform: npt.ArrayLike, sample_rate: float, *, plan: Plan | None = None
    ) -> dict[str, Float32Array]:
        """The model's outputs for a recording, before they become a score.

        Returns:
            Arrays by name, float32. For MOS models (networks, views, size): "mos", and what the
            manifest lists beside it, such as "ssl_features" and "spec_features". For models that
            score by their uncertainty (frames, size): the output of the first graph, for a
            recording that is short enough to be read in one chunk.

        Raises:
            AudioError: The recording cannot be scored.
            MeasureError: The recording is too long to be read in one chunk.
            PlanError: The plan does not fit the recording or the model.
        """

    def close(self) -> None:
        """Waits for calls that run, then releases the model's memory and the threads.

        Calls made later raise ClosedError. If it is called within a call, as by a signal
        handler, it does not wait; the last call then releases at its end.
        """
        self._calls.close()

    def _release(self) -> None:
        """Releases the model's memory, the threads and the processes."""
        self._pool.close()
        if self.many is not None:
            self.many.close()

    def _make_parallel(self) -> Parallel | None:
        """Worker processes for many recordings; None where threads within each are better."""
        variant = self.manifest.variants.get(self.variant)
        if self.threads == 1 or self.provider != "cpu" or self._reopen is None or variant is None:
            return None
        size = sum(file.bytes for member in variant.members for file in member.files)
        return Parallel(self.score_task, self.threads) if size <= SMALL_BYTES else None

    def score_task(self, task: tuple[Item, tuple[str, ...], Request]) -> dict[str, Score]:
        """What a worker process does."""
        return self.score_domains(*task)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], Scorer], tuple[()]]:
        if self._reopen is None:
            raise TypeError("only a scorer made by mosrt.load can be pickled")
        return partial(self._reopen, manifest=self.manifest, batch_size=self.batch_size), ()

    def score_item(self, item: Item, domain: str | None, request: Request) -> Score:
        """As `score` or `score_file`, for a recording and a request of any kind."""
        with self._calls.one():
            domain = self.checked_domain(domain)
            return self._score([item], (domain,), request)[0][domain]

    def score_domains(
        self, item: Item, domains: tuple[str, ...], request: Request
    ) -> dict[str, Score]:
        """A score for each of `domains`, with the views and the interval of that domain."""
        with self._calls.one():
            return self._score([item], domains, request)[0]

    def iter_domains(
        self, items: Iterable[Item], domains: tuple[str, ...], request: Request
    ) -> Iterator[dict[str, Score]]:
        """As `iter_scores`, with a score for each of `domains`."""
        items, parallel = iter(items), self.many
        while True:
            if parallel is not None and parallel.take():
                try:
                    any_format = self._any_format
                    tasks = (
                        (portable(item, any_format=any_format), domains, request) for item in items
                    )
                    replies = parallel.results(tasks)
                    while True:
                        with self._calls.one():
                            if (reply := next(replies, None)) is None:
                                break
                        if reply.error is not None:
                            raise reply.error
                        yield reply.value
                finally:
                    parallel.leave()
            if not (group := list(itertools.islice(items, self.batch_size))):
                return
            started = time.monotonic()
            with self._calls.one():
                scores = self._score(group, domains, request)
            if parallel is not None:
                n_views = sum(next(iter(each.values())).n_views for each in scores)
                parallel.spent(time.monotonic() - started, n_views)
            yield from scores

    def checked_domain(self, domain: str | None) -> str:
        """The domain to score for: the one that is asked for, or the model's own default.

        Raises:
            DomainError: The model does not know the domain.
        """
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

    def _make_score(self, domain: str, **values: Any) -> Score:
        """A score with what is the same for every recording."""
        return Score(
            domain=domain,
            model=self.manifest.name,
            variant=self.variant,
            provider=self.provider,
            **values,
        )

    def _failed_score(self, error: AudioError, domain: str, domains: Iterable[str]) -> Score:
        """The score of a recording that cannot be scored, with nan for every number."""
        return self._make_score(
            domain,
            mos=math.nan,
            n_views=0,
            domains=dict.fromkeys(domains, math.nan),
            measures=dict.fromkeys(self.measures, math.nan),
            flags=error.flags,
            duration_s=math.nan,
        )

    def _open(self, item: Item) -> Recording | AudioError:
        """Decodes and checks a recording; gives an error that the policy lets pass."""
        try:
            recording = self._recording(source_of(item, any_format=self._any_format))
        except AudioError as exc:
            return self._refused(exc)
        if recording.flags:
            reasons = "; ".join(FLAGS[flag] for flag in recording.flags)
            error = AudioError(f"{recording.name}: {reasons}", flags=recording.flags)
            if self._on_bad_audio != "warn":
                return self._refused(error)
            _LOG.warning("%s; its score may mean little", error)
        return recording

    def _refused(self, error: AudioError) -> AudioError:
        """Raises an error, or logs it, or neither, as the policy wants."""
        if self._on_bad_audio == "error":
            raise error
        if self._on_bad_audio == "warn":
            _LOG.warning("%s", error)
        return error

    def _not_finite(self, recording: Recording) -> AudioError:
        """The error for a recording whose score is nan or infinite.

        Raises:
            AudioError: The recording's level is the reason, and the policy is "error".
            BundleError: It is not.
        """
        if TOO_LOUD not in recording.flags:
            raise BundleError(
                f"{self.manifest.name}: its output is not finite for {recording.name}, so its "
                "weights are damaged; check them with `mosrt info --verify`, or export it again"
            )
        text = f"{FLAGS[TOO_LOUD]}, and the model gives nothing finite for it"
        error = AudioError(f"{recording.name}: cannot be scored: {text}", flags=recording.flags)
        return self._refused(error)

    def _recording(self, source: AudioSource) -> Recording:
        """A recording at the model's rate; AudioError if a guard refuses it."""
        return Recording(source, self.manifest.sample_rate_hz, remove_silence=self._remove_silence)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for beside the score; see `Scorer.score`."""

    plan: CropPlan | PlanRule = PlanRule()  # noqa: RUF009 - it is frozen
    frames: bool = False
    horizons: bool = False
