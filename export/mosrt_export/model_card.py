"""Writes model cards: what a bundle was trained on, what its scores mean and where they fail."""

from __future__ import annotations

import re
import textwrap
from typing import Final

from mosrt.bundle.manifest import Manifest

__all__ = ["WIDTH", "mos_card", "refilled", "uncertainty_card"]

WIDTH: Final = 100
_ITEM: Final = re.compile(r"- ")
_KEPT: Final = re.compile(r"#|\|")  # headings and table rows stay on their own line

_MOS: Final = """\
# {name}

Predicts how natural speech sounds to listeners: a mean opinion score (MOS) from 1 (bad) to
5 (excellent), from the recording alone, without a reference or a transcript.

## Where it comes from

{origin}

- Architecture: {architecture}.
- Weights: {sources}
- Licence of the weights: {licence}.
- Converted by mosrt {exporter} (torch {torch}, timm {timm}, transformers {transformers}).

## What it was trained on

{training_data}.

Data domains: {domains}. The domain selects the listening test on whose scale a score is; it adds a
constant that is the same for every recording. The default is {default_domain}.

## How to read a score

- The head is linear and not clipped: values a little outside 1 to 5 occur.
- The score estimates the mean of a listening test; it is not a measurement. Differences between
  systems, averaged over many recordings, are more reliable than the score of one recording.
- The interval of a score is the spread of this estimator over crops and networks. It does not say
  how much listeners would disagree.
- Do not optimise a system for this score alone: it would learn the model's blind spots.

## Known failures

- Silence, music, noise and other sounds that are not speech get a score, which means nothing.
- The model judges how natural speech sounds. It does not notice wrong words, a wrong speaker or a
  wrong language.
- The training data are mostly English read speech. Other languages, children, singing, strong
  accents, shouting and whispering are outside of it.
- Recordings are resampled to {sample_rate_hz} Hz: nothing above {limit_hz} Hz affects the score.
- Very short recordings are repeated until they fill the model's crops, and the repetition is
  audible.
- Long recordings are judged from a few crops; a defect between two crops goes unnoticed.
- Telephone bandwidth, reverberation and background noise were rare in training; scores of enhanced
  or recorded speech are less reliable than scores of synthetic speech.

## Agreement with the original

Largest difference of the FP32 graph from the torch modules, in MOS: {drift}.

## Credits

{credits}
"""
_PUBLISHED: Final = (
    'UTMOSv2, the T05 system: K. Baba, W. Nakata, Y. Saito and H. Saruwatari, "The T05 System for '
    "the VoiceMOS Challenge 2024: Transfer Learning from Deep Image Classifier to Naturalness MOS "
    'Prediction of High-Quality Synthetic Speech" (SLT 2024, arXiv 2409.09305), weights published '
    "by sarulab-speech at https://github.com/sarulab-speech/UTMOSv2 and "
    "https://huggingface.co/sarulab-speech/UTMOSv2 (MIT)."
)
_OTHER: Final = (
    "A checkpoint with the architecture of UTMOSv2 (arXiv 2409.09305), trained by someone else "
    "or under another name. Its authors know its data and its failures; the failures below are "
    "those of the published model."
)
_ENCODER: Final = "a wav2vec 2.0-style encoder on the waveform"
_IMAGES: Final = "convolutional networks on mel spectrograms"
_ARCHITECTURES: Final = {
    "fusion": f"{_ENCODER} and {_IMAGES}, joined by one linear layer",
    "spec": f"{_IMAGES}, and one linear layer",
    "ssl": f"{_ENCODER}, and one linear layer",
}
_UNCERTAINTY: Final = """\
# {name}

{note}Ranks speech recordings by the uncertainty of a self-supervised model: the model has learned
what speech sounds like and is less certain of poor speech (arXiv 2312.15616). No ratings by
listeners were used.

## Where it comes from

- Model family: {family}.
- Weights: {sources}
- Licence of the weights: {licence}.
- Trained on: {training_data}.
- Converted by mosrt {exporter} (torch {torch}).

## How to read a score

- The uncertainty is {measure}, {sign}: the larger, the worse the recording probably is.
- It ranks recordings and has no scale of its own. A bundle gives a MOS only after `mosrt fit-mos`
  has fitted a map to rated recordings.
- Scores of different models, and of recordings of very different lengths, are not comparable.
- Random sampling uses seed {seed}; the same recording gives the same score.
- A recording longer than {window_s:g} s is split into chunks of equal length, which are processed
  independently.

## Known failures

- The model is also uncertain of speech that was not in its training data: other languages, singing,
  shouting, children, distant microphones.
- The score depends on the level: a quiet recording may get another score than the same one louder.
- Silence, music and noise alone get a score, which means nothing.
- Wrong words, a wrong speaker or a wrong language are not noticed.
- Recordings are resampled to {sample_rate_hz} Hz: nothing above {limit_hz} Hz affects the score.

## Agreement with the original

Largest differences of the FP32 graphs from the torch modules: {drift}.
"""


