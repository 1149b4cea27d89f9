"""Decodes, downmixes and resamples a recording, and reads crops and chunks from it.

A recording is decoded and resampled as a stream. Up to ten minutes are kept in memory. Of a longer
recording only the length and statistics are kept, and its crops are read in a second pass, so
memory is bounded for a recording of any length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import soxr

from mosrt._arrays import Float32Array, FloatArray, IntArray
from mosrt.bundle.front_end_spec import SpeechSpec
from mosrt.crops import tiled_length
from mosrt.speech import SpeechMask

from .guards import FATAL_FLAGS, MIN_DURATION_S, LevelMeter, frame_samples
from .sources import AudioSource, audio_error

__all__ = ["Recording"]

_KEPT_S: Final = 600.0
# Silence removal as in the reference implementation of UTMOSv2; lengths in samples at 16 kHz.
_LOUD: Final = np.float32(0.1)
_MAX_QUIET_SAMPLES: Final = 4_800


class Recording:
    """A mono recording at the model's sampling rate.

    Channels are averaged, and the mean is resampled by soxr with quality HQ.

    Args:
        source: The audio to read.
        sample_rate_hz: Sampling rate to resample to.
        remove_silence: Whether to cut runs of more than 4 800 samples, all of them at most 0.1,
            between two samples above 0.1.
        kept_s: Longest recording in seconds that is kept in memory.
        min_duration_s: Shorter recordings are refused with the flag "too-short".
        speech: What counts as speech, for `trim`; by default all of the recording. Not used with
            `remove_silence`.

    Attributes:
        name: Name for messages.
        n_samples: Length in samples at `sample_rate_hz`, after silence removal or `trim`.
        start: First sample that is read; 0 before `trim`.
        speech: Where there is speech, from `start` on; None before `trim`, and without a rule.
        duration_s: Length of the source in seconds.
        flags: Guards that apply to the recording; none of them fatal.
        timings_ms: Time spent so far in "decode" and "resample", in milliseconds.

    Raises:
        AudioError: A guard refuses the recording.
    """

    def __init__(
        self,
        source: AudioSource,
        sample_rate_hz: int,
        *,
        remove_silence: bool = False,
        kept_s: float = _KEPT_S,
        min_duration_s: float = MIN_DURATION_S,
        speech: SpeechSpec | None = None,
    ) -> None:
        self.name = source.name
        self._source = source
        self._rate_hz = sample_rate_hz
        self.timings_ms = {"decode": 0.0, "resample": 0.0}
        meter = LevelMeter()
        kept: list[Float32Array] | None = []
        cuts = _QuietRuns()
        n_kept = 0
        self._rule = None if remove_silence else speech
        peak = _Peak()
        for block in self._stream(meter):
            if self._rule is not None:
                peak.add(block)
            if remove_silence:
                cuts.add(block)
            n_kept += len(block)
            if kept is not None:
                kept.append(block)
                if n_kept > kept_s * sample_rate_hz:
                    kept = None
        flags = meter.flags(source.sample_rate_hz, min_duration_s)
        for flag in flags:
            if flag in FATAL_FLAGS:
                raise audio_error(source.name, flag)
        if source.truncated:
            flags += ("truncated",)
        if source.unread:
            flags += ("unread",)
        if remove_silence and cuts.last_loud is None:
            flags += ("quiet",)
        self.flags = flags
        self.duration_s = meter.n_samples / source.sample_rate_hz
        # Rounded up in floating point, as in librosa, which the reference implementation uses.
        ratio = sample_rate_hz / source.sample_rate_hz
        self._n_uncut = math.ceil(meter.n_samples * ratio)
        self._cuts = cuts.runs()
        self.n_samples = self._n_uncut - int((self._cuts[:, 1] - self._cuts[:, 0]).sum())
        self.start = 0
        self.speech: SpeechMask | None = None
        self._peak = min(peak.position, max(self._n_uncut - 1, 0))
        self._samples: Float32Array | None = None
        if kept is not None:
            joined = np.concatenate(kept)[: self._n_uncut]
            self._samples = np.pad(joined, (0, self._n_uncut - len(joined)))

    def trim(self) -> None:
        """Leaves out what lies before the first speech and after the last, if there is a rule.

        Frames are aligned with the largest sample. So they contain the same samples wherever the
        speech lies in the recording, and models whose frames depend on the first sample give the
        same score. A recording that is not kept in memory is decoded once more.
        """
        rule, length = self._rule, frame_samples(self._rate_hz)
        if rule is None or self.speech is not None:
            return
        offset = self._peak % length
        frames, skipped = _FramePower(length), offset
        for block in self._stream(None) if self._samples is None else (self._samples,):
            frames.add(block[skipped:])
            skipped = max(skipped - len(block), 0)
        mask = SpeechMask(rule.frames(frames.powers()), length, rule.min_share)
        first, last = mask.span(round(rule.margin_s * self._rate_hz / length))
        self.speech = mask.cut(first, last)
        self.start, end = offset + first, min(offset + last, self._n_uncut)
        self.n_samples = end - self.start
        cuts = np.array([[0, self.start], [end, self._n_uncut]])
        self._cuts = cuts[cuts[:, 1] > cuts[:, 0]]

    def gather(self, requests: list[tuple[IntArray, int]]) -> list[Float32Array]:
        """Reads several sets of crops in one pass.

        Args:
            requests: For each set, offsets (n,) int64 in samples of the tiled recording, and the
                length of its crops in samples.

        Returns:
            For each set, samples (n, length) float32.
        """
        positions = [self._positions(starts, length) for starts, length in requests]
        if self._samples is not None:
            return [self._samples[where] for where in positions]
        crops = [np.zeros(where.shape, np.float32) for where in positions]
        done = 0
        for block in self._stream(None):
            for where, crop in zip(positions, crops, strict=True):
                inside = (where >= done) & (where < done + len(block))
                crop[inside] = block[where[inside] - done]
            done += len(block)
        return crops

    def chunks(self, bounds: Sequence[tuple[int, int]]) -> Iterator[Float32Array]:
        """Reads chunks in one pass.

        Args:
            bounds: First sample and one past the last of each chunk, in order of time. Chunks may
                overlap, or have gaps between them.

        Yields:
            Samples (last - first,) float32 of each chunk.
        """
        if self._samples is not None:
            for first, last in bounds:
                yield self._samples[self._positions(np.array([first]), last - first)[0]]
            return
        blocks = self._uncut_blocks()
        held, held_from = np.zeros(0, np.float32), 0
        for first, last in bounds:
            parts = [held[first - held_from :]]
            skipped = max(first - held_from - len(held), 0)
            missing = last - first - len(parts[0])
            while missing > 0:
                block = next(blocks, None)
                if block is None:  # the resampler may return a sample less than n_samples
                    block = np.zeros(missing, np.float32)
                block, skipped = block[skipped:], max(skipped - len(block), 0)
                parts.append(block)
                missing -= len(block)
            held, held_from = np.concatenate(parts), first
            yield held[: last - first]

    def _uncut_blocks(self) -> Iterator[Float32Array]:
        """Yields the recording without the runs that silence removal cuts."""
        done = 0
        for block in self._stream(None):
            kept = np.ones(len(block), np.bool_)
            for first, last in self._cuts.tolist():
                kept[max(0, first - done) : max(0, last - done)] = False
            done += len(block)
            yield block[kept]

    def _positions(self, starts: IntArray, length: int) -> IntArray:
        """Positions (n, length) in the uncut recording of the samples of crops."""
        if starts.size and starts.max() > tiled_length(self.n_samples, length) - length:
            raise IndexError("a crop reaches beyond the recording")
        tiled = starts.reshape(-1, 1) + np.arange(length)
        where = tiled % self.n_samples
        if len(self._cuts):
            lengths = self._cuts[:, 1] - self._cuts[:, 0]
            removed = np.concatenate([[0], np.cumsum(lengths)])
            # Positions of the cuts after those before them are removed.
            places = self._cuts[:, 0] - removed[:-1]
            where = where + removed[np.searchsorted(places, where, side="right")]
        return where

    def _stream(self, meter: LevelMeter | None) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples,) float32 at the model's sampling rate."""
        source, target = self._source.sample_rate_hz, self._rate_hz
        resampler = None
        if source != target:
            resampler = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
        blocks = self._source.blocks()
        started = time.perf_counter()
        for block in blocks:
            with np.errstate(all="ignore"):  # the meter reports non-finite samples
                mono = _downmix(block)
            if meter is not None:
                meter.add(block, mono, frame_samples(source))
                if not meter.usable:
                    return
            started = self._lap("decode", started)
            if resampler is None:
                yield np.ascontiguousarray(mono)
            else:
                resampled = resampler.resample_chunk(np.ascontiguousarray(mono))
                self._lap("resample", started)
                yield resampled
            started = time.perf_counter()
        started = self._lap("decode", started)
        if resampler is not None:
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            self._lap("resample", started)
            yield rest

    def _lap(self, stage: str, started: float) -> float:
        now = time.perf_counter()
        self.timings_ms[stage] += 1e3 * (now - started)
        return now


