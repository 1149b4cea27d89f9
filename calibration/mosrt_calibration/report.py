"""Writes the report of a quantisation as JSON, text and a figure, and the model card's section."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.bundle.manifest import Manifest, Variant

from .clips import Choice, list_sha256
from .search.drift import HEADINGS, Budget
from .search.evaluate import Measurement
from .search.methods import Comparison
from .search.mixed_precision import Outcome

__all__ = ["Result", "VariantResult", "card_with_variants", "summary", "write_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """Result for one variant.

    Attributes:
        name: Name of the variant.
        measured: Drift, speed and size of the graphs that were chosen, or of those with the least
            drift if none is within the budget.
        variant: The manifest's entry; None if the drift is over the budget.
        comparison: Comparison of quantisation schemes; None for fp16.
        outcome: Search for blocks to keep in FP32; None for fp16.
    """

    name: str
    measured: Measurement
    variant: Variant | None
    comparison: Comparison | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a quantisation.

    Attributes:
        choice: The clips.
        variants: Each variant.
        fp32_bytes: Size of the files of the FP32 variant.
    """

    choice: Choice
    variants: tuple[VariantResult, ...]
    fp32_bytes: int


def write_report(directory: Path, result: Result, budget: Budget) -> None:
    """Writes report.json and report.txt, and trade-off.png if there are INT8 variants.

    Args:
        directory: Directory to write to; it is created if it does not exist.
        result: Result of the quantisation.
        budget: Limits on the drift.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(result, budget), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(
        f"{text}\n", encoding="utf-8", errors="backslashreplace", newline="\n"
    )
    (directory / "report.txt").write_text(
        _text(result), encoding="utf-8", errors="backslashreplace", newline="\n"
    )
    curves = [made for made in result.variants if made.outcome is not None]
    if curves:
        _draw(directory / "trade-off.png", curves, result.fp32_bytes, budget)


def summary(result: Result) -> str:
    """A table of drift, speed and size, with one line per variant."""
    width = max(len(made.name) for made in result.variants)
    lines = [f"{'':{width}} {HEADINGS} {'faster':>7} {'of fp32':>8}"]
    for made in result.variants:
        measured = made.measured
        mark = "" if made.variant is not None else "  <- over budget"
        lines.append(
            f"{made.name:{width}} {measured.drift.line()} {measured.times_as_fast:6.2f}x "
            f"{measured.n_bytes / result.fp32_bytes:7.3f}x{mark}"
        )
    return "\n".join(lines)


def _plain(result: Result, budget: Budget) -> dict[str, Any]:
    choice = result.choice
    return {
        "budget": {"max_drift": budget.max_drift, "min_srcc": budget.min_srcc},
        "calibration_clips": [clip.name for clip in choice.calibration],
        "calibration_clips_sha256": list_sha256(choice.calibration),
        "evaluation_clips": [clip.name for clip in choice.evaluation],
        "evaluation_clips_sha256": list_sha256(choice.evaluation),
        "held_out": choice.held_out,
        "fp32_bytes": result.fp32_bytes,
        "variants": {made.name: _variant(made) for made in result.variants},
    }


def _variant(made: VariantResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "within_budget": made.variant is not None,
        **made.measured.to_dict(),
        "fixed_batch": None if made.variant is None else made.variant.fixed_batch,
    }
    if made.comparison is not None:
        found["comparison"] = made.comparison.to_dict()
    if made.outcome is not None:
        found["sensitivity"] = [
            {
                "block": row.block,
                "drift": row.drift.to_dict(),
                "share_of_work": round(row.share, 5),
                "worth": float(f"{row.gain:.3g}"),
            }
            for row in made.outcome.ranking
        ]
        found["trade_off"] = [point.to_dict() for point in made.outcome.points]
        chosen = made.outcome.chosen
        found["left_float"] = None if chosen is None else list(chosen.kept_fp32)
    return found


def _text(result: Result) -> str:
    parts = [summary(result)]
    for made in result.variants:
        folders = made.measured.by_folder
        if folders:
            width = max(map(len, folders))
            rows = [f"{name:{width}} {drift.line()}" for name, drift in folders.items()]
            parts += [f"{made.name}: by folder", "\n".join([f"{'':{width}} {HEADINGS}", *rows])]
        if made.comparison is not None and made.outcome is not None:
            parts += [
                f"{made.name}: quantisation schemes, on calibration clips",
                made.comparison.table(),
                f"{made.name}: sensitivity of blocks, then the trade-off curve",
                made.outcome.table(),
            ]
    return "\n\n".join(parts) + "\n"


def _draw(path: Path, curves: list[VariantResult], fp32_bytes: int, budget: Budget) -> None:
    """Plots drift against speed and against size, with one line per variant."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    figure = Figure(figsize=(9, 4), layout="constrained")
    by_speed, by_size = figure.subplots(1, 2, sharey=True)
    for made in curves:
        points = made.outcome.points if made.outcome is not None else ()
        drifts = [point.measured.drift.mean_abs for point in points]
        speeds = [point.measured.times_as_fast for point in points]
        sizes = [point.measured.n_bytes / fp32_bytes for point in points]
        for axes, values in ((by_speed, speeds), (by_size, sizes)):
            axes.plot(values, drifts, marker="o", label=made.name)
        for point, where in zip(points, zip(speeds, drifts, strict=True), strict=True):
            by_speed.annotate(f"{point.share:.0%}", where, fontsize=7)
    for axes, quantity in ((by_speed, "speed"), (by_size, "size")):
        axes.axhline(budget.max_drift, color="grey", linestyle=":")
        axes.set(xlabel=f"{quantity} relative to FP32", yscale="log")
        axes.legend()
    by_speed.set_ylabel("mean drift")
    by_speed.set_title("labels: share of MACs in FP32", fontsize=9)
    figure.savefig(path, dpi=120)


_HEADING: Final = "## Variants"


def card_with_variants(text: str, manifest: Manifest) -> str:
    """The text of a model card with a new section on variants."""
    section = [
        _HEADING,
        "",
        "Difference from the scores of FP32, measured by mosrt "
        f"{importlib.metadata.version('mosrt')}:",
        "",
        "| variant | precision | MB | mean | 95 % within | largest | rank correlation | clips |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, variant in manifest.variants.items():
        if variant.kind is not None:
            section.append(_row(name, variant))
    if manifest.uncertainty is not None:
        section += ["", "Differences are relative to the mean uncertainty."]
    body = re.sub(rf"\n*^{_HEADING}\n.*?(?=^## |\Z)", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([body.rstrip("\n"), "", *section, ""])


def _row(name: str, variant: Variant) -> str:
    drift = variant.drift
    unit, suffix = ("mos", "abs") if "mos_mean_abs" in drift else ("uncertainty", "rel")
    values = [drift.get(f"{unit}_{statistic}_{suffix}") for statistic in ("mean", "p95", "max")]
    size = sum(file.bytes for file in variant.files) / 1e6
    cells = [name, variant.kind, f"{size:.2f}", *values, drift.get("srcc"), drift.get("n_clips")]
    return f"| {' | '.join(str(cell) for cell in cells)} |"
