"""Update: a bundle that gains variants whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mosrt.bundle.bundle import MANIFEST_NAME, MODEL_CARD_NAME
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.errors import MosrtError

__all__ = ["TargetError", "card_with_variants", "staged", "write_card", "write_manifest"]

_HEADING: Final = "## Variants"


class TargetError(MosrtError, OSError):
    """The bundle cannot be written where it was asked for."""


@contextmanager
def staged(bundle: Path, out: Path) -> Iterator[Path]:
    """A copy of a bundle beside `out` that takes its place if the block succeeds, else disappears.

    Args:
        bundle: The bundle's directory.
        out: Where the result goes: `bundle` itself, or nothing yet.

    Yields:
        The copy's directory.

    Raises:
        TargetError: `out` is something else, or nothing can be written there.
    """
    in_place = out.resolve() == bundle.resolve()
    if not in_place and (out.exists() or out.is_symlink()):
        raise TargetError(f"{out} exists already; choose another --out, or leave it out")
    target = bundle.resolve() if in_place else out
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    previous = target.with_name(f".{target.name}.{os.getpid()}.previous")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(bundle, partial)
    except OSError as exc:
        shutil.rmtree(partial, ignore_errors=True)
        raise TargetError(
            f"{target}: cannot write there ({exc.strerror or exc}); name a directory that can be "
            "written with --out"
        ) from exc
    try:
        yield partial
        if in_place:
            target.rename(previous)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if previous.exists():
            if not target.exists():
                previous.rename(target)
            shutil.rmtree(previous, ignore_errors=True)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json after reading it back, so that no bundle is written that will not load.

    Raises:
        BundleError: The manifest contradicts itself.
    """
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
    Manifest.from_dict(json.loads(text))
    _write(directory / MANIFEST_NAME, f"{text}\n")


def write_card(directory: Path, manifest: Manifest) -> None:
    """Writes model-card.md with a section on the variants."""
    card = directory / MODEL_CARD_NAME
    text = card.read_text(encoding="utf-8") if card.exists() else f"# {manifest.name}\n"
    _write(card, card_with_variants(text, manifest))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def card_with_variants(text: str, manifest: Manifest) -> str:
    """A model card whose section on variants is new."""
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
