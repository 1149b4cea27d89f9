"""Describes in a manifest how a recording is scored by a model's own uncertainty.

It is the section `uncertainty` of the manifest. The method is that of arXiv 2312.15616.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mosrt.errors import BundleError

from .fields import Fields
from .mos_map import MosMap

__all__ = [
    "MEASURES",
    "STAGES",
    "UNCERTAINTY_FAMILIES",
    "ContrastSpec",
    "DropoutSpec",
    "MaskingSpec",
    "UncertaintySpec",
]

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
_MAX_COUNT: Final = 4096
_MAX_WINDOW_SAMPLES: Final = 16_000_000
_MAX_FRAMES: Final = 65_536
_MAX_VALUES: Final = 2**27


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSpec:
    """wav2vec v1: predictions of future frames against distractors.

    Attributes:
        n_steps: Future frames predicted from each frame.
        first_horizon: Frames from a context frame to the first one that it predicts.
        n_negatives: Distractors per frame in the layouts "paper" and "contrastive".
    """

    n_steps: int
    first_horizon: int
    n_negatives: int

    @classmethod
    def from_dict(cls, value: object, where: str) -> ContrastSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        return cls(
            n_steps=fields.positive("n_steps", _MAX_COUNT),
            first_horizon=fields.positive("first_horizon"),
            n_negatives=fields.positive("n_negatives", _MAX_COUNT),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DropoutSpec:
    """wav2vec 2.0 and HuBERT: logits averaged over passes with dropout on the features.

    Attributes:
        probability: Probability that a feature value is dropped, 0 to 1.
        n_passes: Passes; 1 goes with probability 0.
        passes_per_run: Passes that one run of the encoder takes.
        channels: Channels of the features.
        dropped_columns: Columns of the logits that are ignored, such as those of <s> and </s>.
    """

    probability: float
    n_passes: int
    passes_per_run: int
    channels: int
    dropped_columns: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, value: object, where: str) -> DropoutSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        columns = fields.get("dropped_columns", list)
        if not all(type(column) is int and column >= 0 for column in columns):
            raise BundleError(
                f"manifest.json: {fields.path('dropped_columns')} must hold columns, not {columns}"
            )
        return cls(
            probability=_fraction(fields, "probability"),
            n_passes=fields.positive("n_passes", _MAX_COUNT),
            passes_per_run=fields.positive("passes_per_run", _MAX_COUNT),
            channels=fields.positive("channels", 16 * _MAX_COUNT),
            dropped_columns=tuple(columns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingSpec:
    """wav2vec 2.0's pretraining head: masked frames told from distractors.

    Attributes:
        probability: Fraction of frames that spans would cover if none overlapped, 0 to 1.
        span_frames: Length of a span.
        n_negatives: Distractors per masked frame, sampled from the other masked frames.
        n_passes: Passes, each with its own spans and distractors.
    """

    probability: float
    span_frames: int
    n_negatives: int
    n_passes: int

    @classmethod
    def from_dict(cls, value: object, where: str) -> MaskingSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        return cls(
            probability=_fraction(fields, "probability"),
            span_frames=fields.positive("span_frames"),
            n_negatives=fields.positive("n_negatives", _MAX_COUNT),
            n_passes=fields.positive("n_passes", _MAX_COUNT),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintySpec:
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
    zero_pad_below_samples: int
    window_samples: int
    normalised: bool
    layouts: tuple[str, ...]
    measure: str
    sign: int
    seed: int
    contrast: ContrastSpec | None = None
    dropout: DropoutSpec | None = None
    masking: MaskingSpec | None = None
    mos_map: MosMap | None = None

    @classmethod
    def from_dict(cls, value: object, where: str) -> UncertaintySpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = Fields(value, where)
        spec = cls(
            hop_samples=fields.positive("hop_samples"),
            receptive_samples=fields.positive("receptive_samples"),
            min_samples=fields.positive("min_samples"),
            zero_pad_below_samples=fields.integer("zero_pad_below_samples", 0, 1_000_000),
            window_samples=fields.positive("window_samples", _MAX_WINDOW_SAMPLES),
            normalised=fields.get("normalised", bool),
            layouts=fields.strings("layouts"),
            measure=fields.get("measure", str),
            sign=fields.integer("sign", -1, 1),
            seed=fields.integer("seed", 0, 2**63 - 1),
            contrast=fields.section("contrast", ContrastSpec.from_dict),
            dropout=fields.section("dropout", DropoutSpec.from_dict),
            masking=fields.section("masking", MaskingSpec.from_dict),
            mos_map=fields.section("mos_map", MosMap.from_dict),
        )
        spec._check(fields)
        return spec

    def _check(self, fields: Fields) -> None:
        if self.sign not in (-1, 1):
            raise BundleError(f"manifest.json: {fields.path('sign')} must be 1 or -1")
        layout, _, measure = self.measure.partition(".")
        if layout not in self.layouts or measure not in MEASURES:
            raise BundleError(
                f"manifest.json: {fields.path('measure')} {self.measure!r} is none of "
                f"{', '.join(self.names())}"
            )
        # Each half of a recording cut in two must be long enough.
        if self.min_samples < self.receptive_samples or self.window_samples < 4 * self.min_samples:
            raise BundleError(
                f"manifest.json: {fields.path('min_samples')} must be at least receptive_samples "
                "and at most a quarter of window_samples"
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
            raise BundleError(
                f"manifest.json: {fields.path('window_samples')} or the numbers beside it ask for "
                "more memory than mosrt uses; get the bundle from a source you trust"
            )

    def check_family(self, family: str) -> None:
        """Raises BundleError unless layouts and sections are those of `family`."""
        sections = {
            "wav2vec": self.contrast,
            "wav2vec2-ctc": self.dropout,
            "wav2vec2-pretraining": self.masking,
        }
        for name, section in sections.items():
            if (section is not None) != (name == family):
                raise BundleError(f"manifest.json: uncertainty does not fit family {family!r}")
        strange = set(self.layouts) - set(LAYOUTS[family])
        if strange or not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise BundleError(
                f"manifest.json: uncertainty.layouts must be some of {', '.join(LAYOUTS[family])}, "
                f"each once, not {', '.join(self.layouts) or 'none'}"
            )

    def names(self) -> tuple[str, ...]:
        """Names of all measures, layout by layout: "dense.mean", "dense.std", ..."""
        return tuple(f"{layout}.{measure}" for layout in self.layouts for measure in MEASURES)


def stages_in_use(family: str, layouts: tuple[str, ...]) -> tuple[str, ...]:
    """The graphs that a model of `family` needs for measures of `layouts`, in order."""
    idle = set()
    if family == "wav2vec":
        if not {"paper", "contrastive"} & set(layouts):
            idle.add("contrast")
        if "dense" not in layouts:
            idle.add("dense")
    return tuple(stage for stage in STAGES[family] if stage not in idle)


def _fraction(fields: Fields, name: str) -> float:
    return fields.number(name, 0.0, 1.0)
