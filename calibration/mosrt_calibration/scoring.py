"""ModelUnderTest: the model under calibration, scored through the runtime with graphs swapped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.backends import Backend, OrtBackend
from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.mos.scorer import FusionScorer
from mosrt.scorer import Scorer
from mosrt.uncertainty.family import load_stages
from mosrt.uncertainty.scorer import UncertaintyScorer

from .clips import Clip

__all__ = ["ModelUnderTest", "Progress", "Scored"]

Progress = Callable[[Sequence[Clip], str], Any]
"""Makes a context manager that gives the clips one by one: a progress bar with a label."""

_REFERENCE: Final = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a variant says of some clips.

    Attributes:
        values: (clips, domains) float64 in MOS; for models that score by their uncertainty
            (clips, 1), in its unit.
        model_ms: Time in the graphs per clip, (clips,).
    """

    values: NDArray[np.float64]
    model_ms: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnderTest:
    """The model under calibration.

    Attributes:
        directory: Where its files are; those of candidates come to lie below.
        manifest: Its manifest, with the variant "fp32".
        threads: Threads for scoring.
    """

    directory: Path
    manifest: Manifest
    threads: int

    @property
    def reference(self) -> Variant:
        """The float32 variant."""
        return self.manifest.variants[_REFERENCE]

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of what decides its activations: the front end, and all float32 graphs."""
        plain = self.manifest.to_dict()
        for name in ("variants", "provenance"):
            del plain[name]
        plain["files"] = [file.sha256 for file in self.reference.files]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def column(self) -> int:
        """Column of `Scored.values` that drift and budget are about: the default domain's."""
        if self.manifest.uncertainty is not None:
            return 0
        return self.manifest.domains.index(self.manifest.default_domain)

    def scorer(self, variant: Variant) -> Scorer:
        """A scorer for a variant whose files lie below `directory`, on the CPU."""
        if self.manifest.uncertainty is not None:
            stages = load_stages(
                self.manifest, variant, self.directory, provider="cpu", threads=self.threads
            )
            return self._uncertainty_scorer(stages)
        return self._fusion_scorer(self._backend(variant))

    def probed(self, member: Member, probe: Backend) -> Scorer:
        """A float32 scorer in which one network is run by `probe`, the others as usual.

        Of an ensemble the scorer has that network alone.
        """
        if self.manifest.uncertainty is None:
            return self._fusion_scorer(probe)
        stages: dict[str, Backend] = dict(
            load_stages(
                self.manifest,
                dataclasses.replace(
                    self.reference,
                    members=tuple(m for m in self.reference.members if m.name != member.name),
                ),
                self.directory,
                provider="cpu",
                threads=self.threads,
            )
        )
        stages[member.name] = probe
        return self._uncertainty_scorer(stages)

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
            variant: Its files lie below `directory`.
            clips: What to score.
            label: For the progress bar.
            progress: Makes it.
            views: Views of each clip, where the model looks at views; None for as many as the
                runtime takes by default.
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
        """Runs one clip through a scorer: one view of it if the model looks at views."""
        if self.manifest.uncertainty is not None:
            scorer.score_file(clip.path)
        else:
            scorer.score_file(clip.path, views=1)

    def _backend(self, variant: Variant) -> OrtBackend:
        return OrtBackend(
            self.directory,
            variant,
            inputs=self.manifest.inputs,
            outputs=self.manifest.outputs,
            provider="cpu",
            threads=self.threads,
        )

    def _fusion_scorer(self, backend: Backend) -> Scorer:
        return FusionScorer(self.manifest, backend, **self._options())

    def _uncertainty_scorer(self, stages: Mapping[str, Backend]) -> Scorer:
        return UncertaintyScorer(self.manifest, stages, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "variant": _REFERENCE,
            "threads": self.threads,
            "on_bad_audio": "warn",  # which gives a score wherever one is possible
            "remove_silence": False,
        }
