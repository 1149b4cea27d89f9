"""Plans which parts of a recording the model looks at, before any audio is processed.

A plan holds sample offsets at the model's rate. They count in the recording *after tiling*: a clip
of n samples that is not longer than a crop of C samples is repeated C // n + 1 times, and so is
read modulo its own length.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np

from ._arrays import Float32Array, FloatArray, IntArray
from .errors import PlanError
from .speech import SpeechMask, StartRanges

__all__ = [
    "MAX_VIEWS",
    "CropGeometry",
    "CropPlan",
    "Plan",
    "PlanRule",
    "normalised",
    "resolve_plan",
    "tiled_length",
]

MAX_VIEWS: Final = 10_000
"""Most views of a recording: of a manifest's grid, and that a caller may ask for."""
_KINDS: Final = ("grid", "reference", "paper")
# The paper repeats 5 times for each of 5 folds. Here all folds of a bundle look at the same crops,
# so that the front end runs once for all of them.
_PAPER_REPETITIONS: Final = 5
_MIX_ALPHA: Final = 0.4  # the reference's Beta(0.4, 0.4), design of UTMOSv2 (arXiv 2409.09305)


@dataclass(frozen=True, slots=True, kw_only=True)
class CropGeometry:
    """The length and number of the crops of one view, and the number of views of a grid.

    The defaults are UTMOSv2's; a bundle's own geometry comes from its manifest.

    Attributes:
        ssl_samples: Length in samples of the waveform crop; 0 if the model has no such branch.
        spec_samples: Length in samples of a spectrogram crop; 0 if the model has no such branch.
        n_crops: Spectrogram crops per view.
        n_windows: Spectrograms, one per window length, of each crop.
        view_every_samples: A grid has one view for each so many samples, rounded up.
        min_views: Smallest number of views of a grid; an interval needs two.
        max_views: Largest number of views of a grid.
        can_mix: Whether images of two crops can be mixed; False if the graph makes the images.
        segment_hop_samples: If not 0, the views of a grid are overlapping segments from the first
            to the last sample, which start at most so many samples apart, and zeros follow a
            shorter recording, which is not repeated.
        segment_repeat: Whether a shorter recording is doubled until it is as long as a segment,
            and segments start exactly one hop apart, as for DNSMOS.
    """

    ssl_samples: int = 48_000
    spec_samples: int = 22_400
    n_crops: int = 2
    n_windows: int = 4
    view_every_samples: int = 48_000
    min_views: int = 2
    max_views: int = 8
    can_mix: bool = True
    segment_hop_samples: int = 0
    segment_repeat: bool = False

    def grid_views(self, n_samples: int) -> int:
        """Number of views of a grid for a recording of `n_samples`, unless the caller gives it."""
        wanted = math.ceil(n_samples / self.view_every_samples)
        return min(max(wanted, self.min_views), self.max_views)

    def last_start(self, n_samples: int, crop_samples: int) -> int:
        """The last sample at which a crop can start, once a recording is long enough for it."""
        if self.segment_repeat:
            while n_samples < crop_samples:
                n_samples *= 2
        if self.segment_hop_samples:
            return max(n_samples - crop_samples, 0)
        return tiled_length(n_samples, crop_samples) - crop_samples

    def starts(self, n_samples: int, crop_samples: int, speech: SpeechMask | None) -> StartRanges:
        """Where a crop can start: anywhere, or where `speech` allows it."""
        last = self.last_start(n_samples, crop_samples)
        if speech is None:
            return StartRanges.all_up_to(last)
        return speech.starts(crop_samples, last)

    def segment_starts(
        self, n_samples: int, views: int | None = None, speech: SpeechMask | None = None
    ) -> IntArray:
        """Starts (views,) int64 of the segments of a grid, `views` of them or as many as usual."""
        hop, length = self.segment_hop_samples, self.ssl_samples
        last = self.last_start(n_samples, length)
        if views is None and self.segment_repeat:
            # The script computes ends in floating point, and drops a segment that is therefore a
            # sample short. Of segments of 9.01 s those are numbers 7 to 23 and 119 to 122.
            numbers = np.arange(int((last + length) // hop - length / hop) + 1, dtype=np.int64)
            ends = ((numbers + length / hop) * hop).astype(np.int64)
            return numbers[ends - numbers * hop >= length] * hop
        starts = self.starts(n_samples, length, speech)
        places = np.linspace(0, 1, views or 1 + math.ceil(starts.length / hop))
        return starts.at(places * starts.length)  # rounded down, as Distill-MOS does it


UTMOSV2_GEOMETRY: Final = CropGeometry()


def tiled_length(n_samples: int, crop_samples: int) -> int:
    """Length after tiling a clip of `n_samples` for crops of `crop_samples`."""
    if n_samples > crop_samples:
        return n_samples
    return n_samples * (crop_samples // n_samples + 1)


@dataclass(frozen=True, slots=True, eq=False)
class CropPlan:
    """The crops that a model looks at: one row per view.

    Attributes:
        ssl_starts: Offsets of the waveform crops, (views,) int64.
        spec_starts: Offsets of the spectrogram crops, (views, crops) int64.
        mix_starts: Offsets of the crop mixed into each image, (views, crops, windows) int64, or
            None for no mixing.
        mix_lambdas: Weight of the image's own crop in the mix, (views, crops, windows) float64 in
            [0, 1]; given exactly when `mix_starts` is.

    Raises:
        PlanError: The shapes do not belong together, or an offset or weight is out of range.
    """

    ssl_starts: IntArray
    spec_starts: IntArray
    mix_starts: IntArray | None = None
    mix_lambdas: FloatArray | None = None

    def __post_init__(self) -> None:
        ssl = _offsets("ssl_starts", self.ssl_starts, 1)
        spec = _offsets("spec_starts", self.spec_starts, 2)
        if len(ssl) != len(spec) or not len(ssl):
            raise PlanError(
                f"a plan needs at least one view, the same number everywhere: ssl_starts has "
                f"{len(ssl)}, spec_starts {len(spec)}"
            )
        object.__setattr__(self, "ssl_starts", ssl)
        object.__setattr__(self, "spec_starts", spec)
        if (self.mix_starts is None) != (self.mix_lambdas is None):
            raise PlanError("mix_starts and mix_lambdas go together: give both or neither")
        if self.mix_starts is None:
            return
        starts = _offsets("mix_starts", self.mix_starts, 3)
        lambdas = np.asarray(self.mix_lambdas, dtype=np.float64)
        if starts.shape != lambdas.shape or starts.shape[:2] != spec.shape:
            raise PlanError(
                f"mix_starts {starts.shape} and mix_lambdas {lambdas.shape} must both be "
                f"(views, crops, windows) with (views, crops) = {spec.shape}"
            )
        if not np.all((lambdas >= 0) & (lambdas <= 1)):
            raise PlanError("mix_lambdas must lie in [0, 1]")
        object.__setattr__(self, "mix_starts", starts)
        object.__setattr__(self, "mix_lambdas", lambdas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CropPlan):
            return NotImplemented
        return all(map(np.array_equal, astuple(self), astuple(other)))

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    @property
    def n_views(self) -> int:
        """Number of views; each becomes one prediction per network of the ensemble."""
        return len(self.ssl_starts)

    @classmethod
    def grid(
        cls,
        n_samples: int,
        views: int | None = None,
        *,
        geometry: CropGeometry = UTMOSV2_GEOMETRY,
        speech: SpeechMask | None = None,
    ) -> CropPlan:
        """Evenly spaced crops without mixing: the default, and the same every time.

        The crops of all views together are spread over the whole (tiled) clip from its first to
        its last possible start; a single crop lies in the middle. Views take spectrogram crops in
        turn, so that each view covers all parts of the clip.

        Args:
            n_samples: Length of the recording in samples at the model's rate, before tiling.
            views: Number of views; by default by `geometry` (for UTMOSv2 one for each 3 s, rounded
                up, from 2 to 8: with that, waveform crops cover clips of up to 24 s).
            geometry: Crop lengths and counts of the model.
            speech: Where there is speech; crops then start only where they have enough of it.
        """
        _check_length(n_samples)
        if views is not None:
            _check_views(views)
        if geometry.segment_hop_samples:
            starts = geometry.segment_starts(n_samples, views, speech)
            return cls(starts, np.zeros((len(starts), 0), np.int64))
        longest = max(geometry.ssl_samples, geometry.spec_samples)
        left_out = geometry.last_start(n_samples, longest)
        left_out -= geometry.starts(n_samples, longest, speech).length
        views = views or geometry.grid_views(n_samples - left_out)
        n_crops = geometry.n_crops

        def spread(crop_samples: int, count: int) -> IntArray:
            if not crop_samples:
                return np.zeros(count, np.int64)
            return _spread(geometry.starts(n_samples, crop_samples, speech), count)

        ssl = spread(geometry.ssl_samples, views)
        spec = spread(geometry.spec_samples, views * n_crops)
        return cls(ssl, spec.reshape(n_crops, views).T)

    @classmethod
    def reference(
        cls, n_samples: int, seed: int, views: int = 1, *, geometry: CropGeometry = UTMOSV2_GEOMETRY
    ) -> CropPlan:
        """The random crops of the public UTMOSv2 implementation after `np.random.seed(seed)`.

        Per view, in this order: the waveform crop; then for each spectrogram crop its start and,
        for each window, the start of the crop mixed in and λ ~ Beta(0.4, 0.4). Further views
        continue the same stream, as repeated predictions do there.

        Args:
            n_samples: Length of the recording in samples at the model's rate, before tiling.
            seed: Seed of NumPy's legacy generator, 0 to 2**32 - 1.
            views: Number of repetitions.
            geometry: Crop lengths and counts of the model.
        """
        _check_length(n_samples)
        if geometry.segment_hop_samples:
            raise PlanError("a model that reads segments has no random crops; choose plan grid")
        if not 0 <= seed < 2**32:
            raise PlanError(f"seed must be from 0 to 2**32 - 1, not {seed}")
        _check_views(views)
        rng = np.random.RandomState(seed)
        shape = (views, geometry.n_crops, geometry.n_windows)
        ssl = np.zeros(views, np.int64)
        spec = np.zeros(shape[:2], np.int64)
        mix = np.zeros(shape, np.int64)
        lambdas = np.ones(shape)

        def start(crop_samples: int) -> int:
            # The reference's bound is exclusive. Tiling always leaves at least one possible start.
            return int(rng.randint(0, tiled_length(n_samples, crop_samples) - crop_samples))

        for view in range(views):
            if geometry.ssl_samples:
                ssl[view] = start(geometry.ssl_samples)
            for crop in range(geometry.n_crops):
                spec[view, crop] = start(geometry.spec_samples)
                for window in range(geometry.n_windows):
                    mix[view, crop, window] = start(geometry.spec_samples)
                    lambdas[view, crop, window] = rng.beta(_MIX_ALPHA, _MIX_ALPHA)
        if not geometry.n_crops:
            return cls(ssl, spec)
        return cls(ssl, spec, mix, lambdas)

    def check(self, n_samples: int, geometry: CropGeometry) -> None:
        """Raises PlanError unless the plan fits a recording and a model's geometry."""
        if self.spec_starts.shape[1] != geometry.n_crops:
            raise PlanError(
                f"the plan has {self.spec_starts.shape[1]} spectrogram crops per view, the model "
                f"wants {geometry.n_crops}"
            )
        if self.mix_starts is not None and not geometry.can_mix:
            raise PlanError(
                "the plan mixes images, which this model's graph makes itself; choose plan grid, "
                "or export the model with --frontend numpy"
            )
        if self.mix_starts is not None and self.mix_starts.shape[2] != geometry.n_windows:
            raise PlanError(
                f"the plan mixes {self.mix_starts.shape[2]} windows per crop, the model has "
                f"{geometry.n_windows}"
            )
        for name, starts, crop_samples in (
            ("ssl_starts", self.ssl_starts, geometry.ssl_samples),
            ("spec_starts", self.spec_starts, geometry.spec_samples),
            ("mix_starts", self.mix_starts, geometry.spec_samples),
        ):
            if starts is None or not starts.size or not crop_samples:
                continue
            last = geometry.last_start(n_samples, crop_samples)
            if starts.max() > last:
                raise PlanError(
                    f"{name} has {starts.max()}, but in this recording of {n_samples} samples a "
                    f"crop of {crop_samples} can start at {last} at the latest"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRule:
    """How to make a `CropPlan` once the length of a recording is known.

    Attributes:
        kind: "grid", "reference" or "paper".
        seed: Seed of the random kinds.
        views: Views per recording; None for the kind's own choice.
    """

    kind: str = "grid"
    seed: int = 0
    views: int | None = None

    @classmethod
    def parse(cls, text: str, views: int | None = None) -> PlanRule:
        """Reads "grid", "reference:SEED", "paper" or "paper:SEED".

        Raises:
            PlanError: The text is none of these, or does not go with a number of views.
        """
        kind, colon, seed = text.partition(":")
        if kind not in _KINDS or (colon and (kind == "grid" or not seed.isdecimal())):
            raise PlanError(
                f"unknown plan {text!r}; known: grid, reference:SEED, paper, paper:SEED"
            )
        if kind == "reference" and not colon:
            raise PlanError("plan reference needs a seed, such as reference:0")
        if kind == "paper" and views is not None:
            raise PlanError("plan paper has 5 views; leave views out")
        if views is not None:
            _check_views(views)
        if len(seed) > 10:
            raise PlanError("the seed of a plan must be from 0 to 2**32 - 1")
        return cls(kind=kind, seed=int(seed or 0), views=views)

    def plan(
        self, n_samples: int, geometry: CropGeometry, speech: SpeechMask | None = None
    ) -> CropPlan:
        """The plan for a recording of `n_samples` at the model's rate; `speech` is for a grid."""
        if self.kind == "grid":
            return CropPlan.grid(n_samples, self.views, geometry=geometry, speech=speech)
        views = _PAPER_REPETITIONS if self.kind == "paper" else self.views or 1
        return CropPlan.reference(n_samples, self.seed, views, geometry=geometry)


Plan = CropPlan | PlanRule | str
"""A crop plan, a rule that makes one, or the text of a rule."""


def resolve_plan(plan: Plan | None, views: int | None = None) -> CropPlan | PlanRule:
    """The plan that a caller means.

    Args:
        plan: A plan, a rule, or the text of a rule; by default the grid.
        views: Number of views of the grid.

    Raises:
        PlanError: The text is no rule, or `views` is below 1 or goes with another plan.
    """
    if plan is None or plan in ("grid", PlanRule()):
        return PlanRule.parse("grid", views)
    if views is not None:
        raise PlanError(
            "views is the number of views of plan 'grid'; leave it out, or give a PlanRule with "
            "its own views"
        )
    return PlanRule.parse(plan) if isinstance(plan, str) else plan


def _check_views(views: int) -> None:
    if not 1 <= views <= MAX_VIEWS:
        raise PlanError(f"views must be from 1 to {MAX_VIEWS}, not {views}")


def _check_length(n_samples: int) -> None:
    if n_samples < 1:
        raise PlanError(f"a plan needs a recording of at least one sample, not {n_samples}")


def _offsets(name: str, values: object, ndim: int) -> IntArray:
    array = np.asarray(values)
    if array.ndim != ndim or not (array.dtype.kind in "iu" or not array.size):
        raise PlanError(
            f"{name} must be {ndim}-dimensional integers, not {array.dtype}{array.shape}"
        )
    if array.size and array.min() < 0:
        raise PlanError(f"{name} has a negative offset")
    return array.astype(np.int64)


def _spread(starts: StartRanges, count: int) -> IntArray:
    """`count` offsets spread over all possible starts, (count,) int64; one alone in the middle."""
    if count == 1:
        return starts.at(np.array([starts.length // 2]))
    return starts.at(np.rint(np.linspace(0, starts.length, count)))


def normalised(crop: Float32Array, epsilon: float = 1e-7) -> Float32Array:
    """A crop (samples,) at zero mean and unit variance, as for wav2vec 2.0.

    `epsilon` is added to the variance. Sums are in double precision: a 3 s crop has 48 000 terms.
    """
    centred = crop - crop.mean(dtype=np.float64)
    scale = 1.0 / np.sqrt(np.mean(np.square(centred)) + epsilon)
    scaled: Float32Array = (centred * scale).astype(np.float32)
    return scaled
