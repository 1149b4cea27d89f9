"""Describes a model for the runtime: the manifest of a bundle as frozen dataclasses.

`Manifest.from_dict` checks a parsed `manifest.json` completely. `Manifest.to_dict` is its inverse.
Exporter and runtime share this definition of the schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from mosrt.errors import BundleError

from .fields import Fields as _Fields
from .front_end_spec import FRONT_ENDS, GridSpec, MelSpec, SslSpec
from .uncertainty_spec import STAGES, UNCERTAINTY_FAMILIES, UncertaintySpec, stages_in_use

__all__ = [
    "FAMILIES",
    "SCHEMA_VERSION",
    "File",
    "Manifest",
    "Member",
    "TensorSpec",
    "Variant",
]

SCHEMA_VERSION: Final = 1
FAMILIES: Final = ("fusion", "spec", "ssl", "segments", *UNCERTAINTY_FAMILIES)
_SAMPLE_RATES_HZ: Final = (4_000, 192_000)
_MAX_BYTES: Final = 2**40
_MAX_MEMBERS: Final = 100
_MAX_VARIANTS: Final = 100
_MAX_SIZE: Final = 2**31
_MAX_AXES: Final = 8
_MAX_PATH_BYTES: Final = 1024
_MAX_NAME_BYTES: Final = 255
_GRAPH_SUFFIX: Final = ".onnx"


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
        if len(shape) > _MAX_AXES or not all(
            isinstance(size, str) or (type(size) is int and 0 < size <= _MAX_SIZE) for size in shape
        ):
            raise BundleError(
                f"manifest.json: {fields.path('shape')} must hold sizes and names, not {shape}"
            )
        return cls(name=fields.get("name", str), dtype=fields.get("dtype", str), shape=tuple(shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the bundle: relative POSIX path, SHA-256 in hex, and size in bytes.

    The path has no `.`, `..`, `:` or backslash, and no control characters.
    """

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
        longest = max(len(part.encode()) for part in parts)
        if (
            "/".join(parts) != path
            or len(path.encode()) > _MAX_PATH_BYTES
            or longest > _MAX_NAME_BYTES
        ):
            raise BundleError(
                f"manifest.json: {fields.path('path')} is no plain path of at most "
                f"{_MAX_PATH_BYTES} bytes, and {_MAX_NAME_BYTES} bytes a name; export it again"
            )
        sha256 = fields.get("sha256", str)
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BundleError(f"manifest.json: {fields.path('sha256')} is no SHA-256 in hex")
        return cls(path=path, sha256=sha256, bytes=fields.positive("bytes", _MAX_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network of an ensemble (a fold): its graph, and its weights if in a separate file."""

    name: str
    graph: File
    weights: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """The graph, and the weights if they are in a separate file."""
        return (self.graph,) if self.weights is None else (self.graph, self.weights)

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of the digests of its files, one after the other."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    @classmethod
    def from_dict(cls, value: object, where: str) -> Member:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        graph = File.from_dict(fields.optional("graph"), fields.path("graph"))
        if not graph.path.endswith(_GRAPH_SUFFIX):  # engines choose the format by it
            raise BundleError(
                f"manifest.json: {fields.path('graph')}.path must end with {_GRAPH_SUFFIX}, "
                f"not be {graph.path!r}"
            )
        return cls(
            name=fields.get("name", str),
            graph=graph,
            weights=fields.section("weights", File.from_dict),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One precision of the model.

    Attributes:
        opset: ONNX opset of the graphs.
        members: The networks of the ensemble; at least one.
        drift: Measured differences against the reference the variant was made from, by name.
        kind: Numeric precision of the graphs, such as "float16", "qdq-u8s8" or "qdq-u8s7" (7-bit
            weights); None for float32.
        calibration: How the variant was calibrated, for people to read; None if it was not.
        fixed_batch: Views per run for which results are batch-invariant; None if they always are.
    """

    opset: int
    members: tuple[Member, ...]
    drift: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    calibration: Mapping[str, Any] | None = None
    fixed_batch: int | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """All files of all members."""
        return tuple(file for member in self.members for file in member.files)

    @property
    def sums_fit(self) -> bool:
        """Whether sums of two 8-bit products fit into 16 bits, as older x86-64 CPUs need."""
        return self.kind is not None and self.kind.startswith("qdq-u8s7")

    @classmethod
    def from_dict(cls, value: object, where: str) -> Variant:
        """Checks a JSON value found at `where` in the manifest; BundleError if it is wrong."""
        fields = _Fields(value, where)
        members = fields.get("members", list)
        if not members:
            raise BundleError(f"manifest.json: {fields.path('members')} is empty")
        if len(members) > _MAX_MEMBERS:
            raise BundleError(
                f"manifest.json: {fields.path('members')} are more than {_MAX_MEMBERS}"
            )

        def given(name: str) -> bool:
            return fields.optional(name) is not None

        return cls(
            opset=fields.positive("opset"),
            members=tuple(
                Member.from_dict(member, f"{fields.path('members')}[{i}]")
                for i, member in enumerate(members)
            ),
            drift=fields.get("drift", dict, {}),
            kind=fields.get("kind", str) if given("kind") else None,
            calibration=fields.get("calibration", dict) if given("calibration") else None,
            fixed_batch=fields.positive("fixed_batch") if given("fixed_batch") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `manifest.json`.

    Attributes:
        name: What the model is called in scores and tables.
        family: How inputs are made and outputs read; one of `FAMILIES`.
        sample_rate_hz: Sampling rate of the model's input.
        ssl: Waveform branch, or None if the family has none.
        mel: Spectrogram branch, or None if the family has none.
        domains: Data domains in the order of the columns of output "mos".
        default_domain: The domain scored when the caller names none.
        inputs: Graph inputs; outputs: graph outputs. The first output is "mos", (batch, domains),
            unless the model scores by its uncertainty.
        variants: Precisions by name; "fp32" is the reference.
        grid: Views of the default crop plan; by default 2 to 8, one per 3 s.
        provenance: Source checkpoint, versions, licence and training data, for people to read.
        uncertainty: How a model scores by its own uncertainty, or None if it predicts MOS. The
            members of its variants are then the stages of `mosrt.bundle.uncertainty_spec.STAGES`.
        front_end: One of `FRONT_ENDS`: "numpy" if the runtime computes the networks' inputs, or
            "graph" if the graphs take crops of audio at `sample_rate_hz`, as `ssl` and `mel`
            describe them, and compute the rest. By default "numpy".
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
    grid: GridSpec = field(default_factory=GridSpec)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: UncertaintySpec | None = None
    front_end: str = "numpy"
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Checks a parsed manifest.json.

        Raises:
            BundleError: A field is missing or wrong, or the schema is newer than this mosrt.
        """
        fields = _Fields(value, "")
        version = fields.positive("schema_version", 2**53)
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
        variants = _Fields(fields.optional("variants"), "variants").items()
        if len(variants) > _MAX_VARIANTS:
            raise BundleError(f"manifest.json: variants are more than {_MAX_VARIANTS}")
        manifest = cls(
            name=fields.get("name", str),
            family=family,
            sample_rate_hz=fields.integer("sample_rate_hz", *_SAMPLE_RATES_HZ),
            ssl=fields.section("ssl", SslSpec.from_dict),
            mel=fields.section("mel", MelSpec.from_dict),
            domains=fields.strings("domains"),
            default_domain=fields.get("default_domain", str),
            inputs=_tensors(fields, "inputs"),
            outputs=_tensors(fields, "outputs"),
            variants={
                name: Variant.from_dict(variant, f"variants.{name}") for name, variant in variants
            },
            grid=fields.section("grid", GridSpec.from_dict) or GridSpec(),
            provenance=fields.get("provenance", dict, {}),
            uncertainty=fields.section("uncertainty", UncertaintySpec.from_dict),
            front_end=fields.get("front_end", str, "numpy"),
            schema_version=version,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raises BundleError when fields that are each well formed contradict one another."""
        if (self.ssl is not None) != (self.family in ("fusion", "ssl", "segments")):
            raise BundleError(f"manifest.json: ssl does not fit family {self.family!r}")
        hop_samples = self.ssl.segment_hop_samples if self.ssl is not None else 0
        if (hop_samples > 0) != (self.family == "segments"):
            raise BundleError(
                f"manifest.json: ssl.segment_hop_samples ({hop_samples}) does not fit family "
                f"{self.family!r}"
            )
        if self.family == "segments" and self.front_end != "graph":
            raise BundleError("manifest.json: family 'segments' needs front_end 'graph'")
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
        self._check_files()
        for kind, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({tensor.name for tensor in tensors}) != len(tensors):
                raise BundleError(f"manifest.json: {kind} name a tensor twice")
        if (self.uncertainty is not None) != (self.family in UNCERTAINTY_FAMILIES):
            raise BundleError(f"manifest.json: uncertainty does not fit family {self.family!r}")
        if self.uncertainty is not None:
            self._check_stages(self.uncertainty)
            return
        self._check_inputs()
        if not self.outputs or self.outputs[0].shape[1:] != (len(self.domains),):
            raise BundleError(
                "manifest.json: the first output must be the scores, (batch, number of domains)"
            )

    def _check_files(self) -> None:
        """Raises BundleError if two entries contradict each other about a file or a folder."""
        files: dict[str, File] = {}
        for variant in self.variants.values():
            for file in variant.files:
                if files.setdefault(file.path, file) != file:
                    raise BundleError(
                        f"manifest.json: {file.path!r} has two SHA-256s or sizes; export it again"
                    )
        for path in files:
            for folder in map(str, PurePosixPath(path).parents):
                if folder in files:
                    raise BundleError(
                        f"manifest.json: {folder!r} is both a file and a folder; export it again"
                    )

    def _check_inputs(self) -> None:
        """Raises BundleError unless the graph takes what the front end makes, or the crops."""
        if self.front_end not in FRONT_ENDS:
            raise BundleError(
                f"manifest.json: front_end {self.front_end!r} is unknown to this mosrt "
                f"(known: {', '.join(FRONT_ENDS)}); upgrade with `pip install -U mosrt`"
            )
        expected: dict[str, tuple[int | str, ...]] = {}
        if self.ssl is not None:
            expected[self.ssl.tensor] = (self.ssl.crop_samples,)
        if (mel := self.mel) is not None:
            images = (mel.n_crops * len(mel.windows), mel.image_height, mel.image_width)
            crops = (mel.n_crops, mel.crop_samples)
            expected[mel.tensor] = crops if self.front_end == "graph" else images
            if 2 * mel.f_max_hz > self.sample_rate_hz:
                raise BundleError(
                    f"manifest.json: mel.f_max_hz is {mel.f_max_hz:g}, more than half of "
                    f"sample_rate_hz ({self.sample_rate_hz})"
                )
            if self.ssl is not None and self.ssl.tensor == mel.tensor:
                raise BundleError(f"manifest.json: ssl and mel have one tensor, {mel.tensor!r}")
        declared = {tensor.name: tensor.shape[1:] for tensor in self.inputs}
        if declared != expected:
            raise BundleError(
                f"manifest.json: inputs {declared} contradict the front end, which makes {expected}"
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
        if self.front_end == "numpy":
            del plain["front_end"]
        if self.ssl is not None and not self.ssl.segment_hop_samples:
            del plain["ssl"]["segment_hop_samples"]
        for variant in plain["variants"].values():
            for name in ("kind", "calibration", "fixed_batch"):
                if variant[name] is None:
                    del variant[name]
        return {"schema_version": plain.pop("schema_version"), **plain}


def _tensors(fields: _Fields, name: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec.from_dict(tensor, f"{name}[{i}]")
        for i, tensor in enumerate(fields.get(name, list))
    )
