"""Describes a model for the runtime: the manifest of a bundle as frozen dataclasses.

`Manifest.from_dict` checks a parsed `manifest.json` completely. `Manifest.to_dict` is its inverse.
Exporter and runtime share this definition of the schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

from .deviation_spec import DeviationSpec
from .domain_head import DomainHead
from .fields import Range, Section, manifest_error, parse
from .front_end_spec import FRONT_ENDS, GridSpec, MelSpec, SslSpec
from .uncertainty_spec import STAGES, UNCERTAINTY_FAMILIES, UncertaintySpec, stages_in_use

__all__ = ["FAMILIES", "SCHEMA_VERSION", "File", "Manifest", "Member", "TensorSpec", "Variant"]

SCHEMA_VERSION: Final = 1
FAMILIES: Final = ("fusion", "spec", "ssl", "segments", *UNCERTAINTY_FAMILIES)
_UPGRADE: Final = "upgrade with `pip install -U mosrt`"
_MAX_PATH_BYTES: Final = 1024
_MAX_NAME_BYTES: Final = 255
_GRAPH_SUFFIX: Final = ".onnx"
_Size = Annotated[int, Range(1, 2**31)]
# Fields that JSON leaves out where they have these values.
_LEFT_OUT: Final[dict[str, Any]] = {
    "uncertainty": None, "front_end": "numpy", "segment_hop_samples": 0, "segment_step_samples": 0,
    "segment_repeat": False, "heads": {}, "kind": None, "calibration": None, "fixed_batch": None,
    "deviation": None, "mos_range": (), "speech": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec(Section):
    """An input or output of the graph; a string in `shape` is a dynamic dimension."""

    name: str
    dtype: str
    shape: Annotated[tuple[_Size | str, ...], Range(0, 8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class File(Section):
    """A file of the bundle: relative POSIX path, SHA-256 in hex, and size in bytes.

    The path has no `.`, `..`, `:` or backslash, and no control characters.
    """

    path: str
    sha256: str
    bytes: Annotated[int, Range(1, 2**40)]

    def check(self, where: str) -> None:
        """Raises BundleError unless the path is plain and stays inside, and the hash is one."""
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or {"\\", ":"} & set(self.path):
            raise manifest_error(
                f"{where}.path is {self.path!r}, which leaves the bundle; get the bundle from a "
                "source you trust"
            )
        longest = max(len(part.encode()) for part in parts)
        too_long = longest > _MAX_NAME_BYTES or len(self.path.encode()) > _MAX_PATH_BYTES
        if too_long or "/".join(parts) != self.path:
            raise manifest_error(
                f"{where}.path is no plain path of at most {_MAX_PATH_BYTES} bytes, and "
                f"{_MAX_NAME_BYTES} bytes a name; export it again"
            )
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise manifest_error(f"{where}.sha256 is no SHA-256 in hex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Section):
    """One network of an ensemble (a fold): its graph, and its weights if in a separate file."""

    name: str
    graph: File
    weights: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """The graph, and the weights if they are in a separate file."""
        return (self.graph,) if self.weights is None else (self.graph, self.weights)

    def paths(self, directory: Path) -> tuple[Path, Path | None]:
        """The graph and the weights, if in a separate file, of a bundle in `directory`."""
        weights = None if self.weights is None else directory / self.weights.path
        return directory / self.graph.path, weights

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of the digests of its files, one after the other."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    def check(self, where: str) -> None:
        """Raises BundleError unless the graph's name says that it is ONNX; engines go by it."""
        if not self.graph.path.endswith(_GRAPH_SUFFIX):
            raise manifest_error(
                f"{where}.graph.path must end with {_GRAPH_SUFFIX}, not be {self.graph.path!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant(Section):
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
    members: Annotated[tuple[Member, ...], Range(1, 100)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header(Section):
    """What must be known before the other fields, which may be others in a newer schema."""

    schema_version: Annotated[int, Range(1, 2**53)]
    family: str

    def check(self, where: str) -> None:  # noqa: ARG002 - it is the whole manifest
        if self.schema_version > SCHEMA_VERSION:
            raise manifest_error(
                f"schema version {self.schema_version} is newer than this mosrt reads "
                f"({SCHEMA_VERSION}); {_UPGRADE}"
            )
        _check_known("family", self.family, FAMILIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Section):
    """The whole of `manifest.json`.

    Attributes:
        name: What the model is called in scores and tables.
        family: How inputs are made and outputs read; one of `FAMILIES`.
        sample_rate_hz: Sampling rate of the model's input.
        ssl: Waveform branch, or None if the family has none.
        mel: Spectrogram branch, or None if the family has none.
        domains: Data domains in the order of the columns of output "mos".
        default_domain: The domain scored when the caller names none; one of `all_domains`.
        inputs: Graph inputs; outputs: graph outputs. The first output is "mos", (batch, domains),
            unless the model scores by its uncertainty.
        variants: Precisions by name; "fp32" is the reference.
        grid: Views of the default crop plan; by default 2 to 8, one per 3 s.
        provenance: Source checkpoint, versions, licence and training data, for people to read.
        uncertainty: How a model scores by its own uncertainty, or None if it predicts MOS. The
            members of its variants are then the stages of `mosrt.bundle.uncertainty_spec.STAGES`.
        heads: Further domains, which the runtime computes from the outputs, by name.
        front_end: One of `FRONT_ENDS`: "numpy" if the runtime computes the networks' inputs, or
            "graph" if the graphs take crops of audio at `sample_rate_hz`, as `ssl` and `mel`
            describe them, and compute the rest. By default "numpy".
        mos_range: The smallest and the largest MOS, to which the runtime limits the score of each
            view in every domain of the graph, and intervals. () for no limits, as of graphs that
            have them.
        deviation: How the model predicts its own error, or None if it does not.
    """

    name: str
    family: str
    sample_rate_hz: Annotated[int, Range(4_000, 192_000)]
    ssl: SslSpec | None
    mel: MelSpec | None
    domains: tuple[str, ...]
    default_domain: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Annotated[Mapping[str, Variant], Range(1, 100)]
    grid: GridSpec = field(default_factory=GridSpec)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: UncertaintySpec | None = None
    heads: Annotated[Mapping[str, DomainHead], Range(0, 100)] = field(default_factory=dict)
    front_end: str = "numpy"
    mos_range: Annotated[tuple[float, ...], Range(0, 2)] = ()
    deviation: DeviationSpec | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def all_domains(self) -> tuple[str, ...]:
        """All data domains that can be scored for: those of the graph, then those of `heads`."""
        return (*self.domains, *self.heads)

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Checks a parsed manifest.json.

        Raises:
            BundleError: A field is missing or wrong, or the schema is newer than this mosrt.
        """
        parse(value, _Header, "")
        return parse(value, cls, "")

    def check(self, where: str) -> None:  # noqa: ARG002 - it is the whole manifest
        """Raises BundleError when fields that are each well formed contradict one another."""
        hop_samples = 0 if self.ssl is None else self.ssl.segment_hop_samples
        step_samples = 0 if self.ssl is None else self.ssl.segment_step_samples
        for name, present, families in (
            ("ssl", self.ssl is not None, ("fusion", "ssl", "segments")),
            (f"ssl.segment_hop_samples ({hop_samples})", hop_samples > 0, ("segments",)),
            (f"ssl.segment_step_samples ({step_samples})", step_samples > 0, ("segments",)),
            ("mel", self.mel is not None, ("fusion", "spec")),
            ("uncertainty", self.uncertainty is not None, UNCERTAINTY_FAMILIES),
        ):
            if present != (self.family in families):
                raise manifest_error(f"{name} does not fit family {self.family!r}")
        if self.family == "segments" and self.front_end != "graph":
            raise manifest_error("family 'segments' needs front_end 'graph'")
        if not self.domains or len(set(self.all_domains)) != len(self.all_domains):
            raise manifest_error("domains and heads must be names, at least one, none twice")
        if self.default_domain not in self.all_domains:
            raise manifest_error(f"default_domain {self.default_domain!r} is not among domains")
        self._check_files()
        for kind, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({tensor.name for tensor in tensors}) != len(tensors):
                raise manifest_error(f"{kind} name a tensor twice")
        sizes = {} if self.uncertainty else {each.name: each.shape[1:] for each in self.outputs}
        for name, head in self.heads.items():
            if any((len(row),) != sizes.get(output) for output, row in head.weights.items()):
                raise manifest_error(f"heads.{name}.weights do not fit the columns of the outputs")
        if self.uncertainty is not None:
            if self.mos_range or self.deviation or self.grid.speech:
                raise manifest_error(
                    "mos_range, deviation and grid.speech are only for models that predict MOS"
                )
            self._check_stages(self.uncertainty)
            return
        self._check_inputs()
        if not self.outputs or self.outputs[0].shape[1:] != (len(self.domains),):
            raise manifest_error("the first output must be the scores, (batch, number of domains)")
        self._check_scores(sizes)

    def _check_files(self) -> None:
        """Raises BundleError if two entries contradict each other about a file or a folder."""
        files: dict[str, File] = {}
        for variant in self.variants.values():
            for file in variant.files:
                if files.setdefault(file.path, file) != file:
                    raise manifest_error(
                        f"{file.path!r} has two SHA-256s or sizes; export it again"
                    )
        for path in files:
            for folder in map(str, PurePosixPath(path).parents):
                if folder in files:
                    raise manifest_error(f"{folder!r} is both a file and a folder; export it again")

    def _check_inputs(self) -> None:
        """Raises BundleError unless the graph takes what the front end makes, or the crops."""
        _check_known("front_end", self.front_end, FRONT_ENDS)
        expected: dict[str, tuple[int | str, ...]] = {}
        if self.ssl is not None:
            crop_samples = self.ssl.crop_samples
            fixed = self.family != "segments" or self.ssl.segment_step_samples == crop_samples
            expected[self.ssl.tensor] = (crop_samples if fixed else "samples",)
            if self.ssl.segment_repeat and self.grid.speech:
                raise manifest_error("grid.speech does not go with ssl.segment_repeat")
        if (mel := self.mel) is not None:
            images = (mel.n_crops * len(mel.windows), mel.image_height, mel.image_width)
            crops = (mel.n_crops, mel.crop_samples)
            if mel.tensor in expected:
                raise manifest_error(f"ssl and mel have one tensor, {mel.tensor!r}")
            expected[mel.tensor] = crops if self.front_end == "graph" else images
            if 2 * mel.f_max_hz > self.sample_rate_hz:
                raise manifest_error(
                    f"mel.f_max_hz is {mel.f_max_hz:g}, more than half of sample_rate_hz "
                    f"({self.sample_rate_hz})"
                )
        declared = {tensor.name: tensor.shape[1:] for tensor in self.inputs}
        if declared != expected:
            raise manifest_error(
                f"inputs {declared} contradict the front end, which makes {expected}"
            )

    def _check_scores(self, sizes: Mapping[str, tuple[int | str, ...]]) -> None:
        """Raises BundleError unless range and deviations fit the outputs, of which sizes are."""
        if self.mos_range and not self.mos_range[0] < self.mos_range[-1]:
            raise manifest_error("mos_range must be the smallest and the largest MOS")
        if (spec := self.deviation) is not None:
            if sizes.get(spec.tensor) != (len(spec.domains),):
                raise manifest_error("deviation.tensor must be an output, (batch, its domains)")
            if not set(spec.domains) <= set(self.domains):
                raise manifest_error("deviation.domains must be among domains")

    def _check_stages(self, uncertainty: UncertaintySpec) -> None:
        """Raises BundleError unless graphs and tensors are those that the runtime will use."""
        uncertainty.check_family(self.family)
        stages = stages_in_use(self.family, uncertainty.layouts)
        for name, variant in self.variants.items():
            found = tuple(member.name for member in variant.members)
            if found != stages:
                raise manifest_error(
                    f"variants.{name} must have the graphs {', '.join(stages)}, not "
                    f"{', '.join(found)}"
                )
        declared = {tensor.name for tensor in (*self.inputs, *self.outputs)}
        for stage in stages:
            for names in STAGES[self.family][stage]:
                if missing := [name for name in names if name not in declared]:
                    raise manifest_error(f"tensor {missing[0]!r} is missing from inputs, outputs")

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `from_dict` reads back to an equal manifest."""
        plain = dataclasses.asdict(self, dict_factory=_object)
        return {"schema_version": plain.pop("schema_version"), **plain}


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in members if value != _LEFT_OUT.get(name, ...)}


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise manifest_error(
            f"{field} {value!r} is unknown to this mosrt (known: {', '.join(known)}); {_UPGRADE}"
        )
