"""Exporting: a trained checkpoint becomes a bundle, compared with torch on the way."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import GridSpec, SslSpec
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.writer import bundle_file, new_directory, write_card, write_manifest
from mosrt.host.files import sha256_of
from mosrt_export.errors import ParityError
from mosrt_export.graphs.canonical import BATCH
from mosrt_export.graphs.front_end import AudioGraph, taking_audio
from mosrt_export.graphs.graph import OPSET, OnnxModule, write_graph
from mosrt_export.graphs.rewrites import fold_batch_norm
from mosrt_export.model_card import refilled
from mosrt_export.nano.data.clips import CLIP_SAMPLES
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.data.voices import SAMPLE_RATE_HZ
from mosrt_export.utmosv2.parity import TOLERANCE_MOS, Drift, compare, make_views

from .model import OVERALL, NanoGraph, load_nano
from .network import Combination
from .training import Standardisation

__all__ = ["default_score", "export_nano", "nano_card"]

_CARD: Final = """\
# {name}

A small model that scores how good speech sounds, from about 1 (bad) to 5 (excellent), learned from
published quality models rather than from listeners. {architecture}

## What it says

- `overall` (the default): {formula}. A ranking on a scale that looks like MOS; not the result of a
  listening test.
- `bvcc`: what DNSMOS Pro, trained on the listening tests of BVCC, would say: naturalness of
  synthetic speech.
- `p808`: what DNSMOS P.808 would say: quality as rated by crowds by ITU-T P.808.
- `fidelity`: how close a clip is to a clean original that is not there (wide-band PESQ blended with
  log-spectral distance, 1 to 5): a meter of noise, codecs, clipping and dropouts. Smooth synthetic
  speech looks clean to it.
- `anchor`: where the kind of machine that speaks would stand, times what is wrong with the clip:
  recordings above statistical synthesis, diphones and formants. It knows a dozen old engines and
  nothing of new ones.

## Good for

- Finding the broken clips of a production run: noise, clipping, dropouts, codecs, robotic voices.
- Comparing versions of one system over many clips, where differences are plain.
- Checking an installation, a device or a precision with real weights.

## Not for

- Ranking the best neural systems against one another: the top of the scale is learned from two
  recorded voices, and differences of less than about 0.2 in the mean of many clips mean nothing.
- Claims in papers. Say "predicted by mosrt {name}", and run a listening test.
- Mild damage to voices it does not know, by `fidelity` alone: it takes what a coder or an engine
  did to such a voice before for damage, and a low pass or a little noise that hides it may even
  raise the score. The default score does fall.
- Singing, children, music, whispering: never heard in training.

## What it was trained on

{hours} hours ({clips} clips of 5 s) made by a script: two recorded voices (US English and German,
both female, CC0), varied in pitch, formants, speed and rooms; flite, festival and espeak-ng
reading generated sentences; and all of them resynthesised, degraded and coded in 25 ways. No clip
of a modern neural system was heard. Labels come from the two teachers and from full reference; no
listener rated anything. Seed {seed}, data SHA-256 `{digest}`.

## Measured

{evaluation}

Correlation (Pearson / Spearman) with the labels of clips not trained on, by network:

{ablation}

{branches}

## How it listens

{sample_rate_hz} Hz mono, 5 s at a time; shorter clips are repeated, longer ones get a view per 5 s.
The level does not matter: each view is set to its own maximum. Nothing above
{limit_hz} Hz and nothing more than 100 dB below a view's maximum matters.
Largest difference of the FP32 graph from torch, in MOS: {drift}.

## Licences and credit

- Weights and code: {licence}.
- DNSMOS Pro (F. Cumlin, X. Liang, V. Ungureanu, C. K. A. Reddy, C. Schüldt, S. Chatterjee,
  Interspeech 2024), MIT, © 2024 Fredrik Cumlin, KTH: teacher of `bvcc`.
- DNSMOS P.808 (C. K. A. Reddy, V. Gopal, R. Cutler, ICASSP 2021), Microsoft, CC-BY-4.0, code MIT:
  teacher of `p808`.
