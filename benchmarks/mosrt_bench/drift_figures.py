"""The README's figures of drift: how far each variant's scores are from FP32's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["drift_section"]

# How a drift's entries begin and end, and its unit.
_KINDS: Final = (("mos", "abs", "MOS"), ("uncertainty", "rel", "relative"))


def drift_section(results: Path) -> list[str]:
    """Lines of Markdown of the report `drift` of `mosrt bench` in `results`; none without it."""
    path = results / "drift.json"
    if not path.exists():
        return []
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "Drift of variants that `mosrt calibrate` made of the embedded models, trained weights, on "
        "clips that no range was measured on (clean, degraded, synthetic speech); blocks left in "
        "float were chosen on them.",
        "",
        "| model | variant | size | mean | p95 | largest | SRCC | clips | mean by kind |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for bundle in report["bundles"]:
        whole = bundle["variants"]["fp32"]["bytes"]
        for name, variant in bundle["variants"].items():
            if name != "fp32":
                drift = variant["declared_drift"]
                share = variant["bytes"] / whole
                lines.append(f"| {bundle['name']} | {name} | {share:.2f} | {_cells(drift)} |")
    return [*lines, ""]


def _cells(drift: dict[str, Any]) -> str:
    what, suffix, unit = next(kind for kind in _KINDS if f"{kind[0]}_mean_{kind[1]}" in drift)
    figures = [f"{drift[f'{what}_{name}_{suffix}']:.4f}" for name in ("mean", "p95", "max")]
    figures[0] += f" {unit}"
    folders = ", ".join(
        f"{name} {folder[f'{what}_mean_{suffix}']:.4f}"
        for name, folder in drift["by_folder"].items()
    )
    return " | ".join([*figures, f"{drift['srcc']:.4f}", str(drift["n_clips"]), folders])
