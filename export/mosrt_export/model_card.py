"""Writes model cards, and the provenance that they are made from.

A card is Markdown that says what a bundle was trained on, what its scores mean and where they fail.
It is made from a complete manifest, with the drift of "fp32". The texts are in `templates/`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mosrt.bundle.manifest import Manifest

from .markdown import rendered

__all__ = ["distillmos_card", "dnsmos_card", "mos_card", "provenance", "uncertainty_card"]

_UNKNOWN: Final = "unknown; whoever exported the model did not say"


def provenance(
    checkpoints: Sequence[Mapping[str, str]],
    *,
    config: Mapping[str, Any],
    licence: str | None,
    training_data: str | None,
    libraries: Sequence[str],
) -> dict[str, Any]:
    """The section `provenance` of a manifest.

    Args:
        checkpoints: For each network at least "file", its name; also "sha256", "repository" and
            "revision" where they are known.
        config: What defines the architecture.
        licence: Licence of the weights, or None if it is unknown.
        training_data: What the model was trained on, or None if it is unknown.
        libraries: Libraries that the export used, whose versions are kept.
    """
    return {
        "checkpoints": [dict(entry) for entry in checkpoints],
        "licence": licence or _UNKNOWN,
        "training_data": training_data or _UNKNOWN,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "config": dict(config),
    }


def mos_card(manifest: Manifest) -> str:
    """The model card of a MOS model."""
    config = manifest.provenance["config"]
    encoder = config["ssl"]["encoder"]["model_type"]
    checkpoints = manifest.provenance["checkpoints"]
    return _card(
        "mos-card.md",
        manifest,
        published=all("repository" in checkpoint for checkpoint in checkpoints),
        **{kind: manifest.family == kind for kind in ("fusion", "spec", "ssl")},
        wav2vec2=encoder == "wav2vec2",
        domains=", ".join(manifest.domains),
        drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
        encoder=encoder,
        backbone=config["spectrogram"]["backbone"],
    )


def distillmos_card(manifest: Manifest) -> str:
    """The model card of Distill-MOS."""
    drift = manifest.variants["fp32"].drift
    return _card("distillmos-card.md", manifest, drift=drift.get("mos_max_abs", "not measured"))


def dnsmos_card(manifest: Manifest) -> str:
    """The model card of DNSMOS."""
    drift = manifest.variants["fp32"].drift
    return _card("dnsmos-card.md", manifest, p808="p808" in manifest.domains, drift=drift)


def uncertainty_card(manifest: Manifest) -> str:
    """The model card of an uncertainty model; ValueError if the manifest is of another kind."""
    spec = manifest.uncertainty
    if spec is None:
        raise ValueError(f"{manifest.name} gives no uncertainty")
    drift = manifest.variants["fp32"].drift
    differences = ", ".join(
        f"{name.removesuffix('_max_rel')} {value:.1e}"
        for name, value in drift.items()
        if name.endswith("_max_rel")
    )
    return _card(
        "uncertainty-card.md",
        manifest,
        note="note" in manifest.provenance,
        positive=spec.sign > 0,
        spec=spec,
        window_s=spec.window_samples / manifest.sample_rate_hz,
        drift=f"{differences} (relative, on {drift['n_clips']} clips)",
    )


def _card(template: str, manifest: Manifest, **fields: object) -> str:
    """A template with the fields of both kinds of card, and others."""
    sources = (
        f"`{checkpoint['file']}`"
        + (f" (SHA-256 `{checkpoint['sha256']}`)" if "sha256" in checkpoint else "")
        for checkpoint in manifest.provenance["checkpoints"]
    )
    return rendered(
        template,
        manifest=manifest,
        provenance=manifest.provenance,
        versions=manifest.provenance["versions"],
        sources="; ".join(sources),
        limit_hz=manifest.sample_rate_hz // 2,
        **fields,
    )
