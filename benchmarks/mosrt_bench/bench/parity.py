"""Parity: how far each variant and provider drifts from the FP32 reference on the user's clips.

A row passes if no score of any domain drifts further than its precision allows, its provider is
the one asked for, and no domain looks like another one's.
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
    "Judged",
    "compare_scores",
    "provider_problem",
    "swapped_domains",
    "tolerance_mos",
]

FloatArray = npt.NDArray[np.float64]
Judged = Mapping[str, Mapping[str, float]]
"""Figures by clip, then by domain; nan where there is no score."""

TOLERANCES_MOS: Final[Mapping[str, float]] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}
"""Largest |ΔMOS| that passes, by what a variant's name begins with; others as FP16.

FP32 on another provider differs by rounding; FP16 has 11 bits, of which a deep network loses a few;
INT8 is a trade that a bundle's own calibration accounts for, and beyond a quarter of a MOS step it
is a defect.
"""

WORST: Final = 10
_SWAP_GAIN: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was compared of one domain."""

    domain: str
    clips: tuple[str, ...]
    found: FloatArray
    wanted: FloatArray


def tolerance_mos(variant: str, provider: str = "cpu") -> float:
    """Largest |ΔMOS| that a variant may show on a provider, which may compute in bfloat16."""
    if provider.endswith("bf16"):
        return max(TOLERANCES_MOS["bf16"], tolerance_mos(variant))
    for prefix, tolerance in TOLERANCES_MOS.items():
        if variant.startswith(prefix):
            return tolerance
    return TOLERANCES_MOS["fp16"]


def compare_scores(
    found: Judged,
    wanted: Judged,
    *,
    variant: str,
    provider: str = "cpu",
    default_domain: str,
    resamples: int = 500,
) -> dict[str, Any]:
    """A row of the parity table, JSON-ready.

    Args:
        found: The contestant's figures.
        wanted: The reference's.
        variant: Of the contestant, for its tolerance.
        provider: Likewise.
        default_domain: Domain of the headline figures, or the only one there is.
        resamples: Of the bootstrap.

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
            f"drifts by {largest[worst]:.3g} in domain {worst}, and {tolerance:.3g} is allowed"
        )
    swapped = swapped_domains(drifts)
    if swapped:
        pairs = ", ".join(f"{a} answers as {b}" for a, b in swapped.items())
        problems.append(f"domains look swapped: {pairs}")
    bounds = intervals(headline.found, headline.wanted, resamples=resamples)
    return {
        "domain": headline.domain,
        **agreement(headline.found, headline.wanted).to_dict(),
        "intervals": {name: None if b is None else list(b) for name, b in bounds.items()},
        "flips": rank_flips(headline.found, headline.wanted).to_dict(),
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
    """Domains whose scores are another domain's, by far rather than their own."""
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
    """What is wrong with where a contestant ran, and what is worth a note.

    Args:
        asked: The provider asked for.
        answered: The one that scores name.
        nodes: Nodes of the graph by the provider that ran them; None where unknown.
    """
    if answered != asked:
        return f"asked for {asked}, and {answered} answered", None
    if nodes is None:
        return None, None if asked == "cpu" else f"where {asked} runs its nodes was not measured"
    own, total = nodes.get(asked, 0), sum(nodes.values())
    if own == 0:
        where = ", ".join(f"{count} on {name}" for name, count in nodes.items() if count)
        return f"{asked} fell back: none of {total} nodes ran on it ({where})", None
    if own < total:
        return None, f"{total - own} of {total} nodes of the graph ran elsewhere than on {asked}"
    return None, None


def _scored(figures: Mapping[str, float]) -> bool:
    return bool(figures) and all(math.isfinite(value) for value in figures.values())


def _drifts(found: Judged, wanted: Judged) -> dict[str, Drift]:
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
    """What a tolerance in MOS means on this figure: uncertainties have a scale of their own."""
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
