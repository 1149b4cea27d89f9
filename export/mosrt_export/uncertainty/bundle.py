"""Writes bundles of uncertainty models, after comparing their graphs with torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.bundle.writer import bundle_file, new_directory, write_card, write_manifest
from mosrt.uncertainty.family import Stages, load_stages
from mosrt_export.errors import ParityError
from mosrt_export.graphs.graph import OPSET
from mosrt_export.model_card import uncertainty_card
from mosrt_export.utmosv2.exporter import Step

__all__ = [
    "N_STEPS",
    "Drift",
    "GraphFiles",
    "StagedRequest",
    "keep_worst",
    "provenance",
    "write_bundle",
]

GraphFiles = tuple[Path, Path | None]
"""A graph, and its weights if they are a file apart."""

N_STEPS: Final = 4
"""Number of steps that an export announces, including reading the checkpoint."""
_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")
_UNKNOWN: Final = "unknown; whoever exported the model did not say"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRequest:
    """Options that the exports of all uncertainty models share.

    Attributes:
        name: Name of the model.
        measure: The measure that is used as the uncertainty, as the exporter names it.
        sign: 1 if the measure grows with uncertainty, -1 if it falls.
        seed: Seed of all random sampling.
        licence: Licence of the weights, for the model card.
        training_data: What the model was trained on, for the model card.
    """

    name: str
    measure: str
    sign: int
    seed: int = 0
    licence: str | None = None
    training_data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Largest relative differences between graphs and torch modules.

    Attributes:
        differences: Difference by tensor; nan where a value is not finite.
        n_clips: Number of clips compared.
        tolerance: The largest difference that passes.
    """

    differences: Mapping[str, float]
    n_clips: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether there is at least one comparison, and all agree."""
        values = self.differences.values()
        return bool(values) and all(value <= self.tolerance for value in values)

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest, rounded to two digits."""
        rounded: dict[str, Any] = {
            f"{name}_max_rel": float(f"{value:.2g}") for name, value in self.differences.items()
        }
        return {**rounded, "n_clips": self.n_clips, "against": "torch fp32"}

    def table(self) -> str:
        """A table with one line per tensor, which marks those that differ."""
        return "\n".join(
            f"{name:14} {value:9.1e}{'' if value <= self.tolerance else '  <- differs'}"
            for name, value in self.differences.items()
        )


def write_bundle(
    manifest: Manifest,
    out: Path,
    *,
    write: Callable[[Path], Mapping[str, GraphFiles]],
    compare: Callable[[Stages], Mapping[str, float]],
    n_clips: int,
    tolerance: float,
    step: Step,
    force: bool,
) -> Drift:
    """Writes graphs, compares them through the runtime, and writes the bundle.

    Args:
        manifest: The manifest without variants.
        out: Directory of the bundle to write.
        write: Writes the graphs into a directory and returns their files by stage, in order.
        compare: Returns the largest relative difference of the stages from torch, by tensor.
        n_clips: Number of clips that `compare` uses.
        tolerance: The largest difference that passes.
        step: Announces progress.
        force: Whether an older bundle at `out` is replaced.

    Raises:
        BundleError: The manifest contradicts itself.
        OutputError: `out` must not or cannot be written.
        ParityError: A graph and its torch module disagree; nothing was written.
    """
    with new_directory(out, force=force) as directory:
        with step("exporting"):
            members = tuple(
                Member(
                    name=stage,
                    graph=bundle_file(graph),
                    weights=None if weights is None else bundle_file(weights),
                )
                for stage, (graph, weights) in write(directory).items()
            )
        variant = Variant(opset=OPSET, members=members)
        manifest = _checked(dataclasses.replace(manifest, variants={"fp32": variant}))
        with step(f"comparing with torch on {n_clips} clips"):
            stages = load_stages(manifest, variant, directory, provider="cpu", threads=1)
            try:
                differences = compare(stages)
            finally:
                for stage in stages.values():
                    stage.close()
        drift = Drift(differences=differences, n_clips=n_clips, tolerance=tolerance)
        if not drift.passed:
            raise ParityError(
                f"the graphs differ from torch by more than {tolerance:g}, or are not finite; "
                f"nothing was written\n{drift.table()}"
            )
        with step(f"writing {out.name}"):
            variant = dataclasses.replace(variant, drift=drift.to_dict())
            manifest = dataclasses.replace(manifest, variants={"fp32": variant})
            write_manifest(directory, manifest)
            write_card(directory, uncertainty_card(manifest))
    return drift


def _checked(manifest: Manifest) -> Manifest:
    """The manifest as it is read back; raises BundleError if it contradicts itself."""
    return Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))


def provenance(
    *,
    source: Sequence[Mapping[str, str]],
    config: Mapping[str, Any],
    licence: str | None = None,
    training_data: str | None = None,
    note: str | None = None,
    libraries: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest's `provenance`."""
    return {
        **({} if note is None else {"note": note}),
        "checkpoints": [dict(entry) for entry in source],
        "licence": licence or _UNKNOWN,
        "training_data": training_data or _UNKNOWN,
        "versions": {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *libraries)},
        "config": dict(config),
    }


def keep_worst(found: dict[str, float], name: str, value: float) -> None:
    """Records the larger of a difference and the recorded one; nan is larger than any number."""
    before = found.get(name, 0.0)
    found[name] = value if not value <= before else before
