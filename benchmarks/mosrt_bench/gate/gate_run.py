"""Gate runs: a set of clips scored as a gate wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mosrt
from mosrt.bundle.embedded import DEFAULT_MODEL
from mosrt_bench.bench.configurations import open_bundle
from mosrt_bench.clips import audio_files

from .baseline import Baseline, record

__all__ = ["score_set"]


def score_set(
    audio: Sequence[Path],
    *,
    model: str | None,
    variant: str | None,
    provider: str,
    threads: int | None,
    views: int,
    domain: str | None,
) -> Baseline:
    """Scores files and folders; see `record`.

    Raises:
        MosrtError: The model cannot be used, or a clip cannot be scored.
    """
    clips = audio_files(audio)
    bundle = open_bundle(model or DEFAULT_MODEL)
    with mosrt.load(
        bundle.path,
        variant=variant,
        provider=provider,
        threads=threads,
    ) as scorer:
        return record(scorer, bundle, clips, views=views, domain=domain)
