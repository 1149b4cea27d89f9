"""Compare scores with a reference: drift, swapped domains, and providers that fell back.

A configuration passes if no score of any domain drifts further than its precision allows, its
provider is the one asked for, and no domain's scores look like another domain's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt_bench.stats.metrics import agreement, intervals, rank_flips

__all__ = [
    "TOLERANCES_MOS",
    "Scores",
    "compare_scores",
    "provider_problem",
    "swapped_domains",
    "tolerance_mos",
]

FloatArray = npt.NDArray[np.float64]
Scores = Mapping[str, Mapping[str, float]]
"""Scores by clip, then by domain; nan where there is none."""

TOLERANCES_MOS: Final[Mapping[str, float]] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}
"""Largest |ΔMOS| that passes, by what a variant's name begins with; other variants as FP16.

FP32 on another provider differs by rounding. FP16 has 11 bits, of which a deep network loses a few.
INT8 trades accuracy for speed, which the bundle's manifest declares; more than a quarter of a MOS
step is a defect.
"""

WORST: Final = 10
_SWAP_GAIN: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Scores of one domain and their reference, clip by clip."""

    domain: str
    clips: tuple[str, ...]
    found: FloatArray
    wanted: FloatArray


def tolerance_mos(variant: str, provider: str = "cpu") -> float:
    """Largest |ΔMOS| that passes for a variant on a provider, which may compute in bfloat16."""
    if provider.endswith("bf16"):
        return max(TOLERANCES_MOS["bf16"], tolerance_mos(variant))
    for prefix, tolerance in TOLERANCES_MOS.items():
        if variant.startswith(prefix):
            return tolerance
    return TOLERANCES_MOS["fp16"]


def compare_scores(
    found: Scores,
    wanted: Scores,
    *,
    variant: str,
    provider: str = "cpu",
    default_domain: str,
    resamples: int = 500,
) -> dict[str, Any]:
    """A row of the parity table, JSON-ready.

    Args:
        found: The configuration's scores.
        wanted: The reference's scores.
        variant: Variant of the configuration, for its tolerance.
        provider: Provider of the configuration, for its tolerance.
        default_domain: Domain of the headline metrics, or the only one there is.
        resamples: Resamples of the bootstrap.

    Returns:
        The metrics of the default domain with their intervals, "domains" with MAE and largest
        difference of each, "flips", "worst" clips over all domains, "scale" (what a
        difference is relative to), "tolerance", "problems" (why it fails; empty if it passes) and
        "passed".
    """
    problems: list[str] = []
    lost = [clip for clip in wanted if _scored(wanted[clip]) and not _scored(found.get(clip, {}))]
    if lost:
        problems.append(f"no score for {len(lost)} clips that the reference scores: {lost[0]}, …")
    gained = [clip for clip in found if _scored(found[clip]) and not _scored(wanted.get(clip, {}))]
    if gained:
        problems.append(f"a score for {len(gained)} clips that the reference refuses: {gained[0]}")
    drifts = _drifts(found, wanted)
    if not drifts:
        return {"passed": False, "problems": [*problems, "no clip that both score"]}
    headline = drifts.get(default_domain) or next(iter(drifts.values()))
    scale = _scale(headline)
    tolerance = tolerance_mos(variant, provider) * scale
    largest = {name: float(np.abs(d.found - d.wanted).max()) for name, d in drifts.items()}
    beyond = [name for name, value in largest.items() if value > tolerance]
    if beyond:
        worst = max(beyond, key=lambda name: largest[name])
        problems.append(
            f"drifts by {largest[worst]:.3g} in domain {worst}; the limit is {tolerance:.3g}"
        )
    swapped = swapped_domains(drifts)
    if swapped:
        pairs = ", ".join(f"{a} has the scores of {b}" for a, b in swapped.items())
        problems.append(f"domains look swapped: {pairs}")
    return {
        "domain": headline.domain,
        **agreement(headline.found, headline.wanted),
        "intervals": intervals(headline.found, headline.wanted, resamples=resamples),
        "flips": rank_flips(headline.found, headline.wanted),
        "domains": {
            name: {"mae": float(np.abs(d.found - d.wanted).mean()), "max_abs": largest[name]}
            for name, d in drifts.items()
        },
        "worst": _worst(drifts),
        "scale": scale,
        "tolerance": tolerance,
        "problems": problems,
        "passed": not problems,
    }


def swapped_domains(drifts: Mapping[str, Drift]) -> dict[str, str]:
    """Domains whose scores are much nearer to another domain's reference than to their own."""
    swapped = {}
    for name, drift in drifts.items():
        own = float(np.abs(drift.found - drift.wanted).mean())
        others = {
            other: float(np.abs(drift.found - candidate.wanted).mean())
            for other, candidate in drifts.items()
            if other != name
        }
        if not others:
            continue
        nearest = min(others, key=lambda other: others[other])
        # rounding alone makes domains of equal weights look alike
        if own > 1e-3 and _SWAP_GAIN * others[nearest] < own:
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


def _drifts(found: Scores, wanted: Scores) -> dict[str, Drift]:
    clips = [clip for clip in wanted if _scored(wanted[clip]) and _scored(found.get(clip, {}))]
    if not clips:
        return {}
    domains = [name for name in wanted[clips[0]] if name in found[clips[0]]]
    return {
        domain: Drift(
            domain=domain,
            clips=tuple(clips),
            found=np.array([found[clip][domain] for clip in clips]),
            wanted=np.array([wanted[clip][domain] for clip in clips]),
        )
        for domain in domains
    }


def _scale(drift: Drift) -> float:
    """Factor of a tolerance in MOS: 1, or the mean of uncertainties, which have their own scale."""
    return float(np.abs(drift.wanted).mean()) if drift.domain == "uncertainty" else 1.0


def _worst(drifts: Mapping[str, Drift]) -> list[dict[str, Any]]:
    """The clips that differ most in any domain, the worst first."""
    of_clip: dict[str, dict[str, Any]] = {}
    for drift in drifts.values():
        for clip, found, wanted in zip(
            drift.clips, drift.found.tolist(), drift.wanted.tolist(), strict=True
        ):
            difference = found - wanted
            if abs(difference) >= abs(of_clip.get(clip, {"difference": 0.0})["difference"]):
                of_clip[clip] = {
                    "clip": clip,
                    "domain": drift.domain,
                    "found": found,
                    "wanted": wanted,
                    "difference": difference,
                }
    ranked = sorted(of_clip.values(), key=lambda row: -abs(row["difference"]))
    return list(itertools.islice(ranked, WORST))
