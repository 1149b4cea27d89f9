"""Searches for the blocks to keep in FP32 so that the drift is within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mosrt_calibration.clips import Clip

from .drift import HEADINGS, Budget, Drift
from .evaluate import MEASUREMENT_HEADINGS, Evaluator, Measurement
from .network import Network, Scheme, int8_graphs

__all__ = ["MacCount", "Outcome", "Point", "Sensitivity", "rank", "search"]

_N_POINTS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Drift of the score when one block is quantised and all others compute in FP32.

    Attributes:
        block: Name of the block.
        drift: The drift.
        without: Mean drift when no block computes in INT8, which is that of weight-only INT8.
        share: Share of the block in the MACs of all blocks, from 0 to 1.
    """

    block: str
    drift: Drift
    without: float
    share: float

    @property
    def gain(self) -> float:
        """Squared drift that keeping the block in FP32 removes, per share of MACs.

        Squares are used because errors of different blocks are nearly independent. The cost of
        FP32 grows with the MACs.
        """
        return max(0.0, self.drift.mean_abs**2 - self.without**2) / self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the trade-off curve.

    Attributes:
        kept_fp32: Blocks, or parts of them, that are kept in FP32, by falling gain.
        share: Their share in the MACs of all blocks, from 0 to 1.
        measured: Drift, speed and size.
    """

    kept_fp32: tuple[str, ...]
    share: float
    measured: Measurement

    def to_dict(self) -> dict[str, Any]:
        """The values for a report."""
        return {
            "left_float": list(self.kept_fp32),
            "share_of_work": round(self.share, 5),
            **self.measured.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a search.

    Attributes:
        points: All points measured, by rising share in FP32.
        chosen: The point to use, or None if none is within the budget.
        ranking: Blocks by falling sensitivity; empty if they were not ranked.
    """

    points: tuple[Point, ...]
    chosen: Point | None
    ranking: tuple[Sensitivity, ...]

    def table(self) -> str:
        """The ranking and the curve."""
        lines = []
        if self.ranking:
            width = max(5, *(len(row.block) for row in self.ranking))
            rows = [
                f"{row.block:{width}} {row.drift.line()} {row.share:7.2%}" for row in self.ranking
            ]
            lines += [f"{'block':{width}} {HEADINGS} {'MACs':>7}", *rows, ""]
        lines.append(f"{'FP32':>5} {'MACs':>7} {MEASUREMENT_HEADINGS}")
        for point in self.points:
            mark = "  <- chosen" if point == self.chosen else ""
            start = f"{len(point.kept_fp32):5} {point.share:7.2%}"
            lines.append(f"{start} {point.measured.line()}{mark}")
        return "\n".join(lines)


def rank(
    evaluator: Evaluator,
    networks: Sequence[Network],
    scheme: Scheme,
    macs: MacCount,
    clips: Sequence[Clip],
) -> tuple[Sensitivity, ...]:
    """Measures the sensitivity of each block, the highest first.

    Each block is quantised alone, and one view of each clip is scored. In graphs for CPUs the
    other blocks have weight-only INT8, as blocks kept in FP32 have in the variant.

    Args:
        evaluator: Measures the graphs.
        networks: The networks of the model.
        scheme: The quantisation scheme.
        macs: MACs of the blocks.
        clips: Clips to score.
    """
    names = list(macs.parts)

    def drift(quantised: str | None, label: str) -> Drift:
        others = [name for name in names if name != quantised]
        affected = [n for n in networks if quantised is None or quantised in n.targets.parts]
        models = int8_graphs(affected, scheme, others)
        return evaluator.measure(
            models, clips, label, kind=scheme.kind, views=1, offset_clips=clips
        ).drift

    without = 0.0 if scheme.symmetric else drift(None, "weight-only INT8").mean_abs
    found = [
        Sensitivity(
            block=block,
            drift=drift(block, f"block {i + 1} of {len(names)}: {block}"),
            without=without,
            share=macs.share([block]),
        )
        for i, block in enumerate(names)
    ]
    return tuple(sorted(found, key=lambda row: -row.drift.mean_abs))


