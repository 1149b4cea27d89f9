"""Writes the README of a model repository: how to start the server, and what clients do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mosrt.backends.engine_file import Target
from mosrt.bundle.front_end_spec import MelSpec
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.uncertainty_spec import UncertaintySpec
from mosrt_export.model_card import refilled

from .config import Serving
from .plan import Plan

__all__ = ["guide"]

_START: Final = "tritonserver --model-repository=REPOSITORY --disable-auto-complete-config"
_CLIENT: Final = """\
pip install mosrt 'tritonclient[http]'
python client.py speech.wav --url localhost:8000
"""
# Inputs that a client samples or selects, by name.
_SAMPLED: Final = {
    "negatives": "distractors of each frame: sampled indices of frames",
    "keep": "dropout masks, one per pass: 0 or 1 / (1 - probability) for each feature",
    "spans": "1 for each frame that is masked, else 0",
    "queries": "rows of the encoder's output `predictions`, which the client selects",
}


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
    version = importlib.metadata.version("mosrt")
    parts = [
        f"# {manifest.name} on Triton\n\nA model repository for NVIDIA's Triton Inference Server, "
        f"made by mosrt {version} from the bundle {manifest.name}, variant {variant}. The server "
        "needs neither Python nor mosrt. model-card.md describes what the model is good for.",
        "## Server",
        _code(_start(serving, target)),
        _server_notes(serving, target),
        "## Models",
        _models(plan),
        _model_notes(manifest, plan),
        "## What the client does",
        "\n".join(_duties(manifest, plan)),
        "## Client",
        _code(_CLIENT),
        "client.py does all of this with mosrt. It uses the server as a backend of mosrt and "
        "returns the same scores as `mosrt.load(...).score_file`. It reads mosrt-model.json, and "
        "needs no model files.",
    ]
    return "\n".join(part if part.startswith("```") else refilled(part) for part in parts)


def _code(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


def _start(serving: Serving, target: Target | None) -> str:
    # Otherwise ONNX Runtime's CUDA kernels compute in TensorFloat-32.
    exact = "NVIDIA_TF32_OVERRIDE=0 " if serving.gpu and target is None else ""
    return exact + _START


def _server_notes(serving: Serving, target: Target | None) -> str:
    copies = f"{serving.instances} {'copy' if serving.instances == 1 else 'copies'}"
    if target is not None:
        return (
            f"Engines for {target}, {copies} per GPU. They need exactly this version of "
            "TensorRT, so build them with the version of the server's release."
        )
    if serving.gpu:
        return (
            f"ONNX Runtime on CUDA, {copies} per GPU. Without the variable, kernels may "
            "compute in TensorFloat-32, which has a mantissa of 10 bits."
        )
    return f"ONNX Runtime on the CPU, {copies}."


def _models(plan: Plan) -> str:
    rows = ["| model | inputs | outputs |", "|---|---|---|"]
    for name, config in plan.configs.items():
        ensemble = " (ensemble)" if "ensemble_scheduling" in config else ""
        inputs, outputs = (
            ", ".join(_tensor(tensor, config["max_batch_size"]) for tensor in config[kind])
            for kind in ("input", "output")
        )
        rows.append(f"| {name}{ensemble} | {inputs} | {outputs} |")
    return "\n".join(rows)


def _tensor(tensor: Mapping[str, Any], max_batch: int) -> str:
    sizes = [str(size) for size in tensor["dims"]]
    shape = ", ".join(["batch", *sizes] if max_batch else sizes)
    return f"{tensor['name']} {tensor['data_type'].removeprefix('TYPE_')} ({shape})"


def _model_notes(manifest: Manifest, plan: Plan) -> str:
    if manifest.uncertainty is not None:
        whole = (
            f" {plan.model} runs the graphs that need no client in between, and does not return "
            "the tensors that they pass on."
            if plan.model is not None and len(plan.networks) > 1
            else ""
        )
        return (
            "A size of -1 is dynamic. A request has one recording; requests are not batched, "
            f"because norms span the recording.{whole}"
        )
    limit = max(network.max_batch for network in plan.networks.values())
    text = (
        f"A request has 1 to {limit} views; requests of several clients are batched. "
        if limit > 1
        else "A request has one view, and views are processed one by one. "
    )
    if limit > 1:
        text += "Kernels depend on the batch size, and with them the last digits of a score. "
    if plan.mean is not None:
        scores = manifest.outputs[0].name
        text += (
            f"An ensemble of Triton computes nothing itself, so {plan.mean.name} is a graph that "
            f"averages. {plan.model} returns the mean over networks, and the scores of every "
            f"network as {scores}_networks, for the interval. Each network can also be called "
            "alone, and returns its features, too."
        )
    return text


def _duties(manifest: Manifest, plan: Plan) -> Iterator[str]:
    yield (
        f"- Decode, average channels and resample to {manifest.sample_rate_hz} Hz (mosrt: soxr "
        "HQ), as float32 in [-1, 1]. Do not normalise the level."
    )
    if manifest.uncertainty is not None:
        yield from _uncertainty_duties(manifest, manifest.uncertainty, plan)
    else:
        yield from _view_duties(manifest)


def _view_duties(manifest: Manifest) -> Iterator[str]:
    grid, ssl, mel = manifest.grid, manifest.ssl, manifest.mel
    yield (
        f"- Choose {grid.min_views} to {grid.max_views} views, one per {grid.view_every_s:g} s, "
        "rounded up. The crops of all views are spread evenly from the first possible start to the "
        "last; a single crop is in the middle. Crops of spectrograms are assigned to the views in "
        "turn. A recording that is not longer than a crop is repeated first."
    )
    in_graph = manifest.front_end == "graph"
    if ssl is not None:
        scaled = "" if in_graph else f", scaled to (x - mean) / sqrt(variance + {ssl.epsilon:g})"
        yield f"- {ssl.tensor}: a crop of {ssl.crop_samples} samples{scaled}."
    if mel is not None and in_graph:
        yield (
            f"- {mel.tensor}: {_crops(mel)} of {mel.crop_samples} samples, unscaled; the graph "
            "computes the spectrograms."
        )
    elif mel is not None:
        yield (
            f"- {mel.tensor}: of {_crops(mel)} of {mel.crop_samples} samples, one after the other, "
            f"an image per periodic Hann window of {', '.join(map(str, mel.windows))} samples: "
            f"centred power spectra (FFT {mel.n_fft}, hop {mel.hop_length}), {mel.n_mels} Slaney "
            f"mel bands from {mel.f_min_hz:g} to {mel.f_max_hz:g} Hz, decibels from "
            f"{mel.floor_db:g} below the image's maximum (0) to it (1), resized in time to "
            f"{mel.image_width} columns. Details: mosrt.mel.front_end."
        )
    scores = manifest.outputs[0].name
    yield (
        f"- The score is the mean of {scores} over views. Its columns are "
        f"{', '.join(manifest.domains)}; {manifest.default_domain} is the "
        "default. The interval is Student's t over views and networks."
    )


def _crops(mel: MelSpec) -> str:
    return f"{mel.n_crops} {'crop' if mel.n_crops == 1 else 'crops'}"


def _uncertainty_duties(manifest: Manifest, spec: UncertaintySpec, plan: Plan) -> Iterator[str]:
    rate_hz = manifest.sample_rate_hz
    yield (
        f"- Use the whole recording up to {spec.window_samples / rate_hz:g} s, and split a longer "
        f"one into the fewest equal chunks; at least {spec.min_samples} samples. A recording under "
        f"{spec.zero_pad_below_samples} samples is preceded by as many zeros as it has samples."
    )
    scaled = "scaled to (x - mean) / sqrt(variance + 1e-7)" if spec.normalised else "unscaled"
    yield (
        f"- waveform: a chunk, {scaled}. It has (samples - {spec.receptive_samples}) / "
        f"{spec.hop_samples} + 1 frames, rounded down."
    )
    inputs = {tensor.name for network in plan.networks.values() for tensor in network.inputs}
    yield from (f"- {name}: {text}." for name, text in _SAMPLED.items() if name in inputs)
    yield (
        f"- The uncertainty is the mean over all rows of the logits of {spec.measure}, sign "
        f"{spec.sign:+d}; how rows are arranged and measured is in mosrt.families and "
        "mosrt.uncertainty.family. Other random samples than mosrt's give other scores."
    )
