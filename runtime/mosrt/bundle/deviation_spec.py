"""Describes in a manifest the output by which a model predicts its own error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from .fields import Range, Section, manifest_error

__all__ = ["DeviationSpec"]

_MAX_FACTOR: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviationSpec(Section):
    """A predicted standard deviation of a view's MOS, for some domains of the graph.

    It is the error against what the model was trained on, such as its teacher's scores. It says
    nothing about how much listeners disagree.

    Attributes:
        tensor: Name of the output, (batch, len(domains)) float32: standard deviations in MOS.
        domains: Domain of each column.
        factors: For each column, what the deviation is multiplied by, so that the mean score plus
            and minus 1.96 deviations holds 95 % of scores that were not trained on.
    """

    tensor: str
    domains: Annotated[tuple[str, ...], Range(1, 100)]
    factors: tuple[float, ...]

    @property
    def described(self) -> str:
        """Domains and factors, such as "overall (times 1.12)"."""
        pairs = zip(self.domains, self.factors, strict=True)
        return ", ".join(f"{name} (times {factor:g})" for name, factor in pairs)

    def check(self, where: str) -> None:
        """Raises BundleError unless each domain has one factor, which is positive."""
        if len(set(self.domains)) != len(self.domains) or len(self.factors) != len(self.domains):
            raise manifest_error(f"{where} needs different domains, and a factor for each")
        if not all(0 < factor <= _MAX_FACTOR for factor in self.factors):
            raise manifest_error(f"{where}.factors must be above 0, and at most {_MAX_FACTOR:g}")
