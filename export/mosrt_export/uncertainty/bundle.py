"""Staged bundles: what the exporters of uncertainty models have in common."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.bundle.writer import bundle_file, new_directory, write_card, write_manifest
from mosrt.uncertainty.family import Stages, load_stages
from mosrt_export.graphs.graph import OPSET
from mosrt_export.utmosv2.exporter import Step
from mosrt_export.utmosv2.parity import ParityError

from .card import uncertainty_card

__all__ = [
    "N_STEPS",
    "Drift",
    "GraphFiles",
    "StagedRequest",
    "keep_worst",
    "producer",
    "provenance",
    "relative",
    "write_bundle",
]

GraphFiles = tuple[Path, Path | None]
"""A graph, and its weights if they are a file apart."""

N_STEPS: Final = 4
"""How often an export announces a step, reading the checkpoint included."""
_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")
_UNKNOWN: Final = "unknown; whoever exported the model did not say"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRequest:
    """What every export of an uncertainty model is asked for.

    Attributes:
        name: What scores call the model.
        measure: The figure that is *the* uncertainty, as the exporter names it.
        sign: 1 if it grows with uncertainty, -1 if it falls.
        seed: Of everything that is drawn.
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
    """Largest relative differences between graphs and torch modules, by tensor.

    Attributes:
        differences: By name; nan where something was not finite.
        n_clips: Clips compared on.
        tolerance: The largest difference that passes.
    """

    differences: Mapping[str, float]
    n_clips: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it agrees."""
        values = self.differences.values()
        return bool(values) and all(value <= self.tolerance for value in values)

    def to_dict(self) -> dict[str, Any]:
        """Figures for the manifest, rounded to what can be relied on."""
        figures: dict[str, Any] = {
            f"{name}_max_rel": float(f"{value:.2g}") for name, value in self.differences.items()
        }
        return {**figures, "n_clips": self.n_clips, "against": "torch fp32"}

    def table(self) -> str:
        """One line per tensor, those that differ marked."""
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
    """Writes graphs, compares them through the runtime, and puts the bundle in its place.

    Args:
        manifest: Complete but for its variants.
        out: The bundle's directory to be.
        write: Writes the graphs into a directory; tells their files by stage, in order.
        compare: Largest relative difference by tensor, of what runs the stages from torch.
        n_clips: Clips that it compares on.
        tolerance: The largest difference that passes.
        step: Progress.
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
    """The manifest as it will be read back; BundleError if it contradicts itself."""
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


def producer() -> str:
    """Name and version of the exporter, as graphs record it."""
    return f"mosrt {importlib.metadata.version('mosrt')}"


def relative(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Largest difference relative to the largest expected value; nan or inf stay."""
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore"):
        return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def keep_worst(found: dict[str, float], name: str, value: float) -> None:
    """Keeps the larger of a difference and the one kept before; nan is larger than any."""
    before = found.get(name, 0.0)
    found[name] = value if not value <= before else before
