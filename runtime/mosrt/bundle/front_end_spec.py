"""Describes a model's inputs in a manifest: views, waveform crops and log-mel images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np

from mosrt._arrays import BoolArray, FloatArray
from mosrt.crops import MAX_VIEWS

from .fields import Range, Section, manifest_error

__all__ = ["FRONT_ENDS", "FRONT_END_SCOPE", "GridSpec", "MelSpec", "SpeechSpec", "SslSpec"]

FRONT_ENDS: Final = ("numpy", "graph")
"""What computes the networks' inputs from crops of audio: the runtime, or the graphs."""
FRONT_END_SCOPE: Final = "front_end"
"""Module of front-end nodes in a graph, by their names; these nodes are kept in FP32."""
_LOUDEST_FRAMES: Final = 10  # 0.2 s
# Bounds of what a manifest may ask for: far beyond what models need, and within a gigabyte.
_MAX_CROP_SAMPLES: Final = 4_000_000
_MAX_FRAMES: Final = 65_536
_MAX_FILTER_WEIGHTS: Final = 2**22
_MAX_PIXELS: Final = 2**26
_CropSamples = Annotated[int, Range(1, _MAX_CROP_SAMPLES)]
_NFft = Annotated[int, Range(1, 65_536)]
_Mels = Annotated[int, Range(1, 1024)]
_Views = Annotated[int, Range(1, MAX_VIEWS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SslSpec(Section):
    """The input of the waveform branch.

    Attributes:
        tensor: Name of the graph's input, (batch, crop_samples) float32; normalised, unless the
            front end is in the graph. For segments (batch, "samples"), unless a step is a crop.
        crop_samples: Length of one crop in samples.
        epsilon: Added to the variance in `(x - mean) / sqrt(var + epsilon)`.
        segment_hop_samples: Only of family "segments": the largest distance between the starts of
            two crops, which cover the whole recording. 0 in the other families.
        segment_step_samples: Only of family "segments": the graph takes any multiple of this, up to
            `crop_samples`, and treats it as if zeros followed. The last step has to be zeros.
        segment_repeat: Only of family "segments": a recording that is shorter than a segment is
            doubled until it is not, and segments start exactly `segment_hop_samples` apart.
    """

    tensor: str
    crop_samples: _CropSamples
    epsilon: Annotated[float, Range(0.0, 1.0)]
    segment_hop_samples: Annotated[int, Range(0, _MAX_CROP_SAMPLES)] = 0
    segment_step_samples: Annotated[int, Range(0, _MAX_CROP_SAMPLES)] = 0
    segment_repeat: bool = False

    def padded_samples(self, n_samples: int) -> int:
        """Length to which a recording that is shorter than a segment is extended."""
        steps = -(-n_samples // self.segment_step_samples) + 1
        return min(steps * self.segment_step_samples, self.crop_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSpec(Section):
    """The input of the spectrogram branch: several log-mel images of each of several crops.

    Attributes:
        tensor: Name of the graph's input: images, (batch, n_crops * len(windows), image_height,
            image_width) float32 in [0, 1], crop-major, then window; or, where the front end is in
            the graph, the crops themselves, (batch, n_crops, crop_samples) float32 in [-1, 1].
        crop_samples: Length of one crop in samples.
        n_crops: Crops per view.
        n_fft: FFT size in samples, at least the largest window.
        hop_length: Hop in samples.
        n_mels: Mel bands (Slaney scale and area normalisation).
        windows: Lengths in samples of the periodic Hann windows, one image each.
        f_min_hz: Lowest frequency of the mel filter bank.
        f_max_hz: Highest frequency of the mel filter bank.
        floor_db: Range below each image's own maximum that is kept, from 0 at the floor to 1.
        image_height: Rows of the image; equal to n_mels, since only time is resized.
        image_width: Columns of the image after resizing along time.
    """

    tensor: str
    crop_samples: _CropSamples
    n_crops: Annotated[int, Range(1, 64)]
    n_fft: _NFft
    hop_length: _NFft
    n_mels: _Mels
    windows: Annotated[tuple[int, ...], Range(1, 16)]
    f_min_hz: float
    f_max_hz: float
    floor_db: Annotated[float, Range(-1e9, 1000.0)]
    image_height: _Mels
    image_width: Annotated[int, Range(1, 16_384)]

    @property
    def n_frames(self) -> int:
        """Frames of one centred spectrogram before the resize."""
        padded = self.crop_samples + self.n_fft // 2 * 2
        return 1 + (padded - self.n_fft) // self.hop_length

    def check(self, where: str) -> None:
        """Raises BundleError if the numbers contradict one another, or ask for too much memory."""
        if max(self.windows) > self.n_fft:
            raise manifest_error(f"{where}.windows must be at most n_fft, which is {self.n_fft}")
        images = self.n_crops * len(self.windows)
        if (
            not 0 < self.n_frames <= _MAX_FRAMES
            or self.n_mels * (self.n_fft // 2 + 1) > _MAX_FILTER_WEIGHTS
            or images * self.n_mels * max(self.image_width, self.n_frames) > _MAX_PIXELS
        ):
            raise manifest_error(
                f"{where} describes images larger than mosrt makes; get the bundle from a source "
                "you trust"
            )
        if self.image_height != self.n_mels:
            raise manifest_error(
                f"{where}.image_height must equal n_mels ({self.n_mels}): only time is resized"
            )
        if not 0 <= self.f_min_hz < self.f_max_hz or self.floor_db <= 0:
            raise manifest_error(f"{where} needs 0 <= f_min_hz < f_max_hz and floor_db > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSpec(Section):
    """Which parts of a recording the default crop plan counts as speech, by their level.

    A frame of 20 ms is speech if three of the five frames around it, itself included, are above a
    threshold. Levels are without the frame's mean. What lies before the first speech and after the
    last is left out, and so are views with too little speech between them.

    Attributes:
        range_db: The threshold is so far below the loudest 0.2 s of the recording, in dB,
        floor_dbfs: but not below this level,
        least_range_db: and not closer to the loudest 0.2 s than this, in dB, so that quiet speech
            and speech in noise are kept.
        margin_s: Time before the first speech and after the last that is kept, in seconds.
        min_share: Share of a crop that has to be speech. If no crop has that much, those count that
            have most.
    """

    range_db: Annotated[float, Range(0.0, 200.0)]
    floor_dbfs: Annotated[float, Range(-200.0, 0.0)]
    least_range_db: Annotated[float, Range(0.0, 200.0)]
    margin_s: Annotated[float, Range(0.0, 60.0)]
    min_share: Annotated[float, Range(0.0, 1.0)]

    def frames(self, power: FloatArray) -> BoolArray:
        """Which frames are speech, (frames,) bool, by their power (frames,); full scale is 1.

        All are if none would be.
        """
        n_loudest = min(_LOUDEST_FRAMES, len(power))
        loudest = float(np.partition(power, -n_loudest)[-n_loudest])
        floor = min(10 ** (self.floor_dbfs / 10), loudest * 10 ** (-self.least_range_db / 10))
        above = power >= max(loudest * 10 ** (-self.range_db / 10), floor)
        speech: BoolArray = np.convolve(above, np.ones(5), "same") >= 3
        return speech if speech.any() else np.ones(len(power), np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec(Section):
    """Number of views of the default crop plan: one for each `view_every_s` begun.

    Attributes:
        view_every_s: Length of recording per view, in seconds.
        min_views: Fewest views; an interval needs at least two.
        max_views: Most views.
        speech: Which parts of the recording count; None for all of it. It is for all families, and
            for no other plan.
    """

    view_every_s: Annotated[float, Range(0.1, 3600.0)] = 3.0
    min_views: _Views = 2
    max_views: _Views = 8
    speech: SpeechSpec | None = None

    def check(self, where: str) -> None:
        """Raises BundleError if the fewest views are more than the most."""
        if self.max_views < self.min_views:
            raise manifest_error(
                f"{where}.max_views is {self.max_views}, less than min_views ({self.min_views})"
            )