def mos_card(manifest: Manifest) -> str:
    """The model card of a MOS model, as Markdown.

    Args:
        manifest: A complete manifest with provenance and the measured drift of "fp32".
    """
    provenance = manifest.provenance
    versions = provenance["versions"]
    published = all("repository" in checkpoint for checkpoint in provenance["checkpoints"])
    encoder = provenance["config"]["ssl"]["encoder"]["model_type"]
    thanks = [
        "- UTMOSv2 (arXiv 2409.09305), sarulab-speech, MIT: architecture"
        + (", training and weights." if published else "; see above for the weights.")
    ]
    if manifest.ssl is not None:
        thanks.append(
            "- wav2vec2-base (arXiv 2006.11477), facebook, Apache-2.0: the SSL encoder's "
            "pre-trained weights, from which UTMOSv2 was trained."
            if encoder == "wav2vec2"
            else f"- The SSL encoder is of the type {encoder} as implemented in transformers."
        )
    if manifest.mel is not None:
        backbone = provenance["config"]["spectrogram"]["backbone"]
        thanks.append(f"- timm's {backbone}, Apache-2.0: the image networks' architecture.")
    return refilled(
        _MOS.format(
            **_common(manifest),
            origin=_PUBLISHED if published else _OTHER,
            architecture=_ARCHITECTURES[manifest.family],
            timm=versions["timm"],
            transformers=versions["transformers"],
            domains=", ".join(manifest.domains),
            default_domain=manifest.default_domain,
            drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
            credits="\n".join(thanks),
        )
    )


def uncertainty_card(manifest: Manifest) -> str:
    """The model card of an uncertainty model, as Markdown.

    Args:
        manifest: A complete manifest with provenance and the measured drift of "fp32".

    Raises:
        ValueError: The manifest is of a model that gives no uncertainty.
    """
    spec = manifest.uncertainty
    if spec is None:
        raise ValueError(f"{manifest.name} gives no uncertainty")
    note = manifest.provenance.get("note")
    drift = manifest.variants["fp32"].drift
    differences = ", ".join(
        f"{name.removesuffix('_max_rel')} {value:.1e}"
        for name, value in drift.items()
        if name.endswith("_max_rel")
    )
    return refilled(
        _UNCERTAINTY.format(
            **_common(manifest),
            note=f"{note}\n\n" if note else "",
            family=manifest.family,
            measure=f"`{spec.measure}`",
            sign="unchanged" if spec.sign > 0 else "negated",
            seed=spec.seed,
            window_s=spec.window_samples / manifest.sample_rate_hz,
            drift=f"{differences} (relative, on {drift['n_clips']} clips)",
        )
    )


def refilled(text: str) -> str:
    """Breaks paragraphs and list items at 100 columns; headings and tables stay as they are.

    Args:
        text: Markdown without code blocks or nested lists.
    """
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip() or _KEPT.match(line):
            blocks += [[line], []]
        elif _ITEM.match(line):
            blocks.append([line])
        else:
            blocks[-1].append(line.strip())
    return "\n".join(_filled(block) for block in blocks if block) + "\n"


def _common(manifest: Manifest) -> dict[str, object]:
    """The fields of both kinds of card."""
    provenance = manifest.provenance
    return {
        "name": manifest.name,
        "sources": "; ".join(
            f"`{checkpoint['file']}`"
            + (f" (SHA-256 `{checkpoint['sha256']}`)" if "sha256" in checkpoint else "")
            for checkpoint in provenance["checkpoints"]
        ),
        "licence": provenance["licence"],
        "training_data": provenance["training_data"],
        "exporter": provenance["versions"]["mosrt"],
        "torch": provenance["versions"]["torch"],
        "sample_rate_hz": manifest.sample_rate_hz,
        "limit_hz": manifest.sample_rate_hz // 2,
    }


def _filled(lines: list[str]) -> str:
    text = " ".join(lines)
    if _KEPT.match(text):
        return text
    indent = "  " if _ITEM.match(text) else ""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
