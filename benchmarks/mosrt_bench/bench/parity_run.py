"""Score the clips with every configuration, and compare each with its reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mosrt.bundle.bundle import Bundle
from mosrt.errors import MosrtError
from mosrt_bench.clips import AudioFile
from mosrt_bench.worker.protocol import Runner

from .configurations import Configuration, reference_variant
from .parity import Scores, compare_scores, provider_problem
from .request import Request, TimeBudget
from .speed import NO_TIME, duration

__all__ = ["TORCH_CHECKPOINT", "Parity", "run_parity"]

Say = Callable[[str], None]

TORCH_CHECKPOINT: Final = "torch checkpoint"


@dataclass(slots=True, kw_only=True)
class Parity:
    """Scores of all configurations and the parity table, filled in as they are known.

    Attributes:
        scores: Scores by clip, by configuration without its number of threads.
        rows: The parity table.
        runnable: Configurations that run here.
        score_s: About how long each of them takes for a clip of 5 s, by its full name.
        facts: Versions and devices, by configuration without its number of threads.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    runnable: list[Configuration] = field(default_factory=list)
    score_s: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What one configuration made of the clips.

    Attributes:
        scores: Scores by clip.
        provider: The provider that ran it.
        nodes: Nodes by provider; None where unknown.
        facts: Versions and devices.
        taken_s: How long scoring took.
        score_s: About how long a clip of 5 s takes.
    """

    scores: Scores
    provider: str
    nodes: dict[str, int] | None
    facts: dict[str, Any]
    taken_s: float
    score_s: float


def run_parity(
    bundles: Sequence[Bundle],
    configurations: Sequence[Configuration],
    clips: Sequence[AudioFile],
    request: Request,
    parity: Parity,
    *,
    budget: TimeBudget,
    say: Say,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Scores the clips with every configuration, with the most threads asked for.

    Args:
        bundles: The models.
        configurations: All that is compared.
        clips: What to score.
        request: What is asked for.
        parity: Gets what is found, one configuration after the other.
        budget: Time of the whole run.
        say: Told what is being done.
        keep: Called when `parity` has more.

    Raises:
        MosrtError: A reference cannot be run.
    """
    threads = max(request.threads)
    limit_s = budget.answer_s if request.isolate else None
    for bundle in bundles:
        name = bundle.manifest.name
        reference = _reference(bundle, request, threads)
        say(f"scoring {len(clips)} clips: {reference.label}, the reference")
        of_reference = _score(reference.open(limit_s), clips, wants_nodes=False)
        parity.scores[reference.label] = of_reference.scores
        against = [(reference.label, of_reference.scores)]
        if request.references:
            say("scoring with torch")
            torch = _torch(bundle, request, threads).open(limit_s, front_end="mosrt")
            checkpoint = _score(torch, clips, wants_nodes=False)
            against.append((TORCH_CHECKPOINT, checkpoint.scores))
        for own in [c for c in configurations if c.model == name and c.threads == threads]:
            if budget.exhausted():
                parity.rows.append(_not_run(own, f"not measured: {NO_TIME}"))
                continue
            scored = of_reference
            if own != reference:
                about = duration(of_reference.taken_s)
                say(f"scoring {len(clips)} clips: {own.label} (about {about})")
                try:
                    # asking the profiler takes a session of its own
                    scored = _score(own.open(limit_s), clips, wants_nodes=own.provider != "cpu")
                except MosrtError as exc:
                    parity.rows.append(_not_run(own, f"does not run here: {exc}"))
                    continue
            parity.scores[own.label] = scored.scores
            parity.facts[own.label] = scored.facts
            for same in configurations:
                if same.label == own.label:
                    parity.runnable.append(same)
                    # as if the threads shared the work perfectly
                    parity.score_s[same.name] = scored.score_s * threads / same.threads
            parity.rows += _rows(own, scored, against)
            keep()


def _rows(
    own: Configuration, scored: _Scored, against: Sequence[tuple[str, Scores]]
) -> list[dict[str, Any]]:
    """The parity table's rows of one configuration, one per reference."""
    problem, note = None, None
    if not own.is_torch:
        problem, note = provider_problem(own.provider, scored.provider, scored.nodes)
    rows = []
    for reference, wanted in against:
        row = compare_scores(
            scored.scores,
            wanted,
            variant=own.variant,
            provider=own.provider,
            default_domain=own.bundle.manifest.default_domain,
        )
        if problem is not None:
            row["problems"] = [problem, *row["problems"]]
            row["passed"] = False
        row["notes"] = [*row.get("notes", []), *([note] if note else [])]
        rows.append({**_identity(own), "against": reference, **row})
    return rows


def _reference(bundle: Bundle, request: Request, threads: int) -> Configuration:
    views_apply = bundle.manifest.uncertainty is None
    return Configuration(
        bundle=bundle,
        variant=reference_variant(bundle),
        provider="cpu",
        threads=threads,
        plan=request.plan if views_apply else None,
        views=request.views if views_apply else None,
    )


def _torch(bundle: Bundle, request: Request, threads: int) -> Configuration:
    return Configuration(
        bundle=bundle,
        variant="fp32",
        provider="torch-cpu",
        threads=threads,
        checkpoints=request.references,
        plan=request.plan,
        views=request.views,
    )


def _score(runner: Runner, clips: Sequence[AudioFile], *, wants_nodes: bool) -> _Scored:
    """Scores the clips, and closes the runner."""
    scores, fives = {}, 0.0
    try:
        begun = time.perf_counter()
        for clip in clips:
            answer = runner.score(clip.path)
            scores[clip.name] = answer["scores"]
            duration_s = answer["duration_s"]
            fives += max(1.0, duration_s / 5) if math.isfinite(duration_s) else 0.0
        taken_s = time.perf_counter() - begun
        return _Scored(
            scores=scores,
            provider=runner.provider,
            nodes=runner.nodes() if wants_nodes else None,
            facts=runner.facts,
            taken_s=taken_s,
            score_s=taken_s / max(1.0, fives),
        )
    finally:
        runner.close()


def _identity(configuration: Configuration) -> dict[str, Any]:
    return {
        "contestant": configuration.label,
        "model": configuration.model,
        "variant": configuration.variant,
        "provider": configuration.provider,
        "is_reference": configuration.is_reference,
    }


def _not_run(configuration: Configuration, reason: str) -> dict[str, Any]:
    """A row without figures."""
    # A report may be published, and must not say where on the machine a bundle lies.
    shown = reason.replace(str(configuration.bundle.path), configuration.model)
    for checkpoint in configuration.checkpoints:
        shown = shown.replace(str(checkpoint), checkpoint.name)
    return {**_identity(configuration), "passed": None, "problems": [shown], "notes": []}
