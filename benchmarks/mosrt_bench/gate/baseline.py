"""Record the scores of a set of clips, and check that a new set compares with them.

A baseline is a JSON file: the bundle's SHA-256, model, variant, provider, domain and number of
views, and for each clip its SHA-256, score, standard error and number of views. Scores compare only
if everything but the audio is the same; any other difference is an error that says what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

import mosrt
from mosrt.bundle.embedded import DEFAULT_MODEL
from mosrt.score import Score
from mosrt_bench.bench.configurations import open_bundle
from mosrt_bench.clips import AudioFile
from mosrt_bench.errors import BenchError
from mosrt_bench.output import save

__all__ = ["Baseline", "ClipScore", "score_set"]

_SCHEMA_VERSION: Final = 1
_KIND: Final = "mosrt gate baseline"
_UNCERTAINTY: Final = "uncertainty"
# Everything but the audio that determines a score.
_SETUP: Final = ("model", "bundle_sha256", "variant", "provider", "domain", "views")
# In MOS, or relative to the mean uncertainty. Other machines, thread counts and versions of ONNX
# Runtime change FP32 scores by some 1e-6, and those of reduced precision by more.
_SAME: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """The score of one clip.

    Attributes:
        sha256: SHA-256 of the file.
        score: MOS, or minus the uncertainty; higher is better.
        error: Standard error over views; 0 for a model without views.
        n_views: Number of views behind the score.
    """

    sha256: str
    score: float
    error: float
    n_views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The scores of a set of clips, and what determined them.

    Attributes:
        model: Name of the model.
        bundle_sha256: SHA-256 of its manifest, which holds the hashes of its files.
        variant: Precision variant.
        provider: Execution provider.
        domain: Data domain, or "uncertainty".
        views: Views per clip; 0 for a model without views.
        clips: The scores by name.
    """

    model: str
    bundle_sha256: str
    variant: str
    provider: str
    domain: str
    views: int
    clips: Mapping[str, ClipScore]

    @property
    def of_uncertainty(self) -> bool:
        """Whether the scores are minus an uncertainty, which is not on the MOS scale."""
        return self.domain == _UNCERTAINTY

    @property
    def scale(self) -> float:
        """The unit of tolerances: one MOS, or the mean uncertainty of the set."""
        if not self.of_uncertainty:
            return 1.0
        return float(np.mean([abs(clip.score) for clip in self.clips.values()]))

    def write(self, file: Path) -> None:
        """Writes the file, complete or not at all."""
        save({"kind": _KIND, "schema_version": _SCHEMA_VERSION, **asdict(self)}, file)

    @classmethod
    def read(cls, file: Path) -> Baseline:
        """Reads a file.

        Raises:
            BenchError: The file is missing, damaged or of another schema version.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BenchError(
                f"{file}: no baseline yet; record one with --update and keep it in the repository"
            ) from None
        except (OSError, ValueError, RecursionError) as exc:
            raise BenchError(f"{file}: cannot be read ({exc}); record it again") from exc
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise BenchError(f"{file}: not a baseline of `mosrt gate`")
        if found.get("schema_version") != _SCHEMA_VERSION:
            raise BenchError(
                f"{file}: schema version {found.get('schema_version')}, but this mosrt reads "
                f"version {_SCHEMA_VERSION}; record it again with --update"
            )
        try:
            clips = {name: ClipScore(**clip) for name, clip in found["clips"].items()}
            if not all(
                math.isfinite(clip.score) and math.isfinite(clip.error) for clip in clips.values()
            ):
                raise ValueError("a score is not a finite number")
            return cls(**{name: found[name] for name in _SETUP}, clips=clips)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise BenchError(f"{file}: damaged ({exc}); record it again with --update") from exc

    def check(self, new: Baseline, file: Path) -> None:
        """Checks that a new set compares with this baseline.

        Args:
            new: The set scored now.
            file: Where this baseline was read from, for messages.

        Raises:
            BenchError: Model, variant, provider, domain, views or names of clips differ, or an
                unchanged file has another score.
        """
        for name in _SETUP:
            old, value = getattr(self, name), getattr(new, name)
            if old != value:
                raise BenchError(
                    f"{file}: recorded with {name.replace('_', ' ')} {old}, but this run has "
                    f"{value}; use the recorded one, or record again with --update"
                )
        for text, names in (
            ("has no baseline", set(new.clips) - set(self.clips)),
            ("is in the baseline but not in this run", set(self.clips) - set(new.clips)),
        ):
            if names:
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                raise BenchError(
                    f"{file}: {min(names)}{more} {text}; score the same set, or record again with "
                    "--update"
                )
        for name, clip in new.clips.items():
            was = self.clips[name]
            if clip.sha256 == was.sha256 and abs(clip.score - was.score) > _SAME * self.scale:
                raise BenchError(
                    f"{file}: {name} is the recorded file, but scores {clip.score:.5g} instead of "
                    f"{was.score:.5g}: the scoring has changed, not the speech; use the versions "
                    "of mosrt and onnxruntime that recorded it, or record again with --update"
                )


def score_set(
    clips: Sequence[AudioFile],
    *,
    model: str | None,
    variant: str | None,
    provider: str,
    threads: int | None,
    views: int,
    domain: str | None,
) -> Baseline:
    """Scores clips for a gate.

    Args:
        clips: The clips.
        model: Name or path of a bundle; None for the default model.
        variant: Precision variant; None for the reference.
        provider: Execution provider.
        threads: Number of threads; None for all cores.
        views: Views per clip.
        domain: Data domain; None for the model's default.

    Raises:
        MosrtError: The model cannot be used, or a clip cannot be scored.
    """
    bundle = open_bundle(model or DEFAULT_MODEL)
    uncertain = bundle.manifest.uncertainty is not None
    scored = {}
    with mosrt.load(bundle.path, variant=variant, provider=provider, threads=threads) as scorer:
        for clip in clips:
            score = scorer.score_file(clip.path, domain=domain, views=None if uncertain else views)
            if score.n_views == 0:
                raise BenchError(
                    f"{clip.path}: no score ({', '.join(score.flags)}); replace it or leave it out"
                )
            scored[clip.name] = _clip_score(clip, score, views)
        return Baseline(
            model=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            variant=scorer.variant,
            provider=scorer.provider,
            domain=_UNCERTAINTY if uncertain else domain or bundle.manifest.default_domain,
            views=0 if uncertain else views,
            clips=scored,
        )


def _clip_score(clip: AudioFile, score: Score, views: int) -> ClipScore:
    if "uncertainty" in score.measures:
        value, error, n_views = -score.measures["uncertainty"], 0.0, 0
    else:
        # The networks of an ensemble differ by a constant offset, which is not noise of this clip.
        # The spread that counts is the one over views.
        by_view = np.asarray(score.views).reshape(-1, views).mean(axis=0)
        value, n_views = float(by_view.mean()), views
        error = float(by_view.std(ddof=1) / math.sqrt(views)) if views > 1 else 0.0
    return ClipScore(sha256=clip.sha256, score=value, error=error, n_views=n_views)
