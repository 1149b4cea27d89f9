"""Makes random sentences in several languages, for the synthetic voices to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Final

import numpy as np

__all__ = ["LANGUAGES", "sentences"]

# By language, the parts of a sentence in order, each with alternatives that combine freely.
_GRAMMARS: Final[Mapping[str, list[list[str]]]] = json.loads(
    resources.files(__package__).joinpath("sentences.json").read_text(encoding="utf-8")
)

LANGUAGES: Final = tuple(_GRAMMARS)


def sentences(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` random sentences.

    Args:
        language: One of `LANGUAGES`.
        count: Number of sentences.
        rng: Source of the choices.

    Raises:
        KeyError: There are no sentences in this language.
    """
    parts = _GRAMMARS[language]
    return [" ".join(str(rng.choice(part)) for part in parts) for _ in range(count)]
