"""The README's figures of a calibration: what leaving blocks in float buys, and which blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["calibration_section"]

_RUNS: Final = {"calibration_utmosv2": "int8-cpu", "calibration_utmosv2_trt": "int8-trt"}
_WORST: Final = 8


def calibration_section(results: Path) -> list[str]:
    """Lines of Markdown of the reports `calibration_utmosv2*` in `results`; none without them."""
    lines: list[str] = []
    for name, variant in _RUNS.items():
        path = results / f"{name}.json"
        if path.exists():
            lines += _curve(json.loads(path.read_text(encoding="utf-8")), variant)
    return lines


def _curve(run: dict[str, Any], variant: str) -> list[str]:
    found = run["variants"][variant]
    budget, machine = run["budget"], run["machine"]
    lines = [
        f"`{variant}` of `utmosv2-distilled`, by the blocks that compute in float (of "
        f"{len(found['sensitivity'])}, some of many parts): {len(run['evaluation_clips'])} clips, "
        f"one view; budget {budget['max_drift']:g} MOS and rank correlation {budget['min_srcc']:g} "
        f"({machine['cpu']}, {machine['usable_cores']} cores).",
        "",
        "| in float | of the work | mean drift | largest | SRCC | size, fp32 = 1 |",
        "|---|---|---|---|---|---|",
    ]
    blocks = {row["block"] for row in found["sensitivity"]}
    for point in found["trade_off"]:
        drift = point["drift"]
        taken = point["left_float"] == found["left_float"]
        mark = "**" if taken else ""
        whole = sum(name in blocks for name in point["left_float"])
        n_parts = len(point["left_float"]) - whole
        count = f"{whole} and {n_parts} parts" if n_parts else str(whole)
        lines.append(
            f"| {mark}{count}{mark}{' (taken)' if taken else ''} "
            f"| {point['share_of_work']:.0%} "
            f"| {drift['mos_mean_abs']:.3f} MOS | {drift['mos_max_abs']:.3f} | {drift['srcc']:.3f} "
            f"| {point['bytes'] / run['fp32_bytes']:.3f} |"
        )
    worst = ", ".join(
        f"`{row['block']}` {row['drift']['mos_mean_abs']:.3f}"
        for row in found["sensitivity"][:_WORST]
    )
    return [
        *lines,
        "",
        "Mean drift with one block quantised and of all others the weights alone, the worst: "
        f"{worst}.",
        "",
    ]
