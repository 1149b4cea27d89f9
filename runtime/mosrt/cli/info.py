"""`mosrt info`: what a model is, which models there are, and what this machine can run."""

from __future__ import annotations

import itertools
import json
import platform
import sys
from collections.abc import Mapping
from typing import Any, Final

import click
import numpy as np
import onnxruntime

import mosrt
from mosrt.backends import present_providers
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import embedded_models, find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.variants import best_on_cpu
from mosrt.host.cache import cache_directory
from mosrt.host.cpu import CpuFeatures, usable_cores

from .command import exit_statuses
from .terminal import bar_stream, json_text, printable

__all__ = ["info"]

_FRONT_ENDS: Final = {
    "numpy": "in mosrt, which computes the inputs of the networks",
    "graph": "in the graph, which takes crops of audio",
}


@click.command(
    short_help="Show what a model is, and what this machine can run.", epilog=exit_statuses()
)
@click.argument("model", required=False)
@click.option(
    "--list", "listed", is_flag=True, help="List the models that come with mosrt, default first."
)
@click.option(
    "--machine",
    is_flag=True,
    help="Show versions, providers, cores and cache of this machine, and which variant "
    "--variant auto takes on it.",
)
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of every file with the manifest.")
@click.option(
    "--format", "kind", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def info(model: str | None, listed: bool, machine: bool, verify: bool, kind: str) -> None:
    """Show what MODEL is: domains, variants and their measured drift, and its model card.

    MODEL is the name of a model that comes with mosrt, or the path of a bundle; distillmos if left
    out. The card says what the model was trained on, what it is good for and where it fails, and
    its licences.

    \b
    mosrt info
    mosrt info ./utmosv2 --verify
    mosrt info --list
    mosrt info --machine
    """  # noqa: D301 - click reads the backspace
    if listed + machine + (model is not None or verify) > 1:
        raise click.UsageError("give one of MODEL, --list and --machine")
    if machine:
        _show(_machine(), kind)
        return
    if listed:
        _list(kind)
        return
    opened = Bundle.open(find_bundle(model))
    if verify:
        hidden, length = not sys.stderr.isatty(), opened.n_bytes
        with click.progressbar(
            length=length, label="verifying", file=bar_stream(), hidden=hidden
        ) as bar:
            opened.verify(bar.update)
        click.echo("every file is as it was exported", err=True)
    card = opened.model_card()
    if kind == "json":
        facts = opened.manifest.to_dict()
        _show({**facts, "path": str(opened.path), "verified": verify, "model_card": card}, kind)
        return
    _show(_facts(opened.manifest), kind)
    if card:
        click.echo("\n" + "\n".join(card.rstrip().splitlines()))


def _machine() -> dict[str, Any]:
    cpu = CpuFeatures.read()
    auto = best_on_cpu(cpu)
    return {
        "mosrt": mosrt.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": list(present_providers()),
        "cpu": cpu.model or cpu.architecture,
        "usable_cores": usable_cores(),
        "variant_auto": auto.variant,
        "variant_auto_reason": auto.reason,
        "bf16": cpu.bf16 or "no",
        "cache": str(cache_directory() or "none (no home directory; MOSRT_CACHE can name one)"),
    }


def _list(kind: str) -> None:
    """Shows the models that come with mosrt, a line each."""
    rows: dict[str, dict[str, Any]] = {}
    for name, path in embedded_models().items():
        bundle = Bundle.open(path)
        rows[name] = {
            "family": bundle.manifest.family,
            "bytes": bundle.n_bytes,
            "about": _about(bundle.model_card()),
            "path": str(path),
        }
    lines = {
        name: f"{row['family']}, {row['bytes'] / 1e6:.1f} MB; {row['about']}"
        for name, row in rows.items()
    }
    _show(rows if kind == "json" else lines or {"none": "install mosrt again"}, kind)


def _about(card: str) -> str:
    """The first sentence of a model card."""
    lines = (line.strip() for line in card.splitlines())
    text = itertools.dropwhile(lambda line: not line or line.startswith("#"), lines)
    return " ".join(itertools.takewhile(bool, text)).partition(". ")[0].rstrip(".")


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The manifest as lines that a person reads."""
    rate_hz, default = manifest.sample_rate_hz, manifest.default_domain
    facts: dict[str, Any] = {
        "model": manifest.name,
        "family": manifest.family,
        "rate": f"{rate_hz} Hz",
        "domains": [f"{n} (default)" if n == default else n for n in manifest.all_domains],
    }
    for name, head in manifest.heads.items():
        facts[f"domain {name}"] = f"{head.kind}, from {head.n_clips} clips ({head.description})"
    hop_s = 0.0
    if (ssl := manifest.ssl) is not None:
        hop_s = ssl.segment_hop_samples / rate_hz
        facts["waveform"] = (
            f"{'segments' if hop_s else 'crops'} of {ssl.crop_samples / rate_hz:g} s"
        )
    if (mel := manifest.mel) is not None:
        facts["spectrograms"] = (
            f"{mel.n_crops} per view, {mel.crop_samples / rate_hz:g} s each, windows "
            f"{', '.join(map(str, mel.windows))}, {mel.n_mels} mels, floor -{mel.floor_db:g} dB"
        )
    if manifest.uncertainty is None:
        facts["front end"] = _FRONT_ENDS[manifest.front_end]
        grid = manifest.grid
        views = f"one per {grid.view_every_s:g} s, from {grid.min_views} to {grid.max_views}"
        facts["views"] = f"the fewest that start at most {hop_s:g} s apart" if hop_s else views
        if (rule := grid.speech) is not None:
            facts["speech"] = (
                f"within {rule.range_db:g} dB of the loudest 0.2 s, and above "
                f"{rule.floor_dbfs:g} dBFS unless that is within {rule.least_range_db:g} dB; "
                f"views begin and end with speech and {rule.margin_s:g} s around it, and are "
                f"speech for {100 * rule.min_share:g} % or more"
            )
    if manifest.mos_range:
        facts["scores"] = "limited to {:g} to {:g}".format(*manifest.mos_range)
    if (spec := manifest.deviation) is not None:
        facts["interval"] = (
            f"from the spread of views, and a predicted standard deviation for {spec.described}"
        )
    facts |= _uncertainty_facts(manifest)
    for name, variant in manifest.variants.items():
        megabytes = sum(file.bytes for file in variant.files) / 1e6
        drift = ", ".join(f"{key} {value}" for key, value in variant.drift.items())
        members = ", ".join(member.name for member in variant.members)
        drift = drift or "drift not measured"
        facts[f"variant {name}"] = f"{megabytes:.1f} MB ({members}); {drift}"
    for key, value in manifest.provenance.items():
        facts[key] = value if isinstance(value, str) else json.dumps(value)
    return facts


def _uncertainty_facts(manifest: Manifest) -> dict[str, str]:
    """The manifest's section on uncertainty as lines; none for a model that predicts MOS."""
    spec = manifest.uncertainty
    if spec is None:
        return {}
    sign, rate_hz = "" if spec.sign > 0 else "-", manifest.sample_rate_hz
    facts = {
        "uncertainty": f"{sign}{spec.measure}; layouts {', '.join(spec.layouts)}; seed {spec.seed}",
        "chunks": f"at most {spec.window_samples / rate_hz:g} s; a value per "
        f"{1e3 * spec.hop_samples / rate_hz:g} ms",
    }
    if (contrast := spec.contrast) is not None:
        last = contrast.first_horizon + contrast.n_steps - 1
        facts["predicts"] = (
            f"frames {contrast.first_horizon} to {last} ahead, against {contrast.n_negatives}"
        )
    if (dropout := spec.dropout) is not None:
        facts["dropout"] = f"{dropout.probability:g}, {dropout.n_passes} passes"
    if (masking := spec.masking) is not None:
        facts["masking"] = f"{masking.probability:g} of frames, {masking.n_passes} passes"
    facts["mos"] = "none; fit a map with `mosrt fit-mos`"
    if (fitted := spec.mos_map) is not None:
        facts["mos"] = (
            f"{fitted.kind} map from {fitted.n_clips} recordings ({fitted.description}), "
            f"leave-one-out error {fitted.loo_rmse:.3f}"
        )
    return facts


def _show(facts: Mapping[str, Any], kind: str) -> None:
    if kind == "json":
        click.echo(json_text(facts, sys.stdout, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:<{width}}  {printable(str(text))}")
