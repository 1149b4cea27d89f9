"""The README's figures of drift: how far each variant's scores are from FP32's."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final

__all__ = ["drift_section"]

_REPORTS: Final = ("drift.json", "bench_utmosv2.json")
# How a drift's entries begin and end, and its unit.
_KINDS: Final = (("mos", "abs", "MOS"), ("uncertainty", "rel", "relative"))


def drift_section(results: Path) -> list[str]:
    """Lines of Markdown of the reports of `mosrt bench` in `results`; none without them."""
    reports = [_read(path) for name in _REPORTS if (path := results / name).exists()]
    if not reports:
        return []
    lines = [
        "Drift of variants that `mosrt calibrate` made, trained weights, on clips that no range "
        "was measured on (clean, degraded, synthetic speech); blocks left in float were chosen on "
        "them. `int8-trt` is measured as its graph computes on a CPU, not as an engine."
        f"{_distilled(results / 'distilled.json')}",
        "",
        "| model | variant | size | mean | p95 | largest | SRCC | clips | mean by kind |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for bundle in itertools.chain.from_iterable(report["bundles"] for report in reports):
        whole = bundle["variants"]["fp32"]["bytes"]
        for name, variant in bundle["variants"].items():
            if name != "fp32":
                drift = variant["declared_drift"]
                share = variant["bytes"] / whole
                lines.append(f"| {bundle['name']} | {name} | {share:.2f} | {_cells(drift)} |")
    return [*lines, ""]


def _read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _distilled(path: Path) -> str:
    """What the weights are that stand for UTMOSv2's."""
    if not path.exists():
        return ""
    run = _read(path)
    return (
        " `utmosv2-distilled` has UTMOSv2's full size, but is not the published model: it was "
        "trained briefly to say what `nano` says (rank correlation "
        f"{run['srcc']:.2f} on {run['held_out_clips']} unseen clips)."
    )


def _cells(drift: dict[str, Any]) -> str:
    what, suffix, unit = next(kind for kind in _KINDS if f"{kind[0]}_mean_{kind[1]}" in drift)
    figures = [f"{drift[f'{what}_{name}_{suffix}']:.4f}" for name in ("mean", "p95", "max")]
    figures[0] += f" {unit}"
    folders = ", ".join(
        f"{name} {folder[f'{what}_mean_{suffix}']:.4f}"
        for name, folder in drift["by_folder"].items()
    )
    return " | ".join([*figures, f"{drift['srcc']:.4f}", str(drift["n_clips"]), folders])
