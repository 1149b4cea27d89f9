"""Guide: the README of a model repository."""

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
# What clients hand in beside recordings, by the name of the input.
_DRAWN: Final = {
    "negatives": "frames to tell each frame from: indices below the number of frames",
    "keep": "masks of dropout, one per pass: 0, or 1 / (1 - probability), for each feature",
    "spans": "1 for each frame that is masked, else 0",
    "queries": "rows of the encoder's output `predictions`; no ensemble can pick them",
}


def guide(
    manifest: Manifest, variant: str, plan: Plan, serving: Serving, target: Target | None
) -> str:
    """The README, as Markdown.

    Args:
        manifest: Of the bundle that is served.
        variant: Its variant.
        plan: The models.
        serving: How they are run.
        target: What the engines are for, if there are any.
    """
    version = importlib.metadata.version("mosrt")
    parts = [
        f"# {manifest.name} on Triton\n\nA model repository for NVIDIA's Triton Inference Server, "
        f"made by mosrt {version} from the bundle {manifest.name}, variant {variant}. The server "
        "needs no Python and no mosrt. See model-card.md for what the model is good for.",
        "## Server",
        _code(_start(serving, target)),
        _server_notes(serving, target),
        "## Models",
        _models(plan),
        _model_notes(manifest, plan),
        "## What is left to the client",
        "\n".join(_duties(manifest, plan)),
        "## Client",
        _code(_CLIENT),
        "client.py does all of that with mosrt: it puts the server where mosrt has a backend, and "
        "gives what `mosrt.load(...).score_file` gives. It reads mosrt-model.json, no network.",
    ]
    return "\n".join(part if part.startswith("```") else refilled(part) for part in parts)


def _code(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


def _start(serving: Serving, target: Target | None) -> str:
    # Else TensorFloat-32 takes the place of float32 in ONNX Runtime's CUDA kernels.
    exact = "NVIDIA_TF32_OVERRIDE=0 " if serving.gpu and target is None else ""
    return exact + _START


def _server_notes(serving: Serving, target: Target | None) -> str:
    copies = f"{serving.instances} {'copy' if serving.instances == 1 else 'copies'}"
    if target is not None:
        return (
            f"Engines for {target}, {copies} per GPU. They run with exactly that: a server of "
            "another release brings another TensorRT, so build with the one that it has."
        )
    if serving.gpu:
        return (
            f"ONNX Runtime on CUDA, {copies} per GPU. The variable keeps float32 what it is: "
            "without it, kernels may compute in TensorFloat-32, which has 10 bits of fraction."
        )
    return f"ONNX Runtime on the CPU, {copies}."


def _models(plan: Plan) -> str:
    rows = ["| model | takes | gives |", "|---|---|---|"]
    for name, config in plan.configs.items():
        ensemble = " (ensemble)" if "ensemble_scheduling" in config else ""
        takes, gives = (
            ", ".join(_tensor(tensor, config["max_batch_size"]) for tensor in config[kind])
            for kind in ("input", "output")
        )
        rows.append(f"| {name}{ensemble} | {takes} | {gives} |")
    return "\n".join(rows)


def _tensor(tensor: Mapping[str, Any], max_batch: int) -> str:
    sizes = [str(size) for size in tensor["dims"]]
    shape = ", ".join(["batch", *sizes] if max_batch else sizes)
    return f"{tensor['name']} {tensor['data_type'].removeprefix('TYPE_')} ({shape})"


def _model_notes(manifest: Manifest, plan: Plan) -> str:
    if manifest.uncertainty is not None:
        whole = (
            f" {plan.model} runs those graphs that need no client in between; it does not give "
            "what they hand to each other."
            if plan.model is not None and len(plan.networks) > 1
            else ""
        )
        return (
            "A size of -1 is any, 1 one recording: norms span the recording, so requests are not "
            f"joined.{whole}"
        )
    limit = max(network.max_batch for network in plan.networks.values())
    text = (
        f"A request has 1 to {limit} views; those of several clients are run together. "
        if limit > 1
        else "A request has one view, and views are run one by one. "
    )
    if limit > 1:
        text += "Kernels differ by batch, so a score may differ in its last digits with company. "
    if plan.mean is not None:
        scores = manifest.outputs[0].name
        text += (
            f"Ensembles of Triton pass tensors on and compute nothing, so {plan.mean.name} is a "
            f"graph that averages. {plan.model} gives the mean over networks, and every network's "
            f"own scores as {scores}_networks, for the interval. The networks can be asked one "
            "by one, also for their features."
        )
    return text


def _duties(manifest: Manifest, plan: Plan) -> Iterator[str]:
    yield (
        f"- Decode, average channels, resample to {manifest.sample_rate_hz} Hz (mosrt: soxr HQ), "
        "float32 in [-1, 1]. The level stays as it is."
    )
    if manifest.uncertainty is not None:
        yield from _uncertainty_duties(manifest, manifest.uncertainty, plan)
    else:
        yield from _view_duties(manifest)


def _view_duties(manifest: Manifest) -> Iterator[str]:
    grid, ssl, mel = manifest.grid, manifest.ssl, manifest.mel
    yield (
        f"- Choose {grid.min_views} to {grid.max_views} views, one per {grid.view_every_s:g} s or "
        "part begun. The crops of all views are spread evenly from the first possible start to the "
        "last, a single one sits in the middle; crops of spectrograms are dealt to the views in "
        "turn. A recording no longer than a crop is repeated first."
    )
    in_graph = manifest.front_end == "graph"
    if ssl is not None:
        scaled = "" if in_graph else f", scaled to (x - mean) / sqrt(variance + {ssl.epsilon:g})"
        yield f"- {ssl.tensor}: a crop of {ssl.crop_samples} samples{scaled}."
    if mel is not None and in_graph:
        yield (
            f"- {mel.tensor}: {_crops(mel)} of {mel.crop_samples} samples as they are; the graph "
            "draws the spectrograms."
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
        f"{', '.join(manifest.domains)}; {manifest.default_domain} is the one meant if none is "
        "named. The interval is Student's t over views and networks."
    )


def _crops(mel: MelSpec) -> str:
    return f"{mel.n_crops} {'crop' if mel.n_crops == 1 else 'crops'}"


def _uncertainty_duties(manifest: Manifest, spec: UncertaintySpec, plan: Plan) -> Iterator[str]:
    rate_hz = manifest.sample_rate_hz
    yield (
        f"- Take the recording whole, up to {spec.window_samples / rate_hz:g} s, a longer one in "
        f"the fewest equal pieces; at least {spec.min_samples} samples. One under "
        f"{spec.zero_pad_below_samples} samples gets as many zeros in front as it has samples."
    )
    scaled = "scaled to (x - mean) / sqrt(variance + 1e-7)" if spec.normalised else "as it is"
    yield (
        f"- waveform: a piece, {scaled}. It has (samples - {spec.receptive_samples}) / "
        f"{spec.hop_samples} + 1 frames, rounded down."
    )
    inputs = {tensor.name for network in plan.networks.values() for tensor in network.inputs}
    yield from (f"- {name}: {text}." for name, text in _DRAWN.items() if name in inputs)
    yield (
        f"- The uncertainty is the mean over all rows of the logits of {spec.measure}, sign "
        f"{spec.sign:+d}; how rows are arranged and measured is in mosrt.families and "
        "mosrt.uncertainty.family. Other draws than mosrt's give other figures."
    )
