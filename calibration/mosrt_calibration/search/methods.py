"""Compares quantisation schemes, and takes the one with the least drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
    """Compares range methods, and tries corrections on the best one.

    Corrections that reduce the drift are kept.

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

    def measured(scheme: Scheme) -> Measurement:
        models = int8_graphs(networks, scheme, (), symmetric=symmetric)
        kind = scheme.kind(symmetric=symmetric)
        found = evaluator.measure(
            models, clips, str(scheme), kind=kind, views=1, offset_clips=clips
        )
        results.append((scheme, found))
        return found

    bits = 8 if symmetric else 7
    schemes = [Scheme(method=method, weight_bits=bits) for method in methods]
    best = min(
        ((scheme, measured(scheme)) for scheme in schemes), key=lambda row: row[1].drift.mean_abs
    )
    for correction in _corrections(networks):
        scheme = correction(best[0])
        found = measured(scheme)
        if found.drift.mean_abs < best[1].drift.mean_abs:
            best = scheme, found
    if not symmetric and any(network.has_matmul for network in networks):
        scheme = dataclasses.replace(best[0], dynamic=True)
        found = measured(scheme)
        if budget.holds(found.drift) and budget.holds(best[1].drift):
            better = found.times_as_fast > best[1].times_as_fast
        else:
            better = found.drift.mean_abs < best[1].drift.mean_abs
        if better:
            best = scheme, found
    if not symmetric and not budget.holds(best[1].drift):
        scheme = dataclasses.replace(best[0], weight_bits=8)
        found = measured(scheme)
        if found.drift.mean_abs < best[1].drift.mean_abs:
            best = scheme, found
    return Comparison(results=tuple(results), winner=best[0])


def _corrections(networks: Sequence[Network]) -> Iterator[Callable[[Scheme], Scheme]]:
    """The corrections that apply to some network, as functions from scheme to scheme."""
    if any(network.changes(Scheme(method="min-max", equalise=True)) for network in networks):
        yield lambda scheme: dataclasses.replace(scheme, equalise=True)
    if any(network.changes(Scheme(method="min-max", smooth=True)) for network in networks):
        yield lambda scheme: dataclasses.replace(scheme, smooth=True)
    yield lambda scheme: dataclasses.replace(scheme, correct_biases=True)
