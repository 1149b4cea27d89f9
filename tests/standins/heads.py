"""Bundles with domains of every kind that mosrt computes from the outputs of the graphs."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.domain_head import DomainHead
from mosrt.bundle.writer import updated_bundle, write_manifest


def head(kind: str, weights: dict[str, tuple[float, ...]], **more: Any) -> DomainHead:
    values = {"bias": 0.3, "n_clips": 60, "description": "mos.csv", **more}
    return DomainHead(kind=kind, weights=weights, **values)


def heads(n_domains: int, features: dict[str, int]) -> dict[str, DomainHead]:
    """Of every kind: a line, a sum over all outputs, a curve with a steep step, a constant."""
    rng = np.random.default_rng(0)
    first = (0.8, *(0.0,) * (n_domains - 1))
    wide = {name: tuple(rng.normal(0, 0.02, n)) for name, n in features.items()}
    curve = {"bias": 0.0, "x": (1.5, 2.5, 2.5001, 3.0), "y": (1.2, 2.0, 3.9, 4.8)}
    return {
        "line": head("affine", {"mos": first}),
        "sum": head("features", {"mos": first, **wide}),
        "curve": head("monotone", {"mos": (1.0, *first[1:])}, **curve),
        "point": head("monotone", {"mos": first}, x=(2.0,), y=(3.3,)),
        "low": head("affine", {"mos": first}, bias=-9.0),
    }


def with_heads(source: Path, out: Path) -> Path:
    """A copy with heads, "sum" by default, and a second variant that has the same files."""
    manifest = Bundle.open(source).manifest
    features = {each.name: int(each.shape[1]) for each in manifest.outputs[1:]}
    added = heads(len(manifest.domains), features)
    with updated_bundle(source, out) as directory:
        variants = {**manifest.variants, "copy": manifest.variants["fp32"]}
        changed = dataclasses.replace(
            manifest, heads=added, default_domain="sum", variants=variants
        )
        write_manifest(directory, changed)
    return out
