"""The section on variants in a model card."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Final

from mosrt.bundle.manifest import Manifest, Variant

__all__ = ["card_with_variants"]

_HEADING: Final = "## Variants"


def card_with_variants(text: str, manifest: Manifest) -> str:
    """The text of a model card with its section on variants written anew."""
    section = [
        _HEADING,
        "",
        "Difference from the scores of fp32, measured by mosrt "
        f"{importlib.metadata.version('mosrt')}:",
        "",
        "| variant | arithmetic | MB | mean | 95 % within | largest | rank correlation | clips |",
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
    figures = [drift.get(f"{unit}_{figure}_{suffix}") for figure in ("mean", "p95", "max")]
    size = sum(file.bytes for file in variant.files) / 1e6
    cells = [name, variant.kind, f"{size:.2f}", *figures, drift.get("srcc"), drift.get("n_clips")]
    return f"| {' | '.join(str(cell) for cell in cells)} |"