class _Peak:
    """Finds the largest magnitude in a stream, and where it is first."""

    def __init__(self) -> None:
        self.position = 0
        self._largest = -1.0
        self._done = 0

    def add(self, block: Float32Array) -> None:
        """Adds the next samples, (samples,) float32."""
        if len(block):
            magnitude = np.abs(block)
            place = int(magnitude.argmax())
            if magnitude[place] > self._largest:
                self._largest, self.position = float(magnitude[place]), self._done + place
        self._done += len(block)


class _FramePower:
    """Measures the power of frames in a stream, without each frame's mean.

    Args:
        length: Length of a frame in samples.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._rest = np.zeros(0, np.float32)
        self._powers: list[FloatArray] = []

    def add(self, block: Float32Array) -> None:
        """Adds the next samples, (samples,) float32."""
        joined = np.concatenate([self._rest, block])
        whole = len(joined) // self._length * self._length
        self._rest = joined[whole:]
        self._powers.append(joined[:whole].reshape(-1, self._length).var(axis=1, dtype=np.float64))

    def powers(self) -> FloatArray:
        """The power of every frame, (frames,); the last may be incomplete."""
        last = [self._rest.var(dtype=np.float64, keepdims=True)] if len(self._rest) else []
        return np.concatenate([np.zeros(0), *self._powers, *last])


def _downmix(block: Float32Array) -> Float32Array:
    """The mean (samples,) of the channels of a block (samples, channels)."""
    if block.shape[1] == 1:
        return block[:, 0]
    if block.shape[1] == 2:  # the same sums and quotients as below, several times faster
        mono: Float32Array = block[:, 0] + block[:, 1]
        mono /= 2
        return mono
    mean: Float32Array = block.mean(axis=1)
    return mean


class _QuietRuns:
    """Finds long quiet runs between loud samples in a stream."""

    def __init__(self) -> None:
        self.last_loud: int | None = None  # the position of a sample above the threshold
        self._done = 0
        self._runs: list[IntArray] = []

    def add(self, block: Float32Array) -> None:
        """Adds the next samples, (samples,) float32."""
        loud = np.flatnonzero(block > _LOUD) + self._done
        self._done += len(block)
        if not loud.size:
            return
        if self.last_loud is not None:
            loud = np.concatenate([[self.last_loud], loud])
        self.last_loud = int(loud[-1])
        long = np.flatnonzero(np.diff(loud) - 1 > _MAX_QUIET_SAMPLES)
        self._runs.append(np.stack([loud[long] + 1, loud[long + 1]], axis=1))

    def runs(self) -> IntArray:
        """The runs found so far, (n, 2) int64: first sample, and one past the last."""
        return np.concatenate([np.zeros((0, 2), np.int64), *self._runs])
