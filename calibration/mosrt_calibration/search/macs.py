"""Work: how much of a model each block is, and the parts that large blocks have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .network import Network
from .recipe import Recipe

__all__ = ["Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The blocks of a model's networks; the folds of an ensemble have the same ones.

    Attributes:
        parts: Parts of each block in the order of the graph; most blocks are one part, themselves.
        multiplications: Of each part, over all calibration clips and networks.
    """

    parts: Mapping[str, tuple[str, ...]]
    multiplications: Mapping[str, int]

    @classmethod
    def of(cls, networks: Sequence[Network], recipe: Recipe) -> Work:
        """What the networks are made of."""
        parts: dict[str, dict[str, None]] = {}
        counts: Counter[str] = Counter()
        for network in networks:
            for block in network.targets.names:
                parts.setdefault(block, {}).update(dict.fromkeys(network.targets.parts(block)))
            counts.update(network.work(recipe))
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
