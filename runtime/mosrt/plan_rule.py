"""Plan rules: how to make a crop plan once a recording's length is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .crops import CropGeometry, CropPlan
from .errors import PlanError

__all__ = ["PlanRule"]

KINDS: Final = ("grid", "reference", "paper")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRule:
    """A constructor of `CropPlan` by name, with its options.

    Attributes:
        kind: "grid", "reference" or "paper".
        seed: Seed of the random kinds.
        views: Views per recording; None for the kind's own choice.
    """

    kind: str = "grid"
    seed: int = 0
    views: int | None = None

    @classmethod
    def parse(cls, text: str, views: int | None = None) -> PlanRule:
        """Reads "grid", "reference:SEED", "paper" or "paper:SEED".

        Raises:
            PlanError: The text is none of these, or does not go with a number of views.
        """
        kind, colon, seed = text.partition(":")
        if kind not in KINDS or (colon and (kind == "grid" or not seed.isdecimal())):
            raise PlanError(
                f"unknown plan {text!r}; known: grid, reference:SEED, paper, paper:SEED"
            )
        if kind == "reference" and not colon:
            raise PlanError("plan reference needs a seed, such as reference:0")
        if kind == "paper" and views is not None:
            raise PlanError("plan paper has its own number of views; leave views out")
        if views is not None and views < 1:
            raise PlanError(f"views must be at least 1, not {views}")
        return cls(kind=kind, seed=int(seed or 0), views=views)

    def plan(self, n_samples: int, geometry: CropGeometry) -> CropPlan:
        """The plan for a recording of `n_samples` at the model's rate."""
        if self.kind == "grid":
            return CropPlan.grid(n_samples, self.views, geometry=geometry)
        if self.kind == "paper":
            return CropPlan.paper(n_samples, self.seed, geometry=geometry)
        return CropPlan.reference(n_samples, self.seed, self.views or 1, geometry=geometry)
