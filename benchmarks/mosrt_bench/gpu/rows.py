"""Rows: what is measured, the most important first, and what each is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt_bench.errors import BenchError

__all__ = ["FRONT_ENDS", "Device", "Row", "baseline_bundle", "front_end_of", "plan_rows", "titles"]

Device = Literal["cuda", "cpu"]

FRONT_ENDS: Final = ("NumPy front end", "front end in the graph")
_LIBROSA: Final = "librosa front end"
_ENGINES: Final = {
    "cuda": "ONNX Runtime CUDA",
    "cpu": "ONNX Runtime CPU",
    "tensorrt": "TensorRT",
}
# Engine, precision, and whether torch compiles; the baseline is the first.
_ORDER: Final = (
    ("torch", "fp16", False),
    ("tensorrt", "fp16", False),
    ("onnxruntime", "fp16", False),
    ("onnxruntime", "fp32", False),
    ("torch", "fp32", False),
    ("tensorrt", "fp32", False),
    ("tensorrt", "int8-trt", False),
    ("torch", "fp16", True),
    ("torch", "fp32", True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant.

    Attributes:
        name: What it is called.
        provider: "torch", or one of mosrt's providers.
        device: Where it computes.
        variant: Precision.
        compiled: Whether torch compiles it.
        bundle: The bundle, or for torch the one whose checkpoint it has; None if there is none.
        missing: Why it cannot be measured, if that is known beforehand.
    """

    name: str
    provider: str
    device: Device
    variant: str
    compiled: bool = False
    bundle: str | None = None
    missing: str | None = None

    @property
    def is_torch(self) -> bool:
        """Whether torch runs it, and not mosrt."""
        return self.provider == "torch"

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it: eager FP16 torch."""
        return self.is_torch and self.variant == "fp16" and not self.compiled


def front_end_of(manifest: Manifest) -> str:
    """Which front end a bundle needs: one of `FRONT_ENDS`."""
    return FRONT_ENDS[1 if manifest.front_end == "graph" else 0]


def titles(device: Device = "cuda") -> list[str]:
    """What rows are called but for the bundle, in order of importance."""
    return [
        title
        for engine, variant, compiled in _ORDER
        for title in (
            [_torch_title(variant, compiled, device)]
            if engine == "torch"
            else [_title(_provider(engine, device), variant, front_end) for front_end in FRONT_ENDS]
        )
    ]


def plan_rows(references: Sequence[str], device: Device) -> list[Row]:
    """All rows of some bundles, the baseline first.

    Args:
        references: Names or paths of bundles.
        device: Where to compute.

    Raises:
        BundleError: A bundle cannot be opened.
        BenchError: Two bundles could not be told apart.
    """
    opened = [(reference, Bundle.open(find_bundle(reference)).manifest) for reference in references]
    baseline = baseline_bundle(opened)
    rows = []
    for engine, variant, compiled in _ORDER:
        if engine == "torch":
            rows.append(
                Row(
                    name=_torch_title(variant, compiled, device),
                    provider="torch",
                    device=device,
                    variant=variant,
                    compiled=compiled,
                    bundle=baseline,
                    missing=None
                    if baseline is not None
                    else "no bundle here is of family fusion and says which torch model it was",
                )
            )
            continue
        provider = _provider(engine, device)
        rows += [
            Row(
                name=f"{_title(provider, variant, front_end_of(manifest))} ({manifest.name})",
                provider=provider,
                device=device,
                variant=variant,
                bundle=reference,
                missing=_missing(manifest, provider, variant, device),
            )
            for reference, manifest in opened
        ]
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BenchError(
            f"two bundles have the same name and front end ({twice[0]}); export one with --name"
        )
    return rows


def baseline_bundle(opened: Sequence[tuple[str, Manifest]]) -> str | None:
    """The first bundle that torch's fusion model can be built like."""
    return next(
        (
            reference
            for reference, manifest in opened
            if manifest.family == "fusion" and "config" in manifest.provenance
        ),
        None,
    )


def _missing(manifest: Manifest, provider: str, variant: str, device: Device) -> str | None:
    if manifest.uncertainty is not None:
        return f"{manifest.name} scores by its uncertainty, and the baseline predicts MOS"
    if variant not in manifest.variants:
        return f"the bundle has no {variant}"
    if provider == "tensorrt" and device == "cpu":
        return "TensorRT needs a GPU, and this is a run on the CPU"
    return None


def _provider(engine: str, device: Device) -> str:
    return device if engine == "onnxruntime" else engine


def _title(provider: str, variant: str, front_end: str) -> str:
    return f"mosrt {variant}, {_ENGINES[provider]}, {front_end}"


def _torch_title(variant: str, compiled: bool, device: Device) -> str:
    how = "torch.compile" if compiled else "torch eager"
    return f"{how} {variant}, {device.upper()}, {_LIBROSA}"