- Recordings: dataset-voice-kathleen and dataset-voice-kerstin (rhasspy), CC0 1.0.
- The idea: the T05 system, UTMOSv2 (K. Baba, W. Nakata, Y. Saito, H. Saruwatari, SLT 2024).
"""


def nano_card(manifest: Manifest) -> str:
    """The text of model-card.md, in Markdown.

    Args:
        manifest: Complete, with provenance and the measured drift of "fp32".
    """
    provenance = manifest.provenance
    training = provenance["training"]
    evaluation = provenance.get("evaluation") or {}
    card = _CARD.format(
        name=manifest.name,
        architecture=_architecture(manifest),
        formula=_formula(provenance["combination"]),
        hours=training["hours"],
        clips=training["clips"],
        seed=training["seed"],
        digest=training["data_sha256"],
        evaluation="\n".join(f"- {claim}: {figure}" for claim, figure in evaluation.items())
        or "Not evaluated yet.",
        ablation=_ablation(training["ablation"]),
        branches=_branches(manifest),
        sample_rate_hz=manifest.sample_rate_hz,
        limit_hz=manifest.sample_rate_hz // 2,
        drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
        licence=provenance["licence"],
    )
    return refilled(card)


def _architecture(manifest: Manifest) -> str:
    if manifest.family == "fusion":
        return (
            "A convolutional network on log-mel images of two windows and a wav2vec v1 encoder on "
            "the waveform, joined by a head that is conditioned on the source of the labels."
        )
    return (
        "A convolutional network on log-mel images of two windows, and a head that is "
        "conditioned on the source of the labels."
    )


def _formula(combination: dict[str, object]) -> str:
    averaged, penalties = combination["averaged"], combination["penalties"]
    if not isinstance(averaged, dict) or not isinstance(penalties, dict):
        raise TypeError("a combination holds two tables")
    scale = combination["scale"]
    if not isinstance(scale, float):
        raise TypeError("a combination's scale is a number")
    text = f"{combination['offset']} + {combination['scale']} times the mean of the z-scores of "
    text += " and ".join(f"`{name}`" for name in averaged)
    for name, rule in penalties.items():
        cost = f"{rule['slope'] * scale:g}"
        text += f", less {cost} for every point that `{name}` is below {rule['threshold']}"
    return text


def _ablation(table: dict[str, dict[str, list[float]]]) -> str:
    domains = list(next(iter(table.values())))
    lines = ["| network | " + " | ".join(domains) + " |", "|---" * (len(domains) + 1) + "|"]
    for network, row in table.items():
        cells = " | ".join(f"{row[name][0]:.3f} / {row[name][1]:.3f}" for name in domains)
        lines.append(f"| {network} | {cells} |")
    return "\n".join(lines)


def _branches(manifest: Manifest) -> str:
    if manifest.family == "fusion":
        return "Both branches earn their cost."
    if "ssl" not in manifest.provenance["training"]["ablation"]:
        return "No waveform branch was tried."
    return (
        "A self-supervised waveform encoder was trained as a second branch. It added too little to "
        "earn its cost and was dropped."
    )


# The two listener domains count the same. Fidelity and anchor only pull down what is plainly broken
# or plainly an old machine: above that they say nothing about how natural modern synthesis sounds.
_AVERAGED: Final = ("p808", "bvcc")
_PENALTIES: Final = {"fidelity": (3.0, 0.4), "anchor": (2.8, 0.5)}
_OFFSET: Final = 3.4
_SCALE: Final = 0.6

_LICENCE: Final = "MIT"
_MEMBER: Final = "nano"
_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript")


def export_nano(
    checkpoint: Path,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    evaluation: Mapping[str, str],
    front_end: str = "numpy",
    force: bool = False,
) -> Drift:
    """Writes the bundle of a checkpoint that `mosrt_export.nano train` wrote.

    Args:
        checkpoint: The file.
        out: The bundle's directory to be.
        clips: Audio on which graph and torch module are compared.
        evaluation: Measured figures for the model card, by claim.
        front_end: One of `mosrt.bundle.front_end_spec.FRONT_ENDS`.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        What was measured, which is also in the manifest.

    Raises:
        NanoError: The checkpoint cannot be used.
        OutputError: `out` must not or cannot be written.
        ParityError: Graph and torch module disagree; nothing was written.
    """
    model, standard, training = load_nano(checkpoint)
    combination = default_score(standard)
    faithful = NanoGraph(model, standard, combination)
    graph: OnnxModule = folded(faithful)
    ssl = None
    if model.ssl is not None:
        ssl = SslSpec(tensor="waveform", crop_samples=CLIP_SAMPLES, epsilon=1e-7)
    mel = None if model.mel is None else MEL
    manifest = Manifest(
        name=out.name,
        family=faithful.kind,
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=ssl,
        mel=mel,
        domains=faithful.domains,
        default_domain=OVERALL,
        inputs=_inputs(faithful),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=(BATCH, size))
            for name, size in graph.output_sizes.items()
        ),
        variants={},
        grid=GridSpec(view_every_s=CLIP_SAMPLES / SAMPLE_RATE_HZ, min_views=1, max_views=12),
        provenance=_provenance(checkpoint, training, combination, evaluation),
    )
    if front_end == "graph":
        graph = AudioGraph(graph, ssl=ssl, mel=mel, sample_rate_hz=SAMPLE_RATE_HZ)
        manifest = taking_audio(manifest)
    with new_directory(out, force=force) as directory:
        shapes = {
            tensor.name: tuple(int(size) for size in tensor.shape[1:]) for tensor in manifest.inputs
        }
        files = write_graph(
            graph,
            shapes,
            directory / "model.fp32.onnx",
        )
        member = Member(name=_MEMBER, graph=bundle_file(files[0]), weights=bundle_file(files[1]))
        variant = Variant(opset=OPSET, members=(member,))
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        views = make_views(manifest, clips)
        drift = Drift(rows=tuple(compare(directory, manifest, member, faithful, views)))
        if not drift.passed:
            raise ParityError(
                f"the graph differs from torch by more than {TOLERANCE_MOS:g} MOS, or is not "
                f"finite; nothing was written\n{drift.table()}"
            )
        variant = dataclasses.replace(variant, drift=drift.to_dict())
        manifest = dataclasses.replace(manifest, variants={"fp32": variant})
        write_manifest(directory, manifest)
        write_card(directory, nano_card(manifest))
    return drift


def default_score(standard: Standardisation) -> Combination:
    """How the default score is made: z-scores are taken over the training data.

    Rounded, so that the card tells what the graph computes.
    """
    return Combination(
        averaged={
            name: (
                round(float(standard.mean[LABELS.index(name)]), 3),
                round(float(standard.deviation[LABELS.index(name)]), 3),
            )
            for name in _AVERAGED
        },
        penalties=_PENALTIES,
        offset=_OFFSET,
        scale=_SCALE,
    )


def folded(model: NanoGraph) -> NanoGraph:
    """The same scores without batch norms: folded into the convolutions before them."""
    graph = copy.deepcopy(model)
    if graph.model.mel is not None:
        example = torch.zeros(1, len(MEL.windows), MEL.image_height, MEL.image_width)
        fold_batch_norm(graph.model.mel, example)
    return graph.eval().requires_grad_(False)


def _inputs(graph: NanoGraph) -> tuple[TensorSpec, ...]:
    shapes: dict[str, tuple[int | str, ...]] = {
        "waveform": (BATCH, CLIP_SAMPLES),
        "images": (BATCH, len(MEL.windows), MEL.image_height, MEL.image_width),
    }
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in graph.input_names
    )


def _provenance(
    checkpoint: Path,
    training: dict[str, Any],
    combination: Combination,
    evaluation: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "checkpoints": [
            {"member": _MEMBER, "file": checkpoint.name, "sha256": sha256_of(checkpoint)}
        ],
        "licence": _LICENCE,
        "training": training,
        "combination": {"of": OVERALL, **combination.to_dict()},
        "evaluation": dict(evaluation),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
