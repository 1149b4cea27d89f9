"""Says how a student is taught, in TOML: its data, the stages of training, and its default score.

The defaults suit most teachers. A file names only what differs::

    hours = 60.0
    held_out = ["anna"]

    [[stages]]
    name = "training"
    epochs = 5.0
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.bundle.fields import Range, Section, manifest_error, parse
from mosrt.errors import BundleError
from mosrt_export.errors import ConfigError
from mosrt_export.utmosv2.config import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Group", "Overall", "Penalty", "Recipe", "Stage"]

_Hours: TypeAlias = Annotated[float, Range(0.001, 100_000)]
_Share: TypeAlias = Annotated[float, Range(1e-6, 1000)]
_OTHERS: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Section):
    """Speakers who have the first folder of their path in common.

    Attributes:
        share: Relative share of the clips.
        ladder_share: Relative share of the ladders; None for that of the clips.
        anchor: How natural these voices are, from 1 to 5, for a domain "anchor".
    """

    share: _Share = 1.0
    ladder_share: _Share | None = None
    anchor: Annotated[float, Range(1, 5)] | None = None

    @property
    def shares(self) -> FloatArray:
        """Shares of the clips and of the ladders."""
        return np.array([self.share, self.ladder_share or self.share])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Section):
    """A stage of training, which starts with the network that the stage before ended with.

    Attributes:
        name: What progress calls it.
        epochs: Passes over the clips.
        rate: Largest learning rate.
        ladders: Ladders per batch.
        climbing: Weight of the ranking loss within ladders.
        microphones: Whether clips get random frequency responses, as of other microphones.
    """

    name: str
    epochs: Annotated[float, Range(0, 10_000)]
    rate: Annotated[float, Range(1e-9, 1)] = 3e-3
    ladders: Annotated[int, Range(0, 100)] = 3
    climbing: Annotated[float, Range(0, 1000)] = 0.5
    microphones: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty(Section):
    """What the default score loses, `slope` for each point of a domain below `threshold`."""

    threshold: float
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall(Section):
    """A default score "overall" that is made of other domains.

    offset + scale · (mean of the z-scores of `averaged` - Σ slope · max(0, threshold - domain) over
    `penalties`); z-scores are relative to the training data.
    """

    averaged: Annotated[tuple[str, ...], Range(1, 100)]
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    offset: float
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Section):
    """How a student is taught.

    Attributes:
        hours: Hours of clips. A fifth are ladders: a clip and three ever more degraded copies.
        test_hours: Hours of each part that the student is tested on.
        chunk_clips: Clips per file; a multiple of 4, the size of a ladder.
        takes: Almost half of all clips are the take that the first teacher scores highest of so
            many restored and varied ones. 1 takes the first, and asks no teacher.
        fidelity: Whether closeness to the clean clip is a domain, "fidelity", measured by PESQ and
            a spectral distance; and "anchor", if groups have anchors.
        leave_out: Treatments that are not used.
        groups: Shares and anchors by the first folder of speakers' paths; "*" is all others.
        held_out: Names of speakers that the student is tested on, with * for any characters; empty
            for one in ten.
        batch: Clips per step of training.
        stages: The stages of training.
        overall: How a default score is made of the domains; None for the first teacher's.
        card: Template of the model card.
        licence: Licence of the student's weights.
    """

    hours: _Hours = 25.0
    test_hours: _Hours = 1.0
    chunk_clips: Annotated[int, Range(4, 1000)] = 100
    takes: Annotated[int, Range(1, 100)] = 1
    fidelity: bool = False
    leave_out: tuple[str, ...] = ("codec2",)  # which needs a program
    groups: Mapping[str, Group] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    batch: Annotated[int, Range(2, 4096)] = 48
    stages: tuple[Stage, ...] = (
        Stage(name="training", epochs=7.0),
        Stage(name="tuning", epochs=1.2, rate=1e-3, ladders=6, climbing=2.0, microphones=True),
    )
    overall: Overall | None = None
    card: str = "student-card.md"
    licence: str = "unknown; whoever made the model did not say"

    @classmethod
    def read(cls, name: str | None) -> Recipe:
        """Reads a recipe.

        Args:
            name: "nano", the path of a TOML file, or None for the defaults.

        Raises:
            ConfigError: The file cannot be read, or a key is unknown, of the wrong type or out of
                range.
        """
        if name is None:
            return cls()
        embedded = resources.files(__package__).joinpath(f"{name}.toml")
        try:
            text = (Path(name) if "." in name else embedded).read_text(encoding="utf-8")
            values = tomllib.loads(text)
            recipe = parse(values, cls, "")
            _check_keys(values, recipe, "")
        except OSError as exc:
            raise ConfigError(
                f"{name}: cannot read the recipe ({exc.strerror}); pass nano or a file NAME.toml"
            ) from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{name}: not valid TOML ({exc})") from exc
        except BundleError as exc:  # which would be right for the same field of a manifest
            raise ConfigError(f"{name}: {str(exc).removeprefix('manifest.json: ')}") from exc
        return recipe

    def check(self, where: str) -> None:  # noqa: ARG002
        """Raises BundleError for values that are right alone and contradict one another."""
        if self.chunk_clips % 4:
            raise manifest_error(f"chunk_clips must be a multiple of 4, not {self.chunk_clips}")
        for stage in self.stages:
            if 4 * stage.ladders >= self.batch:
                raise manifest_error(
                    f"stage {stage.name!r}: {stage.ladders} ladders of 4 clips leave no room for "
                    f"others in a batch of {self.batch}"
                )

    def group_of(self, speaker: str) -> str:
        """Returns the key of `groups` that a speaker belongs to, "*" for all others."""
        first = speaker.split("/", maxsplit=1)[0]
        return first if first in self.groups else _OTHERS

    def group(self, speaker: str) -> Group:
        """Returns the group of a speaker."""
        return self.groups.get(self.group_of(speaker)) or Group()


def _check_keys(values: Any, parsed: Any, where: str) -> None:
    """Raises BundleError for a key that `parsed`, which was read from `values`, does not have."""
    if isinstance(parsed, tuple):
        values, parsed = (dict(enumerate(each, 1)) for each in (values, parsed))
    if isinstance(parsed, Mapping):
        for key, value in values.items():
            _check_keys(value, parsed[key], f"{where}.{key}")
    elif dataclasses.is_dataclass(parsed):
        known = {each.name: getattr(parsed, each.name) for each in dataclasses.fields(parsed)}
        for key, value in values.items():
            path = f"{where}.{key}" if where else key
            if key not in known:
                raise manifest_error(f"unknown key {path!r}; {did_you_mean(key, known)}")
            _check_keys(value, known[key], path)
