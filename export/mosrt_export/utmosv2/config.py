"""Describes the architecture of a UTMOSv2-like model, and reads it from TOML.

The defaults are those of the published model. A file names only what differs::

    domains = ["ours"]

    [ssl.encoder]
    model_type = "wavlm"
    hidden_size = 1024

    [spectrogram]
    backbone = "tf_efficientnetv2_b0"
    windows = [2048, 512]
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from mosrt.bundle.front_end_spec import MelSpec
from mosrt_export.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "PUBLISHED_DOMAINS",
    "EncoderConfig",
    "Kind",
    "ModelConfig",
    "SpectrogramConfig",
    "SslConfig",
    "did_you_mean",
]

Kind: TypeAlias = Literal["fusion", "spec", "ssl"]

PUBLISHED_DOMAINS: Final = (
    "bvcc",
    "sarulab",
    "blizzard2008",
    "blizzard2009",
    "blizzard2010-EH1",
    "blizzard2010-EH2",
    "blizzard2010-ES1",
    "blizzard2010-ES3",
    "blizzard2011",
    "somos",
)

_MAX_CROP_SAMPLES: Final = 2_000_000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The SSL encoder, built from its configuration class without a download.

    Attributes:
        model_type: Name of the architecture in transformers ("wav2vec2", "hubert", "wavlm", …).
        overrides: Values of the architecture's configuration class that differ from its defaults.
    """

    model_type: str = "wav2vec2"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SslConfig:
    """The waveform branch.

    Attributes:
        crop_samples: Samples of one crop (3 s at 16 kHz in the published model).
        epsilon: Added to the variance when a crop is normalised.
        attention_heads: Heads of the attention over time.
        encoder: The SSL encoder.
    """

    crop_samples: int = 48_000
    epsilon: float = 1e-7
    attention_heads: int = 8
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrogramConfig:
    """The spectrogram branch and its input images.

    Attributes:
        backbone: Name of the network in timm, which must return a feature map (rows, columns). The
            branch has one copy per window.
        attention_heads: Heads of the attention over the rows (frequency).
        crop_samples: Samples of one crop (1.4 s at 16 kHz in the published model).
        n_crops: Crops per prediction.
        n_fft: FFT size in samples.
        hop_length: Hop in samples.
        n_mels: Mel bands, which are also the rows of the image.
        windows: Lengths of the Hann windows in samples; each gives one image.
        f_min_hz: Lowest frequency of the mel filter bank.
        f_max_hz: Highest frequency of the mel filter bank.
        floor_db: Dynamic range in dB below the maximum of the crop.
        image_width: Columns of the image after resizing along time.
    """

    backbone: str = "tf_efficientnetv2_s.in21k_ft_in1k"
    attention_heads: int = 8
    crop_samples: int = 22_400
    n_crops: int = 2
    n_fft: int = 4096
    hop_length: int = 32
    n_mels: int = 512
    windows: tuple[int, ...] = (4096, 2048, 1024, 512)
    f_min_hz: float = 0.0
    f_max_hz: float = 8000.0
    floor_db: float = 80.0
    image_width: int = 512

    @property
    def images(self) -> MelSpec:
        """The images as the runtime's front end computes them."""
        values = dataclasses.asdict(self)
        del values["backbone"], values["attention_heads"]
        return MelSpec(tensor="images", image_height=self.n_mels, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything about a model that its checkpoint does not contain.

    Attributes:
        name: Name of the model in the bundle.
        kind: "fusion", "spec" or "ssl"; None reads it from the checkpoint.
        sample_rate_hz: Sample rate of the model's input.
        domains: Data domains in the order of training, or None for the published ten.
        default_domain: The domain that is used if a caller names none; None means "sarulab" if
            there is such a domain, else the first.
        licence: Licence of the weights, for the manifest and the model card; None means that of the
            published weights for those, and unknown for others.
        training_data: What the model was trained on; None as for `licence`.
        ssl: The waveform branch.
        spectrogram: The spectrogram branch.
    """

    name: str = "utmosv2"
    kind: Kind | None = None
    sample_rate_hz: int = 16_000
    domains: tuple[str, ...] | None = None
    default_domain: str | None = None
    licence: str | None = None
    training_data: str | None = None
    ssl: SslConfig = field(default_factory=SslConfig)
    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)

    @classmethod
    def from_toml(cls, path: Path) -> ModelConfig:
        """Reads a configuration file.

        Raises:
            ConfigError: The file cannot be read, or a key is unknown, of the wrong type or out of
                range.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"{path}: cannot read the configuration ({exc.strerror})") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: not valid TOML ({exc})") from exc
        try:
            return cls.from_dict(values)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc}") from exc

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Builds a configuration from parsed TOML.

        Raises:
            ConfigError: A key is unknown, of the wrong type or out of range.
        """
        config = _build(cls, values, "")
        config._check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values including defaults, which `from_dict` reads back."""
        plain = dataclasses.asdict(self)
        encoder = plain["ssl"]["encoder"]
        encoder.update(encoder.pop("overrides"))
        return cast("dict[str, Any]", _without_none(plain))

    def _check(self) -> None:
        """Raises ConfigError for values of the right type that describe no model."""
        ssl, spec = self.ssl, self.spectrogram
        for key, value, largest in (
            ("sample_rate_hz", self.sample_rate_hz, 384_000),
            ("ssl.crop_samples", ssl.crop_samples, _MAX_CROP_SAMPLES),
            ("ssl.epsilon", ssl.epsilon, 1),
            ("ssl.attention_heads", ssl.attention_heads, 1024),
            ("spectrogram.attention_heads", spec.attention_heads, 1024),
            ("spectrogram.crop_samples", spec.crop_samples, _MAX_CROP_SAMPLES),
            ("spectrogram.n_crops", spec.n_crops, 64),
            ("spectrogram.n_fft", spec.n_fft, 65_536),
            ("spectrogram.hop_length", spec.hop_length, 65_536),
            ("spectrogram.n_mels", spec.n_mels, 2048),
            ("spectrogram.floor_db", spec.floor_db, 1000),
            ("spectrogram.image_width", spec.image_width, 2048),
            ("the number of spectrogram.windows", len(spec.windows), 16),
            # Each frame has a spectrum, which takes memory.
            ("crop_samples / hop_length * n_fft of spectrogram",
             spec.crop_samples * spec.n_fft / max(spec.hop_length, 1), 1 << 27),
        ):  # fmt: skip
            if not 0 < value <= largest:  # nan is refused, too
                raise ConfigError(f"{key} must be positive and at most {largest}, not {value}")
        if not all(0 < w <= spec.n_fft for w in spec.windows):
            raise ConfigError(
                f"spectrogram.windows must be lengths from 1 to n_fft ({spec.n_fft}), "
                f"not {list(spec.windows)}"
            )
        if not 0 <= spec.f_min_hz < spec.f_max_hz <= self.sample_rate_hz / 2:
            raise ConfigError(
                "spectrogram needs 0 <= f_min_hz < f_max_hz <= sample_rate_hz / 2, not "
                f"{spec.f_min_hz} and {spec.f_max_hz} at {self.sample_rate_hz} Hz"
            )
        if self.domains is not None:
            if not self.domains or len(set(self.domains)) != len(self.domains):
                raise ConfigError("domains must be at least one name, without repetition")
            if self.default_domain is not None and self.default_domain not in self.domains:
                raise ConfigError(
                    f"default_domain {self.default_domain!r} is not among domains: "
                    f"{', '.join(self.domains)}"
                )


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint for an unknown key: the most similar known key, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def _build(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    """Builds the dataclass `kind` from a TOML table; `where` is the table's dotted name."""
    hints = get_type_hints(kind)
    if kind is EncoderConfig:
        # Keys of the encoder belong to transformers and are checked where the encoder is built.
        known = {"model_type": values["model_type"]} if "model_type" in values else {}
        rest = {key: value for key, value in values.items() if key != "model_type"}
        values = {**known, "overrides": rest}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown key {path!r}; {did_you_mean(key, hints)}")
        arguments[key] = _typed(value, hints[key], path)
    return kind(**arguments)


def _typed(value: Any, hint: Any, path: str) -> Any:
    """Checks that `value` has the type `hint`; `path` is the key for the error."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a table: write [{path}] above its keys")
        return _build(cast("type[Any]", hint), value, path)
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (option for option in get_args(hint) if option is not type(None))
        return _typed(value, hint, path)
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{path} must be one of {', '.join(get_args(hint))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path} must be a list, not {type(value).__name__}")
        return tuple(
            _typed(item, get_args(hint)[0], f"{path}[{i}]") for i, item in enumerate(value)
        )
    if origin is not None:
        return dict(value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} must be {hint.__name__}, not {type(value).__name__}")
    return value


def _without_none(value: Any) -> Any:
    """Removes keys whose value is None, because TOML has no null."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple):
        return [_without_none(item) for item in value]
    return value
