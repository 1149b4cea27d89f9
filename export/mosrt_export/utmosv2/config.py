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
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_type_hints

from mosrt.bundle.fields import Range, Section, manifest_error, parse
from mosrt.bundle.front_end_spec import MelSpec
from mosrt.errors import BundleError
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

_MAX_SPECTRA: Final = 1 << 27  # values in the spectra of a crop, which take memory
_CropSamples = Annotated[int, Range(1, 2_000_000)]
_Heads = Annotated[int, Range(1, 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(Section):
    """The SSL encoder, built from its configuration class without a download.

    Attributes:
        model_type: Name of the architecture in transformers ("wav2vec2", "hubert", "wavlm", …).
        overrides: Values of the architecture's configuration class that differ from its defaults.
    """

    model_type: str = "wav2vec2"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SslConfig(Section):
    """The waveform branch.

    Attributes:
        crop_samples: Samples of one crop (3 s at 16 kHz in the published model).
        epsilon: Added to the variance when a crop is normalised.
        attention_heads: Heads of the attention over time.
        encoder: The SSL encoder.
    """

    crop_samples: _CropSamples = 48_000
    epsilon: Annotated[float, Range(1e-30, 1.0)] = 1e-7
    attention_heads: _Heads = 8
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrogramConfig(Section):
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
    attention_heads: _Heads = 8
    crop_samples: _CropSamples = 22_400
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
        values = {**dataclasses.asdict(self), "windows": list(self.windows)}
        values |= {"tensor": "images", "image_height": self.n_mels}
        return parse(values, MelSpec, "spectrogram")

    def check(self, where: str) -> None:
        """Raises BundleError for images that the runtime refuses, or whose spectra are large."""
        if self.crop_samples * self.n_fft / self.hop_length > _MAX_SPECTRA:
            raise manifest_error(
                f"crop_samples / hop_length * n_fft of {where} must be at most {_MAX_SPECTRA}"
            )
        _ = self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Section):
    """Everything about a model that its checkpoint does not contain.

    Attributes:
        name: Name of the model in the bundle.
        kind: One of `Kind`; None reads it from the checkpoint.
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
    kind: str | None = None
    sample_rate_hz: Annotated[int, Range(1, 384_000)] = 16_000
    domains: tuple[str, ...] | None = None
    default_domain: str | None = None
    licence: Any = None
    training_data: Any = None
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
        _check_keys(values, cls, "")
        encoder = dict(values.get("ssl", {}).get("encoder", {}))
        # Keys of the encoder belong to transformers and are checked where the encoder is built.
        own = {"model_type": encoder.pop("model_type", None), "overrides": encoder}
        try:
            return parse({**values, "ssl": {**values.get("ssl", {}), "encoder": own}}, cls, "")
        except BundleError as exc:  # which would be right for the same field of a manifest
            cure = "lower n_crops, crop_samples, n_fft, n_mels or image_width, or raise hop_length"
            text = str(exc).replace("get the bundle from a source you trust", cure)
            raise ConfigError(text.removeprefix("manifest.json: ")) from exc

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values including defaults, which `from_dict` reads back."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))  # with lists for tuples
        encoder = plain["ssl"]["encoder"]
        encoder.update(encoder.pop("overrides"))
        return {key: value for key, value in plain.items() if value is not None}

    def check(self, where: str) -> None:  # noqa: ARG002
        """Raises BundleError for values that are right alone and describe no model together."""
        if self.kind not in (None, *get_args(Kind)):
            raise manifest_error(
                f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}"
            )
        for key, text in (("licence", self.licence), ("training_data", self.training_data)):
            if not isinstance(text, str | None):  # of any length and number of lines
                raise manifest_error(f"{key} must be str, not {type(text).__name__}")
        if self.spectrogram.f_max_hz > self.sample_rate_hz / 2:
            raise manifest_error(
                "spectrogram.f_max_hz must be at most sample_rate_hz / 2, not "
                f"{self.spectrogram.f_max_hz} at {self.sample_rate_hz} Hz"
            )
        domains = PUBLISHED_DOMAINS if self.domains is None else self.domains
        if not domains or len(set(domains)) != len(domains):
            raise manifest_error("domains must be at least one name, without repetition")
        if self.default_domain is not None and self.default_domain not in domains:
            raise manifest_error(
                f"default_domain {self.default_domain!r} is not among domains: {', '.join(domains)}"
            )


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint for an unknown key: the most similar known key, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def _check_keys(values: Mapping[str, Any], kind: type[Section], where: str) -> None:
    """Raises ConfigError for a key of a TOML table, named `where`, that `kind` does not have."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown key {path!r}; {did_you_mean(key, hints)}")
        if isinstance(hints[key], type) and issubclass(hints[key], Section):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path} must be a table: write [{path}] above its keys")
            if hints[key] is not EncoderConfig:
                _check_keys(value, hints[key], path)
