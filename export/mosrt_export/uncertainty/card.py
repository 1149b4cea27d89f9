"""Model card of models that score by their own uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mosrt.bundle.manifest import Manifest
from mosrt_export.markdown import refilled

__all__ = ["uncertainty_card"]

_CARD: Final = """\
# {name}

{note}Ranks speech recordings by how sure a self-supervised model is of them: it learned what speech
sounds like, and is less certain of poor speech. No listener's rating was used (the idea:
arXiv 2312.15616).

## Where it comes from

- Kind: {family}.
- Weights: {sources}
- Licence of the weights: {licence}.
- Trained on: {training_data}.
- Converted by mosrt {exporter} (torch {torch}).

## How to read a score

- *The* uncertainty is {measure}, {sign}: the larger, the worse the recording probably is.
- It ranks recordings. It is on no scale of its own; a MOS is given only by a bundle whose owner
  fitted a map to rated recordings with `mosrt calibrate-mos`.
- Figures of different models, and of recordings of very different length, do not compare.
- Everything drawn at random is drawn from seed {seed}; the same recording gives the same figures.
- A recording longer than {window_s:g} s is heard in pieces of equal length, which do not hear one
  another.

## Known failures

- What the model did not hear in training is uncertain too: other languages, singing, shouting,
  children, far microphones.
- It hears loudness: quiet recordings may be judged otherwise than the same ones louder.
- Silence, music and noise alone get a figure like any recording, and it means nothing.
- It does not notice wrong words, a wrong speaker or a wrong language.
- Recordings are heard at {sample_rate_hz} Hz: nothing above {limit_hz} Hz can matter.

## Agreement with the original

Largest differences of the FP32 graphs from the torch modules: {drift}.
"""


def uncertainty_card(manifest: Manifest) -> str:
    """The text of model-card.md, in Markdown.

    Args:
        manifest: Of an uncertainty family, complete, with provenance and measured drift.
    """
    spec = manifest.uncertainty
    if spec is None:
        raise ValueError(f"{manifest.name} gives no uncertainty")
    provenance = manifest.provenance
    card = _CARD.format(
        name=manifest.name,
        note=f"{note}\n\n" if (note := provenance.get("note")) else "",
        family=manifest.family,
        sources="; ".join(
            f"`{source['file']}`"
            + (f" (SHA-256 `{source['sha256']}`)" if "sha256" in source else "")
            for source in provenance["checkpoints"]
        ),
        licence=provenance["licence"],
        training_data=provenance["training_data"],
        exporter=provenance["versions"]["mosrt"],
        torch=provenance["versions"]["torch"],
        measure=f"`{spec.measure}`",
        sign="as it is" if spec.sign > 0 else "with its sign turned round",
        seed=spec.seed,
        window_s=spec.window_samples / manifest.sample_rate_hz,
        sample_rate_hz=manifest.sample_rate_hz,
        limit_hz=manifest.sample_rate_hz // 2,
        drift=_drift(manifest.variants["fp32"].drift),
    )
    return refilled(card)


def _drift(drift: Mapping[str, Any]) -> str:
    differences = {
        name.removesuffix("_max_rel"): value
        for name, value in drift.items()
        if name.endswith("_max_rel")
    }
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items()) + (
        f" (relative, on {drift['n_clips']} clips)"
    )
