"""Score the clips with every configuration, and compare each with its reference.

A configuration passes if no score of any domain drifts further than its precision allows, its
provider is the one asked for, and no domain's scores look like another domain's.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.bundle.bundle import Bundle
from mosrt.errors import MosrtError
from mosrt_bench.clips import AudioFile
from mosrt_bench.stats.metrics import agreement, intervals, rank_flips
from mosrt_bench.worker.protocol import Configuration, Runner

from .configurations import open_configuration, reference_of
from .request import NO_TIME, Session, duration

__all__ = ["Parity", "Scores", "compare_scores", "provider_problem", "run_parity", "tolerance_mos"]

Scores = Mapping[str, Mapping[str, float]]
"""Scores by clip, then by domain; nan where there is none."""

# Largest |ΔMOS| that passes, by what a variant's name begins with; other variants as FP16. FP32 on
# another provider differs by rounding. FP16 has 11 bits, of which a deep network loses a few. INT8
# trades accuracy for speed, which the bundle's manifest declares; more than a quarter of a MOS step
# is a defect.
_TOLERANCES_MOS: Final = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}
_WORST: Final = 10
_SWAP_GAIN: Final = 4.0


@dataclass(slots=True, kw_only=True)
class Parity:
    """Scores of all configurations and the parity table, filled in as they are known.

    Attributes:
        scores: Scores by clip, by configuration without its number of threads.
        rows: The parity table.
        runnable: Configurations that run here, and about how long each takes for a clip of 5 s.
        facts: Versions and devices, by configuration without its number of threads.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    runnable: list[tuple[Configuration, float]] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What one configuration made of the clips; `score_s` is about the time of a clip of 5 s."""

    scores: Scores
    provider: str
    nodes: dict[str, int] | None
    facts: dict[str, Any]
    taken_s: float
    score_s: float


def run_parity(
    session: Session,
    bundles: Sequence[Bundle],
    configurations: Sequence[Configuration],
    clips: Sequence[AudioFile],
    parity: Parity,
) -> None:
    """Scores the clips with every configuration, with the most threads asked for.

    Args:
        session: What is asked for, and the time that is left.
        bundles: The models.
        configurations: All that is compared.
        clips: What to score.
        parity: Gets what is found, one configuration after the other.

    Raises:
        MosrtError: A reference cannot be run.
    """
    request = session.request
    for bundle in bundles:
        reference = reference_of(bundle, request)
        session.say(f"scoring {len(clips)} clips: {reference.label}, the reference")
        of_reference = _score(open_configuration(reference, session), clips, wants_nodes=False)
        parity.scores[reference.label] = of_reference.scores
        against = [(reference.label, of_reference.scores)]
        if request.references:
            session.say("scoring with torch")
            torch = dataclasses.replace(
                reference, variant="fp32", provider="torch-cpu", front_end="mosrt"
            )
            checkpoint = _score(open_configuration(torch, session), clips, wants_nodes=False)
            against.append(("torch checkpoint", checkpoint.scores))
        for own in configurations:
            if own.model != reference.model or own.threads != reference.threads:
                continue
            if session.budget.exhausted():
                parity.rows.append(_not_run(own, f"not measured: {NO_TIME}"))
                continue
            scored = of_reference
            if own != reference:
                about = duration(of_reference.taken_s)
                session.say(f"scoring {len(clips)} clips: {own.label} (about {about})")
                try:
                    # asking the profiler takes a session of its own
                    runner = open_configuration(own, session)
                    scored = _score(runner, clips, wants_nodes=own.provider != "cpu")
                except MosrtError as exc:
                    parity.rows.append(_not_run(own, f"does not run here: {exc}"))
                    continue
            parity.scores[own.label] = scored.scores
            parity.facts[own.label] = scored.facts
            for same in configurations:
                if same.label == own.label:  # as if the threads shared the work perfectly
                    score_s = scored.score_s * own.threads / same.threads
                    parity.runnable.append((same, score_s))
            parity.rows += _rows(own, scored, against, bundle.manifest.default_domain)
            session.keep()


def _rows(
    own: Configuration,
    scored: _Scored,
    against: Sequence[tuple[str, Scores]],
    default_domain: str,
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
            default_domain=default_domain,
        )
        if problem is not None:
            row["problems"] = [problem, *row["problems"]]
            row["passed"] = False
        row.setdefault("notes", []).extend([note] if note else [])
        rows.append({**_identity(own), "against": reference, **row})
    return rows


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
    problem = configuration.without_paths(reason)
    return {**_identity(configuration), "passed": None, "problems": [problem], "notes": []}


def tolerance_mos(variant: str, provider: str = "cpu") -> float:
    """Largest |ΔMOS| that passes for a variant on a provider, which may compute in bfloat16."""
    if provider.endswith("bf16"):
        return max(_TOLERANCES_MOS["bf16"], tolerance_mos(variant))
    for prefix, tolerance in _TOLERANCES_MOS.items():
        if variant.startswith(prefix):
            return tolerance
    return _TOLERANCES_MOS["fp16"]


def compare_scores(
    found: Scores,
    wanted: Scores,
    *,
    variant: str,
    provider: str = "cpu",
    default_domain: str,
) -> dict[str, Any]:
    """What a row of the parity table says of two sets of scores, JSON-ready.

    Args:
        found: The configuration's scores.
        wanted: The reference's scores.
        variant: Variant of the configuration, for its tolerance.
        provider: Provider of the configuration, for its tolerance.
        default_domain: Domain of the headline metrics, or the only one there is.

    Returns:
        What REPORT.md describes; without figures if there is no clip that both score.
    """
    problems: list[str] = []
    ours, theirs = ({c for c in each if _scored(each[c])} for each in (found, wanted))
    if lost := [clip for clip in wanted if clip in theirs - ours]:
        problems.append(f"no score for {len(lost)} clips that the reference scores: {lost[0]}, …")
    if gained := [clip for clip in found if clip in ours - theirs]:
        problems.append(f"a score for {len(gained)} clips that the reference refuses: {gained[0]}")
    clips = [clip for clip in wanted if clip in ours & theirs]
    if not clips:
        return {"passed": False, "problems": [*problems, "no clip that both score"]}
    domains = [name for name in wanted[clips[0]] if name in found[clips[0]]]
    scores, reference = (
        {name: np.array([each[clip][name] for clip in clips]) for name in domains}
        for each in (found, wanted)
    )
    headline = default_domain if default_domain in domains else domains[0]
    # uncertainties have a scale of their own
    scale = float(np.abs(reference[headline]).mean()) if headline == "uncertainty" else 1.0
    tolerance = tolerance_mos(variant, provider) * scale
    drifts = {name: np.abs(scores[name] - reference[name]) for name in domains}
    largest = {name: float(drift.max()) for name, drift in drifts.items()}
    worst = max(domains, key=largest.__getitem__)
    if largest[worst] > tolerance:
        problems.append(
            f"drifts by {largest[worst]:.3g} in domain {worst}; the limit is {tolerance:.3g}"
        )
    if swapped := _swapped_domains(scores, reference):
        pairs = ", ".join(f"{a} has the scores of {b}" for a, b in swapped.items())
        problems.append(f"domains look swapped: {pairs}")
    x, y = scores[headline], reference[headline]
    return {
        "domain": headline,
        **agreement(x, y),
        "intervals": intervals(x, y),
        "flips": rank_flips(x, y),
        "domains": {
            name: {"mae": float(drift.mean()), "max_abs": largest[name]}
            for name, drift in drifts.items()
        },
        "worst": _worst(clips, scores, reference),
        "scale": scale,
        "tolerance": tolerance,
        "problems": problems,
        "passed": not problems,
    }


def _swapped_domains(
    found: Mapping[str, FloatArray], wanted: Mapping[str, FloatArray]
) -> dict[str, str]:
    """Domains whose scores are much nearer to another domain's reference than to their own."""
    swapped = {}
    for name, scores in found.items():
        gaps = {other: float(np.abs(scores - values).mean()) for other, values in wanted.items()}
        own = gaps.pop(name)
        nearest = min(gaps, key=lambda other: gaps[other], default=None)
        # rounding alone makes domains of equal weights look alike
        if nearest is not None and own > 1e-3 and _SWAP_GAIN * gaps[nearest] < own:
            swapped[name] = nearest
    return swapped


