"""Loading: from a model's name or bundle to a scorer."""

from __future__ import annotations

import os
from typing import get_args

from .backends import OrtBackend
from .bundle import Bundle
from .embedded import find_bundle
from .fusion_scorer import FusionScorer
from .guards import BadAudioPolicy
from .manifest import Manifest
from .scorer import Scorer
from .stages import load_stages
from .threads import usable_cores
from .uncertainty_scorer import UncertaintyScorer

__all__ = ["load"]


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    variant: str = "auto",
    provider: str = "auto",
    threads: int | None = None,
    on_bad_audio: BadAudioPolicy = "warn",
    remove_silence: bool = False,
) -> Scorer:
    """Loads a model into a scorer.

    Args:
        bundle: Name of a model that comes with mosrt, "nano" if left out; or the path of a bundle
            directory or of a zip of one. A name goes before a path: write "./nano", or give a
            Path, for a bundle in the working directory that is called like an embedded model.
        variant: Precision variant, or "auto" for the best one for this machine.
        provider: "cpu", "cuda", "coreml", "dml", or "auto" for the fastest that works.
        threads: Threads that one call may use, front end and model alike; by default all cores
            this process may use (affinity mask and container quota respected).
        on_bad_audio: What to do about a recording that trips a guard. "warn" logs a warning and
            scores it all the same, or gives nan where no score is possible; "nan" gives nan;
            "error" raises AudioError. The flags in the score tell which guards it tripped.
        remove_silence: Cut long quiet runs before scoring, as the reference implementation of
            UTMOSv2 does by default.

    Raises:
        BundleError: The bundle cannot be used.
        ProviderError: The provider is not available.
        ValueError: An option has a value that it does not know.
    """
    opened = Bundle.open(find_bundle(bundle))
    name = _choose_variant(opened.manifest) if variant == "auto" else variant
    chosen = opened.variant(name)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if on_bad_audio not in get_args(BadAudioPolicy):
        raise ValueError(f"on_bad_audio must be 'warn', 'nan' or 'error', not {on_bad_audio!r}")
    count = threads or usable_cores()
    with opened.extracted(chosen) as directory:
        if opened.manifest.uncertainty is not None:
            return UncertaintyScorer(
                opened.manifest,
                load_stages(opened.manifest, chosen, directory, provider=provider, threads=count),
                variant=name,
                threads=count,
                on_bad_audio=on_bad_audio,
                remove_silence=remove_silence,
            )
        backend = OrtBackend(
            directory,
            chosen,
            inputs=opened.manifest.inputs,
            outputs=opened.manifest.outputs,
            provider=provider,
            threads=count,
        )
    return FusionScorer(
        opened.manifest,
        backend,
        variant=name,
        threads=count,
        on_bad_audio=on_bad_audio,
        remove_silence=remove_silence,
    )


def _choose_variant(manifest: Manifest) -> str:
    """The variant that "auto" means: the reference precision if there is one."""
    return "fp32" if "fp32" in manifest.variants else next(iter(manifest.variants))