def search(
    evaluator: Evaluator,
    networks: Sequence[Network],
    scheme: Scheme,
    *,
    screening: Sequence[Clip],
    clips: Sequence[Clip],
    budget: Budget,
    curve: bool,
    views: int | None = None,
) -> Outcome:
    """Keeps more and more blocks in FP32, by falling gain, until the drift is within the budget.

    Blocks are added one by one, or several at a time if there are more than sixteen. Then blocks
    with more MACs than average are quantised again if the budget allows it: as a whole, or else by
    halves, as long as those have more MACs than an average block.

    Args:
        evaluator: Measures the graphs.
        networks: The networks of the model.
        scheme: The quantisation scheme.
        screening: Clips that blocks are ranked on, and that the mean error of MOS comes from.
        clips: Clips that the final drift is measured on.
        budget: Limits on the drift.
        curve: Whether to rank all blocks and measure the whole curve even if it is not needed.
        views: Views of each of `clips`; None for as many as the runtime takes by default.
    """
    macs = MacCount.of(networks, scheme)
    points: dict[frozenset[str], Point] = {}

    def point(kept_fp32: tuple[str, ...]) -> Point:
        key = frozenset(kept_fp32)
        if key not in points:
            models = int8_graphs(networks, scheme, kept_fp32)
            share = macs.share(kept_fp32)
            label = f"{share:.1%} of MACs in FP32"
            measured = evaluator.measure(
                models, clips, label, kind=scheme.kind, views=views, offset_clips=screening
            )
            points[key] = Point(kept_fp32=kept_fp32, share=share, measured=measured)
        return points[key]

    chosen = point(()) if budget.holds(point(()).measured.drift) else None
    if chosen is not None and not curve:
        return Outcome(points=(chosen,), chosen=chosen, ranking=())
    ranking = rank(evaluator, networks, scheme, macs, screening)
    order = [row.block for row in sorted(ranking, key=lambda row: -row.gain)]
    count = stride = max(1, len(order) // _N_POINTS)
    # With all blocks in FP32 it would not be an INT8 variant.
    while count < len(order) and (chosen is None or curve):
        found = point(tuple(order[:count]))
        if chosen is None and budget.holds(found.measured.drift):
            chosen = found
        if chosen is not None:  # the following points are only for the curve
            stride *= 2
        count += stride
    if chosen is not None:
        chosen = _requantised(chosen, macs, point, budget)
    by_share = sorted(points.values(), key=lambda one: (one.share, len(one.kept_fp32)))
    return Outcome(points=tuple(by_share), chosen=chosen, ranking=ranking)


def _requantised(
    chosen: Point, macs: MacCount, point: Callable[[tuple[str, ...]], Point], budget: Budget
) -> Point:
    """Quantises expensive blocks of the chosen point again, as far as the budget allows."""
    average = 1 / len(macs.parts)
    groups = [parts for parts in macs.parts.values() if macs.share(parts) > average]
    while groups:
        group = max(groups, key=macs.share)
        groups.remove(group)
        rest = macs.without(chosen.kept_fp32, group)
        if rest == chosen.kept_fp32:
            continue
        found = point(rest)
        if budget.holds(found.measured.drift):
            chosen = found
        elif len(group) > 1:
            halves = group[: len(group) // 2], group[len(group) // 2 :]
            groups += [half for half in halves if macs.share(half) > average]
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class MacCount:
    """Multiply-accumulate operations (MACs) of the blocks, which folds of an ensemble share.

    Attributes:
        parts: Parts of each block, in the order of the graph. Most blocks are one part.
        multiplications: MACs of each part, over all calibration clips and networks.
    """

    parts: Mapping[str, tuple[str, ...]]
    multiplications: Mapping[str, int]

    @classmethod
    def of(cls, networks: Sequence[Network], scheme: Scheme) -> MacCount:
        """Counts the MACs of some networks."""
        parts: dict[str, dict[str, None]] = {}
        counts: Counter[str] = Counter()
        for network in networks:
            for block, inside in network.targets.parts.items():
                parts.setdefault(block, {}).update(dict.fromkeys(inside))
            counts.update(network.macs(scheme))
        return cls(
            parts={block: tuple(found) for block, found in parts.items()}, multiplications=counts
        )

    def share(self, names: Collection[str]) -> float:
        """Share of some blocks or parts in all MACs, from 0 to 1."""
        chosen = {part for name in names for part in self.parts.get(name, (name,))}
        counted = sum(self.multiplications[part] for part in chosen)
        return counted / sum(self.multiplications.values())

    def without(self, names: Collection[str], parts: Collection[str]) -> tuple[str, ...]:
        """Removes parts from a list of blocks and parts; blocks with such parts are split.

        Args:
            names: Names of blocks or parts.
            parts: Names of the parts to remove.
        """
        found: list[str] = []
        for name in names:
            inside = self.parts.get(name, (name,))
            left = [part for part in inside if part not in parts]
            found += [name] if len(left) == len(inside) else left
        return tuple(found)