def provider_problem(
    asked: str, answered: str, nodes: Mapping[str, int] | None
) -> tuple[str | None, str | None]:
    """Checks that a configuration ran on the provider asked for.

    Args:
        asked: The provider asked for.
        answered: The provider that the scores name.
        nodes: Nodes of the graph by the provider that ran them; None where unknown.

    Returns:
        A problem and a note; None where there is none.
    """
    if answered != asked:
        return f"asked for {asked}, but ran on {answered}", None
    if nodes is None:
        return None, None if asked == "cpu" else f"execution-provider coverage of {asked} not known"
    own, total = nodes.get(asked, 0), sum(nodes.values())
    if own == 0:
        where = ", ".join(f"{count} on {name}" for name, count in nodes.items() if count)
        return f"{asked} fell back: none of {total} nodes ran on it ({where})", None
    if own < total:
        return None, f"{total - own} of {total} nodes of the graph did not run on {asked}"
    return None, None


def _scored(scores: Mapping[str, float]) -> bool:
    return bool(scores) and all(math.isfinite(value) for value in scores.values())


def _worst(
    clips: Sequence[str], found: Mapping[str, FloatArray], wanted: Mapping[str, FloatArray]
) -> list[dict[str, Any]]:
    """The clips that differ most in any domain, the worst first."""
    domains = list(found)
    differences = np.array([found[name] - wanted[name] for name in domains])
    largest = np.abs(differences).argmax(axis=0)
    order = np.argsort(-np.abs(differences).max(axis=0), kind="stable")
    return [
        {
            "clip": clips[i],
            "domain": (domain := domains[largest[i]]),
            "found": float(found[domain][i]),
            "wanted": float(wanted[domain][i]),
            "difference": float(differences[largest[i], i]),
        }
        for i in order[:_WORST]
    ]
