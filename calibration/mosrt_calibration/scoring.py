"""Scores clips with variants of the model under test, through the runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.backends import Backend, OrtBackend
from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.mos.scorer import FusionScorer
from mosrt.scorer import Scorer
from mosrt.uncertainty.family import load_stages
from mosrt.uncertainty.scorer import UncertaintyScorer

from .clips import Clip

__all__ = ["ModelUnderTest", "Progress", "Scored"]

Progress = Callable[[Sequence[Clip], str], Any]
"""Makes a progress bar with a label: a context manager that gives the clips one by one."""

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
    """

    directory: Path
    manifest: Manifest
    threads: int

    @property
    def reference(self) -> Variant:
        """The FP32 variant."""
        return self.manifest.variants[_REFERENCE]

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of all that activations depend on: the manifest and the FP32 graphs."""
        plain = self.manifest.to_dict()
        for name in ("variants", "provenance"):
            del plain[name]
        plain["files"] = [file.sha256 for file in self.reference.files]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def column(self) -> int:
        """Column of `Scored.values` that the drift is measured on, that of the default domain."""
        if self.manifest.uncertainty is not None:
            return 0
        return self.manifest.domains.index(self.manifest.default_domain)

    def scorer(self, variant: Variant) -> Scorer:
        """A scorer on the CPU for a variant whose files are below `directory`."""
        if self.manifest.uncertainty is not None:
            return UncertaintyScorer(self.manifest, self._stages(variant), **self._options())
        return FusionScorer(self.manifest, self.backend(variant), **self._options())

    def probed(self, member: Member, probe: Backend) -> Scorer:
        """An FP32 scorer that runs one network with `probe`.

        Of an ensemble, the scorer has only that network.
        """
        if self.manifest.uncertainty is None:
            return FusionScorer(self.manifest, probe, **self._options())
        others = tuple(m for m in self.reference.members if m.name != member.name)
        stages = self._stages(dataclasses.replace(self.reference, members=others))
        stages[member.name] = probe
        return UncertaintyScorer(self.manifest, stages, **self._options())

    def score(
        self,
        variant: Variant,
        clips: Sequence[Clip],
        label: str,
        progress: Progress,
        *,
        views: int | None = None,
    ) -> Scored:
        """Scores clips with a variant.

        Args:
            variant: A variant whose files are below `directory`.
            clips: Clips to score.
            label: Label of the progress bar.
            progress: Makes progress bars.
            views: Views of each clip, for models that have views; None for as many as the runtime
                takes by default.
        """
        options: dict[str, Any] = {}
        if views is not None and self.manifest.uncertainty is None:
            options["views"] = views
        values: list[list[float]] = []
        model_ms = []
        with self.scorer(variant) as scorer, progress(clips, label) as each:
            for clip in each:
                score = scorer.score_file(clip.path, **options)
                if self.manifest.uncertainty is not None:
                    values.append([score.measures["uncertainty"]])
                else:
                    values.append(list(score.domains.values()))
                model_ms.append(score.timings_ms["model"])
        return Scored(values=np.array(values, np.float64), model_ms=np.array(model_ms))

    def score_clip(self, scorer: Scorer, clip: Clip) -> None:
        """Scores one clip; one view of it, for models that have views."""
        if self.manifest.uncertainty is not None:
            scorer.score_file(clip.path)
        else:
            scorer.score_file(clip.path, views=1)

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

    def _stages(self, variant: Variant) -> dict[str, Backend]:
        stages = load_stages(
            self.manifest, variant, self.directory, provider="cpu", threads=self.threads
        )
        return dict(stages)

    def _options(self) -> dict[str, Any]:
        return {
            "variant": _REFERENCE,
            "threads": self.threads,
            "on_bad_audio": "warn",  # gives a score wherever one is possible
            "remove_silence": False,
        }
