"""Manifest: everything the runtime must know about a model, as frozen dataclasses.

`Manifest.from_dict` checks a parsed `manifest.json` completely, and `Manifest.to_dict` is its
exact inverse, so that exporter and runtime share one definition of the schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from .errors import BundleError
from .manifest_fields import Fields as _Fields
from .uncertainty_spec import STAGES, UNCERTAINTY_FAMILIES, UncertaintySpec, stages_in_use

__all__ = [
    "FAMILIES",
    "SCHEMA_VERSION",
    "File",
    "GridSpec",
    "Manifest",
    "MelSpec",
    "Member",
    "SslSpec",
    "TensorSpec",
    "Variant",
]

SCHEMA_VERSION: Final = 1
FAMILIES: Final = ("fusion", "spec", "ssl", *UNCERTAINTY_FAMILIES)

_VIEW_EVERY_S: Final = (0.1, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SslSpec:
    """What the waveform branch reads.

    Attributes:
        tensor: Name of the graph's input, (batch, crop_samples) float32.
        crop_samples: Length of one crop in samples.
        epsilon: Added to the variance in `(x - mean) / sqrt(var + epsilon)`.
    """

    tensor: str
    crop_samples: int
    epsilon: float

    @classmethod
    def from_dict(cls, value: object, where: str) -> SslSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        return cls(
            tensor=fields.get("tensor", str),
            crop_samples=fields.positive("crop_samples"),
            epsilon=fields.get("epsilon", float),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSpec:
    """What the spectrogram branch reads: several log-mel images of each of several crops.

    Attributes:
        tensor: Name of the graph's input, (batch, n_crops * len(windows), image_height,
            image_width) float32 in [0, 1]; crop-major, then window.
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
        fields = _Fields(value, where)
        windows = fields.get("windows", list)
        spec = cls(
            tensor=fields.get("tensor", str),
            crop_samples=fields.positive("crop_samples"),
            n_crops=fields.positive("n_crops"),
            n_fft=fields.positive("n_fft"),
            hop_length=fields.positive("hop_length"),
            n_mels=fields.positive("n_mels"),
            windows=tuple(windows),
            f_min_hz=fields.get("f_min_hz", float),
            f_max_hz=fields.get("f_max_hz", float),
            floor_db=fields.get("floor_db", float),
            image_height=fields.positive("image_height"),
            image_width=fields.positive("image_width"),
        )
        if not windows or not all(type(w) is int and 0 < w <= spec.n_fft for w in windows):
            raise BundleError(
                f"manifest.json: {fields.path('windows')} must be lengths from 1 to n_fft "
                f"({spec.n_fft}), not {windows}"
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
    """How densely the default crop plan looks: a view per `view_every_s` or part of it begun.

    Attributes:
        view_every_s: Length in seconds of recording that each view stands for.
        min_views: Views of the shortest recording; two are needed for an interval.
        max_views: Views of the longest recording.
    """

    view_every_s: float = 3.0
    min_views: int = 2
    max_views: int = 8

    @classmethod
    def from_dict(cls, value: object, where: str) -> GridSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        spec = cls(
            view_every_s=fields.get("view_every_s", float),
            min_views=fields.positive("min_views"),
            max_views=fields.positive("max_views"),
        )
        shortest_s, longest_s = _VIEW_EVERY_S
        if not shortest_s <= spec.view_every_s <= longest_s:
            raise BundleError(
                f"manifest.json: {fields.path('view_every_s')} must be from {shortest_s} to "
                f"{longest_s}, not {spec.view_every_s}"
            )
        if spec.max_views < spec.min_views:
            raise BundleError(
                f"manifest.json: {fields.path('max_views')} is {spec.max_views}, less than "
                f"min_views ({spec.min_views})"
            )
        return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output of the graph; a string in `shape` is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def from_dict(cls, value: object, where: str) -> TensorSpec:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        shape = fields.get("shape", list)
        if not all(isinstance(size, str) or (type(size) is int and size > 0) for size in shape):
            raise BundleError(
                f"manifest.json: {fields.path('shape')} must hold sizes and names, not {shape}"
            )
        return cls(name=fields.get("name", str), dtype=fields.get("dtype", str), shape=tuple(shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the bundle: relative POSIX path, SHA-256 in hex, and size in bytes."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def from_dict(cls, value: object, where: str) -> File:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        path = fields.get("path", str)
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
            raise BundleError(
                f"manifest.json: {fields.path('path')} is {path!r}, which leaves the bundle; "
                "get the bundle from a source you trust"
            )
        sha256 = fields.get("sha256", str)
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BundleError(f"manifest.json: {fields.path('sha256')} is no SHA-256 in hex")
        return cls(path=path, sha256=sha256, bytes=fields.positive("bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network of an ensemble (a fold): its graph, and its weights if they are a file apart."""

    name: str
    graph: File
    weights: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """The graph, and the weights if they are a file apart."""
        return (self.graph,) if self.weights is None else (self.graph, self.weights)

    @classmethod
    def from_dict(cls, value: object, where: str) -> Member:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        weights = fields.optional("weights")
        return cls(
            name=fields.get("name", str),
            graph=File.from_dict(fields.optional("graph"), fields.path("graph")),
            weights=None if weights is None else File.from_dict(weights, fields.path("weights")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One precision of the model.

    Attributes:
        opset: ONNX opset of the graphs.
        members: The networks of the ensemble; at least one.
        drift: Measured differences against the reference the variant was made from, by name.
    """

    opset: int
    members: tuple[Member, ...]
    drift: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[File, ...]:
        """All files of all members."""
        return tuple(file for member in self.members for file in member.files)

    @classmethod
    def from_dict(cls, value: object, where: str) -> Variant:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        members = fields.get("members", list)
        if not members:
            raise BundleError(f"manifest.json: {fields.path('members')} is empty")
        return cls(
            opset=fields.positive("opset"),
            members=tuple(
                Member.from_dict(member, f"{fields.path('members')}[{i}]")
                for i, member in enumerate(members)
            ),
            drift=fields.get("drift", dict, {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `manifest.json`.

    Attributes:
        name: What the model is called in scores and tables.
        family: How inputs are made and outputs read; one of `FAMILIES`.
        sample_rate_hz: Rate the model hears.
        ssl: Waveform branch, or None if the family has none.
        mel: Spectrogram branch, or None if the family has none.
        domains: Data domains in the order of the columns of output "mos".
        default_domain: The domain scored when the caller names none.
        inputs: Graph inputs; outputs: graph outputs. The first output is "mos", (batch, domains),
            unless the model scores by its uncertainty.
        variants: Precisions by name; "fp32" is the reference.
        grid: How densely the default crop plan looks; 2 to 8 views, one per 3 s, if left out.
        provenance: Source checkpoint, versions, licence and training data, for people to read.
        uncertainty: How a model scores by its own uncertainty, or None if it predicts MOS. The
            members of its variants are then the stages of `mosrt.uncertainty_spec.STAGES`.
    """

    name: str
    family: str
    sample_rate_hz: int
    ssl: SslSpec | None
    mel: MelSpec | None
    domains: tuple[str, ...]
    default_domain: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, Variant]
    grid: GridSpec = GridSpec()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: UncertaintySpec | None = None
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Checks a parsed manifest.json.

        Raises:
            BundleError: A field is missing or wrong, or the schema is newer than this mosrt.
        """
        fields = _Fields(value, "")
        version = fields.positive("schema_version")
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"manifest.json: schema version {version} is newer than this mosrt reads "
                f"({SCHEMA_VERSION}); upgrade with `pip install -U mosrt`"
            )
        family = fields.get("family", str)
        if family not in FAMILIES:
            raise BundleError(
                f"manifest.json: family {family!r} is unknown to this mosrt "
                f"(known: {', '.join(FAMILIES)}); upgrade with `pip install -U mosrt`"
            )
        ssl, mel, grid = (fields.optional(name) for name in ("ssl", "mel", "grid"))
        uncertainty = fields.optional("uncertainty")
        variants = _Fields(fields.optional("variants"), "variants")._value
        manifest = cls(
            name=fields.get("name", str),
            family=family,
            sample_rate_hz=fields.positive("sample_rate_hz"),
            ssl=None if ssl is None else SslSpec.from_dict(ssl, "ssl"),
            mel=None if mel is None else MelSpec.from_dict(mel, "mel"),
            domains=fields.strings("domains"),
            default_domain=fields.get("default_domain", str),
            inputs=_tensors(fields, "inputs"),
            outputs=_tensors(fields, "outputs"),
            variants={
                str(name): Variant.from_dict(variant, f"variants.{name}")
                for name, variant in variants.items()
            },
            grid=GridSpec() if grid is None else GridSpec.from_dict(grid, "grid"),
            provenance=fields.get("provenance", dict, {}),
            uncertainty=None
            if uncertainty is None
            else UncertaintySpec.from_dict(uncertainty, "uncertainty"),
            schema_version=version,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raises BundleError when fields that are each well formed contradict one another."""
        if (self.ssl is not None) != (self.family in ("fusion", "ssl")):
            raise BundleError(f"manifest.json: ssl does not fit family {self.family!r}")
        if (self.mel is not None) != (self.family in ("fusion", "spec")):
            raise BundleError(f"manifest.json: mel does not fit family {self.family!r}")
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise BundleError("manifest.json: domains must be names, at least one, none twice")
        if self.default_domain not in self.domains:
            raise BundleError(
                f"manifest.json: default_domain {self.default_domain!r} is not among domains"
            )
        if not self.variants:
            raise BundleError("manifest.json: variants is empty")
        if (self.uncertainty is not None) != (self.family in UNCERTAINTY_FAMILIES):
            raise BundleError(f"manifest.json: uncertainty does not fit family {self.family!r}")
        if self.uncertainty is not None:
            self._check_stages(self.uncertainty)
            return
        expected: dict[str, tuple[int | str, ...]] = {}
        if self.ssl is not None:
            expected[self.ssl.tensor] = (self.ssl.crop_samples,)
        if self.mel is not None:
            images = self.mel.n_crops * len(self.mel.windows)
            expected[self.mel.tensor] = (images, self.mel.image_height, self.mel.image_width)
        declared = {tensor.name: tensor.shape[1:] for tensor in self.inputs}
        if declared != expected:
            raise BundleError(
                f"manifest.json: inputs {declared} contradict the front end, which makes {expected}"
            )
        if not self.outputs or self.outputs[0].shape[1:] != (len(self.domains),):
            raise BundleError(
                "manifest.json: the first output must be the scores, (batch, number of domains)"
            )

    def _check_stages(self, uncertainty: UncertaintySpec) -> None:
        """Raises BundleError unless graphs and tensors are those that the runtime will use."""
        uncertainty.check_family(self.family)
        stages = stages_in_use(self.family, uncertainty.layouts)
        for name, variant in self.variants.items():
            found = tuple(member.name for member in variant.members)
            if found != stages:
                raise BundleError(
                    f"manifest.json: variants.{name} must have the graphs {', '.join(stages)}, "
                    f"not {', '.join(found)}"
                )
        declared = {tensor.name for tensor in (*self.inputs, *self.outputs)}
        wanted = [
            name for stage in stages for names in STAGES[self.family][stage] for name in names
        ]
        for name in wanted:
            if name not in declared:
                raise BundleError(f"manifest.json: tensor {name!r} is missing from inputs, outputs")

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `from_dict` reads back to an equal manifest."""
        plain = dataclasses.asdict(self)
        if self.uncertainty is None:
            del plain["uncertainty"]
        return {"schema_version": plain.pop("schema_version"), **plain}


def _tensors(fields: _Fields, name: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec.from_dict(tensor, f"{name}[{i}]")
        for i, tensor in enumerate(fields.get(name, list))
    )
