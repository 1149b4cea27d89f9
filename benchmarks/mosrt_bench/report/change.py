"""Changes: what a figure was in one report, and what it is in another."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Change", "judged", "present"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in two reports.

    Attributes:
        what: The contestant and the figure.
        before: In the first report; None where it has none.
        after: In the second; likewise.
        ratio: After divided by before; None where that says nothing.
        difference: After minus before, of correlations only.
        interval_95: Of the ratio or difference, where both runs have repeats.
        verdict: "regression", "improvement", "same", "gone", "new" or "note".
    """

    what: str
    before: float | None
    after: float | None
    ratio: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    verdict: str = "same"


def judged(worse: bool, better: bool) -> str:
    """The verdict on a figure that both reports have."""
    return "regression" if worse else "improvement" if better else "same"


def present(name: str, old: float | None, new: float | None) -> Change:
    """A figure that one of the reports may lack, and of which nothing else can be said."""
    verdict = "same" if old is None and new is None else "new" if old is None else "gone"
    return Change(what=name, before=old, after=new, verdict=verdict)
