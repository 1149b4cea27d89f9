"""Comparison: which way of making an integer graph drifts least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mosrt_calibration.clips import Clip

from .drift import HEADINGS, Budget
from .evaluate import Evaluator, Measurement
from .network import Network, Scheme

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was tried, all blocks quantised.

    Attributes:
        results: Each scheme with what was measured, in the order tried.
        winner: The scheme to go on with.
    """

    results: tuple[tuple[Scheme, Measurement], ...]
    winner: Scheme

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows for a report."""
        return [
            {"recipe": str(scheme), "winner": scheme == self.winner, **measured.to_dict()}
            for scheme, measured in self.results
        ]

    def table(self) -> str:
        """One line per scheme, the winner marked."""
        width = max(len(str(scheme)) for scheme, _ in self.results)
        lines = [f"{'scheme':{width}} {HEADINGS} {'faster':>7} {'MB':>7}"]
        for scheme, measured in self.results:
            mark = "  <- taken" if scheme == self.winner else ""
            lines.append(
                f"{scheme!s:{width}} {measured.drift.line()} {measured.times_as_fast:6.2f}x "
                f"{measured.n_bytes / 1e6:7.2f}{mark}"
            )
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
    """Tries methods, then remedies on the best of them, and keeps what lessens the drift.

    Of each clip one view is scored: that tells ways apart as well as all of them. The mean error is
    taken off MOS, as it will be off the variant's.

    Remedies are equalisation of neighbouring layers, smoothing of MatMul inputs and correction of
    biases, each only where the graphs have something for it. For CPUs, where there is MatMul with
    constant weights, scaling its input at every run is tried too: of two that hold the budget the
    faster is taken, else the one that drifts less. Weights for CPUs have 7 bits, which every CPU
    adds up exactly at its full speed; 8 are tried where those do not hold the budget.

    Args:
        evaluator: Measures.
        networks: Of the model.
        clips: What to measure on; not those of the final drift.
        methods: Of `mosrt_calibration.ranges.ranges.METHODS`.
        symmetric: For TensorRT.
        budget: What drift is small enough to look at speed.
    """
    results: list[tuple[Scheme, Measurement]] = []

    def measured(scheme: Scheme) -> Measurement:
        models = {
            network.member.name: network.int8(scheme, (), symmetric=symmetric)
            for network in networks
        }
        kind = scheme.kind(symmetric=symmetric)
        found = evaluator.measure(
            models, clips, str(scheme), kind=kind, views=1, offset_clips=clips
        )
        results.append((scheme, found))
        return found

    bits = 8 if symmetric else 7
    plain = [Scheme(method=method, weight_bits=bits) for method in methods]
    best = min(
        ((scheme, measured(scheme)) for scheme in plain), key=lambda row: row[1].drift.mean_abs
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
    """Remedies for which some network has something to do, as what they do to a scheme."""
    if any(network.changes(Scheme(method="min-max", equalise=True)) for network in networks):
        yield lambda scheme: dataclasses.replace(scheme, equalise=True)
    if any(network.changes(Scheme(method="min-max", smooth=True)) for network in networks):
        yield lambda scheme: dataclasses.replace(scheme, smooth=True)
    yield lambda scheme: dataclasses.replace(scheme, correct_biases=True)
