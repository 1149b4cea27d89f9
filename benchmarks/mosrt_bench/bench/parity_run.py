"""Parity runs: every variant and provider scores the clips, and is held to its reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosrt.bundle.bundle import Bundle
from mosrt.errors import MosrtError
from mosrt_bench.clips import AudioFile
from mosrt_bench.errors import BenchError

from .configurations import Contestant, figures, reference_variant
from .parity import Judged, compare_scores, provider_problem
from .progress import duration
from .provider_coverage import placement

__all__ = ["ParityRun", "run_parity"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRun:
    """What came of it.

    Attributes:
        judged: Figures by clip, by variant and provider ("MODEL VARIANT PROVIDER").
        rows: The parity table.
        runnable: Contestants that run here.
        score_s: About how long each of them takes to score 5 s, by its full name.
    """

    judged: dict[str, Judged]
    rows: list[dict[str, Any]]
    runnable: list[Contestant]
    score_s: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one contestant says of the clips.

    Attributes:
        found: Figures by clip.
        provider: The one that the scores name.
        taken_s: How long it took.
        score_s: About how long it takes for 5 s.
    """

    found: Judged
    provider: str
    taken_s: float
    score_s: float


def run_parity(
    bundles: Sequence[Bundle],
    field_of: Sequence[Contestant],
    clips: Sequence[AudioFile],
    *,
    references: Sequence[Path],
    say: Say,
) -> ParityRun:
    """Scores the clips with every variant on every provider, with the most threads asked for.

    Args:
        bundles: The models.
        field_of: All contestants.
        clips: What to hear.
        references: Torch checkpoints of the only bundle, or none.
        say: Told what is being done.

    Raises:
        MosrtError: A reference cannot be run.
    """
    threads = max(contestant.threads for contestant in field_of)
    judged: dict[str, Judged] = {}
    rows = []
    runnable: list[Contestant] = []
    score_s: dict[str, float] = {}
    wanted = _torch(references, bundles, clips, say)
    for bundle in bundles:
        name = bundle.manifest.name
        own = [c for c in field_of if c.model == name and c.threads == threads]
        reference = Contestant(
            bundle=bundle, variant=reference_variant(bundle), provider="cpu", threads=threads
        )
        say(f"scoring {len(clips)} clips: {_short(reference)}, the reference")
        answer = _judge(reference, clips)
        judged[_short(reference)] = answer.found
        against = [(_short(reference), judged[_short(reference)])]
        if wanted is not None:
            against.append(("torch checkpoint", wanted))
        for contestant in own:
            if contestant != reference:
                about = duration(answer.taken_s)
                say(f"scoring {len(clips)} clips: {_short(contestant)} (about {about})")
            try:
                own_answer = answer if contestant == reference else _judge(contestant, clips)
            except MosrtError as exc:
                rows.append(_unusable(contestant, str(exc)))
                continue
            found = judged[_short(contestant)] = own_answer.found
            for same in field_of:
                if _short(same) == _short(contestant):
                    runnable.append(same)
                    # as if the work were shared out perfectly
                    score_s[same.name] = own_answer.score_s * threads / same.threads
            problem, note = provider_problem(
                contestant.provider,
                own_answer.provider,
                # asking the profiler takes a session of its own, and the CPU runs what it is given
                None if contestant.provider == "cpu" else placement(contestant),
            )
            for held_to, figures_wanted in against:
                if held_to == _short(contestant) and len(against) > 1:
                    continue
                row = compare_scores(
                    found,
                    figures_wanted,
                    variant=contestant.variant,
                    provider=contestant.provider,
                    default_domain=bundle.manifest.default_domain,
                )
                if problem is not None:
                    row["problems"] = [problem, *row["problems"]]
                    row["passed"] = False
                row["notes"] = [*row.get("notes", []), *([note] if note else [])]
                rows.append({**_identity(contestant), "against": held_to, **row})
    return ParityRun(judged=judged, rows=rows, runnable=runnable, score_s=score_s)


def _torch(
    references: Sequence[Path], bundles: Sequence[Bundle], clips: Sequence[AudioFile], say: Say
) -> Judged | None:
    if not references:
        return None
    if len(bundles) != 1:
        raise BenchError("--reference goes with one bundle; name it alone")
    from .torch_reference import torch_figures  # noqa: PLC0415 - torch

    say("scoring with torch")
    return torch_figures(bundles[0], references, clips)


def _judge(contestant: Contestant, clips: Sequence[AudioFile]) -> _Answer:
    found, fives = {}, 0.0
    with contestant.load() as scorer:
        begun = time.perf_counter()
        for clip in clips:
            score = scorer.score_file(clip.path)
            found[clip.name] = figures(score)
            duration_s = score.duration_s
            fives += max(1.0, duration_s / 5) if math.isfinite(duration_s) else 0.0
        taken_s = time.perf_counter() - begun
        return _Answer(
            found=found,
            provider=scorer.provider,
            taken_s=taken_s,
            score_s=taken_s / max(1.0, fives),
        )


def _short(contestant: Contestant) -> str:
    return f"{contestant.model} {contestant.variant} {contestant.provider}"


def _identity(contestant: Contestant) -> dict[str, Any]:
    return {
        "contestant": _short(contestant),
        "model": contestant.model,
        "variant": contestant.variant,
        "provider": contestant.provider,
        "is_reference": contestant.is_reference,
    }


def _unusable(contestant: Contestant, reason: str) -> dict[str, Any]:
    return {
        **_identity(contestant),
        "passed": None,
        # a report may be published, and need not say where on the machine a bundle is
        "problems": [
            f"does not run here: {reason.replace(str(contestant.bundle.path), contestant.model)}"
        ],
        "notes": [],
    }
