"""The README's figures of uncertainty models: speed by length, and what each measure ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mosrt_studies.accuracy.uncertainty_ranking import table

__all__ = ["uncertainty_sections"]


def uncertainty_sections(results: Path) -> list[str]:
    """Lines of Markdown, a section for each run that is in `results`, and none for the others."""
    lines: list[str] = []
    sections = (
        ("uncertainty_ranking", _ranking),
        ("uncertainty_speed", _speed),
        ("long_recording", _long),
    )
    for name, section in sections:
        path = results / f"{name}.json"
        if path.exists():
            lines += [*section(json.loads(path.read_text(encoding="utf-8"))), ""]
    return lines


def _ranking(run: dict[str, Any]) -> list[str]:
    return [
        f"Uncertainty of `{run['model']}` and degradations: rank correlation of severity and "
        f"measure on a clip's own ladder, mean over {run['clips']} held-out clips of "
        f"{run['seconds']:g} s; a star where the mean over clips grows with every step.",
        "",
        table(run),
    ]


def _speed(run: dict[str, Any]) -> list[str]:
    machine = run["machine"]
    lines = [
        "wav2vec v1 of the published size, layout "
        f"{' and '.join(run['layouts'])}, FP32, stand-in weights, {run['threads']} threads "
        f"({machine['cpu']}, {machine['usable_cores']} cores): cost grows with length to the "
        f"power of {run['growth_exponent']:.2f}.",
        "",
        "| clip | eager torch | mosrt | times as fast | peak memory, torch | mosrt |",
        "|---|---|---|---|---|---|",
    ]
    for length_s, found in run["lengths_s"].items():
        timings, peak_mb = found["timings"], found["peak_mb"]
        cells = [f"{length_s} s"]
        cells.append(f"{timings['torch']['median_ms']:.0f} ms" if "torch" in timings else "-")
        cells.append(f"{timings['mosrt']['median_ms']:.0f} ms")
        if "faster" in found:
            low, high = found["faster"]["interval_95"]
            cells.append(f"**{found['faster']['ratio']:.2f}** ({low:.2f} to {high:.2f})")
        else:
            cells.append("-")
        cells.append(f"{peak_mb['torch']:.0f} MB" if "torch" in peak_mb else "-")
        cells.append(f"{peak_mb['mosrt']:.0f} MB")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _long(run: dict[str, Any]) -> list[str]:
    machine = run["machine"]
    found = [
        f"{model['peak_mb']:.0f} MB with `{name}` (layouts {', '.join(model['layouts'])})"
        for name, model in run["models"].items()
    ]
    return [
        f"Peak memory of scoring a recording of {run['minutes']:g} minutes from its file, FP32, "
        f"{run['threads']} thread{'s' if run['threads'] > 1 else ''} ({machine['cpu']}): "
        f"{'; '.join(found)}. The limit is {run['limit_mb']} MB."
    ]
