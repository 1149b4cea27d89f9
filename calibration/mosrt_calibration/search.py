"""Search: which blocks have to stay in float for the drift to hold a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .bench import Bench, Measurement
from .clips import Clip
from .drift import HEADINGS, Budget, Drift
from .network import Network
from .recipe import Recipe

__all__ = ["Outcome", "Point", "Sensitivity", "rank", "search"]

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
    def worth(self) -> float:
        """What leaving the block in float buys, by what it costs.

        Errors of blocks hardly know of each other, so that their squares add up; the time that
        float takes goes with the multiplications.
        """
        return max(0.0, self.drift.mean_abs**2 - self.without**2) / self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the trade-off curve.

    Attributes:
        left_float: Blocks that stay in float, those worth most first.
        measured: What that does and costs.
    """

    left_float: tuple[str, ...]
    measured: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Figures for a report."""
        return {"left_float": list(self.left_float), **self.measured.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search found.

    Attributes:
        points: Everything measured, by number of blocks left in float.
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
            lines += [f"{'block':{width}} {HEADINGS} {'work':>7}"]
            lines += [
                f"{row.block:{width}} {row.drift.line()} {row.share:7.2%}" for row in self.ranking
            ]
            lines.append("")
        lines.append(f"{'float':>5} {HEADINGS} {'faster':>7} {'MB':>7}")
        for point in self.points:
            measured = point.measured
            mark = "  <- taken" if point == self.chosen else ""
            lines.append(
                f"{len(point.left_float):5} {measured.drift.line()} "
                f"{measured.times_as_fast:6.2f}x {measured.n_bytes / 1e6:7.2f}{mark}"
            )
        return "\n".join(lines)


def rank(
    bench: Bench,
    networks: Sequence[Network],
    recipe: Recipe,
    clips: Sequence[Clip],
    *,
    symmetric: bool,
) -> tuple[Sensitivity, ...]:
    """Quantises each block alone, and hears one view of each clip; the worst first.

    In graphs for CPUs the weights of the other blocks are bytes, as they will be when those compute
    in float.
    """
    names = block_names(networks)
    kind = recipe.kind(symmetric=symmetric)

    def drift(quantised: str | None, label: str) -> Drift:
        others = [name for name in names if name != quantised]
        models = {
            network.member.name: network.integer(recipe, others, symmetric=symmetric)
            for network in networks
            if quantised is None or quantised in network.targets.names
        }
        return bench.measure(models, clips, label, kind=kind, views=1, offset_clips=clips).drift

    without = 0.0 if symmetric else drift(None, "weights alone").mean_abs
    work = sum((Counter(network.work(recipe)) for network in networks), Counter[str]())
    found = [
        Sensitivity(
            block=block,
            drift=drift(block, f"block {i + 1} of {len(names)}: {block}"),
            without=without,
            share=work[block] / work.total(),
        )
        for i, block in enumerate(names)
    ]
    return tuple(sorted(found, key=lambda row: -row.drift.mean_abs))


def search(
    bench: Bench,
    networks: Sequence[Network],
    recipe: Recipe,
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
    those that are more work than most are quantised again where the budget holds all the same.

    Args:
        bench: Measures.
        networks: Of the model.
        recipe: How integer graphs are made.
        screening: What blocks are ranked on, and the mean error of MOS is taken from.
        clips: What the budget must hold on.
        symmetric: For TensorRT.
        budget: What must hold.
        curve: Whether to rank blocks and go on along the curve even if the budget holds.
        views: Views of each of `clips`; None for as many as the runtime takes by default.
    """

    def point(left_float: tuple[str, ...]) -> Point:
        models = {
            network.member.name: network.integer(recipe, left_float, symmetric=symmetric)
            for network in networks
        }
        label = f"{len(left_float)} of {n_blocks} blocks in float"
        kind = recipe.kind(symmetric=symmetric)
        measured = bench.measure(
            models, clips, label, kind=kind, views=views, offset_clips=screening
        )
        return Point(left_float=left_float, measured=measured)

    n_blocks = len(block_names(networks))
    points = [point(())]
    chosen = points[0] if budget.holds(points[0].measured.drift) else None
    if chosen is not None and not curve:
        return Outcome(points=tuple(points), chosen=chosen, ranking=())
    ranking = rank(bench, networks, recipe, screening, symmetric=symmetric)
    order = [row.block for row in sorted(ranking, key=lambda row: -row.worth)]
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
        dear = sorted(
            (row for row in ranking if row.share > 1 / n_blocks), key=lambda row: -row.share
        )
        chosen = _without_needless(chosen, [row.block for row in dear], points, point, budget)
    points.sort(key=lambda one: len(one.left_float))
    return Outcome(points=tuple(points), chosen=chosen, ranking=ranking)


def _without_needless(
    chosen: Point,
    dear: Sequence[str],
    points: list[Point],
    point: Callable[[tuple[str, ...]], Point],
    budget: Budget,
) -> Point:
    """The chosen point with as few of some blocks in float as the budget allows.

    Args:
        chosen: Holds the budget.
        dear: Blocks to quantise again, one after the other.
        points: All measured so far; what is measured here is added.
        point: Measures.
        budget: What must hold.
    """
    for block in dear:
        rest = tuple(name for name in chosen.left_float if name != block)
        if any(set(rest) == set(one.left_float) for one in points):
            continue
        points.append(point(rest))
        if budget.holds(points[-1].measured.drift):
            chosen = points[-1]
    return chosen


def block_names(networks: Sequence[Network]) -> list[str]:
    """Blocks of all networks; the folds of an ensemble have the same ones."""
    return list(dict.fromkeys(name for network in networks for name in network.targets.names))
