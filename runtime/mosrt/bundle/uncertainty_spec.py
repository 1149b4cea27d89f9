"""Describes in a manifest how a recording is scored by a model's own uncertainty.

It is the section `uncertainty` of the manifest. The method is that of arXiv 2312.15616.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from .fields import Range, Section, manifest_error
from .mos_map import MosMap

__all__ = [
    "MEASURES", "STAGES", "UNCERTAINTY_FAMILIES", "ContrastSpec", "DropoutSpec", "MaskingSpec",
    "UncertaintySpec",
]  # fmt: skip

MEASURES: Final = ("mean", "std", "max", "entropy")
"""Measures of a row of logits; "std" is unbiased, "entropy" that of the softmax in nats."""
UNCERTAINTY_FAMILIES: Final = ("wav2vec", "wav2vec2-ctc", "wav2vec2-pretraining")
STAGES: Final[dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]]] = {
    "wav2vec": {
        "encoder": (("waveform",), ("features", "predictions")),
        "contrast": (("features", "predictions", "negatives"), ("logits",)),
        "dense": (("queries", "features"), ("similarities",)),
    },
    "wav2vec2-ctc": {
        "convolutions": (("waveform",), ("features",)),
        "encoder": (("features", "keep"), ("logits",)),
    },
    "wav2vec2-pretraining": {
        "convolutions": (("waveform",), ("features",)),
        "encoder": (("features", "spans", "negatives"), ("logits",)),
    },
}
"""The graphs of each family by name, with the tensors that go in and come out."""
LAYOUTS: Final = {
    "wav2vec": ("paper", "contrastive", "dense"),
    "wav2vec2-ctc": ("ctc",),
    "wav2vec2-pretraining": ("pretraining",),
}

# Bounds of what a manifest may ask for: far beyond what models need, and within a gigabyte.
_Count = Annotated[int, Range(1, 4096)]
_Fraction = Annotated[float, Range(0.0, 1.0)]
_MAX_FRAMES: Final = 65_536
_MAX_VALUES: Final = 2**27


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSpec(Section):
    """wav2vec v1: predictions of future frames against distractors.

    Attributes:
        n_steps: Future frames predicted from each frame.
        first_horizon: Frames from a context frame to the first one that it predicts.
        n_negatives: Distractors per frame in the layouts "paper" and "contrastive".
    """

    n_steps: _Count
    first_horizon: int
    n_negatives: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class DropoutSpec(Section):
    """wav2vec 2.0 and HuBERT: logits averaged over passes with dropout on the features.

    Attributes:
        probability: Probability that a feature value is dropped, 0 to 1.
        n_passes: Passes; 1 goes with probability 0.
        passes_per_run: Passes that one run of the encoder takes.
        channels: Channels of the features.
        dropped_columns: Columns of the logits that are ignored, such as those of <s> and </s>.
    """

    probability: _Fraction
    n_passes: _Count
    passes_per_run: _Count
    channels: Annotated[int, Range(1, 65_536)]
    dropped_columns: tuple[Annotated[int, Range(0, 1_000_000)], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingSpec(Section):
    """wav2vec 2.0's pretraining head: masked frames told from distractors.

    Attributes:
        probability: Fraction of frames that spans would cover if none overlapped, 0 to 1.
        span_frames: Length of a span.
        n_negatives: Distractors per masked frame, sampled from the other masked frames.
        n_passes: Passes, each with its own spans and distractors.
    """

    probability: _Fraction
    span_frames: int
    n_negatives: _Count
    n_passes: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintySpec(Section):
    """How a recording is fed to the model, and which measures are computed.

    Attributes:
        hop_samples: Samples from one feature frame to the next.
        receptive_samples: Receptive field of one feature frame, in samples.
        min_samples: Length of the shortest recording that can be scored.
        zero_pad_below_samples: A recording shorter than this gets as many zeros in front as it
            has samples, as in the published code; 0 for never.
        window_samples: Length of the longest chunk.
        normalised: Whether each chunk is normalised to zero mean and unit variance.
        layouts: Arrangements of logits into rows, for which measures are computed.
        measure: The measure that is reported as uncertainty, "LAYOUT.MEASURE".
        sign: 1 if the measure grows with uncertainty, -1 if it falls.
        seed: Seed of all random sampling.
        contrast: Settings of family "wav2vec".
        dropout: Settings of family "wav2vec2-ctc".
        masking: Settings of family "wav2vec2-pretraining".
        mos_map: Map from uncertainty to MOS, or None if none was fitted.
    """

    hop_samples: int
    receptive_samples: int
    min_samples: int
    zero_pad_below_samples: Annotated[int, Range(0, 1_000_000)]
    window_samples: Annotated[int, Range(1, 16_000_000)]
    normalised: bool
    layouts: tuple[str, ...]
    measure: str
    sign: Annotated[int, Range(-1, 1)]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    contrast: ContrastSpec | None = None
    dropout: DropoutSpec | None = None
    masking: MaskingSpec | None = None
    mos_map: MosMap | None = None

    def check(self, where: str) -> None:
        """Raises BundleError if the fields contradict one another, or ask for too much memory."""
        if self.sign == 0:
            raise manifest_error(f"{where}.sign must be 1 or -1")
        if self.measure not in self.names():
            names = ", ".join(self.names())
            raise manifest_error(f"{where}.measure {self.measure!r} is none of {names}")
        # Each half of a recording cut in two must be long enough.
        if self.min_samples < self.receptive_samples or self.window_samples < 4 * self.min_samples:
            raise manifest_error(
                f"{where}.min_samples must be at least receptive_samples and at most a quarter of "
                "window_samples"
            )
        # Values that exist at once for each frame of a chunk.
        per_frame = 1
        if self.contrast is not None:
            per_frame = self.contrast.n_steps * (1 + self.contrast.n_negatives)
        if self.dropout is not None:
            per_frame = self.dropout.passes_per_run * self.dropout.channels
        if self.masking is not None:
            per_frame = self.masking.n_negatives
        n_frames = self.window_samples // self.hop_samples
        if n_frames > _MAX_FRAMES or n_frames * per_frame > _MAX_VALUES:
            raise manifest_error(
                f"{where}.window_samples or the numbers beside it ask for more memory than mosrt "
                "uses; get the bundle from a source you trust"
            )

    def n_frames(self, n_samples: int) -> int:
        """Feature frames of a chunk of `n_samples`."""
        return (n_samples - self.receptive_samples) // self.hop_samples + 1

    def check_family(self, family: str) -> None:
        """Raises BundleError unless layouts and sections are those of `family`."""
        sections = {
            "wav2vec": self.contrast,
            "wav2vec2-ctc": self.dropout,
            "wav2vec2-pretraining": self.masking,
        }
        if any((each is not None) != (name == family) for name, each in sections.items()):
            raise manifest_error(f"uncertainty does not fit family {family!r}")
        strange = set(self.layouts) - set(LAYOUTS[family])
        if strange or not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise manifest_error(
                f"uncertainty.layouts must be some of {', '.join(LAYOUTS[family])}, each once, not "
                f"{', '.join(self.layouts) or 'none'}"
            )

    def names(self) -> tuple[str, ...]:
        """Names of all measures, layout by layout: "dense.mean", "dense.std", ..."""
        return tuple(f"{layout}.{measure}" for layout in self.layouts for measure in MEASURES)


def stages_in_use(family: str, layouts: tuple[str, ...]) -> tuple[str, ...]:
    """The graphs that a model of `family` needs for measures of `layouts`, in order."""
    used = {"contrast": {"paper", "contrastive"}, "dense": {"dense"}}
    return tuple(each for each in STAGES[family] if each not in used or used[each] & set(layouts))
