"""Compares quantisation schemes, and takes the one with the least drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosrt_calibration.clips import Clip

from .drift import Budget
from .evaluate import MEASUREMENT_HEADINGS, Evaluator, Measurement
from .network import Network, Scheme, int8_graphs

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Measurements of schemes with all blocks quantised.

    Attributes:
        results: Each scheme with its measurement, in the order tried.
        winner: The scheme to use.
    """

    results: tuple[tuple[Scheme, Measurement], ...]
    winner: Scheme

    def to_dict(self) -> list[dict[str, Any]]:
        """The results for a report."""
        return [
            {"recipe": str(scheme), "winner": scheme == self.winner, **measured.to_dict()}
            for scheme, measured in self.results
        ]

    def table(self) -> str:
        """One line per scheme; the winner is marked."""
        width = max(len(str(scheme)) for scheme, _ in self.results)
        lines = [f"{'scheme':{width}} {MEASUREMENT_HEADINGS}"]
        for scheme, measured in self.results:
            mark = "  <- chosen" if scheme == self.winner else ""
            lines.append(f"{scheme!s:{width}} {measured.line()}{mark}")
        return "\n".join(lines)


def compare(
    evaluator: Evaluator,
    networks: Sequence[Network],
    clips: Sequence[Clip],
    *,
    methods: Sequence[str],
    symmetric: bool,
    budget: Budget,
) -> Comparison:
    """Compares range methods, and keeps the corrections that reduce the drift of the best one.

    One view of each clip is scored, which is enough to compare schemes. The mean error of MOS is
    subtracted, as it is in the variant.

    The corrections are equalisation, smoothing and bias correction, as far as they apply to the
    graphs. For CPUs, dynamic quantisation is tried if there are MatMul nodes with constant weights:
    if it and the static scheme are both within the budget, the faster one is taken, otherwise the
    one with less drift. Weights for CPUs have 7 bits, which every CPU adds exactly at full speed;
    8 bits are tried if 7 are over the budget.

    Args:
        evaluator: Measures the schemes.
        networks: The networks of the model.
        clips: Clips to compare on, other than those of the final drift.
        methods: Methods to choose ranges, of `mosrt_calibration.ranges.ranges.METHODS`.
        symmetric: Whether graphs are for TensorRT.
        budget: Drift within which speed decides.
    """
    results: list[tuple[Scheme, Measurement]] = []

    def measured(scheme: Scheme, **changes: Any) -> tuple[Scheme, Measurement]:
        scheme = dataclasses.replace(scheme, **changes)
        models = int8_graphs(networks, scheme, ())
        found = evaluator.measure(
            models, clips, str(scheme), kind=scheme.kind, views=1, offset_clips=clips
        )
        results.append((scheme, found))
        return results[-1]

    def least_drift(*rows: tuple[Scheme, Measurement]) -> tuple[Scheme, Measurement]:
        return min(rows, key=lambda row: row[1].drift.mean_abs)

    bits = 8 if symmetric else 7
    schemes = [Scheme(method=name, weight_bits=bits, symmetric=symmetric) for name in methods]
    best = least_drift(*[measured(scheme) for scheme in schemes])
    for name in ("equalised", "smoothed", "biases_corrected"):
        change: dict[str, Any] = {name: True}
        alone = dataclasses.replace(schemes[0], **change)
        if name == "biases_corrected" or any(network.changes(alone) for network in networks):
            best = least_drift(best, measured(best[0], **change))
    if symmetric:
        return Comparison(results=tuple(results), winner=best[0])
    if any(network.has_matmul for network in networks):
        other = measured(best[0], dynamic_matmul=True)
        if all(budget.holds(row[1].drift) for row in (best, other)):
            best = max(best, other, key=lambda row: row[1].times_as_fast)
        else:
            best = least_drift(best, other)
    if not budget.holds(best[1].drift):
        best = least_drift(best, measured(best[0], weight_bits=8))
    return Comparison(results=tuple(results), winner=best[0])
