"""Model card: what a bundle was trained on, what its scores mean, and where they fail."""

from __future__ import annotations

import textwrap
from typing import Final

from mosrt.bundle.manifest import Manifest

__all__ = ["model_card"]

_WIDTH: Final = 100

_CARD = """\
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

{training_data}

{domains}

## How to read a score

- The head is linear and not clipped: values a little outside 1 to 5 occur.
- It is the mean of a simulated listening test, not a measurement. Differences between systems,
  averaged over many recordings, mean more than the score of one recording.
- An interval given with a score is the spread over crops and networks of this estimator. It says
  nothing about how much listeners would disagree.
- Do not tune a system on this score alone: a model that is optimised against learns its blind
  spots.

## Known failures

- Silence, music, noise and other things that are not speech get a score like any recording, and
  it means nothing.
- It judges how natural speech sounds. It does not notice wrong words, a wrong speaker or a wrong
  language.
- Mostly English read speech was rated. Other languages, children, singing, strong accents, shouting
  and whispering are outside the training data.
- Recordings are heard at {sample_rate_hz} Hz: nothing above {limit_hz} Hz can matter to the score.
- Very short recordings are repeated until they fill the model's crops, which is itself audible.
- Long recordings are judged from a few crops; a defect between two crops goes unnoticed.
- Telephone bandwidth, reverberation and background noise were rare in training; scores of enhanced
  or recorded speech are less reliable than scores of synthetic speech.

## Agreement with the original

Largest difference of the FP32 graph from the torch modules, in MOS: {drift}.

## Credits

{credits}
"""

_PUBLISHED = (
    'UTMOSv2, the T05 system: K. Baba, W. Nakata, Y. Saito and H. Saruwatari, "The T05 System for '
    "the VoiceMOS Challenge 2024: Transfer Learning from Deep Image Classifier to Naturalness MOS "
    'Prediction of High-Quality Synthetic Speech" (SLT 2024, arXiv 2409.09305), weights published '
    "by sarulab-speech at https://github.com/sarulab-speech/UTMOSv2 and "
    "https://huggingface.co/sarulab-speech/UTMOSv2 (MIT)."
)
_OTHER = (
    "A checkpoint with the architecture of UTMOSv2 (arXiv 2409.09305), trained by someone else "
    "or under another name. Whoever trained it knows its data and its failures; the failures below "
    "are those of the published model."
)
_ARCHITECTURES = {
    "fusion": "a wav2vec 2.0-style encoder on the waveform and convolutional networks on mel "
    "spectrograms, joined by one linear layer",
    "spec": "convolutional networks on mel spectrograms, and one linear layer",
    "ssl": "a wav2vec 2.0-style encoder on the waveform, and one linear layer",
}


def model_card(manifest: Manifest) -> str:
    """The text of model-card.md, in Markdown.

    Args:
        manifest: Complete, with provenance and the measured drift of "fp32".
    """
    provenance = manifest.provenance
    checkpoints = provenance["checkpoints"]
    published = all("repository" in checkpoint for checkpoint in checkpoints)
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
    versions = provenance["versions"]
    return _CARD.format(
        name=manifest.name,
        origin=_wrapped(_PUBLISHED if published else _OTHER),
        architecture=_ARCHITECTURES[manifest.family],
        sources="; ".join(
            f"`{checkpoint['file']}` (SHA-256 `{checkpoint['sha256']}`)"
            for checkpoint in checkpoints
        ),
        licence=provenance["licence"],
        exporter=versions["mosrt"],
        torch=versions["torch"],
        timm=versions["timm"],
        transformers=versions["transformers"],
        training_data=_wrapped(f"{provenance['training_data']}."),
        domains=_wrapped(
            f"Data domains: {', '.join(manifest.domains)}. The domain says which listening test a "
            "score should be read on; it adds a constant, the same for every recording. The "
            f"default is {manifest.default_domain}."
        ),
        sample_rate_hz=manifest.sample_rate_hz,
        limit_hz=manifest.sample_rate_hz // 2,
        drift=manifest.variants["fp32"].drift.get("mos_max_abs", "not measured"),
        credits="\n".join(thanks),
    )


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)
