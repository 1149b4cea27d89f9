"""Scores clips with variants of the model under test, through the runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.backends import Backend, OrtBackend
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.mos.scorer import FusionScorer
from mosrt.score import Score
from mosrt.scorer import Scorer
from mosrt.uncertainty.family import load_stages
from mosrt.uncertainty.scorer import UncertaintyScorer

from .clips import Clip, Progress, no_progress

__all__ = ["ModelUnderTest", "Scored"]

_REFERENCE: Final = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of some clips.

    Attributes:
        values: MOS, (clips, domains) float64; for models that measure uncertainty (clips, 1), in
            its unit.
        model_ms: Time in the graphs by clip, (clips,) float64.
    """

    values: FloatArray
    model_ms: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnderTest:
    """The model that is quantised.

    Attributes:
        directory: Directory of its files. Files of candidates are written below it.
        manifest: Its manifest, with the variant "fp32".
        threads: Threads for scoring.
        progress: Makes progress bars; none by default.
    """

    directory: Path
    manifest: Manifest
    threads: int = 1
    progress: Progress = no_progress

    @property
    def reference(self) -> Variant:
        """The FP32 variant."""
        return self.manifest.variants[_REFERENCE]

    @property
    def n_bytes(self) -> int:
        """Size of the files of the FP32 variant."""
        return sum(file.bytes for file in self.reference.files)

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of all that activations depend on: the manifest and the FP32 graphs."""
        plain = self.manifest.to_dict()
        for name in ("variants", "provenance"):
            del plain[name]
        plain["files"] = [file.sha256 for file in self.reference.files]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def is_uncertainty(self) -> bool:
        """Whether it measures uncertainty instead of predicting MOS."""
        return self.manifest.uncertainty is not None

    @property
    def column(self) -> int:
        """Column of `Scored.values` that the drift is measured on, that of the default domain."""
        if self.is_uncertainty:
            return 0
        return self.manifest.all_domains.index(self.manifest.default_domain)

    def scorer(self, variant: Variant, probes: Mapping[str, Backend] | None = None) -> Scorer:
        """A scorer on the CPU.

        Args:
            variant: A variant whose files are below `directory`.
            probes: Backends that run networks in place of ONNX Runtime. An ensemble that predicts
                MOS is reduced to the network of its only probe.
        """
        probes = probes or {}
        options: dict[str, Any] = {
            "variant": _REFERENCE,
            "threads": self.threads,
            "on_bad_audio": "warn",  # gives a score wherever one is possible
            "remove_silence": False,
        }
        if not self.is_uncertainty:
            (backend,) = probes.values() or (self.backend(variant),)
            return FusionScorer(self.manifest, backend, **options)
        members = tuple(member for member in variant.members if member.name not in probes)
        stages = load_stages(
            self.manifest,
            dataclasses.replace(variant, members=members),
            self.directory,
            provider="cpu",
            threads=self.threads,
        )
        return UncertaintyScorer(self.manifest, {**stages, **probes}, **options)

    def backend(self, variant: Variant) -> OrtBackend:
        """The networks of a variant that predicts MOS, on the CPU."""
        return OrtBackend(
            self.directory,
            variant,
            inputs=self.manifest.inputs,
            outputs=self.manifest.outputs,
            provider="cpu",
            threads=self.threads,
        )

    def score_clip(self, scorer: Scorer, clip: Clip, views: int | None = None) -> Score:
        """Scores one clip, with the given number of views if the model has views."""
        if views is None or self.is_uncertainty:
            return scorer.score_file(clip.path)
        return scorer.score_file(clip.path, views=views)

    def score(
        self, variant: Variant, clips: Sequence[Clip], label: str, *, views: int | None = None
    ) -> Scored:
        """Scores clips with a variant.

        Args:
            variant: A variant whose files are below `directory`.
            clips: Clips to score.
            label: Label of the progress bar.
            views: Views of each clip, for models that have views; None for as many as the runtime
                takes by default.
        """
        with self.scorer(variant) as scorer, self.progress(clips, label) as each:
            scores = [self.score_clip(scorer, clip, views) for clip in each]
        if self.is_uncertainty:
            values = [[score.measures["uncertainty"]] for score in scores]
        else:
            values = [list(score.domains.values()) for score in scores]
        model_ms = [score.timings_ms["model"] for score in scores]
        return Scored(values=np.array(values, np.float64), model_ms=np.array(model_ms))
