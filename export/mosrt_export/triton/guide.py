"""Writes the README of a model repository: how to start the server, and what clients do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from mosrt.backends.engine_file import Target
from mosrt.bundle.manifest import Manifest
from mosrt_export.markdown import rendered

from .config import Serving
from .plan import Plan

__all__ = ["guide"]


def guide(
    manifest: Manifest, variant: str, plan: Plan, serving: Serving, target: Target | None
) -> str:
    """The README as Markdown.

    Args:
        manifest: Manifest of the bundle.
        variant: Name of the variant that is served.
        plan: Models of the repository.
        serving: How the server runs them.
        target: TensorRT and GPU of the engines, or None.
    """
    spec, ssl, mel = manifest.uncertainty, manifest.ssl, manifest.mel
    in_graph = manifest.front_end == "graph"
    limit = max(network.max_batch for network in plan.networks.values())
    inputs = {tensor.name for network in plan.networks.values() for tensor in network.inputs}
    conditions = {
        "engines": target is not None,
        "cuda": serving.gpu and target is None,
        "cpu": not serving.gpu,
        "uncertainty": spec is not None,
        "stages": spec is not None and plan.model is not None and len(plan.networks) > 1,
        "normalised": spec is not None and spec.normalised,
        "unscaled": spec is not None and not spec.normalised,
        # Inputs that a client samples or selects.
        **{name: name in inputs for name in ("negatives", "keep", "spans", "queries")},
        "views": spec is None,
        "batched": limit > 1,
        "single": limit == 1,
        "mean": plan.mean is not None,
        "ssl": ssl is not None and not in_graph,
        "ssl_in_graph": ssl is not None and in_graph,
        "mel": mel is not None and not in_graph,
        "mel_in_graph": mel is not None and in_graph,
    }
    return rendered(
        "triton-readme.md",
        conditions,
        manifest=manifest,
        variant=variant,
        version=importlib.metadata.version("mosrt"),
        plan=plan,
        limit=limit,
        copies=_counted(serving.instances, "copy", "copies"),
        target=target,
        models="\n".join(_row(name, config) for name, config in plan.configs.items()),
        scores=manifest.outputs[0].name,
        domains=", ".join(manifest.domains),
        spec=spec,
        window_s=0 if spec is None else spec.window_samples / manifest.sample_rate_hz,
        grid=manifest.grid,
        ssl=ssl,
        mel=mel,
        crops="" if mel is None else _counted(mel.n_crops, "crop", "crops"),
        windows="" if mel is None else ", ".join(map(str, mel.windows)),
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _row(name: str, config: Mapping[str, Any]) -> str:
    """A row of the table of models."""
    ensemble = " (ensemble)" if "ensemble_scheduling" in config else ""
    inputs, outputs = (
        ", ".join(_tensor(tensor, config["max_batch_size"]) for tensor in config[kind])
        for kind in ("input", "output")
    )
    return f"| {name}{ensemble} | {inputs} | {outputs} |"


def _tensor(tensor: Mapping[str, Any], max_batch: int) -> str:
    sizes = [str(size) for size in tensor["dims"]]
    shape = ", ".join(["batch", *sizes] if max_batch else sizes)
    return f"{tensor['name']} {tensor['data_type'].removeprefix('TYPE_')} ({shape})"
