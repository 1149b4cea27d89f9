"""`mosrt info`: what a bundle is, and what this machine can run."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import click
import numpy as np
import onnxruntime

from . import __version__
from .backends.ort import PROVIDERS
from .bundle import Bundle
from .cli_score import EXIT_UNUSABLE
from .errors import BundleError
from .manifest import Manifest
from .threads import usable_cores
from .uncertainty_facts import uncertainty_facts

__all__ = ["info"]


@click.command(short_help="Show what a model is, and what this machine can run.")
@click.argument("bundle", required=False, type=click.Path())
@click.option("--verify", is_flag=True, help="Compare every file's SHA-256 with the manifest.")
@click.option(
    "--format", "kind", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def info(bundle: str | None, verify: bool, kind: str) -> None:
    """Show what BUNDLE is: model, domains, variants and their measured drift, model card.

    Without BUNDLE, show versions, execution providers and cores of this machine.

    Exit status: 0 fine, 2 wrong usage, 3 the bundle is damaged or cannot be read.
    """
    if bundle is None:
        if verify:
            raise click.UsageError("--verify needs a BUNDLE")
        _show(_machine(), kind, "")
        return
    try:
        opened = Bundle.open(bundle)
        if verify:
            _verify(opened)
    except BundleError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(EXIT_UNUSABLE)
    if kind == "json":
        facts = {**opened.manifest.to_dict(), "path": str(opened.path), "verified": verify}
    else:
        facts = _facts(opened.manifest)
    _show(facts, kind, opened.model_card())


def _verify(bundle: Bundle) -> None:
    hidden = not sys.stderr.isatty()
    with click.progressbar(
        length=bundle.n_bytes, label="verifying", file=sys.stderr, hidden=hidden
    ) as bar:
        bundle.verify(bar.update)
    click.echo("every file is as it was exported", err=True)


def _machine() -> dict[str, Any]:
    present = onnxruntime.get_available_providers()
    return {
        "mosrt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": [name for name, full in PROVIDERS.items() if full in present],
        "usable_cores": usable_cores(),
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The manifest as lines that a person reads."""
    facts: dict[str, Any] = {
        "model": manifest.name,
        "family": manifest.family,
        "rate": f"{manifest.sample_rate_hz} Hz",
        "domains": [
            f"{name} (default)" if name == manifest.default_domain else name
            for name in manifest.domains
        ],
    }
    if manifest.ssl is not None:
        facts["waveform"] = f"crops of {manifest.ssl.crop_samples / manifest.sample_rate_hz:g} s"
    if (mel := manifest.mel) is not None:
        facts["spectrograms"] = (
            f"{mel.n_crops} crops of {mel.crop_samples / manifest.sample_rate_hz:g} s, windows "
            f"{', '.join(map(str, mel.windows))}, {mel.n_mels} mels, floor -{mel.floor_db:g} dB"
        )
    facts |= uncertainty_facts(manifest)
    for name, variant in manifest.variants.items():
        megabytes = sum(file.bytes for file in variant.files) / 1e6
        drift = ", ".join(f"{key} {value}" for key, value in variant.drift.items())
        members = ", ".join(member.name for member in variant.members)
        facts[f"variant {name}"] = (
            f"{megabytes:.1f} MB ({members}); {drift or 'drift not measured'}"
        )
    for key, value in manifest.provenance.items():
        facts[key] = value if isinstance(value, str) else json.dumps(value)
    return facts


def _show(facts: dict[str, Any], kind: str, card: str) -> None:
    if kind == "json":
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:<{width}}  {text}")
    if card:
        click.echo(f"\n{card.rstrip()}")
