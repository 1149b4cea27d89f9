"""Search: which blocks have to stay in float for the drift to hold a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mosrt_calibration.clips import Clip

from .drift import HEADINGS, Budget, Drift
from .evaluate import Evaluator, Measurement
from .network import Network, Scheme

__all__ = ["MacCount", "Outcome", "Point", "Sensitivity", "rank", "search"]

_STEPS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How far the score drifts when one block is quantised and no other computes in bytes.

    Attributes:
        block: The block.
        drift: What was measured.
        without: Mean drift when no block at all computes in bytes: that of the weights.
        share: The block's part of the multiplications of all blocks.
    """

    block: str
    drift: Drift
    without: float
    share: float

    @property
    def gain(self) -> float:
        """What leaving the block in float buys, by what it costs.

        Errors of blocks hardly know of each other, so that their squares add up; the time that
        float takes goes with the multiplications.
        """
        return max(0.0, self.drift.mean_abs**2 - self.without**2) / self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the trade-off curve.

    Attributes:
        kept_fp32: Blocks, or parts of them, that stay in float; those worth most first.
        share: How much of the multiplications of all blocks that is.
        measured: What that does and costs.
    """

    kept_fp32: tuple[str, ...]
    share: float
    measured: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Figures for a report."""
        return {
            "left_float": list(self.kept_fp32),
            "share_of_work": round(self.share, 5),
            **self.measured.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search found.

    Attributes:
        points: Everything measured, by how much is left in float.
        chosen: The first point that holds the budget, less what it does without; or None.
        ranking: Blocks by sensitivity, the worst first; empty if it was not needed.
    """

    points: tuple[Point, ...]
    chosen: Point | None
    ranking: tuple[Sensitivity, ...]

    def table(self) -> str:
        """The ranking and the curve."""
        lines = []
        if self.ranking:
            width = max(5, *(len(row.block) for row in self.ranking))
            lines += [f"{'block':{width}} {HEADINGS} {'macs':>7}"]
            lines += [
                f"{row.block:{width}} {row.drift.line()} {row.share:7.2%}" for row in self.ranking
            ]
            lines.append("")
        lines.append(f"{'float':>5} {'macs':>7} {HEADINGS} {'faster':>7} {'MB':>7}")
        for point in self.points:
            measured = point.measured
            mark = "  <- taken" if point == self.chosen else ""
            lines.append(
                f"{len(point.kept_fp32):5} {point.share:7.2%} {measured.drift.line()} "
                f"{measured.times_as_fast:6.2f}x {measured.n_bytes / 1e6:7.2f}{mark}"
            )
        return "\n".join(lines)


def rank(
    evaluator: Evaluator,
    networks: Sequence[Network],
    scheme: Scheme,
    macs: MacCount,
    clips: Sequence[Clip],
    *,
    symmetric: bool,
) -> tuple[Sensitivity, ...]:
    """Quantises each block alone, and hears one view of each clip; the worst first.

    In graphs for CPUs the weights of the other blocks are bytes, as they will be when those compute
    in float.
    """
    names = macs.blocks
    kind = scheme.kind(symmetric=symmetric)

    def drift(quantised: str | None, label: str) -> Drift:
        others = [name for name in names if name != quantised]
        models = {
            network.member.name: network.int8(scheme, others, symmetric=symmetric)
            for network in networks
            if quantised is None or quantised in network.targets.names
        }
        return evaluator.measure(models, clips, label, kind=kind, views=1, offset_clips=clips).drift

    without = 0.0 if symmetric else drift(None, "weights alone").mean_abs
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
    symmetric: bool,
    budget: Budget,
    curve: bool,
    views: int | None = None,
) -> Outcome:
    """Leaves blocks in float, those worth most first, one more at a time, until the budget holds.

    Of more than sixteen blocks several more at a time, so that there are some sixteen steps. Then
    those that are more work than most are quantised again where the budget holds all the same: as a
    whole, or else by halves, as long as those are more work than a block is on average.

    Args:
        evaluator: Measures.
        networks: Of the model.
        scheme: How integer graphs are made.
        screening: What blocks are ranked on, and the mean error of MOS is taken from.
        clips: What the budget must hold on.
        symmetric: For TensorRT.
        budget: What must hold.
        curve: Whether to rank blocks and go on along the curve even if the budget holds.
        views: Views of each of `clips`; None for as many as the runtime takes by default.
    """

    def point(kept_fp32: tuple[str, ...]) -> Point:
        models = {
            network.member.name: network.int8(scheme, kept_fp32, symmetric=symmetric)
            for network in networks
        }
        share = macs.share(kept_fp32)
        label = f"{share:.1%} of the work in float"
        kind = scheme.kind(symmetric=symmetric)
        measured = evaluator.measure(
            models, clips, label, kind=kind, views=views, offset_clips=screening
        )
        return Point(kept_fp32=kept_fp32, share=share, measured=measured)

    macs = MacCount.of(networks, scheme)
    n_blocks = len(macs.blocks)
    points = [point(())]
    chosen = points[0] if budget.holds(points[0].measured.drift) else None
    if chosen is not None and not curve:
        return Outcome(points=tuple(points), chosen=chosen, ranking=())
    ranking = rank(evaluator, networks, scheme, macs, screening, symmetric=symmetric)
    order = [row.block for row in sorted(ranking, key=lambda row: -row.gain)]
    stride = max(1, n_blocks // _STEPS)
    count = stride
    # With every block in float nothing would be quantised: that is no INT8 variant.
    while count < n_blocks and (chosen is None or curve):
        points.append(point(tuple(order[:count])))
        if chosen is None and budget.holds(points[-1].measured.drift):
            chosen = points[-1]
        if chosen is not None:  # what follows is for the picture
            stride *= 2
        count += stride
    if chosen is not None:
        chosen = _without_needless(chosen, points, macs, point, budget)
    points.sort(key=lambda one: (one.share, len(one.kept_fp32)))
    return Outcome(points=tuple(points), chosen=chosen, ranking=ranking)


def _without_needless(
    chosen: Point,
    points: list[Point],
    macs: MacCount,
    point: Callable[[tuple[str, ...]], Point],
    budget: Budget,
) -> Point:
    """The chosen point with as little dear work in float as the budget allows.

    Args:
        chosen: Holds the budget.
        points: All measured so far; what is measured here is added.
        macs: Of the blocks.
        point: Measures.
        budget: What must hold.
    """
    fair = 1 / len(macs.blocks)
    groups = [parts for parts in macs.parts.values() if macs.share(parts) > fair]
    while groups:
        group = max(groups, key=macs.share)
        groups.remove(group)
        rest = macs.without(chosen.kept_fp32, group)
        if rest == chosen.kept_fp32:
            continue
        found = next((one for one in points if set(one.kept_fp32) == set(rest)), None)
        if found is None:
            found = point(rest)
            points.append(found)
        if budget.holds(found.measured.drift):
            chosen = found
        elif len(group) > 1:
            middle = len(group) // 2
            halves = (group[:middle], group[middle:])
            groups += [half for half in halves if macs.share(half) > fair]
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class MacCount:
    """The blocks of a model's networks; the folds of an ensemble have the same ones.

    Attributes:
        parts: Parts of each block in the order of the graph; most blocks are one part, themselves.
        multiplications: Of each part, over all calibration clips and networks.
    """

    parts: Mapping[str, tuple[str, ...]]
    multiplications: Mapping[str, int]

    @classmethod
    def of(cls, networks: Sequence[Network], scheme: Scheme) -> MacCount:
        """What the networks are made of."""
        parts: dict[str, dict[str, None]] = {}
        counts: Counter[str] = Counter()
        for network in networks:
            for block in network.targets.names:
                parts.setdefault(block, {}).update(dict.fromkeys(network.targets.parts(block)))
            counts.update(network.macs(scheme))
        return cls(
            parts={block: tuple(found) for block, found in parts.items()}, multiplications=counts
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks."""
        return tuple(self.parts)

    def share(self, names: Collection[str]) -> float:
        """How much of all multiplications some blocks or parts are, from 0 to 1."""
        chosen = {part for name in names for part in self.parts.get(name, (name,))}
        counted = sum(self.multiplications[part] for part in chosen)
        return counted / sum(self.multiplications.values())

    def without(self, names: Collection[str], parts: Collection[str]) -> tuple[str, ...]:
        """The same blocks and parts less some parts; a block that has any of these is taken apart.

        Args:
            names: Blocks or parts.
            parts: Parts.
        """
        found: list[str] = []
        for name in names:
            inside = self.parts.get(name, (name,))
            left = [part for part in inside if part not in parts]
            found += [name] if len(left) == len(inside) else left
        return tuple(found)
