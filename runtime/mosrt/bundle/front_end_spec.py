"""Describes a model's inputs in a manifest: views, waveform crops and log-mel images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mosrt.crops import MAX_VIEWS
from mosrt.errors import BundleError

from .fields import Fields

__all__ = ["FRONT_ENDS", "FRONT_END_SCOPE", "GridSpec", "MelSpec", "SslSpec"]

FRONT_ENDS: Final = ("numpy", "graph")
"""What computes the networks' inputs from crops of audio: the runtime, or the graphs."""
FRONT_END_SCOPE: Final = "front_end"
"""Prefix of the names of front-end nodes in a graph; these nodes are kept in FP32."""
_VIEW_EVERY_S: Final = (0.1, 3600.0)
# Bounds of what a manifest may ask for: far beyond what models need, and within a gigabyte.
_MAX_CROP_SAMPLES: Final = 4_000_000
_MAX_CROPS: Final = 64
_MAX_N_FFT: Final = 65_536
_MAX_MELS: Final = 1024
_MAX_COLUMNS: Final = 16_384
_MAX_WINDOWS: Final = 16
_MAX_FRAMES: Final = 65_536
_MAX_FILTER_WEIGHTS: Final = 2**22
_MAX_PIXELS: Final = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class SslSpec:
    """The input of the waveform branch.

    Attributes:
        tensor: Name of the graph's input, (batch, crop_samples) float32; normalised, unless the
            front end is in the graph.
        crop_samples: Length of one crop in samples.
        epsilon: Added to the variance in `(x - mean) / sqrt(var + epsilon)`.
        segment_hop_samples: Only of family "segments": the largest distance between the starts of
            two crops, which cover the whole recording. 0 in the other families.
    """

    tensor: str
    crop_samples: int
    epsilon: float
    segment_hop_samples: int = 0

    @classmethod
    def from_dict(cls, value: object, where: str) -> SslSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        return cls(
            tensor=fields.get("tensor", str),
            crop_samples=fields.positive("crop_samples", _MAX_CROP_SAMPLES),
            epsilon=fields.number("epsilon", 0.0, 1.0),
            segment_hop_samples=(
                fields.positive("segment_hop_samples", _MAX_CROP_SAMPLES)
                if fields.optional("segment_hop_samples") is not None
                else 0
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSpec:
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
    crop_samples: int
    n_crops: int
    n_fft: int
    hop_length: int
    n_mels: int
    windows: tuple[int, ...]
    f_min_hz: float
    f_max_hz: float
    floor_db: float
    image_height: int
    image_width: int

    @property
    def n_frames(self) -> int:
        """Frames of one centred spectrogram before the resize."""
        padded = self.crop_samples + self.n_fft // 2 * 2
        return 1 + (padded - self.n_fft) // self.hop_length

    @classmethod
    def from_dict(cls, value: object, where: str) -> MelSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        windows = fields.get("windows", list)
        spec = cls(
            tensor=fields.get("tensor", str),
            crop_samples=fields.positive("crop_samples", _MAX_CROP_SAMPLES),
            n_crops=fields.positive("n_crops", _MAX_CROPS),
            n_fft=fields.positive("n_fft", _MAX_N_FFT),
            hop_length=fields.positive("hop_length", _MAX_N_FFT),
            n_mels=fields.positive("n_mels", _MAX_MELS),
            windows=tuple(windows),
            f_min_hz=fields.number("f_min_hz"),
            f_max_hz=fields.number("f_max_hz"),
            floor_db=fields.number("floor_db", most=1000.0),
            image_height=fields.positive("image_height", _MAX_MELS),
            image_width=fields.positive("image_width", _MAX_COLUMNS),
        )
        if not windows or not all(type(w) is int and 0 < w <= spec.n_fft for w in windows):
            raise BundleError(
                f"manifest.json: {fields.path('windows')} must be lengths from 1 to n_fft "
                f"({spec.n_fft}), not {windows}"
            )
        images = spec.n_crops * len(windows)
        if (
            len(windows) > _MAX_WINDOWS
            or not 0 < spec.n_frames <= _MAX_FRAMES
            or spec.n_mels * (spec.n_fft // 2 + 1) > _MAX_FILTER_WEIGHTS
            or images * spec.n_mels * max(spec.image_width, spec.n_frames) > _MAX_PIXELS
        ):
            raise BundleError(
                f"manifest.json: {where} describes images larger than mosrt makes; "
                "get the bundle from a source you trust"
            )
        if spec.image_height != spec.n_mels:
            raise BundleError(
                f"manifest.json: {fields.path('image_height')} must equal n_mels ({spec.n_mels}): "
                "only time is resized"
            )
        if not 0 <= spec.f_min_hz < spec.f_max_hz or spec.floor_db <= 0:
            raise BundleError(
                f"manifest.json: {where} needs 0 <= f_min_hz < f_max_hz and floor_db > 0"
            )
        return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """Number of views of the default crop plan: one for each `view_every_s` begun.

    Attributes:
        view_every_s: Length of recording per view, in seconds.
        min_views: Fewest views; an interval needs at least two.
        max_views: Most views.
    """

    view_every_s: float = 3.0
    min_views: int = 2
    max_views: int = 8

    @classmethod
    def from_dict(cls, value: object, where: str) -> GridSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        spec = cls(
            view_every_s=fields.number("view_every_s", *_VIEW_EVERY_S),
            min_views=fields.positive("min_views", MAX_VIEWS),
            max_views=fields.positive("max_views", MAX_VIEWS),
        )
        if spec.max_views < spec.min_views:
            raise BundleError(
                f"manifest.json: {fields.path('max_views')} is {spec.max_views}, less than "
                f"min_views ({spec.min_views})"
            )
        return spec
